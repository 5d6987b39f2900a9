"""What a tuned model is to keep: its divergence from its base on public texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sordino.data.collate import collate
from sordino.gradients.distillation import divergences
from sordino.gradients.objectives import LOGIT_ROWS_AT_ONCE, CompletionObjective

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from sordino.data.tasks import Example
    from sordino.gradients.objectives import LanguageModel


class RetainedObjective(CompletionObjective):
    """KL(base || tuned) over a completion's tokens, in nats; 0 while the adapter does nothing.

    Args:
        examples: Completions.
        base: Returns a context in which the model computes as its base.
        is_summed: As in `CompletionObjective`.

    Source:
        Learning without forgetting (arXiv:1606.09282). Departures: the base is asked anew in every
        step, its whole distribution counts at temperature 1, and the texts need not be those of the
        new task.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        base: Callable[[], AbstractContextManager[None]],
        *,
        is_summed: bool = False,
    ) -> None:
        super().__init__(examples, is_summed=is_summed)
        self._base = base
        self._is_shareable = False

    def losses(self, model: LanguageModel, records: Sequence[int]) -> torch.Tensor:
        """Returns the divergences, by record."""
        batch = collate([self._examples[i] for i in records], model.pad_token_id).to(model.device)
        sequences, places = batch.completion_mask.nonzero(as_tuple=True)
        with torch.no_grad(), self._base():
            kept = model.states_at(batch.input_ids, sequences, places - 1)
        states = model.states_at(batch.input_ids, sequences, places - 1)
        parts = []
        for start in range(0, states.shape[0], LOGIT_ROWS_AT_ONCE):
            rows = slice(start, start + LOGIT_ROWS_AT_ONCE)
            with torch.no_grad():  # the output layer is never adapted
                target = model.logits_of(kept[rows], sequences[rows])
            found = model.logits_of(states[rows], sequences[rows])
            parts.append(divergences(found, target, "forward-kl", beta=0.5))
        return self._by_record(torch.cat(parts), sequences, len(records))
