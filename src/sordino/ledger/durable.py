"""Files that are on disk when the call returns, or as they were before."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sordino.core.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterator

PRIVATE_FILE_MODE = 0o600
PRIVATE_FOLDER_MODE = 0o700


def write_at(path: Path, offset: int, content: bytes) -> None:
    """Writes `content` at `offset` and flushes it to disk; makes the file if there is none.

    Raises:
        OSError: If the disk is full or fails; the caller's journal repairs the torn part.
    """
    is_new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        written = 0
        while written < len(content):
            written += os.pwrite(descriptor, content[written:], offset + written)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        flush_folder(path.parent)


def replace_file(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Puts `content` at `path` in one step: after a crash the old or the new content is there."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        os.fchmod(descriptor, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    flush_folder(path.parent)


def read_whole_lines(path: Path) -> list[bytes]:
    """Returns a file's lines; a last one that a crash tore is cut off. A missing file has none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    return whole.splitlines()


def append_line(path: Path, line: str, *, mode: int = 0o644) -> None:
    """Puts a line at the end of a file, made with this mode if there is none.

    Raises:
        OSError: If the disk is full or fails; `read_whole_lines` cuts off what was torn.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, mode)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Flushes a folder's list of names to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def erase(path: Path) -> None:
    """Overwrites a small private file with zeros and removes it; no error if it is gone."""
    try:
        size = path.stat().st_size
        write_at(path, 0, b"\0" * size)
        path.unlink()
    except FileNotFoundError:
        return
    flush_folder(Path(path).parent)


def named(path: Path) -> Path:
    """Returns a path that ends in the folder's own name, which "." and ".." do not."""
    return path if path.name not in {"", ".."} else path.resolve()


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Holds a lock file for this process; made if there is none, and released by any end.

    Who holds it may remove it. Its folder must exist.

    Args:
        path: The lock file.
        busy: What to say if another process holds it.

    Raises:
        LedgerError: If another process holds it.
    """
    import fcntl

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LedgerError(busy) from error
        if not _is_at(path, file.fileno()):  # its holder removed it after it was opened here
            raise LedgerError(busy)
        yield


def _is_at(path: Path, descriptor: int) -> bool:
    """Returns whether an open file is still the one that the next process would open."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
