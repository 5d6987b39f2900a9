"""Texts as attacks score them: the tokens of a record, and which of them are scored."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from sordino.core.checks import require_integer, require_one_of
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.data._tokens import start_tokens, tokenize
from sordino.data.record_file import labels_of
from sordino.data.tasks import (
    DEFAULT_TEMPLATE,
    ClassificationTask,
    CompletionTask,
    default_verbalizers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from sordino.data.pool import Record
    from sordino.data.record_file import Records

    Encode = Callable[[Sequence[Record]], "list[ScoredText]"]

_SCORED_AS = {  # a run's task: the kind of record that it learns from
    "classification": "classification",
    "completion": "completion",
    "token-f1": "completion",
    "distillation": "prompt",
}
_RECORDS_AT_ONCE = 512  # tokenized in one call
_LABEL_PAIRS = ({"0", "1"}, {"negative", "positive"})


@dataclass(frozen=True, slots=True)
class ScoredText:
    """One text under attack.

    Args:
        input_ids: All tokens, special ones included, without padding.
        first_scored: Tokens from this position on are scored; at least 1, since the first token of
            all has no prediction.
        text: The scored part as text: what zlib compresses.
        word_ids: Probabilities are renormalised over these tokens (a classification's label words);
            None: over the whole vocabulary.

    Raises:
        InvalidParameterError: If nothing is scored, or a scored token is not one of `word_ids`.
    """

    input_ids: list[int]
    first_scored: int
    text: str
    word_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        require_integer("first_scored", self.first_scored, 1, len(self.input_ids) - 1)
        words = self.word_ids
        if words is not None and not (
            len(set(words)) == len(words) >= 2 and set(self.scored_ids) <= set(words)
        ):
            raise InvalidParameterError(
                "word_ids must be at least two different tokens, the scored ones among them."
            )

    @property
    def scored_ids(self) -> list[int]:
        """The scored tokens, at least one."""
        return self.input_ids[self.first_scored :]


class EncodedTexts:
    """Records as texts to score, in their order, with the tokens that tuning saw.

    They are made when they are gone through, a few hundred at a time, every time anew: none is
    held.

    A classification scores the word of its label among the words of all labels; a completion scores
    its first reference and the end token; a prompt alone scores every token but its very first.

    What is longer than the context is cut as tuning cuts it: the beginning of the text to classify,
    or of the prompt, goes first. A prompt alone, and a completion that does not fit by itself, lose
    their end.

    Args:
        records: All of one kind.
        tokenizer: The model's.
        context_length: Longest input in tokens.
        task: What a run's ledger says under "task"; None goes by the columns of the first record,
            with the default template and words for the labels of all.

    Raises:
        InvalidDataError: If a record has nothing to score or is of another kind; names its line.
            Raised when the record is reached.
        InvalidParameterError: If the task is unknown, or labels need words.
    """

    def __init__(
        self,
        records: Records,
        tokenizer: PreTrainedTokenizerBase,
        context_length: int,
        *,
        task: Mapping[str, Any] | None,
    ) -> None:
        require_integer("context_length", context_length, 2)
        self._records = records
        self._encode = _choose_encoder(records, tokenizer, context_length, task)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[ScoredText]:
        for some in in_windows(self._records, _RECORDS_AT_ONCE):
            yield from self._encode(some)


def encode_texts(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    context_length: int,
    *,
    task: Mapping[str, Any] | None,
) -> list[ScoredText]:
    """Returns `EncodedTexts` of the same arguments, all at once."""
    return list(EncodedTexts(records, tokenizer, context_length, task=task))


def in_windows(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yields the items in lists of `size`, the last one with what is left.

    Example:
        >>> list(in_windows(range(5), 2))
        [[0, 1], [2, 3], [4]]
    """
    rest = iter(items)
    while window := list(islice(rest, size)):
        yield window


def _choose_encoder(
    records: Records,
    tokenizer: PreTrainedTokenizerBase,
    context_length: int,
    task: Mapping[str, Any] | None,
) -> Encode:
    """Returns what makes texts of some of the records; what concerns all is found out here."""
    if task is None:
        kind = next(map(_kind_of, records), "prompt")
    else:
        kind = _SCORED_AS[require_one_of("task", str(task.get("kind")), tuple(_SCORED_AS))]
    if kind == "completion":
        return lambda some: _encode_completions(some, tokenizer, context_length)
    if kind == "prompt":
        return lambda some: _encode_prompts(some, tokenizer, context_length)
    if task is None:
        settings = ClassificationTask(_default_words(labels_of(records)), DEFAULT_TEMPLATE)
    else:
        settings = ClassificationTask(task["verbalizers"], task["template"])
    word_ids = tuple(settings.label_token_ids(tokenizer))
    return lambda some: _encode_classification(some, tokenizer, context_length, settings, word_ids)


def _kind_of(record: Record) -> str:
    """Returns a record's kind, one of `data.pool.KINDS`."""
    if record.label is not None:
        return "classification"
    return "completion" if record.references else "prompt"


def _encode_classification(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    context_length: int,
    settings: ClassificationTask,
    word_ids: tuple[int, ...],
) -> list[ScoredText]:
    """Returns prompts in their template, each with the first token of its label's word."""
    examples = settings.encode(records, tokenizer, context_length - 1, truncate=True)
    texts = []
    for record, example in zip(records, examples, strict=True):
        ids, target = example.input_ids, example.target
        if not ids or target is None:
            raise InvalidDataError(f"line {record.line}: the tokenizer makes no token of the text.")
        word = settings.verbalizers[settings.labels[target]]
        texts.append(ScoredText([*ids, word_ids[target]], len(ids), f" {word}", word_ids))
    return texts


def _default_words(labels: Iterable[str]) -> dict[str, str]:
    """Returns the default words, also where a file holds only one of the two labels."""
    found = set(labels)
    return default_verbalizers(next((pair for pair in _LABEL_PAIRS if found <= pair), found))


def _encode_completions(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, context_length: int
) -> list[ScoredText]:
    """Returns prompts with their completions, of which every token is scored."""
    num_start = len(start_tokens(tokenizer))
    examples = CompletionTask().encode(records, tokenizer, sys.maxsize)
    texts = []
    for record, example in zip(records, examples, strict=True):
        ids, num_prompt = example.input_ids, example.num_prompt_tokens or 0
        excess = max(0, len(ids) - context_length)
        # of prompt and start token together, one stays: the model must read something
        removed = min(excess, max(num_prompt - max(num_start, 1), 0))
        kept = ids[:num_start] + ids[num_start + removed :]
        first = num_prompt - removed
        text = record.references[0]
        if len(kept) > context_length:
            kept = kept[:context_length]
            text = _decode(tokenizer, kept[first:])
        texts.append(ScoredText(kept, first, text))
    return texts


def _encode_prompts(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, context_length: int
) -> list[ScoredText]:
    """Returns prompts alone, of which every token but the very first is scored."""
    start = start_tokens(tokenizer)
    texts = []
    rows = tokenize(tokenizer, [record.prompt for record in records])
    for record, ids in zip(records, rows, strict=True):
        kept = (start + ids)[:context_length]
        if len(kept) < 2:
            raise InvalidDataError(
                f"line {record.line}: the tokenizer makes one token or none of the prompt, so "
                "nothing is predicted and nothing can be scored. Remove this record."
            )
        is_cut = len(kept) < len(start) + len(ids)
        text = _decode(tokenizer, kept) if is_cut else record.prompt
        texts.append(ScoredText(kept, 1, text))
    return texts


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Returns the text that is left of a longer one."""
    return str(tokenizer.decode(ids, skip_special_tokens=True))
