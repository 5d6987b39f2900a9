"""A command group that imports a command's module when the command is called, not for `--help`.

PyTorch and dp-accounting take seconds to import; a list of commands needs neither.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import click
import typer
from typer.core import TyperGroup

import sordino

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["load_command", "make_lazy_group", "read_summary"]


def make_lazy_group(
    homes: Mapping[str, str], make: Callable[[str], Callable[..., None]]
) -> type[TyperGroup]:
    """Returns the class of a group whose commands are public functions.

    Args:
        homes: By command, the module that defines the function of the same name.
        make: Of a command's name: the callback for Typer. It imports the module.
    """

    class LazyGroup(TyperGroup):
        """Knows names and summaries; loads one command when it is called."""

        def list_commands(self, ctx: click.Context) -> list[str]:
            return [*super().list_commands(ctx), *homes]

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            if cmd_name not in homes:
                return super().get_command(ctx, cmd_name)
            return click.Command(cmd_name, help=read_summary(homes[cmd_name], cmd_name))

        def resolve_command(
            self, ctx: click.Context, args: list[str]
        ) -> tuple[str | None, click.Command | None, list[str]]:
            name, command, rest = super().resolve_command(ctx, args)
            return name, load_command(make, str(name)) if name in homes else command, rest

    return LazyGroup


def load_command(make: Callable[[str], Callable[..., None]], name: str) -> click.Command:
    """Returns a whole command."""
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name=name)(make(name))
    return typer.main.get_command(alone)


def read_summary(module: str, function: str) -> str:
    """Returns the first paragraph of a function's docstring, from the source alone."""
    parts = module.split(".")[1:]
    path = Path(sordino.__path__[0]).joinpath(*parts).with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return (ast.get_docstring(node) or "").split("\n\n", 1)[0]
    raise AttributeError(f"module {module!r} has no function {function!r}")
