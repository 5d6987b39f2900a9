"""The `sordino` command."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from sordino.accounting.inference_risk import Risk, risk
from sordino.cli.commands import make_command
from sordino.core.errors import SordinoError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sordino.training.demo import DemoResult
    from sordino.training.tune import TuneResult
    from sordino.training.verify import Verification

EXIT_FAILED, EXIT_MISUSE, EXIT_INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="sordino",
    help="Tune language models on private text, and say exactly what leaves the building.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_out = Console(highlight=False, soft_wrap=True, markup=False)


def show_tune(result: TuneResult, as_json: bool) -> None:  # noqa: FBT001
    """Prints the certificate in words and where the run lies."""
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


def _register() -> None:
    """Adds one command a public function."""
    from sordino.training.demo import demo
    from sordino.training.tune import tune
    from sordino.training.verify import verify

    commands: dict[Callable[..., Any], Callable[[Any, bool], None]] = {
        tune: show_tune,
        verify: show_verify,
        risk: show_risk,
        demo: show_demo,
    }
    for function, show in commands.items():
        app.command(name=function.__name__)(make_command(function, show))


_register()


def main() -> None:
    """Runs the command line; every expected failure is one line and an exit code."""
    try:
        app(standalone_mode=True)
    except SordinoError as error:
        _fail(str(error), EXIT_MISUSE)
    except KeyboardInterrupt:
        _fail("interrupted; nothing is lost: run the same command with --resume.", EXIT_INTERRUPTED)
    except OSError as error:
        _fail(
            f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}. What was "
            "charged and released is safe; run the same command with --resume.",
            EXIT_MISUSE,
        )


def _fail(message: str, code: int) -> None:
    """Prints one line on standard error and exits."""
    typer.echo(f"Error: {message}", err=True)
    sys.exit(code)
