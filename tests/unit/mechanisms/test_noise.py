"""Noise for tensors: which tensors and standard deviations are taken, and how it is added."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from helpers_streams import BrokenStream, ScriptedStream, seeded_stream
from sordino.core.errors import EntropyError, InvalidParameterError, PrecisionError
from sordino.mechanisms import noise
from sordino.mechanisms.noise import LARGEST_NORMAL, add_noise, noise_source, standard_normals

FLOAT32_MAX = torch.finfo(torch.float32).max


def test_a_pair_of_words_gives_a_pair_of_normals() -> None:
    """Box and Muller's formula on the words' upper 53 bits; the radius' uniform is above 0."""
    words = [3 << 50, 5 << 40, 1 << 60, 7 << 61]
    found = standard_normals(ScriptedStream(words), 4)
    u, v = (np.array([w >> 11 for w in half], dtype=float) for half in (words[:2], words[2:]))
    radius, angle = np.sqrt(-2 * np.log((u + 1) * 2.0**-53)), 2 * np.pi * v * 2.0**-53
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    assert found.dtype == torch.float64
    assert np.allclose(found.numpy(), expected, rtol=1e-14, atol=1e-15)


def test_the_extreme_words_give_finite_normals() -> None:
    """Word 0 is the largest radius, word 2**64 - 1 gives 0 and not NaN."""
    largest = standard_normals(ScriptedStream([0, 0]), 1)
    assert largest.item() == pytest.approx(LARGEST_NORMAL, rel=1e-15)
    smallest = standard_normals(ScriptedStream([2**64 - 1, 2**64 - 1]), 2)
    assert smallest.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 2**16 - 1, 2**16, 2**16 + 1, 200_001])
def test_any_count_is_given(count: int) -> None:
    """Odd counts, full blocks and one more; no block repeats another."""
    normals = standard_normals(seeded_stream(1), count)
    assert normals.shape == (count,)
    assert normals.unique().numel() == count  # equal by chance: below 1e-5, and the seed is fixed
    if count:
        assert normals.abs().max() <= LARGEST_NORMAL * (1 + 1e-15)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 70_001), ()])
def test_noise_is_added_in_float64_and_rounded_once(shape: tuple[int, ...]) -> None:
    """Bit by bit what the definition says, for every shape."""
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(shape, generator=generator) * 3
    before = tensor.clone()
    add_noise(tensor, seeded_stream(2), 0.7)
    normals = standard_normals(seeded_stream(2), before.numel()).view(shape)
    assert torch.equal(tensor, (before.double() + normals * 0.7).float())


def test_a_parameter_and_its_gradient_history_are_fine() -> None:
    """A leaf that requires gradients is changed in place, outside the graph."""
    weight = torch.nn.Parameter(torch.zeros(4))
    add_noise(weight, seeded_stream(3), 1.0)
    assert weight.detach().abs().min() > 0
    assert weight.grad_fn is None


def test_an_empty_tensor_takes_no_noise() -> None:
    """No numbers, nothing to do."""
    add_noise(torch.zeros(0), BrokenStream(), 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -1.0, True, None])
def test_a_bad_noise_std_is_refused(bad: float) -> None:
    """Before the first number is changed."""
    tensor = torch.ones(3)
    with pytest.raises(InvalidParameterError, match="noise_std must be positive and finite"):
        add_noise(tensor, seeded_stream(4), bad)
    assert tensor.tolist() == [1.0] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, FLOAT32_MAX, -FLOAT32_MAX])
@pytest.mark.parametrize("place", [0, 1, 2**16 + 4])
def test_a_bad_tensor_is_refused(bad: float, place: int) -> None:
    """NaN, infinity, or no room for the noise, anywhere: nothing before it is changed either."""
    tensor = torch.ones(2**16 + 5)
    tensor[place] = bad
    before = tensor.clone()
    with pytest.raises(PrecisionError, match="nothing was released"):
        add_noise(tensor, seeded_stream(5), 1e30)
    assert torch.equal(tensor.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, dtype=torch.float64),
        torch.zeros(3, dtype=torch.bfloat16),
        torch.zeros(3, dtype=torch.int32),
        torch.zeros(3, 4).t(),
    ],
    ids=["float64", "bfloat16", "int32", "transposed"],
)
def test_other_tensors_are_refused(tensor: torch.Tensor) -> None:
    """Only contiguous float32."""
    with pytest.raises(InvalidParameterError, match="contiguous float32 tensors, got"):
        add_noise(tensor, seeded_stream(6), 1.0)


@pytest.mark.parametrize("bad", [-1, 1.5, math.nan, None])
def test_a_bad_count_is_refused(bad: int) -> None:
    """A negative number of normals is an error, not none."""
    with pytest.raises(InvalidParameterError, match="count must be a whole number"):
        standard_normals(seeded_stream(7), bad)


def test_without_entropy_there_is_no_noise() -> None:
    """The stream's error goes through."""
    with pytest.raises(EntropyError):
        standard_normals(BrokenStream(), 3)
    with pytest.raises(EntropyError):
        add_noise(torch.zeros(3), BrokenStream(), 1.0)


def test_the_global_generator_is_left_alone() -> None:
    """Noise neither reads nor moves torch's own stream."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = standard_normals(seeded_stream(8), 10)
    torch.manual_seed(0)
    second = standard_normals(seeded_stream(9), 10)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_source_is_named() -> None:
    """What the certificate says."""
    assert noise_source("cpu") == "operating system, ChaCha20, float64"
    assert noise_source(torch.device("cuda")) == "CUDA generator keyed by the operating system"


def test_the_device_generator_gets_a_fresh_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The accelerator's path, run on the processor: a new key a call, several blocks a call."""
    monkeypatch.setattr(noise, "_ON_DEVICE_BLOCK", 4)
    stream, cpu = seeded_stream(10), torch.device("cpu")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second = (torch.cat(list(noise._device_blocks(stream, 10, cpu))) for _ in range(2))
    assert first.shape == (10,)
    assert first.dtype == torch.float64
    assert torch.cat([first, second]).unique().numel() == 20
    assert torch.equal(torch.get_rng_state(), state)
