"""Texts on which a model is held to its base, from a file to a run: it forgets less of them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import sordino
from helpers_runs import COMPLETIONS, run_cli, sentiment_rows, write_jsonl
from sordino.attacks.subject import open_subject
from sordino.core.errors import InvalidDataError, InvalidParameterError, SordinoError
from sordino.data import CompletionTask, read_records
from sordino.gradients.objectives import CompletionObjective
from sordino.gradients.retained import RetainedObjective
from sordino.training import gradient_steps
from sordino.training.retain import Retention

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = COMPLETIONS | {"num_steps": 30, "learning_rate": 0.02, "batch_order": "shuffled"}
DP = {
    "guarantee": "dp",
    "epsilon": 8.0,
    "delta": 1e-3,
    "batch_order": "independent",
}
RETAIN = {"retain_is_public": True, "retain_per_step": 3}


@pytest.fixture
def files(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    learned = [
        {"prompt": f"this {noun} is", "completion": f"{word} ."}
        for noun in ("plot", "actor", "song", "camera")
        for word in ("warm", "lovely")
    ]
    kept = [
        {"prompt": f"the {noun} and", "completion": f"{word} the {noun} was {word}"}
        for noun in ("plot", "hero", "scene")
        for word in ("dull", "stale")
    ]
    return {
        "model": str(tiny_model),
        "train": write_jsonl(tmp_path / "pool.jsonl", learned),
        "retain": write_jsonl(tmp_path / "kept.jsonl", kept),
    }


def tune(files: dict[str, Any], output: Path, **changes: Any) -> Path:
    """Returns the folder of a run."""
    return sordino.tune(**files, output=output, **SETTINGS | RETAIN | changes).output


def measure(files: dict[str, Any], run: Path) -> tuple[float, float]:
    """Returns the mean loss of what was learned, and the mean divergence on what was to be kept."""
    subject = open_subject(str(run), base=files["model"], dtype=torch.float32)

    def encode(name: str) -> Any:
        return CompletionTask().encode(read_records(files[name]), subject.tokenizer, 48)

    learned, kept = encode("train"), encode("retain")
    divergence = RetainedObjective(kept, subject.base)  # type: ignore[arg-type]
    with torch.no_grad():
        loss = CompletionObjective(learned).losses(subject.tuned, range(len(learned))).mean()
        return float(loss), float(divergence.losses(subject.tuned, range(len(kept))).mean())


def test_a_held_model_learns_and_keeps(files: dict[str, Any], tmp_path: Path) -> None:
    """It learns nearly as much, and differs far less from its base on the texts."""
    free = {name: files[name] for name in ("model", "train")}
    loss, divergence = measure(files, tune(free, tmp_path / "free"))
    run = tune(files, tmp_path / "held", retain_weight=2.0)
    held_loss, held_divergence = measure(files, run)
    assert divergence > 0.2
    assert held_divergence < divergence / 4
    loss_before, _ = measure(files, tune(files, tmp_path / "one", num_steps=1))
    assert loss_before - held_loss > 0.7 * (loss_before - loss) > 0.5
    opening = json.loads((run / "ledger.jsonl").read_text(encoding="utf-8").splitlines()[0])
    kept = next(event for event in [opening, opening.get("event", {})] if "retained" in event)
    assert kept["retained"]["num_texts"] == 6
    assert kept["retained"]["weight"] == 2.0
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "| public texts held to the base | 6, 3 a step, weight 2 |" in card


def test_a_private_run_is_held_after_the_noise(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same budget, charged the same way; the added gradient never passes the noise."""
    order: list[str] = []
    add_noise, add_to = gradient_steps.add_noise, Retention.add_to

    def noise(*arguments: Any) -> None:
        order.append("noise")
        add_noise(*arguments)

    def retain(self: Retention, total: Any, *others: Any, **more: Any) -> None:
        before = {name: values.clone() for name, values in total.items()}
        add_to(self, total, *others, **more)
        is_changed = any(not torch.equal(before[name], total[name]) for name in total)
        order.append("retain" if is_changed else "nothing")  # before the first move

    monkeypatch.setattr(gradient_steps, "add_noise", noise)
    monkeypatch.setattr(Retention, "add_to", retain)
    settings = DP | {"num_steps": 3}
    run = tune(files, tmp_path / "held", **settings)
    steps = "".join(word[0] for word in order)
    assert re.fullmatch("(n+r){2}", steps), order
    free = {name: files[name] for name in ("model", "train")}
    other = tune(free, tmp_path / "free", **settings)
    claims = [
        json.loads((folder / "certificate.json").read_text(encoding="utf-8"))["pool"]
        for folder in (run, other)
    ]
    assert claims[0] == claims[1]
    assert 7.0 < claims[0]["epsilon_upper"] <= 8.0
    assert sordino.verify(run, model=files["model"]).is_valid


