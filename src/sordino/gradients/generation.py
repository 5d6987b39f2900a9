"""What a model writes by itself: batched sampling with a key-value cache, seeded per text.

The random numbers are added to the log-probabilities (the Gumbel trick: the largest of log p plus
independent Gumbel noise is a draw from p), each text with a generator of its own. So a text depends
on the seed and its number, not on what it shares a batch with (up to the rounding of arithmetic),
and no global random state is touched.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sordino.core.checks import require_in_range, require_integer
from sordino.core.errors import InvalidParameterError, PrecisionError
from sordino.data._tokens import common_prefix, start_tokens, tokenize
from sordino.data.collate import plan_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sordino.gradients.objectives import LanguageModel

_FEWEST_SHARED = 32  # tokens at the beginning of all prompts that are worth a pass of their own
_MOST_TEXTS_AT_ONCE = 128  # bounds the logits of a step: 25 MB with 49,152 tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How the next token is chosen.

    Args:
        max_new_tokens: Longest continuation.
        temperature: Divides the logits; 0 takes the likeliest token always.
        top_k: Only so many likeliest tokens; 0 for all.
        top_p: Only the likeliest tokens that together reach this probability, at least one.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 40
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require_integer("max_new_tokens", self.max_new_tokens, 1)
        require_in_range("temperature", self.temperature, 0.0, 100.0)
        require_integer("top_k", self.top_k, 0)
        require_in_range("top_p", self.top_p, 1e-6, 1.0)


def ignore_progress(_: int) -> None:
    """Tells nobody."""


def encode_opening(tokenizer: Any, text: str) -> list[int]:
    """Returns the tokens that a text is continued from: start token, if there is one, and text.

    Spaces at the end are left out: the next word brings its own. An empty text becomes the start
    token, or the end token, after which a new text begins.

    Raises:
        InvalidParameterError: If the text is empty and the tokenizer has neither token.
    """
    ids = start_tokens(tokenizer) + tokenize(tokenizer, [text.rstrip(" ")])[0]
    if ids:
        return ids
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [int(token)]
    raise InvalidParameterError(
        "tokenizer has no start and no end token, so that a text must be given to begin with."
    )


def generate_texts(
    language_model: LanguageModel,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    context_length: int,
    seed: int,
    tokens_per_batch: int = 4096,
    is_finished: Callable[[str], bool] | None = None,
    advance: Callable[[int], None] = ignore_progress,
) -> Iterator[tuple[int, str]]:
    """Yields the number of each prompt and its continuation, in the order of batches.

    What is not taken from the iterator is not computed. Where the model is a context's (a base with
    the adapter off), the iterator must be used up inside it.

    Args:
        language_model: The model.
        tokenizer: Its tokenizer.
        prompts: Token ids, from `encode_opening`; too long ones lose their beginning.
        decoding: How to choose.
        context_length: Longest input with continuation, in tokens.
        seed: Public.
        tokens_per_batch: Bounds the cache: prompts and continuations of a batch together.
        is_finished: Whether a continuation so far needs no further token; None: only the end token
            finishes it.
        advance: Called with the number of texts of each finished batch.

    Raises:
        InvalidParameterError: If a number is out of range, or a prompt is empty.
        PrecisionError: If the model gives NaN.
    """
    require_integer("seed", seed, 0)
    require_integer("context_length", context_length, decoding.max_new_tokens + 1)
    if not all(len(prompt) for prompt in prompts):
        raise InvalidParameterError("prompts must have at least one token each.")
    room = context_length - decoding.max_new_tokens
    kept = [list(prompt[-room:]) for prompt in prompts]
    batches = plan_batches(
        [len(prompt) + decoding.max_new_tokens for prompt in kept],
        token_budget=tokens_per_batch,
        max_records=_MOST_TEXTS_AT_ONCE,
    )
    for batch in batches:
        rows = _continue(
            language_model,
            _end_tokens(language_model, tokenizer),
            [kept[index] for index in batch],
            decoding,
            generators=[_generator(seed, index) for index in batch],
            stopper=_Stopper(tokenizer, is_finished, len(batch)),
        )
        texts = tokenizer.batch_decode(
            rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        advance(len(batch))
        yield from zip(batch, texts, strict=True)


class _Chooser:
    """Makes the likeliest token of a step the chosen one; called as transformers' processors."""

    def __init__(self, decoding: Decoding, generators: Sequence[torch.Generator]) -> None:
        self._decoding = decoding
        self._generators = generators

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - the interface
        """Returns scores whose maximum is the next token, shape (batch_size, vocabulary)."""
        if torch.isnan(scores).any():
            raise PrecisionError("the model gives NaN, so that it cannot write. Check its weights.")
        if self._decoding.temperature == 0:
            return scores
        scores = keep_likeliest(
            scores.float() / self._decoding.temperature, self._decoding.top_k, self._decoding.top_p
        )
        tiny = torch.finfo(torch.float32).tiny
        noise = torch.stack(  # on the CPU, so that every device draws the same
            [torch.empty(scores.shape[1]).exponential_(generator=g) for g in self._generators]
        )
        return scores - noise.clamp_min(tiny).log().to(scores.device)


