"""Where a run keeps what: public files in the run folder, private ones beside it."""

from __future__ import annotations

import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sordino.core.errors import InvalidParameterError, LedgerError
from sordino.ledger.durable import (
    PRIVATE_FILE_MODE,
    PRIVATE_FOLDER_MODE,
    erase,
    locked,
    named,
    replace_file,
)
from sordino.ledger.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SPARE_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of one run.

    Args:
        path: The public folder: everything in it may leave the building.
    """

    path: Path

    @property
    def ledger(self) -> Path:
        """Hash-chained charges."""
        return self.path / "ledger.jsonl"

    @property
    def transcript(self) -> Path:
        """Public seed and released symbols."""
        return self.path / "transcript.bin"

    @property
    def certificate(self) -> Path:
        """The claim, recomputable from the ledger."""
        return self.path / "certificate.json"

    @property
    def card(self) -> Path:
        """Model card."""
        return self.path / "README.md"

    @property
    def metrics(self) -> Path:
        """Public measurements only."""
        return self.path / "metrics.jsonl"

    @property
    def private(self) -> Path:
        """Folder of private files, beside the run folder and never in it."""
        path = named(self.path)
        return path.with_name(path.name + ".private")

    @property
    def holder_report(self) -> Path:
        """Leave-one-out loss, for the data holder only."""
        return self.private / "holder_report.PRIVATE.json"

    @property
    def canaries(self) -> Path:
        """The canaries and which of them are in the pool, for the audit only."""
        return self.private / "canaries.PRIVATE.json"

    @property
    def subset(self) -> Path:
        """The secret subset of a run that was asked to keep it, for the audit only."""
        return self.private / "subset.PRIVATE.json"

    @property
    def checkpoint(self) -> Path:
        """Weights and optimizer between two steps of a run on gradients."""
        return self.private / "checkpoint.safetensors"

    @property
    def journal(self) -> Journal:
        """The sealed journal."""
        return Journal(self.private / "journal.sealed", self.ledger, self.transcript)

    @property
    def is_begun(self) -> bool:
        """Whether anything was charged, or is about to be."""
        return self.ledger.exists() or self.journal.path.exists()

    def require_new(self) -> None:
        """Raises unless the folder is absent or empty."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InvalidParameterError(
                f"output {self.path} exists already and nothing in it is overwritten. Choose "
                "another folder, or continue that run with --resume."
            )
        if self.journal.path.exists():
            raise InvalidParameterError(
                f"{self.private} holds the sealed state of a run whose folder is gone. Move it "
                "back, or remove it if that run is given up."
            )
        self.require_no_other_run()

    def require_no_other_run(self) -> None:
        """Raises if the private folder keeps secrets of a finished run that was moved away."""
        is_under_way = self._lock.exists()  # or was, when a crash left it
        # canaries may also be those of a start that was cut short; a subset is written at the end
        kept = [] if is_under_way else [self.canaries]
        for path in (*kept, self.subset):
            if path.exists() and not self.is_begun:
                raise InvalidParameterError(
                    f"{path} belongs to a finished run whose folder is gone; without it, that run "
                    "cannot be audited. Move it there, or choose another folder."
                )

    def require_space(self, num_bytes: int) -> None:
        """Raises unless the disk has room for the artefact."""
        parent = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        needed, free = num_bytes + _SPARE_BYTES, shutil.disk_usage(parent).free
        if free < needed:
            raise InvalidParameterError(
                f"no space left for the run: {parent} has {free / 1e6:.0f} MB free and about "
                f"{needed / 1e6:.0f} MB are needed. Nothing was written."
            )

    def create(self) -> None:
        """Makes both folders."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.private.mkdir(mode=PRIVATE_FOLDER_MODE, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run for this process: two processes must never spend the same budget.

        A run that fails before anything was charged leaves nothing behind.
        """
        self.create()
        with locked(self._lock, f"another process is working on {self.path}."):
            try:
                yield
            finally:
                if self.private.exists() and not self.journal.path.exists():
                    self.forget_secrets()
                    if not any(self.path.iterdir()):
                        self.path.rmdir()

    @contextmanager
    def keeping_canaries(self, content: bytes | None) -> Iterator[None]:
        """Writes the canaries' list before anything is charged; the lock must be held.

        A run that fails before anything was charged takes its list away again. A list that a run
        has begun with is never written again.

        Args:
            content: The list; None without canaries.

        Raises:
            LedgerError: If the run has begun with another list.
        """
        if not self.is_begun:
            self._remove_canaries()  # of a start that a crash cut short
            if content is not None:
                replace_file(self.canaries, content, mode=PRIVATE_FILE_MODE)
        elif content is not None and not self._holds_canaries(content):
            raise LedgerError(f"{self.canaries} was changed or removed by another process.")
        try:
            yield
        finally:
            if not self.is_begun:
                self._remove_canaries()

    def forget_secrets(self) -> None:
        """Erases the sealed state of a finished run; keeps what was asked for: PRIVATE files."""
        self._erase_journal()
        self.checkpoint.unlink(missing_ok=True)
        self.checkpoint.with_suffix(".new").unlink(missing_ok=True)
        self._lock.unlink(missing_ok=True)
        if self.private.exists() and not any(self.private.iterdir()):
            self.private.rmdir()

    def discard(self) -> None:
        """Removes the files of a run that never released anything; its lock must be held."""
        self._erase_journal()
        for path in (self.transcript, self.metrics, self.ledger, self.checkpoint):
            path.unlink(missing_ok=True)

    def _holds_canaries(self, content: bytes) -> bool:
        """Returns whether the list on disk is this one."""
        try:
            return self.canaries.read_bytes() == content
        except OSError:
            return False

    def _remove_canaries(self) -> None:
        """Removes the list, and what a crash left of writing it."""
        for path in (self.canaries, self.canaries.with_name(f".{self.canaries.name}.new")):
            path.unlink(missing_ok=True)

    def _erase_journal(self) -> None:
        """Erases the journal; killed halfway, it leaves a whole journal or none."""
        leaving = self.private / "journal.leaving"
        with suppress(FileNotFoundError):
            self.journal.path.replace(leaving)
        erase(leaving)

    @property
    def _lock(self) -> Path:
        """Held by the process that works on the run."""
        return self.private / "lock"
