"""The leave-one-out loss as a report shows it; for the data holder only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sordino.core.checks import require_in_range, require_integer, require_non_negative
from sordino.core.errors import InvalidDataError, InvalidParameterError

if TYPE_CHECKING:
    from pathlib import Path

_INFINITE = "infinite"
_LARGEST = 1e308


@dataclass(frozen=True, kw_only=True, slots=True)
class HolderReport:
    """What the realised transcript says about records left out one by one.

    Args:
        num_records: All records.
        share_at_zero: Of these, those that never decided a release.
        share_infinite: Of these, those without which the transcript would have been impossible.
        quantiles: Of the absolute loss in nats, by name; None: infinite.
        edges: Of the histogram of finite losses, nats; empty without any.
        counts: Records in it.
    """

    num_records: int
    share_at_zero: float
    share_infinite: float
    quantiles: dict[str, float | None]
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def num_infinite(self) -> int:
        """Records with an infinite loss."""
        return round(self.share_infinite * self.num_records)


def read_holder_report(path: Path) -> HolderReport:
    """Returns a stored holder's report.

    Raises:
        InvalidDataError: If the file is not one, or holds what is not a number.
    """
    try:
        stored = json.loads(path.read_bytes())
        quantiles = stored["quantiles_of_absolute_loss_nats"]
        edges, counts = stored["histogram"]["edges"], stored["histogram"]["counts"]
        found = HolderReport(
            num_records=require_integer("num_records", stored["num_records"], 1),
            share_at_zero=_share(stored, "share_at_zero"),
            share_infinite=_share(stored, "share_infinite"),
            quantiles={name: _quantile(value) for name, value in quantiles.items()},
            edges=tuple(require_in_range("edge", edge, -_LARGEST, _LARGEST) for edge in edges),
            counts=tuple(require_integer("count", count, 0) for count in counts),
        )
        is_histogram = len(found.edges) == len(found.counts) + 1 or not (edges or counts)
        if not is_histogram or list(found.edges) != sorted(set(found.edges)):
            raise InvalidDataError("edges must rise, and be one more than counts")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidDataError(
            f"{path}: not a holder's report ({error}). Move it away, or repeat the run with "
            "--holder-report."
        ) from None
    return found


def _share(stored: dict[str, Any], name: str) -> float:
    """Returns a share of the records."""
    return require_in_range(name, stored[name], 0.0, 1.0)


def _quantile(value: Any) -> float | None:
    """Returns a quantile; None where it is infinite."""
    if value == _INFINITE:
        return None
    if not isinstance(value, (int, float)):
        raise InvalidParameterError(f"a quantile must be a number or {_INFINITE!r}, got {value!r}")
    return require_non_negative("quantile", value)
