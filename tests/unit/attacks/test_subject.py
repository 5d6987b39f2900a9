"""Opening runs, foreign adapters, model folders and GGUF files for an attack."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helpers_runs import SMALL, sentiment_rows, write_jsonl, write_tiny_model
from sordino import tune
from sordino.attacks.subject import find_base_format, open_subject
from sordino.core.errors import InvalidParameterError, ModelUnavailableError
from sordino.models import load_model

if TYPE_CHECKING:
    from pathlib import Path

    from sordino.gradients.objectives import LanguageModel

IDS = torch.tensor([[3, 4, 5, 6]])


def logits(model: LanguageModel) -> torch.Tensor:
    return model.causal_lm(input_ids=IDS).logits


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an adapter."""
    folder = tmp_path_factory.mktemp("runs")
    train = write_jsonl(folder / "train.jsonl", sentiment_rows(24))
    tune(model=str(tiny_model), train=train, output=folder / "run", **SMALL)
    return folder / "run"


def test_run_with_its_base(run: Path, tiny_model: Path) -> None:
    """Inside the base context the adapter is off, outside it is on."""
    subject = open_subject(str(run), base=str(tiny_model), dtype=torch.float32)
    plain = load_model(str(tiny_model)).model(input_ids=IDS).logits
    tuned = logits(subject.tuned)
    with subject.base() as base:
        assert torch.equal(logits(base), plain)
    assert torch.equal(logits(subject.tuned), tuned)
    assert not torch.equal(tuned, plain)
    assert not any(p.requires_grad for p in subject.tuned.causal_lm.parameters())
    assert (subject.kind, subject.name) == ("run", "run")
    assert subject.ledger is not None


def test_an_adapter_computes_in_the_compute_type(run: Path, tiny_model: Path) -> None:
    """PEFT would keep it in float32; the tuned model is the float32 one within rounding."""
    subject = open_subject(str(run), base=str(tiny_model), dtype=torch.bfloat16)
    assert {p.dtype for p in subject.tuned.causal_lm.parameters()} == {torch.bfloat16}
    exact = logits(open_subject(str(run), base=str(tiny_model), dtype=torch.float32).tuned)
    with subject.base():
        off = (logits(subject.tuned).float() - exact).norm()
    assert (logits(subject.tuned).float() - exact).norm() < 0.02 * exact.norm()
    assert off > 0.02 * exact.norm()  # the adapter matters


def test_foreign_adapter_needs_no_ledger(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    """An adapter's folder names its base; its weights are those of plain PEFT."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run / name, tmp_path / name)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tiny_model)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    subject = open_subject(str(tmp_path), dtype=torch.float32)
    of_run = open_subject(str(run), base=str(tiny_model), dtype=torch.float32)
    assert subject.kind == "adapter"
    assert torch.equal(logits(subject.tuned), logits(of_run.tuned))


def test_other_base_is_refused(run: Path, tmp_path: Path) -> None:
    """A run names the files it started from, and others would give wrong scores."""
    other = write_tiny_model(tmp_path / "other", hidden_size=32)
    with pytest.raises(InvalidParameterError, match="not the base that this run started from"):
        open_subject(str(run), base=str(other), dtype=torch.float32)


def test_adapter_that_does_not_fit(run: Path, tmp_path: Path) -> None:
    """Tensors of another size are an error in words, not silently left out."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run / name, tmp_path / name)
    other = write_tiny_model(tmp_path / "other", hidden_size=32)
    with pytest.raises(ModelUnavailableError, match="does not fit"):
        open_subject(str(tmp_path), base=str(other), dtype=torch.float32)


def test_pickled_adapter_is_refused(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    """adapter_model.bin is never read."""
    shutil.copy(run / "adapter_config.json", tmp_path / "adapter_config.json")
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelUnavailableError, match=r"adapter_model\.safetensors"):
        open_subject(str(tmp_path), base=str(tiny_model), dtype=torch.float32)


def test_whole_model_without_and_with_base(tiny_model: Path) -> None:
    """A model folder has a base only if one is named."""
    alone = open_subject(str(tiny_model), dtype=torch.float32)
    with pytest.raises(InvalidParameterError, match="--model BASE"):
        alone.base()
    both = open_subject(str(tiny_model), base=str(tiny_model), dtype=torch.float32)
    with both.base() as base:
        assert torch.equal(logits(base), logits(both.tuned))


@pytest.mark.parametrize(
    ("opening", "asked", "expected"),
    [
        ({"base_bits": 4, "base_format": "nf4"}, (None, None), (4, "nf4")),
        ({"base_bits": 4, "base_format": "nf4"}, (4, None), (4, "nf4")),
        ({"base_bits": 4, "base_format": "nf4"}, (8, None), (8, "codes")),
        ({"base_bits": 4, "base_format": "nf4"}, (None, "codes"), (4, "codes")),
        ({"base_bits": 4}, (None, None), (4, "codes")),  # ledgers from before there were formats
        ({}, (None, None), (None, "codes")),
        (None, (None, None), (None, "codes")),
        (None, (4, "nf4"), (4, "nf4")),
    ],
)
def test_the_base_is_held_as_the_run_held_it(
    opening: dict[str, Any] | None,
    asked: tuple[int | None, str | None],
    expected: tuple[int | None, str],
) -> None:
    """Unless the caller asks for something else."""
    ledger: Any = None if opening is None else SimpleNamespace(events=[opening])
    found = find_base_format(ledger, *asked)
    assert (found["base_bits"], found["base_format"]) == expected
