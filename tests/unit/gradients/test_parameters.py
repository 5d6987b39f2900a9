"""Parameter spaces: perturbing leaves no trace, and moving is exact and the same everywhere."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from helpers_tiny_models import VOCABULARY, adapted_llama, make_model
from sordino.core.directions import DirectionStream
from sordino.core.errors import InvalidParameterError
from sordino.gradients import streamed as streamed_module
from sordino.gradients.direction_sets import (
    ALL_DIRECTION_KINDS,
    IndependentDirections,
    make_direction_set,
)
from sordino.gradients.parameters import FlatParameterSpace
from sordino.gradients.streamed import StreamedParameterSpace
from sordino.ledger.transcript import StepSymbols

if TYPE_CHECKING:
    from collections.abc import Mapping

TOKENS = torch.tensor([[3, 7, 0, 21, 3, 39], [1, 1, 0, 5, 38, 2]])
SCALE = 2.0**-5  # a perturbation that float32 holds exactly
LEARNING_RATE = 0.07
KINDS = ["rademacher", "gaussian"]


def named(model: Any) -> dict[str, torch.nn.Parameter]:
    """Returns every parameter of a model by name, sorted, tied ones once."""
    return dict(sorted(model.named_parameters()))


def directions_for(
    tensors: Mapping[str, torch.Tensor], kind: str = "rademacher", num_directions: int = 3
) -> IndependentDirections:
    sizes = {name: p.numel() for name, p in tensors.items()}
    return IndependentDirections(DirectionStream(5, kind), sizes, num_directions)


def both_spaces(
    kind: str, num_directions: int = 3, architecture: str = "llama", **changes: Any
) -> tuple[Any, FlatParameterSpace, Any, StreamedParameterSpace]:
    """Returns two equal models, the first in a flat space and the second in a streamed one."""
    first = make_model(architecture, **changes)
    second = copy.deepcopy(first)
    flat = FlatParameterSpace(named(first), directions_for(named(first), kind, num_directions))
    tensors = named(second)
    streamed = StreamedParameterSpace(
        second, tensors, directions_for(tensors, kind, num_directions), torch.float32
    )
    return first, flat, second, streamed


def bits(tensors: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """Returns tensors as bytes: equal only if every bit is."""
    return {name: t.detach().contiguous().numpy().tobytes() for name, t in tensors.items()}


def naive_perturbed(
    model: Any, kind: str, where: tuple[int, int, float], dtype: torch.dtype
) -> Any:
    """Returns a copy whose every parameter is master + scale * direction, in `dtype`."""
    step, index, scale = where
    other = copy.deepcopy(model)
    stream = DirectionStream(5, kind)
    for name, parameter in named(other).items():
        whole = stream.integers(step, index, name, parameter.numel()).astype(np.float64)
        move = torch.from_numpy(whole * stream.unit * scale).view_as(parameter)
        parameter.data = (parameter.data.double() + move).float().to(dtype)
    return other


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "qwen2", "gemma2", "phi"])
def test_perturbed_logits_agree(architecture: str, kind: str) -> None:
    """Flat, streamed and a perturbed copy of the whole model give the same logits."""
    first, flat, second, streamed = both_spaces(kind, architecture=architecture)
    for index, scale in ((0, 0.01), (2, -0.05)):
        expected = naive_perturbed(first, kind, (4, index, scale), torch.float32)(TOKENS).logits
        with flat.perturbed(4, index, scale):
            of_flat = first(TOKENS).logits
        with streamed.perturbed(4, index, scale):
            of_streamed = second(TOKENS).logits
        assert torch.allclose(of_flat, expected, rtol=1e-4, atol=1e-5)
        assert torch.allclose(of_streamed, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(first(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma2"])
def test_bfloat16_layers_compute_with_rounded_masters(architecture: str) -> None:
    """Perturbed in float32, then rounded once to bfloat16: equal to a model made that way."""
    model = make_model(architecture)
    before = bits(named(model))
    plain = naive_perturbed(model, "rademacher", (0, 0, 0.0), torch.bfloat16)
    moved = naive_perturbed(model, "rademacher", (0, 1, SCALE), torch.bfloat16)
    space = StreamedParameterSpace(
        model, named(model), directions_for(named(model)), torch.bfloat16
    )
    unperturbed = model(TOKENS).logits
    assert unperturbed.dtype == torch.bfloat16
    assert torch.equal(unperturbed, plain(TOKENS).logits)
    with space.perturbed(0, 1, SCALE):
        assert torch.equal(model(TOKENS).logits, moved(TOKENS).logits)
    assert bits(named(model)) == before
    assert all(p.dtype == torch.float32 for p in named(model).values())


@pytest.mark.parametrize("kind", ALL_DIRECTION_KINDS)
def test_a_thousand_perturbations_leave_no_trace_flat(kind: str) -> None:
    """Defect 8: perturb-and-restore in place drifts; the master here is never written to."""
    _, space = adapted_llama("both", kind)
    before = bits(space.state())
    for number in range(1000):
        with space.perturbed(number, number % 4, (-1) ** number * 0.1):
            pass
    assert bits(space.state()) == before
    assert bits(space.tensors) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_thousand_perturbations_leave_no_trace_streamed(dtype: torch.dtype) -> None:
    """Defect 8 in full fine-tuning, also where layers compute in bfloat16."""
    model = make_model("llama", num_hidden_layers=1)
    space = StreamedParameterSpace(model, named(model), directions_for(named(model)), dtype)
    before, logits = bits(named(model)), model(TOKENS).logits
    for number in range(1000):
        with space.perturbed(number, number % 3, (-1) ** number * 0.1):
            if number % 10 == 0:
                model(TOKENS)
    assert bits(named(model)) == before
    assert bits(space.state()) == before
    assert torch.equal(model(TOKENS).logits, logits)


def test_an_interrupted_forward_pass_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a layer or the embedding raises in the middle, masters come back all the same."""
    first, flat, second, streamed = both_spaces("rademacher")
    before, logits = bits(named(first)), first(TOKENS).logits

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    for model, space in ((first, flat), (second, streamed)):
        with monkeypatch.context() as patch:
            patch.setattr(model.model.layers[1].mlp.down_proj, "forward", fail)
            with pytest.raises(RuntimeError, match="out of memory"), space.perturbed(0, 0, 0.5):
                model(TOKENS)
        with pytest.raises(IndexError), space.perturbed(0, 0, 0.5):
            model(TOKENS + VOCABULARY)
        assert bits(named(model)) == before
        assert bits(space.state()) == before
        assert torch.equal(model(TOKENS).logits, logits)


