"""Ghost norms and projections are those of each record's own gradient, which is never formed."""

from __future__ import annotations

import copy
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers_tiny_models import END, WORDS, make_examples, make_model, naive_loss
from sordino.core.errors import InvalidParameterError, PrecisionError
from sordino.gradients import factors as factors_module
from sordino.gradients import ghost as ghost_module
from sordino.gradients import objectives as objectives_module
from sordino.gradients.copied import CopiedParameterSpace
from sordino.gradients.direction_sets import make_direction_set
from sordino.gradients.factors import Factors, Left, Spans
from sordino.gradients.ghost import GhostEstimator
from sordino.gradients.objectives import (
    AbstractObjective,
    ClassificationObjective,
    CompletionObjective,
    GenerationObjective,
    LanguageModel,
)
from sordino.gradients.per_record import PerRecordGradients
from sordino.gradients.uses import with_records
from sordino.ledger.transcript import StepSymbols
from sordino.mechanisms.candidates import SubsetSums

if TYPE_CHECKING:
    from collections.abc import Mapping

LENGTHS = [5, 12, 2, 9, 12, 3]
BATCHES = [[1, 4], [3, 0, 5], [2], [0, 1, 2, 3, 4, 5]]
STEP = 3
K = 16
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-untied": ("llama", {"tie_word_embeddings": False}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", {}),
    "opt": ("opt", {}),
    "gemma2": ("gemma2", {}),
    "phi": ("phi", {}),
    "qwen3": ("qwen3", {}),  # norms of queries and keys, head by head
    "gemma3": ("gemma3", {}),  # a scaled, tied embedding
}


def named(model: Any) -> dict[str, torch.nn.Parameter]:
    """Returns every parameter by name, sorted, tied ones once."""
    return dict(sorted(model.named_parameters()))


def directions_for(tensors: Mapping[str, torch.Tensor], num_directions: int = K) -> Any:
    shapes = {name: tuple(p.shape) for name, p in tensors.items()}
    return make_direction_set("kronecker", 7, shapes, num_directions)


def make_objective(kind: str) -> AbstractObjective:
    examples = make_examples(kind, LENGTHS)
    if kind == "classification":
        return ClassificationObjective(examples, WORDS)
    return CompletionObjective(examples)


def make_estimator(model: Any, kind: str, clip: float = 1e6, **changes: Any) -> GhostEstimator:
    tensors = named(model)
    return GhostEstimator(
        LanguageModel(model, END),
        changes.get("objective") or make_objective(kind),
        tensors,
        directions_for(tensors),
        clip=clip,
    )


def brute_force(model: Any, kind: str) -> torch.Tensor:
    """Returns each record's gradient, one record and one backward pass at a time."""
    other = copy.deepcopy(model).requires_grad_(requires_grad=True)
    parameters = list(named(other).values())
    rows = []
    for example in make_examples(kind, LENGTHS):
        gradients = torch.autograd.grad(naive_loss(other, example), parameters, allow_unused=True)
        found = [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(parameters, gradients, strict=True)
        ]
        rows.append(torch.cat([g.reshape(-1) for g in found]))
    return torch.stack(rows).double()


def explicit_directions(model: Any) -> torch.Tensor:
    directions = directions_for(named(model))
    return torch.from_numpy(np.stack([directions.direction(STEP, k) for k in range(K)])).double()


def assert_agrees(estimator: GhostEstimator, gradients: torch.Tensor, model: Any) -> None:
    """Fails unless norms and projections are those of the gradients, in any batch."""
    norms, projections = gradients.square().sum(dim=1), gradients @ explicit_directions(model).T
    assert norms.min() > 1e-3
    for batch in BATCHES:
        found_norms, found = estimator.measure(STEP, batch)
        assert torch.allclose(found_norms, norms[batch], rtol=1e-5)
        assert torch.allclose(
            found.double(), projections[batch], rtol=0, atol=1e-5 * float(norms.max().sqrt())
        )


