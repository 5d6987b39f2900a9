"""The embedded data: 10,072 rated sentences from movie reviews, for the first run.

They come from the source distribution of vaderSentiment 3.3.2 (MIT licence; cite Hutto and Gilbert
2014), see `reviews/README.md`. They are public: good for trying things out, not for claims.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from sordino.core.checks import require_integer
from sordino.core.errors import InvalidParameterError
from sordino.data.pool import normalize_text

SMALLEST_RATING = 0.5  # weaker ratings have no clear sign; leaves 10,072 of 10,605 rows
_FILE = "movie_reviews.tsv"


@dataclass(frozen=True, slots=True)
class Review:
    """One rated sentence.

    Args:
        id: Number in the original file.
        text: The sentence.
        label: "1" for a positive mean rating, "0" for a negative one.
    """

    id: int
    text: str
    label: str


@cache
def _read_reviews() -> tuple[Review, ...]:
    """Returns the vendored rows whose rating has a clear sign."""
    content = files("sordino.data").joinpath("reviews", _FILE).read_text(encoding="utf-8")
    reviews = []
    for row in content.rstrip("\n").split("\n"):
        number, rating, text = row.split("\t")
        if abs(float(rating)) >= SMALLEST_RATING:
            reviews.append(Review(int(number), text, "1" if float(rating) > 0 else "0"))
    return tuple(reviews)


def embedded_reviews() -> list[Review]:
    """Returns the 10,072 reviews with |rating| >= 0.5, in the order of their ids.

    The label is the sign of the mean rating of twenty people on a scale from -4 to 4; 49.6% are
    positive. Two texts occur twice.
    """
    return list(_read_reviews())


def split_reviews(num_train: int, num_heldout: int, seed: int) -> tuple[list[Review], list[Review]]:
    """Returns disjoint training and held-out reviews, chosen by a public shuffle.

    The order is that of SHA-256("<seed>:<id>"), so anybody can repeat the split. A text that occurs
    twice (by `normalize_text`) counts once: no text is in both parts, nor twice in one.

    Raises:
        InvalidParameterError: If there are not as many different reviews.
    """
    require_integer("num_train", num_train, 1)
    require_integer("num_heldout", num_heldout, 0)
    require_integer("seed", seed, 0)
    by_text = {normalize_text(review.text): review for review in reversed(_read_reviews())}
    if num_train + num_heldout > len(by_text):
        raise InvalidParameterError(
            f"num_train + num_heldout must be at most {len(by_text)} (so many different reviews "
            f"are embedded), got {num_train + num_heldout}."
        )
    shuffled = sorted(
        by_text.values(), key=lambda r: hashlib.sha256(f"{seed}:{r.id}".encode()).hexdigest()
    )
    return shuffled[:num_train], shuffled[num_train : num_train + num_heldout]


def write_demo_data(
    folder: str | Path, num_train: int = 1000, num_heldout: int = 500, seed: int = 0
) -> tuple[Path, Path]:
    """Writes train.jsonl and heldout.jsonl with the columns text and label; returns their paths.

    Existing files are replaced. The same arguments give the same bytes.
    """
    parts = split_reviews(num_train, num_heldout, seed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / "train.jsonl", folder / "heldout.jsonl")
    for path, reviews in zip(paths, parts, strict=True):
        rows = ({"text": review.text, "label": int(review.label)} for review in reviews)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8", newline="\n")
    return paths
