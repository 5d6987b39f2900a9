"""What each command prints: words for people, JSON for machines."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Column, Table

from sordino.cli.commands import EXIT_CONTRADICTED, EXIT_FAILED

if TYPE_CHECKING:
    from sordino.accounting.inference_risk import Risk
    from sordino.data.people import PeopleResult
    from sordino.reports.audit import AuditResult
    from sordino.reports.audit_protocol import ProtocolAudit
    from sordino.reports.invert import InversionResult
    from sordino.reports.quantize import QuantizeResult
    from sordino.reports.report import ReportResult
    from sordino.reports.study import ComparisonResult
    from sordino.training.demo import DemoResult
    from sordino.training.tune import TuneResult
    from sordino.training.verify import Verification

_FOR_WHOM = {True: "It may leave the building.", False: "It is for the data holder."}
_out = Console(highlight=False, soft_wrap=True, markup=False)


def show_tune(result: TuneResult, as_json: bool) -> None:  # noqa: FBT001
    """Prints the certificate in words and where the run lies."""
    if os.environ.get("RANK", "0") != "0":
        return  # started by torchrun or accelerate: the main process prints
    if as_json:
        typer.echo(result.certificate.to_bytes().decode().rstrip())
        return
    from sordino.ledger.certificate_words import describe_certificate

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


def show_audit_protocol(result: ProtocolAudit, as_json: bool) -> None:  # noqa: FBT001
    """Prints the claim, what was proved and the verdict; exits with 2 if it is contradicted."""
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2))
    else:
        *lines, verdict = result.lines()
        for line in lines:
            _out.print(line)
        _out.print(verdict, style="bold red" if result.is_contradicted else None)
    if result.is_contradicted:
        raise typer.Exit(EXIT_CONTRADICTED)


def show_invert(result: InversionResult, as_json: bool) -> None:  # noqa: FBT001
    """Prints what each way of sending gives away, and that it is a control."""
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2))
        return
    headers = ("tokens found", "precision", "recall", "nearest: recall", "a guess", "another batch")
    table = Table(
        Column("what is sent", overflow="fold"),
        *(Column(header, justify="right", overflow="fold") for header in (*headers, "whole texts")),
    )
    for row in result.rows:
        other = row.nearest_of_another
        table.add_row(
            row.sent,
            f"{row.num_right} of {row.num_tokens}",
            "none found" if row.precision is None else f"{row.precision:.3f}",
            f"{row.recall:.3f}",
            f"{row.nearest_recall:.3f}",
            f"{row.nearest_by_chance / row.num_tokens:.4f}",
            "" if other is None else f"{other / row.num_tokens:.3f}",
            f"{row.num_whole_texts} of {row.num_texts}",
        )
    _out.print(table)
    for line in result.conclusions():
        _out.print(line)


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


def show_quantize(result: QuantizeResult, as_json: bool) -> None:  # noqa: FBT001
    """Prints losses by kind of layer, and what may be claimed of privacy."""
    from sordino.reports.quantize_lines import (
        GEOMETRY_HEADERS,
        HEADERS,
        describe_layers,
        geometry_rows,
        table_rows,
    )
    from sordino.reports.quantize_output import layer_record

    if as_json:
        typer.echo(result.record.read_text(encoding="utf-8").rstrip())
        return
    layers = [layer_record(item) for item in result.layers.values()]
    rows = table_rows(layers)
    if rows:
        first, *others = HEADERS
        numbers = [Column(header, justify="right") for header in others]
        table = Table(Column(first, overflow="fold"), *numbers)
        for row in rows:
            table.add_row(*row.cells(), end_section=row is rows[-2])
        _out.print(table)
    cells = geometry_rows(layers)
    if cells:
        table = Table(Column(GEOMETRY_HEADERS[0], overflow="fold"), *GEOMETRY_HEADERS[1:])
        for row in cells:
            table.add_row(*row)
        _out.print(table)
    for line in (
        *describe_layers(layers, result.kept),
        *result.frontier,
        *result.privacy["lines"],
    ):
        _out.print(line)
    _out.print(f"Folder: {result.output}. Every layer: {result.record}.")
