"""The part of every record's gradient that moves all answers alike, weighed down.

In a classification, a record's gradient is its error times the gradient of its answer. The answers'
gradients of different texts have a large part in common: the direction that makes the model lean
towards a label whatever the text says. Errors of both signs meet there, so it cancels in the mean
but not in the spread, and the spread is what keeps candidate subsets from agreeing. The part is
found on public texts, so weighing it down costs no privacy; it is done before clipping, so every
bound holds as before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sordino.core.checks import require_in_range, require_integer

if TYPE_CHECKING:
    from sordino.gradients.objectives import AbstractObjective, LanguageModel
    from sordino.gradients.per_record import PerRecordGradients


class SharedComponent:
    """Weighs down the directions that move all answers alike.

    Args:
        model: The language model.
        objective: Losses over public records: every text with every label, labels of a text side
            by side in the same order.
        num_labels: Number of labels, at least 2.
        weight: What is kept of the part, in [0, 1]; 1 changes nothing.

    Source:
        Ours; measured in docs/decisions/0006-shared-component.md.
    """

    def __init__(
        self,
        model: LanguageModel,
        objective: AbstractObjective,
        *,
        num_labels: int,
        weight: float,
    ) -> None:
        self._model = model
        self._objective = objective
        self._num_labels = require_integer("num_labels", num_labels, 2)
        self._weight = require_in_range("shared_weight", weight, 0.0, 1.0)
        self._basis: torch.Tensor | None = None

    def refresh(self, gradients: PerRecordGradients) -> None:
        """Finds the directions at the model's present weights."""
        num_records = len(self._objective.lengths)
        values = gradients.compute(
            lambda: self._objective.losses(self._model, range(num_records)), num_records
        )
        by_label = values.view(-1, self._num_labels, values.shape[1]).mean(dim=0)
        leanings = by_label - by_label.mean(dim=0)  # they add up to 0: one of them is redundant
        self._basis = torch.linalg.qr(leanings[:-1].T).Q

    def weigh_down(self, gradients: torch.Tensor) -> torch.Tensor:
        """Returns gradients of shape (batch_size, num_params) with less of the shared part."""
        if self._basis is None:
            raise RuntimeError("refresh comes first.")
        shared = (gradients @ self._basis) @ self._basis.T
        return gradients.sub_(shared, alpha=1.0 - self._weight)
