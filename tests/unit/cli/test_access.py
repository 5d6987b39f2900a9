"""The access commands: parameters of the functions, examples, results as words and as JSON."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner

from helpers_access import completion, stub_server
from helpers_runs import run_cli
from sordino.access.generate import generate
from sordino.cli.access import ACCESS_COMMANDS
from sordino.cli.app import app
from sordino.reports.access_evaluate import evaluate
from sordino.reports.access_guard import guard
from sordino.reports.access_tune import tune

if TYPE_CHECKING:
    from pathlib import Path

FUNCTIONS = {function.__name__: function for function in (generate, tune, evaluate, guard)}
COMMANDS = {name: command.load(name) for name, command in ACCESS_COMMANDS.items()}
RENAMED = {"employees_file": "--from"}


def test_every_command_is_tested_here() -> None:
    assert ACCESS_COMMANDS.keys() == FUNCTIONS.keys()


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_command_mirrors_function(name: str) -> None:
    """Shell and Python accept the same parameters with the same defaults, each explained."""
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    shell = {p.name: p for p in COMMANDS[name].params if p.name not in {"json", "help"}}
    assert shell.keys() == parameters.keys()
    for key, option in shell.items():
        default = inspect.Parameter.empty if option.required else option.default
        assert default == parameters[key].default
        assert option.help
        if not isinstance(option, typer.core.TyperArgument):
            assert option.opts == [RENAMED.get(key, "--" + key.replace("_", "-"))]


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_examples_can_be_parsed(name: str) -> None:
    lines = [
        line.removeprefix("Example: ")
        for line in COMMANDS[name].help.splitlines()
        if line.startswith("Example: ")
    ]
    assert lines
    for line in lines:
        words = line.split()
        assert words[:3] == ["sordino", "access", name]
        COMMANDS[name].make_context(name, words[3:])


def test_help_says_what_it_is_not() -> None:
    result = CliRunner().invoke(app, ["access", "--help"])
    assert result.exit_code == 0
    assert "A tuned model alone is not access control" in " ".join(
        result.output.replace("│", " ").split()
    )


def test_own_table_and_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--from and --policy, as the files of a generated company."""
    arguments = ["--seed", 4, "--employees", 43, "--questions", 1]
    shell = run_cli(capsys, "access", "generate", *arguments, "--output", tmp_path / "a")
    assert shell.code == 0, shell.err
    assert "test: 23 questions" in shell.out
    company = tmp_path / "a" / "test" / "company-1"
    files = ["--from", company / "employees.csv", "--policy", company / "policy.toml"]
    shell = run_cli(
        capsys, "access", "generate", *files, "--questions", 1, "--output", tmp_path / "b", "--json"
    )
    assert shell.code == 0, shell.err
    assert json.loads(shell.out)["num_questions"].keys() == {"test"}
    shell = run_cli(capsys, "access", "generate", *files[:2], "--output", tmp_path / "c")
    assert shell.code == 2
    assert shell.err.startswith("Error: ")


def test_evaluate_prints_a_table_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(output=tmp_path / "q", seed=4, employees=43, questions=1)
    said = completion("{{I cannot disclose that information.}}")
    with stub_server(lambda _, __: (200, said)) as (url, _):
        arguments = ["--questions", tmp_path / "q", "--endpoint", url, "--endpoint-model", "m"]
        arguments += ["--output", tmp_path / "o"]
        shell = run_cli(capsys, "access", "evaluate", *arguments)
        assert shell.code == 0, shell.err
        assert "leaked to somebody who may not know" in shell.out
        assert "0.0% (0.0 to" in shell.out
        assert "no training epsilon bounds these rates" in shell.out
        shell = run_cli(capsys, "access", "evaluate", *arguments, "--json")
    assert shell.code == 0
    rates = json.loads(shell.out)["rates"]
    assert rates["leak"]["share"] == 0.0
    assert rates["false_refusal"]["share"] == 1.0
    assert shell.out.encode() == (tmp_path / "o" / "access.json").read_bytes()


def test_guard_in_a_pipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers on standard output, counts on standard error."""
    import io

    generate(output=tmp_path / "q", seed=4, employees=43, questions=1)
    policy = tmp_path / "q" / "test" / "company-1" / "policy.toml"
    monkeypatch.setattr("sys.stdin", io.StringIO('{"asker": "nobody", "answer": "Hello."}\n\n'))
    shell = run_cli(capsys, "access", "guard", "--policy", policy)
    assert shell.code == 0, shell.err
    assert json.loads(shell.out)["answer"] == "Hello."
    assert "1 answers sent, 0 refused" in shell.err
