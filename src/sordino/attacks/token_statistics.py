"""What one forward pass says about every scored token; all loss scores are functions of it.

With log-probabilities log p over the vocabulary (or over a text's words, renormalised), each scored
token has log p(token), the expectation and the standard deviation of log p *under the model*, and
whether no other token is likelier. Logits are formed for a few rows at a time and read while they
are still in the processor's cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from sordino.core.checks import require_integer
from sordino.core.errors import InvalidDataError, PrecisionError
from sordino.data.collate import collate, plan_batches
from sordino.data.tasks import Example

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from sordino.attacks.texts import ScoredText
    from sordino.gradients.objectives import LanguageModel

_MAX_RECORDS_PER_BATCH = 64
_LOGITS_AT_ONCE = 2**24  # of one matrix product: 64 MiB in float32
_LOGITS_IN_CACHE = 2**19  # of one pass over them: 2 MiB in float32
# exp of anything lower is 0 in float32, and 0 times this is 0: logits of -infinity count as
# probability zero, whose p log p and p (log p)^2 are zero too
_LOWEST_LOGIT = -1e4


@dataclass(frozen=True, slots=True, eq=False)
class TokenStatistics:
    """One text's scored tokens under one model. T of them.

    Args:
        log_likelihoods: float64 (T,), log p of each token, nats.
        means: float64 (T,), expectation of log p under the model: minus the entropy.
        standard_deviations: float64 (T,), of log p under the model.
        is_predicted: bool (T,), whether no other token has a larger logit; ties count as predicted.

    Raises:
        InvalidDataError: If the arrays are empty or of different lengths.
        PrecisionError: If a number is NaN or infinite, or a standard deviation negative.
    """

    log_likelihoods: NDArray[np.float64]
    means: NDArray[np.float64]
    standard_deviations: NDArray[np.float64]
    is_predicted: NDArray[np.bool_]

    def __post_init__(self) -> None:
        numbers = (self.log_likelihoods, self.means, self.standard_deviations)
        shapes = {np.shape(values) for values in (*numbers, self.is_predicted)}
        if len(shapes) != 1 or len(shape := shapes.pop()) != 1 or shape[0] == 0:
            raise InvalidDataError(
                "token statistics must be vectors of one length, at least 1; got the shapes "
                f"{sorted(map(np.shape, numbers))} and {np.shape(self.is_predicted)}."
            )
        if not all(np.isfinite(values).all() for values in numbers):
            raise PrecisionError(
                "token statistics must be finite, got NaN or infinity: the model's logits are "
                "broken, or a scored token has probability zero. Score in float32, and check that "
                "the tokenizer belongs to the model."
            )
        if not (self.standard_deviations >= 0.0).all():
            raise PrecisionError("standard_deviations must be at least 0, got a negative one.")

    @property
    def num_tokens(self) -> int:
        """How many tokens are scored; at least 1."""
        return int(self.log_likelihoods.shape[0])

    @property
    def negative_log_likelihood(self) -> float:
        """Mean over the scored tokens, nats: the loss."""
        return -float(self.log_likelihoods.mean())


@torch.no_grad()
def compute_token_statistics(
    language_model: LanguageModel,
    texts: Sequence[ScoredText],
    *,
    tokens_per_batch: int = 2048,
    advance: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, TokenStatistics]]:
    """Yields the number of each text and its statistics, in the order of the batches.

    One forward pass over all texts, as the iterator is consumed: consume it inside of the context
    that switches an adapter off. Each text comes exactly once. Padding is never scored.

    Args:
        language_model: The model; its weights are only read.
        texts: What to score.
        tokens_per_batch: Most tokens of a batch, padding included, unless one text is longer.
        advance: Called after each batch with the number of texts done so far.

    Raises:
        PrecisionError: If a model's probabilities are NaN or infinite.
    """
    require_integer("tokens_per_batch", tokens_per_batch, 1)
    done = 0
    for batch in _plan(texts, tokens_per_batch):
        found = _score_batch(language_model, [texts[i] for i in batch])
        yield from zip(batch, found, strict=True)
        done += len(batch)
        if advance is not None:
            advance(done)


def _plan(texts: Sequence[ScoredText], token_budget: int) -> list[list[int]]:
    """Returns which texts go into which batch; those of a batch share their words."""
    groups: dict[tuple[int, ...] | None, list[int]] = {}
    for index, text in enumerate(texts):
        groups.setdefault(text.word_ids, []).append(index)
    batches: list[list[int]] = []
    for group in groups.values():
        lengths = [len(texts[i].input_ids) for i in group]
        plan = plan_batches(lengths, token_budget=token_budget, max_records=_MAX_RECORDS_PER_BATCH)
        batches.extend([group[i] for i in batch] for batch in plan)
    return batches


def _score_batch(model: LanguageModel, texts: Sequence[ScoredText]) -> list[TokenStatistics]:
    """Returns the statistics of the texts of one batch."""
    examples = [Example(t.input_ids, num_prompt_tokens=t.first_scored) for t in texts]
    batch = collate(examples, model.pad_token_id).to(model.device)
    if batch.completion_mask is None:  # never: every example says where its scored part begins
        raise InvalidDataError("texts must each have a scored part.")
    sequences, positions = batch.completion_mask.nonzero(as_tuple=True)  # real positions only
    targets = batch.input_ids[sequences, positions]
    states = model.states_at(batch.input_ids, sequences, positions - 1)
    sums = _all_sums(model, states, sequences, targets, texts[0].word_ids)
    stops = np.cumsum([len(text.scored_ids) for text in texts])
    columns = sums.cpu().numpy().astype(np.float64)
    return [_statistics(part) for part in np.split(columns, stops[:-1], axis=1)]


def _all_sums(
    model: LanguageModel,
    states: torch.Tensor,
    sequences: torch.Tensor,
    targets: torch.Tensor,
    word_ids: tuple[int, ...] | None,
) -> torch.Tensor:
    """Returns `_sums` of every scored token, few rows of logits at a time."""
    if word_ids is not None:
        words = torch.tensor(word_ids, device=targets.device)
        logits = word_logits(model, states, sequences, words)
        return _sums(logits, (targets[:, None] == words).int().argmax(dim=1))
    parts: list[torch.Tensor] = []
    num_rows = max(1, _LOGITS_AT_ONCE // model.num_tokens)
    for start in range(0, len(targets), num_rows):
        rows = slice(start, start + num_rows)
        logits = model.logits_of(states[rows], sequences[rows])
        # an accelerator reads it all at once; a processor reads what its cache holds
        in_cache = max(1, _LOGITS_IN_CACHE // logits.shape[1]) if logits.is_cpu else num_rows
        parts.extend(
            _sums(logits[first : first + in_cache], targets[rows][first : first + in_cache])
            for first in range(0, logits.shape[0], in_cache)
        )
    return torch.cat(parts, dim=1)


def word_logits(
    model: LanguageModel, states: torch.Tensor, sequences: torch.Tensor, words: torch.Tensor
) -> torch.Tensor:
    """Returns the words' logits as training computes them: the output embedding in float32.

    In bfloat16 a logit near 16 is a multiple of 1/16, which would hide what a few steps changed.
    """
    if not model.has_plain_head:
        return model.logits_of(states, sequences)[:, words]
    head = model.causal_lm.get_output_embeddings()
    bias = None if head.bias is None else model.rows(head.bias, words).float()
    return F.linear(states.float(), model.rows(head.weight, words).float(), bias)


def _sums(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns all that is needed of each row, with d = logit - largest logit of the row.

    Args:
        logits: float32 (num_rows, vocabulary).
        targets: Columns, (num_rows,).

    Returns:
        d of the target, sum exp(d), sum exp(d) d, sum exp(d) d^2: float32 (4, num_rows).
    """
    shifted = logits - logits.amax(dim=1, keepdim=True)
    of_target = shifted.gather(1, targets[:, None])[:, 0]
    shifted.clamp_(min=_LOWEST_LOGIT)
    weighted = shifted.exp()
    sums = [of_target, weighted.sum(dim=1)]
    sums.append(weighted.mul_(shifted).sum(dim=1))
    sums.append(weighted.mul_(shifted).sum(dim=1))
    return torch.stack(sums)


def _statistics(sums: NDArray[np.float64]) -> TokenStatistics:
    """Returns one text's statistics from `_sums` of its tokens.

    The variance of log p is that of d, E[d^2] - E[d]^2: where the model is sure, most of the weight
    lies at d = 0, so that nothing cancels.
    """
    of_target, total, first, second = sums
    mean = first / total
    variance = np.maximum(second / total - mean * mean, 0.0)
    return TokenStatistics(
        of_target - np.log(total), mean - np.log(total), np.sqrt(variance), of_target >= 0.0
    )
