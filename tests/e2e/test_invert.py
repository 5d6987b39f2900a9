"""`sordino invert`: models, adapters and runs; it says that it is a control."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import sordino
from helpers_runs import completion_rows, run_cli, sentiment_rows, write_jsonl, write_tiny_model
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.reports.invert import STATEMENT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model wide enough for the tokens of two texts."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    return write_tiny_model(folder, hidden_size=64, num_key_value_heads=4)


@pytest.fixture(scope="module")
def completions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "c.jsonl", completion_rows(9))


def test_a_model_gets_an_adapter(wide: Path, completions: Path) -> None:
    """Everything is found raw, nothing behind the mechanisms."""
    result = sordino.invert(str(wide), records=completions, lora_rank=32)
    raw, dp, pac = result.rows
    assert result.has_power
    assert (raw.precision, raw.recall) == (1.0, 1.0)
    assert raw.num_whole_texts == raw.num_texts == 8
    assert dp.recall == pac.recall == 0.0
    assert result.num_batches == 4


def test_in_the_shell(wide: Path, completions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table, whether it had power, and what it is not."""
    arguments = ("invert", wide, "--records", completions, "--num-batches", 1)
    shell = run_cli(capsys, *arguments, "--lora-rank", 32)
    assert shell.code == 0
    assert "raw gradient" in shell.out
    assert "The test has power" in shell.out
    assert STATEMENT in shell.out
    shell = run_cli(capsys, *arguments, "--lora-rank", 4, "--json")
    found = json.loads(shell.out)
    assert not found["has_power"]
    assert found["conclusions"][0].startswith("NO POWER")
    assert found["conclusions"][1] == STATEMENT
    assert found["rows"][0]["num_silent"] == 1
    assert found["rows"][0]["nearest_of_another"] is None


def test_a_run_sends_what_it_trains(wide: Path, tmp_path: Path) -> None:
    """B alone by default, with the run's own template; both factors if it trained both."""
    labelled = write_jsonl(tmp_path / "train.jsonl", sentiment_rows(12))
    given: dict[str, Any] = {
        "model": str(wide), "train": labelled, "guarantee": "none", "dtype": "float32",
        "estimator": "first-order", "optimizer": "adamw", "num_steps": 2, "lora_rank": 24,
    }  # fmt: skip
    for factors in ("b", "both"):
        run = tmp_path / factors
        sordino.tune(output=run, lora_factors=factors, **given)
        result = sordino.invert(
            str(run), base=str(wide), records=labelled, batch_size=1, num_batches=2, max_length=24
        )
        assert result.rank == 24
        assert result.has_power
        assert result.rows[1].num_right == 0


def test_labels_of_a_plain_model_are_left_out(wide: Path, tmp_path: Path) -> None:
    """Without words for them a labelled text is a text."""
    rows = [{"text": row["text"], "label": f"class {i}"} for i, row in enumerate(sentiment_rows(4))]
    path = write_jsonl(tmp_path / "labelled.jsonl", rows)
    result = sordino.invert(str(wide), records=path, lora_rank=32, batch_size=1)
    assert result.has_power


def test_refusals(wide: Path, completions: Path) -> None:
    for changes, message in (
        ({"batch_size": 0}, "batch_size"),
        ({"num_batches": 0}, "num_batches"),
        ({"max_length": 2}, "max_length"),
        ({"clip": -1.0}, "clip_norm"),
        ({"num_subsets": 3}, "num_subsets"),
    ):
        with pytest.raises(InvalidParameterError, match=message):
            sordino.invert(str(wide), records=completions, **changes)
    with pytest.raises(InvalidDataError, match="--batch-size 20 records, has 9"):
        sordino.invert(str(wide), records=completions, batch_size=20)
