"""The two folders of a run: what is refused, what is locked, what is erased."""

from __future__ import annotations

import shutil
from collections import namedtuple
from typing import TYPE_CHECKING

import pytest

from sordino.core.errors import InvalidParameterError, LedgerError
from sordino.training.run_folder import RunFolder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run that nobody has started."""
    return RunFolder(tmp_path / "some.run")


def test_private_files_lie_beside_the_run(folder: RunFolder) -> None:
    """Sealed state and holder's report are never below the run folder."""
    assert folder.private.parent == folder.path.parent
    assert folder.private.name == "some.run.private"
    for path in (folder.journal.path, folder.holder_report, folder.canaries, folder.subset):
        assert folder.private in path.parents
        assert folder.path not in path.parents
    for path in (folder.holder_report, folder.canaries, folder.subset):
        assert "PRIVATE" in path.name


def test_new_folder_may_be_absent_or_empty(folder: RunFolder) -> None:
    """An absent folder is new, and so is an empty one."""
    folder.require_new()
    folder.path.mkdir()
    folder.require_new()


def test_anything_in_the_folder_is_kept(folder: RunFolder) -> None:
    """A folder with a file, or a file in its place, is not new."""
    folder.path.mkdir()
    (folder.path / "thesis.txt").touch()
    with pytest.raises(InvalidParameterError, match="exists already"):
        folder.require_new()
    shutil.rmtree(folder.path)
    folder.path.touch()
    with pytest.raises(InvalidParameterError, match="exists already"):
        folder.require_new()


def test_sealed_state_of_a_lost_folder_is_kept(folder: RunFolder) -> None:
    """A journal whose run folder is gone blocks a new run of that name."""
    folder.private.mkdir()
    folder.journal.path.touch()
    with pytest.raises(InvalidParameterError, match="sealed state of a run whose folder is gone"):
        folder.require_new()


