"""Scores of many texts, kept on disk as they are made, so that an interrupted audit goes on.

The file is for the data holder: it has one line a record. Its first line says what was scored with
what; a file about anything else is started anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from sordino.attacks.scores import SCORES, score_all
from sordino.attacks.token_statistics import compute_token_statistics
from sordino.core.errors import InvalidDataError
from sordino.ledger.durable import PRIVATE_FILE_MODE
from sordino.ledger.ledger import canonical_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from sordino.attacks.subject import Subject
    from sordino.attacks.texts import ScoredText

    Extra = Callable[[ScoredText], float]

_TEXTS_AT_ONCE = 256  # scored between two writes; what a kill loses


def score_texts(
    subject: Subject,
    texts: Sequence[ScoredText],
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
        texts: What to score.
        path: File of the scores; made, continued or, if it is about something else, replaced.
        extras: Further scores by name, each a function of one text; they cost passes of their own.
        tokens_per_batch: Tokens of a forward pass, padding included.
        advance: Called with the number of texts done so far.

    Returns:
        By name, each of shape (num_texts,).

    Raises:
        InvalidDataError: If a score is NaN or infinite.
        OSError: If the file cannot be written.
    """
    extras = extras or {}
    header = {"of": _digest(subject, texts, extras), "num_texts": len(texts)}
    found = _read(path, header)
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i].input_ids), i))
    missing = [index for index in order if index not in found]
    advance(len(found))
    with _open(path, header, is_new=not found) as file:
        for start in range(0, len(missing), _TEXTS_AT_ONCE):
            chosen = missing[start : start + _TEXTS_AT_ONCE]
            scored = _score(subject, [texts[i] for i in chosen], extras, tokens_per_batch)
            for index, scores in zip(chosen, scored, strict=True):
                _require_finite(index, scores)
                found[index] = scores
                file.write(json.dumps({"index": index, "scores": scores}) + "\n")
            file.flush()
            os.fsync(file.fileno())
            advance(len(found))
    names = list(found[0])
    return {name: np.array([found[i][name] for i in range(len(texts))]) for name in names}


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


def _digest(subject: Subject, texts: Sequence[ScoredText], extras: Mapping[str, Extra]) -> str:
    """Returns a hash of everything that decides the scores."""
    parameter = next(subject.tuned.causal_lm.parameters())
    digest = hashlib.sha256(
        canonical_json(
            {
                "tuned": subject.fingerprint,
                "base": subject.base_fingerprint if subject.has_base else None,
                "scores": sorted([*SCORES, *extras]),
                "dtype": str(parameter.dtype),
            }
        )
    )
    for text in texts:
        digest.update(canonical_json([text.input_ids, text.first_scored, text.text, text.word_ids]))
    return digest.hexdigest()


def _read(path: Path, header: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Returns the scores of a file about the same thing; a line torn by a crash is left out."""
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        if json.loads(first) != header:
            return {}
    except (OSError, ValueError):
        return {}
    found = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            break
        found[entry["index"]] = entry["scores"]
    return found


def _open(path: Path, header: Mapping[str, Any], *, is_new: bool) -> Any:
    """Returns the file, at its end; a new one begins with the header."""
    if not is_new:
        return _after_last_whole_line(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE_MODE)
    file = os.fdopen(descriptor, "w", encoding="utf-8")
    file.write(json.dumps(header) + "\n")
    return file


def _after_last_whole_line(path: Path) -> Any:
    """Returns a file opened for appending, without a last line that a crash cut off."""
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)
    return path.open("a", encoding="utf-8")


def _require_finite(index: int, scores: Mapping[str, float]) -> None:
    """Raises if a score is NaN or infinite; says which, never what the text says."""
    for name, value in scores.items():
        if not np.isfinite(value):
            raise InvalidDataError(
                f"the score {name} of text {index + 1} is {value}: the model's probabilities are "
                "not finite. Use --dtype float32, or leave the record out of both sides."
            )
