"""The sealed journal: what makes a release happen exactly once, whatever kills the process.

A step's ledger line, its transcript bytes and the private state after it are first written together
to one private file (mode 0600, beside the run folder, never in it), in one atomic replacement. Only
then do the line and the bytes go to their own files. After a crash, `recover` finishes whatever the
journal holds: it can be repeated, so no charge is lost and none is made twice, and the secret and
the posterior of a run with a positive budget survive. The file is erased when the run is complete.
"""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sordino.core.errors import LedgerError
from sordino.ledger.durable import PRIVATE_FILE_MODE, replace_file, write_at
from sordino.ledger.ledger import Ledger, canonical_json

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """One step, ready to be made durable."""

    ledger_offset: int
    ledger_line: bytes
    transcript_offset: int  # in the whole file
    transcript_bytes: bytes
    state: dict[str, Any]  # private: never leaves the journal


@dataclass(frozen=True, slots=True)
class Journal:
    """Writes and recovers commits; the three paths never change during a run."""

    path: Path
    ledger_path: Path
    transcript_path: Path

    def commit(self, commit: Commit, ledger: Ledger) -> None:
        """Makes one step durable: journal first, then the charge, then the released symbols."""
        body = {
            "ledger_offset": commit.ledger_offset,
            "ledger_line": base64.b64encode(commit.ledger_line).decode(),
            "transcript_offset": commit.transcript_offset,
            "transcript_bytes": base64.b64encode(commit.transcript_bytes).decode(),
            "state": commit.state,
        }
        content = canonical_json({"body": body, "sha256": _digest(body)})
        replace_file(self.path, content, mode=PRIVATE_FILE_MODE)
        ledger.append_line(commit.ledger_line)
        write_at(self.transcript_path, commit.transcript_offset, commit.transcript_bytes)

    def recover(self) -> tuple[Ledger, dict[str, Any]] | None:
        """Finishes the step that was under way and returns the ledger and the private state.

        Returns:
            None if there is no journal.

        Raises:
            LedgerError: If the journal is damaged or readable by others, or if the ledger or the
                transcript holds anything that the journal does not explain.
        """
        commit = self._read()
        if commit is None:
            return None
        self._complete_ledger(commit)
        transcript = _read_or_empty(self.transcript_path)
        end = commit.transcript_offset + len(commit.transcript_bytes)
        if not commit.transcript_offset <= len(transcript) <= end:
            raise LedgerError(
                f"{self.transcript_path}: has {len(transcript)} bytes where the journal expects "
                f"between {commit.transcript_offset} and {end}; it was changed."
            )
        write_at(self.transcript_path, commit.transcript_offset, commit.transcript_bytes)
        return Ledger.open(self.ledger_path), commit.state

    def _complete_ledger(self, commit: Commit) -> None:
        """Writes the part of the journal's line that the ledger lacks, if it lacks any."""
        raw = _read_or_empty(self.ledger_path)
        tail = raw[commit.ledger_offset :]
        if len(raw) < commit.ledger_offset or not commit.ledger_line.startswith(tail):
            raise LedgerError(
                f"{self.ledger_path}: does not end as the journal says; it was changed. "
                "An unexplained line is never skipped."
            )
        if tail != commit.ledger_line:
            write_at(self.ledger_path, commit.ledger_offset, commit.ledger_line)

    def _read(self) -> Commit | None:
        """Returns the journal's commit, or None if there is no journal."""
        try:
            mode = stat.S_IMODE(self.path.stat().st_mode)
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return None
        if mode & 0o077:
            raise LedgerError(
                f"{self.path}: others could read this sealed file (mode {mode:04o}, must be 0600). "
                "Treat the secret as known; start a new run."
            )
        try:
            content = json.loads(raw)
            body = content["body"]
            if content["sha256"] != _digest(body):
                raise ValueError("checksum")  # noqa: TRY301
            return Commit(
                ledger_offset=body["ledger_offset"],
                ledger_line=base64.b64decode(body["ledger_line"], validate=True),
                transcript_offset=body["transcript_offset"],
                transcript_bytes=base64.b64decode(body["transcript_bytes"], validate=True),
                state=body["state"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"{self.path}: the sealed journal is damaged.") from error


def _digest(body: dict[str, Any]) -> str:
    """Returns the SHA-256 of the journal's body."""
    return hashlib.sha256(canonical_json(body)).hexdigest()


def _read_or_empty(path: Path) -> bytes:
    """Returns a file's bytes; none if there is no file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
