"""A ledger for differentially private releases outside of a tuning run.

It opens with a budget. Every release is written down, on disk, before it is made; what all of them
together spend is computed again from their parameters each time, never taken from the file. A kind
of release or a parameter that is not known is refused: what it spends is not known either.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sordino.accounting.composition import ReleaseEvent, compose_epsilon
from sordino.accounting.dp import SampledGaussian
from sordino.accounting.randomized_quantization import RandomizedQuantizationEvent
from sordino.core.checks import require_one_of, require_positive
from sordino.core.errors import BudgetExceededError, InvalidParameterError, LedgerError
from sordino.ledger.durable import locked
from sordino.ledger.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["ReleaseLedger"]

_OPENING, _RELEASE = "open-releases", "dp-release"
_KINDS: dict[str, type[ReleaseEvent]] = {
    "gaussian": SampledGaussian,
    "randomized-quantization": RandomizedQuantizationEvent,
}
_RELATIONS = ("ADD_OR_REMOVE_ONE", "REPLACE_ONE")
_SAME = 1e-6  # relative; how far a recorded epsilon may be from the one computed here
_PATIENCE = 10.0  # seconds; who holds the lock composes the releases and writes one line
_PAUSE = 0.02  # seconds between two tries


@dataclass(slots=True)
class ReleaseLedger:
    """Charges releases against one budget of (epsilon, delta); made by `ReleaseLedger.open`.

    Several handles and processes may charge one file: each charge holds a lock (the file's name
    with ".lock") while the file is read again, the budget is checked and the line is written.

    Guarantee:
        What the charged releases spend together, those of all handles included, is within the
        budget. Assumes: honest caller, who keeps every line. A file whose last lines were cut off,
        or that was put back from a copy, cannot be told from one that never had them, for nothing
        outside of it names its last hash (a run's certificate does that for a run's ledger). Only
        a handle that is still open notices: it knows the lines that it has seen.
    """

    target_epsilon: float
    delta: float
    neighboring_relation: str
    privacy_unit: str
    _ledger: Ledger
    _events: list[ReleaseEvent]

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        target_epsilon: float,
        delta: float,
        neighboring_relation: str,
        privacy_unit: str,
    ) -> ReleaseLedger:
        """Opens a ledger, or makes one with this budget.

        Args:
            path: The file; one file for everything that is released about the same units.
            target_epsilon: What all releases together may spend, in nats.
            delta: Probability; in [0, 1). At 0 only mechanisms with a pure epsilon fit.
            neighboring_relation: ADD_OR_REMOVE_ONE or REPLACE_ONE.
            privacy_unit: Whom the claim is about, in a word: "sequence", "person", "device".

        Raises:
            InvalidParameterError: If an argument is NaN, infinite or out of range.
            LedgerError: If the file was changed, was opened with another budget, holds anything
                that is not known, or is to be made and its lock stays busy.
        """
        require_positive("target_epsilon", target_epsilon)
        if delta != 0.0 and not 0.0 < require_positive("delta", delta) < 1.0:
            raise InvalidParameterError(f"delta must be in [0, 1), got {delta!r}.")
        require_one_of("neighboring_relation", neighboring_relation, _RELATIONS)
        if not privacy_unit:
            raise InvalidParameterError("privacy_unit must say whom the claim is about.")
        opening = {
            "kind": _OPENING,
            "target_epsilon": float(target_epsilon),
            "delta": float(delta),
            "neighboring_relation": neighboring_relation,
            "privacy_unit": privacy_unit,
        }
        ledger = Ledger.open(path)
        if not ledger.events:  # a ledger that is only read needs no lock, and leaves none
            with _held(ledger.path):
                ledger = Ledger.open(path)
                if not ledger.events:
                    ledger.append(opening)
        found = ledger.events[0]
        if found != opening:
            raise LedgerError(
                f"{ledger.path}: it opens with {found}, not with {opening}. A budget is not "
                "changed: give the same one, or keep other units in another ledger."
            )
        result = cls(
            float(target_epsilon), float(delta), neighboring_relation, privacy_unit, ledger, []
        )
        result._take(ledger)
        return result

    @property
    def events(self) -> tuple[ReleaseEvent, ...]:
        """The releases that were charged, in order; the file is read again.

        Raises:
            LedgerError: If the file was changed.
        """
        self._read_again()
        return tuple(self._events)

    @property
    def epsilon_spent(self) -> float:
        """What all releases together spend at the ledger's delta, in nats, rounded up.

        The file is read again: what other handles charged counts.

        Raises:
            LedgerError: If the file was changed.
        """
        self._read_again()
        return self._compose(self._events)

    def charge(self, event: ReleaseEvent) -> float:
        """Charges a release; it may be made once this returns.

        Args:
            event: The release, all of its numbers included.

        Returns:
            What all releases together spend now, in nats.

        Raises:
            BudgetExceededError: If the release does not fit; nothing was written.
            InvalidParameterError: If the event is of an unknown kind or has another neighboring
                relation.
            LedgerError: If another process holds the ledger for long, or the file was changed;
                nothing was written.
        """
        with _held(self._ledger.path):
            self._read_again()
            return self._charge(event)

    def _charge(self, event: ReleaseEvent) -> float:
        """Checks the budget and writes the line; the lock must be held."""
        spent = self._compose([*self._events, event])
        if not spent <= self.target_epsilon:
            raise BudgetExceededError(
                f"with this release epsilon would be {spent:.4g} at delta {self.delta:g}, and "
                f"{self.target_epsilon:.4g} is the budget. Nothing was released."
                + ("" if math.isfinite(spent) else " This mechanism hides nothing at this delta.")
            )
        self._ledger.append(
            {
                "kind": _RELEASE,
                "mechanism": _name_of(event),
                "parameters": asdict(event),
                "epsilon_spent": spent,
            }
        )
        self._events.append(event)
        return spent

    def _read_again(self) -> None:
        """Takes in what other handles charged; raises if a line that was seen here is gone."""
        found, known = Ledger.open(self._ledger.path), self._ledger.events
        if found.events[: len(known)] != known:
            raise LedgerError(
                f"{found.path}: it no longer holds the {len(known)} lines that were read or "
                "written here; it was removed, cut off or replaced. Nothing was released. Put the "
                "file back: charges that it forgets were spent all the same."
            )
        if (found.head, len(found.events)) != (self._ledger.head, len(self._events) + 1):
            self._take(found)

    def _take(self, found: Ledger) -> None:
        """Puts a file's lines in place of those that were known; raises if one is not known."""
        events = [_read(event, found) for event in found.events[1:]]
        self._require_recorded_spending(found, events)
        self._ledger, self._events = found, events

    def _compose(self, events: list[ReleaseEvent]) -> float:
        """Returns the epsilon of releases about this ledger's units."""
        for event in events:
            _name_of(event)
            if event.neighboring_relation != self.neighboring_relation:
                raise InvalidParameterError(
                    f"this ledger is about {self.neighboring_relation}, and the release about "
                    f"{event.neighboring_relation}; keep it in another ledger."
                )
        return compose_epsilon(events, self.delta)

    def _require_recorded_spending(self, found: Ledger, events: list[ReleaseEvent]) -> None:
        """Raises unless the last line states what its releases spend, within the budget."""
        if not events:
            return
        recorded, spent = found.events[-1]["epsilon_spent"], self._compose(events)
        if not (
            isinstance(recorded, float)
            and math.isclose(recorded, spent, rel_tol=_SAME)
            and spent <= self.target_epsilon * (1.0 + _SAME)
        ):
            raise LedgerError(
                f"{found.path}: it states epsilon {recorded!r} of {self.target_epsilon:g}, "
                f"but its releases spend {spent:.4g}."
            )


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Holds a ledger for one charge; waits a little for who else does."""
    lock = path.with_name(path.name + ".lock")
    busy = (
        f"{path}: another process has held this ledger for {_PATIENCE:g} seconds ({lock}). Nothing "
        "was released. Wait until it is done, then try again."
    )
    until = time.monotonic() + _PATIENCE
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(lock, busy))
                break
            except LedgerError:
                if time.monotonic() >= until:
                    raise
            time.sleep(_PAUSE)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _name_of(event: ReleaseEvent) -> str:
    """Returns the name that the ledger has for an event's kind."""
    for name, kind in _KINDS.items():
        if isinstance(event, kind):
            return name
    raise InvalidParameterError(
        f"a release must be one of {', '.join(_KINDS)}, got {type(event).__name__}."
    )


def _read(event: dict[str, Any], ledger: Ledger) -> ReleaseEvent:
    """Returns the release that a line describes, or raises."""
    if set(event) != {"kind", "mechanism", "parameters", "epsilon_spent"} or (
        event["kind"] != _RELEASE
    ):
        raise LedgerError(f"{ledger.path}: it holds a line that is no release: {event}.")
    kind, parameters = _KINDS.get(event["mechanism"]), event["parameters"]
    if kind is None or not isinstance(parameters, dict):
        raise LedgerError(f"{ledger.path}: unknown mechanism {event['mechanism']!r}.")
    if set(parameters) != set(kind.__dataclass_fields__):
        raise LedgerError(
            f"{ledger.path}: {event['mechanism']} must have exactly the parameters "
            f"{', '.join(kind.__dataclass_fields__)}; got {', '.join(sorted(parameters))}."
        )
    try:
        return kind(**parameters)
    except InvalidParameterError as error:
        raise LedgerError(f"{ledger.path}: {error}") from error
