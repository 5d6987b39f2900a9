# ruff: noqa: INP001 - a script
"""Writes src/sordino/data/reviews/ from the published file; run by hand, once.

    python tools/vendor_reviews.py ../shared/data/vader-reviews

The source is movieReviewSnippets_GroundTruth.txt in the source distribution of vaderSentiment
3.3.2. All rows are kept; only CRLF line ends become LF.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

SOURCE = "movieReviewSnippets_GroundTruth.txt"
SOURCE_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
TARGET = Path(__file__).resolve().parents[1] / "src" / "sordino" / "data" / "reviews"
NUM_ROWS = 10_605


def main(folder: Path) -> None:
    """Checks the published file and writes the vendored one."""
    content = (folder / SOURCE).read_bytes()
    if hashlib.sha256(content).hexdigest() != SOURCE_SHA256:
        sys.exit(f"{folder / SOURCE} is not the file of vaderSentiment 3.3.2.")
    rows = content.decode("utf-8").replace("\r\n", "\n").rstrip("\n").split("\n")
    if len(rows) != NUM_ROWS or any(row.count("\t") != 2 for row in rows):
        sys.exit(f"{folder / SOURCE} does not hold {NUM_ROWS} rows of three columns.")
    TARGET.mkdir(parents=True, exist_ok=True)
    (TARGET / "movie_reviews.tsv").write_bytes(("\n".join(rows) + "\n").encode())
    (TARGET / "LICENSE").write_bytes((folder / "LICENSE.txt").read_bytes().rstrip() + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
