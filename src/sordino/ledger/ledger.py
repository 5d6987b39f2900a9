"""The append-only, hash-chained record of every charge.

One JSON object a line. Each line carries the hash of the line before it, so a line can neither be
changed, dropped nor inserted without breaking the chain; cutting the end off is caught by the
certificate, which names the last hash. A charge is on disk before its release is used. Nothing that
another handle wrote is overwritten: an append first looks whether the file still ends as it did.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from sordino.core.checks import require_non_negative
from sordino.core.errors import BudgetExceededError, InvalidParameterError, LedgerError
from sordino.ledger.durable import write_at

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

GENESIS = "0" * 64
_FIELDS = {"index", "previous", "event", "hash"}


def canonical_json(value: object) -> bytes:
    """Returns the one JSON encoding of `value` that is hashed and compared; refuses NaN."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return text.encode("ascii")


@dataclass(slots=True)
class Ledger:
    """The events of one run, in order; made by `Ledger.open`."""

    path: Path
    events: list[dict[str, Any]] = field(default_factory=list)
    head: str = GENESIS
    size: int = 0  # bytes on disk
    last: bytes = b""  # the last line, with its end

    @classmethod
    def open(cls, path: Path | str) -> Ledger:
        """Opens a ledger and checks its whole chain; a missing file is an empty ledger.

        Args:
            path: The file, usually `RUN/ledger.jsonl`; it is created by the first append.

        Raises:
            LedgerError: If any byte of it is not what the chain says. Unreadable lines are never
                skipped: a skipped line would be a forgotten charge.
        """
        from pathlib import Path as _Path

        ledger = cls(path=_Path(path))
        try:
            raw = ledger.path.read_bytes()
        except FileNotFoundError:
            return ledger
        if raw and not raw.endswith(b"\n"):
            raise LedgerError(
                f"{ledger.path}: the last line is cut off (no line end). After a crash, run the "
                "same command with --resume; otherwise the file was changed."
            )
        for number, line in enumerate(raw.split(b"\n")[:-1], start=1):
            ledger._take(line, number)
        ledger.size = len(raw)
        return ledger

    def prepare(self, event: Mapping[str, Any]) -> bytes:
        """Returns the line that `append_line` would write for `event`, after checking its charge.

        Raises:
            BudgetExceededError: If the charge does not fit the budget of the opening event, or it
                plans no further release.
            InvalidParameterError: If the charge is NaN, infinite or negative.
        """
        charge = event.get("mutual_information_nats", 0.0)
        if charge is not None:
            require_non_negative("mutual_information_nats", charge)
            self._require_fits(charge)
        if event.get("kind") == "release":
            self._require_planned()
        body = {"index": len(self.events), "previous": self.head, "event": dict(event)}
        return canonical_json({**body, "hash": _hash(body)}) + b"\n"

    def append_line(self, line: bytes) -> None:
        """Writes a prepared line and returns once it is on disk.

        Of handles and processes that may append at once, each must hold a lock that all of them
        share: `RunFolder.locked` for a run, `ReleaseLedger` has its own.

        Raises:
            LedgerError: If the line does not continue this chain, or the file no longer is what
                was read or written here; nothing was written.
        """
        self._require_unchanged()
        self._take(line.removesuffix(b"\n"), len(self.events) + 1)
        write_at(self.path, self.size, line)
        self.size += len(line)

    def append(self, event: Mapping[str, Any]) -> None:
        """Charges and records one event; returns once it is on disk."""
        self.append_line(self.prepare(event))

    @property
    def mutual_information_spent(self) -> Fraction:
        """The exact sum of all charges, in nats."""
        charges = (event.get("mutual_information_nats") for event in self.events)
        return sum((Fraction(charge) for charge in charges if charge is not None), Fraction(0))

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Returns the events whose "kind" is `kind`, in order."""
        return [event for event in self.events if event.get("kind") == kind]

    def _require_planned(self) -> None:
        """Raises if the opening event plans no further release: its privacy would not be paid."""
        opening = self.of_kind("open")
        planned = opening[0].get("num_steps") if opening else None
        if planned is not None and len(self.of_kind("release")) >= planned:
            raise BudgetExceededError(
                f"all {planned} planned releases are spent. Nothing was released."
            )

    def _require_fits(self, charge: float) -> None:
        """Raises unless the budget of the opening event still holds `charge`."""
        opening = self.of_kind("open")
        budget = opening[0].get("mutual_information_budget_nats") if opening else None
        if budget is None:
            return
        if self.mutual_information_spent + Fraction(charge) > Fraction(budget):
            raise BudgetExceededError(
                f"a charge of {charge:.6g} nats does not fit: "
                f"{float(self.mutual_information_spent):.6g} of {budget:.6g} nats are spent. "
                "Nothing was released."
            )

    def _require_unchanged(self) -> None:
        """Raises unless the file on disk still has its length and its last line."""
        found, size = b"", 0
        if self.path.exists():
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - len(self.last)))
                found = file.read()
        if (size, found) != (self.size, self.last):
            raise LedgerError(
                f"{self.path}: it is no longer what was read here ({self.size} bytes then, {size} "
                "now, or another last line). Nothing was written. Another process appended to it, "
                "or it was changed: open it again."
            )

    def _take(self, line: bytes, number: int) -> None:
        """Checks one line against the chain and adds its event."""
        where = f"{self.path}, line {number}"
        try:
            entry = json.loads(line, parse_constant=_refuse_constant)
            is_canonical = canonical_json(entry) == line
        except (ValueError, RecursionError) as error:
            raise LedgerError(f"{where}: not readable as JSON; the ledger was changed.") from error
        if not isinstance(entry, dict) or set(entry) != _FIELDS:
            raise LedgerError(f"{where}: an entry must have exactly {sorted(_FIELDS)}.")
        body = {key: entry[key] for key in ("index", "previous", "event")}
        if not is_canonical or entry["hash"] != _hash(body):
            raise LedgerError(f"{where}: its content does not match its hash.")
        if entry["index"] != len(self.events) or entry["previous"] != self.head:
            raise LedgerError(f"{where}: it does not continue the chain; lines are missing.")
        if not isinstance(entry["event"], dict):
            raise LedgerError(f"{where}: its event must be an object.")
        charge = entry["event"].get("mutual_information_nats", 0.0)
        if charge is not None and not _is_charge(charge):
            raise LedgerError(f"{where}: a charge must be a finite number of nats, at least 0.")
        self.events.append(entry["event"])
        self.head, self.last = entry["hash"], line + b"\n"


def _hash(body: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of an entry without its hash."""
    return hashlib.sha256(canonical_json(body)).hexdigest()


def _is_charge(charge: object) -> bool:
    """Returns whether `charge` is a finite number, at least 0."""
    if not isinstance(charge, int | float):
        return False
    try:
        require_non_negative("charge", charge)
    except InvalidParameterError:
        return False
    return True


def _refuse_constant(name: str) -> float:
    """Refuses NaN and Infinity, which JSON does not have."""
    raise ValueError(f"{name} is not JSON")
