"""Completions with a penalty on what they must not say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sordino.core.checks import require_non_negative
from sordino.data.collate import collate
from sordino.gradients.objectives import LOGIT_ROWS_AT_ONCE, CompletionObjective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sordino.data.tasks import Example
    from sordino.gradients.objectives import LanguageModel


class PenalizedCompletionObjective(CompletionObjective):
    """-log p(token) - weight * log(1 - p(forbidden tokens)), over the completion's tokens.

    p(forbidden tokens) is the sum over `Example.forbidden` of their probabilities at that place.
    A record without forbidden tokens has the plain loss.

    Args:
        examples: Completions.
        weight: Of the penalty; 0: the plain loss.
        is_summed: As in `CompletionObjective`.

    Raises:
        InvalidParameterError: If the weight is negative or not finite.

    Source:
        The token-level unlikelihood of arXiv:1908.04319. Departure: the probabilities of all
        forbidden tokens of a place are added up before the logarithm, not after it.
    """

    def __init__(
        self, examples: Sequence[Example], weight: float = 0.0, *, is_summed: bool = False
    ) -> None:
        super().__init__(examples, is_summed=is_summed)
        self._weight = require_non_negative("weight", weight)
        self._is_shareable = self._weight == 0

    def losses(self, model: LanguageModel, records: Sequence[int]) -> torch.Tensor:
        """Returns the losses of the tokens, by record."""
        examples = [self._examples[i] for i in records]
        if self._weight == 0 or not any(example.forbidden for example in examples):
            return super().losses(model, records)
        batch = collate(examples, model.pad_token_id).to(model.device)
        sequences, positions = batch.completion_mask.nonzero(as_tuple=True)
        targets = batch.input_ids[sequences, positions]
        is_forbidden = torch.zeros(
            len(records), model.num_tokens, dtype=torch.bool, device=model.device
        )
        for row, example in enumerate(examples):
            is_forbidden[row, list(example.forbidden)] = True
        states = model.states_at(batch.input_ids, sequences, positions - 1)
        parts = []
        for start in range(0, states.shape[0], LOGIT_ROWS_AT_ONCE):
            rows = slice(start, start + LOGIT_ROWS_AT_ONCE)
            logits = model.logits_of(states[rows], sequences[rows])
            total = logits.logsumexp(dim=1)
            chosen = logits.gather(1, targets[rows, None])[:, 0]
            allowed = logits.masked_fill(is_forbidden[sequences[rows]], -torch.inf).logsumexp(dim=1)
            parts.append((total - chosen) + self._weight * (total - allowed))
        return self._by_record(torch.cat(parts), sequences, len(records))
