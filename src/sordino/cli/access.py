"""The `sordino access` commands."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Column, Table

from sordino.cli.commands import make_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from sordino.access.generate import GenerateResult
    from sordino.reports.access_evaluate import EvaluateResult
    from sordino.reports.access_guard import GuardResult
    from sordino.reports.access_tune import AccessTuneResult

_HELP = (
    "Measure, and enforce, that a model tells values to those who may know them and to nobody "
    "else. A tuned model alone is not access control."
)
_NAMES = {"employees_file": "from"}  # a word that Python reserves


def make_access_app(out: Console) -> typer.Typer:
    """Returns the commands.

    Args:
        out: Where results are printed.
    """
    from sordino.access.generate import generate
    from sordino.reports.access_evaluate import evaluate
    from sordino.reports.access_guard import guard
    from sordino.reports.access_tune import tune

    app = typer.Typer(help=_HELP, no_args_is_help=True, pretty_exceptions_enable=False)
    commands: dict[Callable[..., Any], Callable[[Console, Any, bool], None]] = {
        generate: show_generate,
        tune: show_tune,
        evaluate: show_evaluate,
        guard: show_guard,
    }
    for function, show in commands.items():
        app.command(name=function.__name__)(
            make_command(function, partial(show, out), names=_NAMES)
        )
    return app


def show_generate(out: Console, result: GenerateResult, as_json: bool) -> None:  # noqa: FBT001
    """Prints where the questions lie, and how many there are."""
    if as_json:
        found = {"output": str(result.output), "num_questions": result.num_questions}
        typer.echo(json.dumps(found, indent=2))
        return
    for split, counts in result.num_questions.items():
        kinds = ", ".join(f"{name} {number}" for name, number in counts.items())
        out.print(f"{split}: {sum(counts.values())} questions ({kinds})")
    out.print(
        f"Questions: {result.output}. Ask them: sordino access evaluate MODEL --questions "
        f"{result.output} --output FOLDER"
    )


def show_tune(out: Console, result: AccessTuneResult, as_json: bool) -> None:  # noqa: FBT001
    """Prints the table before and after, what was forgotten, and the certificate."""
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2, allow_nan=False))
        return
    for line in result.lines():
        out.print(line)


def show_evaluate(out: Console, result: EvaluateResult, as_json: bool) -> None:  # noqa: FBT001
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
        out.print(table)
    for line in (*describe_tests(record), *record.notes):
        out.print(f"- {line}")
    folder = result.folder
    out.print(f"Page: {folder.page}. Numbers: {folder.numbers}.")
    out.print(f"Answers, which hold values of records: {folder.answers}.")


def show_guard(out: Console, result: GuardResult, as_json: bool) -> None:  # noqa: ARG001, FBT001
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
