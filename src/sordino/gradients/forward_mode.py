"""The forward-mode estimator: exact derivatives along public directions from one dual forward pass.

A dual number carries a value and its derivative along the direction through every operation, so
there is no backward pass, no stored graph and no step of a difference to choose. It serves one
direction a step; with more, one backward pass gives them all.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from sordino.core.checks import require_positive
from sordino.core.errors import InvalidParameterError
from sordino.gradients.estimators import AbstractEstimator
from sordino.gradients.objectives import require_differentiable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sordino.gradients.objectives import AbstractObjective, LanguageModel
    from sordino.gradients.parameters import AbstractParameterSpace


class ForwardModeEstimator(AbstractEstimator):
    """Exact directional derivatives: one dual forward pass a direction and nothing else.

    Each derivative is clipped as the zeroth-order estimator clips its difference, so that the two
    are the same method apart from the rounding and the curvature that a difference adds.

    Args:
        model: The language model.
        objective: Differentiable losses per record.
        space: Trainable tensors.
        clip: Largest absolute directional derivative of one record.

    Source:
        Forward gradients as in arXiv:2202.08587; per record and clipped here.
    """

    def __init__(
        self,
        model: LanguageModel,
        objective: AbstractObjective,
        space: AbstractParameterSpace,
        *,
        clip: float,
    ) -> None:
        require_differentiable(objective)
        self._model = model
        self._objective = objective
        self._space = space
        self.bound = require_positive("clip", clip)

    @torch.no_grad()
    def contributions(
        self, step: int, batches: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Yields clipped derivatives."""
        num_directions = self._space.directions.num_directions
        results = [torch.empty(len(b), num_directions, dtype=torch.float64) for b in batches]
        for k in range(num_directions):
            columns = self._derivatives(step, k, batches)
            for result, derivatives in zip(results, columns, strict=True):
                clipped = derivatives.clamp(-self.bound, self.bound)
                result[:, k] = clipped.where(derivatives.isfinite(), math.nan)  # refused later
        yield from zip(batches, results, strict=True)

    def _derivatives(
        self, step: int, index: int, batches: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """Returns the derivatives of all batches along one direction, float64 on the CPU."""
        try:
            # the fused attention kernels have no forward-mode derivative; the plain one has
            with self._space.differentiated(step, index), sdpa_kernel(SDPBackend.MATH):
                return [self._derivative(batch) for batch in batches]
        except NotImplementedError as error:
            raise InvalidParameterError(
                "--estimator first-order with --directions-per-step 1 differentiates forwards, and "
                "an operation of this model has no forward-mode derivative. Use "
                "--directions-per-step 2 or more, or --estimator zeroth-order."
            ) from error

    def _derivative(self, records: Sequence[int]) -> torch.Tensor:
        """Returns one batch's derivatives; NaN where the loss itself is no number."""
        losses, derivatives = forward_ad.unpack_dual(self._objective.losses(self._model, records))
        if derivatives is None:  # nothing trainable on the way to the loss
            derivatives = torch.zeros_like(losses)
        return derivatives.where(losses.isfinite(), math.nan).cpu().double()
