"""From the transcript back to the weights, on the right base model and on wrong ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sordino.core.errors import InvalidParameterError, LedgerError
from sordino.gradients.copied import CopiedParameterSpace
from sordino.gradients.parameters import FlatParameterSpace
from sordino.gradients.streamed import StreamedParameterSpace
from sordino.ledger.transcript import StepSymbols, TranscriptHeader
from sordino.models import initial_adapter_tensor
from sordino.training.replay import initial_tensors, make_space, replay

HEADER = TranscriptHeader(
    seed=4,
    encoding="bit",
    direction_kind="rademacher",
    directions_per_step=2,
    num_steps=2,
    learning_rates=(0.5, 0.25),
    weight_decay=0.0,
    adapter={"kind": "lora"},
    tensors={"q.lora_A.weight": (2, 3), "q.lora_B.weight": (3, 2)},
)
FULL = replace(HEADER, adapter={"kind": "full"})


def symbols(*signs: int) -> StepSymbols:
    """Returns one step's released signs."""
    return StepSymbols(np.array(signs, dtype=np.int32))


def test_adapter_starts_from_the_public_seed() -> None:
    """B is zero, A follows from the seed, and nothing wants a gradient."""
    tensors = initial_tensors(HEADER)
    assert not tensors["q.lora_B.weight"].any()
    expected = initial_adapter_tensor("q.lora_A.weight", (2, 3), 4)
    assert torch.equal(tensors["q.lora_A.weight"], expected)
    assert not any(p.requires_grad for p in tensors.values())
    other = initial_tensors(replace(HEADER, seed=5))
    assert not torch.equal(other["q.lora_A.weight"], expected)


def test_replay_is_the_sum_of_the_moves() -> None:
    """Each step moves by its rate times the mean of the signed directions."""
    space = make_space(HEADER, initial_tensors(HEADER))
    before = torch.cat([t.reshape(-1) for t in space.state().values()])
    assert replay(space, HEADER, [symbols(1, -1), symbols(1, 1)])
    after = torch.cat([t.reshape(-1) for t in space.state().values()])
    directions = space.directions
    first = directions.direction(0, 0).astype(float) - directions.direction(0, 1)
    second = directions.direction(1, 0).astype(float) + directions.direction(1, 1)
    expected = before.double() - torch.from_numpy(0.5 / 2 * first + 0.25 / 2 * second)
    assert torch.allclose(after.double(), expected, rtol=0, atol=1e-6)


def test_no_steps_move_nothing() -> None:
    """Replaying nothing, or symbols that move nothing, is said to have moved nothing."""
    space = make_space(HEADER, initial_tensors(HEADER))
    assert not replay(space, HEADER, [])
    assert not replay(space, HEADER, [symbols(0, 0)])


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"q.lora_A.weight": (2, 3)},
        {"q.lora_A.weight": (2, 3), "q.lora_B.weight": (3, 3)},
        {"q.lora_A.weight": (2, 3), "v.lora_B.weight": (3, 2)},
    ],
)
def test_other_tensors_are_refused(tensors: dict[str, Any]) -> None:
    """A model with other trainable tensors is not the one the transcript moves."""
    others = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in tensors.items()}
    with pytest.raises(LedgerError, match="another base model or another adapter"):
        make_space(HEADER, others)


def test_spaces_by_kind() -> None:
    """Adapters are flat; full models are streamed, or copied where directions are Kronecker's."""
    assert isinstance(make_space(HEADER, initial_tensors(HEADER)), FlatParameterSpace)
    assert isinstance(make_space(FULL, initial_tensors(FULL)), StreamedParameterSpace)
    hadamard = replace(FULL, direction_kind="hadamard")
    assert isinstance(make_space(hadamard, initial_tensors(hadamard)), FlatParameterSpace)
    kronecker = replace(FULL, direction_kind="kronecker")
    assert isinstance(make_space(kronecker, initial_tensors(kronecker)), CopiedParameterSpace)
    adapter = replace(HEADER, direction_kind="kronecker")
    assert isinstance(make_space(adapter, initial_tensors(adapter)), FlatParameterSpace)


def test_hadamard_in_full_computes_in_float32_only() -> None:
    """A flat full model cannot compute in fewer bits, so it does not claim to."""
    hadamard = replace(FULL, direction_kind="hadamard")
    with pytest.raises(InvalidParameterError, match="--dtype float32"):
        make_space(hadamard, initial_tensors(hadamard), compute_dtype=torch.bfloat16)
