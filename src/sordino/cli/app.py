"""The `sordino` command."""

from __future__ import annotations

import json
import os
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from sordino.accounting.inference_risk import Risk, risk
from sordino.cli.access import make_access_app
from sordino.cli.commands import EXIT_CONTRADICTED, EXIT_FAILED, make_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from sordino.data.people import PeopleResult
    from sordino.reports.audit import AuditResult
    from sordino.reports.report import ReportResult
    from sordino.reports.study import ComparisonResult
    from sordino.training.demo import DemoResult
    from sordino.training.tune import TuneResult
    from sordino.training.verify import Verification

app = typer.Typer(
    name="sordino",
    help="Tune language models on private text, and say exactly what leaves the building.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_EXAMPLES = {"risk": "sordino risk --mutual-information 0.33"}  # no shell line in its docstring
_FOR_WHOM = {True: "It may leave the building.", False: "It is for the data holder."}
_out = Console(highlight=False, soft_wrap=True, markup=False)


def show_tune(result: TuneResult, as_json: bool) -> None:  # noqa: FBT001
    """Prints the certificate in words and where the run lies."""
    if os.environ.get("RANK", "0") != "0":
        return  # started by torchrun or accelerate: the main process prints
    if as_json:
        typer.echo(result.certificate.to_bytes().decode().rstrip())
        return
    from sordino.ledger.certificate import describe_certificate

    for line in describe_certificate(result.certificate):
        _out.print(line)
    _out.print(f"Run folder: {result.output}. Check it with: sordino verify {result.output}")


def show_verify(result: Verification, as_json: bool) -> None:  # noqa: FBT001
    """Prints every check; exits with 1 if anything differs."""
    if as_json:
        checks = [{"what": c.what, "difference": c.difference or None} for c in result.checks]
        typer.echo(json.dumps({"is_valid": result.is_valid, "checks": checks}, indent=2))
    else:
        for check in result.checks:
            _out.print(f"{'DIFFERS' if check.difference else 'ok':<8}{check.what}")
            if check.difference:
                _out.print(f"        {check.difference}")
        for line in result.certificate_in_words if result.is_valid else ():
            _out.print(line)
        _out.print("Verified." if result.is_valid else "NOT verified.")
    if not result.is_valid:
        raise typer.Exit(EXIT_FAILED)


def show_risk(result: Risk, as_json: bool) -> None:  # noqa: FBT001
    """Prints one privacy level in words."""
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2))
        return
    for line in result.lines():
        _out.print(line)


def show_demo(result: DemoResult, as_json: bool) -> None:  # noqa: FBT001
    """Prints accuracy before and after, the certificate in words, and where the run lies."""
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2))
        return
    for line in result.lines():
        _out.print(line)


def show_compare(result: ComparisonResult, as_json: bool) -> None:  # noqa: FBT001
    """Prints the table, what must be read with it, and where the page lies."""
    if os.environ.get("RANK", "0") != "0":
        return
    comparison = result.comparison
    if as_json:
        typer.echo(comparison.to_bytes().decode().rstrip())
        return
    first, *others = comparison.headers
    columns = [Column(header, overflow="fold") for header in others]
    table = Table(Column(first, no_wrap=True), *columns, show_lines=True)
    for row in comparison.rows:
        table.add_row(*comparison.cells(row))
    _out.print(table)
    for note in comparison.notes:
        _out.print(f"- {note}")
    _out.print(f"Page: {result.page}. Numbers: {result.record}.")


def show_audit(result: AuditResult, as_json: bool) -> None:  # noqa: FBT001
    """Prints the verdicts and the numbers; exits with 2 if a claim is contradicted."""
    from sordino.reports.audit_lines import describe_audit

    audit = result.audit
    if as_json:
        typer.echo(audit.to_bytes().decode().rstrip())
    else:
        for line in describe_audit(audit):
            _out.print(line, style="bold red" if line.startswith("CONTRADICTED") else None)
        _out.print(f"Record: {result.record}, for the data holder.")
    if audit.is_contradicted:
        raise typer.Exit(EXIT_CONTRADICTED)


def show_report(result: ReportResult, as_json: bool) -> None:  # noqa: FBT001
    """Prints where the page lies; exits with 2 if a claim is contradicted."""
    is_contradicted = result.audit is not None and result.audit.is_contradicted
    if as_json:
        paths = {"page": str(result.page), "record": result.record and str(result.record)}
        typer.echo(json.dumps(paths | {"is_contradicted": is_contradicted}, indent=2))
    else:
        if is_contradicted:
            _out.print("CONTRADICTED: a measurement contradicts the certificate.", style="bold red")
        _out.print(f"Page: {result.page}. {_FOR_WHOM[result.is_public]}")
    if is_contradicted:
        raise typer.Exit(EXIT_CONTRADICTED)


def show_people(result: PeopleResult, as_json: bool) -> None:  # noqa: FBT001
    """Prints where the files lie."""
    paths = {name: str(getattr(result, name)) for name in ("train", "heldout", "secrets")}
    if as_json:
        typer.echo(json.dumps(paths, indent=2))
        return
    for name, path in paths.items():
        _out.print(f"{name}: {path}")


def _register() -> None:
    """Adds one command a public function."""
    from sordino.data.people import people
    from sordino.reports.audit import audit
    from sordino.reports.compare import compare
    from sordino.reports.report import report
    from sordino.training.demo import demo
    from sordino.training.distill import distill
    from sordino.training.tune import tune
    from sordino.training.verify import verify

    commands: dict[Callable[..., Any], Callable[[Any, bool], None]] = {
        tune: show_tune,
        distill: show_tune,
        verify: show_verify,
        risk: show_risk,
        demo: show_demo,
        compare: show_compare,
        audit: show_audit,
        report: show_report,
        people: show_people,
    }
    for function, show in commands.items():
        example = _EXAMPLES.get(function.__name__)
        app.command(name=function.__name__)(make_command(function, show, example=example))
    app.add_typer(make_access_app(_out), name="access")


_register()


def main() -> None:
    """Runs the command line."""
    with warnings.catch_warnings():
        warnings.showwarning = partial(_show_warning, warnings.showwarning)
        app()


def _show_warning(
    show_others: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    *where: Any,
) -> None:
    """Prints our own warnings as one line, without a place in the source."""
    if category.__module__.startswith("sordino."):
        typer.echo(f"Warning: {message}", err=True)
    else:
        show_others(message, category, *where)
