"""Estimators: from a batch of records to bounded contributions, one column a public direction."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch

from sordino.core.checks import require_positive

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sordino.gradients.objectives import AbstractObjective, LanguageModel
    from sordino.gradients.parameters import AbstractParameterSpace


class AbstractEstimator(ABC):
    """Turns records into contributions whose absolute value never exceeds `bound`."""

    bound: float

    @abstractmethod
    def contributions(
        self, step: int, batches: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Yields (records, contributions) for every batch.

        Args:
            step: Step number; names the public directions.
            batches: Lists of record indices; a list may be empty only if all are.

        Returns:
            Contributions of shape (batch_size, num_directions), float64 on the CPU.
        """


class ZerothOrderEstimator(AbstractEstimator):
    """Central differences of the loss: two forward passes a direction and nothing else.

    Args:
        model: The language model.
        objective: Losses per record; need not be differentiable.
        space: Trainable tensors.
        perturbation: Step of the difference; must fit the compute dtype (rounding noise is neither
            a gradient nor privacy).
        clip: Largest absolute directional derivative of one record.

    Source:
        SPSA as in MeZO (arXiv:2305.17333), per record as in DPZero (arXiv:2310.09639).
    """

    def __init__(
        self,
        model: LanguageModel,
        objective: AbstractObjective,
        space: AbstractParameterSpace,
        *,
        perturbation: float,
        clip: float,
    ) -> None:
        self._model = model
        self._objective = objective
        self._space = space
        self.perturbation = require_positive("perturbation", perturbation)
        self.bound = require_positive("clip", clip)

    @torch.no_grad()
    def contributions(
        self, step: int, batches: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Yields clipped central differences."""
        num_directions = self._space.directions.num_directions
        results = [torch.empty(len(b), num_directions, dtype=torch.float64) for b in batches]
        for k in range(num_directions):
            upper = self._losses(step, k, self.perturbation, batches)
            lower = self._losses(step, k, -self.perturbation, batches)
            for result, plus, minus in zip(results, upper, lower, strict=True):
                difference = (plus - minus) / (2.0 * self.perturbation)
                clipped = difference.clamp(-self.bound, self.bound)
                result[:, k] = clipped.where(difference.isfinite(), math.nan)  # refused when summed
        yield from zip(batches, results, strict=True)

    def _losses(
        self, step: int, index: int, scale: float, batches: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """Returns the losses of all batches at one perturbed point, float64 on the CPU."""
        with self._space.perturbed(step, index, scale):
            return [self._objective.losses(self._model, batch).cpu().double() for batch in batches]
