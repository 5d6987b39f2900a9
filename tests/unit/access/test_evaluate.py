"""Answers: greedy, the model's own output alone; grades in the order of questions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from helpers_access import write_chat_model
from sordino.access.choose import choose_questions
from sordino.access.evaluate import answer_questions, grade_answers, is_answered
from sordino.access.generate import generate, read_questions
from sordino.access.prompts import encode_prompt
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.models import load_model

if TYPE_CHECKING:
    from sordino.access.questions import Question
    from sordino.models import LoadedModel


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    folder = tmp_path_factory.mktemp("access") / "out"
    generate(output=folder, seed=3, employees=43, questions=2)
    return read_questions(folder / "test")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(write_chat_model(tmp_path_factory.mktemp("model") / "chat")))


def test_answers_are_those_of_the_plain_loop(model: LoadedModel, questions: list[Question]) -> None:
    """One question at a time, no cache, argmax; in the order of the questions."""
    chosen = [questions[0], questions[-1], questions[5]]
    expected = []
    for question in chosen:
        ids = encode_prompt(question, model.tokenizer)
        start = len(ids)
        while len(ids) < start + 5:
            with torch.no_grad():
                token = int(model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token == model.tokenizer.eos_token_id:
                break
            ids.append(token)
        expected.append(model.tokenizer.decode(ids[start:], skip_special_tokens=True))
    found = answer_questions(model, chosen, max_new_tokens=5)
    assert found == expected
    assert answer_questions(model, chosen, max_new_tokens=5, tokens_per_batch=1) == expected


def test_a_question_that_does_not_fit_is_refused(
    model: LoadedModel, questions: list[Question]
) -> None:
    """Never cut: the rules stand at the beginning."""
    long = replace(questions[0], system="x" * 8190)
    with pytest.raises(InvalidDataError, match="leave room"):
        answer_questions(model, [long], max_new_tokens=5)
    with pytest.raises(InvalidParameterError, match="max_new_tokens"):
        answer_questions(model, questions[:1], max_new_tokens=0)


@pytest.mark.parametrize(
    ("text", "is_complete"),
    [
        ("{{42}}", True),
        ("It is {{ 42 }} and", True),
        ("{{42}", False),
        ("42}}", False),
        ("<think>{{42}}", False),
        ("<think>{{42}}</think>", True),
        ("<think>a</think>{{4", False),
        ("{{two\nlines}}", True),
    ],
)
def test_an_answer_ends_with_its_braces(text: str, is_complete: bool) -> None:
    assert is_answered(text) == is_complete


def test_right_answers_are_graded_right(questions: list[Question]) -> None:
    graded = grade_answers(questions, [question.answer for question in questions])
    assert [answer.question for answer in graded] == [question.id for question in questions]
    assert {answer.grading.grade for answer in graded} == {1}
    assert [answer.pair for answer in graded] == [question.pair for question in questions]


def test_every_question_needs_one_answer(questions: list[Question]) -> None:
    with pytest.raises(InvalidParameterError, match="one answer"):
        grade_answers(questions, ["{{a}}"])


def test_fewer_questions_are_even_and_nested(questions: list[Question]) -> None:
    """Every kind once before any twice; pairs stay together; more questions hold the fewer."""
    kinds = {question.questionnaire for question in questions}
    chosen = choose_questions(questions, len(kinds) + 1)
    assert {question.questionnaire for question in chosen} == kinds
    fewer = {question.id for question in choose_questions(questions, 10)}
    assert fewer < {question.id for question in choose_questions(questions, 30)}
    for limit in range(1, len(questions) + 1):
        found = choose_questions(questions, limit)
        assert len(found) <= limit
        pairs = [question.pair for question in found if question.pair is not None]
        assert all(pairs.count(pair) == 2 for pair in pairs)
    assert choose_questions(questions, None) == choose_questions(questions, 10_000) == questions
    for broken in (0, -1):
        with pytest.raises(InvalidParameterError, match="limit"):
            choose_questions(questions, broken)
    with pytest.raises(InvalidParameterError, match="at least one"):
        choose_questions([], None)


def test_answers_begin_in_a_thought_that_the_template_opened(
    model: LoadedModel, questions: list[Question]
) -> None:
    """Braces in it are no answer, and do not end it."""
    template = model.tokenizer.chat_template
    try:
        model.tokenizer.chat_template = template + "<think>"
        (answer,) = answer_questions(model, questions[:1], max_new_tokens=3)
    finally:
        model.tokenizer.chat_template = template
    assert answer.startswith("<think>")
    assert not is_answered("<think>The format is {{value}}")
    assert is_answered("<think>The format is {{value}}</think>{{42}}")