@pytest.mark.parametrize("kind", ["classification", "completion"])
@pytest.mark.parametrize("name", MODELS)
def test_norms_and_projections_are_those_of_each_record_alone(name: str, kind: str) -> None:
    """One backward pass over a padded batch gives what each record's own gradient gives."""
    architecture, changes = MODELS[name]
    model = make_model(architecture, **changes)
    assert_agrees(make_estimator(model, kind), brute_force(model, kind), model)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "gpt2", "opt"])
def test_materialised_gradients_of_all_tensors(architecture: str) -> None:
    """Biases, norms and embeddings are covered where gradients are formed, too."""
    model = make_model(architecture)
    expected = brute_force(model, "completion")
    objective, language_model = make_objective("completion"), LanguageModel(model, END)
    gradients = PerRecordGradients(model, named(model))
    for batch in BATCHES:
        found = gradients.compute(
            lambda batch=batch: objective.losses(language_model, batch), len(batch)
        )
        assert torch.allclose(
            found.double(), expected[batch], rtol=1e-4, atol=1e-6 * float(expected.abs().max())
        )


@pytest.mark.parametrize("kind", ["classification", "completion"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("entries", [1, 64, 2**10])
def test_small_parts_give_the_same(
    architecture: str, kind: str, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers are taken some records, or some tokens of one record, at a time."""
    model = make_model(architecture, tie_word_embeddings=True)
    gradients = brute_force(model, kind)
    monkeypatch.setattr(ghost_module, "_ENTRIES_AT_ONCE", entries)
    monkeypatch.setattr(factors_module, "_ENTRIES_AT_ONCE", entries)
    monkeypatch.setattr(objectives_module, "LOGIT_ROWS_AT_ONCE", 3)  # the head is used often
    assert_agrees(make_estimator(model, kind), gradients, model)


@pytest.mark.parametrize("clip", [1e-3, 0.5, 1e3])
def test_contributions_are_clipped_projections(clip: float) -> None:
    """One norm over all tensors; the factor min(1, clip / norm) comes last."""
    model = make_model("llama")
    gradients = brute_force(model, "completion")
    clipped = gradients * (clip / gradients.norm(dim=1, keepdim=True)).clamp(max=1.0)
    expected = clipped @ explicit_directions(model).T
    estimator = make_estimator(model, "completion", clip)
    assert estimator.bound == pytest.approx(clip * math.sqrt(gradients.shape[1]))
    for records, found in estimator.contributions(STEP, BATCHES):
        assert found.dtype == torch.float64
        assert found.shape == (len(records), K)
        scale = float(clipped.norm(dim=1).max())
        assert torch.allclose(found, expected[list(records)], rtol=0, atol=1e-5 * scale)
        assert (found.abs() <= estimator.bound).all()


def test_bfloat16_is_near_float32() -> None:
    """Layers in bfloat16, sums in float32: close to the exact derivatives."""
    model = make_model("llama", tie_word_embeddings=True)
    expected = brute_force(model, "classification") @ explicit_directions(model).T
    space = CopiedParameterSpace(model, named(model), directions_for(named(model)), torch.bfloat16)
    estimator = GhostEstimator(
        LanguageModel(space.model, END),
        make_objective("classification"),
        space.computing,
        space.directions,
        clip=1e6,
    )
    _, found = estimator.measure(STEP, range(6))
    correlation = np.corrcoef(found.double().reshape(-1), expected.reshape(-1))[0, 1]
    assert correlation > 0.99


class LargestTensor(TorchDispatchMode):
    """Remembers the largest number of elements that an operation gave."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (list, tuple)) else [result]:
            # a stride of 0 is an expanded view, not memory
            if isinstance(value, torch.Tensor) and 0 not in value.stride():
                self.largest = max(self.largest, value.numel())
        return result


@pytest.mark.parametrize("kind", ["classification", "completion"])
def test_no_gradient_is_ever_formed(kind: str) -> None:
    """64 x 192 weights, 6 records: nothing is as large as one gradient a record."""
    model = make_model("llama", hidden_size=64, intermediate_size=192, num_hidden_layers=1)
    estimator = make_estimator(model, kind)
    with LargestTensor() as seen:
        estimator.measure(STEP, range(6))
    assert seen.largest < 64 * 192 * 6 // 2
    gradients = PerRecordGradients(model, named(model))  # negative control
    objective, language_model = make_objective(kind), LanguageModel(model, END)
    with LargestTensor() as seen:
        gradients.compute(lambda: objective.losses(language_model, range(6)), 6)
    assert seen.largest >= 64 * 192 * 6


def test_weights_get_no_gradient_and_nothing_private_is_kept() -> None:
    """No .grad, no requires_grad and no pass is left, also after an error; then all goes on."""
    model = make_model("gpt2")
    estimator = make_estimator(model, "completion")
    before = {name: p.clone() for name, p in named(model).items()}
    expected = estimator.measure(STEP, [0, 1])
    with pytest.raises(IndexError):
        estimator.measure(STEP, [0, 99])
    assert estimator._watcher._pass is None
    for name, parameter in named(model).items():
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert torch.equal(parameter, before[name])
    model(torch.tensor([[1, 2, 3]]))  # the watcher is asleep
    for found, wanted in zip(estimator.measure(STEP, [0, 1]), expected, strict=True):
        assert torch.equal(found, wanted)


def test_one_forward_pass_a_batch() -> None:
    """All directions come from one pass forwards and one backwards, in the planned batches."""
    model = make_model("llama")
    sizes: list[int] = []
    model.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    list(make_estimator(model, "completion").contributions(STEP, BATCHES))
    assert sizes == [len(batch) for batch in BATCHES]
    assert list(make_estimator(model, "completion").contributions(STEP, [])) == []


@pytest.mark.parametrize("value", [math.nan, 3e38])
def test_a_gradient_that_is_no_number_stops_the_run(value: float) -> None:
    """NaN and overflow survive the clipping and are refused where contributions are summed."""
    model = make_model("llama")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = value
    estimator = make_estimator(model, "completion", clip=1.0)
    ((_, found),) = estimator.contributions(STEP, [list(range(6))])
    total = SubsetSums(np.ones((6, 2), dtype=np.bool_), K, estimator.bound)
    with pytest.raises(PrecisionError, match="nothing was released"):
        total.add(np.arange(6), found.numpy())


def test_a_zero_gradient_stays_zero() -> None:
    """Clipping does not divide by the norm of a record that asks for nothing."""
    model = make_model("llama")
    for parameter in model.parameters():
        parameter.data.zero_()
    ((_, found),) = make_estimator(model, "completion").contributions(STEP, [[0, 1]])
    assert not found.any()


# ----------------------------------------------------------------- what is not covered is refused


class Twice(torch.nn.Module):
    """A layer and a norm that are used twice, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding = torch.nn.Embedding(11, 6)
            self.layer = torch.nn.Linear(6, 6)
            self.twin = torch.nn.Linear(6, 6, bias=False)
            self.norm = torch.nn.LayerNorm(6)
            self.read = torch.nn.Linear(6, 1)
        self.twin.weight = self.layer.weight
        self.requires_grad_(requires_grad=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states = self.norm(self.layer(self.embedding(tokens)))
        states = self.norm(self.layer(torch.tanh(states)))
        states = self.twin(states.reshape(-1, 6)).reshape(states.shape)
        return self.read(torch.tanh(states)).sum(dim=(1, 2))


TOKENS = torch.tensor([[1, 2, 3, 1], [4, 4, 0, 9], [10, 5, 6, 7]])


def flat_gradients(model: torch.nn.Module, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    """Returns each record's own gradient of the model's output."""
    other = copy.deepcopy(model).requires_grad_(requires_grad=True)
    rows = []
    for record in tokens:
        gradients = torch.autograd.grad(other(record[None]).sum(), list(named(other).values()))
        rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    return torch.stack(rows)


class Direct(AbstractObjective):
    """The model's own output as the loss."""

    def losses(self, model: LanguageModel, records: Any) -> torch.Tensor:
        return model.causal_lm(TOKENS[list(records)])


def direct_estimator(model: Any) -> GhostEstimator:
    model.config = None
    return make_estimator(model, "", objective=Direct())


def test_layers_used_twice_and_shared_weights() -> None:
    """Every use counts, and so do the products of two uses of one weight."""
    model = Twice()
    expected = flat_gradients(model).double()
    norms, projections = direct_estimator(model).measure(STEP, range(3))
    assert torch.allclose(norms, expected.square().sum(dim=1), rtol=1e-5)
    assert torch.allclose(
        projections.double(), expected @ explicit_directions(model).T, rtol=1e-4, atol=1e-4
    )
    found = PerRecordGradients(model, named(model)).compute(lambda: model(TOKENS), 3)
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-5)


class OwnWeight(torch.nn.Module):
    """A module with children and a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 6)
        self.gate = torch.nn.Parameter(torch.ones(6))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return (self.embedding(tokens) * self.gate).sum(dim=(1, 2))


class Normalised(torch.nn.Module):
    """A linear layer's weight that is changed before it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 6)
        self.layer = torch.nn.Linear(6, 6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        weight = self.layer.weight / self.layer.weight.norm()
        return torch.nn.functional.linear(self.embedding(tokens), weight).sum(dim=(1, 2))


class Mixed(torch.nn.Module):
    """A layer that sees chosen tokens of several records, in an order of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 6)
        self.layer = torch.nn.Linear(6, 6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        chosen = self.layer(self.embedding(tokens).reshape(-1, 6)[tokens.reshape(-1) > 3])
        return chosen.sum() + self.embedding(tokens).sum(dim=(1, 2))


class Shifted(torch.nn.LayerNorm):
    """A norm that is called with a second tensor."""

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x) + shift


class TwoInputs(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 6)
        self.norm = Shifted(6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states = self.embedding(tokens)
        return self.norm(states, states).sum(dim=(1, 2))


class Renormed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 6, max_norm=1.0)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.embedding(tokens).sum(dim=(1, 2))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (OwnWeight(), "gate is in a OwnWeight"),
        (Normalised(), r"layer\.weight is used by"),
        (Mixed(), r"layer\.weight is used by a linear layer on a tensor of shape \(7, 6\)"),
        (TwoInputs(), r"norm\.\w+ is used by Shifted, called with more than x"),
        (Renormed(), r"embedding\.weight is used by an embedding with max_norm"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_other_uses_are_refused_by_name(model: torch.nn.Module, words: str) -> None:
    """A gradient that nobody would collect is an error, not a smaller gradient."""
    model.requires_grad_(requires_grad=False)
    with pytest.raises(InvalidParameterError, match=words + r".*Use --adapter lora") as error:
        direct_estimator(model).measure(STEP, range(3))
    assert str(error.value).startswith("first order")


def test_an_architecture_with_its_own_product_is_refused_by_name() -> None:
    """Falcon multiplies by weight.T itself: found when the tensor is touched, and said."""
    with pytest.raises(InvalidParameterError, match=r"query_key_value\.weight is used by \.T in"):
        make_estimator(make_model("falcon"), "completion").measure(STEP, [0, 1])


def test_tensors_of_no_module_and_of_large_modules_are_refused() -> None:
    """At the start, by name, before any pass."""
    model = make_model("llama")
    stranger = {"elsewhere": torch.nn.Parameter(torch.zeros(3))}
    with pytest.raises(InvalidParameterError, match="elsewhere belongs to no module"):
        PerRecordGradients(model, stranger)
    large = torch.nn.LayerNorm(2**17)
    with pytest.raises(InvalidParameterError, match="weight is in a LayerNorm"):
        PerRecordGradients(large, dict(large.named_parameters()))
    model.config.num_experts = 8
    with pytest.raises(InvalidParameterError, match="mixtures of experts"):
        make_estimator(model, "completion")


def test_other_objectives_directions_and_clips_are_refused() -> None:
    """Token F1 has no gradient, other directions no factors, and a NaN clip would clip nothing."""
    model = make_model("llama")
    generation = GenerationObjective(make_examples("classification", LENGTHS), None, 4)
    with pytest.raises(InvalidParameterError, match="has no gradient: use --estimator zeroth"):
        make_estimator(model, "", objective=generation)
    sizes = {name: p.numel() for name, p in named(model).items()}
    other = make_direction_set("rademacher", 0, sizes, 2)
    with pytest.raises(InvalidParameterError, match="use direction_kind kronecker"):
        GhostEstimator(
            LanguageModel(model, END), make_objective("completion"), named(model), other, clip=1.0
        )
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InvalidParameterError, match="clip must be positive"):
            make_estimator(model, "completion", clip=bad)


# ------------------------------------------------------------------------------ spans and factors


def test_records_of_rows_are_ascending() -> None:
    """Outside of a pass a mark does nothing; within one, unordered rows are refused."""
    rows = torch.zeros(3, 2)
    assert with_records(rows, torch.tensor([0, 1, 1])) is rows
    model = Twice()

    def losses() -> torch.Tensor:
        states = model.embedding(TOKENS)[torch.tensor([0, 2, 1]), 0]
        return model.layer(with_records(states, torch.tensor([0, 2, 1]))).sum(dim=1)

    with pytest.raises(ValueError, match="ascending order"):
        PerRecordGradients(model, named(model)).compute(losses, 3)


@pytest.mark.parametrize("offsets", [(0, 3, 6, 9), (0, 1, 1, 9), (0, 0, 0, 2)])
def test_parts_of_spans_cover_every_row_once(offsets: tuple[int, ...]) -> None:
    """Sums by parts are the sums, whatever the size of a part; a record may have no row."""
    values = torch.randn(offsets[-1], 2, generator=torch.Generator().manual_seed(0))
    spans = Spans(offsets)
    expected = torch.stack([values[a:b].sum(dim=0) for a, b in itertools.pairwise(offsets)])
    assert torch.allclose(spans.sum(values), expected)
    for size in (1, 2, 4, 100):
        total = torch.zeros(3, 2)
        for records, rows, within in spans.parts(size):
            assert rows.stop - rows.start <= max(size, 1)
            total[records] += within.sum(values[rows])
        assert torch.allclose(total, expected, atol=1e-6)


def all_lefts(size: int) -> dict[str, tuple[Left, torch.Tensor]]:
    """Returns six left factors of every kind, and the same written out."""
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(6, size, generator=generator)
    part, columns = torch.randn(6, 2, generator=generator), torch.tensor([3, 1])
    spread = torch.zeros(6, size).index_add_(1, columns, part)
    places = torch.tensor([3, 3, 0, 1, 4, 3])
    one_hot = torch.nn.functional.one_hot(places, size).float()
    return {
        "dense": (Left(dense), dense),
        "part": (Left(part, columns), spread),
        "one-hot": (Left(None, places), one_hot),
    }


@pytest.mark.parametrize("first", ["dense", "part", "one-hot"])
@pytest.mark.parametrize("second", ["dense", "part", "one-hot"])
@pytest.mark.parametrize("offsets", [(0, 2, 4, 6), (0, 1, 3, 6)])
@pytest.mark.parametrize("size", [5, 300])
def test_products_of_factors_are_those_of_gradients(
    first: str, second: str, offsets: tuple[int, ...], size: int
) -> None:
    """Norms, products and materialised gradients agree, for sparse and dense factors."""
    generator = torch.Generator().manual_seed(2)
    spans, lefts = Spans(offsets), all_lefts(size)
    rights = torch.randn(2, 6, 4, generator=generator)
    uses, gradients = [], []
    for name, right in zip((first, second), rights, strict=True):
        left, whole = lefts[name]
        uses.append(Factors(left, right, spans))
        gradients.append(
            torch.stack([whole[a:b].T @ right[a:b] for a, b in itertools.pairwise(offsets)])
        )
        assert torch.allclose(uses[-1].materialised(size), gradients[-1], atol=1e-5)
        expected = gradients[-1].square().sum(dim=(1, 2)).double()
        assert torch.allclose(uses[-1].squared_norms(), expected, rtol=1e-5)
    products = (gradients[0] * gradients[1]).sum(dim=(1, 2)).double()
    assert torch.allclose(uses[0].products(uses[1]), products, rtol=1e-4, atol=1e-5)
    if lefts[second][0].columns is not None:
        columns = torch.cat([torch.tensor([2]), lefts[second][0].columns])
        restricted = Factors(lefts[first][0].restricted(columns), rights[0], spans)
        assert torch.allclose(restricted.products(uses[1]), products, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------- the space


def moves(num_steps: int = 3) -> list[StepSymbols]:
    rng = np.random.default_rng(0)
    return [StepSymbols(rng.choice([-1, 1], K).astype(np.int32)) for _ in range(num_steps)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_moves_are_exact_and_the_copy_follows(dtype: torch.dtype, decay: float) -> None:
    """theta <- (1 - lr wd) theta - lr / K sum_k b_k z_k, each move rounded once; copies follow."""
    model = make_model("llama", tie_word_embeddings=True)
    space = CopiedParameterSpace(model, named(model), directions_for(named(model)), dtype)
    expected = torch.cat([p.detach().reshape(-1) for p in named(model).values()])
    for step, symbols in enumerate(moves()):
        whole = sum(
            int(b) * space.directions.direction(step, k).astype(np.float64)
            for k, b in enumerate(symbols.integers)
        )
        if decay:
            expected = expected * (1.0 - 0.07 * decay)
        expected = expected - (torch.from_numpy(whole) * (0.07 * 1.0 * 1.0 / K)).float()
        assert space.apply(step, symbols, 0.07, decay)
    found = torch.cat([p.reshape(-1) for p in space.state().values()])
    assert torch.equal(found, expected)
    assert space.computing.keys() == space.tensors.keys()
    for name, parameter in space.computing.items():
        assert torch.equal(parameter, space.tensors[name].to(dtype))
    if dtype == torch.float32:
        assert space.model is model
    else:
        tied = space.model.get_input_embeddings().weight
        assert tied is space.model.get_output_embeddings().weight
        assert tied is space.computing["model.embed_tokens.weight"]
    assert not space.apply(3, moves()[0], 1e-30, 0.0)


def test_reset_and_refusals_of_the_space() -> None:
    """The copy follows a reset; a perturbation is refused with the kind that can."""
    model = make_model("llama")
    space = CopiedParameterSpace(model, named(model), directions_for(named(model)), torch.bfloat16)
    start = {name: tensor.clone() for name, tensor in space.state().items()}
    space.apply(0, moves()[0], 0.5, 0.0)
    space.reset(start)
    for name, parameter in space.computing.items():
        assert torch.equal(space.tensors[name], start[name])
        assert torch.equal(parameter, start[name].bfloat16())
    with (
        pytest.raises(InvalidParameterError, match="--direction-kind rademacher"),
        space.perturbed(0, 0, 0.1),
    ):
        pass
    inner = space.model.model.rotary_emb.inv_freq
    assert torch.equal(inner, model.model.rotary_emb.inv_freq)  # buffers keep their bits
    weight = space.computing["lm_head.weight"]
    assert torch.equal(space.rows(weight, torch.tensor([3, 1])), weight[[3, 1]])
