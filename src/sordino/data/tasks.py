"""Tasks: how a record becomes tokens, and which tokens are scored.

Classification scores one word after a template; completion scores every token of the completion;
generation compares what the model writes with references; prompts are for what a model writes by
itself. All of them only build token lists: the padding token is never looked at, since it may equal
a real one.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sordino.core.checks import require_integer
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.data._rows import looks_like_a_name
from sordino.data._tokens import (
    common_prefix,
    common_suffix,
    fit_to_context,
    start_tokens,
    tokenize,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from sordino.data.pool import Record

DEFAULT_TEMPLATE = "{text} It was"
_SLOT = "{text}"
_NEGATIVE, _POSITIVE = "terrible", "great"
_MOST_LABELS = 20


@dataclass(frozen=True, slots=True)
class Example:
    """The tokens of one record.

    Args:
        input_ids: All tokens, special ones included, without padding; at least one.
        target: Classification: number of the right label in `ClassificationTask.labels`.
        num_prompt_tokens: Completion: how many of `input_ids` are not scored.
        references: Generation: acceptable answers.
        forbidden: Completion: tokens whose probability may be penalized, ascending.
    """

    input_ids: list[int]
    target: int | None = None
    num_prompt_tokens: int | None = None
    references: tuple[str, ...] = ()
    forbidden: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ClassificationTask:
    """The model reads the text in a template, and the word it finds likeliest next is its label.

    Args:
        verbalizers: The word for each label, such as {"0": "terrible", "1": "great"}. A space goes
            before the word, and only its first token is scored.
        template: Contains {text} once and does not end in a space.

    Raises:
        InvalidParameterError: If there are fewer than two labels, or the template is not as above.
    """

    verbalizers: Mapping[str, str]
    template: str = DEFAULT_TEMPLATE

    def __post_init__(self) -> None:
        words = {str(label): word.strip() for label, word in self.verbalizers.items()}
        if len(words) < 2 or not all(words.values()):
            raise InvalidParameterError(
                f"verbalizers must give a word for each of at least two labels, got {words}."
            )
        if self.template.count(_SLOT) != 1 or self.template != self.template.rstrip():
            raise InvalidParameterError(
                f"template must contain {_SLOT} exactly once and not end in a space (one is added "
                f"before the word), got {self.template!r}."
            )
        object.__setattr__(self, "verbalizers", words)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, sorted; an example's target is a position in it."""
        return tuple(sorted(self.verbalizers))

    def label_token_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Returns the first token of each label's word, in the order of `labels`.

        Raises:
            InvalidParameterError: If two words begin with the same token, or one is unknown.
        """
        words = [self.verbalizers[label] for label in self.labels]
        ending = self.template.replace(_SLOT, "a")
        base, *joined = tokenize(tokenizer, [ending, *(f"{ending} {word}" for word in words)])
        alone = tokenize(tokenizer, [f" {word}" for word in words])
        tokens = []
        for with_word, word_only in zip(joined, alone, strict=True):
            # some tokenizers put a token for the space before a word that stands alone
            is_continued = with_word[: len(base)] == base and len(with_word) > len(base)
            tokens.append(with_word[len(base)] if is_continued else word_only[0])
        if len(set(tokens)) < len(tokens) or tokenizer.unk_token_id in tokens:
            raise InvalidParameterError(
                f"verbalizers must be words with different and known first tokens, got "
                f"{', '.join(words)} with the first tokens "
                f"{', '.join(map(repr, tokenizer.convert_ids_to_tokens(tokens)))}. Choose others "
                "with --verbalizer LABEL=WORD."
            )
        return tokens

    def encode(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        truncate: bool = False,
    ) -> list[Example]:
        """Returns one example per record: start token, if the tokenizer has one, and template.

        Truncation cuts the beginning of the text; the template stays whole.

        Raises:
            InvalidDataError: If a record has no label or an unknown one, or is too long.
        """
        require_integer("max_length", max_length, 2)
        targets = [self._find_target(record) for record in records]
        head, tail = self.template.split(_SLOT)
        start = start_tokens(tokenizer)
        head_ids, tail_ids = tokenize(tokenizer, [head, tail])
        rows = []
        texts = [head + record.prompt + tail for record in records]
        for record, ids in zip(records, tokenize(tokenizer, texts), strict=True):
            first = len(start) + common_prefix(head_ids, ids)
            last = len(start) + len(ids) - common_suffix(tail_ids, ids)
            rows.append((record, start + ids, first, last))
        fitted = fit_to_context(rows, max_length, truncate=truncate)
        return [Example(ids, target) for ids, target in zip(fitted, targets, strict=True)]

    def _find_target(self, record: Record) -> int:
        """Returns the number of a record's label."""
        if record.label is None:
            raise InvalidDataError(
                f"line {record.line}: classification needs the columns text and label; this is a "
                "completion record."
            )
        if record.label not in self.verbalizers:
            shown = f" {record.label!r}" if looks_like_a_name(record.label) else ""
            raise InvalidDataError(
                f"line {record.line}: unknown label{shown}. Known labels: {', '.join(self.labels)}."
                " Give a word for each label with --verbalizer LABEL=WORD."
            )
        return self.labels.index(record.label)