def test_room_for_the_weights(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of the nearest existing folder must hold the weights and some more."""
    usage = namedtuple("usage", "free")  # noqa: PYI024 - as shutil has it
    asked = []

    def disk_usage(path: Path) -> object:
        asked.append(path)
        return usage(2**24 + 1000)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    folder.require_space(1000)
    assert asked == [folder.path.parent]
    with pytest.raises(InvalidParameterError, match="no space left for the run"):
        folder.require_space(1001)
    assert not folder.path.exists()


def test_run_that_wrote_nothing_leaves_nothing(folder: RunFolder) -> None:
    """Failing before the first write removes both folders."""

    def fail() -> None:
        with folder.locked():
            assert folder.private.stat().st_mode & 0o777 == 0o700
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not folder.path.exists()
    assert not folder.private.exists()


def test_run_that_wrote_something_keeps_it(folder: RunFolder) -> None:
    """Failing after a commit keeps the files and the sealed state."""

    def fail() -> None:
        with folder.locked():
            folder.ledger.touch()
            folder.journal.path.touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert folder.ledger.exists()
    assert folder.journal.path.exists()


def test_one_process_at_a_time(folder: RunFolder) -> None:
    """A held run is refused, and its files stay; afterwards it can be held again."""
    with folder.locked():
        folder.journal.path.touch()
        with pytest.raises(LedgerError, match="another process is working on"), folder.locked():
            pass
        assert folder.journal.path.exists()
    with folder.locked():
        pass


@pytest.mark.parametrize("name", ["holder_report", "subset"])
def test_finished_run_keeps_only_what_was_asked_for(name: str, folder: RunFolder) -> None:
    """Forgetting erases the journal and the lock, and leaves a holder's report or a subset."""
    kept = getattr(folder, name)
    with folder.locked():
        folder.journal.path.write_text("secret")
        kept.write_text("kept")
        folder.forget_secrets()
    assert [path.name for path in folder.private.iterdir()] == [kept.name]
    kept.unlink()
    folder.forget_secrets()
    assert not folder.private.exists()
    folder.forget_secrets()  # may be repeated


def test_journal_is_overwritten_before_it_is_removed(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal leaves its name first, so that it is never found half erased."""
    folder.create()
    folder.journal.path.write_bytes(b"secret")
    seen = []
    unlink = type(folder.path).unlink

    def look(path: Path, **options: bool) -> None:
        if path.exists():
            seen.append((path.name, path.read_bytes(), folder.journal.path.exists()))
        unlink(path, **options)

    monkeypatch.setattr(type(folder.path), "unlink", look)
    folder.forget_secrets()
    assert seen == [("journal.leaving", b"\0" * 6, False)]


def test_discarded_run_leaves_nothing(folder: RunFolder) -> None:
    """A run that never released anything can be removed while it is held."""
    with folder.locked():
        for path in (folder.ledger, folder.transcript, folder.metrics, folder.journal.path):
            path.write_text("x")
        folder.discard()
    assert not folder.path.exists()
    assert not folder.private.exists()


def test_discarding_keeps_what_is_not_ours(folder: RunFolder) -> None:
    """A file that somebody put into the folder stays."""
    with folder.locked():
        folder.ledger.touch()
        (folder.path / "thesis.txt").touch()
        folder.discard()
    assert [path.name for path in folder.path.iterdir()] == ["thesis.txt"]


def test_canaries_are_written_for_the_holder(folder: RunFolder) -> None:
    """The list is private by place, name and mode, and outlives the run's other secrets."""
    with folder.locked(), folder.keeping_canaries(b"list"):
        assert folder.canaries.read_bytes() == b"list"
        assert folder.canaries.stat().st_mode & 0o777 == 0o600
        folder.ledger.touch()
        folder.journal.path.touch()
        folder.forget_secrets()
    assert folder.canaries.parent == folder.private
    assert "PRIVATE" in folder.canaries.name
    assert [path.name for path in folder.private.iterdir()] == [folder.canaries.name]


def test_canaries_of_a_run_that_charged_nothing_leave_with_it(folder: RunFolder) -> None:
    """Failing before the first charge, and discarding, take the list away."""

    def fail() -> None:
        with folder.locked(), folder.keeping_canaries(b"list"):
            raise KeyboardInterrupt

    def discard() -> None:
        with folder.locked(), folder.keeping_canaries(b"list"):
            folder.ledger.touch()
            folder.journal.path.touch()
            folder.discard()

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not folder.private.exists()
    discard()
    assert not folder.private.exists()
    assert not folder.path.exists()


def test_canaries_of_a_run_that_has_begun_are_not_written_again(folder: RunFolder) -> None:
    """Another list, or none, is refused; the one on disk stays."""
    folder.create()
    folder.ledger.touch()
    with pytest.raises(LedgerError, match="by another process"), folder.keeping_canaries(b"list"):
        pass
    folder.canaries.write_bytes(b"first")
    with pytest.raises(LedgerError, match="by another process"), folder.keeping_canaries(b"list"):
        pass
    for content in (b"first", None):
        with folder.keeping_canaries(content):
            pass
    assert folder.canaries.read_bytes() == b"first"


@pytest.mark.parametrize("content", [b"new", None])
def test_what_a_crash_left_of_a_list_is_replaced(folder: RunFolder, content: bytes | None) -> None:
    """A list of a start that was killed is no other run's; neither is a half-written one."""
    folder.create()
    (folder.private / "lock").touch()
    folder.canaries.write_bytes(b"old")
    half = folder.private / f".{folder.canaries.name}.new"
    half.write_bytes(b"ol")
    folder.require_new()
    with folder.locked(), folder.keeping_canaries(content):
        found = {p.name: p.read_bytes() for p in folder.private.iterdir() if p.name != "lock"}
        assert found == ({} if content is None else {folder.canaries.name: content})
        folder.ledger.touch()


def test_canaries_of_a_moved_run_are_kept(folder: RunFolder) -> None:
    """The list of a finished run whose folder was moved away blocks a run of that name."""
    folder.create()
    folder.canaries.write_bytes(b"list")
    for check in (folder.require_new, folder.require_no_other_run):
        with pytest.raises(InvalidParameterError, match="finished run whose folder is gone"):
            check()
    assert folder.canaries.read_bytes() == b"list"


@pytest.mark.parametrize("has_lock", [False, True])
def test_subset_of_a_moved_run_is_kept(has_lock: bool, folder: RunFolder) -> None:
    """It is written at the end only, so that one without a run was some other run's."""
    folder.create()
    folder.subset.write_bytes(b"secret")
    if has_lock:
        (folder.private / "lock").touch()
    for check in (folder.require_new, folder.require_no_other_run):
        with pytest.raises(InvalidParameterError, match="finished run whose folder is gone"):
            check()
    assert folder.subset.read_bytes() == b"secret"
    folder.ledger.touch()
    folder.require_no_other_run()
