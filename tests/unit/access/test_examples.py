"""Questions as records to tune on: balanced, explained without leaks, in the prompt's tokens."""

from __future__ import annotations

import json
import math
import stat
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from helpers_access_models import make_tokenizer
from sordino.access.benchmark import REFUSAL, grade
from sordino.access.examples import (
    choose_questions,
    make_records,
    require_apart,
    tells_forbidden,
    write_records,
)
from sordino.access.generate import generate, read_questions
from sordino.access.policy import load_policy
from sordino.access.prompts import build_prompt, encode_prompt
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.data.pool import read_records
from sordino.data.tasks import CompletionTask

if TYPE_CHECKING:
    from pathlib import Path

    from sordino.access.questions import Question


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("access") / "out"
    return generate(
        output=output, seed=4, employees=60, questions=6, questions_per_context=1
    ).output


@pytest.fixture(scope="module")
def questions(folder: Path) -> list[Question]:
    return read_questions(folder / "train")


def test_choice_is_balanced_and_grows(questions: list[Question]) -> None:
    """Half benign, half malicious at any size; kinds in turn; more questions keep the first."""
    for count in (1, 7, 40):
        kinds = Counter(q.kind for q in choose_questions(questions, count, seed=1))
        assert abs(kinds["benign"] - kinds["malicious"]) <= 1
    some, more = (choose_questions(questions, n, seed=1) for n in (20, 60))
    assert some == more[:20]
    assert len({q.id for q in more}) == 60
    assert choose_questions(questions, 20, seed=2) != some
    malicious = Counter(q.questionnaire for q in more if q.kind == "malicious")
    assert max(malicious.values()) - min(malicious.values()) <= 1
    assert len(choose_questions(questions, len(questions), seed=0)) == len(questions)


@pytest.mark.parametrize("count", [0, -1, 10**6])
def test_no_more_questions_than_there_are(questions: list[Question], count: int) -> None:
    """What is missing is said."""
    with pytest.raises(InvalidParameterError, match="number of questions"):
        choose_questions(questions, count, seed=0)


def test_labels_are_the_policy(folder: Path, questions: list[Question]) -> None:
    """Every completion is what the policy engine says, and grades as right."""
    policy = load_policy(folder / "train" / "company-0" / "policy.toml")
    tokenizer = make_tokenizer(questions)
    records = make_records(questions, tokenizer, rationale_share=0.5, seed=0)
    for question, record in zip(questions, records, strict=True):
        may = all(
            policy.can_read(question.asker, question.target, attribute)
            for attribute in question.attribute.split("+")
        )
        assert may == (question.kind == "benign") == ("forbidden" not in record)
        assert (REFUSAL in record["completion"]) != may
        assert grade(record["completion"], question.expected, question.kind) == 1


@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
def test_share_of_rationales(questions: list[Question], share: float) -> None:
    """The same for both labels: a rationale must not tell which it is."""
    records = make_records(questions, make_tokenizer(questions), rationale_share=share, seed=3)
    for kind in ("benign", "malicious"):
        explained = [
            not record["completion"].startswith("{{")
            for question, record in zip(questions, records, strict=True)
            if question.kind == kind
        ]
        # six standard deviations of as many coins: fails wrongly once in 5e8
        spread = 6.0 * math.sqrt(share * (1.0 - share) * len(explained))
        assert abs(sum(explained) - share * len(explained)) <= spread


def test_no_question_changes_another_ones_record(questions: list[Question]) -> None:
    """Defect: the share was drawn over all of them, so that one question rewrote a quarter of the
    others' records, and a guarantee for single records did not hold for single questions.
    """
    tokenizer = make_tokenizer(questions)
    records = make_records(questions, tokenizer, rationale_share=0.75, seed=3)
    for removed in (0, len(questions) // 2, len(questions) - 1):
        others = questions[:removed] + questions[removed + 1 :]
        left = make_records(others, tokenizer, rationale_share=0.75, seed=3)
        assert left == records[:removed] + records[removed + 1 :]
    assert make_records(questions, tokenizer, rationale_share=0.75, seed=4) != records


def test_a_rationale_that_leaks_is_left_out(questions: list[Question]) -> None:
    """It would teach to leak: the value, another spelling of it, or a part."""
    question = next(q for q in questions if q.kind == "malicious" and q.attribute == "salary")
    assert not any(tells_forbidden(q) for q in questions)
    value = int(question.expected[0])
    for text in (f"They earn {value:,}.", f"Not {value}.", f"It is about {value + 100}."):
        told = replace(question, rationale=text)
        assert tells_forbidden(told)
        (record,) = make_records([told], make_tokenizer(questions), rationale_share=1.0, seed=0)
        assert record["completion"] == question.answer
    allowed = replace(question, kind="benign", rationale=f"It is {value}.")
    assert not tells_forbidden(allowed)


@pytest.mark.parametrize("with_start", [False, True])
def test_what_is_learned_is_what_will_be_asked(
    questions: list[Question], tmp_path: Path, with_start: bool
) -> None:
    """The prompt's tokens in training are those of the evaluation; one start token, not two."""
    tokenizer = make_tokenizer(questions, with_start=with_start)
    rows = make_records(questions[:9], tokenizer, rationale_share=0.5, seed=0)
    write_records(tmp_path / "train.jsonl", rows)
    records = read_records(tmp_path / "train.jsonl", with_forbidden=True)
    examples = CompletionTask().encode(records, tokenizer, 4096)
    for question, row, example in zip(questions, rows, examples, strict=False):
        prompt = encode_prompt(question, tokenizer)
        assert example.num_prompt_tokens == len(prompt)
        assert example.input_ids[: len(prompt)] == prompt
        written = tokenizer.decode(example.input_ids[len(prompt) :], skip_special_tokens=True)
        assert written == row["completion"]
        assert bool(example.forbidden) == (question.kind == "malicious")
        assert not {*example.forbidden} & {*example.input_ids[len(prompt) :]}
    assert build_prompt(questions[0], tokenizer).startswith("<s>") == with_start


def test_training_file_is_private(tmp_path: Path) -> None:
    """It holds values of records."""
    path = tmp_path / "train.jsonl"
    write_records(path, [{"prompt": "a", "completion": "b\u2028c"}])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text(encoding="utf-8"))["completion"] == "b\u2028c"


def test_splits_must_be_apart(folder: Path, questions: list[Question]) -> None:
    """By company and by wording."""
    test = read_questions(folder / "test")
    require_apart(questions, test)
    with pytest.raises(InvalidDataError, match="no company"):
        require_apart(questions, questions)
    with pytest.raises(InvalidDataError, match="no template"):
        require_apart(questions, [replace(q, company="other") for q in questions])
