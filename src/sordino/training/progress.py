"""A live line on standard error; plain lines where standard error is not a terminal."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PLAIN_LINES = 10


class Advance(Protocol):
    """Called after each piece of work with what may be shown about it."""

    def __call__(self, done: int, note: str = "") -> None:
        """Shows that `done` pieces are done."""


def counting(advance: Advance) -> Callable[[int], None]:
    """Returns a function that is told how many pieces came to be done, and shows their sum."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        advance(done)

    return add


@contextmanager
def progress(title: str, total: int, *, start: int = 0, enabled: bool = True) -> Iterator[Advance]:
    """Yields a function that shows progress, with the time left.

    Args:
        title: What is being done.
        total: Number of pieces of work.
        start: Pieces done before this process started.
        enabled: False shows nothing (other workers).
    """
    if not enabled or total <= 0:
        yield lambda done, note="": None  # noqa: ARG005
    elif sys.stderr.isatty():
        with _live(title, total, start) as advance:
            yield advance
    else:
        yield _plain(title, total, start)


@contextmanager
def _live(title: str, total: int, start: int) -> Iterator[Advance]:
    """Yields a live progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeLeft(),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=start, note="")
        yield lambda done, note="": bar.update(task, completed=done, note=note)


def _plain(title: str, total: int, start: int) -> Advance:
    """Returns a function that prints about ten lines over the whole work."""
    began = time.monotonic()
    every = max(total // _PLAIN_LINES, 1)
    shown = start // every

    def advance(done: int, note: str = "") -> None:
        nonlocal shown
        if done <= start or (done // every == shown and done != total):
            return  # work may be done in pieces that step over the round numbers
        shown = done // every
        per_piece = (time.monotonic() - began) / max(done - start, 1)
        left = f"{per_piece * (total - done):.0f} s left"
        parts = [f"{title}: {done}/{total}", left, note]
        print(", ".join(part for part in parts if part), file=sys.stderr, flush=True)  # noqa: T201

    return advance
