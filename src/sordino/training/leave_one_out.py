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


@dataclass
class LeaveOneOut:
    """Accumulates the loss of every record, in nats.

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
        self.loss_nats = np.zeros(self.membership.shape[0])
        self.pivotal_releases = np.zeros(self.membership.shape[0], dtype=np.int64)

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
        block = max(1, _CELLS_AT_ONCE // (num_subsets * sums.shape[1]))
        with_all = _unanimous_sign(sums[None])
        likelihood_with = self._log_likelihood(with_all, released)
        for start in range(0, num_records, block):
            rows = slice(start, start + block)
            own = self.membership[rows, :, None] * contributions[rows, None, :]
            without = _unanimous_sign(sums[None] - own)
            pivotal = (without == 0) != (with_all == 0)
            likelihood_without = self._log_likelihood(without, released)
            change = np.where(pivotal, _difference(likelihood_with, likelihood_without), 0.0)
            self.loss_nats[rows] += change.sum(axis=1)
            self.pivotal_releases[rows] += pivotal.sum(axis=1)

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
            "loss_nats": ["inf" if math.isinf(x) else x for x in self.loss_nats.tolist()],
            "pivotal_releases": self.pivotal_releases.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a `state`."""
        self.loss_nats = np.array([float(x) for x in state["loss_nats"]])
        self.pivotal_releases = np.array(state["pivotal_releases"], dtype=np.int64)

    def report(self, num_worst: int = 20) -> dict[str, Any]:
        """Returns the holder's report: histogram, share at zero, worst records (by number)."""
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
            "share_at_zero": float(np.mean(self.pivotal_releases == 0)),
            "share_infinite": float(np.mean(np.isinf(loss))),
            "mean_pivotal_releases": float(self.pivotal_releases.mean()),
            "quantiles_of_absolute_loss_nats": {
                name: _jsonable(np.quantile(np.abs(loss), q, method="higher"))
                for name, q in (("median", 0.5), ("95%", 0.95), ("max", 1.0))
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
