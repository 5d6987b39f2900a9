"""Contributions per record: brute force agrees, bounds hold, and no forward pass is wasted."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from helpers_tiny_models import (
    END,
    WORDS,
    adapted_llama,
    make_examples,
    make_model,
    naive_loss,
)
from sordino.core.errors import InvalidParameterError, PrecisionError
from sordino.gradients.direction_sets import ALL_DIRECTION_KINDS, make_direction_set
from sordino.gradients.estimators import ZerothOrderEstimator
from sordino.gradients.objectives import (
    AbstractObjective,
    ClassificationObjective,
    CompletionObjective,
    GenerationObjective,
    LanguageModel,
)
from sordino.gradients.per_record import PerRecordGradients
from sordino.gradients.projected import FirstOrderEstimator
from sordino.mechanisms.candidates import SubsetSums

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sordino.gradients.parameters import FlatParameterSpace

LENGTHS = [5, 12, 2, 9, 12, 3]
BATCHES = [[1, 4], [3, 0, 5], [2]]
STEP = 3


def make_objective(kind: str) -> AbstractObjective:
    examples = make_examples(kind, LENGTHS)
    if kind == "classification":
        return ClassificationObjective(examples, WORDS)
    return CompletionObjective(examples)


def brute_force(model: LanguageModel, space: FlatParameterSpace, kind: str) -> torch.Tensor:
    """Returns each record's gradient, one record and one backward pass at a time."""
    parameters = list(space.tensors.values())
    rows = []
    for parameter in parameters:
        parameter.requires_grad_(requires_grad=True)
    for example in make_examples(kind, LENGTHS):
        loss = naive_loss(model.causal_lm, example)
        gradients = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    for parameter in parameters:
        parameter.requires_grad_(requires_grad=False)
    return torch.stack(rows)


def gather(
    estimator: FirstOrderEstimator | ZerothOrderEstimator, batches: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Returns all contributions of a step, in the order of the records."""
    result = torch.full((len(LENGTHS), 4), math.nan, dtype=torch.float64)
    for records, contributions in estimator.contributions(STEP, batches):
        assert contributions.dtype == torch.float64
        assert contributions.shape == (len(records), 4)
        assert not contributions.requires_grad
        result[list(records)] = contributions
    return result


@contextmanager
def counted(model: LanguageModel) -> Iterator[list[int]]:
    """Yields the batch sizes of all forward passes through the model."""
    sizes: list[int] = []
    decoder = model.causal_lm.get_decoder()
    handle = decoder.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        yield sizes
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["classification", "completion"])
@pytest.mark.parametrize("factors", ["b", "both"])
def test_per_record_gradients_are_those_of_each_record_alone(factors: str, kind: str) -> None:
    """One backward pass over a padded batch gives every record's own gradient."""
    model, space = adapted_llama(factors)
    expected = brute_force(model, space, kind)
    estimator = FirstOrderEstimator(model, make_objective(kind), space, clip=1e6)
    found = torch.empty_like(expected)
    for batch in BATCHES:
        found[batch] = estimator.clipped_gradients(batch)
    assert expected.norm(dim=1).min() > 1e-3
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"tie_word_embeddings": True}])
def test_other_parts_of_the_model_do_not_matter(changes: dict[str, bool]) -> None:
    """Biases of frozen layers and tied embeddings leave the adapter's gradients right."""
    model, space = adapted_llama("both", **changes)
    expected = brute_force(model, space, "completion")
    estimator = FirstOrderEstimator(model, make_objective("completion"), space, clip=1e6)
    found = estimator.clipped_gradients(list(range(6)))
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * expected.abs().max())


def test_nothing_private_is_kept() -> None:
    """No gradient, no buffer and no requires_grad is left behind, also after an error."""
    model, space = adapted_llama("both")
    estimator = FirstOrderEstimator(model, make_objective("completion"), space, clip=1.0)
    estimator.clipped_gradients([0, 1])
    with pytest.raises(IndexError):
        estimator.clipped_gradients([0, 99])
    assert estimator._gradients._buffer is None
    for parameter in space.tensors.values():
        assert parameter.grad is None
        assert not parameter.requires_grad
    before = gather(estimator, BATCHES)
    naive_loss(model.causal_lm, make_examples("completion", LENGTHS)[0])  # hooks are asleep
    assert torch.equal(gather(estimator, BATCHES), before)


