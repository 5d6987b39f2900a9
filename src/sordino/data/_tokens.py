"""Token lists: batched tokenization, and cutting a text that is longer than the context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sordino.core.errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from sordino.data.pool import Record

_MOST_LINES = 5


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Returns the token ids of each text, without special tokens around it."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    return [list(ids) for ids in encoded["input_ids"]]


def start_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the tokens that the tokenizer puts before every text: its start token, or none."""
    first = tokenizer("a")["input_ids"][:1]
    return [int(first[0])] if first and first[0] == tokenizer.bos_token_id else []


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Returns how many tokens a and b share at the beginning."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def common_suffix(a: Sequence[int], b: Sequence[int]) -> int:
    """Returns how many tokens a and b share at the end."""
    return common_prefix(a[::-1], b[::-1])


def fit_to_context(
    rows: Sequence[tuple[Record, list[int], int, int]], max_length: int, *, truncate: bool
) -> list[list[int]]:
    """Returns the token lists, each at most `max_length` long.

    Args:
        rows: For each record its tokens, and the span [start, stop) that truncation may cut.
        max_length: Longest list allowed.
        truncate: Whether to cut; at least one token of the span stays.

    Raises:
        InvalidDataError: If a list is too long and `truncate` is off, or what must stay is.
    """
    too_long = [(record.line, len(ids)) for record, ids, _, _ in rows if len(ids) > max_length]
    if too_long and not truncate:
        raise InvalidDataError(
            f"{len(too_long)} of {len(rows)} records are longer than {max_length} tokens: "
            f"{_list_lines(too_long)}. Shorten them, or give --truncate (truncate=True) to cut "
            "the beginning of their texts."
        )
    kept = [
        (record.line, len(ids) - (stop - start) + 1)
        for record, ids, start, stop in rows
        if len(ids) > max_length
    ]
    hopeless = [(line, length) for line, length in kept if length > max_length]
    if hopeless:
        raise InvalidDataError(
            f"{len(hopeless)} of {len(rows)} records are longer than {max_length} tokens even "
            "with all but one token of their text cut: "
            f"{_list_lines(hopeless)}. Shorten the template or the completions."
        )
    return [ids[:start] + ids[start + max(0, len(ids) - max_length) :] for _, ids, start, _ in rows]


def _list_lines(lengths: Sequence[tuple[int, int]]) -> str:
    """Returns the first few lines with their lengths."""
    shown = [f"line {line} ({length} tokens)" for line, length in lengths[:_MOST_LINES]]
    return ", ".join(shown) + (", ..." if len(lengths) > _MOST_LINES else "")
