"""Contrastive exploration: what did tuning teach the model?

Texts are sampled where the tuned model and its base disagree, so that what comes out is what the
tuning data are about, for the data holder to read. A text with a high gain is not proof that it
was in the data: the model says it more readily than its base did, no more.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sordino.core.checks import require_in_range, require_integer, require_positive
from sordino.core.directions import MAX_SEED
from sordino.core.errors import InvalidParameterError, PrecisionError
from sordino.data._tokens import start_tokens, tokenize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sordino.attacks.subject import Subject
    from sordino.gradients.objectives import LanguageModel

_CONTEXT_TOKENS = 2  # that the memory of what was found looks at: trigrams
_LARGEST_CONTRAST = 100.0


@dataclass(frozen=True, slots=True)
class ContrastFinding:
    """A text that the tuned model writes more readily than its base.

    Args:
        text: The text with the prompt that it continues.
        gain_nats: Mean of log p_tuned - log p_base over the generated tokens and the end token.
    """

    text: str
    gain_nats: float


def explore(
    subject: Subject,
    *,
    num_texts: int,
    max_new_tokens: int,
    seed: int,
    prompts: Sequence[str] = ("",),
    contrast: float = 1.0,
    plausibility: float = 0.1,
    found_weight: float = 0.5,
    texts_at_once: int = 16,
    advance: Callable[[int], None] | None = None,
) -> list[ContrastFinding]:
    """Returns texts that show what tuning taught, the largest gain first, none twice.

    The next token v is drawn with probability proportional to exp(contrast * (log p_tuned(v) -
    log p_base(v))), among the v with p_tuned(v) >= plausibility * max p_tuned. After each batch the
    base is given what was found: below it predicts (1 - w) p_base + w p_found wherever the last two
    tokens occurred in earlier texts, with p_found what followed them there, so that the next batch
    finds something else. Gains are those against the base as it is.

    Args:
        subject: A tuned model with its base.
        num_texts: How many texts to sample, at least 1; fewer are returned where some are equal.
        max_new_tokens: Longest text.
        seed: Public; the same seed gives the same texts on the same machine.
        prompts: Public beginnings, taken in turn; "" begins a new text.
        contrast: Positive; larger values look for larger differences.
        plausibility: In (0, 1]; smaller values let in less likely tokens.
        found_weight: w, in [0, 1); 0 samples all texts in the same way.
        texts_at_once: Largest batch.
        advance: Called with the number of texts done, after each batch.

    Raises:
        InvalidParameterError: If there is no base, an argument is out of range, or prompt and text
            do not fit into the context.
        PrecisionError: If a model gives probabilities that are no numbers.

    Source:
        arXiv:2410.14765v1 (CGE) with its mask 0.1 and contrast 1. Departures: one sample and no
        beams; the iterative variant there trains the base on each text, here a memory of trigrams
        is mixed into its predictions, because a base that is an adapter switched off has no
        weights of its own to train.
    """
    require_integer("num_texts", num_texts, 1)
    require_integer("max_new_tokens", max_new_tokens, 1)
    require_integer("seed", seed, 0, MAX_SEED)
    require_in_range("contrast", require_positive("contrast", contrast), 0.0, _LARGEST_CONTRAST)
    require_in_range("plausibility", require_positive("plausibility", plausibility), 0.0, 1.0)
    require_in_range("found_weight", found_weight, 0.0, 1.0)
    require_integer("texts_at_once", texts_at_once, 1)
    if found_weight == 1.0:
        raise InvalidParameterError("found_weight must be below 1: at 1 there is no base left.")
    openings = _encode_prompts(subject, prompts, max_new_tokens)
    sampler = _Sampler(
        subject,
        generator=torch.Generator().manual_seed(seed),
        log_plausibility=math.log(plausibility),
        contrast=contrast,
        found=_Found(found_weight),
    )
    # small enough that every prompt has its turn
    batch_size = min(texts_at_once, -(-num_texts // len(openings)))
    findings: dict[str, ContrastFinding] = {}
    for number, start in enumerate(range(0, num_texts, batch_size)):
        size = min(batch_size, num_texts - start)
        opening = openings[number % len(openings)]
        for ids, gain in sampler.sample(opening, size, max_new_tokens):
            text = subject.tokenizer.decode(opening + ids, skip_special_tokens=True).strip()
            known = findings.get(text)
            if text and ids and (known is None or known.gain_nats < gain):
                findings[text] = ContrastFinding(text, gain)
        if advance is not None:
            advance(start + size)
    return sorted(findings.values(), key=lambda finding: (-finding.gain_nats, finding.text))


class _Found:
    """Mixes what followed the last tokens in earlier texts into the base's prediction."""

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self._followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)

    def add(self, ids: Sequence[int], first: int) -> None:
        """Remembers a text's tokens from position `first` on."""
        for place in range(first, len(ids)):
            self._followers[_context(ids, place)][ids[place]] += 1

    def mix_into(self, log_base: torch.Tensor, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Returns the base's log-probabilities after the tokens in `rows`, found texts known."""
        if self._weight == 0.0 or not self._followers:
            return log_base
        mixed = log_base.clone()
        for number, ids in enumerate(rows):
            followers = self._followers.get(_context(ids, len(ids)))
            if followers is None:
                continue
            tokens = torch.tensor(list(followers), device=log_base.device)
            counts = log_base.new_tensor([float(count) for count in followers.values()])
            mixed[number] += math.log1p(-self._weight)
            share = (self._weight * counts / counts.sum()).log()
            mixed[number, tokens] = torch.logaddexp(mixed[number, tokens], share)
        return mixed


def _context(ids: Sequence[int], place: int) -> tuple[int, ...]:
    """Returns the tokens before a place that the memory looks at."""
    return tuple(ids[max(place - _CONTEXT_TOKENS, 0) : place])


@dataclass(frozen=True, slots=True, eq=False)
class _Sampler:
    """Draws batches of texts, each of which changes what the next one finds."""

    subject: Subject
    generator: torch.Generator
    log_plausibility: float
    contrast: float
    found: _Found

    @torch.no_grad()
    def sample(
        self, opening: list[int], size: int, max_new_tokens: int
    ) -> list[tuple[list[int], float]]:
        """Returns new tokens without the end token, and the gain, for each of `size` texts."""
        tuned = self.subject.tuned
        ends = _end_tokens(self.subject)
        rows = [list(opening) for _ in range(size)]
        gains: list[list[float]] = [[] for _ in range(size)]
        is_open = [True] * size
        caches: tuple[Any, Any] = (None, None)
        fresh = torch.tensor(rows, device=tuned.device)
        for _ in range(max_new_tokens):
            log_tuned, tuned_cache = _predict(tuned, fresh, caches[0])
            # Two caches: keys and values of the base are other numbers, even in the same model.
            with self.subject.base() as base:
                log_base, base_cache = _predict(base, fresh, caches[1])
            caches = (tuned_cache, base_cache)
            chosen = self._draw(log_tuned, self.found.mix_into(log_base, rows))
            differences = (log_tuned - log_base).gather(1, chosen.to(log_base.device))[:, 0]
            pairs = zip(chosen[:, 0].tolist(), differences.tolist(), strict=True)
            for number, (token, gain) in enumerate(pairs):
                if is_open[number]:  # a text that has ended goes through the model, unread
                    rows[number].append(token)
                    gains[number].append(gain)
                    is_open[number] = token not in ends
            if not any(is_open):
                break
            fresh = chosen.to(fresh.device)
        for ids in rows:
            self.found.add(ids, len(opening))
        texts = [ids[len(opening) :] for ids in rows]
        kept = [ids[:-1] if ids[-1] in ends else ids for ids in texts]
        return [(ids, math.fsum(g) / len(g)) for ids, g in zip(kept, gains, strict=True)]

    def _draw(self, log_tuned: torch.Tensor, log_base: torch.Tensor) -> torch.Tensor:
        """Returns one token a row, shape (num_rows, 1), on the CPU."""
        largest = log_tuned.max(dim=-1, keepdim=True).values
        plausible = log_tuned >= largest + self.log_plausibility
        scores = self.contrast * (log_tuned - log_base).double()
        chances = torch.softmax(scores.masked_fill(~plausible, -math.inf), dim=-1).cpu()
        if not bool(torch.isfinite(chances).all()):
            raise PrecisionError(
                "a model's next-token probabilities are NaN or zero where the other's are not. "
                "Compute in float32."
            )
        return torch.multinomial(chances, 1, generator=self.generator)


def _predict(model: LanguageModel, fresh: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
    """Returns log-probabilities of the next token, float32, and the model's own kind of cache."""
    num_seen = 0 if cache is None else cache.get_seq_length()
    output = model.causal_lm(
        input_ids=fresh,
        # all ones; without it some models warn that the end token might be padding
        attention_mask=fresh.new_ones(fresh.shape[0], num_seen + fresh.shape[1]),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    log_probabilities = torch.log_softmax(output.logits[:, -1].float(), dim=-1)
    return log_probabilities, output.past_key_values


def _end_tokens(subject: Subject) -> set[int]:
    """Returns the tokens that end a text."""
    settings = getattr(subject.tuned.causal_lm, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    ends = {subject.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    return {int(token) for token in ends if token is not None}


def _encode_prompts(
    subject: Subject, prompts: Sequence[str], max_new_tokens: int
) -> list[list[int]]:
    """Returns each prompt's tokens; an empty one is the token that begins a text, or ends one."""
    if isinstance(prompts, str) or not prompts:
        raise InvalidParameterError("prompts must be a list of at least one text.")
    tokenizer = subject.tokenizer
    # The next word brings its own space.
    encoded = tokenize(tokenizer, [prompt.rstrip(" ") for prompt in prompts])
    specials = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    begin = [int(token) for token in specials if token is not None][:1]
    openings = [start_tokens(tokenizer) + ids or begin for ids in encoded]
    for number, ids in enumerate(openings, start=1):
        if not ids:
            raise InvalidParameterError(
                f"prompt {number} is empty, and the tokenizer has no start or end token to begin "
                "a text with. Give a prompt of at least one word."
            )
        if len(ids) + max_new_tokens > subject.context_length:
            raise InvalidParameterError(
                f"prompt {number} has {len(ids)} tokens: with max_new_tokens {max_new_tokens} that "
                f"is more than the model's {subject.context_length}. Lower max_new_tokens."
            )
    return openings
