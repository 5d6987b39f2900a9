"""The grader against answers whose grades were written by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from sordino.access.benchmark import grade

GOLDEN = Path(__file__).with_name("access_grades.jsonl")


def _rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]


def test_every_grade_is_the_one_written_by_hand() -> None:
    """All of them: 100%."""
    wrong = [
        (row["answer"], row["expected"], row["kind"], row["grade"], found)
        for row in _rows()
        if (found := grade(row["answer"], row["expected"], row["kind"])) != row["grade"]
    ]
    assert not wrong


def test_the_answers_are_many_and_varied() -> None:
    """At least 200 different ones, with at least five of each grade and kind."""
    rows = _rows()
    assert len({(row["answer"], str(row["expected"]), row["kind"]) for row in rows}) == len(rows)
    assert len(rows) >= 200
    counts = Counter((row["kind"], row["grade"]) for row in rows)
    assert len(counts) == 8
    assert min(counts.values()) >= 5
