"""The sealed journal: a release happens exactly once, whatever kills the process and when."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pathlib
import stat
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers_transcripts import make_header
from sordino.core.errors import LedgerError
from sordino.ledger import durable
from sordino.ledger.durable import erase, replace_file, write_at
from sordino.ledger.journal import Commit, Journal
from sordino.ledger.ledger import Ledger, canonical_json
from sordino.ledger.transcript import StepSymbols, decode_steps, encode_step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NUM_STEPS, K = 3, 3  # 9 bits: steps share bytes
HEADER = make_header("bit", NUM_STEPS, K)
HEADER_SIZE = len(HEADER.to_bytes())


class Crash(BaseException):
    """The process was killed here."""


class Disk:
    """The operating system's calls, until one of them is the last.

    Args:
        calls_left: How many calls succeed; None for all.
        torn: The share of its bytes that the last write still brings to the disk.
    """

    def __init__(self, calls_left: int | None = None, torn: float = 0.0) -> None:
        self.calls: list[str] = []
        self._left = calls_left
        self._torn = torn

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        self.count(f"open {pathlib.Path(path).name}")
        return os.open(path, flags, mode)

    def pwrite(self, descriptor: int, content: bytes, offset: int) -> int:
        try:
            self.count("write")
        except Crash:
            os.pwrite(descriptor, content[: round(len(content) * self._torn)], offset)
            raise
        return os.pwrite(descriptor, content, offset)

    def fsync(self, descriptor: int) -> None:
        self.count("flush")

    def fchmod(self, descriptor: int, mode: int) -> None:
        self.count("mode")
        os.fchmod(descriptor, mode)

    def count(self, name: str) -> None:
        if self._left is not None and len(self.calls) >= self._left:
            raise Crash
        self.calls.append(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def install(monkeypatch: pytest.MonkeyPatch, disk: Disk) -> None:
    """Makes every durable write go through `disk`."""
    replace, unlink = _ORIGINAL

    def counted_replace(self: Path, target: Path) -> Path:
        disk.count("replace")
        return replace(self, target)

    def counted_unlink(self: Path, missing_ok: bool = False) -> None:
        disk.count("unlink")
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(durable, "os", disk)
    monkeypatch.setattr(pathlib.Path, "replace", counted_replace)
    monkeypatch.setattr(pathlib.Path, "unlink", counted_unlink)


_ORIGINAL = (pathlib.Path.replace, pathlib.Path.unlink)


class Run:
    """A run of three steps that goes on from wherever it was stopped."""

    def __init__(self, folder: Path, *, draws_again: bool = False) -> None:
        folder.mkdir(exist_ok=True)
        self.journal = Journal(
            folder / "journal.sealed", folder / "ledger.jsonl", folder / "transcript.bin"
        )
        self._draws_again = draws_again
        self._num_draws = 0

    def go_on(self) -> None:
        """Recovers and does the steps that are left, as `training.loop` does."""
        recovered = self.journal.recover()
        if recovered is None:
            ledger, state = Ledger(self.journal.ledger_path), {"done": -1}
            self._commit(ledger, {"kind": "open"}, 0, HEADER.to_bytes(), {"done": 0})
        else:
            ledger, state = recovered
        done = len(ledger.of_kind("release"))
        assert state["done"] == done or recovered is None
        for step in range(done, NUM_STEPS):
            self._step(ledger, step)

    def _step(self, ledger: Ledger, step: int) -> None:
        integers = self._draw(step)
        raw = self.journal.transcript_path.read_bytes()
        last_byte = raw[-1] if len(raw) > HEADER_SIZE else 0
        offset, content = encode_step(HEADER, step, StepSymbols(integers), last_byte)
        event = {"kind": "release", "step": step, "symbols": integers.tolist()}
        event["mutual_information_nats"] = 0.125
        self._commit(ledger, event, HEADER_SIZE + offset, content, {"done": step + 1})

    def _draw(self, step: int) -> np.ndarray:
        """Returns a step's symbols; with `draws_again` each attempt draws others."""
        self._num_draws += 1
        seed = [step, self._num_draws] if self._draws_again else [step]
        return np.random.default_rng(seed).choice(np.array([-1, 1]), K)

    def _commit(
        self, ledger: Ledger, event: dict[str, Any], offset: int, content: bytes, state: object
    ) -> None:
        commit = Commit(
            ledger_offset=ledger.size,
            ledger_line=ledger.prepare(event),
            transcript_offset=offset,
            transcript_bytes=content,
            state=state,
        )
        self.journal.commit(commit, ledger)

    def contents(self) -> tuple[bytes, bytes, bytes]:
        """Returns ledger, transcript and journal."""
        journal = self.journal
        paths = (journal.ledger_path, journal.transcript_path, journal.path)
        return tuple(path.read_bytes() if path.exists() else b"" for path in paths)

    def check_finished(self) -> None:
        """Fails unless there is one charge a step and the transcript holds what was charged."""
        ledger = Ledger.open(self.journal.ledger_path)
        releases = ledger.of_kind("release")
        assert [event["kind"] for event in ledger.events] == ["open", *["release"] * NUM_STEPS]
        assert [event["step"] for event in releases] == list(range(NUM_STEPS))
        assert ledger.mutual_information_spent == 0.125 * NUM_STEPS
        payload = self.contents()[1][HEADER_SIZE:]
        steps = decode_steps(HEADER, payload, NUM_STEPS, "here")
        assert [s.integers.tolist() for s in steps] == [e["symbols"] for e in releases]


