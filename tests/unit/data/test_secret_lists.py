"""The user's own list of sensitive strings, and errors that do not repeat what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sordino.core.errors import InvalidDataError
from sordino.data.secret_lists import Secret, read_secrets

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN = "Zebrafinch"  # stands in every broken file; may stand in no message


def test_json_lines(tmp_path: Path) -> None:
    """All columns; numbers as strings are fine; spaces of the prefix stay."""
    path = tmp_path / "own.jsonl"
    path.write_text(
        '{"secret": " ann@example.com ", "kind": "email", "prefix": "Mail: ", "repetitions": 3, '
        '"person": 7, "suffix": "."}\n\n{"secret": 4151134821}\n',
        encoding="utf-8",
    )
    assert read_secrets(path) == [
        Secret(
            secret="ann@example.com",  # noqa: S106
            kind="email",
            person="7",
            repetitions=3,
            prefix="Mail: ",
            suffix=".",
            line=1,
        ),
        Secret(secret="4151134821", line=3),  # noqa: S106
    ]


def test_csv_and_text(tmp_path: Path) -> None:
    table = tmp_path / "own.csv"
    table.write_text('secret,kind,repetitions\n"Oak, Ann",name,0\nproject x,,\n', encoding="utf-8")
    assert [(s.secret, s.kind, s.repetitions, s.line) for s in read_secrets(table)] == [
        ("Oak, Ann", "name", 0, 2),
        ("project x", "own", None, 3),
    ]
    plain = tmp_path / "own.txt"
    plain.write_bytes("\ufeffAnn Oak\r\n\r\n  王伟\n".encode())
    assert [(s.secret, s.line) for s in read_secrets(plain)] == [("Ann Oak", 1), ("王伟", 3)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", f'{{"{HIDDEN}": 1}}', "line 1: the column secret is required"),
        ("a.csv", f"{HIDDEN}\n{HIDDEN}\n", "line 2: the column secret is required"),
        ("a.jsonl", f'{{"secret": "{HIDDEN}", "kind": "{HIDDEN} x"}}', "kind must be one word"),
        ("a.jsonl", f'{{"secret": ["{HIDDEN}"]}}', "secret must be a string, got list"),
        ("a.jsonl", f'{{"secret": "{HIDDEN}", "prefix": true}}', "prefix must be a string"),
        ("a.jsonl", f'{{"secret": "{HIDDEN}\\ud800"}}', "not valid Unicode"),
        ("a.jsonl", f'{{"secret": "{HIDDEN}", "repetitions": -1}}', "whole number from 0"),
        ("a.jsonl", f'{{"secret": "{HIDDEN}", "repetitions": 1.5}}', "whole number from 0"),
        ("a.jsonl", f'{{"secret": "{HIDDEN}", "repetitions": true}}', "whole number from 0"),
        ("a.csv", f"secret,repetitions\n{HIDDEN},{HIDDEN}\n", "whole number from 0"),
        ("a.jsonl", '{"secret": "--a b--"}', "at least 3 letters or digits, this one has 2"),
        ("a.jsonl", '{"secret": null}', "at least 3 letters or digits"),
        ("a.txt", "王", "at least 2 letters or digits"),
        ("a.jsonl", HIDDEN, "not valid JSON"),
        ("a.txt", "\n \n", "at least one sensitive string"),
        ("a.jsonl", "", "at least one sensitive string"),
        ("a.docx", HIDDEN, "told by the suffix"),
    ],
)
def test_unusable_lists(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidDataError, match=message) as caught:
        read_secrets(path)
    assert HIDDEN.lower() not in str(caught.value).lower()


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataError, match="no such file"):
        read_secrets(tmp_path / "absent.csv")
    with pytest.raises(InvalidDataError, match="cannot be read"):
        read_secrets(tmp_path / "absent.txt")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidDataError, match="not UTF-8"):
        read_secrets(tmp_path / "a.txt")


def test_strings_are_not_shown_in_representations() -> None:
    """A traceback or a log line of an entry does not tell it."""
    shown = repr(Secret(secret=HIDDEN, prefix=HIDDEN, suffix=HIDDEN, line=4))
    assert HIDDEN not in shown
    assert "line=4" in shown
