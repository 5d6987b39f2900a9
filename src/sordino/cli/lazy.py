"""A command group that imports a command's module when the command is called, not for `--help`.

PyTorch and dp-accounting take seconds to import; a list of commands needs neither.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import typer
from typer.core import TyperGroup

import sordino
from sordino.cli.commands import make_command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["LazyCommand", "make_lazy_group"]


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """A public function that becomes a command when it is called.

    Args:
        module: Where it is defined.
        function: Its name there.
        show: As in `make_command`.
        example: As in `make_command`.
        names: As in `make_command`.
    """

    module: str
    function: str
    show: Callable[[Any, bool], None]
    example: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """Returns the first paragraph of the docstring, from the source alone."""
        parts = self.module.split(".")[1:]
        path = Path(sordino.__path__[0]).joinpath(*parts).with_suffix(".py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == self.function:
                return (ast.get_docstring(node) or "").split("\n\n", 1)[0]
        raise AttributeError(f"module {self.module!r} has no function {self.function!r}")

    def load(self, name: str) -> click.Command:
        """Returns the whole command."""
        function = getattr(import_module(self.module), self.function)
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        alone.command(name=name)(
            make_command(function, self.show, example=self.example, names=self.names)
        )
        return typer.main.get_command(alone)


def make_lazy_group(commands: Mapping[str, LazyCommand]) -> type[TyperGroup]:
    """Returns the class of a group with these commands, beside those that Typer knows of."""

    class LazyGroup(TyperGroup):
        """Knows names and summaries; loads one command when it is called."""

        def list_commands(self, ctx: click.Context) -> list[str]:
            return [*commands, *super().list_commands(ctx)]

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            if cmd_name not in commands:
                return super().get_command(ctx, cmd_name)
            return click.Command(cmd_name, help=commands[cmd_name].summary())

        def resolve_command(
            self, ctx: click.Context, args: list[str]
        ) -> tuple[str | None, click.Command | None, list[str]]:
            name, command, rest = super().resolve_command(ctx, args)
            if name in commands:
                command = commands[name].load(name)
            return name, command, rest

    return LazyGroup