@dataclass(frozen=True, slots=True)
class CompletionTask:
    """The model learns to write the first reference, and then to end, after the prompt.

    A space goes between the two, unless the prompt ends or the completion begins with white space.
    Forbidden texts become tokens: those with a letter or digit, of the text alone and after a
    space, that the completion itself does not use.
    """

    def encode(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        truncate: bool = False,
    ) -> list[Example]:
        """Returns one example per record: start token, prompt, completion and end token.

        Truncation cuts the beginning of the prompt; the completion stays whole.

        Raises:
            InvalidDataError: If a record has no completion, or is too long.
            InvalidParameterError: If the tokenizer has no end token.
        """
        require_integer("max_length", max_length, 2)
        if tokenizer.eos_token_id is None:
            raise InvalidParameterError("tokenizer must have an end token to learn completions.")
        _require_references(records)
        start = start_tokens(tokenizer)
        endings = [_separator(record) + record.references[0] for record in records]
        prompts = tokenize(tokenizer, [record.prompt for record in records])
        joint = tokenize(
            tokenizer, [r.prompt + end for r, end in zip(records, endings, strict=True)]
        )
        alone = tokenize(tokenizer, endings)
        rows = []
        num_scored = []
        for record, prompt, both, ending in zip(records, prompts, joint, alone, strict=True):
            # the prompt must be tokenized as it will be when the model is used: alone
            is_continued = both[: len(prompt)] == prompt and len(both) > len(prompt)
            scored = (both[len(prompt) :] if is_continued else ending) + [tokenizer.eos_token_id]
            unscored = start + prompt
            _require_tokens(record, unscored)
            rows.append((record, unscored + scored, len(start), len(unscored)))
            num_scored.append(len(scored))
        fitted = fit_to_context(rows, max_length, truncate=truncate)
        examples = []
        for record, ids, count in zip(records, fitted, num_scored, strict=True):
            start_of_answer = len(ids) - count
            forbidden = _forbidden_tokens(record, tokenizer, ids[start_of_answer:])
            examples.append(Example(ids, num_prompt_tokens=start_of_answer, forbidden=forbidden))
        return examples


@dataclass(frozen=True, slots=True)
class PromptTask:
    """The model writes something after the prompt; nothing but the prompt is read.

    Args:
        max_new_tokens: Longest continuation; room for it is kept in the context.
    """

    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        require_integer("max_new_tokens", self.max_new_tokens, 1)

    def encode(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        truncate: bool = False,
    ) -> list[Example]:
        """Returns one example per record: start token and prompt.

        Raises:
            InvalidDataError: If a prompt leaves no room for a continuation.
        """
        require_integer("max_length", max_length, self.max_new_tokens + 1)
        start = start_tokens(tokenizer)
        rows = []
        prompts = tokenize(tokenizer, [record.prompt for record in records])
        for record, ids in zip(records, prompts, strict=True):
            _require_tokens(record, start + ids)
            rows.append((record, start + ids, len(start), len(start) + len(ids)))
        fitted = fit_to_context(rows, max_length - self.max_new_tokens, truncate=truncate)
        return [Example(ids) for ids in fitted]


