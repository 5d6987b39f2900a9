"""Whether a folder still holds the files that its ledger closed with."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sordino.core.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sordino.ledger.ledger import Ledger


def require_own_artefacts(folder: Path, ledger: Ledger) -> None:
    """Raises unless a finished run's weights are those that its closing event names.

    Args:
        folder: The run folder.
        ledger: Its ledger; one that is not closed names nothing, and `compute_certificate` refuses
            it.

    Raises:
        LedgerError: If a file is missing or another one.
    """
    closing = ledger.events[-1] if ledger.events else {}
    require_artefacts(folder, closing.get("artefacts_sha256", {}))


def require_artefacts(folder: Path, recorded: Mapping[str, str]) -> None:
    """Raises unless a folder holds the recorded files; others may lie beside them.

    Raises:
        LedgerError: If a file is missing or another one.
    """
    for name, digest in recorded.items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            found = None
        if found != digest:
            problem = "is missing" if found is None else "was changed"
            raise LedgerError(
                f"{folder / name} {problem} since it was recorded: what is claimed of this folder "
                f"is not about what lies there now. Look with sordino verify {folder}."
            )
