"""Scores on disk: windows of texts, taking up what was begun, and memory that does not grow."""

from __future__ import annotations

import gc
import hashlib
import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import sordino.attacks.score_store as store
from helpers_runs import completion_rows, sentiment_rows, write_jsonl
from sordino.attacks.score_store import score_texts
from sordino.attacks.subject import open_subject
from sordino.attacks.texts import EncodedTexts, ScoredText, encode_texts
from sordino.core.errors import InvalidDataError
from sordino.data import Record, RecordFile, read_records
from sordino.reports.audit_measure import Material

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ANY: Any = None


@pytest.fixture(scope="module")
def subject(tiny_model: Path) -> Any:
    return open_subject(str(tiny_model), base=str(tiny_model), dtype=torch.float32)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Scores a text by its length, without a model; returns how many were scored at a time."""
    calls: list[int] = []

    def score(subject: Any, texts: Any, *others: Any) -> list[dict[str, float]]:
        calls.append(len(texts))
        return [{"length": float(len(text.input_ids))} for text in texts]

    monkeypatch.setattr(store, "_score", score)
    monkeypatch.setattr(store, "_begin_digest", lambda *_: hashlib.sha256())
    return calls


def texts_of(lengths: list[int]) -> list[ScoredText]:
    return [ScoredText(list(range(n)), 1, f"text {i}") for i, n in enumerate(lengths)]


@pytest.mark.parametrize("rows", [completion_rows(30), sentiment_rows(30)])
def test_one_window_computes_what_a_list_does(
    subject: Any, rows: list[Any], tmp_path: Path
) -> None:
    """A file gives the scores of its records as a list, to the bit."""
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    listed = encode_texts(read_records(path), subject.tokenizer, 48, task=None)
    streamed = EncodedTexts(RecordFile(path), subject.tokenizer, 48, task=None)
    assert len(streamed) == len(listed)
    assert list(streamed) == list(streamed) == listed
    first = score_texts(subject, listed, tmp_path / "a")
    second = score_texts(subject, streamed, tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_windows_change_the_batches_only(
    subject: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels are those of the whole file though a window holds one; scores agree to rounding."""
    rows = sorted(sentiment_rows(30), key=lambda row: row["label"])
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    texts = EncodedTexts(RecordFile(path), subject.tokenizer, 48, task=None)
    whole = score_texts(subject, texts, tmp_path / "a")
    monkeypatch.setattr(store, "_WINDOW", 7)
    monkeypatch.setattr("sordino.attacks.texts._RECORDS_AT_ONCE", 4)
    parts = score_texts(subject, texts, tmp_path / "b")
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, atol=1e-5)


