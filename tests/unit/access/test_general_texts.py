"""What a model writes by itself: a user's message and its answer, or a text cut in two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from helpers_access_models import write_access_model
from sordino.access import general_texts
from sordino.access.general_texts import write_general_texts
from sordino.access.generate import generate, read_questions
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.models import LoadedModel, load_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("general")
    folder = generate(output=place / "questions", seed=4, employees=60, questions=1).output
    return write_access_model(place / "model", read_questions(folder / "train"))


@pytest.fixture
def loaded(model: Path) -> LoadedModel:
    return load_model(str(model), dtype=torch.float32)


def script(patch: pytest.MonkeyPatch, *turns: list[str]) -> list[Sequence[Sequence[int]]]:
    """Lets a model write given texts, one list a turn; returns the openings it is shown."""
    seen: list[Sequence[Sequence[int]]] = []
    left = iter(turns)

    def write(_: Any, __: Any, prompts: Sequence[Sequence[int]], *___: Any, **____: Any) -> Any:
        seen.append(prompts)
        texts = next(left)
        assert len(texts) == len(prompts)
        order: Iterator[int] = reversed(range(len(texts)))  # batches come in an order of their own
        return ((number, texts[number]) for number in order)

    patch.setattr(general_texts, "generate_texts", write)
    return seen


def test_a_chat_model_asks_and_answers(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the mark of a user's message; the answer is to the prompt that it wrote."""
    asked, answers = ["  what is my age? ", "why", "who"], ["a song", "", "The hero. "]
    seen = script(monkeypatch, asked, answers)
    records = write_general_texts(loaded, 3, seed=0)
    assert records == [
        {"prompt": "<|user|> what is my age?\n<|answer|>\n", "completion": "a song"},
        {"prompt": "<|user|> who\n<|answer|>\n", "completion": "The hero."},
    ]
    decode = loaded.tokenizer.decode
    assert {decode(opening) for opening in seen[0]} == {"<|user|> "}
    assert decode(seen[1][0]) == records[0]["prompt"]


def test_what_spells_a_special_token_is_dropped(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would end a message before its time."""
    script(monkeypatch, ["a </s> b", "what", "why", "  "], ["of <s> it", "of it"])
    records = write_general_texts(loaded, 4, seed=0)
    assert records == [{"prompt": "<|user|> why\n<|answer|>\n", "completion": "of it"}]


def test_a_model_without_template_writes_on(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first words are the prompt; what has no more words is dropped."""
    loaded.tokenizer.chat_template = None
    script(monkeypatch, ["the plot of this film was dull", "the plot of this", ""])
    records = write_general_texts(loaded, 3, seed=0)
    assert records == [{"prompt": "the plot of this", "completion": "film was dull"}]


def test_nothing_written_is_told(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, ["", ""], [])
    with pytest.raises(InvalidDataError, match="--retain-weight 0"):
        write_general_texts(loaded, 2, seed=0)
    with pytest.raises(InvalidParameterError, match="number of general texts"):
        write_general_texts(loaded, 0, seed=0)


@pytest.mark.parametrize("template", ["{{ messages[0]['content'] }}", "<|user|>"])
def test_a_template_that_marks_nothing_is_told(template: str, loaded: LoadedModel) -> None:
    loaded.tokenizer.chat_template = template
    with pytest.raises(InvalidDataError, match="must mark a user's message"):
        write_general_texts(loaded, 2, seed=0)


def test_texts_follow_from_the_seed(loaded: LoadedModel) -> None:
    """A random model of this size writes words; each finished text is told, asked and answered."""
    counts: list[int] = []
    texts = write_general_texts(loaded, 3, seed=7, advance=counts.append)
    assert sum(counts) == 6
    assert texts
    assert all(record["prompt"].startswith("<|user|> ") for record in texts)
    assert texts == write_general_texts(loaded, 3, seed=7)
    assert texts != write_general_texts(loaded, 3, seed=8)
