"""Records as texts to score: the right tokens, cut as tuning cuts them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sordino.attacks.texts import ScoredText, encode_texts
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.data.pool import Record
from sordino.data.tasks import ClassificationTask, CompletionTask
from sordino.models import load_model

if TYPE_CHECKING:
    from pathlib import Path

WORDS = {"0": "terrible", "1": "great"}
CLASSIFY = {"template": "{text} It was", "verbalizers": WORDS}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_model(str(tiny_model)).tokenizer


def classified(label: str = "1", text: str = "the film is very fresh .", line: int = 1) -> Record:
    return Record(text, label, (), line)


def completed(prompt: str = "the film is", completion: str = "very fresh .") -> Record:
    return Record(prompt, None, (completion, "lovely"), 7)


def prompted(text: str = "the film is very fresh .") -> Record:
    return Record(text, None, (), 3)


def test_classification_scores_the_label_among_the_label_words(tokenizer: Any) -> None:
    """The tokens before it are those that tuning saw; the words are those that tuning compared."""
    records = [classified("1"), classified("0")]
    task = ClassificationTask(WORDS)
    stored = {"kind": "classification", "template": task.template, "verbalizers": WORDS}
    for found in (
        encode_texts(records, tokenizer, 48, task=None),
        encode_texts(records, tokenizer, 48, task=stored),
    ):
        words = task.label_token_ids(tokenizer)
        for text, example in zip(found, task.encode(records, tokenizer, 48), strict=True):
            assert text.input_ids[:-1] == example.input_ids
            assert text.first_scored == len(example.input_ids)
            assert text.scored_ids == [words[example.target]]
            assert text.word_ids == tuple(words)
        assert [text.text for text in found] == [" great", " terrible"]


def test_classification_of_one_label_only(tokenizer: Any) -> None:
    """A file of non-members may hold one label; both words stay in the comparison."""
    (text,) = encode_texts([classified("1")], tokenizer, 48, task=None)
    assert len(text.word_ids or ()) == 2


def test_long_classification_loses_its_beginning(tokenizer: Any) -> None:
    """The template and the label stay, as in tuning."""
    whole, cut = (
        encode_texts([classified(text="the film is very fresh . " * n)], tokenizer, 20, task=None)[
            0
        ]
        for n in (2, 9)
    )
    assert len(cut.input_ids) == 20
    assert cut.input_ids[-5:] == whole.input_ids[-5:]


def test_completion_scores_what_tuning_learned(tokenizer: Any) -> None:
    """The first reference and the end token; also for runs that scored generations."""
    (example,) = CompletionTask().encode([completed()], tokenizer, 48)
    for task in (None, {"kind": "completion"}, {"kind": "token-f1", "max_new_tokens": 4}):
        (text,) = encode_texts([completed()], tokenizer, 48, task=task)
        assert text.input_ids == example.input_ids
        assert text.first_scored == example.num_prompt_tokens
        assert text.scored_ids[-1] == tokenizer.eos_token_id
        assert text.text == "very fresh ."
        assert text.word_ids is None


def test_long_completion_keeps_its_scored_part_first(tokenizer: Any) -> None:
    """The prompt's beginning goes first, then the completion's end; zlib sees what is scored."""
    record = completed("the plot of this film is", "very fresh .")
    (whole,) = encode_texts([record], tokenizer, 48, task=None)
    (shorter,) = encode_texts([record], tokenizer, 7, task=None)
    assert shorter.input_ids == whole.input_ids[-7:]
    assert shorter.scored_ids == whole.scored_ids
    assert shorter.text == whole.text
    (shortest,) = encode_texts([record], tokenizer, 3, task=None)
    assert shortest.input_ids == whole.input_ids[whole.first_scored - 1 :][:3]
    assert shortest.text.split() == ["very", "fresh"]


def test_prompt_scores_all_but_the_first_token(tokenizer: Any) -> None:
    """A distilled run's records are prompts; only the very first token has no prediction."""
    for task in (None, {"kind": "distillation", "max_new_tokens": 4}):
        (text,) = encode_texts([prompted()], tokenizer, 48, task=task)
        assert (len(text.input_ids), text.first_scored) == (6, 1)
        assert text.text == "the film is very fresh ."
    (cut,) = encode_texts([prompted()], tokenizer, 4, task=None)
    assert cut.input_ids == text.input_ids[:4]
    assert cut.text == "the film is very"


def test_start_token_is_never_scored() -> None:
    """With a start token the first word has a prediction, and is scored."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    start = "<s>"
    backend = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2}, unk_token=start))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=start, eos_token=start, unk_token=start
    )
    (text,) = encode_texts([prompted("a b")], tokenizer, 8, task=None)
    assert (text.input_ids, text.first_scored) == ([0, 1, 2], 1)
    (text,) = encode_texts([completed("a a a", "b b")], tokenizer, 4, task=None)
    assert (text.input_ids, text.first_scored) == ([0, 2, 2, 0], 1)  # start, b, b, end


def test_nothing_to_score_names_the_line(tokenizer: Any) -> None:
    with pytest.raises(InvalidDataError, match="line 3"):
        encode_texts([prompted("film")], tokenizer, 48, task=None)
    with pytest.raises(InvalidDataError, match="line 7"):
        encode_texts([completed()], tokenizer, 48, task={"kind": "classification"} | CLASSIFY)
    with pytest.raises(InvalidDataError, match="line 1"):
        encode_texts([classified()], tokenizer, 48, task={"kind": "completion"})


def test_unknown_task_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InvalidParameterError, match="task must be one of"):
        encode_texts([prompted()], tokenizer, 48, task={"kind": "chess"})
    with pytest.raises(InvalidParameterError, match="context_length"):
        encode_texts([prompted()], tokenizer, 1, task=None)
    with pytest.raises(InvalidParameterError, match="need a word each"):
        encode_texts([classified("sport")], tokenizer, 48, task=None)
    assert encode_texts([], tokenizer, 48, task=None) == []


@pytest.mark.parametrize(
    ("ids", "first", "words"),
    [
        ([1, 2], 0, None),  # the first token has no prediction
        ([1, 2], 2, None),  # nothing is scored
        ([1], 1, None),
        ([1, 2], 1, (3, 4)),  # the scored token is not one of the words
        ([1, 2], 1, (2,)),
        ([1, 2], 1, (2, 2)),
    ],
)
def test_scored_text_refuses(ids: list[int], first: int, words: tuple[int, ...] | None) -> None:
    with pytest.raises(InvalidParameterError):
        ScoredText(ids, first, "", words)
