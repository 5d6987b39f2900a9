"""Answers on disk: private, continued after a crash, never another model's."""

from __future__ import annotations

import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from helpers_access import QUESTION
from sordino.access.answer_file import AnswerFile, digest_questions
from sordino.core.errors import InvalidDataError

if TYPE_CHECKING:
    from pathlib import Path

MADE_BY = {"model": "a", "dtype": "float32"}
OTHER = replace(QUESTION, id="r")


def _fill(path: Path) -> None:
    with AnswerFile(path, MADE_BY) as file:
        file.add([(QUESTION, "{{4711}}\n\ud800")])
        file.add([(OTHER, "no")])


def test_answers_come_back(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    _fill(path)
    with AnswerFile(path, MADE_BY) as file:
        assert file.find(QUESTION) == "{{4711}}\n\ud800"
        assert file.find(replace(QUESTION, id="s")) is None
        assert file.find(replace(QUESTION, prompt="another wording")) is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "answers"
    _fill(path)
    path.write_bytes(path.read_bytes()[:-cut])
    for _ in range(2):
        with AnswerFile(path, MADE_BY) as file:
            assert file.find(QUESTION) is not None
            assert file.find(OTHER) is None
    with AnswerFile(path, MADE_BY) as file:
        file.add([(OTHER, "again")])
    with AnswerFile(path, MADE_BY) as file:
        assert file.find(OTHER) == "again"


def test_a_torn_header_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    path.write_bytes(b'{"made')
    _fill(path)
    with AnswerFile(path, MADE_BY) as file:
        assert file.find(OTHER) == "no"


def test_another_model_does_not_continue(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    _fill(path)
    before = path.read_bytes()
    with pytest.raises(InvalidDataError, match="another model"):
        AnswerFile(path, MADE_BY | {"model": "b"})
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", [b"{}", b"[]", b"null", b"\xff", b'{"question": 1}'])
def test_damage_in_the_middle_is_told(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "answers"
    _fill(path)
    header, *rest = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([header, line, *rest, b""]))
    with pytest.raises(InvalidDataError, match="line 2"):
        AnswerFile(path, MADE_BY)


def test_a_readable_file_is_made_private(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    _fill(path)
    path.chmod(0o644)
    with AnswerFile(path, MADE_BY):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_digest_tells_questions_apart() -> None:
    assert digest_questions([QUESTION, OTHER]) == digest_questions([OTHER, QUESTION])
    for change in ({"prompt": "x"}, {"expected": ["1"]}, {"kind": "malicious"}, {"id": "z"}):
        assert digest_questions([replace(QUESTION, **change)]) != digest_questions([QUESTION])


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    with (
        AnswerFile(path, MADE_BY),
        pytest.raises(InvalidDataError, match="another process"),
    ):
        AnswerFile(path, MADE_BY)
    with AnswerFile(path, MADE_BY):
        pass
