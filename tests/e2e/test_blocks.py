"""Blocks of records that begin alike, from a file to a run: one row a step, the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import sordino
from helpers_runs import COMPLETIONS, run_cli, write_jsonl
from sordino.gradients.objectives import CompletionObjective
from sordino.training import steppers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SETTINGS = COMPLETIONS | {"num_steps": 6, "learning_rate": 0.01, "batch_order": "blocks"}


@pytest.fixture
def files(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    rows = [
        {
            "prompt": f"story {number // 4} " * 7 + f"then {number} said",
            "completion": " yes, of course" if number % 2 else " no",
        }
        for number in range(18)
    ]
    return {"model": str(tiny_model), "train": write_jsonl(tmp_path / "pool.jsonl", rows)}


def run(files: dict[str, Any], output: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """Returns the adapter of a run."""
    sordino.tune(**files, output=output, **SETTINGS | changes)
    return load_file(output / "adapter_model.safetensors")


def test_a_row_gives_the_weights_of_its_records(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four records a row in every step, fewer tokens than in a padded batch; the claim is named."""
    lengths: list[tuple[int, int]] = []
    count = CompletionObjective.shared_length

    def watch(self: CompletionObjective, records: Sequence[int]) -> int:
        lengths.append((count(self, records), sum(self.lengths[i] for i in records)))
        return count(self, records)

    monkeypatch.setattr(CompletionObjective, "shared_length", watch)
    shared = run(files, tmp_path / "shared")
    assert len(lengths) == 6 * 3  # a block of four, found by trying
    assert all(row < one_by_one / 2 for row, one_by_one in lengths[2::3])
    with monkeypatch.context() as patch:
        patch.setattr(steppers, "can_share", lambda _: False)
        expected = run(files, tmp_path / "apart")
    for name, tensor in expected.items():
        assert torch.allclose(shared[name], tensor, atol=1e-4), name
    moved = max(float(shared[name].abs().max()) for name in shared if "lora_B" in name)
    assert moved > 0.01
    ledger = (tmp_path / "shared" / "ledger.jsonl").read_text(encoding="utf-8")
    assert "4 in shuffled blocks of the file, by the public seed" in ledger


def test_the_command_line_takes_blocks(
    files: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a run in blocks verifies; without a batch size there are none."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    where = [f"--{name}={value}" for name, value in files.items()]
    shell = run_cli(capsys, "tune", *where, *options, "--output", tmp_path / "run")
    assert shell.code == 0, shell.err
    assert run_cli(capsys, "verify", tmp_path / "run").code == 0
    without = [option for option in options if not option.startswith("--batch-size")]
    shell = run_cli(capsys, "tune", *where, *without, "--output", tmp_path / "other")
    assert shell.code != 0
    assert "--batch-order blocks" in shell.err
