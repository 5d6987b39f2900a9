"""Contributions of units: a unit's records are added up, then clipped together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from sordino.core.checks import require_positive
from sordino.gradients.estimators import AbstractEstimator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

_BELOW_ONE = 1.0 - 2.0**-40  # float64 rounding of norm, factor and product stays below the bound


class UnitContributions(AbstractEstimator):
    """K numbers a unit, of Euclidean norm at most `clip_norm`: what differential privacy needs.

    Args:
        estimator: Gives contributions of records.
        unit_of: The unit of every record, shape (num_records,).
        clip_norm: Largest Euclidean norm of a unit's K numbers.

    Source:
        K = 1: DPZero (arXiv:2310.09639). K > 1: DP-AggZO; directions in general position are close
        to orthogonal, so the norm of the K derivatives stands for that of their gradient estimate.
    """

    def __init__(
        self, estimator: AbstractEstimator, unit_of: NDArray[np.int64], *, clip_norm: float
    ) -> None:
        self._estimator = estimator
        self._unit_of = unit_of
        self.bound = require_positive("clip", clip_norm)

    def contributions(
        self, step: int, batches: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Yields (units, contributions); a unit's records must all be in one batch, adjacent."""
        for records, values in self._estimator.contributions(step, batches):
            units, places = torch.unique_consecutive(
                torch.from_numpy(self._unit_of[list(records)]), return_inverse=True
            )
            sums = torch.zeros(len(units), values.shape[1], dtype=torch.float64)
            sums.index_add_(0, places, values)
            norms = torch.linalg.vector_norm(sums, dim=1, keepdim=True)
            factors = (self.bound * _BELOW_ONE / norms.clamp_min(1e-300)).clamp_max(1.0)
            # NaN must not turn into a contribution: it is refused when summed
            yield units.tolist(), sums * factors.where(norms.isfinite(), math.nan)
