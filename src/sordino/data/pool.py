"""Records: reading and checking them, finding duplicates and overlaps.

A pool is the list of all records that a run may use. Extra columns of a file are not read in.
Errors name the file, the line and the columns, never what a record says.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sordino.core.checks import require_integer, require_one_of
from sordino.core.errors import InvalidDataError
from sordino.data._rows import Table, describe_columns, open_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

KINDS = {
    "classification": ("text", "label"),
    "completion": ("prompt", "completion"),
    "prompt": ("prompt",),
}
_FOUND_BY_COLUMNS = ("classification", "completion")  # a prompt alone must be asked for
_COLUMNS = "text and label (classification), or prompt and completion"


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a pool.

    Args:
        prompt: The text to classify, or the prompt to complete.
        label: The label as a string; None for completions and prompts.
        references: The acceptable completions, the one to learn first; empty for classification and
            for prompts alone.
        line: Line in a text file, row elsewhere; from 1.
        unit: Whose record it is, where several records belong to one person; None elsewhere.
        forbidden: Completion: texts that an answer must not hold, where they were asked for.
    """

    prompt: str
    label: str | None
    references: tuple[str, ...]
    line: int
    unit: str | None = None
    forbidden: tuple[str, ...] = ()


def read_records(
    path: str | Path,
    *,
    kind: str | None = None,
    min_records: int = 2,
    unit_column: str | None = None,
    with_forbidden: bool = False,
) -> list[Record]:
    """Returns the records of a file, in its order.

    Formats: JSON Lines (.jsonl, .ndjson, .json), CSV with a header line, TSV with a header line and
    without quoting, Parquet, and folders written by `datasets.Dataset.save_to_disk`. Columns: text
    and label (string or whole number), or prompt and completion (a string, or a list of acceptable
    strings of which the first is learned). Others are ignored.

    Args:
        path: The file or folder.
        kind: "classification", "completion" or "prompt", which reads no other column; None takes
            one of the first two, by the columns of the first row.
        min_records: Fewest records allowed.
        unit_column: Column that names whose record it is (string or whole number); None: nobody is
            named, and each record stands for itself.
        with_forbidden: Whether to read the column forbidden of completions too: a string or a list
            of strings, null or an empty list for none.

    Raises:
        InvalidDataError: If the file, a row or a value cannot be used; says where.
    """
    return list(
        iterate_records(
            path,
            kind=kind,
            min_records=min_records,
            unit_column=unit_column,
            with_forbidden=with_forbidden,
        )
    )


def iterate_records(
    path: str | Path,
    *,
    kind: str | None = None,
    min_records: int = 2,
    unit_column: str | None = None,
    with_forbidden: bool = False,
) -> Iterator[Record]:
    """Yields the records of a file as `read_records` returns them, without holding them.

    What is wrong with the path or with a text file's encoding is raised at once, what is wrong with
    a row when it is reached, and that there are too few when the file ends.

    Args:
        path: As in `read_records`, like all others.
        kind: Of the records.
        min_records: Fewest records allowed.
        unit_column: Column that names whose record it is.
        with_forbidden: Whether to read the column forbidden of completions too.

    Raises:
        InvalidDataError: If the file, a row or a value cannot be used; says where.
    """
    if kind is not None:
        require_one_of("kind", kind, tuple(KINDS))
    require_integer("min_records", min_records, 0)
    table = open_table(path, unit_column=unit_column)
    return _records(table, kind, min_records, unit_column, with_forbidden=with_forbidden)


def _records(
    table: Table,
    kind: str | None,
    min_records: int,
    unit_column: str | None,
    *,
    with_forbidden: bool,
) -> Iterator[Record]:
    """Yields the records of a table."""
    first: tuple[int, str] | None = None
    count = 0
    for line, row in table.rows:
        found = kind or _find_kind(table, line, row)
        first = first or (line, found)
        if found != first[1]:
            raise InvalidDataError(
                f"{table.at(line)}: a {found} record, but {table.unit} {first[0]} is a {first[1]} "
                "record. Use one file per kind."
            )
        record = _to_record(table, line, row, found)
        if unit_column is not None:
            record = replace(record, unit=_require_unit(table, line, row, unit_column))
        if with_forbidden and found == "completion":
            record = replace(record, forbidden=_forbidden_texts(table, line, row))
        count += 1
        yield record
    if count < min_records:
        shown = {0: "no records", 1: "only one record"}.get(count, f"{count} records")
        raise InvalidDataError(f"{table.name}: must hold at least {min_records}, has {shown}.")


def find_kind(path: str | Path) -> str:
    """Returns the kind of a file's records by its first row; a prompt alone is one too.

    Raises:
        InvalidDataError: If the file cannot be read, is empty or has other columns.
    """
    table = open_table(path)
    for line, row in table.rows:
        is_prompt = "prompt" in row and not {"completion", "label"} & set(row)
        return "prompt" if is_prompt else _find_kind(table, line, row)
    raise InvalidDataError(f"{table.name}: must hold at least one record, has no records.")


