"""Which step's weights leave: the last, or the best on public records; never on private ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import sordino
from helpers_runs import SMALL, sentiment_rows, write_jsonl
from sordino.core.errors import SordinoError
from sordino.ledger.ledger import Ledger
from sordino.ledger.transcript import read_transcript
from sordino.training import assembly
from sordino.training.finish import _choose_step
from sordino.training.replay import initial_tensors, make_space, replay

if TYPE_CHECKING:
    from pathlib import Path

    from sordino.ledger.certificate import Certificate


def tune_with_scores(
    tmp_path: Path, model: Path, scores: list[float], **settings: Any
) -> Certificate:
    """Returns the certificate of a run whose public scores are the given ones."""
    train = write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(24))
    validation = write_jsonl(tmp_path / "public.jsonl", sentiment_rows(4, start=100))
    given = iter(scores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "evaluate_objective", lambda *a, **k: {"score": next(given)})
        result = sordino.tune(
            model=str(model),
            train=train,
            validation=validation,
            validation_is_public=True,
            evaluate_every=1,
            output=tmp_path / "run",
            **SMALL | {"num_steps": len(scores) - 1} | settings,
        )
    assert next(given, None) is None
    return result.certificate


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.1, 0.2, 0.9, 0.3], 2),
        ([0.1, 0.5, 0.5, 0.5], 1),  # a tie takes the earliest
        ([0.9, 0.1, 0.2, 0.3], 3),  # the start is no step: nothing was learned there
        ([0.1, 0.9, 0.2, 0.3], 1),
    ],
)
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_best_step_is_saved(
    adapter: str, scores: list[float], best: int, tmp_path: Path, tiny_model: Path
) -> None:
    """The saved weights are those after the step with the best public score, and it is said."""
    settings = {"adapter": adapter, "select": "best", "learning_rate": 0.01}
    certificate = tune_with_scores(tmp_path, tiny_model, scores, **settings)
    run = tmp_path / "run"
    assert Ledger.open(run / "ledger.jsonl").events[-1]["selected_step"] == best
    assert f"after step {best} of 3" in certificate.selection
    assert "declared public" in certificate.selection
    assert certificate.num_releases == 3  # the steps that were not chosen were released too
    assert sordino.verify(run, model=str(tiny_model)).is_valid
    if adapter == "lora":
        header, steps = read_transcript(run / "transcript.bin")
        space = make_space(header, initial_tensors(header))
        replay(space, header, steps[:best])
        saved = load_file(run / "adapter_model.safetensors")
        for name, tensor in space.state().items():
            assert torch.equal(saved[f"base_model.model.{name}"], tensor)


def test_last_step_is_the_default(tmp_path: Path, tiny_model: Path) -> None:
    """Without --select best the scores choose nothing."""
    certificate = tune_with_scores(tmp_path, tiny_model, [0.1, 0.9, 0.2, 0.3])
    assert certificate.selection == "The weights are those after the last step."


def test_selection_reads_public_scores_only(tmp_path: Path, tiny_model: Path) -> None:
    """The choice follows from metrics.jsonl, whose scores are of validation records alone."""
    tune_with_scores(tmp_path, tiny_model, [0.1, 0.2, 0.9, 0.3], select="best")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"num_steps": 0, "score": 0.1},
        {"num_steps": 1, "score": 0.2},
        {"num_steps": 2, "score": 0.9},
        {"num_steps": 3, "score": 0.3},
    ]


def test_last_needs_no_scores() -> None:
    """The last step is chosen without looking at anything."""

    class Header:
        num_steps = 3

    class Session:
        header = Header()

    assert _choose_step(Session(), "last") == 3


@pytest.mark.parametrize("resume", [False, True])
def test_run_that_never_moves_fails(resume: bool, tmp_path: Path, tiny_model: Path) -> None:
    """Skipping every step leaves the weights as they were: that is an error, also on resume."""
    train = write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(24, share_good=0.75))
    settings = SMALL | {"on_disagreement": "skip", "num_subsets": 64, "num_steps": 2}
    arguments = {"model": str(tiny_model), "train": train, "output": tmp_path / "run", **settings}
    with pytest.raises(SordinoError, match="no trainable tensor changed in 2 steps"):
        sordino.tune(**arguments)
    if resume:
        with pytest.raises(SordinoError, match="no trainable tensor changed in 2 steps"):
            sordino.tune(**arguments, resume=True)
    run = tmp_path / "run"
    assert not (run / "certificate.json").exists()
    assert not (run / "adapter_model.safetensors").exists()
    assert len(Ledger.open(run / "ledger.jsonl").of_kind("release")) == 2  # charged all the same
    assert not sordino.verify(run).is_valid


def test_moves_below_resolution_fail(tmp_path: Path, tiny_model: Path) -> None:
    """A learning rate that float32 rounds to nothing is an error."""
    train = write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(8))
    settings = SMALL | {"learning_rate": 1e-50}
    with pytest.raises(SordinoError, match="below float32 resolution"):
        sordino.tune(model=str(tiny_model), train=train, output=tmp_path / "run", **settings)


@pytest.mark.parametrize("estimator", ["zeroth-order", "first-order"])
def test_adapter_without_effect_fails(
    estimator: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the loss ignores the adapter, the run stops at once and leaves nothing."""
    from sordino.gradients.objectives import ClassificationObjective

    def constant(self: ClassificationObjective, model: Any, records: list[int]) -> torch.Tensor:
        live = [p for p in model.causal_lm.parameters() if p.requires_grad]
        touched = sum(p.sum() for p in live) if live else torch.tensor(0.0)
        return torch.ones(len(records)) + 0.0 * touched

    monkeypatch.setattr(ClassificationObjective, "losses", constant)
    monkeypatch.setattr(assembly, "_probe_numerics", lambda *a, **k: None)
    train = write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(8))
    settings = SMALL | {"estimator": estimator, "directions_per_step": 4}
    with pytest.raises(SordinoError, match="does not depend on the trainable tensors"):
        sordino.tune(model=str(tiny_model), train=train, output=tmp_path / "run", **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["pool.jsonl"]