@pytest.mark.parametrize("clip", [1e-3, 0.05, 1e3])
def test_the_whole_gradient_is_clipped(clip: float) -> None:
    """Defect 13: one norm over all tensors, not one a tensor; direction and small ones are kept."""
    model, space = adapted_llama("both")
    expected = brute_force(model, space, "completion")
    estimator = FirstOrderEstimator(model, make_objective("completion"), space, clip=clip)
    found = estimator.clipped_gradients(list(range(6)))
    norms = expected.norm(dim=1, keepdim=True)
    assert (found.norm(dim=1) <= clip * (1 + 1e-6)).all()
    scaled = expected * (clip / norms).clamp(max=1.0)
    assert torch.allclose(found, scaled, rtol=1e-3, atol=1e-5 * float(scaled.abs().max()))


@pytest.mark.parametrize("kind", ALL_DIRECTION_KINDS)
def test_contributions_are_projected_gradients(kind: str) -> None:
    """gradient @ direction for each public direction, and never above the stated bound."""
    model, space = adapted_llama("b", kind)
    gradients = brute_force(model, space, "classification")
    estimator = FirstOrderEstimator(model, make_objective("classification"), space, clip=0.1)
    clipped = gradients * (0.1 / gradients.norm(dim=1, keepdim=True)).clamp(max=1.0)
    rows = [space.directions.direction(STEP, k).astype(np.float64) for k in range(4)]
    directions = torch.from_numpy(np.stack(rows)) * space.directions.unit
    found = gather(estimator, BATCHES)
    expected = clipped.double() @ directions.T
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert estimator.bound == pytest.approx(0.1 * space.directions.max_norm)
    assert (found.abs() <= estimator.bound).all()


@pytest.mark.parametrize("kind", ALL_DIRECTION_KINDS)
def test_zeroth_order_is_a_central_difference(kind: str) -> None:
    """(l(theta + eps z) - l(theta - eps z)) / (2 eps), from a model set to both points by hand."""
    eps = 2.0**-7
    model, space = adapted_llama("b", kind)
    objective = make_objective("completion")
    estimator = ZerothOrderEstimator(model, objective, space, perturbation=eps, clip=1e6)
    found = gather(estimator, BATCHES)
    master = {name: tensor.clone() for name, tensor in space.state().items()}
    flat = torch.cat([t.reshape(-1) for t in master.values()])
    for k in range(4):
        direction = torch.from_numpy(space.directions.direction(STEP, k).astype(np.float32))
        losses = []
        for sign in (1.0, -1.0):
            moved = flat + sign * eps * space.directions.unit * direction
            parts = moved.split([t.numel() for t in master.values()])
            space.reset(dict(zip(master, parts, strict=True)))
            examples = make_examples("completion", LENGTHS)
            losses.append(torch.stack([naive_loss(model.causal_lm, e) for e in examples]))
        space.reset(master)
        expected = (losses[0].double() - losses[1].double()) / (2 * eps)
        assert torch.allclose(found[:, k], expected, rtol=1e-3, atol=1e-3)


def test_both_estimators_agree_on_a_smooth_loss() -> None:
    """In float32 at 1e-3 the difference follows the exact derivative: correlation above 0.999."""
    model, space = adapted_llama("b")
    objective = make_objective("completion")
    differences = gather(
        ZerothOrderEstimator(model, objective, space, perturbation=1e-3, clip=1e6), BATCHES
    )
    exact = gather(FirstOrderEstimator(model, objective, space, clip=1e6), BATCHES)
    for k in range(4):
        assert np.corrcoef(differences[:, k], exact[:, k])[0, 1] > 0.999


@pytest.mark.parametrize("clip", [1e-6, 0.01, 1.0, 1e6])
def test_zeroth_order_contributions_are_clipped(clip: float) -> None:
    """Clipped to [-C, C], and untouched within."""
    model, space = adapted_llama("b")
    objective = make_objective("completion")
    free = gather(
        ZerothOrderEstimator(model, objective, space, perturbation=1e-2, clip=1e9), BATCHES
    )
    estimator = ZerothOrderEstimator(model, objective, space, perturbation=1e-2, clip=clip)
    assert estimator.bound == clip
    assert torch.equal(gather(estimator, BATCHES), free.clamp(-clip, clip))


def test_two_forward_passes_a_direction_and_nothing_more() -> None:
    """Defect 6: 2 K passes a batch, no third one for a log line; batches stay as planned."""
    model, space = adapted_llama("b")
    estimator = ZerothOrderEstimator(
        model, make_objective("completion"), space, perturbation=1e-3, clip=1.0
    )
    with counted(model) as sizes:
        gather(estimator, BATCHES)
    assert sizes == [len(batch) for batch in BATCHES] * 2 * 4


