"""Candidate subsets of the pool, and exact sums over them.

Which records a candidate holds is public: it follows from the public seed. The secret is only
*which* candidate was used, and this module never learns it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sordino.core.checks import require_in_range, require_integer, require_one_of
from sordino.core.directions import public_keys
from sordino.core.errors import InvalidParameterError, PrecisionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONSTRUCTIONS = ("random-halves", "complementary-pairs", "rate")
_EXACT_BITS = 52  # integers up to 2**52 add exactly in float64, in any order
_RECORDS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateSubsets:
    """How the candidate subsets of a pool are made.

    Args:
        num_subsets: M, the number of candidates; even, at least 2.
        construction: "random-halves" (each record lies in exactly M/2 of the M subsets),
            "complementary-pairs" (M/2 pairs of a subset and its complement) or "rate" (each record
            lies in exactly `subsets_per_record` subsets).
        subsets_per_record: k of the rate k/M; only for "rate".
        seed: Public seed.

    Source:
        arXiv:2605.06505v2, candidate subsets; the two variants are ours.
    """

    num_subsets: int
    construction: str = "random-halves"
    subsets_per_record: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_integer("num_subsets", self.num_subsets, 2)
        require_one_of("subset_construction", self.construction, CONSTRUCTIONS)
        if self.construction == "rate":
            if self.subsets_per_record is None:
                raise InvalidParameterError(
                    "subset_construction 'rate' needs subsets_per_record (k of the rate k/M)."
                )
            require_integer("subsets_per_record", self.subsets_per_record, 1, self.num_subsets - 1)
            return
        if self.num_subsets % 2:
            raise InvalidParameterError(
                f"num_subsets must be even, got {self.num_subsets}: every record lies in exactly "
                "half of the subsets. Use the next even number."
            )
        if self.subsets_per_record not in (None, self.num_subsets // 2):
            raise InvalidParameterError(
                "subsets_per_record is for subset_construction 'rate'; the others use "
                f"num_subsets/2 = {self.num_subsets // 2}."
            )

    @property
    def prior(self) -> float:
        """Success of the best guess, before any release, whether a record is in the subset.

        At rate k/M it is max(k, M - k) / M: whoever always answers "no" is right with probability
        1 - k/M, so the bound on an attack must start there and not at k/M.
        """
        if self.construction == "rate" and self.subsets_per_record is not None:
            k, M = self.subsets_per_record, self.num_subsets
            return max(k, M - k) / M
        return 0.5

    def membership(self, num_records: int) -> NDArray[np.bool_]:
        """Returns which record is in which subset, shape (num_records, num_subsets)."""
        M = self.num_subsets
        member = np.zeros((num_records, M), dtype=np.bool_)
        pairs = self.construction == "complementary-pairs"
        width = M // 2 if pairs else M
        stride = -(-width // 4) * 4  # the public stream is read in blocks of four words
        per_record = self.subsets_per_record or M // 2
        for start in range(0, num_records, _RECORDS_AT_ONCE):
            rows = min(_RECORDS_AT_ONCE, num_records - start)
            keys = public_keys(
                self.seed, "candidates", self.construction, rows * stride, start * stride
            ).reshape(rows, stride)[:, :width]
            block = member[start : start + rows]
            if pairs:
                block[:, 0::2] = (keys >> np.uint64(63)).astype(np.bool_)
                block[:, 1::2] = ~block[:, 0::2]
            else:
                chosen = np.argsort(keys, axis=1, kind="stable")[:, :per_record]
                np.put_along_axis(block, chosen, values=True, axis=1)
        return member


def fixed_point_unit(bound: float, num_records: int) -> float:
    """Returns the power of two that contributions are rounded to, so that their sums are exact.

    Args:
        bound: Largest absolute value of one contribution.
        num_records: Largest number of contributions that are added up.
    """
    require_in_range("contribution bound", bound, 1e-300, 1e300)
    exponent = math.ceil(math.log2(bound)) + math.ceil(math.log2(max(num_records, 2)))
    return 2.0 ** (exponent - _EXACT_BITS)


class SubsetSums:
    """Sums of bounded contributions over every candidate subset, exact in any order.

    Args:
        membership: Which record is in which subset, shape (num_records, num_subsets).
        num_releases: K, the number of contributions a record makes in one step.
        bound: Largest absolute value of one contribution.
    """

    def __init__(self, membership: NDArray[np.bool_], num_releases: int, bound: float) -> None:
        self._membership = membership
        self._bound = bound
        self.unit = fixed_point_unit(bound, membership.shape[0])
        self.sums = np.zeros((membership.shape[1], num_releases))

    def add(self, records: NDArray[np.int64], contributions: NDArray[np.float64]) -> None:
        """Adds one batch.

        Args:
            records: Indices into the pool, shape (batch_size,).
            contributions: Shape (batch_size, num_releases), each within the bound.

        Raises:
            PrecisionError: If a contribution is NaN, infinite or beyond the bound.
        """
        integers = to_fixed_point(contributions, self._bound, self.unit)
        self.sums += self._membership[records].T.astype(np.float64) @ integers


def to_fixed_point(
    contributions: NDArray[np.float64], bound: float, unit: float
) -> NDArray[np.float64]:
    """Returns contributions as whole numbers (float64) of `unit`; refuses unbounded ones."""
    values = np.asarray(contributions, dtype=np.float64)
    if not (np.isfinite(values).all() and (np.abs(values) <= bound * (1 + 1e-6)).all()):
        raise PrecisionError(
            "a record's contribution is NaN, infinite or beyond its bound; nothing was released. "
            "Lower the learning rate, or compute in float32."
        )
    return np.rint(values / unit)
