"""Files of finished lines: what a crash tore is cut off, and nothing else is lost."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from sordino.ledger.durable import append_line, read_whole_lines

if TYPE_CHECKING:
    from pathlib import Path


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_whole_lines(path) == []
    append_line(path, "one", mode=0o600)
    append_line(path, "zwölf")
    assert read_whole_lines(path) == [b"one", "zwölf".encode()]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("torn", [b"thr", b"\xff\xfe"])
def test_a_torn_last_line_is_cut_off_the_file(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, "one")
    append_line(path, "two")
    path.write_bytes(path.read_bytes() + torn)
    assert read_whole_lines(path) == [b"one", b"two"]
    append_line(path, "three")
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"on")
    assert read_whole_lines(path) == []
    assert path.read_bytes() == b""
