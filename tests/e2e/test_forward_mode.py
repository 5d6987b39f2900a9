"""`--estimator first-order --directions-per-step 1`: exact derivatives, from files to weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import LlamaModel

import sordino
from helpers_enumeration import SeededEntropy
from helpers_runs import SMALL, completion_rows, files_below, sentiment_rows, write_jsonl
from sordino.gradients.estimators import AbstractEstimator
from sordino.ledger.ledger import Ledger
from sordino.ledger.transcript import read_transcript
from sordino.training import steppers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

FORWARD = SMALL | {"estimator": "first-order", "directions_per_step": 1}
FULL = {"adapter": "full", "learning_rate": 1e-3}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora-both": {"lora_factors": "both"},
    "lora-last-block": {"lora_first_layer": 1},
    "lora-bfloat16": {"dtype": "bfloat16"},
    "hadamard": {"direction_kind": "hadamard"},
    "mi": {"mutual_information": 0.1},
    "none": {"guarantee": "none"},
    "full": FULL,
    "full-bfloat16": FULL | {"dtype": "bfloat16"},
    "full-hadamard": FULL | {"direction_kind": "hadamard"},
}


class Backpropagation(AbstractEstimator):
    """The same derivatives the plain way: one record and one backward pass at a time."""

    def __init__(
        self, config: Any, model: Any, objective: Any, space: Any, **_options: Any
    ) -> None:
        self._model, self._objective, self._space = model, objective, space
        self.bound = config.clip

    def contributions(
        self, step: int, batches: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Yields clipped derivatives along the one direction."""
        parameters = list(self._space.tensors.values())
        direction = torch.from_numpy(self._space.directions.direction(step, 0)).double()
        for batch in batches:
            for parameter in parameters:
                parameter.requires_grad_(requires_grad=True)
            values = []
            for record in batch:
                loss = self._objective.losses(self._model, [record]).sum()
                gradients = torch.autograd.grad(loss, parameters)
                values.append(torch.cat([g.reshape(-1) for g in gradients]).double() @ direction)
            for parameter in parameters:
                parameter.requires_grad_(requires_grad=False)
            yield batch, torch.stack(values).clamp(-self.bound, self.bound)[:, None]


def tune(model: Path, rows: list[Any], output: Path, **settings: Any) -> Path:
    """Returns the folder of a run."""
    train = write_jsonl(output.with_suffix(".jsonl"), rows)
    return sordino.tune(model=str(model), train=train, output=output, **(FORWARD | settings)).output


@pytest.mark.parametrize("name", VARIANTS)
def test_run_verifies(name: str, tmp_path: Path, tiny_model: Path) -> None:
    """Adapters and all weights, every guarantee: the run replays bit for bit and says its method.

    There is no finite difference, hence no probe of it and no warning, in bfloat16 either.
    """
    run = tune(tiny_model, sentiment_rows(24), tmp_path / "run", **VARIANTS[name])
    result = sordino.verify(run, model=str(tiny_model))
    assert [(c.what, c.difference) for c in result.checks if c.difference] == []
    assert result.is_valid
    opening = Ledger.open(run / "ledger.jsonl").events[0]
    assert opening["estimator"] == "first-order"
    assert opening["derivative"] == "forward-mode"
    assert opening["perturbation"] is None
    assert opening["clip"] == (1000.0 if VARIANTS[name].get("adapter") == "full" else 25.0)
    assert opening["direction_kind"] == VARIANTS[name].get("direction_kind", "rademacher")


@pytest.mark.parametrize("rows", [sentiment_rows(24), completion_rows(24)])
@pytest.mark.parametrize("settings", [{}, {"clip": 0.05}, {"lora_factors": "both"}])
def test_transcript_is_what_exact_derivatives_imply(
    settings: dict[str, Any],
    rows: list[Any],
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the same coins, a run on brute-force gradients releases the same bits and weights."""
    monkeypatch.setattr(steppers, "OperatingSystemEntropy", lambda: SeededEntropy(5))
    found = tune(tiny_model, rows, tmp_path / "forward", num_steps=12, **settings)
    monkeypatch.setattr(steppers, "make_estimator", Backpropagation)
    expected = tune(tiny_model, rows, tmp_path / "backward", num_steps=12, **settings)
    assert files_below(found) == files_below(expected)
    _, steps = read_transcript(found / "transcript.bin")
    assert len({tuple(s.integers.tolist()) for s in steps}) == 2  # both signs occur


def test_transcript_depends_on_the_records(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: with the same coins, other records release other signs."""
    monkeypatch.setattr(steppers, "OperatingSystemEntropy", lambda: SeededEntropy(5))
    transcripts = []
    for share in (0.0, 1.0):
        rows = sentiment_rows(24, share_good=0.5)
        for row in rows:
            row["label"] = row["label"] if share else 1 - row["label"]
        run = tune(tiny_model, rows, tmp_path / f"run{share:g}", num_steps=12)
        _, steps = read_transcript(run / "transcript.bin")
        transcripts.append(np.concatenate([s.integers for s in steps]))
    assert not np.array_equal(*transcripts)


def test_one_pass_a_batch_and_step(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the zeroth-order estimator's passes, and no probe before the first step."""
    passes: list[int] = []
    real = LlamaModel.forward

    def forward(model: LlamaModel, *args: Any, **kwargs: Any) -> Any:
        passes.append(kwargs["input_ids"].shape[0])
        return real(model, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    tune(tiny_model, sentiment_rows(10), tmp_path / "run", tokens_per_batch=4 * 18)
    assert passes == [4, 4, 2] * FORWARD["num_steps"]


@pytest.mark.parametrize(
    ("settings", "derivative"),
    [
        ({"estimator": "zeroth-order"}, "central-difference"),
        ({"directions_per_step": 2, "clip": 1.0}, "backpropagation"),
    ],
)
def test_other_estimators_are_as_before(
    settings: dict[str, Any], derivative: str, tmp_path: Path, tiny_model: Path
) -> None:
    """Only one exact direction a step is differentiated forwards; the ledger says which is used."""
    run = tune(tiny_model, sentiment_rows(24), tmp_path / "run", **settings)
    assert Ledger.open(run / "ledger.jsonl").events[0]["derivative"] == derivative
