"""Progress: about ten plain lines, or one live line, or nothing."""

from __future__ import annotations

import io
import sys

import pytest

from sordino.training.progress import progress


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("total", "num_lines"), [(3, 3), (10, 10), (1000, 10), (25, 13)])
def test_plain_lines(total: int, num_lines: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Where standard error is a file, the lines are few and the last one is there."""
    with progress("tune", total) as advance:
        for done in range(1, total + 1):
            advance(done)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) == num_lines
    assert lines[-1] == f"tune: {total}/{total}, 0 s left"


def test_work_in_large_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    """Pieces that step over the round numbers are shown; what was done before is not."""
    with progress("audit", 1000) as advance:
        for done in (0, 256, 512, 768, 1000):
            advance(done)
    counts = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert counts == [f"audit: {done}/1000" for done in (256, 512, 768, 1000)]


def test_note_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """What the caller may show stands at the end of the line."""
    with progress("tune", 1) as advance:
        advance(1, "unanimous 50%")
    assert capsys.readouterr().err == "tune: 1/1, 0 s left, unanimous 50%\n"


def test_time_left_counts_from_where_it_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a resume at step 8, two steps of 5 s leave 10 s for the last two."""
    clock = iter([0.0, 10.0])
    monkeypatch.setattr("sordino.training.progress.time.monotonic", lambda: next(clock))
    with progress("tune", 12, start=8) as advance:
        advance(10)
    assert capsys.readouterr().err == "tune: 10/12, 10 s left\n"


@pytest.mark.parametrize("arguments", [{"total": 5, "enabled": False}, {"total": 0}])
def test_silence(arguments: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    """Other workers, and work that is nothing, show nothing."""
    with progress("tune", **arguments) as advance:
        advance(1, "note")
    assert capsys.readouterr() == ("", "")


def test_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal there is a bar with the count."""
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("tune", 4, start=1) as advance:
        advance(2)
        advance(4, "done")
    shown = terminal.getvalue()
    assert "tune" in shown
    assert "4/4" in shown
