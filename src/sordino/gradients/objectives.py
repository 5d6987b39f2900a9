"""Losses per record, read out with as little work as the task allows.

Classification looks at one position and at the label words only; completion looks at completion
positions only; full-vocabulary logits over the whole sequence are never formed. Batches are padded
on the right and a causal model never looks right, so no attention mask is needed and the fast
causal kernel is used; padded positions are not read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812

from sordino.core.errors import InvalidParameterError
from sordino.data.collate import collate
from sordino.data.tasks import token_f1
from sordino.gradients.shared_prefix import make_row, row_length
from sordino.gradients.uses import with_records

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sordino.data.tasks import Example
    from sordino.gradients.prefix import FrozenPrefix

LOGIT_ROWS_AT_ONCE = 2048
# Models that change logits after the output embedding; their own forward pass is used instead.
_LOGIT_TRANSFORMS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
)


@dataclass
class LanguageModel:
    """A causal language model as the objectives see it.

    Args:
        causal_lm: A transformers causal LM, adapters already injected.
        rows: Returns rows of a matrix parameter as the model would use them now.
        prefix: Keeps the hidden states below the first adapted block, if there is one.
    """

    causal_lm: Any
    pad_token_id: int
    rows: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = field(
        default=lambda parameter, indices: parameter[indices]
    )
    prefix: FrozenPrefix | None = None

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.causal_lm.parameters()).device

    @property
    def num_tokens(self) -> int:
        """How many tokens the model embeds; at least as many as its tokenizer has."""
        return int(self.causal_lm.get_input_embeddings().weight.shape[0])

    @property
    def has_plain_head(self) -> bool:
        """Whether logits are exactly the output embedding of the last hidden state."""
        config = self.causal_lm.config
        values = [getattr(config, name, None) for name in _LOGIT_TRANSFORMS]
        return all(value is None or value == 1 for value in values)

    def last_hidden_state(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns the final hidden states, shape (batch_size, length, width)."""
        if self.prefix is not None:
            return self.prefix.last_hidden_state(input_ids)
        decoder = self.causal_lm.get_decoder()
        return decoder(input_ids=input_ids, use_cache=False).last_hidden_state

    def word_logits(
        self, input_ids: torch.Tensor, positions: torch.Tensor, words: torch.Tensor
    ) -> torch.Tensor:
        """Returns the logits of a few words at one position a sequence, float32.

        Args:
            input_ids: Shape (batch_size, length).
            positions: Shape (batch_size,).
            words: Token ids, shape (num_words,).
        """
        sequences = torch.arange(input_ids.shape[0], device=input_ids.device)
        if not self.has_plain_head:
            logits = self.causal_lm(input_ids=input_ids, use_cache=False).logits
            return logits[sequences, positions][:, words].float()
        hidden = self.last_hidden_state(input_ids)[sequences, positions]
        head = self.causal_lm.get_output_embeddings()
        rows = self.rows(head.weight, words).float()
        bias = None if head.bias is None else self.rows(head.bias, words).float()
        return F.linear(hidden.float(), rows, bias)

    def token_log_likelihoods(
        self,
        input_ids: torch.Tensor,
        sequences: torch.Tensor,
        positions: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """Returns log p(target at position + 1) for chosen positions, shape (num_positions,).

        Args:
            input_ids: Shape (batch_size, length).
            sequences: Row of each position, ascending, shape (num_positions,).
            positions: Shape (num_positions,).
            targets: Token ids, shape (num_positions,).
        """
        states = self.states_at(input_ids, sequences, positions)
        return self.log_likelihoods_of(states, sequences, targets)

    def log_likelihoods_of(
        self, states: torch.Tensor, sequences: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Returns log p(target) for rows of `states_at`; arguments as in `logits_of`."""
        parts = []
        for start in range(0, states.shape[0], LOGIT_ROWS_AT_ONCE):
            rows = slice(start, start + LOGIT_ROWS_AT_ONCE)
            logits = self.logits_of(states[rows], sequences[rows])
            parts.append(-F.cross_entropy(logits, targets[rows], reduction="none"))
        return torch.cat(parts)

    def states_at(
        self, input_ids: torch.Tensor, sequences: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Returns what `logits_of` needs: hidden states, or logits where the head is not plain.

        Args:
            input_ids: Shape (batch_size, length).
            sequences: Row of each position, ascending, shape (num_positions,).
            positions: Shape (num_positions,).
        """
        if self.has_plain_head:
            return self.last_hidden_state(input_ids)[sequences, positions]
        logits = self.causal_lm(input_ids=input_ids, use_cache=False).logits
        return logits[sequences, positions]

    def logits_of(self, states: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
        """Returns the logits of some rows of `states_at`, float32, shape (num_rows, vocabulary).

        Args:
            states: Shape (num_rows, ...).
            sequences: Row of `input_ids` that each comes from, ascending, shape (num_rows,).
        """
        states = with_records(states, sequences)
        if not self.has_plain_head:
            return states.float()
        return self.causal_lm.get_output_embeddings()(states).float()


class AbstractObjective(ABC):
    """Per-record losses over a fixed list of encoded records."""

    is_differentiable = True
    lengths: list[int]  # tokens of each record, for the batch plan

    def prepare(self, model: LanguageModel, records: Sequence[int]) -> None:  # noqa: B027
        """Does what has no gradient, just before `losses` of the same records; here nothing."""

    @abstractmethod
    def losses(self, model: LanguageModel, records: Sequence[int]) -> torch.Tensor:
        """Returns the loss of each named record, shape (batch_size,), float32."""

    def shared_loss(self, model: LanguageModel, records: Sequence[int]) -> torch.Tensor:
        """Returns the sum of `losses`; what records begin with alike may be computed once."""
        return self.losses(model, records).sum()

    def shared_length(self, records: Sequence[int]) -> int:
        """Returns how many tokens `shared_loss` looks at, padding included."""
        return len(records) * max(self.lengths[i] for i in records)


def require_differentiable(objective: AbstractObjective) -> None:
    """Raises unless the objective has a gradient."""
    if not objective.is_differentiable:
        raise InvalidParameterError(
            "objective token-f1 has no gradient: use --estimator zeroth-order."
        )


class ClassificationObjective(AbstractObjective):
    """Cross-entropy over the label words at the last position of the prompt."""

    def __init__(self, examples: Sequence[Example], word_ids: Sequence[int]) -> None:
        self._examples = examples
        self._word_ids = list(word_ids)
        self.lengths = [len(example.input_ids) for example in examples]

    def logits_and_targets(
        self, model: LanguageModel, records: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the label words' logits (batch_size, num_labels) and label numbers."""
        batch = collate([self._examples[i] for i in records], model.pad_token_id).to(model.device)
        words = torch.tensor(self._word_ids, device=model.device)
        return model.word_logits(batch.input_ids, batch.last_positions, words), batch.targets

    def losses(self, model: LanguageModel, records: Sequence[int]) -> torch.Tensor:
        """Returns cross-entropies."""
        logits, targets = self.logits_and_targets(model, records)
        return F.cross_entropy(logits, targets, reduction="none")


class CompletionObjective(AbstractObjective):
    """Negative log-likelihood of the completion's tokens.

    Args:
        examples: Completions.
        is_summed: Whether a record's loss is the sum over its tokens, not their mean. With means a
            token of a short completion counts for more than one of a long completion.
    """

    def __init__(self, examples: Sequence[Example], *, is_summed: bool = False) -> None:
        self._examples = examples
        self._is_summed = is_summed
        self._is_shareable = True
        self.lengths = [len(example.input_ids) for example in examples]

    def losses(self, model: LanguageModel, records: Sequence[int]) -> torch.Tensor:
        """Returns negative log-likelihoods."""
        batch = collate([self._examples[i] for i in records], model.pad_token_id).to(model.device)
        sequences, positions = batch.completion_mask.nonzero(as_tuple=True)
        targets = batch.input_ids[sequences, positions]
        log_likelihoods = model.token_log_likelihoods(
            batch.input_ids, sequences, positions - 1, targets
        )
        return self._by_record(-log_likelihoods, sequences, len(records))

    def shared_loss(self, model: LanguageModel, records: Sequence[int]) -> torch.Tensor:
        """Returns the sum of `losses`; the records are in one row if they can be."""
        if not self._is_shareable:
            return super().shared_loss(model, records)
        row = make_row([self._examples[i] for i in records])
        states = row.states(model.causal_lm.get_decoder())
        sequences, targets = row.records.to(states.device), row.targets.to(states.device)
        log_likelihoods = model.log_likelihoods_of(states, sequences, targets)
        return self._by_record(-log_likelihoods, sequences, len(records)).sum()

    def shared_length(self, records: Sequence[int]) -> int:
        """Returns the row's length, or that of a batch."""
        if not self._is_shareable:
            return super().shared_length(records)
        return row_length([self._examples[i] for i in records])

    def _by_record(
        self, losses: torch.Tensor, sequences: torch.Tensor, num_records: int
    ) -> torch.Tensor:
        """Returns the mean or sum of each record's tokens."""
        totals = torch.zeros(num_records, device=losses.device).index_add(0, sequences, losses)
        return totals if self._is_summed else totals / sequences.bincount(minlength=num_records)


class GenerationObjective(AbstractObjective):
    """One minus the token F1 of a greedy generation: no gradient, zeroth order only."""

    is_differentiable = False

    def __init__(self, examples: Sequence[Example], tokenizer: Any, max_new_tokens: int) -> None:
        self._examples = examples
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens
        self.lengths = [len(example.input_ids) + max_new_tokens for example in examples]

    def losses(self, model: LanguageModel, records: Sequence[int]) -> torch.Tensor:
        """Returns 1 - F1 of the generated text against the best reference."""
        examples = [self._examples[i] for i in records]
        width = max(len(example.input_ids) for example in examples)
        input_ids = torch.full((len(examples), width), model.pad_token_id)
        mask = torch.zeros_like(input_ids)
        for row, example in enumerate(examples):  # generation continues at the right end
            input_ids[row, width - len(example.input_ids) :] = torch.tensor(example.input_ids)
            mask[row, width - len(example.input_ids) :] = 1
        output = model.causal_lm.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=self._max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=model.pad_token_id,
        )
        texts = self._tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
        scores = [
            token_f1(text, example.references)
            for text, example in zip(texts, examples, strict=True)
        ]
        return 1.0 - torch.tensor(scores, dtype=torch.float32)
