"""All weights tuned by gradients: the run is charged, replays bit for bit, and survives a kill."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sordino
from helpers_runs import (
    SMALL,
    completion_rows,
    files_below,
    run_cli,
    sentiment_rows,
    write_jsonl,
    write_tiny_model,
)
from sordino.ledger.ledger import Ledger
from sordino.ledger.transcript import read_transcript

DRIVER = Path(__file__).with_name("crash_driver.py")
KILLED = 99
GHOST = {
    "estimator": "first-order",
    "adapter": "full",
    "directions_per_step": 16,
    "learning_rate": 0.01,
}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "coin": {},
    "skip": {"on_disagreement": "skip"},
    "budget": {"mutual_information": 0.1},
    "none": {"guarantee": "none", "weight_decay": 0.1},
    "bfloat16": {"dtype": "bfloat16"},
    "batch-size": {"batch_size": 5, "tokens_per_batch": 64},
    "holder-report": {"holder_report": True},
    "many-directions": {"directions_per_step": 3000},
}


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A pool of 24 labelled snippets."""
    return write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(24))


def tune(model: Path, train: Path, output: Path, **settings: Any) -> Path:
    """Returns the folder of a run of three steps."""
    changes = SMALL | GHOST | settings
    return sordino.tune(model=str(model), train=train, output=output, **changes).output


def assert_verifies(run: Path, model: Path) -> None:
    """Fails with every difference that `sordino verify` finds."""
    result = sordino.verify(run, model=str(model))
    assert [(c.what, c.difference) for c in result.checks if c.difference] == []


@pytest.mark.parametrize("name", COMBINATIONS)
def test_run_verifies(name: str, tmp_path: Path, tiny_model: Path, pool: Path) -> None:
    """Every mechanism releases the signs, and the transcript replays to the saved weights."""
    run = tune(tiny_model, pool, tmp_path / "run", **COMBINATIONS[name])
    assert_verifies(run, tiny_model)
    header, steps = read_transcript(run / "transcript.bin")
    assert (header.direction_kind, header.adapter) == ("kronecker", {"kind": "full"})
    assert len(steps) == len(Ledger.open(run / "ledger.jsonl").of_kind("release")) == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tied_model_on_completions(dtype: str, tmp_path: Path) -> None:
    """Embedding and head are one tensor in the run, in the file and in the replay."""
    model = write_tiny_model(tmp_path / "model", tie_word_embeddings=True)
    train = write_jsonl(tmp_path / "pool.jsonl", completion_rows(24))
    run = tune(model, train, tmp_path / "run", dtype=dtype, guarantee="none")
    assert_verifies(run, model)
    header, _ = read_transcript(run / "transcript.bin")
    assert "lm_head.weight" not in header.tensors


def test_best_step_of_a_bfloat16_run(tmp_path: Path, tiny_model: Path, pool: Path) -> None:
    """Scores see the copy that computes; the chosen weights are the master's after that step."""
    validation = write_jsonl(tmp_path / "public.jsonl", sentiment_rows(4, start=90))
    run = tune(
        tiny_model,
        pool,
        tmp_path / "run",
        dtype="bfloat16",
        guarantee="none",
        learning_rate=0.5,
        validation=validation,
        validation_is_public=True,
        evaluate_every=1,
        select="best",
    )
    assert_verifies(run, tiny_model)
    scores = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [entry["num_steps"] for entry in scores] == [0, 1, 2, 3]


def test_the_loss_falls(tmp_path: Path, tiny_model: Path) -> None:
    """Without privacy, eight steps along 2,048 directions learn what the snippets' words say."""
    train = write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(24))
    others = sentiment_rows(24, start=90)
    run = tune(
        tiny_model,
        train,
        tmp_path / "run",
        guarantee="none",
        num_steps=8,
        directions_per_step=2048,
        learning_rate=0.5,
        validation=write_jsonl(tmp_path / "public.jsonl", others),
        validation_is_public=True,
        evaluate_every=8,
    )
    first, last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert last["score"] > first["score"]


def test_killed_and_resumed(tmp_path: Path, tiny_model: Path, pool: Path) -> None:
    """Killed within the second step, a run goes on to the bytes of a run that was left alone."""
    settings = SMALL | GHOST | {"guarantee": "none", "model": str(tiny_model), "train": str(pool)}
    private = settings | {"guarantee": "pac", "mutual_information": 0.1}
    plan = [
        {"root": str(tmp_path / name), "settings": changes, "kill": "before", "number": number}
        for name, changes, number in (("open", settings, 8), ("budget", private, 8))
    ]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, str(DRIVER), str(tmp_path / "plan.json"), str(tmp_path / "answer")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    answers = json.loads((tmp_path / "answer").read_text())
    assert set(map(str, answers.values())) == {str({"crashed": KILLED, "resumed": 0})}
    for name in ("open", "budget"):
        before = read_num_releases(tmp_path / name / "crashed" / "run")
        assert 0 < before < 3
        assert_verifies(tmp_path / name / "run", tiny_model)
    alone = sordino.tune(output=tmp_path / "alone", **settings).output
    assert files_below(tmp_path / "open" / "run") == files_below(alone)


def read_num_releases(run: Path) -> int:
    """Returns how many steps a killed run had charged for."""
    return (run / "ledger.jsonl").read_text().count('"kind":"release"')


def test_command_line(
    tmp_path: Path, tiny_model: Path, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shell takes the same words; the recipe of 4,096 directions a step needs no other flag."""
    words = ["--model", tiny_model, "--train", pool, "--output", tmp_path / "run"]
    words += ["--estimator", "first-order", "--adapter", "full", "--num-steps", 1]
    words += ["--num-subsets", 8, "--dtype", "float32", "--device", "cpu"]
    shell = run_cli(capsys, "tune", *words)
    assert shell.code == 0, shell.err
    header, steps = read_transcript(tmp_path / "run" / "transcript.bin")
    assert header.direction_kind == "kronecker"
    assert steps[0].integers.shape == (4096,)
    assert_verifies(tmp_path / "run", tiny_model)
    assert torch.get_num_threads() == 1
