"""Lists of sensitive strings: made with invented people, or the user's own.

No message here contains a string of the list: a file, a line and column names only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.core.errors import InvalidDataError
from sordino.data._rows import looks_like_a_name, open_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SECRET_KINDS = ("name", "email", "phone", "address", "date", "employer", "account")
OWN_KIND = "own"
_FEWEST_SIGNS = 3  # letters and digits; a shorter string is found everywhere by accident
_FEWEST_UNSPACED_SIGNS = 2  # where words are not separated by spaces, names are that short
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Secret:
    """A sensitive string, and where it stands in the data.

    Args:
        secret: The string.
        kind: One of `SECRET_KINDS`, or any other word; "own" for a list without kinds.
        person: Whose it is; None for nobody named.
        repetitions: Number of training documents with it; 0 for people who are held out, None for
            unknown.
        prefix: The text before it in a document; empty for unknown.
        suffix: What follows it up to the end of the sentence.
        line: In the file that it was read from; 0 for none.
    """

    secret: str = field(repr=False)
    kind: str = OWN_KIND
    person: str | None = None
    repetitions: int | None = None
    prefix: str = field(default="", repr=False)
    suffix: str = field(default="", repr=False)
    line: int = 0


def read_secrets(path: str | Path) -> list[Secret]:
    """Returns a list of sensitive strings.

    Formats: JSON Lines, CSV and TSV with a header line, with the column secret and as wanted kind,
    person, repetitions (training documents that hold it; 0 for none), prefix (the text before it)
    and suffix (what follows); and .txt files with one string a line.

    Raises:
        InvalidDataError: If the file or a row cannot be used; says where, never what it says.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise InvalidDataError(
            f"{path}: the format is told by the suffix, which must be one of "
            f"{', '.join(_SUFFIXES)}; got {suffix or 'none'}."
        )
    rows = _text_rows(path) if suffix == ".txt" else open_table(path).rows
    secrets = [_to_secret(f"{path}, line {line}", line, row) for line, row in rows]
    if not secrets:
        raise InvalidDataError(f"{path}: must hold at least one sensitive string, has none.")
    return secrets


def _text_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields one string a line; blank lines are skipped."""
    try:
        content = Path(os.path.expanduser(path)).read_bytes()  # noqa: PTH111 - as in `_rows`
        lines = content.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise InvalidDataError(
            f"{path}: cannot be read ({error.strerror}). Check the path."
        ) from None
    except UnicodeDecodeError:
        raise InvalidDataError(f"{path}: not UTF-8. Save the file as UTF-8.") from None
    for line, text in enumerate(lines, start=1):
        if text.strip():
            yield line, {"secret": text.strip()}


def _to_secret(place: str, line: int, row: Mapping[str, Any]) -> Secret:
    """Returns the string of a row. Columns found are not shown: without a header they are data."""
    if "secret" not in row:
        raise InvalidDataError(
            f"{place}: the column secret is required. In CSV and TSV the first line must hold the "
            "names of the columns; a file with one string a line must end in .txt."
        )
    values = {name: _text_of(place, row, name) for name in ("secret", "kind", "person")}
    context = {name: _text_of(place, row, name, keep=True) for name in ("prefix", "suffix")}
    kind = values["kind"] or OWN_KIND
    if not looks_like_a_name(kind):
        raise InvalidDataError(f"{place}: the column kind must be one word of up to 40 letters.")
    num_signs = sum(sign.isalnum() for sign in values["secret"])
    is_unspaced = any("\u0e00" <= s <= "\u17ff" or s >= "\u3040" for s in values["secret"])
    fewest = _FEWEST_UNSPACED_SIGNS if is_unspaced else _FEWEST_SIGNS
    if num_signs < fewest:
        raise InvalidDataError(
            f"{place}: a sensitive string must have at least {fewest} letters or digits, this one "
            f"has {num_signs}. Shorter ones are found in any text by accident: remove the row."
        )
    return Secret(
        secret=values["secret"],
        kind=kind,
        person=values["person"] or None,
        repetitions=_repetitions(place, row.get("repetitions")),
        prefix=context["prefix"],
        suffix=context["suffix"],
        line=line,
    )


def _text_of(place: str, row: Mapping[str, Any], column: str, *, keep: bool = False) -> str:
    """Returns a column as text, empty for missing; stripped unless its spaces matter."""
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise InvalidDataError(
            f"{place}: the column {column} must be a string, got {type(value).__name__}."
        )
    text = value or ""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        raise InvalidDataError(f"{place}: the column {column} is not valid Unicode.") from None
    return text if keep else text.strip()


def _repetitions(place: str, value: object) -> int | None:
    """Returns a number of training documents, None for unknown."""
    if isinstance(value, str):
        value = value.strip()
    if value is None or value == "":
        return None
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise InvalidDataError(
            f"{place}: the column repetitions must be a whole number from 0, or empty."
        )
    return int(text)