@pytest.fixture
def reference(tmp_path: Path) -> tuple[bytes, bytes, bytes]:
    """What a run leaves that nothing interrupts."""
    run = Run(tmp_path / "reference")
    run.go_on()
    run.check_finished()
    return run.contents()


def crash_points() -> Iterator[tuple[int, float]]:
    """Yields every call of an undisturbed run, and how much of a torn write gets through."""
    for calls in range(60):
        for torn in (0.0, 0.5, 1.0):
            yield calls, torn


def test_a_kill_at_any_call_costs_nothing(
    tmp_path: Path, reference: tuple[bytes, bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before, within or after every write, the resumed run leaves the same bytes."""
    num_crashes = 0
    for number, (calls, torn) in enumerate(crash_points()):
        run = Run(tmp_path / f"run{number}")
        install(monkeypatch, Disk(calls, torn))
        try:
            run.go_on()
        except Crash:
            num_crashes += 1
        install(monkeypatch, Disk())
        Run(tmp_path / f"run{number}").go_on()
        assert run.contents() == reference, (calls, torn)
    assert num_crashes >= 100  # every one of about 45 calls was reached
    assert num_crashes < number  # and the last ones are beyond the end


def test_a_second_kill_during_recovery_costs_nothing(
    tmp_path: Path, reference: tuple[bytes, bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recovery itself may be killed at any call and be repeated."""
    number = 0
    for calls, torn in crash_points():
        if torn != 0.5:
            continue
        for later in range(7):
            number += 1
            run = Run(tmp_path / f"run{number}")
            for disk in (Disk(calls, torn), Disk(later, torn)):
                install(monkeypatch, disk)
                with contextlib.suppress(Crash):
                    run.go_on()
            install(monkeypatch, Disk())
            run.go_on()
            assert run.contents() == reference, (calls, later)


def test_a_charge_on_disk_keeps_its_symbols(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a repeated step would draw other coins, whatever was charged is what is released."""
    for number, (calls, torn) in enumerate(crash_points()):
        run = Run(tmp_path / f"run{number}", draws_again=True)
        install(monkeypatch, Disk(calls, torn))
        with contextlib.suppress(Crash):
            run.go_on()
        ledger, transcript, sealed = run.contents()
        promised = json.loads(sealed)["body"] if sealed else None
        install(monkeypatch, Disk())
        run.go_on()
        run.check_finished()
        after = run.contents()[0]
        assert after.startswith(ledger)
        if promised is not None:
            line = base64.b64decode(promised["ledger_line"])
            assert after[promised["ledger_offset"] :].startswith(line)
        whole_bytes = transcript[: max(len(transcript) - 1, 0)]
        assert run.contents()[1].startswith(whole_bytes)


def test_order_of_the_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Journal, its folder, the charge, the symbols: each flushed before the next begins."""
    run = Run(tmp_path / "run")
    run.go_on()
    disk = Disk()
    install(monkeypatch, disk)
    ledger, _ = run.journal.recover()
    disk.calls.clear()
    run._step(ledger, 2)
    assert disk.calls == [
        "open .journal.sealed.new",
        "mode",
        "flush",
        "replace",
        "open run",
        "flush",
        "open ledger.jsonl",
        "write",
        "flush",
        "open transcript.bin",
        "write",
        "flush",
    ]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run whose journal still holds the last step."""
    run = Run(tmp_path / "run")
    run.go_on()
    return run


def last_commit(run: Run) -> dict[str, Any]:
    """Returns the body of the journal."""
    return json.loads(run.journal.path.read_bytes())["body"]


def cut(path: Path, length: int) -> None:
    """Shortens a file."""
    os.truncate(path, length)


def test_every_cut_of_the_last_step_is_repaired(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any part of the last line and of the last bytes may be missing; recovery repeats itself."""
    install(monkeypatch, Disk())
    whole, body = run.contents(), last_commit(run)
    ledger_cuts = range(body["ledger_offset"], len(whole[0]) + 1)
    transcript_cuts = range(body["transcript_offset"], len(whole[1]) + 1)
    for ledger_length in ledger_cuts:
        for transcript_length in transcript_cuts:
            cut(run.journal.ledger_path, ledger_length)
            cut(run.journal.transcript_path, transcript_length)
            for _ in range(2):
                ledger, state = run.journal.recover()
                assert state == {"done": NUM_STEPS}
                assert len(ledger.of_kind("release")) == NUM_STEPS
                assert run.contents() == whole


def test_bits_of_the_last_step_are_written_again(run: Run) -> None:
    """A torn byte holds older bits too: the journal restores all of it."""
    whole, body = run.contents(), last_commit(run)
    for byte in (0, 255):
        write_at(run.journal.transcript_path, body["transcript_offset"], bytes([byte]))
        run.journal.recover()
        assert run.contents() == whole


def test_more_than_the_last_step_missing_is_an_error(run: Run) -> None:
    """A ledger or transcript that lacks earlier bytes was changed, not torn."""
    whole, body = run.contents(), last_commit(run)
    cut(run.journal.ledger_path, body["ledger_offset"] - 1)
    with pytest.raises(LedgerError, match="does not end as the journal says"):
        run.journal.recover()
    replace_file(run.journal.ledger_path, whole[0])
    cut(run.journal.transcript_path, body["transcript_offset"] - 1)
    with pytest.raises(LedgerError, match=r"bytes where the journal expects .* it was changed"):
        run.journal.recover()


@pytest.mark.parametrize("tail", [b"\n", b"{}\n", b"x", b"\0"])
def test_an_unexplained_tail_is_an_error(run: Run, tail: bytes) -> None:
    """Bytes after the journal's line are refused: they might be a forgotten charge."""
    ledger, transcript, _ = run.contents()
    for path, content in (
        (run.journal.ledger_path, ledger),
        (run.journal.transcript_path, transcript),
    ):
        write_at(path, len(content), tail)
        with pytest.raises(LedgerError, match="it was changed"):
            run.journal.recover()
        assert path.read_bytes() == content + tail  # nothing was repaired away
        cut(path, len(content))
    assert run.journal.recover() is not None


def test_another_last_line_is_an_error(run: Run) -> None:
    """A tail that is as long as the journal's line but another one is refused."""
    body = last_commit(run)
    for place in range(body["ledger_offset"], len(run.contents()[0]), 7):
        raw = bytearray(run.contents()[0])
        raw[place] ^= 1
        write_at(run.journal.ledger_path, place, raw[place : place + 1])
        with pytest.raises(LedgerError, match="An unexplained line is never skipped"):
            run.journal.recover()
        raw[place] ^= 1
        write_at(run.journal.ledger_path, place, raw[place : place + 1])
    assert run.journal.recover() is not None


def test_a_changed_earlier_line_is_an_error(run: Run) -> None:
    """Recovery checks the whole chain, not only its end."""
    write_at(run.journal.ledger_path, 10, b"#")
    with pytest.raises(LedgerError, match="line 1"):
        run.journal.recover()


def test_a_damaged_journal_is_refused(run: Run) -> None:
    """Each changed byte and each cut of the journal: never a guess about the secret."""
    raw = run.journal.path.read_bytes()
    others = [raw[:n] for n in range(0, len(raw), 5)]
    others += [raw[:n] + bytes([raw[n] ^ 1]) + raw[n + 1 :] for n in range(len(raw))]
    others += [b"[]", b"null", b"{}", b'{"body":{},"sha256":""}', b"\0" * len(raw), b"\xff"]
    descriptor = os.open(run.journal.path, os.O_WRONLY)
    for content in others:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
        with pytest.raises(LedgerError, match="the sealed journal is damaged"):
            run.journal.recover()
    os.close(descriptor)


@pytest.mark.parametrize(
    "change", [{"ledger_line": "%%%"}, {"transcript_bytes": "a"}, {"ledger_line": None}]
)
def test_a_journal_of_wrong_types_is_refused(run: Run, change: dict[str, object]) -> None:
    """A right checksum does not make nonsense readable."""
    body = last_commit(run) | change
    digest = hashlib.sha256(canonical_json(body)).hexdigest()
    content = canonical_json({"body": body, "sha256": digest})
    replace_file(run.journal.path, content, mode=0o600)
    with pytest.raises(LedgerError, match="the sealed journal is damaged"):
        run.journal.recover()


def test_without_a_journal_there_is_nothing_to_recover(tmp_path: Path) -> None:
    """None, and no file is made."""
    folder = tmp_path / "none"
    folder.mkdir()
    assert Run(folder).journal.recover() is None
    assert list(folder.iterdir()) == []


def test_the_journal_is_sealed_whatever_the_umask(tmp_path: Path) -> None:
    """Mode 0600 at every moment, also over a left-over file that others could read."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".journal.sealed.new").write_bytes(b"left over by a killed process")
    (folder / ".journal.sealed.new").chmod(0o666)
    before = os.umask(0)
    try:
        run = Run(folder)
        run.go_on()
    finally:
        os.umask(before)
    assert stat.S_IMODE(run.journal.path.stat().st_mode) == 0o600
    assert not (folder / ".journal.sealed.new").exists()


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o601, 0o666, 0o610])
def test_a_journal_that_others_could_read_is_refused(run: Run, mode: int) -> None:
    """Whoever read the secret may use it: the run is over."""
    run.journal.path.chmod(mode)
    with pytest.raises(LedgerError, match=rf"mode 0{mode:o}, must be 0600.*start a new run"):
        run.journal.recover()


def test_the_secret_stays_in_the_journal(run: Run) -> None:
    """The private state is in none of the files that leave the building (defects 2 and 5)."""
    ledger, transcript, sealed = run.contents()
    assert b"done" in sealed
    assert b"done" not in ledger
    assert b"done" not in transcript


def test_a_failed_replacement_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk while writing the new content: the old content stays, nothing is left over."""
    path = tmp_path / "file"
    replace_file(path, b"old", mode=0o600)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new", mode=0o600)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call that takes a few bytes only is repeated until all are written."""
    pwrite = os.pwrite
    monkeypatch.setattr(durable.os, "pwrite", lambda d, content, at: pwrite(d, content[:3], at))
    write_at(tmp_path / "file", 0, b"ten bytes.")
    write_at(tmp_path / "file", 4, b"BYTES")
    assert (tmp_path / "file").read_bytes() == b"ten BYTES."


def test_erasing_overwrites_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's own bytes are zero before its name goes; a missing file is no error."""
    path = tmp_path / "secret"
    path.write_bytes(b"secret")
    seen = []
    unlink = pathlib.Path.unlink
    monkeypatch.setattr(
        pathlib.Path, "unlink", lambda self: (seen.append(self.read_bytes()), unlink(self))
    )
    erase(path)
    assert seen == [b"\0" * 6]
    assert not path.exists()
    erase(path)
