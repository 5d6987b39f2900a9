"""The probe of the perturbation: right where it fits, loud where it does not, public always."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from helpers_runs import SMALL, run_cli, sentiment_rows, write_jsonl
from sordino.data import ClassificationTask, Record
from sordino.gradients.direction_sets import make_direction_set
from sordino.gradients.objectives import ClassificationObjective, LanguageModel
from sordino.gradients.parameters import FlatParameterSpace
from sordino.models import add_lora, load_model, trainable_tensors
from sordino.training.numerics import (
    PerturbationWarning,
    warn_if_perturbation_does_not_fit,
)
from sordino.training.probes import PROBE_TEXTS

if TYPE_CHECKING:
    from pathlib import Path

    Probe = tuple[LanguageModel, ClassificationObjective, FlatParameterSpace]


def make_probe(folder: Path, dtype: torch.dtype) -> Probe:
    """Returns an adapted tiny model and an objective over the public sentences."""
    loaded = load_model(str(folder), dtype=dtype)
    adapted = add_lora(loaded.model, rank=2, alpha=16.0, seed=0)
    tensors = trainable_tensors(adapted)
    adapted.requires_grad_(requires_grad=False)
    sizes = {name: p.numel() for name, p in tensors.items()}
    space = FlatParameterSpace(tensors, make_direction_set("rademacher", 0, sizes, 1))
    task = ClassificationTask({"0": "terrible", "1": "great"})
    records = [Record(text, str(i % 2), (), i + 1) for i, text in enumerate(PROBE_TEXTS)]
    examples = task.encode(records, loaded.tokenizer, loaded.context_length)
    objective = ClassificationObjective(examples, task.label_token_ids(loaded.tokenizer))
    model = LanguageModel(adapted.get_base_model(), loaded.tokenizer.pad_token_id)
    return model, objective, space


def test_fitting_perturbation_is_silent(tiny_model: Path) -> None:
    """In float32 a step of 1e-3 gives the exact derivatives; nothing is left changed."""
    model, objective, space = make_probe(tiny_model, torch.float32)
    before = space.state()
    assert warn_if_perturbation_does_not_fit(model, objective, space, 1e-3) > 0.999
    assert all(torch.equal(before[name], tensor) for name, tensor in space.state().items())
    assert not any(p.requires_grad for p in model.causal_lm.parameters())
    assert all(p.grad is None for p in model.causal_lm.parameters())


@pytest.mark.parametrize("perturbation", [1e-9, 1e-30])
def test_rounding_noise_warns(perturbation: float, tiny_model: Path) -> None:
    """A step that the compute type cannot resolve warns, and says what to try."""
    probe = make_probe(tiny_model, torch.float32)
    with pytest.warns(PerturbationWarning, match="larger --perturbation, or --dtype float32"):
        assert warn_if_perturbation_does_not_fit(*probe, perturbation) < 0.9


def test_small_step_in_bfloat16_warns(tiny_model: Path) -> None:
    """The papers' step is noise in bfloat16; the default of that type is not."""
    probe = make_probe(tiny_model, torch.bfloat16)
    with pytest.warns(PerturbationWarning, match="does not fit the compute dtype"):
        warn_if_perturbation_does_not_fit(*probe, 1e-4)
    assert warn_if_perturbation_does_not_fit(*probe, 3e-2) > 0.9


def test_probe_sentences_are_enough_and_different() -> None:
    """Eight sentences, all different, none longer than a tweet."""
    assert len(set(PROBE_TEXTS)) == 8
    assert max(map(len, PROBE_TEXTS)) < 100


@pytest.mark.filterwarnings("always::sordino.training.numerics.PerturbationWarning")
def test_warning_from_the_shell(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run with a bad step says so in one line without a source file, and goes on."""
    train = write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(8))
    words: list[object] = ["tune", "--model", tiny_model, "--train", train]
    words += ["--output", tmp_path / "run", "--perturbation", "1e-9"]
    for name, value in SMALL.items():
        words += ["--" + name.replace("_", "-"), value]
    shell = run_cli(capsys, *words)
    assert shell.code == 0, shell.err
    lines = [line for line in shell.err.splitlines() if not line.startswith("tune: ")]
    assert len(lines) == 1
    assert lines[0].startswith("Warning: the perturbation 1e-09 does not fit")
