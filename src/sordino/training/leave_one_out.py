"""The leave-one-out loss: what the realised transcript says about each record of the pool.

Record x is *pivotal* at a release if removing it from every subset that holds it turns unanimity
into disagreement or back. Over the run, the log-likelihood of the transcript with x minus without x
adds up; a record that is never pivotal has loss 0. It is a statement about this run (an ex-post
per-instance privacy loss), not a guarantee, and it is computed on private data: it stays with the
holder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CELLS_AT_ONCE = 2**24
_PARTS = (1, 4, 16, 64)  # of the directions of a step


@dataclass(frozen=True, slots=True)
class _Tally:
    """What has been added up for every record, over some number of directions a step."""

    loss_nats: NDArray[np.float64]
    pivotal_releases: NDArray[np.int64]


@dataclass
class LeaveOneOut:
    """Accumulates the loss of every record, in nats.

    Beside the loss of all released directions it keeps those of the first quarter, sixteenth and
    sixty-fourth of each step's: what the same run would have told with fewer releases.

    Args:
        membership: Which record is in which subset, shape (num_records, num_subsets).
        unanimity_flip: The mechanism's flip probability.
        on_disagreement: "coin" or "skip".

    Source:
        Our derivation; see docs/explanation/leave_one_out.md.
    """

    membership: NDArray[np.bool_]
    unanimity_flip: float
    on_disagreement: str

    def __post_init__(self) -> None:
        self._tallies: dict[int, _Tally] = {}  # by number of directions a step

    @property
    def loss_nats(self) -> NDArray[np.float64]:
        """The loss of every record over all releases, shape (num_records,)."""
        return self._whole.loss_nats

    @property
    def pivotal_releases(self) -> NDArray[np.int64]:
        """At how many releases every record was pivotal, shape (num_records,)."""
        return self._whole.pivotal_releases

    @property
    def _whole(self) -> _Tally:
        return self._tallies[max(self._tallies)] if self._tallies else self._empty()

    def _empty(self) -> _Tally:
        num_records = self.membership.shape[0]
        return _Tally(np.zeros(num_records), np.zeros(num_records, dtype=np.int64))

    def add(
        self,
        sums: NDArray[np.float64],
        contributions: NDArray[np.float64],
        released: NDArray[np.int32],
    ) -> None:
        """Adds one step.

        Args:
            sums: Exact sums, shape (num_subsets, num_releases).
            contributions: The records' whole numbers, shape (num_records, num_releases).
            released: Released symbols, shape (num_releases,).
        """
        num_records, num_subsets = self.membership.shape
        num_releases = sums.shape[1]
        if not self._tallies:
            counts = {num_releases // part for part in _PARTS} - {0}
            self._tallies = {count: self._empty() for count in sorted(counts)}
        columns = np.flatnonzero(_can_be_pivotal(sums, np.abs(contributions).max(axis=0)))
        sums, released = sums[:, columns], released[columns]
        with_all = _unanimous_sign(sums[None])
        likelihood_with = self._log_likelihood(with_all, released)
        block = max(1, _CELLS_AT_ONCE // max(1, num_subsets * columns.size))
        for start in range(0, num_records, block):
            rows = slice(start, start + block)
            own = self.membership[rows, :, None] * contributions[rows][:, None, columns]
            without = _unanimous_sign(sums[None] - own)
            pivotal = (without == 0) != (with_all == 0)
            likelihood_without = self._log_likelihood(without, released)
            change = np.where(pivotal, _difference(likelihood_with, likelihood_without), 0.0)
            for count, tally in self._tallies.items():
                first = int(np.searchsorted(columns, count))
                tally.loss_nats[rows] += change[:, :first].sum(axis=1)
                tally.pivotal_releases[rows] += pivotal[:, :first].sum(axis=1)

    def _log_likelihood(
        self, unanimous_sign: NDArray[np.int8], released: NDArray[np.int32]
    ) -> NDArray[np.float64]:
        """Returns the log-probability of each released symbol, shape of `unanimous_sign`."""
        eta = self.unanimity_flip
        log_flip = math.log(eta) if eta > 0 else -math.inf
        agrees = unanimous_sign == released
        result = np.where(agrees, math.log1p(-eta), log_flip)
        if self.on_disagreement == "coin":
            return np.where(unanimous_sign == 0, -math.log(2.0), result)
        shown = np.where(released == 0, 0.0, -math.inf)  # "skip": disagreement is visible
        result = np.where(released == 0, -math.inf, result)
        return np.where(unanimous_sign == 0, shown, result)

    def state(self) -> dict[str, Any]:
        """Returns what the sealed journal keeps."""
        return {
            str(count): {
                "loss_nats": ["inf" if math.isinf(x) else x for x in tally.loss_nats.tolist()],
                "pivotal_releases": tally.pivotal_releases.tolist(),
            }
            for count, tally in self._tallies.items()
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a `state`."""
        self._tallies = {
            int(count): _Tally(
                np.array([float(x) for x in tally["loss_nats"]]),
                np.array(tally["pivotal_releases"], dtype=np.int64),
            )
            for count, tally in state.items()
        }

    def report(self, num_worst: int = 20) -> dict[str, Any]:
        """Returns the holder's report: against K, histogram, worst records (by number)."""
        loss = self.loss_nats
        finite = loss[np.isfinite(loss)]
        counts, edges = np.histogram(finite, bins=20) if finite.size else (np.zeros(0), np.zeros(0))
        worst = np.argsort(-np.abs(loss), kind="stable")[:num_worst]
        return {
            "what": (
                "Leave-one-out loss of every record over the realised transcript, in nats. "
                "Computed on private data: keep it with the data. Not a guarantee."
            ),
            "num_records": int(loss.size),
            **_summary(self._whole),
            "by_directions_per_step": {
                "what": (
                    "The same run, had only the first so many directions of each step been "
                    "released. A run with fewer directions would have taken another path."
                ),
                **{str(count): _summary(tally) for count, tally in self._tallies.items()},
            },
            "histogram": {"edges": edges.tolist(), "counts": counts.astype(int).tolist()},
            "worst_records": [
                {
                    "record": int(i),
                    "loss_nats": _jsonable(loss[i]),
                    "pivotal_releases": int(self.pivotal_releases[i]),
                }
                for i in worst
            ],
            "loss_nats": [_jsonable(x) for x in loss],
        }


