"""Forward mode: brute-force gradients agree, bounds hold, one pass a direction, nothing is left."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

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
from sordino.gradients.forward_mode import ForwardModeEstimator
from sordino.gradients.objectives import (
    AbstractObjective,
    ClassificationObjective,
    CompletionObjective,
    GenerationObjective,
    LanguageModel,
)
from sordino.gradients.parameters import AbstractParameterSpace, FlatParameterSpace
from sordino.gradients.prefix import FrozenPrefix
from sordino.gradients.streamed import StreamedParameterSpace
from sordino.mechanisms.candidates import SubsetSums
from sordino.models import add_lora, trainable_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

ARCHITECTURES = ["llama", "qwen2", "phi", "gemma2", "gpt2", "opt"]
LENGTHS = [5, 12, 2, 9, 12, 3]
BATCHES = [[1, 4], [3, 0, 5], [2]]
STEP = 3
NUM_DIRECTIONS = 2


def make_objective(kind: str) -> AbstractObjective:
    examples = make_examples(kind, LENGTHS)
    if kind == "classification":
        return ClassificationObjective(examples, WORDS)
    return CompletionObjective(examples)


def adapted(
    name: str, kind: str = "rademacher", dtype: torch.dtype = torch.float32, **changes: Any
) -> tuple[LanguageModel, FlatParameterSpace]:
    """Returns a model with a float32 LoRA adapter away from its start."""
    peft = add_lora(
        make_model(name, **changes).to(dtype), rank=2, alpha=4.0, factors="both", seed=1
    )
    tensors = trainable_tensors(peft)
    generator = torch.Generator().manual_seed(2)
    for parameter in tensors.values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    peft.requires_grad_(requires_grad=False)
    sizes = {name: p.numel() for name, p in tensors.items()}
    space = FlatParameterSpace(tensors, make_direction_set(kind, 7, sizes, NUM_DIRECTIONS))
    return LanguageModel(peft.get_base_model(), END, space.rows), space


def whole(
    name: str, kind: str = "rademacher", dtype: torch.dtype = torch.float32, **changes: Any
) -> tuple[LanguageModel, StreamedParameterSpace]:
    """Returns a model whose every weight is trained, computing in `dtype`."""
    # without a padding token no row of the embedding is left out of brute-force gradients
    model = make_model(name, pad_token_id=None, **changes)
    model.requires_grad_(requires_grad=True)
    tensors = trainable_tensors(model)
    model.requires_grad_(requires_grad=False)
    sizes = {name: p.numel() for name, p in tensors.items()}
    directions = make_direction_set(kind, 7, sizes, NUM_DIRECTIONS)
    space = StreamedParameterSpace(model, tensors, directions, dtype)
    return LanguageModel(model, END, space.rows), space


def brute_force(model: LanguageModel, space: AbstractParameterSpace, kind: str) -> torch.Tensor:
    """Returns derivatives by one backward pass a record, without padding, float64."""
    parameters = list(space.tensors.values())
    rows = [space.directions.direction(STEP, k) for k in range(NUM_DIRECTIONS)]
    directions = torch.from_numpy(np.stack(rows)).double() * space.directions.unit
    result = []
    for parameter in parameters:
        parameter.requires_grad_(requires_grad=True)
    for example in make_examples(kind, LENGTHS):
        gradients = torch.autograd.grad(naive_loss(model.causal_lm, example), parameters)
        result.append(directions @ torch.cat([g.reshape(-1) for g in gradients]).double())
    for parameter in parameters:
        parameter.requires_grad_(requires_grad=False)
    return torch.stack(result)


def gather(
    estimator: ForwardModeEstimator, batches: Sequence[Sequence[int]] = BATCHES
) -> torch.Tensor:
    """Returns all contributions of a step, in the order of the records."""
    result = torch.full((len(LENGTHS), NUM_DIRECTIONS), math.nan, dtype=torch.float64)
    for records, contributions in estimator.contributions(STEP, batches):
        assert contributions.dtype == torch.float64
        assert contributions.shape == (len(records), NUM_DIRECTIONS)
        result[list(records)] = contributions
    return result


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Fails unless derivatives agree to float32 rounding and are worth comparing."""
    assert expected.abs().median() > 1e-2
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["classification", "completion"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adapter_derivatives_are_projected_gradients(name: str, kind: str) -> None:
    """A padded batch gives each record's own gradient times the direction: no step, no rounding."""
    model, space = adapted(name)
    estimator = ForwardModeEstimator(model, make_objective(kind), space, clip=1e6)
    assert_close(gather(estimator), brute_force(model, space, kind))


@pytest.mark.parametrize("kind", ["classification", "completion"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_derivatives_of_all_weights_are_projected_gradients(name: str, kind: str) -> None:
    """Embeddings, norms, biases and tied weights included, layer by layer."""
    model, space = whole(name)
    estimator = ForwardModeEstimator(model, make_objective(kind), space, clip=1e6)
    assert_close(gather(estimator), brute_force(model, space, kind))


@pytest.mark.parametrize("kind", ALL_DIRECTION_KINDS)
def test_every_kind_of_direction(kind: str) -> None:
    """Units and orders of the public directions are right."""
    model, space = adapted("llama", kind)
    estimator = ForwardModeEstimator(model, make_objective("completion"), space, clip=1e6)
    assert_close(gather(estimator), brute_force(model, space, "completion"))


@pytest.mark.parametrize("is_tied", [True, False])
def test_gaussian_directions_over_all_weights(is_tied: bool) -> None:
    """The unit is multiplied in once, also where a matrix is used twice."""
    model, space = whole("llama", "gaussian", tie_word_embeddings=is_tied)
    for kind in ("classification", "completion"):
        estimator = ForwardModeEstimator(model, make_objective(kind), space, clip=1e6)
        assert_close(gather(estimator), brute_force(model, space, kind))


@pytest.mark.parametrize("make", [adapted, whole])
def test_bfloat16_follows_the_exact_derivative(make: Any) -> None:
    """Rounding of layers is all that is lost: correlation above 0.98 on a tiny model."""
    model, space = make("llama")
    expected = brute_force(model, space, "completion")
    model, space = make("llama", dtype=torch.bfloat16)
    estimator = ForwardModeEstimator(model, make_objective("completion"), space, clip=1e6)
    found = gather(estimator)
    for k in range(NUM_DIRECTIONS):
        assert np.corrcoef(found[:, k], expected[:, k])[0, 1] > 0.98


def test_frozen_prefix_changes_nothing() -> None:
    """Kept hidden states are constants of the derivative, at the first look and from the cache."""
    peft = add_lora(make_model("llama"), rank=2, alpha=4.0, factors="both", layers=[1], seed=1)
    tensors = trainable_tensors(peft)
    for number, parameter in enumerate(tensors.values()):
        generator = torch.Generator().manual_seed(number)
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    peft.requires_grad_(requires_grad=False)
    sizes = {name: p.numel() for name, p in tensors.items()}
    directions = make_direction_set("rademacher", 7, sizes, NUM_DIRECTIONS)
    space = FlatParameterSpace(tensors, directions)
    prefix = FrozenPrefix.find(peft.get_base_model(), 1)
    assert prefix is not None
    model = LanguageModel(peft.get_base_model(), END, space.rows, prefix)
    estimator = ForwardModeEstimator(model, make_objective("completion"), space, clip=1e6)
    expected = brute_force(model, space, "completion")
    for _ in range(2):
        assert_close(gather(estimator), expected)


@pytest.mark.parametrize("clip", [1e-6, 0.01, 1.0, 1e6])
def test_contributions_are_clipped(clip: float) -> None:
    """Clipped to [-C, C], untouched within, and C is the stated bound."""
    model, space = adapted("llama")
    objective = make_objective("completion")
    free = gather(ForwardModeEstimator(model, objective, space, clip=1e9))
    estimator = ForwardModeEstimator(model, objective, space, clip=clip)
    assert estimator.bound == clip
    assert torch.equal(gather(estimator), free.clamp(-clip, clip))


class ChangedObjective(AbstractObjective):
    """The loss of record 2 goes through a function first."""

    def __init__(self, change: Any) -> None:
        self._inner = make_objective("completion")
        self._change = change
        self.lengths = self._inner.lengths

    def losses(self, model: LanguageModel, records: Sequence[int]) -> torch.Tensor:
        """Returns the losses, one of them changed."""
        losses = self._inner.losses(model, records)
        is_changed = torch.tensor([r == 2 for r in records])
        return torch.where(is_changed, self._change(losses), losses)


@pytest.mark.parametrize(
    "change",
    [
        lambda loss: loss + math.nan,
        lambda loss: loss + math.inf,  # the derivative alone would be finite
        lambda loss: (loss - loss).sqrt(),  # infinite or no number, while the loss is 0
        lambda loss: loss * 1e38 * 1e38,
    ],
)
def test_what_is_no_number_stops_the_run(change: Any) -> None:
    """Neither a broken loss nor a broken derivative is clipped to a vote."""
    model, space = adapted("llama")
    estimator = ForwardModeEstimator(model, ChangedObjective(change), space, clip=1.0)
    found = gather(estimator)
    assert found[2].isnan().all()
    assert found[[0, 1, 3, 4, 5]].isfinite().all()
    total = SubsetSums(np.ones((6, 2), dtype=np.bool_), NUM_DIRECTIONS, estimator.bound)
    with pytest.raises(PrecisionError, match="nothing was released"):
        total.add(np.arange(6), found.numpy())


def test_a_loss_without_trainable_tensors_asks_for_nothing() -> None:
    """No tangent reaches the loss: the derivative is exactly 0."""

    class Constant(ChangedObjective):
        def losses(self, model: LanguageModel, records: Sequence[int]) -> torch.Tensor:
            return torch.ones(len(records))

    model, space = adapted("llama")
    assert not gather(ForwardModeEstimator(model, Constant(None), space, clip=1.0)).any()


@pytest.mark.parametrize("make", [adapted, whole])
def test_one_forward_pass_a_direction_and_nothing_more(make: Any) -> None:
    """K passes a batch; no backward pass and no graph of it."""
    model, space = make("llama")
    estimator = ForwardModeEstimator(model, make_objective("completion"), space, clip=1.0)
    sizes: list[int] = []

    def count(_module: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
        sizes.append(len(kwargs["input_ids"]))
        assert not output.last_hidden_state.requires_grad

    decoder = model.causal_lm.get_decoder()
    decoder.register_forward_hook(count, with_kwargs=True)
    gather(estimator)
    assert sizes == [len(batch) for batch in BATCHES] * NUM_DIRECTIONS


def test_partition_into_batches_does_not_matter() -> None:
    """Other batches give the same contributions, up to the rounding of padded kernels."""
    model, space = adapted("llama")
    estimator = ForwardModeEstimator(model, make_objective("completion"), space, clip=1e6)
    expected = gather(estimator)
    for batches in ([[0, 1, 2, 3, 4, 5]], [[i] for i in range(6)], [[5, 2], [0, 3, 4, 1]]):
        assert_close(gather(estimator, batches), expected)


def test_a_worker_without_a_batch_takes_part() -> None:
    """No batch means no contribution and no error."""
    model, space = adapted("llama")
    estimator = ForwardModeEstimator(model, make_objective("completion"), space, clip=1.0)
    assert list(estimator.contributions(0, [])) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [adapted, whole])
@pytest.mark.parametrize("is_broken", [False, True])
def test_nothing_is_left_behind(make: Any, dtype: torch.dtype, is_broken: bool) -> None:
    """Weights, parameters, tangents and attention kernels are as before, also after an error."""
    model, space = make("llama", dtype=dtype)
    causal_lm = model.causal_lm
    parameters = dict(causal_lm.named_parameters())
    before = {name: p.clone() for name, p in parameters.items()}
    state = {name: tensor.clone() for name, tensor in space.state().items()}
    ids = torch.tensor([[3, 4, 5]])
    logits = causal_lm(ids).logits
    estimator = ForwardModeEstimator(model, make_objective("completion"), space, clip=1.0)
    if is_broken:

        def fail(*_: Any) -> None:
            raise KeyError("inside a layer")

        handle = causal_lm.model.layers[1].mlp.up_proj.register_forward_pre_hook(fail)
        with pytest.raises(KeyError, match="inside a layer"):
            gather(estimator)
        handle.remove()
    else:
        gather(estimator)
    after = dict(causal_lm.named_parameters())
    assert list(after) == list(parameters)
    with forward_ad.dual_level():
        for name, parameter in after.items():
            assert parameter is parameters[name]
            assert torch.equal(parameter, before[name])
            assert forward_ad.unpack_dual(parameter).tangent is None
        assert forward_ad.unpack_dual(causal_lm(ids).logits).tangent is None
    for name, tensor in space.state().items():
        assert torch.equal(tensor, state[name])
    assert torch.equal(causal_lm(ids).logits, logits)
    assert torch.backends.cuda.flash_sdp_enabled()


class OneWay(torch.autograd.Function):
    """An operation that differentiates backwards only, as many fused kernels do."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


def test_an_operation_without_forward_mode_is_refused() -> None:
    """The message names what does work; no derivative is silently 0."""
    model, space = adapted("llama")
    layer = model.causal_lm.model.layers[0]
    layer.mlp.register_forward_hook(lambda _module, _args, output: OneWay.apply(output))
    estimator = ForwardModeEstimator(model, make_objective("completion"), space, clip=1.0)
    with pytest.raises(InvalidParameterError, match="--directions-per-step 2 or more"):
        gather(estimator)


def test_needs_a_differentiable_loss() -> None:
    """Token F1 has no derivative."""
    model, space = adapted_llama("b")
    objective = GenerationObjective(make_examples("classification", LENGTHS), None, 4)
    with pytest.raises(InvalidParameterError, match="has no gradient: use --estimator zeroth"):
        ForwardModeEstimator(model, objective, space, clip=1.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_clip_must_be_a_number(bad: float) -> None:
    """A NaN clip would clip nothing."""
    model, space = adapted_llama("b")
    with pytest.raises(InvalidParameterError, match="clip must be positive"):
        ForwardModeEstimator(model, make_objective("completion"), space, clip=bad)