def test_a_continued_run_is_the_same(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The texts of a step follow from the public seed."""
    whole = tune(files, tmp_path / "whole")
    take = gradient_steps.GradientStepper.take

    def stop(self: Any, session: Any, step: int) -> str:
        if step == 17:
            raise KeyboardInterrupt
        return take(self, session, step)

    with monkeypatch.context() as patch:
        patch.setattr(gradient_steps.GradientStepper, "take", stop)
        with pytest.raises(KeyboardInterrupt):
            tune(files, tmp_path / "cut")
    cut = tune(files, tmp_path / "cut", resume=True)
    expected, found = (load_file(run / "adapter_model.safetensors") for run in (whole, cut))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_other_texts_do_not_continue_a_run(files: dict[str, Any], tmp_path: Path) -> None:
    """They are named in the ledger."""
    tune(files, tmp_path / "run")
    rows = [{"prompt": "the joke", "completion": "was flat"}] * 4
    other = files | {"retain": write_jsonl(tmp_path / "other.jsonl", rows)}
    with pytest.raises(SordinoError, match="retained"):
        tune(other, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"retain_is_public": False}, "--retain-is-public"),
        ({"retain_weight": 0.0}, "retain_weight"),
        ({"retain_weight": float("nan")}, "retain_weight"),
        ({"retain_per_step": 7}, "at most the number of texts.*6"),
        ({"retain_per_step": 0}, "retain_per_step"),
        ({"adapter": "full"}, "--retain adds a gradient"),
        ({"optimizer": None, "guarantee": "pac"}, "--retain adds a gradient"),
    ],
)
def test_what_cannot_be_held_is_told(
    changes: dict[str, Any], words: str, files: dict[str, Any], tmp_path: Path
) -> None:
    if changes.get("guarantee") == "pac":
        changes = changes | {"batch_order": "independent"}
    with pytest.raises(InvalidParameterError, match=words):
        tune(files, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_texts_of_the_pool_are_refused(files: dict[str, Any], tmp_path: Path) -> None:
    """What a model keeps of them would not be accounted for; nor are other files taken."""
    with pytest.raises(InvalidDataError, match="in the training pool too"):
        tune(files | {"retain": files["train"]}, tmp_path / "run")
    labels = write_jsonl(tmp_path / "labels.jsonl", sentiment_rows(4))
    with pytest.raises(InvalidDataError, match="prompt"):
        tune(files | {"retain": labels}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_holds(
    files: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given on the command line, in the ledger, verified."""
    given = SETTINGS | {"num_steps": 2, "retain_per_step": 2}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in (files | given).items()]
    output = tmp_path / "run"
    shell = run_cli(capsys, "tune", *options, "--retain-is-public", "--output", output)
    assert shell.code == 0, shell.err
    assert '"retained"' in (output / "ledger.jsonl").read_text(encoding="utf-8")
    assert run_cli(capsys, "verify", output).code == 0
