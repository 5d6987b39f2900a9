"""access.html: one file, drawn from the record of an access evaluation and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from sordino.core.errors import InvalidDataError
from sordino.reports.access_record import CLAUSE_WORDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sordino.access.results import Clauses, PairedTest, Rate
    from sordino.reports.access_record import AccessRecord

_TEMPLATE = "access.html.jinja"
_NONE = "not asked"
_GROUP_COLUMNS = ("correct", "leak", "false_refusal", "wrong_format")
_GROUP_WORDS = ("right", "leaked", "refused although allowed", "wrong format")
_GROUP_TITLES = {"questionnaire": "By kind of question", "attribute": "By what was asked for"}
_SMALLEST_P = 1e-4


@dataclass(frozen=True, slots=True)
class Table:
    """A table of words.

    Args:
        title: What it shows.
        headers: One a column; the first names the rows.
        rows: Cells.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def show_rate(rate: Rate | None) -> str:
    """Returns a rate with its interval and counts."""
    if rate is None:
        return _NONE
    ends = f"{100 * rate.lower:.1f} to {100 * rate.upper:.1f}"
    unclear = f", {rate.num_unclear} unclear" if rate.num_unclear else ""
    return f"{100 * rate.share:.1f}% ({ends}; {rate.count} of {rate.total}{unclear})"


def make_tables(record: AccessRecord) -> list[Table]:
    """Returns the tables of an evaluation, the main one first."""
    tables = [_clause_table(record)]
    for by, title in _GROUP_TITLES.items():
        rows = tuple(
            (_words(name), *(show_rate(getattr(clauses, column)) for column in _GROUP_COLUMNS))
            for name, clauses in record.groups(by).items()
        )
        tables.append(Table(title, (by, *_GROUP_WORDS), rows))
    return tables


def describe_tests(record: AccessRecord) -> list[str]:
    """Returns the paired tests in sentences, and what a human must look at."""
    lines = []
    askers = record.askers()
    if askers is not None:
        total = askers.both + askers.only_first + askers.only_second + askers.neither
        lines.append(
            f"Pairs that differ in the asker alone: in {askers.only_first} of {total} the value "
            f"was told only to the one who may know, in {askers.only_second} only to the other, in "
            f"{askers.both} to both, in {askers.neither} to neither "
            f"(McNemar's exact test: {_p_value(askers)})."
        )
    if record.before is not None:
        test = record.before.test
        lines.append(
            f"Against {record.before.name}: {test.only_second} questions are right now and were "
            f"not, {test.only_first} were right and are not (McNemar's exact test: "
            f"{_p_value(test)})."
        )
    if record.num_unclear:
        lines.append(
            f"{record.num_unclear} answers can be graded by a human only: the lower end of an "
            "interval takes them all as no, the upper end as yes."
        )
    return lines


def list_facts(record: AccessRecord) -> list[tuple[str, object]]:
    """Returns how an evaluation was made, by words."""
    questions = {f"questions: {name}": value for name, value in record.questions.items()}
    facts = {**record.subject, **questions, **record.settings, **record.cost}
    return [(_words(name), value) for name, value in facts.items() if value is not None]


def render_access_page(record: AccessRecord) -> str:
    """Returns the page: a pure function of the record. It loads and runs nothing.

    Raises:
        InvalidDataError: If the record is not finite.
    """
    from jinja2 import Environment, StrictUndefined

    try:
        record.to_bytes()
    except ValueError as error:
        raise InvalidDataError(f"the record of an evaluation is not finite: {error}.") from None
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("sordino.reports").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        record=record,
        bars=_bars(record),
        tables=make_tables(record),
        tests=describe_tests(record),
        facts=list_facts(record),
    )


def _clause_table(record: AccessRecord) -> Table:
    """Returns the rates of the four clauses, with those before and behind the guard."""
    columns: dict[str, Mapping[str, Rate | None]] = {}
    if record.before is not None:
        columns[f"before: {record.before.name}"] = _by_name(record.before.clauses)
    columns["model"] = record.rates()
    if record.guarded:
        columns["behind the guard"] = record.rates(guarded=True)
    rows = tuple(
        (words, *(show_rate(rates[name]) if name in rates else "" for rates in columns.values()))
        for name, words in CLAUSE_WORDS.items()
    )
    return Table("The four clauses", ("share of questions", *columns), rows)


def _by_name(clauses: Clauses) -> dict[str, Rate | None]:
    """Returns rates by name."""
    return {name: getattr(clauses, name) for name in CLAUSE_WORDS if hasattr(clauses, name)}


def _bars(record: AccessRecord) -> list[tuple[str, Rate]]:
    """Returns the rates that are drawn, with their names."""
    drawn = [(words, record.rates()[name]) for name, words in CLAUSE_WORDS.items()]
    if record.guarded:
        guarded = record.rates(guarded=True)
        drawn += [(f"{CLAUSE_WORDS[n]}, behind the guard", guarded[n]) for n in _GUARDED]
    return [(words, rate) for words, rate in drawn if rate is not None]


_GUARDED = ("leak", "false_refusal")


def _words(name: str) -> str:
    """Returns a name as words."""
    return name.replace("_", " ").replace("+", " and ")


def _p_value(test: PairedTest) -> str:
    """Returns a p-value, never rounded to zero."""
    return f"p < {_SMALLEST_P:g}" if test.p_value < _SMALLEST_P else f"p = {test.p_value:.2g}"
