"""Rows of a record file, with their line numbers, whatever the format.

Rows come one by one: of a text file one line is held at a time, of Parquet and of a folder of
`datasets` a batch of rows. (What pyarrow keeps of a row group while reading it is its own matter.)
No message here contains a value of a row: a file, a line and column names only.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.core.errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_LOOKS_LIKE_A_NAME = re.compile(r"[^\W\d][\w-]{0,39}")
_MOST_NAMES = 20
_BYTES_AT_ONCE = 2**20
_ROWS_AT_ONCE = 1_000
_USED = ("text", "label", "prompt", "completion", "forbidden")


@dataclass(frozen=True, slots=True)
class Table:
    """A record file's rows.

    Args:
        name: The path as given.
        unit: "line" in text files, "row" elsewhere; both count from 1.
        rows: Pairs of line number and columns.
    """

    name: str
    unit: str
    rows: Iterable[tuple[int, Mapping[str, Any]]]

    def at(self, line: int) -> str:
        """Returns where a row is, as the beginning of a message."""
        return f"{self.name}, {self.unit} {line}"


def open_table(path: str | Path, *, unit_column: str | None = None) -> Table:
    """Returns the rows of a record file; rows of text files are checked while iterating.

    Args:
        path: The file or folder.
        unit_column: One more column to read.

    Raises:
        InvalidDataError: If the path or the file cannot be used.
    """
    name = str(path)
    used = (*_USED, unit_column)
    path = Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises for "~nobody"
    if path.is_dir():
        return Table(name, "row", _dataset_rows(name, path, used))
    if not path.is_file():
        raise InvalidDataError(f"{name}: there is no such file or folder. Check the path.")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidDataError(
            f"{name}: the format is told by the suffix, which must be one of {', '.join(SUFFIXES)}"
            f"; got {suffix or 'none'}. A folder written by datasets' save_to_disk works too."
        )
    if suffix == ".parquet":
        return Table(name, "row", _parquet_rows(name, path, used))
    _require_utf8(name, path)
    if suffix == ".csv":
        return Table(name, "line", _delimited_rows(name, path, delimiter=",", quoted=True))
    if suffix == ".tsv":
        return Table(name, "line", _delimited_rows(name, path, delimiter="\t", quoted=False))
    return Table(name, "line", _json_rows(name, path))


def describe_columns(names: Iterable[Any]) -> str:
    """Returns column names for a message; what does not look like a name could be data."""
    names = list(names)
    shown = [str(name) for name in names if _LOOKS_LIKE_A_NAME.fullmatch(str(name))]
    hidden = len(names) - len(shown[:_MOST_NAMES])
    parts = [", ".join(shown[:_MOST_NAMES])] if shown else []
    if hidden:
        parts.append(f"{hidden} not shown, for not looking like column names")
    return " and ".join(parts) or "none"


def looks_like_a_name(text: str) -> bool:
    """Returns whether a text may be printed as a label's or column's name."""
    return bool(re.fullmatch(r"[\w-]{1,40}", text))


def _require_utf8(name: str, path: Path) -> None:
    """Raises unless a file can be read and is UTF-8 from its first byte to its last."""
    line, position, left = 1, 0, b""
    try:
        with path.open("rb") as file:
            while content := left + file.read(_BYTES_AT_ONCE):
                is_last = len(content) == len(left)
                _, used = codecs.utf_8_decode(content, "strict", is_last)
                line += content.count(b"\n", 0, used)
                position += used
                left = content[used:]
    except OSError as error:
        raise InvalidDataError(f"{name}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        raise InvalidDataError(
            f"{name}, line {line}: not UTF-8 (byte {position + error.start} of the file). Save the "
            "file as UTF-8."
        ) from None


def _lines(name: str, path: Path, *, newline: str) -> Iterator[str]:
    """Yields the lines of a text file, without byte-order mark, with their ends.

    Args:
        name: The path as given.
        path: The file.
        newline: What ends a line; an empty string: line feed, carriage return or both.
    """
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as stream:
            yield from stream
    except (OSError, UnicodeDecodeError):
        raise InvalidDataError(f"{name}: was changed or removed while it was read.") from None


def _json_rows(name: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the objects of a JSON Lines file; blank lines are skipped."""
    for line, content in enumerate(_lines(name, path, newline="\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError):
            raise InvalidDataError(
                f"{name}, line {line}: not valid JSON. Each line must hold one whole JSON object "
                "(JSON Lines)."
            ) from None
        if not isinstance(row, dict):
            raise InvalidDataError(
                f"{name}, line {line}: must be a JSON object, got {type(row).__name__}. The file "
                "must hold one object a line (JSON Lines), not one list."
            )
        yield line, row


def _delimited_rows(
    name: str, path: Path, *, delimiter: str, quoted: bool
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the rows of a CSV file (quotes as in RFC 4180) or a TSV file (no quotes at all)."""
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    lines = _lines(name, path, newline="")
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = _require_unique(name, [cell.strip() for cell in cells])
            elif len(cells) != len(header):
                raise InvalidDataError(
                    f"{name}, line {start}: must have {len(header)} columns as the first line has, "
                    f"got {len(cells)}. Quote texts that contain the delimiter."
                )
            else:
                yield start, dict(zip(header, cells, strict=True))
    except csv.Error:
        raise InvalidDataError(
            f"{name}, line {line}: not valid {'CSV' if quoted else 'TSV'}: a quote that is not "
            f"closed or not doubled, or a text over {csv.field_size_limit():,} characters. JSON "
            "Lines (.jsonl) has neither limit."
        ) from None


def _require_unique(name: str, header: list[str]) -> list[str]:
    """Returns the header if no column occurs twice."""
    if len(set(header)) != len(header):
        raise InvalidDataError(f"{name}, line 1: two columns have the same name. Rename one.")
    return header


def _parquet_rows(
    name: str, path: Path, used: Sequence[str | None]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the rows of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            wanted = [column for column in columns if column in used]
            if not wanted:
                yield from ((i, dict.fromkeys(columns)) for i in _numbers(file.metadata.num_rows))
                return
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield number, dict.fromkeys(columns) | row
    except (pa.ArrowException, OSError, ValueError):
        raise InvalidDataError(
            f"{name}: not a readable Parquet file. It is damaged, or has another format than its "
            "suffix says."
        ) from None


def _dataset_rows(
    name: str, folder: Path, used: Sequence[str | None]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the rows of a folder written by `datasets.Dataset.save_to_disk`."""
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        raise InvalidDataError(
            f"{name}: the folder holds several splits. Give one of them, such as {folder}/train."
        )
    if not (folder / "state.json").is_file():
        raise InvalidDataError(
            f"{name}: a folder must be one written by datasets' save_to_disk (state.json is "
            f"missing). Otherwise give a file: {', '.join(SUFFIXES)}."
        )
    import datasets

    number = 0
    try:
        dataset = datasets.load_from_disk(str(folder)).with_format(None)
        columns = dataset.column_names
        wanted = [column for column in columns if column in used]
        if not wanted:
            yield from ((i, dict.fromkeys(columns)) for i in _numbers(len(dataset)))
            return
        for batch in dataset.select_columns(wanted).iter(batch_size=_ROWS_AT_ONCE):
            for values in zip(*(batch[column] for column in wanted), strict=True):
                number += 1
                yield number, dict.fromkeys(columns) | dict(zip(wanted, values, strict=True))
    except Exception:  # noqa: BLE001 - its message may quote what the files contain
        raise InvalidDataError(
            f"{name}: datasets cannot read this folder; its files are damaged or incomplete."
        ) from None


def _numbers(count: int) -> range:
    """Returns the numbers of so many rows."""
    return range(1, count + 1)