@dataclass(frozen=True, slots=True)
class GenerationTask:
    """The model writes an answer after the prompt, one likeliest token at a time.

    Args:
        max_new_tokens: Longest answer; room for it is kept in the context.
    """

    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        require_integer("max_new_tokens", self.max_new_tokens, 1)

    def encode(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        truncate: bool = False,
    ) -> list[Example]:
        """Returns one example per record: start token and prompt, with the references beside it.

        Raises:
            InvalidDataError: If a record has no references, or leaves no room for an answer.
        """
        _require_references(records)
        prompts = PromptTask(self.max_new_tokens)
        examples = prompts.encode(records, tokenizer, max_length, truncate=truncate)
        return [
            replace(example, references=record.references)
            for example, record in zip(examples, records, strict=True)
        ]


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Returns the best F1 of shared words of a prediction and a reference, in [0, 1].

    Words are compared in lower case, without punctuation and the articles a, an and the. Where one
    side has no words left, the score is 1 if neither has, else 0.

    Source:
        The evaluation script of SQuAD v1.1 and v2.0 (arXiv:1606.05250, arXiv:1806.03822).

    Example:
        >>> round(token_f1("The cat sat.", ["a cat sat down", "dog"]), 3)
        0.8
    """
    if not references:
        raise InvalidParameterError("references must hold at least one text, got none.")
    return max(_word_f1(_words(prediction), _words(reference)) for reference in references)


def parse_verbalizers(pairs: Iterable[str]) -> dict[str, str]:
    """Returns {"0": "terrible", "1": "great"} for ["0=terrible", "1=great"].

    Raises:
        InvalidParameterError: If a pair is not LABEL=WORD or a label occurs twice.
    """
    words: dict[str, str] = {}
    for pair in pairs:
        label, sign, word = (part.strip() for part in pair.partition("="))
        if not (label and sign and word):
            raise InvalidParameterError(
                f"verbalizer must be LABEL=WORD, such as 1=great; got {pair!r}."
            )
        if label in words:
            raise InvalidParameterError(f"verbalizer must name each label once, got {label} twice.")
        words[label] = word
    return words


def default_verbalizers(labels: Iterable[str]) -> dict[str, str]:
    """Returns words for the labels 0 and 1, or negative and positive.

    Raises:
        InvalidParameterError: If the labels are others; tells how to give words.
    """
    found = sorted(set(labels))
    if found in (["0", "1"], ["negative", "positive"]):
        return dict(zip(found, (_NEGATIVE, _POSITIVE), strict=True))
    shown = [label for label in found if looks_like_a_name(label)][:_MOST_LABELS]
    more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    raise InvalidParameterError(
        "labels other than 0 and 1, or negative and positive, need a word each: give --verbalizer "
        f"LABEL=WORD once per label. Labels found: {', '.join(shown) or 'none'}{more}."
    )


def _require_references(records: Sequence[Record]) -> None:
    """Raises if a record is not a completion."""
    for record in records:
        if not record.references:
            raise InvalidDataError(
                f"line {record.line}: this task needs the columns prompt and completion; this is a "
                "classification record."
            )


def _forbidden_tokens(
    record: Record, tokenizer: PreTrainedTokenizerBase, scored: list[int]
) -> tuple[int, ...]:
    """Returns the tokens of a record's forbidden texts that its completion does not need."""
    if not record.forbidden:
        return ()
    texts = [*record.forbidden, *(f" {text}" for text in record.forbidden)]
    found = {token for ids in tokenize(tokenizer, texts) for token in ids} - {*scored}
    return tuple(
        token for token in sorted(found) if any(map(str.isalnum, tokenizer.decode([token])))
    )


def _require_tokens(record: Record, ids: list[int]) -> None:
    """Raises if the model would have nothing to read before its first answer token."""
    if not ids:
        raise InvalidDataError(f"line {record.line}: the tokenizer makes no token of the prompt.")


def _separator(record: Record) -> str:
    """Returns the space between prompt and completion, if one is needed."""
    touches = record.prompt[-1].isspace() or record.references[0][0].isspace()
    return "" if touches else " "


def _words(text: str) -> list[str]:
    """Returns the words of a text as SQuAD's script normalizes them."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _word_f1(predicted: list[str], reference: list[str]) -> float:
    """Returns the F1 of two bags of words."""
    if not predicted or not reference:
        return float(predicted == reference)
    num_shared = sum((Counter(predicted) & Counter(reference)).values())
    return 2.0 * num_shared / (len(predicted) + len(reference))
