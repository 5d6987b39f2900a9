"""Answers on disk as they are made, so that an interrupted evaluation goes on.

The file is private: answers hold values of records. Its first line says which model answered and
how; each further line is one answer with a digest of its question, so that an answer to another
wording is never taken for this one's.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from typing import TYPE_CHECKING, Any, Self

from sordino.core.errors import InvalidDataError
from sordino.ledger.durable import PRIVATE_FILE_MODE, flush_folder, read_whole_lines
from sordino.ledger.ledger import canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from sordino.access.questions import Question


class AnswerFile:
    """Answers of one model, kept in a private file; a context that holds it open.

    Args:
        path: The file; made, or continued.
        made_by: What decides the answers beside the questions: model, settings.

    Raises:
        InvalidDataError: If the file holds answers of something else or a damaged line that is not
            the last one, or another process writes it.
    """

    def __init__(self, path: Path, made_by: Mapping[str, Any]) -> None:
        self._path = path
        self._header = {"made_by": hashlib.sha256(canonical_json(dict(made_by))).hexdigest()}
        is_new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE_FILE_MODE)
        self._file = os.fdopen(descriptor, "w", encoding="utf-8")
        try:
            self._lock()
            os.fchmod(descriptor, PRIVATE_FILE_MODE)  # whatever it was before
            self._answers = self._read()
            if os.fstat(descriptor).st_size == 0:
                self._write([self._header])
            if is_new:
                flush_folder(path.parent)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def find(self, question: Question) -> str | None:
        """Returns the stored answer to a question; None if there is none."""
        return self._answers.get((question.id, _digest(question)))

    def add(self, answered: Iterable[tuple[Question, str]]) -> None:
        """Puts answers on disk; they are there when the call returns.

        Raises:
            OSError: If the disk is full or fails.
        """
        found = [(question, _digest(question), answer) for question, answer in answered]
        self._write(
            {"question": question.id, "of": digest, "answer": answer}
            for question, digest, answer in found
        )
        self._answers |= {(question.id, digest): answer for question, digest, answer in found}

    def _lock(self) -> None:
        """Keeps others away until the file is closed, whatever ends this process.

        Raises:
            InvalidDataError: If another process has it.
        """
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidDataError(
                f"{self._path}: another process is writing answers there. Wait for it, or choose "
                "another output folder."
            ) from None

    def _write(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Appends lines, flushed to disk. Lone surrogates survive as escapes."""
        for entry in entries:
            self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> dict[tuple[str, str], str]:
        """Returns the stored answers; cuts a last line off that a crash tore."""
        lines = read_whole_lines(self._path)
        if not lines:
            return {}
        if self._parse(lines[0], 1) != self._header:
            raise InvalidDataError(
                f"{self._path}: holds answers of another model, or made with other settings. "
                "Choose another output folder."
            )
        answers = {}
        for number, line in enumerate(lines[1:], start=2):
            entry = self._parse(line, number)
            try:
                answers[str(entry["question"]), str(entry["of"])] = str(entry["answer"])
            except KeyError:
                raise self._damaged(number) from None
        return answers

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        """Returns one line."""
        try:
            entry = json.loads(line)
        except ValueError:
            raise self._damaged(number) from None
        if not isinstance(entry, dict):
            raise self._damaged(number)
        return entry

    def _damaged(self, number: int) -> InvalidDataError:
        return InvalidDataError(
            f"{self._path}, line {number}: not an answer as Sordino writes it. Remove the file to "
            "ask everything again."
        )


def digest_questions(questions: Sequence[Question]) -> str:
    """Returns a SHA-256 of questions and their right answers, in any order."""
    parts = sorted(
        canonical_json([question.id, _digest(question), question.kind, question.expected])
        for question in questions
    )
    return hashlib.sha256(b"\n".join(parts)).hexdigest()


def _digest(question: Question) -> str:
    """Returns a SHA-256 of what a model is asked."""
    return hashlib.sha256(canonical_json([question.system, question.prompt])).hexdigest()
