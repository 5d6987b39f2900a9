"""The recipe for a self-prompted reference in docs/explanation/audit.md works as it is written."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import sordino
from helpers_runs import completion_rows, run_cli, write_jsonl

if TYPE_CHECKING:
    import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "audit.md"


def test_recipe(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Only the name of the base and the number of steps are changed."""
    section = DOCS.read_text(encoding="utf-8").split("**Self-prompt calibration**")[1]
    program = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    commands = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert program is not None
    assert commands is not None
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("members", "nonmembers", "public")):
        write_jsonl(tmp_path / f"{name}.jsonl", completion_rows(20, start=20 * number))
    sordino.tune(
        model=str(tiny_model), train=Path("members.jsonl"), output=Path("run"),
        guarantee="none", estimator="first-order", optimizer="adamw", num_steps=10,
        learning_rate=2e-2, lora_factors="both", dtype="float32",
    )  # fmt: skip
    exec(program[1].replace("embedded", str(tiny_model)), {})  # noqa: S102
    written = [json.loads(line) for line in Path("written.jsonl").read_text().splitlines()]
    assert len(written) > 10
    for line in commands[1].strip().splitlines():
        program_name, *words = shlex.split(line.replace("embedded", str(tiny_model)))
        assert program_name == "sordino"
        shell = run_cli(capsys, *(("8" if word == "100" else word) for word in words))
        assert shell.code == 0, shell.err
    assert "rmia: AUC" in shell.out