def test_scoring_goes_on(
    counted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a whole line says is not scored again, in whatever window; a torn end is cut off."""
    monkeypatch.setattr(store, "_WINDOW", 10)
    monkeypatch.setattr(store, "_TEXTS_AT_ONCE", 4)
    texts, path = texts_of([2 + i % 5 for i in range(23)]), tmp_path / "scores.jsonl"
    whole = score_texts(ANY, texts, path)
    assert whole["length"].tolist() == [len(text.input_ids) for text in texts]
    assert counted == [4, 4, 2, 4, 4, 2, 3]
    content = path.read_bytes()
    counted.clear()
    assert score_texts(ANY, texts, path)["length"].tolist() == whole["length"].tolist()
    assert counted == []
    lines = content.splitlines(keepends=True)
    for end in (b"", b'{"index": 2, "sco', lines[13].rstrip(b"\n")):
        path.write_bytes(b"".join(lines[:13]) + end)
        counted.clear()
        done: list[int] = []
        again = score_texts(ANY, texts, path, advance=done.append)
        assert np.array_equal(again["length"], whole["length"])
        assert sum(counted) == 11
        assert (done[0], done[-1]) == (12, 23)
        assert path.read_bytes() == content


def test_a_file_about_other_texts_is_started_anew(counted: list[int], tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    score_texts(ANY, texts_of([3, 4]), path)
    for content in (path.read_bytes(), b"", b"{", b"\xff\n", b'{"of": "other"}\n{}\n'):
        path.write_bytes(content)
        counted.clear()
        found = score_texts(ANY, texts_of([5, 2, 9]), path)
        assert found["length"].tolist() == [5, 2, 9]
        assert counted == [3]
        assert len(path.read_bytes().splitlines()) == 4
        path.unlink()
    assert path.exists() is False
    score_texts(ANY, texts_of([5]), path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_one_text_and_none(counted: list[int], tmp_path: Path) -> None:
    assert score_texts(ANY, texts_of([5]), tmp_path / "a")["length"].tolist() == [5]
    assert score_texts(ANY, [], tmp_path / "b") == {}
    assert counted == [1]


@pytest.mark.parametrize("later", [[2, 3, 5], [2, 3], [2, 3, 4, 5]])
def test_texts_that_change_meanwhile_are_refused(
    later: list[int], counted: list[int], tmp_path: Path
) -> None:
    """The scores would be those of other texts than the file says: it is removed."""

    class Changing:
        passes = 0

        def __iter__(self) -> Iterator[ScoredText]:
            self.passes += 1
            return iter(texts_of([2, 3, 4] if self.passes == 1 else later))

    with pytest.raises(InvalidDataError, match="were changed while they were scored"):
        score_texts(ANY, Changing(), tmp_path / "scores.jsonl")
    assert not (tmp_path / "scores.jsonl").exists()
    assert sum(counted) <= 3


def write_long_texts(path: Path, count: int) -> Path:
    """Writes records of 2,000 characters each."""
    rows = ({"prompt": f"the film {i}", "completion": f"{i:>2000}"} for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.usefixtures("counted")
def test_memory_does_not_grow_with_the_records(
    subject: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six times as many records cost some numbers each, not their 2,000 characters."""
    monkeypatch.setattr(store, "_WINDOW", 32)
    monkeypatch.setattr("sordino.attacks.texts._RECORDS_AT_ONCE", 32)
    monkeypatch.setattr("sordino.data._rows._BYTES_AT_ONCE", 4_096)
    peaks = {}
    score_texts(ANY, texts_of([2]), tmp_path / "warm")  # what is made once
    for count in (100, 600):
        path = write_long_texts(tmp_path / f"{count}.jsonl", count)
        tracemalloc.start()
        file = RecordFile(path)
        texts = EncodedTexts(file, subject.tokenizer, 48, task=None)
        scores = score_texts(ANY, texts, tmp_path / f"{count}.scores")
        material = Material(members=file, nonmembers=[], canaries=[], style="", task=None)
        assert material.only_once()[0].all()
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert scores["length"].shape == (count,)
    assert peaks[600] - peaks[100] < 300 * 500


def test_a_window_is_alive_at_a_time(
    subject: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While texts are scored, none but those of the window, and of the last records read, exist."""
    monkeypatch.setattr(store, "_WINDOW", 32)
    monkeypatch.setattr("sordino.attacks.texts._RECORDS_AT_ONCE", 16)
    alive: list[tuple[int, int]] = []

    def count() -> list[int]:
        gc.collect()
        kinds = [type(x) for x in gc.get_objects()]
        return [kinds.count(ScoredText), kinds.count(Record)]

    before = count()

    def score(subject: Any, texts: Any, *others: Any) -> list[dict[str, float]]:
        now = count()
        alive.append((now[0] - before[0], now[1] - before[1]))
        return [{"loss": 0.0} for _ in texts]

    monkeypatch.setattr(store, "_score", score)
    path = write_jsonl(tmp_path / "p.jsonl", completion_rows(100))
    texts = EncodedTexts(RecordFile(path), subject.tokenizer, 48, task=None)
    score_texts(subject, texts, tmp_path / "scores")
    assert len(alive) == 4
    assert max(number for number, _ in alive) <= 32 + 16
    assert max(number for _, number in alive) <= 16
