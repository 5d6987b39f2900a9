"""General texts by the model itself: what it would be asked, and what it answers.

A model that is tuned on one task forgets others. Held to its own distribution on such texts, it
forgets less; nobody has to find data for it, and nothing but the public base is in them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sordino.access.prompts import apply_template, find_special_token
from sordino.core.checks import require_integer
from sordino.core.errors import InvalidDataError
from sordino.data._tokens import start_tokens, tokenize
from sordino.gradients.generation import (
    Decoding,
    encode_opening,
    generate_texts,
    ignore_progress,
)
from sordino.gradients.objectives import LanguageModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sordino.models import LoadedModel

_MARK = "sordino-general-text"
_QUESTION = Decoding(max_new_tokens=64, temperature=0.8, top_k=0, top_p=0.95)
_ANSWER = Decoding(max_new_tokens=64, temperature=0.8, top_k=0, top_p=0.95)
_OPENING_WORDS = 4  # of a text without chat template: what stands for the prompt


def write_general_texts(
    loaded_model: LoadedModel,
    count: int,
    *,
    seed: int,
    tokens_per_batch: int = 16_384,
    advance: Callable[[int], None] = ignore_progress,
) -> list[dict[str, str]]:
    """Returns prompts and completions that a model wrote itself, as records for `sordino tune`.

    With a chat template the model goes on after the mark of a user's message, then answers what it
    wrote. Without one it writes texts, whose first words are the prompt. What it left empty is
    dropped, so there may be fewer.

    Args:
        loaded_model: The base.
        count: How many to write; at least 1.
        seed: Public: the same one gives the same texts.
        tokens_per_batch: Bounds the memory.
        advance: Called with the number of texts finished; twice for each.

    Raises:
        InvalidDataError: If nothing is left.

    Source:
        arXiv:2406.08464 (Magpie: instructions from the mark alone).
    """
    require_integer("number of general texts", count, 1)
    tokenizer = loaded_model.tokenizer

    def write(openings: Sequence[Sequence[int]], decoding: Decoding, seed: int) -> list[str]:
        longest = min(decoding.max_new_tokens, loaded_model.context_length // 2)
        texts = dict(
            generate_texts(
                LanguageModel(loaded_model.model, tokenizer.pad_token_id),
                tokenizer,
                openings,
                replace(decoding, max_new_tokens=longest),
                context_length=loaded_model.context_length,
                seed=seed,
                tokens_per_batch=tokens_per_batch,
                advance=advance,
            )
        )
        return [texts[number].strip() for number in range(len(openings))]

    if getattr(tokenizer, "chat_template", None):
        before, mark, _ = _render(tokenizer, _MARK).partition(_MARK)
        if not (before and mark):
            raise InvalidDataError(
                "the chat template must mark a user's message and show it as it is, so that the "
                "model can go on after the mark. Use --retain-weight 0."
            )
        asked = write([_encode(tokenizer, before)] * count, _QUESTION, seed)
        prompts = [_render(tokenizer, text) for text in asked if _is_plain(text, tokenizer)]
        answers = write([_encode(tokenizer, prompt) for prompt in prompts], _ANSWER, seed + 1)
        pairs = list(zip(prompts, answers, strict=True))
    else:
        texts = write([encode_opening(tokenizer, "")] * count, _ANSWER, seed)
        pairs = [_divide(text) for text in texts]
    start = tokenizer.bos_token if start_tokens(tokenizer) else ""
    records = [
        {"prompt": prompt.removeprefix(start), "completion": answer}
        for prompt, answer in pairs
        if prompt and _is_plain(answer, tokenizer)
    ]
    if not records:
        raise InvalidDataError(
            f"the model must write texts by itself to be held to them, and wrote none in {count} "
            "tries. Use --retain-weight 0."
        )
    return records


def _render(tokenizer: Any, text: str) -> str:
    """Returns a user's message in the template's form, up to where the assistant begins."""
    return apply_template(tokenizer, [{"role": "user", "content": text}])


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Returns the tokens of a text that holds its start token, if there is one, as text."""
    return tokenize(tokenizer, [text])[0]


def _is_plain(text: str, tokenizer: Any) -> bool:
    """Returns whether a text is not empty and spells no special token."""
    return bool(text) and find_special_token(text, tokenizer) is None


def _divide(text: str) -> tuple[str, str]:
    """Returns the first words of a text, and the rest."""
    words = text.split(" ")
    return " ".join(words[:_OPENING_WORDS]), " ".join(words[_OPENING_WORDS:])
