"""Prompts of questions: the tokenizer's own chat template where there is one, else plain text.

The prompt ends where the model's answer begins. Nothing of the right answer is in it. A tokenizer's
special tokens never come from a question's text: an end-of-turn mark in somebody's record would let
the record speak as the user or as the system.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sordino.core.errors import InvalidDataError

if TYPE_CHECKING:
    from sordino.access.questions import Question

OPEN_THOUGHT = re.compile(r"<think(?:ing)?>(?!.*</think(?:ing)?>)", re.DOTALL | re.IGNORECASE)
_PLAIN = "{system}\n\nQuestion: {prompt}\nAnswer:"
_MOST_SHOWN = 40


def build_messages(question: Question) -> list[dict[str, str]]:
    """Returns a question as messages of a chat: the rules with the records, and what is asked."""
    return [
        {"role": "system", "content": question.system},
        {"role": "user", "content": question.prompt},
    ]


def build_prompt(question: Question, tokenizer: Any) -> str:
    """Returns the text that a model continues with its answer.

    The chat template's special tokens are in it as text, start token included: tokenize it with
    `add_special_tokens=False`, or use `encode_prompt`.

    Args:
        question: The question.
        tokenizer: Its chat template is used; without one the prompt is plain text.

    Raises:
        InvalidDataError: If a special token of the tokenizer stands in the question's text, or the
            chat template takes neither a system message nor a user message alone.
    """
    messages = build_messages(question)
    for message in messages:
        _require_plain(message["content"], tokenizer, question.id)
    if not getattr(tokenizer, "chat_template", None):
        text = _PLAIN.format(system=question.system, prompt=question.prompt)
        return f"{tokenizer.bos_token or ''}{text}" if _has_start(tokenizer) else text
    try:
        return apply_template(tokenizer, messages)
    except Exception:  # noqa: BLE001 - templates of models without a system role raise anything
        content = f"{question.system}\n\n{question.prompt}"
    try:
        return apply_template(tokenizer, [{"role": "user", "content": content}])
    except Exception as error:  # noqa: BLE001 - as above
        raise InvalidDataError(
            "the tokenizer's chat template must take a user message, and fails with one: "
            f"{type(error).__name__}."
        ) from None


def encode_prompt(question: Question, tokenizer: Any) -> list[int]:
    """Returns the tokens of `build_prompt`."""
    encoded = tokenizer(build_prompt(question, tokenizer), add_special_tokens=False, verbose=False)
    return [int(token) for token in encoded["input_ids"]]


def apply_template(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """Returns messages in the chat template's form, up to where the assistant begins."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def opens_thought(tokenizer: Any) -> bool:
    """Returns whether the chat template ends with an open <think>, as those of some models do."""
    if not getattr(tokenizer, "chat_template", None):
        return False
    try:
        text = apply_template(tokenizer, [{"role": "user", "content": ""}])
    except Exception:  # noqa: BLE001 - templates raise anything; `build_prompt` tells of it
        return False
    return OPEN_THOUGHT.search(text) is not None


def find_special_token(text: str, tokenizer: Any) -> str | None:
    """Returns a special token of the tokenizer that a text spells; None if there is none."""
    return next((token for token in tokenizer.all_special_tokens if token in text), None)


def _has_start(tokenizer: Any) -> bool:
    """Returns whether the tokenizer puts its start token before every text."""
    first = tokenizer("a")["input_ids"][:1]
    return bool(first) and first[0] == tokenizer.bos_token_id


def _require_plain(text: str, tokenizer: Any, name: str) -> None:
    """Raises if a text holds a special token."""
    found = find_special_token(text, tokenizer)
    if found is not None:
        raise InvalidDataError(
            f"question {name}: its text must not hold the tokenizer's special token "
            f"{found[:_MOST_SHOWN]!r}, which would end a message. Take it out of the table."
        )
