"""Shell commands made from public functions: same parameters, same defaults, by construction."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typing_extensions import Doc

if TYPE_CHECKING:
    from collections.abc import Callable

JSON_OPTION = "json"


def make_command(
    function: Callable[..., Any], show: Callable[[Any, bool], None]
) -> Callable[..., None]:
    """Returns a Typer command that calls `function` and shows what it returns.

    Args:
        function: A public function whose parameters carry `Annotated[type, Doc(help)]`.
        show: Prints the result; its second argument says whether JSON was asked for.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters = [
        _to_option(parameter, hints[name])
        for name, parameter in inspect.signature(function).parameters.items()
    ]
    parameters.append(
        inspect.Parameter(
            JSON_OPTION,
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, typer.Option("--json", help="Print JSON for machines.")],
        )
    )

    def command(**arguments: Any) -> None:
        as_json = arguments.pop(JSON_OPTION)
        show(function(**arguments), as_json)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = _help(function)
    return command


def _to_option(parameter: inspect.Parameter, hint: Any) -> inspect.Parameter:
    """Returns the shell's version of one parameter."""
    extras = getattr(hint, "__metadata__", ())
    kind = hint.__origin__ if extras else hint
    text = next((extra.documentation for extra in extras if isinstance(extra, Doc)), None)
    is_positional = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    if is_positional:
        info = typer.Argument(help=text)
    else:
        name = "--" + parameter.name.replace("_", "-")
        info = typer.Option(name, help=text)
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, info])


def _help(function: Callable[..., Any]) -> str:
    """Returns the docstring's summary and its shell example."""
    text = inspect.getdoc(function) or ""
    summary = text.split("\n\n", 1)[0]
    lines = [line.strip() for line in text.splitlines()]
    examples = [line for line in lines if line.startswith("sordino ")]
    return "\n\n".join([summary, *(f"Example: {example}" for example in examples)])
