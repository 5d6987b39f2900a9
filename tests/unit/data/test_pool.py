"""Record files: what can be read, and that errors say where and never what."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.data import (
    Record,
    count_duplicates,
    find_kind,
    normalize_text,
    overlap,
    read_records,
)

if TYPE_CHECKING:
    from pathlib import Path

PRIVATE = "Ramirez"  # stands in every bad record and may appear in no message
ROWS = [
    {"text": "a  good, 'quoted' \"film\"", "label": 1, "extra": PRIVATE},
    {"text": "schlecht – naïve\n", "label": 0, "extra": PRIVATE},
    {"text": "three", "label": 1, "extra": PRIVATE},
]
RECORDS = [
    Record("a  good, 'quoted' \"film\"", "1", (), 1),
    Record("schlecht – naïve\n", "0", (), 2),
    Record("three", "1", (), 3),
]


def write_jsonl(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, object]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_dataset(path: Path, rows: list[dict[str, object]]) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


WRITERS = {
    "pool.jsonl": write_jsonl,
    "pool.ndjson": write_jsonl,
    "pool.JSON": write_jsonl,
    "pool.csv": write_csv,
    "pool.parquet": write_parquet,
    "pool": write_dataset,
}


def refused(path: Path, message: str, **settings: object) -> None:
    with pytest.raises(InvalidDataError, match=message) as caught:
        read_records(path, **settings)
    assert PRIVATE not in str(caught.value).replace(str(path), "")
    assert path.name in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_records(name: str, tmp_path: Path) -> None:
    records = read_records(WRITERS[name](tmp_path / name, ROWS))
    lines = [2, 3, 5] if name.endswith("csv") else [1, 2, 3]  # a header; a line end in a text
    expected = [
        Record(record.prompt, record.label, (), line)
        for record, line in zip(RECORDS, lines, strict=True)
    ]
    assert records == expected


def test_tsv_has_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "pool.tsv"
    path.write_text('text\tlabel\n"not closed\t1\nb "c" d\t0\n', encoding="utf-8")
    assert [record.prompt for record in read_records(path)] == ['"not closed', 'b "c" d']


@pytest.mark.parametrize("name", [n for n in WRITERS if not n.endswith("csv")])
def test_completions_in_every_format(name: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": ["b", "c"]},
        {"prompt": "d", "completion": ["e"]},
    ]
    assert read_records(WRITERS[name](tmp_path / name, rows)) == [
        Record("a", None, ("b", "c"), 1),
        Record("d", None, ("e",), 2),
    ]


def test_completion_may_be_one_string(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": " b"}, {"prompt": "c", "completion": ["d"]}]
    records = read_records(write_jsonl(tmp_path / "p.jsonl", rows))
    assert [record.references for record in records] == [(" b",), ("d",)]
    rows = [{"prompt": "a", "completion": "b"}] * 2
    assert read_records(write_csv(tmp_path / "p.csv", rows))[1].references == ("b",)


def test_kind_decides_where_both_have_columns(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1, "prompt": "b", "completion": "c"}] * 2
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    refused(path, "line 1: has the columns of two kinds")
    assert read_records(path, kind="completion")[0].prompt == "b"
    assert read_records(path, kind="classification")[0].label == "1"
    with pytest.raises(InvalidParameterError, match="kind must be one of"):
        read_records(path, kind="other")


def test_prompts_alone_must_be_asked_for(tmp_path: Path) -> None:
    """No other column is read then, and a file of prompts is of no kind by itself."""
    path = write_jsonl(
        tmp_path / "p.jsonl", [{"prompt": "a", "user": 3}, {"prompt": "b", "completion": None}]
    )
    assert read_records(path, kind="prompt") == [
        Record("a", None, (), 1),
        Record("b", None, (), 2),
    ]
    with pytest.raises(InvalidDataError, match="line 1: the columns text and label"):
        read_records(path)
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a", "user": 3}] * 2)
    assert [r.unit for r in read_records(path, kind="prompt", unit_column="user")] == ["3", "3"]


def test_byte_order_mark_windows_line_ends_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "a", "label": 1}\r\n\r\n{"text": "b", "label": "x"}\r\n\r\n'
    )
    assert [(r.prompt, r.label, r.line) for r in read_records(path)] == [
        ("a", "1", 1),
        ("b", "x", 3),
    ]
    path = tmp_path / "p.csv"
    path.write_bytes(b"\xef\xbb\xbf text ,label\r\na, 1 \r\n\r\nb,0\r\n")
    assert [(r.prompt, r.label, r.line) for r in read_records(path)] == [
        ("a", "1", 2),
        ("b", "0", 4),
    ]


def test_quoted_line_ends_keep_the_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text('text,label\n"a\nb\nc",1\nd,0\ne,\n')
    refused(path, "line 6: the column label is empty")


def test_boolean_and_other_labels(tmp_path: Path) -> None:
    for label, name in ((True, "bool"), (1.0, "float"), ([1], "list"), ({}, "dict")):
        rows = [{"text": PRIVATE, "label": label}] * 2
        refused(
            write_jsonl(tmp_path / "p.jsonl", rows),
            f"line 1: the column label must be a string or a whole number, got {name}",
        )


def test_missing_file_and_unsupported_suffix(tmp_path: Path) -> None:
    refused(tmp_path / "nope.jsonl", "there is no such file or folder")
    for name in ("pool.txt", "pool", "pool.jsonl.gz"):
        (tmp_path / name).write_text(PRIVATE)
        refused(tmp_path / name, r"must be one of \.jsonl, \.ndjson, \.json, \.csv")


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.tsv"])
def test_empty_file(name: str, tmp_path: Path) -> None:
    for content in ("", "\n \n" if name == "p.jsonl" else "\n\n"):
        (tmp_path / name).write_text(content)
        refused(tmp_path / name, "must hold at least 2, has no records")


def test_header_alone(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("text,label\n")
    refused(tmp_path / "p.csv", "has no records")
    refused(
        write_parquet(tmp_path / "p.parquet", []),
        "has no records",
    )


@pytest.mark.parametrize("name", WRITERS)
def test_one_record_is_not_a_pool(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name, [{"text": PRIVATE, "label": 1}])
    refused(path, "must hold at least 2, has only one record")
    assert len(read_records(path, min_records=1)) == 1
    refused(path, "must hold at least 3, has only one", min_records=3)


@pytest.mark.parametrize("name", WRITERS)
def test_missing_column(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name, [{"text": PRIVATE, "rating": 1, PRIVATE * 7: 2}] * 2)
    refused(path, "the columns text and label .classification., or prompt and completion are")
    refused(path, "[12]: the columns .* found: text, rating and 1 not shown")


@pytest.mark.parametrize("name", WRITERS)
def test_no_known_column(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name, [{"a": PRIVATE, "b": 1}] * 2)
    refused(path, "required; found: a, b")


def test_missing_header_is_not_printed(tmp_path: Path) -> None:
    path = tmp_path / "p.tsv"
    path.write_text(f"{PRIVATE} is a fine film\t1\n{PRIVATE} again\t0\n")
    refused(path, "found: 2 not shown, for not looking like column names.*first line must hold")


def test_missing_column_in_a_later_line(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1}, {"text": PRIVATE}]
    refused(write_jsonl(tmp_path / "p.jsonl", rows), "line 2: the columns .* found: text")
    refused(
        tmp_path / "p.jsonl",
        "line 2: the columns text and label are required",
        kind="classification",
    )
    refused(tmp_path / "p.jsonl", "line 1: the columns prompt and completion", kind="completion")


@pytest.mark.parametrize("column", ["text", "label"])
@pytest.mark.parametrize("name", WRITERS)
def test_null_and_empty_values(name: str, column: str, tmp_path: Path) -> None:
    good = {"text": PRIVATE, "label": "yes"}
    for value, word in ((None, "null"), ("", "empty"), ("  ", "empty")):
        place, expected = ("line 3", "empty") if name.endswith("csv") else ("[ew] 2", word)
        path = WRITERS[name](tmp_path / f"{len(word)}{value}{name}", [good, good | {column: value}])
        refused(path, f"{place}: the column {column} is {expected}")


@pytest.mark.parametrize(
    ("completion", "message"),
    [
        (None, "column completion is null"),
        ("", "column completion is empty"),
        ([], "column completion is an empty list"),
        (["x", " "], "column completion is empty"),
        (["x", None], "column completion is null"),
        ([3], "column completion must be a string, got int"),
        ({"x": PRIVATE}, "column completion must be a string, got dict"),
    ],
)
def test_bad_completions(completion: object, message: str, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": PRIVATE, "completion": completion}]
    refused(write_jsonl(tmp_path / "p.jsonl", rows), f"line 2: the {message}")


def test_prompt_must_be_a_string(tmp_path: Path) -> None:
    rows = [{"prompt": 5, "completion": PRIVATE}] * 2
    refused(write_jsonl(tmp_path / "p.jsonl", rows), "line 1: the column prompt must be a string")


@pytest.mark.parametrize(
    "line",
    [f'{{"text": "{PRIVATE}', f"{PRIVATE}", f"{{'text': '{PRIVATE}'}}", "[" * 100_000, "1" * 5000],
)
def test_invalid_json(line: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "a", "label": 1}\n\n' + line + "\n")
    refused(path, "line 3: not valid JSON")


@pytest.mark.parametrize("line", [f'["{PRIVATE}"]', f'"{PRIVATE}"', "null", "3"])
def test_json_that_is_no_object(line: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(line)
    refused(path, r"line 1: must be a JSON object, got .*one object a line")


def test_lone_surrogate(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "ok", "label": 1}\n{"text": "' + PRIVATE + '\\ud800", "label": 1}\n')
    refused(path, "line 2: the column text is not valid Unicode")


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.tsv"])
def test_not_utf8(name: str, tmp_path: Path) -> None:
    start = f"line\n{PRIVATE} ".encode()
    (tmp_path / name).write_bytes(start + b"\xe9t\xe9\n")
    refused(tmp_path / name, rf"line 2: not UTF-8 \(byte {len(start)} of the file\)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"text,label\n{PRIVATE},1,2\n", "line 2: must have 2 columns .* got 3"),
        (f"text,label\na,1\n{PRIVATE}\n", "line 3: must have 2 columns .* got 1"),
        (f'text,label\na,1\n"{PRIVATE},0\nb,1\n', "line 3: not valid CSV: a quote"),
        (f'text,label\n"{PRIVATE}"b,1\n', "line 2: not valid CSV: a quote"),
        ("text,label\n" + PRIVATE * 30_000 + ",1\n", "line 2: not valid CSV.*131,072 characters"),
        (f"text,text\n{PRIVATE},1\n", "two columns have the same name"),
    ],
)
def test_invalid_csv(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    refused(tmp_path / "p.csv", message)


def test_mixed_kinds(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1}, {"prompt": PRIVATE, "completion": "b"}]
    refused(
        write_jsonl(tmp_path / "p.jsonl", rows),
        "line 2: a completion record, but line 1 is a classification record",
    )


def test_damaged_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", [{"text": PRIVATE, "label": 1}] * 9)
    content = path.read_bytes()
    for bad in (b"", b"PAR1", content[:-30], PRIVATE.encode() * 9):
        path.write_bytes(bad)
        refused(path, "not a readable Parquet file")


def test_folder_that_is_no_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    refused(folder, r"written by datasets' save_to_disk \(state.json is missing\)")
    (folder / "state.json").write_text("{" + PRIVATE)
    refused(folder, "datasets cannot read this folder")


def test_dataset_with_several_splits(tmp_path: Path) -> None:
    part = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "d")
    refused(tmp_path / "d", r"several splits\. Give one of them, such as .*/d/train")
    assert read_records(tmp_path / "d" / "train") == RECORDS


def test_dataset_with_a_format_and_class_labels(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    dataset = datasets.Dataset.from_list(rows, features=features).with_format("numpy")
    dataset.save_to_disk(tmp_path / "d")
    assert [record.label for record in read_records(tmp_path / "d")] == ["1", "0"]


def test_count_duplicates() -> None:
    records = [
        Record("a", "1", (), 1),
        Record("a", "1", (), 2),
        Record("a", "0", (), 3),
        Record("a", "1", (), 4),
        Record("a", None, ("b",), 5),
        Record("A", "1", (), 6),
    ]
    assert count_duplicates(records) == 2
    assert count_duplicates([]) == 0


def test_overlap_gives_lines_of_the_first_list() -> None:
    first = [Record("It won't  do.", "1", (), 4), Record("other", "1", (), 9)]
    second = [Record("it wo n't do", "0", (), 70), Record("!?", "0", (), 71)]
    assert overlap(first, second) == [4]
    assert overlap(second, first) == [70]
    assert overlap(first, []) == []


def test_normalized_text_keeps_signs_and_scripts_apart() -> None:
    assert normalize_text("!? ") == normalize_text(" !?") != normalize_text("?!")
    assert normalize_text("Ｆｕｌｌ ﬁne") == "fullfine"
    assert normalize_text("это") != normalize_text("то")


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ('{"text": "a", "label": 1}', "classification"),
        ('{"prompt": "a", "completion": "b"}', "completion"),
        ('{"prompt": "a"}', "prompt"),
    ],
)
def test_kind_of_a_file(row: str, kind: str, tmp_path: Path) -> None:
    """The first row tells; a prompt alone counts."""
    path = tmp_path / "records.jsonl"
    path.write_text(row + "\n", encoding="utf-8")
    assert find_kind(path) == kind
    path.write_text("", encoding="utf-8")
    with pytest.raises(InvalidDataError, match="no records"):
        find_kind(path)
