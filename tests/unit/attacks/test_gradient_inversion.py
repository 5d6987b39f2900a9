"""Gradient inversion: exact on raw gradients, chance on what the mechanisms release."""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from helpers_enumeration import SeededEntropy
from helpers_streams import seeded_stream
from helpers_tiny_models import END, VOCABULARY, make_model, naive_loss, named_parameters
from sordino.attacks.gradient_inversion import invert_gradients
from sordino.core.errors import InvalidParameterError, PrecisionError
from sordino.data.tasks import Example
from sordino.gradients.objectives import LanguageModel
from sordino.mechanisms.candidates import CandidateSubsets
from sordino.mechanisms.gaussian import GaussianMechanism
from sordino.mechanisms.unanimity import UnanimityMechanism
from sordino.models import add_lora, trainable_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Gradients = dict[str, torch.Tensor]

RECORDS = ([3, 7, 8, 20, 5, 9], [11, 3, 30, 2, 17])
TOKENS = (2, 3, 5, 7, 8, 11, 20, 30)  # all but the last of each record
SEQUENCES = ((3, 7, 8, 20, 5), (11, 3, 30, 2))
READERS = ("q_proj", "k_proj", "v_proj")
REPETITIONS = 20
RATE = 1e-7


def wide_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Returns a tiny model of width 32, wider than the records have tokens."""
    width = {"n_embd": 32} if name == "gpt2" else {"hidden_size": 32}
    return make_model(name, **width).to(dtype)


def gradients_of(
    model: Any, tensors: dict[str, Any], records: Sequence[list[int]] = RECORDS
) -> Gradients:
    """Returns the gradient of the summed loss, as a federated client would send it."""
    examples = [Example(ids, num_prompt_tokens=1 + i) for i, ids in enumerate(records)]
    for parameter in tensors.values():
        parameter.requires_grad_(requires_grad=True)
    loss = torch.stack([naive_loss(model, example) for example in examples]).sum()
    found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    for parameter in tensors.values():
        parameter.requires_grad_(requires_grad=False)
    return {name: g for name, g in zip(tensors, found, strict=True) if g is not None}


def adapted(factors: str, rank: int, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """Returns a Llama with an adapter away from its start, and its trainable tensors."""
    peft_model = add_lora(wide_model("llama"), rank=rank, alpha=16.0, factors=factors, seed=1)
    tensors = trainable_tensors(peft_model.to(dtype))
    generator = torch.Generator().manual_seed(0)
    for parameter in tensors.values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(dtype)
    return peft_model.get_base_model(), tensors


def invert(model: Any, gradients: Gradients, **settings: Any) -> Any:
    return invert_gradients(LanguageModel(model, END), gradients, max_length=8, **settings)


@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "falcon", "phi", "gpt2", "opt"]
)
def test_raw_gradients_give_everything_away(name: str) -> None:
    """Tokens and whole sequences, in float32: rotations or learned positions, any layout."""
    model = wide_model(name)
    found = invert(model, gradients_of(model, named_parameters(model)))
    assert found.token_ids == TOKENS
    assert found.sequences == SEQUENCES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factors", ["b", "both"])
def test_raw_adapter_gradients_give_everything_away(factors: str, dtype: torch.dtype) -> None:
    """Also where only B is trained and A is public."""
    model, tensors = adapted(factors, rank=16, dtype=dtype)
    found = invert(model, gradients_of(model, tensors))
    assert found.token_ids == TOKENS
    assert found.sequences == SEQUENCES
    assert found.distances.shape == (VOCABULARY,)
    assert found.distances[list(TOKENS)].max() < 1e-3
    assert np.delete(found.distances, TOKENS).min() > 0.05


def test_an_adapter_of_small_rank_says_nothing() -> None:
    """Seven dimensions and more tokens: no span is smaller than its space."""
    model, tensors = adapted("b", rank=7, dtype=torch.float64)
    found = invert(model, gradients_of(model, tensors))
    assert (found.token_ids, found.sequences, found.num_spans) == ((), (), 0)
    assert (found.distances == 1.0).all()


def test_a_repeated_first_token() -> None:
    """Repeats that belong to a record are found; those that a rotary model cannot see are not."""
    model = wide_model("llama")
    records = [[5, 5, 5, 8, 9], [6, 7, 6, 10]]
    found = invert(model, gradients_of(model, named_parameters(model), records))
    assert found.sequences == ((5, 5, 5, 8), (6, 7, 6))


def test_one_block_gives_tokens_only() -> None:
    """Without a second block there are no sequences; a search that is too large stops."""
    model = wide_model("llama")
    gradients = gradients_of(model, named_parameters(model))
    first = {name: g for name, g in gradients.items() if "layers.0." in name}
    assert invert(model, first).token_ids == TOKENS
    assert invert(model, first).sequences == ()
    assert invert(model, gradients, max_candidates=10).sequences == ((3,), (11,))


def test_small_batches_of_inputs_change_nothing() -> None:
    model = wide_model("gpt2")
    gradients = gradients_of(model, named_parameters(model))
    assert invert(model, gradients, tokens_at_once=7).sequences == SEQUENCES


# --- what the mechanisms release --------------------------------------------------------------


def noisy_sum(flat: NDArray[np.float64], noise_multiplier: float, number: int) -> Any:
    """Returns the release of the Gaussian mechanism; nothing was clipped."""
    clip_norm = float(np.linalg.norm(flat))
    unit = math.ldexp(clip_norm, -30)
    mechanism = GaussianMechanism(
        seeded_stream([1, number]),
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        num_releases=flat.size,
        expected_batch_size=1.0,
        contribution_unit=unit,
    )
    release = mechanism.release(np.rint(flat / unit)[None], unit, 0)
    return release.integers * release.unit


def signs(flat: NDArray[np.float64], num_directions: int, number: int) -> Any:
    """Returns what K signs say of the gradient; all candidates agree, so none is a coin."""
    rng = np.random.default_rng([2, number])
    directions = rng.choice([-1.0, 1.0], size=(num_directions, flat.size))
    mechanism = UnanimityMechanism(CandidateSubsets(num_subsets=4), SeededEntropy([3, number]))
    release = mechanism.release(np.tile(directions @ flat, (4, 1)), 1.0, 0)
    return release.integers @ directions


def count_hits(release: Callable[[NDArray[np.float64], int], Any]) -> int:
    """Returns how many of the nearest tokens were in the batch, over fresh random batches.

    The attacker knows how many tokens there were, and ranks by the distance from as many
    directions.
    """
    model = wide_model("llama", torch.float64)
    tensors = {n: p for n, p in named_parameters(model).items() if any(r in n for r in READERS)}
    rng = np.random.default_rng(4)
    hits = 0
    for number in range(REPETITIONS):
        ids = rng.permutation(VOCABULARY)[:11].tolist()
        gradients = gradients_of(model, tensors, [ids[:6], ids[6:]])
        flat = torch.cat([g.reshape(-1) for g in gradients.values()]).numpy()
        parts = torch.tensor(release(flat, number)).split([g.numel() for g in gradients.values()])
        released = {
            name: part.reshape(g.shape)
            for (name, g), part in zip(gradients.items(), parts, strict=True)
        }
        if number == 0 and release is not RAW:
            found = invert(model, released)
            assert (found.token_ids, found.sequences, found.num_spans) == ((), (), 0)
        members = {*ids[:5], *ids[6:10]}
        found = invert(model, released, rank=len(members))
        nearest = np.argsort(found.distances, kind="stable")[: len(members)]
        hits += len(members & set(nearest.tolist()))
    return hits


def RAW(flat: NDArray[np.float64], number: int) -> NDArray[np.float64]:  # noqa: N802
    return flat


def chance() -> tuple[int, int]:
    """Returns the limits of the hits of a release that says nothing, beyond which RATE lies.

    Batches are uniform sets of tokens, so whatever the ranking, the hits of one repetition are
    hypergeometric.
    """
    one = hypergeom(VOCABULARY, 9, 9).pmf(np.arange(10))
    law = reduce(np.convolve, [one] * REPETITIONS)
    low = int(np.searchsorted(law.cumsum(), RATE / 2))
    high = law.size - 1 - int(np.searchsorted(law[::-1].cumsum(), RATE / 2))
    return low, high


@pytest.mark.parametrize(
    "release",
    [lambda flat, number: noisy_sum(flat, 1.0, number), lambda flat, n: signs(flat, 16, n)],
    ids=["noise-multiplier-1", "16-signs"],
)
def test_releases_give_no_more_than_chance(release: Callable[..., Any]) -> None:
    """Noise as large as the clip norm, or sixteen signs of the gradient itself."""
    low, high = chance()
    assert low <= count_hits(release) <= high


@pytest.mark.parametrize(
    "release",
    [
        RAW,
        lambda flat, number: noisy_sum(flat, 0.01, number),
        lambda flat, number: signs(flat, 1024, number),
    ],
    ids=["raw", "noise-multiplier-0.01", "1024-signs"],
)
def test_with_too_little_noise_the_same_test_finds_tokens(release: Callable[..., Any]) -> None:
    """Negative control: the ranking is an attack that works where it should."""
    hits = count_hits(release)
    assert hits > chance()[1]
    if release is RAW:
        assert hits == 9 * REPETITIONS


# --- refusals -----------------------------------------------------------------------------------


def test_gradients_of_other_layers_only() -> None:
    model = wide_model("llama")
    gradients = gradients_of(model, named_parameters(model))
    rest = {name: g for name, g in gradients.items() if not any(r in name for r in READERS)}
    for useless in (rest, {}):
        with pytest.raises(InvalidParameterError, match="reads a block's input"):
            invert(model, useless)


def test_a_later_block_cannot_be_the_first() -> None:
    """Its input depends on all tokens before."""
    model = wide_model("llama")
    gradients = gradients_of(model, named_parameters(model))
    with pytest.raises(InvalidParameterError, match="must contain the model's first block"):
        invert(model, {name: g for name, g in gradients.items() if "layers.1." in name})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_are_no_numbers(value: float) -> None:
    model = wide_model("llama")
    gradients = gradients_of(model, named_parameters(model))
    gradients["model.layers.0.self_attn.v_proj.weight"][0, 0] = value
    with pytest.raises(PrecisionError, match="v_proj"):
        invert(model, gradients)


def test_gradients_of_zero_say_nothing() -> None:
    model = wide_model("llama")
    gradients = gradients_of(model, named_parameters(model))
    found = invert(model, {name: torch.zeros_like(g) for name, g in gradients.items()})
    assert (found.token_ids, found.sequences, found.num_spans) == ((), (), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 0}, "max_length"),
        ({"rank": 0}, "rank"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"tolerance": 0.6}, "tolerance"),
        ({"tokens_at_once": 0}, "tokens_at_once"),
        ({"max_candidates": 0}, "max_candidates"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    model = LanguageModel(wide_model("llama"), END)
    with pytest.raises(InvalidParameterError, match=message):
        invert_gradients(model, {}, **changes)
