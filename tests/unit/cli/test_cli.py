"""The shell: same parameters as Python, examples in every help, three exit codes."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING

import click
import pytest
import typer
from safetensors import SafetensorError
from typer.testing import CliRunner

import sordino
from helpers_runs import run_cli, sentiment_rows, write_jsonl
from sordino.accounting.inference_risk import risk
from sordino.cli import app as cli_app
from sordino.cli.app import _show_warning, app
from sordino.cli.commands import failing_in_one_line, make_command
from sordino.cli.lazy import LazyCommand
from sordino.cli.show import show_tune
from sordino.core.errors import InvalidParameterError
from sordino.training.numerics import PerturbationWarning

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = {name: command.load(name) for name, command in cli_app.COMMANDS.items()}
GROUPS = {"access"}  # commands of their own, tested in test_access.py
SHELL_ONLY = {"json", "help"}


def _read_help(name: str) -> str:
    """Returns a command's help without frames and line ends."""
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    return " ".join(result.output.replace("│", " ").split())


def test_one_command_per_public_function() -> None:
    """The shell has the public functions and nothing else but groups."""
    group = typer.main.get_command(app)
    public = sorted(name.replace("_", "-") for name in sordino.__all__)
    listed = group.list_commands(click.Context(group))
    assert sorted(listed) == sorted([*public, *GROUPS])
    assert sorted(COMMANDS) == public