def count_duplicates(records: Iterable[Record]) -> int:
    """Returns how many records repeat an earlier one exactly."""
    seen: set[tuple[str, str | None, tuple[str, ...]]] = set()
    total = 0
    for record in records:
        seen.add((record.prompt, record.label, record.references))
        total += 1
    return total - len(seen)


def group_by_unit(records: Sequence[Record]) -> list[list[int]]:
    """Returns the records of every unit, as indices: units in order of their first record.

    A record without a unit is a unit of its own.

    Example:
        >>> ann = Record("a", None, ("b",), 1, unit="ann")
        >>> group_by_unit([ann, replace(ann, unit="bob"), ann])
        [[0, 2], [1]]
    """
    groups: dict[object, list[int]] = {}
    for index, record in enumerate(records):
        key = index if record.unit is None else record.unit
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def overlap(records_a: Sequence[Record], records_b: Sequence[Record]) -> list[int]:
    """Returns the lines of those records in `records_a` whose prompt also occurs in `records_b`.

    Prompts are compared by `normalize_text`.
    """
    known = {normalize_text(record.prompt) for record in records_b}
    return [record.line for record in records_a if normalize_text(record.prompt) in known]


def normalize_text(text: str) -> str:
    """Returns a text without what differs between copies: case, spaces, punctuation, width.

    Example:
        >>> normalize_text("It won't  do.") == normalize_text("it wo n't do")
        True
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = "".join(character for character in folded if character.isalnum())
    return letters or " ".join(folded.split())  # a text of signs only stays what it is


def _find_kind(table: Table, line: int, row: Mapping[str, Any]) -> str:
    """Returns the kind of record whose columns a row has."""
    kinds = [kind for kind in _FOUND_BY_COLUMNS if all(name in row for name in KINDS[kind])]
    if len(kinds) > 1:
        raise InvalidDataError(
            f"{table.at(line)}: has the columns of two kinds ({_COLUMNS}). Remove one pair."
        )
    if not kinds:
        raise _missing_columns(table, line, row, _COLUMNS)
    return kinds[0]


def _missing_columns(
    table: Table, line: int, row: Mapping[str, Any], required: str
) -> InvalidDataError:
    """Returns the error for a row without the columns it needs."""
    return InvalidDataError(
        f"{table.at(line)}: the columns {required} are required; found: {describe_columns(row)}. "
        "Rename the columns of the file; in CSV and TSV the first line must hold their names."
    )


def _to_record(table: Table, line: int, row: Mapping[str, Any], kind: str) -> Record:
    """Returns the record of a row whose kind is known."""
    if any(name not in row for name in KINDS[kind]):
        raise _missing_columns(table, line, row, " and ".join(KINDS[kind]))
    if kind == "classification":
        text = _require_text(table, line, "text", row["text"])
        return Record(text, _require_name(table, line, "label", row["label"]), (), line)
    prompt = _require_text(table, line, "prompt", row["prompt"])
    if kind == "prompt":
        return Record(prompt, None, (), line)
    completions = row["completion"]
    if not isinstance(completions, list):
        completions = [completions]
    if not completions:
        raise InvalidDataError(f"{table.at(line)}: the column completion is an empty list.")
    references = tuple(_require_text(table, line, "completion", text) for text in completions)
    return Record(prompt, None, references, line)


def _forbidden_texts(table: Table, line: int, row: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what the completion of a row must not hold; nothing where the column is absent."""
    texts = row.get("forbidden")
    if texts is None:
        return ()
    entries = texts if isinstance(texts, list) else [texts]
    return tuple(_require_text(table, line, "forbidden", text) for text in entries)


def _require_text(table: Table, line: int, column: str, value: object) -> str:
    """Returns a value if it is a text with something in it."""
    if value is None:
        raise InvalidDataError(f"{table.at(line)}: the column {column} is null.")
    if not isinstance(value, str):
        raise InvalidDataError(
            f"{table.at(line)}: the column {column} must be a string, got {type(value).__name__}."
        )
    if not value.strip():
        raise InvalidDataError(f"{table.at(line)}: the column {column} is empty.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        raise InvalidDataError(
            f"{table.at(line)}: the column {column} is not valid Unicode (a lone surrogate)."
        ) from None
    return value


def _require_unit(table: Table, line: int, row: Mapping[str, Any], column: str) -> str:
    """Returns whose record it is; a record that nobody answers for would be counted wrong."""
    if column not in row:
        raise _missing_columns(table, line, row, f"{column} (the privacy unit)")
    return _require_name(table, line, column, row[column])


def _require_name(table: Table, line: int, column: str, value: object) -> str:
    """Returns a label or a unit, a string or a whole number, as a string."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise InvalidDataError(
            f"{table.at(line)}: the column {column} must be a string or a whole number, got "
            f"{type(value).__name__}."
        )
    return _require_text(table, line, column, value).strip()
