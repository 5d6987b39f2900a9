"""Record files that are gone through again and again, and never held."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.data import RecordFile, _rows, iterate_records, labels_of, pick_records, read_records

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROWS = [{"text": f"text {i} – naïve", "label": i % 3} for i in range(7)]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def write_parquet(path: Path, rows: list[Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_dataset(path: Path, rows: list[Any]) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


def test_a_file_is_gone_through_again(tmp_path: Path) -> None:
    """Every pass gives what `read_records` returns."""
    path = write_jsonl(tmp_path / "p.jsonl", ROWS)
    file = RecordFile(path)
    assert (len(file), file.kind) == (7, "classification")
    assert list(file) == list(file) == read_records(path)
    assert labels_of(file) == {"0", "1", "2"}


def test_prompts_alone_are_found(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    assert [record.prompt for record in RecordFile(path)] == ["a", "b"]
    rows = [{"prompt": "a", "user": 3}, {"prompt": "b", "user": 4}]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    assert [record.unit for record in RecordFile(path, unit_column="user")] == ["3", "4"]
    with pytest.raises(InvalidDataError, match="line 1: the columns text and label are required"):
        RecordFile(path, kind="classification")


def test_what_is_wrong_is_known_at_once(tmp_path: Path) -> None:
    """A bad last line, or too few records, is found before anything is done with the first."""
    with pytest.raises(InvalidDataError, match="line 8: the columns text and label are required"):
        RecordFile(write_jsonl(tmp_path / "p.jsonl", [*ROWS, {"text": "a"}]))
    with pytest.raises(InvalidDataError, match="must hold at least 2, has only one record"):
        RecordFile(write_jsonl(tmp_path / "p.jsonl", ROWS[:1]))
    with pytest.raises(InvalidDataError, match="has no records"):
        RecordFile(write_jsonl(tmp_path / "p.jsonl", []))


def test_a_file_that_changes_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", ROWS)
    file = RecordFile(path)
    write_jsonl(path, ROWS[:5])
    with pytest.raises(InvalidDataError, match="held 7 records at first and 5 later"):
        list(file)
    path.unlink()
    with pytest.raises(InvalidDataError, match="no such file"):
        list(file)


def test_records_come_one_by_one(tmp_path: Path) -> None:
    """What is wrong in line 3 is raised after two records; bad arguments and paths at once."""
    path = write_jsonl(tmp_path / "p.jsonl", [*ROWS[:2], {"text": "a"}])
    records = iterate_records(path)
    assert [next(records).line, next(records).line] == [1, 2]
    with pytest.raises(InvalidDataError, match="line 3"):
        next(records)
    with pytest.raises(InvalidParameterError, match="kind must be one of"):
        iterate_records(path, kind="other")
    with pytest.raises(InvalidDataError, match="no such file"):
        iterate_records(tmp_path / "nope.jsonl")


def test_a_file_that_is_damaged_meanwhile(tmp_path: Path) -> None:
    """The encoding is checked beforehand; if it breaks later, nothing of the line is shown."""
    path = write_jsonl(tmp_path / "p.jsonl", ROWS)
    records = iterate_records(path)
    path.write_bytes(b"secret \xe9\n")
    with pytest.raises(InvalidDataError, match="was changed or removed") as caught:
        next(records)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "write"),
    [("p.jsonl", write_jsonl), ("p.parquet", write_parquet), ("p", write_dataset)],
)
def test_batches_of_rows_make_no_difference(
    name: str,
    write: Callable[[Path, list[Any]], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows keep their order and their numbers over the edges of batches."""
    path = write(tmp_path / name, ROWS)
    whole = read_records(path)
    monkeypatch.setattr(_rows, "_ROWS_AT_ONCE", 2)
    monkeypatch.setattr(_rows, "_BYTES_AT_ONCE", 3)  # cuts characters of several bytes
    assert read_records(path) == whole
    assert [record.line for record in whole] == list(range(1, 8))


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 2**20])
def test_place_of_a_wrong_byte(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line and byte are those of the file, wherever it is cut while reading; also at its end."""
    monkeypatch.setattr(_rows, "_BYTES_AT_ONCE", at_once)
    path = tmp_path / "p.jsonl"
    start = '\ufeff{"text": "ü–é", "label": 1}\n\n{"text": "'.encode()
    for end in (b'\xff", "label": 0}\n', b"\xe2\x80"):
        path.write_bytes(start + end)
        with pytest.raises(InvalidDataError, match=rf"line 3: not UTF-8 \(byte {len(start)} of"):
            read_records(path)


def test_records_are_picked_in_one_pass() -> None:
    """In the wanted order, and no further than needed."""
    passed = []

    def letters() -> Any:
        for letter in "abcdef":
            passed.append(letter)
            yield letter

    assert pick_records(letters(), [3, 0]) == ["d", "a"]
    assert passed == ["a", "b", "c", "d"]
    assert pick_records(letters(), []) == []
