"""Shell commands made from public functions: same parameters, same defaults, by construction."""

from __future__ import annotations

import inspect
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.markup import escape
from safetensors import SafetensorError
from typing_extensions import Doc

from sordino.core.errors import SordinoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

EXIT_FAILED, EXIT_MISUSE, EXIT_INTERRUPTED = 1, 2, 130
EXIT_CONTRADICTED = 2  # an audit that breaks a claim must stop a pipeline as misuse does
JSON_OPTION = "json"
_WRONG_PATH = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
_CHECK = "Check the path and who may write there."
_SAFE = (
    "What was charged, released or scored so far is safe: repeat the command, with --resume where "
    "it has that option."
)


def make_command(
    function: Callable[..., Any],
    show: Callable[[Any, bool], None],
    *,
    example: str | None = None,
    names: Mapping[str, str] | None = None,
) -> Callable[..., None]:
    """Returns a Typer command that calls `function` and shows what it returns.

    Args:
        function: A public function whose parameters are explained by `Annotated[type, Doc(help)]`
            or under "Args:" in its docstring.
        show: Prints the result; its second argument says whether JSON was asked for.
        example: A shell line for --help; None takes those of the docstring.
        names: Options with another name than their parameter's, such as a word Python reserves.
    """
    hints = get_type_hints(function, include_extras=True)
    described = _described_arguments(function)
    parameters = [
        _to_option(parameter, hints[name], described.get(name), (names or {}).get(name, name))
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
        with failing_in_one_line():
            show(function(**arguments), as_json)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = _help(function, example)
    return command


@contextmanager
def failing_in_one_line() -> Iterator[None]:
    """Turns every expected failure into one line on standard error and an exit code."""
    try:
        yield
    except SordinoError as error:
        message, code = str(error), EXIT_MISUSE
    except BrokenPipeError:
        raise  # whoever reads our output has seen enough; Typer ends quietly
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        remedy = _CHECK if isinstance(error, _WRONG_PATH) else _SAFE
        message, code = f"{error.strerror or error}{where}. {remedy}", EXIT_MISUSE
    except SafetensorError as error:  # its own error for a full disk
        message, code = f"{error}. {_SAFE}", EXIT_MISUSE
    except KeyboardInterrupt:
        message, code = f"interrupted. {_SAFE}", EXIT_INTERRUPTED
    else:
        return
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(code)


def _to_option(
    parameter: inspect.Parameter, hint: Any, described: str | None, shown: str
) -> inspect.Parameter:
    """Returns the shell's version of one parameter."""
    extras = getattr(hint, "__metadata__", ())
    kind = hint.__origin__ if extras else hint
    text = next((extra.documentation for extra in extras if isinstance(extra, Doc)), described)
    text = text and escape(text)  # "[0, 1]" is not markup
    is_positional = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    if is_positional:
        info = typer.Argument(help=text)
    else:
        name = "--" + shown.replace("_", "-")
        if parameter.default is True:  # it must be possible to switch it off
            name += name.replace("--", "/--no-", 1)
        info = typer.Option(name, help=text)
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, info])


def _described_arguments(function: Callable[..., Any]) -> dict[str, str]:
    """Returns what the docstring says under "Args:" about each parameter."""
    section = re.search(r"^Args:\n((?: {4}.*\n)+)", inspect.getdoc(function) or "", re.MULTILINE)
    entries = re.findall(
        r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE
    )
    return {name: " ".join(text.split()) for name, text in entries}


def _help(function: Callable[..., Any], example: str | None) -> str:
    """Returns the docstring's summary and its shell example."""
    text = inspect.getdoc(function) or ""
    summary = text.split("\n\n", 1)[0]
    lines = [line.strip() for line in text.splitlines()]
    examples = [example] if example else [line for line in lines if line.startswith("sordino ")]
    return "\n\n".join([summary, *(f"Example: {example}" for example in examples)])
