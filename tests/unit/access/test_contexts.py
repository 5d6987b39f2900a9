"""Several questions about one context: halves, labels, lines that can be read, whole contexts."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING

import pytest

from sordino.access.benchmark import examine
from sordino.access.company import read_company
from sordino.access.contexts import MOST_QUESTIONS
from sordino.access.examples import choose_questions, tells_forbidden
from sordino.access.generate import generate, read_questions
from sordino.access.questions import NUM_OTHERS
from sordino.core.errors import InvalidDataError, InvalidParameterError

if TYPE_CHECKING:
    from pathlib import Path

    from sordino.access.company import Company
    from sordino.access.questions import Question

EACH = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("contexts") / "out"
    generate(output=output, seed=3, employees=60, questions=20, questions_per_context=EACH)
    return output


@pytest.fixture(scope="module")
def company(folder: Path) -> Company:
    place = folder / "train" / "company-0"
    return read_company("company-0", place / "employees.csv", place / "policy.toml")


@pytest.fixture(scope="module")
def questions(folder: Path) -> list[Question]:
    return read_questions(folder / "train")


def shown_names(question: Question) -> list[str]:
    """Returns the names of the records in a context."""
    lines = [line for line in question.system.splitlines() if line.startswith("id: ")]
    return [line.split("; name: ")[1].split(";")[0] for line in lines]


def test_contexts_follow_each_other_whole(questions: list[Question]) -> None:
    """Each with as many questions, half of them to refuse, and the same text up to who asks."""
    groups = [list(group) for _, group in groupby(questions, key=lambda q: q.context)]
    assert len(groups) == len({q.context for q in questions}) > 40
    for group in groups:
        assert Counter(q.kind for q in group) == {"benign": EACH // 2, "malicious": EACH // 2}
        assert len({q.system.split("Signed in as")[0] for q in group}) == 1
        assert len(shown_names(group[0])) == NUM_OTHERS + 1
    assert len({q.id for q in questions}) == len(questions)


def test_labels_come_from_the_policy(questions: list[Question], company: Company) -> None:
    """And the target's record is there, unless it is to be missing."""
    policy = company.policy
    for q in questions:
        allowed = all(policy.can_read(q.asker, q.target, a) for a in q.attribute.split("+"))
        assert q.kind == ("benign" if allowed else "malicious")
        is_shown = policy.people[q.target].name in shown_names(q)
        assert is_shown == (q.questionnaire != "missing")
        if q.questionnaire == "from_higher_manager":  # the line between can be read
            above = policy.people[q.target].supervisor
            assert above is not None
            assert policy.people[above].name in shown_names(q)
        if q.questionnaire == "near_other":
            near = set(shown_names(q))
            below = [p for p in policy.people if policy.people[p].name in near]
            assert policy.people[q.asker].name in near or any(
                q.asker in policy.managers_of(person) for person in below
            )


def test_right_answers_get_grade_1(questions: list[Question]) -> None:
    """With and without their reason, but for reasons that are left out when records are made.

    By accident a half of a listed name, or the asker's role, is what they may not read.
    """
    for q in questions:
        reasons = [] if tells_forbidden(q) else [f"{q.rationale} {q.answer}"]
        for answer in (q.answer, *reasons):
            found = examine(answer, q.expected, q.kind, question=q.prompt)
            assert (found.grade, found.is_in_format) == (1, True)
    assert sum(map(tells_forbidden, questions)) < len(questions) / 100


def test_every_kind_comes(questions: list[Question]) -> None:
    """With supervisors at least as often as HR; strangers near and far."""
    counts = Counter(q.questionnaire for q in questions)
    assert {"from_supervisor", "from_higher_manager", "from_hr", "missing", "revoked"} <= set(
        counts
    )
    assert {"near_other", "other", "lying", "several_other", "several_self"} <= set(counts)
    assert counts["from_supervisor"] > counts["from_hr"] > 0
    assert min(counts.values()) >= 5


def test_tests_and_the_benchmark_stay_as_they_were(folder: Path, tmp_path: Path) -> None:
    """Only what is tuned on changes; the same seed gives the same bytes."""
    changes = {"seed": 3, "employees": 60, "questions": 20}
    generate(output=tmp_path / "single", questions_per_context=1, **changes)
    file = "test/questions.jsonl"
    assert (tmp_path / "single" / file).read_bytes() == (folder / file).read_bytes()
    generate(output=tmp_path / "again", questions_per_context=EACH, **changes)
    file = "train/questions.jsonl"
    assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def test_whole_contexts_are_chosen(questions: list[Question]) -> None:
    """A larger choice begins with the smaller one; one context is the least."""
    few, more = (choose_questions(questions, count, seed=1) for count in (20, 40))
    assert [len(few), len(more)] == [16, 40]
    assert more[:16] == few
    assert all(n == EACH for n in Counter(q.context for q in more).values())
    assert len(choose_questions(questions, 1, seed=1)) == EACH


def test_refusals(tmp_path: Path) -> None:
    """Numbers out of range, and a policy that leaves nothing to refuse, before anything is made."""
    with pytest.raises(InvalidParameterError, match="questions_per_context"):
        generate(output=tmp_path / "a", questions_per_context=MOST_QUESTIONS + 1)
    assert not (tmp_path / "a").exists()


def test_a_policy_that_allows_everything_is_refused(tmp_path: Path) -> None:
    """Half of a context's questions are to be refused."""
    from sordino.access.contexts import make_context_questions

    people = [f"{n},Person {'abcdefghij'[n]},x{n}" for n in range(10)]
    (tmp_path / "people.csv").write_text("id,name,age\n" + "\n".join(people), encoding="utf-8")
    (tmp_path / "policy.toml").write_text(
        'attributes = ["age"]\n[allow]\neveryone = ["*"]\n', encoding="utf-8"
    )
    open_company = read_company("open", tmp_path / "people.csv", tmp_path / "policy.toml")
    with pytest.raises(InvalidDataError, match="something to refuse"):
        make_context_questions(open_company, seed=0, num_contexts=1, num_each=4)
