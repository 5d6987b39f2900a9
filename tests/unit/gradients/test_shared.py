"""The part of the gradients that moves all answers alike: found on public records, weighed down."""

from __future__ import annotations

import math

import pytest
import torch

from helpers_tiny_models import END, WORDS, adapted_llama, make_examples
from sordino.core.errors import InvalidParameterError
from sordino.data import Example
from sordino.gradients.objectives import ClassificationObjective
from sordino.gradients.projected import FirstOrderEstimator
from sordino.gradients.shared import SharedComponent

LENGTHS = [5, 12, 2, 9, 12, 3]
NUM_LABELS = len(WORDS)


def public_objective() -> ClassificationObjective:
    """Three texts, each with every label."""
    texts = [[7, 3, 9, END], [4, 4, 8, 2, END], [6, END]]
    examples = [Example(text, target=label) for text in texts for label in range(NUM_LABELS)]
    return ClassificationObjective(examples, WORDS)


def leanings(model, space) -> torch.Tensor:  # noqa: ANN001
    """Returns, by label, the mean gradient over the texts, one backward pass at a time."""
    parameters = list(space.tensors.values())
    rows = torch.zeros(NUM_LABELS, sum(p.numel() for p in parameters))
    for parameter in parameters:
        parameter.requires_grad_(requires_grad=True)
    for record in range(3 * NUM_LABELS):
        loss = public_objective().losses(model, [record]).sum()
        gradients = torch.autograd.grad(loss, parameters)
        rows[record % NUM_LABELS] += torch.cat([g.reshape(-1) for g in gradients]) / 3
    for parameter in parameters:
        parameter.requires_grad_(requires_grad=False)
    return rows - rows.mean(dim=0)


def make(weight: float) -> tuple[FirstOrderEstimator, FirstOrderEstimator, torch.Tensor]:
    """Returns an estimator that weighs down, one that does not, and the leanings."""
    model, space = adapted_llama("b", "hadamard", 4)
    objective = ClassificationObjective(make_examples("classification", LENGTHS), WORDS)
    shared = SharedComponent(model, public_objective(), num_labels=NUM_LABELS, weight=weight)
    ours = FirstOrderEstimator(model, objective, space, clip=1e6, shared=shared)
    plain = FirstOrderEstimator(model, objective, space, clip=1e6)
    return ours, plain, leanings(model, space)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_only_the_shared_part_shrinks(weight: float) -> None:
    """Along what moves all answers: `weight` of it; across: everything, unchanged."""
    ours, plain, rows = make(weight)
    ours.begin_step()
    found = ours.clipped_gradients(range(6)).double()
    whole = plain.clipped_gradients(range(6)).double()
    basis = torch.linalg.svd(rows.double(), full_matrices=False).Vh[: NUM_LABELS - 1]
    along = whole @ basis.T @ basis
    assert along.norm() > 0.1 * whole.norm()  # the test has something to see
    expected = whole - (1 - weight) * along
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6 * whole.abs().max())


def test_clipping_comes_afterwards() -> None:
    """No contribution exceeds the bound, whatever was taken away before."""
    ours, _, _ = make(0.3)
    ours._clip = 1e-3
    ours.bound = 1e-3 * ours._space.directions.max_norm
    ours.begin_step()
    norms = torch.linalg.vector_norm(ours.clipped_gradients(range(6)), dim=1)
    assert (norms <= 1e-3 * (1 + 1e-5)).all()
    assert norms.max() > 0.99e-3


def test_directions_follow_the_weights() -> None:
    """Every step looks at the model as it is then."""
    ours, _, _ = make(0.0)
    shared = ours._shared
    assert shared is not None
    ours.begin_step()
    before = shared._basis
    for tensor in ours._space.tensors.values():
        tensor.data.add_(0.3)
    next(ours.contributions(0, [[0, 1]]))
    assert before is not None
    assert shared._basis is not None
    assert not torch.allclose(before, shared._basis, atol=1e-3)


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan, math.inf])
def test_weights_out_of_range_are_refused(weight: float) -> None:
    """A weight is a share."""
    model, _ = adapted_llama("b")
    with pytest.raises(InvalidParameterError, match="shared_weight must be in"):
        SharedComponent(model, public_objective(), num_labels=NUM_LABELS, weight=weight)


def test_using_it_before_looking_is_an_error() -> None:
    """Never a silent pass-through."""
    ours, _, _ = make(0.3)
    with pytest.raises(RuntimeError, match="refresh comes first"):
        ours.clipped_gradients([0])
