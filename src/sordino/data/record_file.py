"""A record file that is read as often as needed, and never held whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sordino.core.errors import InvalidDataError
from sordino.data.pool import find_kind, iterate_records

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from sordino.data.pool import Record


class Records(Protocol):
    """Records in their order, to be gone through as often as needed: a list, or a file."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __iter__(self) -> Iterator[Record]:
        """Yields all of them, from the first."""
        ...


class RecordFile:
    """The records of a file. They are read when they are gone through, every time anew.

    The file is read once when the object is made, so that everything wrong with a row is known
    before any work is done.

    Args:
        path: As in `read_records`, like the others.
        kind: Of the records; None finds it by the first row, and a prompt alone is one too.
        min_records: Fewest records allowed.
        unit_column: Column that names whose record it is.

    Raises:
        InvalidDataError: If the file, a row or a value cannot be used; says where.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        kind: str | None = None,
        min_records: int = 2,
        unit_column: str | None = None,
    ) -> None:
        self.path = path
        self.kind = kind or find_kind(path)
        self._unit_column = unit_column
        self._length = sum(1 for _ in self._read(min_records))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Record]:
        count = 0
        for record in self._read(0):
            count += 1
            yield record
        if count != self._length:
            raise InvalidDataError(
                f"{self.path}: held {self._length} records at first and {count} later. It must not "
                "be changed while it is used; begin again."
            )

    def _read(self, min_records: int) -> Iterator[Record]:
        """Returns one pass over the file."""
        return iterate_records(
            self.path, kind=self.kind, min_records=min_records, unit_column=self._unit_column
        )


def labels_of(records: Iterable[Record]) -> set[str]:
    """Returns every label that occurs; empty for completions and prompts."""
    return {record.label for record in records if record.label is not None}


def pick_records(records: Iterable[Record], wanted: Sequence[int]) -> list[Record]:
    """Returns the records of these numbers (from 0, each once), in their order, in one pass.

    Example:
        >>> pick_records(iter("abcd"), [3, 0])
        ['d', 'a']
    """
    places = {number: place for place, number in enumerate(wanted)}
    found = {}
    for number, record in enumerate(records):
        if number in places:
            found[places[number]] = record
        if len(found) == len(places):
            break
    return [found[place] for place in range(len(places))]