def test_one_forward_pass_a_batch_at_first_order() -> None:
    """All K directions come from one pass forwards and one backwards."""
    model, space = adapted_llama("b")
    estimator = FirstOrderEstimator(model, make_objective("completion"), space, clip=1.0)
    with counted(model) as sizes:
        gather(estimator, BATCHES)
    assert sizes == [len(batch) for batch in BATCHES]


@pytest.mark.parametrize("kind", ["zeroth", "first"])
def test_partition_into_batches_does_not_matter(kind: str) -> None:
    """Other batches give the same contributions, up to the rounding of padded kernels."""
    model, space = adapted_llama("b")
    objective = make_objective("completion")
    estimator = (
        ZerothOrderEstimator(model, objective, space, perturbation=2.0**-6, clip=1e6)
        if kind == "zeroth"
        else FirstOrderEstimator(model, objective, space, clip=1e6)
    )
    expected = gather(estimator, BATCHES)
    for batches in ([[0, 1, 2, 3, 4, 5]], [[i] for i in range(6)], [[5, 2], [0, 3, 4, 1]]):
        assert torch.allclose(gather(estimator, batches), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", ["zeroth", "first"])
def test_a_worker_without_a_batch_takes_part(kind: str) -> None:
    """Defect 12: no batch means no contribution and no error, so its sums are zeros."""
    model, space = adapted_llama("b")
    objective = make_objective("completion")
    estimator = (
        ZerothOrderEstimator(model, objective, space, perturbation=1e-3, clip=1.0)
        if kind == "zeroth"
        else FirstOrderEstimator(model, objective, space, clip=1.0)
    )
    assert list(estimator.contributions(0, [])) == []
    total = SubsetSums(np.ones((6, 2), dtype=np.bool_), 4, estimator.bound)
    for records, contributions in estimator.contributions(0, []):
        total.add(np.array(records), contributions.numpy())
    assert not total.sums.any()
    assert np.isnan(gather(estimator, [])).all()


@pytest.mark.parametrize("kind", ["zeroth", "first"])
def test_measuring_does_not_move_anything(kind: str) -> None:
    """Defect 8: after a step's contributions the weights are what they were, bit for bit."""
    model, space = adapted_llama("both")
    before = {name: p.clone() for name, p in model.causal_lm.named_parameters()}
    estimator = (
        ZerothOrderEstimator(model, make_objective("completion"), space, perturbation=0.1, clip=1.0)
        if kind == "zeroth"
        else FirstOrderEstimator(model, make_objective("completion"), space, clip=1.0)
    )
    gather(estimator, BATCHES)
    for name, parameter in model.causal_lm.named_parameters():
        assert torch.equal(parameter, before[name])


class BrokenObjective(AbstractObjective):
    """The loss of record 2 is no number."""

    def __init__(self, inner: AbstractObjective, value: float) -> None:
        self._inner = inner
        self._value = value
        self.lengths = inner.lengths

    def losses(self, model: LanguageModel, records: Sequence[int]) -> torch.Tensor:
        """Returns the losses, one of them broken."""
        broken = torch.tensor([self._value if r == 2 else 0.0 for r in records])
        return self._inner.losses(model, records) + broken

    def __repr__(self) -> str:
        return "broken"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run(value: float) -> None:
    """inf - inf and NaN survive clipping and are refused where contributions are summed."""
    model, space = adapted_llama("b")
    objective = BrokenObjective(make_objective("completion"), value)
    estimator = ZerothOrderEstimator(model, objective, space, perturbation=1e-3, clip=1.0)
    found = gather(estimator, BATCHES)
    assert found[2].isnan().all()
    assert found[[0, 1, 3, 4, 5]].isfinite().all()
    total = SubsetSums(np.ones((6, 2), dtype=np.bool_), 4, estimator.bound)
    with pytest.raises(PrecisionError, match="nothing was released"):
        total.add(np.arange(6), found.numpy())


class OneSidedObjective(BrokenObjective):
    """The loss of record 2 is infinite at every second look: on one side of the difference."""

    def losses(self, model: LanguageModel, records: Sequence[int]) -> torch.Tensor:
        """Returns the losses; an infinity comes and goes."""
        if 2 not in records:
            return self._inner.losses(model, records)
        self.looks = getattr(self, "looks", 0) + 1
        broken = torch.tensor([self._value if r == 2 and self.looks % 2 else 0.0 for r in records])
        return self._inner.losses(model, records) + broken


def test_an_infinity_on_one_side_is_not_clipped_to_a_vote() -> None:
    """An infinite difference is refused, not bounded to +-clip."""
    model, space = adapted_llama("b")
    objective = OneSidedObjective(make_objective("completion"), math.inf)
    estimator = ZerothOrderEstimator(model, objective, space, perturbation=1e-3, clip=1.0)
    found = gather(estimator, BATCHES)
    assert found[2].isnan().any()
    total = SubsetSums(np.ones((6, 2), dtype=np.bool_), 4, estimator.bound)
    with pytest.raises(PrecisionError, match="nothing was released"):
        total.add(np.arange(6), found.numpy())


def test_a_gradient_that_is_no_number_stops_the_run() -> None:
    """NaN and overflow survive the first-order clipping too."""
    for value in (math.nan, 3e38):
        model, space = adapted_llama("b")
        tensor = next(iter(space.tensors.values()))
        tensor.data[0, 0] = value
        estimator = FirstOrderEstimator(model, make_objective("completion"), space, clip=1.0)
        found = gather(estimator, BATCHES)
        total = SubsetSums(np.ones((6, 2), dtype=np.bool_), 4, estimator.bound)
        with pytest.raises(PrecisionError, match="nothing was released"):
            total.add(np.arange(6), found.numpy())


def test_a_zero_gradient_stays_zero() -> None:
    """Clipping does not divide by the norm of a record that asks for nothing."""
    model, space = adapted_llama("b")
    for parameter in model.causal_lm.parameters():
        parameter.data.zero_()
    estimator = FirstOrderEstimator(model, make_objective("completion"), space, clip=1.0)
    assert not estimator.clipped_gradients([0, 1]).any()


def test_first_order_covers_chosen_tensors_of_known_modules() -> None:
    """A norm and one weight of a layer with a bias; what no module owns is refused by name."""
    model = make_model("llama", attention_bias=True)
    chosen = {
        "norm": model.model.norm.weight,
        "q": model.model.layers[0].self_attn.q_proj.weight,
    }
    objective, language_model = make_objective("completion"), LanguageModel(model, END)
    found = PerRecordGradients(model, chosen).compute(
        lambda: objective.losses(language_model, range(6)), 6
    )
    for parameter in chosen.values():
        parameter.requires_grad_(requires_grad=True)
    for example, row in zip(make_examples("completion", LENGTHS), found, strict=True):
        expected = torch.autograd.grad(naive_loss(model, example), list(chosen.values()))
        flat = torch.cat([g.reshape(-1) for g in expected])
        assert torch.allclose(row, flat, rtol=1e-3, atol=1e-6)
    stranger = {"elsewhere": torch.nn.Parameter(torch.zeros(3))}
    with pytest.raises(InvalidParameterError, match=r"elsewhere belongs.*Use --adapter lora"):
        PerRecordGradients(model, stranger)


def test_first_order_needs_a_differentiable_loss() -> None:
    """Token F1 has no gradient."""
    model, space = adapted_llama("b")
    objective = GenerationObjective(make_examples("classification", LENGTHS), None, 4)
    with pytest.raises(InvalidParameterError, match="has no gradient: use --estimator zeroth"):
        FirstOrderEstimator(model, objective, space, clip=1.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_bounds_must_be_numbers(bad: Any) -> None:
    """A NaN clip would clip nothing, and a zero perturbation divides by zero."""
    model, space = adapted_llama("b")
    objective = make_objective("completion")
    with pytest.raises(InvalidParameterError, match="clip must be positive"):
        FirstOrderEstimator(model, objective, space, clip=bad)
    with pytest.raises(InvalidParameterError, match="clip must be positive"):
        ZerothOrderEstimator(model, objective, space, perturbation=1e-3, clip=bad)
    with pytest.raises(InvalidParameterError, match="perturbation must be positive"):
        ZerothOrderEstimator(model, objective, space, perturbation=bad, clip=1.0)


def test_the_adapter_of_this_file_is_away_from_its_start() -> None:
    """B is not zero, so gradients of A are not either: the comparisons above see both factors."""
    model, space = adapted_llama("both")
    gradients = brute_force(model, space, "completion")
    sizes = [p.numel() for p in space.tensors.values()]
    for name, part in zip(space.tensors, gradients.split(sizes, dim=1), strict=True):
        assert part.norm() > 1e-4, name
    assert model.pad_token_id == END
    directions = make_direction_set("rademacher", 7, space.directions.sizes, 4)
    assert np.array_equal(directions.direction(0, 0), space.directions.direction(0, 0))
