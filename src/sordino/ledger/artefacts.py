"""Hashes of files, and whether a folder still holds those that its ledger closed with."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from sordino.core.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sordino.ledger.ledger import Ledger


def digest_file(path: Path) -> str:
    """Returns the SHA-256 of a file, read in chunks; 64 hexadecimal digits.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_own_artefacts(folder: Path, ledger: Ledger) -> None:
    """Raises unless a finished run's weights are those that its closing event names.

    Args:
        folder: The run folder.
        ledger: Its ledger.

    Raises:
        LedgerError: If the run is unfinished, or a file is missing or another one.
    """
    if not ledger.events or ledger.events[-1].get("kind") != "close":
        raise LedgerError(
            f"{folder} is an unfinished run: finish it, with its command and --resume."
        )
    require_artefacts(folder, ledger.events[-1])


def require_artefacts(folder: Path, record: Mapping[str, Any]) -> None:
    """Raises unless a folder holds the files that a record names; others may lie beside them.

    Args:
        folder: The folder.
        record: Its `artefacts_sha256` are hashes by name.

    Raises:
        LedgerError: If no file is named, or one is missing or another one.
    """
    recorded = record.get("artefacts_sha256")
    if not isinstance(recorded, dict) or not recorded:
        raise LedgerError(f"{folder}: the record of its files names none of them.")
    for name, digest in recorded.items():
        try:
            found = digest_file(folder / name)
        except OSError:
            found = None
        if found != digest:
            problem = "is missing" if found is None else "was changed"
            raise LedgerError(
                f"{folder / name} {problem} since it was recorded: what is claimed of this folder "
                f"is not about what lies there now. Look with sordino verify {folder}."
            )
