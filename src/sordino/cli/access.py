"""The `sordino access` commands."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Column, Table

from sordino.cli.lazy import LazyCommand, make_lazy_group

if TYPE_CHECKING:
    from sordino.access.generate import GenerateResult
    from sordino.reports.access_evaluate import EvaluateResult
    from sordino.reports.access_guard import GuardResult
    from sordino.reports.access_tune_result import AccessTuneResult

_HELP = (
    "Measure, and enforce, that a model tells values to those who may know them and to nobody "
    "else. A tuned model alone is not access control."
)
_NAMES = {"employees_file": "from"}  # a word that Python reserves
_out = Console(highlight=False, soft_wrap=True, markup=False)


def show_generate(result: GenerateResult, as_json: bool) -> None:  # noqa: FBT001
    """Prints where the questions lie, and how many there are."""
    if as_json:
        found = {"output": str(result.output), "num_questions": result.num_questions}
        typer.echo(json.dumps(found, indent=2))
        return
    for split, counts in result.num_questions.items():
        kinds = ", ".join(f"{name} {number}" for name, number in counts.items())
        _out.print(f"{split}: {sum(counts.values())} questions ({kinds})")
    _out.print(
        f"Questions: {result.output}. Ask them: sordino access evaluate MODEL --questions "
        f"{result.output} --output FOLDER"
    )


def show_tune(result: AccessTuneResult, as_json: bool) -> None:  # noqa: FBT001
    """Prints the table before and after, what was forgotten, and the certificate."""
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2, allow_nan=False))
        return
    for line in result.lines():
        _out.print(line)


def show_evaluate(result: EvaluateResult, as_json: bool) -> None:  # noqa: FBT001
    """Prints the four clauses, the tests, and what must be read with them."""
    from sordino.reports.access_page import describe_tests, make_tables

    record = result.record
    if as_json:
        typer.echo(record.to_bytes().decode().rstrip())
        return
    for found in make_tables(record):
        first, *others = found.headers
        table = Table(
            Column(first, overflow="fold"),
            *(Column(header, overflow="fold") for header in others),
            title=found.title,
        )
        for row in found.rows:
            table.add_row(*row)
        _out.print(table)
    for line in (*describe_tests(record), *record.notes):
        _out.print(f"- {line}")
    folder = result.folder
    _out.print(f"Page: {folder.page}. Numbers: {folder.numbers}.")
    _out.print(f"Answers, which hold values of records: {folder.answers}.")


def show_guard(result: GuardResult, as_json: bool) -> None:  # noqa: FBT001
    """Prints counts, on standard error: standard output has the answers."""
    found = {
        "allowed": result.num_allowed,
        "refused": result.num_refused,
        "broken": result.num_broken,
    }
    if as_json:
        typer.echo(json.dumps(found), err=True)
        return
    typer.echo(
        f"{result.num_allowed} answers sent, {result.num_refused} refused, {result.num_broken} "
        "lines refused because they could not be checked.",
        err=True,
    )


ACCESS_COMMANDS = {
    "generate": LazyCommand("sordino.access.generate", "generate", show_generate, names=_NAMES),
    "tune": LazyCommand("sordino.reports.access_tune", "tune", show_tune),
    "evaluate": LazyCommand("sordino.reports.access_evaluate", "evaluate", show_evaluate),
    "guard": LazyCommand("sordino.reports.access_guard", "guard", show_guard),
}
access_app = typer.Typer(
    name="access",
    cls=make_lazy_group(ACCESS_COMMANDS),
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@access_app.callback(help=_HELP)
def _group() -> None:
    """Makes this a group although Typer itself knows no command of it."""