def _summary(tally: _Tally) -> dict[str, Any]:
    """Returns shares and quantiles over the records."""
    loss = tally.loss_nats
    return {
        "share_at_zero": float(np.mean(tally.pivotal_releases == 0)),
        "share_infinite": float(np.mean(np.isinf(loss))),
        "mean_pivotal_releases": float(tally.pivotal_releases.mean()),
        "quantiles_of_absolute_loss_nats": {
            name: _jsonable(np.quantile(np.abs(loss), q, method="higher"))
            for name, q in (("median", 0.5), ("95%", 0.95), ("max", 1.0))
        },
    }


def _can_be_pivotal(sums: NDArray[np.float64], largest: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns at which releases some record might be pivotal; most are out of any one's reach.

    Args:
        sums: Shape (num_subsets, num_releases).
        largest: Largest absolute contribution, shape (num_releases,).
    """
    lowest, highest = sums.min(axis=0), sums.max(axis=0)
    can_break = np.abs(sums).min(axis=0) <= largest
    can_unite = (-lowest <= largest) | (highest <= largest)
    return np.where(_unanimous_sign(sums) == 0, can_unite, can_break)


def _unanimous_sign(sums: NDArray[np.float64]) -> NDArray[np.int8]:
    """Returns +1 or -1 where all subsets (second to last axis) agree, else 0; ties count as +1."""
    positive = sums >= 0
    yes, no = positive.all(axis=-2), ~positive.any(axis=-2)
    return yes.astype(np.int8) - no.astype(np.int8)


def _difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns a - b; +infinity where the released symbol is impossible on either side."""
    impossible = np.isneginf(a) | np.isneginf(b)
    return np.where(impossible, np.inf, np.where(impossible, 0.0, a) - np.where(impossible, 0.0, b))


def _jsonable(value: float) -> float | str:
    """Returns a float that JSON can hold."""
    return float(value) if math.isfinite(value) else "infinite"