def naive_apply(
    state: dict[str, np.ndarray],
    symbols: StepSymbols,
    directions: IndependentDirections,
    step: int,
    decay: float,
) -> np.ndarray:
    """Returns the moved parameters, flat: whole numbers first, then one rounding each."""
    rows = [directions.direction(step, k) for k in range(directions.num_directions)]
    flat = np.concatenate([value.reshape(-1) for value in state.values()])
    whole = sum(int(b) * z.astype(object) for b, z in zip(symbols.integers, rows, strict=True))
    scale = LEARNING_RATE * symbols.unit * directions.unit / len(rows)
    move = (np.array([float(x) for x in whole]) * scale).astype(np.float32)
    if decay:
        flat = flat * np.float32(1.0 - LEARNING_RATE * decay)
    return flat - move


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("num_directions", [1, 40])
def test_moves_are_equal_bit_for_bit(
    kind: str, decay: float, num_directions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flat, streamed (in small blocks) and NumPy on whole numbers give the same bits."""
    monkeypatch.setattr(streamed_module, "_ELEMENTS_AT_ONCE", 256)
    first, flat, second, streamed = both_spaces(kind, num_directions)
    rng = np.random.default_rng(0)
    alphabets = ([-1, 1], [-1, 0, 1], [-(2**30), 12345, 2**30])
    for step, alphabet in enumerate(alphabets):
        integers = rng.choice(np.array(alphabet, dtype=np.int32), num_directions)
        integers[0] = alphabet[0]
        symbols = StepSymbols(integers, 1.0 if step < 2 else 2.0**-31)
        state = {name: p.detach().numpy().copy() for name, p in named(first).items()}
        expected = naive_apply(state, symbols, flat.directions, step, decay)
        assert flat.apply(step, symbols, LEARNING_RATE, decay)
        assert streamed.apply(step, symbols, LEARNING_RATE, decay)
        found = torch.cat([p.reshape(-1) for p in flat.state().values()])
        assert found.numpy().tobytes() == expected.astype(np.float32).tobytes()
        assert bits(flat.state()) == bits(streamed.state())
        assert bits(named(first)) == bits(named(second)) == bits(flat.state())


@pytest.mark.parametrize("kind", ALL_DIRECTION_KINDS)
def test_a_replay_gives_the_same_bits(kind: str) -> None:
    """Perturbations in between, or none: only the released symbols decide the weights."""
    symbols = [
        StepSymbols(np.random.default_rng(t).choice(np.array([-1, 1], dtype=np.int32), 4))
        for t in range(20)
    ]
    _, trained = adapted_llama("b", kind)
    _, replayed = adapted_llama("b", kind)
    for step, released in enumerate(symbols):
        for index in range(4):
            with trained.perturbed(step, index, 1e-3):
                pass
        trained.apply(step, released, 0.05, 0.01)
    for step, released in enumerate(symbols):
        replayed.apply(step, released, 0.05, 0.01)
    assert bits(trained.state()) == bits(replayed.state())


def test_moves_say_whether_anything_changed() -> None:
    """Defect 14: zeros without decay, or a step below float32 resolution, move nothing."""
    zeros = StepSymbols(np.zeros(3, dtype=np.int32))
    ones = StepSymbols(np.ones(3, dtype=np.int32))
    _, flat, _, streamed = both_spaces("rademacher")
    for space in (flat, streamed):
        before = bits(space.state())
        assert not space.apply(0, zeros, 0.1, 0.0)
        assert not space.apply(0, ones, 1e-30, 0.0)
        assert bits(space.state()) == before
        assert space.apply(0, zeros, 0.1, 0.1)
        assert space.apply(0, ones, 0.1, 0.0)


def test_flat_tensors_are_views_of_one_buffer() -> None:
    """The model computes with what the space moves, at once."""
    model, space = adapted_llama("b")
    before = model.causal_lm(TOKENS).logits
    space.apply(0, StepSymbols(np.ones(4, dtype=np.int32)), 0.5, 0.0)
    assert not torch.equal(model.causal_lm(TOKENS).logits, before)
    assert bits(space.state()) == bits(space.tensors)


@pytest.mark.parametrize("which", ["flat", "streamed"])
def test_reset_goes_back(which: str) -> None:
    """A saved state is a copy, and setting it restores model and master bit for bit."""
    first, flat, second, streamed = both_spaces("rademacher")
    model, space = (first, flat) if which == "flat" else (second, streamed)
    start = {name: t.clone() for name, t in space.state().items()}
    logits = model(TOKENS).logits
    space.apply(0, StepSymbols(np.ones(3, dtype=np.int32)), 0.5, 0.1)
    assert not torch.equal(model(TOKENS).logits, logits)
    space.reset(start)
    assert bits(space.state()) == bits(start)
    assert torch.equal(model(TOKENS).logits, logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_perturbed_matrix(kind: str, dtype: torch.dtype) -> None:
    """A partial read-out sees the perturbation and the rounding of the whole layer."""
    model = make_model("phi")
    space = StreamedParameterSpace(model, named(model), directions_for(named(model), kind), dtype)
    words = torch.tensor([5, 39, 0])
    moved = naive_perturbed(model, kind, (2, 1, SCALE), dtype)
    for name in ("lm_head.weight", "lm_head.bias"):
        parameter = named(model)[name]
        assert torch.equal(space.rows(parameter, words), parameter[words].to(dtype))
        with space.perturbed(2, 1, SCALE):
            found = space.rows(parameter, words)
        expected = named(moved)[name][words]
        assert found.dtype == dtype
        assert torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=1e-6)
        if kind == "rademacher":
            assert torch.equal(found, expected)


def test_tied_weights_are_perturbed_together() -> None:
    """Embedding and output layer that share a matrix share its direction."""
    first, flat, second, streamed = both_spaces("rademacher", tie_word_embeddings=True)
    assert "lm_head.weight" not in named(second)
    expected = naive_perturbed(first, "rademacher", (1, 0, 0.1), torch.float32)(TOKENS).logits
    for model, space in ((first, flat), (second, streamed)):
        with space.perturbed(1, 0, 0.1):
            assert torch.allclose(model(TOKENS).logits, expected, rtol=1e-4, atol=1e-5)


def test_part_of_a_model_may_be_trained() -> None:
    """Only the named tensors move and are perturbed, the others stay."""
    model = make_model("llama")
    tensors = {n: p for n, p in named(model).items() if "layers.1.mlp" in n or "norm" in n}
    space = StreamedParameterSpace(model, tensors, directions_for(tensors), torch.float32)
    others = bits({n: p for n, p in named(model).items() if n not in tensors})
    before = model(TOKENS).logits
    with space.perturbed(0, 0, 0.1):
        assert not torch.equal(model(TOKENS).logits, before)
    space.apply(0, StepSymbols(np.ones(3, dtype=np.int32)), 0.1, 0.1)
    assert bits({n: p for n, p in named(model).items() if n not in tensors}) == others


def test_closing_removes_every_hook() -> None:
    """Afterwards the model is an ordinary one, in float32."""
    model = make_model("llama")
    logits = model(TOKENS).logits
    space = StreamedParameterSpace(
        model, named(model), directions_for(named(model)), torch.bfloat16
    )
    assert model(TOKENS).logits.dtype == torch.bfloat16
    space.close()
    assert torch.equal(model(TOKENS).logits, logits)


def test_large_tensors_are_made_in_aligned_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 256 elements perturb as one block of a million does."""
    model = make_model("llama")
    space = StreamedParameterSpace(model, named(model), directions_for(named(model)), torch.float32)
    with space.perturbed(0, 0, 0.1):
        whole = model(TOKENS).logits
        monkeypatch.setattr(streamed_module, "_ELEMENTS_AT_ONCE", 256)
        assert torch.equal(model(TOKENS).logits, whole)
    assert streamed_module._ELEMENTS_AT_ONCE % DirectionStream(0).alignment == 0
    assert 2**20 % DirectionStream(0).alignment == 0


def test_trainable_tensors_are_float32() -> None:
    """In fewer bits a move is lost: refused, with the tensor's name."""
    tensors = {"w": torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16), requires_grad=False)}
    with pytest.raises(InvalidParameterError, match=r"must be float32 .* but w is torch.bfloat16"):
        FlatParameterSpace(tensors, directions_for(tensors))
    with pytest.raises(InvalidParameterError, match="must be float32"):
        StreamedParameterSpace(torch.nn.Module(), tensors, directions_for(tensors), torch.bfloat16)


def test_nothing_to_train_is_an_error() -> None:
    """Defect 14: a run without a trainable tensor would never move."""
    with pytest.raises(InvalidParameterError, match="no trainable tensor"):
        FlatParameterSpace({}, directions_for({"w": torch.zeros(1)}))


def test_full_fine_tuning_takes_no_hadamard_directions() -> None:
    """They need all numbers at once: refused with a remedy."""
    model = make_model("llama")
    sizes = {name: p.numel() for name, p in named(model).items()}
    directions = make_direction_set("hadamard", 0, sizes, 2)
    with pytest.raises(InvalidParameterError, match="Hadamard directions are for adapters"):
        StreamedParameterSpace(model, named(model), directions, torch.float32)


def test_tokens_are_in_the_vocabulary() -> None:
    """The fixed input of this file fits the tiny models."""
    assert TOKENS.max() < VOCABULARY
