"""The projected estimator: one backward pass gives every record's derivative along K directions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from sordino.core.checks import require_positive
from sordino.gradients.estimators import AbstractEstimator
from sordino.gradients.objectives import require_differentiable
from sordino.gradients.per_record import PerRecordGradients

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sordino.gradients.objectives import AbstractObjective, LanguageModel
    from sordino.gradients.parameters import AbstractParameterSpace
    from sordino.gradients.shared import SharedComponent


class FirstOrderEstimator(AbstractEstimator):
    """Exact directional derivatives: one backward pass gives every direction of the step.

    Per-record gradients of the adapter's linear layers are formed inside the backward pass from
    each layer's input and output gradient, clipped together to norm `clip`, projected on the
    step's public directions, and dropped: no more than one batch of gradients is ever held.

    Args:
        model: The language model.
        objective: Differentiable losses per record.
        space: Trainable tensors of linear layers, embeddings and norms.
        clip: Largest Euclidean norm of one record's gradient.
        shared: Weighs down, before clipping, what moves all answers alike; None: nothing is.
    """

    def __init__(
        self,
        model: LanguageModel,
        objective: AbstractObjective,
        space: AbstractParameterSpace,
        *,
        clip: float,
        shared: SharedComponent | None = None,
    ) -> None:
        require_differentiable(objective)
        self._model = model
        self._objective = objective
        self._space = space
        self._shared = shared
        self._clip = require_positive("clip", clip)
        self.bound = self._clip * space.directions.max_norm
        self._gradients = PerRecordGradients(model.causal_lm, space.tensors)

    def contributions(
        self, step: int, batches: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Yields projections of clipped per-record gradients."""
        self.begin_step()
        for batch in batches:
            gradients = self.clipped_gradients(batch)
            yield batch, self._space.directions.project(step, gradients).double().cpu()

    def begin_step(self) -> None:
        """Looks at public records, where that is wanted; once a step."""
        if self._shared is not None:
            self._shared.refresh(self._gradients)

    def clipped_gradients(self, records: Sequence[int]) -> torch.Tensor:
        """Returns per-record gradients of norm at most `clip`, (batch_size, num_params) float32."""
        gradients = self._gradients.compute(
            lambda: self._objective.losses(self._model, records), len(records)
        )
        if self._shared is not None:
            gradients = self._shared.weigh_down(gradients)
        norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
        factors = (self._clip / norms.clamp_min(1e-30)).clamp_max(1.0)
        # an overflow must not turn into a contribution of 0: NaN is refused when summed
        return gradients.mul_(factors.where(norms.isfinite(), math.nan))
