"""Scores of many texts, kept on disk as they are made, so that an interrupted audit goes on.

The file is for the data holder: it has one line a record. Its first line says what was scored with
what; a file about anything else is started anew. Texts come in windows and are let go again: what
stays in memory is the numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from sordino.attacks.scores import SCORES, score_all
from sordino.attacks.texts import in_windows
from sordino.attacks.token_statistics import compute_token_statistics
from sordino.core.errors import InvalidDataError
from sordino.ledger.durable import PRIVATE_FILE_MODE
from sordino.ledger.ledger import canonical_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from sordino.attacks.subject import Subject
    from sordino.attacks.texts import ScoredText

    Extra = Callable[[ScoredText], float]

_WINDOW = 4096  # texts that are sorted by length together
_TEXTS_AT_ONCE = 256  # scored between two writes; what a kill loses


def score_texts(
    subject: Subject,
    texts: Iterable[ScoredText],
    path: Path,
    *,
    extras: Mapping[str, Extra] | None = None,
    tokens_per_batch: int = 2048,
    advance: Callable[[int], None] = lambda done: None,  # noqa: ARG005
) -> dict[str, NDArray[np.float64]]:
    """Returns every score of every text, from the file as far as it is there.

    All scores of the loss family share one pass over the tuned model and, where there is a base,
    one over the base.

    Args:
        subject: The model under attack.
        texts: What to score; gone through twice, and at most some thousand are held at a time.
        path: File of the scores; made, continued or, if it is about something else, replaced.
        extras: Further scores by name, each a function of one text; they cost passes of their own.
        tokens_per_batch: Tokens of a forward pass, padding included.
        advance: Called with the number of texts done so far.

    Returns:
        By name, each of shape (num_texts,).

    Raises:
        InvalidDataError: If a score is NaN or infinite, or the texts change meanwhile.
        OSError: If the file cannot be written.
    """
    extras = extras or {}
    digest = _begin_digest(subject, extras)
    num_texts = sum(1 for _ in _hashed(texts, digest))
    header = {"of": digest.hexdigest(), "num_texts": num_texts}
    found = _Found(num_texts)
    size = _read(path, header, found)
    advance(found.num_done)
    if found.num_done == num_texts:
        return found.columns
    again = _begin_digest(subject, extras)
    seen = 0
    with _open(path, header, size) as file:
        for window in in_windows(_hashed(texts, again), _WINDOW):
            if seen + len(window) > num_texts:
                break
            for chosen in in_windows(_missing(window, seen, found), _TEXTS_AT_ONCE):
                some = [window[index - seen] for index in chosen]
                scored = _score(subject, some, extras, tokens_per_batch)
                for index, scores in zip(chosen, scored, strict=True):
                    _require_finite(index, scores)
                    found.put(index, scores)
                    file.write(json.dumps({"index": index, "scores": scores}) + "\n")
                file.flush()
                os.fsync(file.fileno())
                advance(found.num_done)
            seen += len(window)
    if again.hexdigest() != header["of"]:
        path.unlink()  # its scores are of other texts than its first line says
        raise InvalidDataError(
            "the records were changed while they were scored. Leave them as they are, and begin "
            "again."
        )
    return found.columns


class _Found:
    """Scores by name, as far as they are known."""

    def __init__(self, num_texts: int) -> None:
        self.is_done = np.zeros(num_texts, dtype=np.bool_)
        self.columns: dict[str, NDArray[np.float64]] = {}
        self.num_done = 0

    def put(self, index: int, scores: Mapping[str, float]) -> None:
        """Takes the scores of one text."""
        self.columns = self.columns or {name: np.full(self.is_done.size, np.nan) for name in scores}
        for name, value in scores.items():
            self.columns[name][index] = value
        self.num_done += not self.is_done[index]
        self.is_done[index] = True


def _missing(window: Sequence[ScoredText], first: int, found: _Found) -> list[int]:
    """Returns the numbers of a window's texts that have no scores yet, the longest first."""
    missing = [i for i in range(len(window)) if not found.is_done[first + i]]
    return [first + i for i in sorted(missing, key=lambda i: (-len(window[i].input_ids), i))]


def _score(
    subject: Subject,
    texts: Sequence[ScoredText],
    extras: Mapping[str, Extra],
    tokens_per_batch: int,
) -> list[dict[str, float]]:
    """Returns the scores of a few texts."""
    tuned = dict(compute_token_statistics(subject.tuned, texts, tokens_per_batch=tokens_per_batch))
    base = {}
    if subject.has_base:
        with subject.base() as model:
            base = dict(compute_token_statistics(model, texts, tokens_per_batch=tokens_per_batch))
    return [
        score_all(tuned[i], base.get(i), text.text)
        | {name: float(compute(text)) for name, compute in extras.items()}
        for i, text in enumerate(texts)
    ]


def _begin_digest(subject: Subject, extras: Mapping[str, Extra]) -> Any:
    """Returns a hash, still open, of everything but the texts that decides the scores."""
    parameter = next(subject.tuned.causal_lm.parameters())
    return hashlib.sha256(
        canonical_json(
            {
                "tuned": subject.fingerprint,
                "base": subject.base_fingerprint if subject.has_base else None,
                "scores": sorted([*SCORES, *extras]),
                "dtype": str(parameter.dtype),
            }
        )
    )


def _hashed(texts: Iterable[ScoredText], digest: Any) -> Iterator[ScoredText]:
    """Yields the texts and puts each into the hash."""
    for text in texts:
        digest.update(canonical_json([text.input_ids, text.first_scored, text.text, text.word_ids]))
        yield text


def _read(path: Path, header: Mapping[str, Any], found: _Found) -> int:
    """Takes over the scores of a file about the same thing, up to a line torn by a crash.

    Returns:
        The length in bytes of what was taken over; 0 if there is nothing.
    """
    size = 0
    try:
        with path.open("rb") as file:
            for line in file:
                entry = json.loads(line)
                if not line.endswith(b"\n") or (size == 0 and entry != header):
                    break
                if size:
                    found.put(entry["index"], entry["scores"])
                size += len(line)
    except (OSError, ValueError):
        return size
    return size


def _open(path: Path, header: Mapping[str, Any], size: int) -> Any:
    """Returns the file, at the end of what was taken over; a new one begins with the header."""
    if size:
        os.truncate(path, size)
        return path.open("a", encoding="utf-8")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE_MODE)
    file = os.fdopen(descriptor, "w", encoding="utf-8")
    file.write(json.dumps(header) + "\n")
    return file


def _require_finite(index: int, scores: Mapping[str, float]) -> None:
    """Raises if a score is NaN or infinite; says which, never what the text says."""
    for name, value in scores.items():
        if not np.isfinite(value):
            raise InvalidDataError(
                f"the score {name} of text {index + 1} is {value}: the model's probabilities are "
                "not finite. Use --dtype float32, or leave the record out of both sides."
            )