class _Stopper:
    """Finishes texts before their end token; called as transformers' stopping criteria."""

    def __init__(
        self, tokenizer: Any, is_finished: Callable[[str], bool] | None, num_texts: int
    ) -> None:
        self._tokenizer = tokenizer
        self._is_finished = is_finished
        self._width: int | None = None
        self.lengths: list[int | None] = [None] * num_texts  # in new tokens; None: not finished

    def __call__(
        self,
        input_ids: torch.Tensor,
        scores: torch.Tensor,  # noqa: ARG002 - the interface
        **_: Any,
    ) -> torch.Tensor:
        """Returns which texts are finished, shape (batch_size,)."""
        if self._width is None:
            self._width = input_ids.shape[1] - 1  # the first call comes after the first token
        if self._is_finished is not None:
            going = [row for row, length in enumerate(self.lengths) if length is None]
            written = input_ids[:, self._width :].tolist()  # once: a device waits each time
            texts = self._tokenizer.batch_decode(
                [written[row] for row in going],
                clean_up_tokenization_spaces=False,
            )
            for row, text in zip(going, texts, strict=True):
                if self._is_finished(text):
                    self.lengths[row] = input_ids.shape[1] - self._width
        is_done = [length is not None for length in self.lengths]
        return torch.tensor(is_done, device=input_ids.device)


def keep_likeliest(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Returns the logits with all but the likeliest tokens at minus infinity.

    Args:
        logits: Shape (batch_size, vocabulary).
        top_k: How many stay, more where several are equally likely; 0 for all.
        top_p: Of these, those needed to reach this probability stay; at least one.
    """
    if 0 < top_k < logits.shape[1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1.0:
        ordered, places = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities  # of all that are likelier
        is_dropped = torch.zeros_like(logits, dtype=torch.bool)
        is_dropped.scatter_(1, places, before >= top_p)
        logits = logits.masked_fill(is_dropped, -torch.inf)
    return logits


def _continue(
    model: LanguageModel,
    end_tokens: Sequence[int],
    prompts: Sequence[list[int]],
    decoding: Decoding,
    *,
    generators: Sequence[torch.Generator],
    stopper: _Stopper,
) -> list[list[int]]:
    """Returns the tokens after each prompt, up to the end token or where it is finished."""
    width = max(map(len, prompts))
    shared = _num_shared(prompts)
    input_ids = torch.full((len(prompts), width), model.pad_token_id)
    mask = torch.zeros_like(input_ids)
    with torch.no_grad(), _plain_settings(model, end_tokens, decoding.max_new_tokens):
        cache = _read_once(model, prompts[0][:shared], len(prompts)) if shared else None
        kept = 0 if cache is None else shared
        # on the left, after what is shared: generation continues at the right end
        for row, prompt in enumerate(prompts):
            start = width - len(prompt) + kept
            input_ids[row, :kept] = torch.tensor(prompt[:kept])
            input_ids[row, start:] = torch.tensor(prompt[kept:])
            mask[row, :kept] = mask[row, start:] = 1
        output = model.causal_lm.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            past_key_values=cache,
            logits_processor=[_Chooser(decoding, generators)],
            stopping_criteria=[stopper],
        )
    rows = [row[:end] for row, end in zip(output[:, width:].tolist(), stopper.lengths, strict=True)]
    ends = [next((i for i, t in enumerate(row) if t in end_tokens), len(row)) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


def _num_shared(prompts: Sequence[list[int]]) -> int:
    """Returns how many tokens all prompts begin with, 0 where it is not worth while.

    At least one token of each prompt is left: its scores are needed.
    """
    first, last = min(prompts), max(prompts)  # in the order of dictionaries: most different
    shared = min(common_prefix(first, last), min(map(len, prompts)) - 1)
    return shared if len(prompts) > 1 and shared >= _FEWEST_SHARED else 0


def _read_once(model: LanguageModel, prefix: list[int], num_texts: int) -> Any:
    """Returns a cache of tokens that all texts begin with, or None where there is none.

    Sliding windows would count the padding that comes to stand behind these tokens, and recurrent
    states cannot skip it: only models whose every layer attends to all tokens.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache(config=model.causal_lm.config)
    if not all(type(layer) is DynamicLayer for layer in cache.layers):
        return None
    input_ids = torch.tensor([prefix], device=model.device)
    model.causal_lm.get_decoder()(input_ids=input_ids, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(num_texts)
    return cache


@contextmanager
def _plain_settings(
    model: LanguageModel, end_tokens: Sequence[int], max_new_tokens: int
) -> Iterator[None]:
    """Hides the model's own settings for a while: its temperature or repetition penalty."""
    from transformers import GenerationConfig

    stored = model.causal_lm.generation_config
    model.causal_lm.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        pad_token_id=model.pad_token_id,
        eos_token_id=list(end_tokens) or None,
    )
    try:
        yield
    finally:
        model.causal_lm.generation_config = stored


def _end_tokens(model: LanguageModel, tokenizer: Any) -> list[int]:
    """Returns the tokens after which a text is finished."""
    own = getattr(model.causal_lm.generation_config, "eos_token_id", None)
    tokens = own if isinstance(own, list) else [own]
    return sorted({int(t) for t in [*tokens, tokenizer.eos_token_id] if t is not None})


def _generator(seed: int, index: int) -> torch.Generator:
    """Returns the random numbers of one text."""
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)
