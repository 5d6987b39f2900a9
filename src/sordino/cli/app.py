"""The `sordino` command."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

import sordino
from sordino.cli import show
from sordino.cli.access import access_app
from sordino.cli.lazy import LazyCommand, make_lazy_group

if TYPE_CHECKING:
    from collections.abc import Callable

_HELP = "Tune language models on private text, and say exactly what leaves the building."
_SHOW: dict[str, Callable[[Any, bool], None]] = {
    "tune": show.show_tune,
    "distill": show.show_tune,
    "verify": show.show_verify,
    "risk": show.show_risk,
    "demo": show.show_demo,
    "compare": show.show_compare,
    "audit": show.show_audit,
    "audit_protocol": show.show_audit_protocol,
    "invert": show.show_invert,
    "quantize": show.show_quantize,
    "report": show.show_report,
    "people": show.show_people,
}
_EXAMPLES = {"risk": "sordino risk --mutual-information 0.33"}  # no shell line in its docstring
COMMANDS = {
    name.replace("_", "-"): LazyCommand(
        sordino.HOMES[name], name, printed, example=_EXAMPLES.get(name)
    )
    for name, printed in _SHOW.items()
}
app = typer.Typer(
    name="sordino",
    cls=make_lazy_group(COMMANDS),
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(access_app, name="access")


@app.callback(help=_HELP)
def _group() -> None:
    """Makes this a group although Typer itself knows no command of it."""


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