def test_list_of_commands_is_read_from_the_source() -> None:
    """Its summaries are those of the docstrings, and nothing heavy is imported for it."""
    for name, command in cli_app.COMMANDS.items():
        text = inspect.getdoc(getattr(sordino, name.replace("-", "_"))) or ""
        assert command.summary() == text.split("\n\n", 1)[0]
    unknown = LazyCommand("sordino.training.tune", "nothing", show_tune)
    with pytest.raises(AttributeError, match="has no function 'nothing'"):
        unknown.summary()
    code = (
        "import sys; sys.argv = ['sordino', '--help']\n"
        "from sordino.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'dp_accounting', 'scipy'} & set(sys.modules)"
    )
    listed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert all(f" {name} " in listed for name in COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_command_mirrors_function(name: str) -> None:
    """Shell and Python accept the same parameters with the same defaults."""
    function = getattr(sordino, name.replace("-", "_"))
    python = {p.name: p.default for p in inspect.signature(function).parameters.values()}
    shell = {
        p.name: inspect.Parameter.empty if p.required else p.default
        for p in COMMANDS[name].params
        if p.name not in SHELL_ONLY
    }
    assert shell == python


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_options_are_spelled_like_parameters(name: str) -> None:
    """An option is its parameter with dashes; what Python takes by position, the shell does too."""
    for parameter in COMMANDS[name].params:
        if parameter.name in SHELL_ONLY:
            continue
        if isinstance(parameter, typer.core.TyperArgument):
            function = inspect.signature(getattr(sordino, name.replace("-", "_"))).parameters[
                parameter.name
            ]
            assert function.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        else:
            assert parameter.opts == ["--" + parameter.name.replace("_", "-")]
            opposite = ["--no-" + parameter.opts[0][2:]] if parameter.default is True else []
            assert parameter.secondary_opts == opposite


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_parameter_is_explained(name: str) -> None:
    """No option is left without help."""
    assert [p.name for p in COMMANDS[name].params if p.name != "help" and not p.help] == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_contains_an_example(name: str) -> None:
    """The help of each command shows a line that can be typed."""
    assert f"Example: sordino {name} " in _read_help(name)


def test_help_keeps_square_brackets() -> None:
    """An interval in a help text is not taken for markup."""
    assert "in [prior, 1]." in _read_help("risk")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_example_can_be_parsed(name: str) -> None:
    """The example in the help uses options that exist and gives all that are required."""
    example = COMMANDS[name].help.split("Example: ", 1)[1].splitlines()[0]
    words = example.split()
    assert words[:2] == ["sordino", name]
    COMMANDS[name].make_context(name, words[2:])  # raises on any mistake


def test_no_command_shows_help_and_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    """The bare command lists all commands."""
    shell = run_cli(capsys)
    assert shell.code == 2
    assert all(name in shell.out + shell.err for name in COMMANDS)


def test_risk_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """`risk` prints the posterior, and which number is an average and which a worst case."""
    shell = run_cli(capsys, "risk", "--mutual-information", "0.33")
    assert shell.code == 0
    assert shell.err == ""
    assert "at most 0.8819" in shell.out
    assert "bounds an average" in shell.out
    assert "bounds a worst case" in shell.out


def test_risk_of_an_attribute_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """`risk --attribute-values` adds success and advantage with their scope."""
    arguments = ["--epsilon", "1", "--attribute-values", "2", "--public-success", "0.5"]
    shell = run_cli(capsys, "risk", *arguments)
    assert shell.code == 0
    assert "an advantage of at most 0.4622." in shell.out
    assert "Scope: attributes of records used in training." in shell.out


def test_risk_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """`risk --json` prints what the function returns and nothing else."""
    shell = run_cli(capsys, "risk", "--epsilon", "1.0", "--json")
    assert shell.code == 0
    assert json.loads(shell.out) == risk(epsilon=1.0).as_dict()


@pytest.mark.parametrize(
    "arguments",
    [
        ["risk"],
        ["risk", "--epsilon", "1", "--posterior", "0.7"],
        ["risk", "--epsilon", "nan"],
        ["risk", "--mutual-information", "-1"],
    ],
)
def test_misuse_is_one_line_and_exit_code_two(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """A refused value gives one line that begins with Error, and nothing on standard output."""
    shell = run_cli(capsys, *arguments)
    assert shell.code == 2
    assert shell.out == ""
    assert shell.err.startswith("Error: ")
    assert shell.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["risk", "--epsilon", "much"], ["tune"], ["risk", "--unknown", "1"], ["dance"]]
)
def test_unparsable_lines_exit_with_two(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """What the shell itself cannot parse is misuse too."""
    shell = run_cli(capsys, *arguments)
    assert shell.code == 2
    assert "Error" in shell.err
    assert "Traceback" not in shell.err


def test_verify_exit_codes(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify` exits with 0 when nothing differs, 1 when something does, 2 without a run."""
    train = write_jsonl(tmp_path / "train.jsonl", sentiment_rows(12))
    run = tmp_path / "run"
    options = ["--num-subsets", 4, "--num-steps", 2, "--dtype", "float32", "--device", "cpu"]
    shell = run_cli(
        capsys, "tune", "--model", tiny_model, "--train", train, "--output", run, *options
    )
    assert shell.code == 0
    assert f"sordino verify {run}" in shell.out
    shell = run_cli(capsys, "verify", run)
    assert shell.code == 0
    assert shell.out.rstrip().endswith("Verified.")
    assert "no formal guarantee" in shell.out
    shell = run_cli(capsys, "verify", run, "--json")
    assert shell.code == 0
    assert json.loads(shell.out)["is_valid"] is True
    (run / "README.md").write_text("Perfectly private.\n")
    shell = run_cli(capsys, "verify", run)
    assert shell.code == 1
    assert "DIFFERS model card" in shell.out
    assert shell.out.rstrip().endswith("NOT verified.")
    shell = run_cli(capsys, "verify", run, "--json")
    assert shell.code == 1
    answer = json.loads(shell.out)
    assert answer["is_valid"] is False
    assert [c["what"].split(":")[0] for c in answer["checks"] if c["difference"]] == ["model card"]
    shell = run_cli(capsys, "verify", tmp_path / "nowhere")
    assert shell.code == 2
    assert shell.err.startswith("Error: ")


def test_tune_as_json_prints_the_certificate(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tune --json` prints the bytes of certificate.json."""
    train = write_jsonl(tmp_path / "train.jsonl", sentiment_rows(8))
    arguments = ["--model", tiny_model, "--train", train, "--output", tmp_path / "run"]
    options = ["--num-subsets", 4, "--num-steps", 1, "--dtype", "float32", "--json"]
    shell = run_cli(capsys, "tune", *arguments, *options)
    assert shell.code == 0
    assert shell.out.encode() == (tmp_path / "run" / "certificate.json").read_bytes()


def test_repeated_options_become_a_list() -> None:
    """--verbalizer and --lora-targets may be given more than once."""
    line = "--model m --train t --output o --verbalizer a=x --verbalizer b=y --lora-targets q_proj"
    context = COMMANDS["tune"].make_context("tune", line.split())
    assert list(context.params["verbalizer"]) == ["a=x", "b=y"]
    assert list(context.params["lora_targets"]) == ["q_proj"]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InvalidParameterError("M must be even."), 2, "Error: M must be even.\n"),
        (OSError(28, "No space left on device", "f"), 2, "Error: No space left on device: f. "),
        (SafetensorError("I/O error: No space left"), 2, "Error: I/O error: No space left. "),
        (KeyboardInterrupt(), 130, "Error: interrupted. "),
    ],
)
def test_expected_failures_become_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, text: str
) -> None:
    """Refusals, a full disk and ctrl-C give one line and the documented exit code."""
    with pytest.raises(typer.Exit) as stop, failing_in_one_line():
        raise error
    assert stop.value.exit_code == code
    message = capsys.readouterr().err
    assert message.startswith(text)
    assert message.count("\n") == 1
    if not isinstance(error, InvalidParameterError):
        assert "--resume" in message


@pytest.mark.parametrize("error", [RuntimeError("a bug"), BrokenPipeError(32, "Broken pipe")])
def test_unexpected_errors_are_not_hidden(error: Exception) -> None:
    """A bug keeps its traceback."""
    with pytest.raises(type(error)), failing_in_one_line():
        raise error


def test_our_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A warning of ours names no source file; others are shown as they were."""
    others: list[object] = []
    where = (PerturbationWarning, "numerics.py", 7)
    _show_warning(lambda *a: others.append(a), PerturbationWarning("too small"), *where)
    assert capsys.readouterr().err == "Warning: too small\n"
    _show_warning(lambda *a: others.append(a), UserWarning("theirs"), UserWarning, "x.py", 1)
    assert len(others) == 1


def test_main_leaves_warnings_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    """Running a command in a process changes nothing in it."""
    before = warnings.showwarning
    run_cli(capsys, "risk", "--epsilon", "1")
    assert warnings.showwarning is before


def test_only_the_main_process_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under torchrun or accelerate, workers other than the first print no certificate."""
    monkeypatch.setenv("RANK", "1")
    show_tune(None, False)
    assert capsys.readouterr().out == ""


def test_interrupt_reaches_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """A real SIGINT inside a command ends it with code 130 and one line."""

    def wait() -> None:
        """Waits for ever.

        Example:
            sordino wait
        """
        os.kill(os.getpid(), signal.SIGINT)

    shell = typer.Typer()
    shell.command()(make_command(wait, lambda result, as_json: None))
    result = CliRunner().invoke(shell, [])
    assert result.exit_code == 130
    assert result.stderr.startswith("Error: interrupted. ")
