"""The control of gradient inversion: raw updates give all away, mechanisms no more than chance."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from helpers_enumeration import SeededEntropy
from helpers_streams import seeded_stream
from helpers_tiny_models import END, VOCABULARY, make_model
from sordino.attacks.inversion_control import (
    RAW,
    InversionRow,
    SendingSettings,
    make_releases,
    run_inversion_control,
)
from sordino.attacks.texts import ScoredText
from sordino.core.errors import InvalidParameterError
from sordino.gradients.objectives import LanguageModel
from sordino.models import add_lora, trainable_tensors

NUM_BATCHES = 10
TOKENS = 9  # of a batch that can be found
RATE = 1e-7


def client(rank: int = 16, seed: int = 1) -> tuple[LanguageModel, dict[str, Any]]:
    """Returns a Llama of width 32 with a new adapter."""
    adapted = add_lora(
        make_model("llama", hidden_size=32), rank=rank, alpha=2.0 * rank, factors="both", seed=seed
    )
    tensors = trainable_tensors(adapted)
    adapted.requires_grad_(requires_grad=False)
    return LanguageModel(adapted.get_base_model(), END), tensors


def random_batches() -> list[list[ScoredText]]:
    """Returns texts of which no token comes twice in a batch: uniform sets."""
    rng = np.random.default_rng(11)
    batches = []
    for _ in range(NUM_BATCHES):
        ids = rng.permutation(VOCABULARY)[: TOKENS + 2].tolist()
        batches.append([ScoredText(ids[:6], 1, ""), ScoredText(ids[6:], 1, "")])
    return batches


@pytest.fixture(scope="module")
def rows() -> dict[str, InversionRow]:
    """Returns what every way of sending gives away."""
    model, tensors = client()
    settings = SendingSettings()
    size = sum(p.numel() for p in tensors.values())
    releases = make_releases(
        settings, 2, size, stream=seeded_stream([4]), entropy=SeededEntropy([5])
    )
    found = run_inversion_control(model, tensors, random_batches(), releases)
    return dict(zip(("raw", "dp", "pac"), found, strict=True))


def test_raw_updates_give_everything_away(rows: dict[str, InversionRow]) -> None:
    raw = rows["raw"]
    assert raw.sent == RAW
    assert raw.num_tokens == raw.num_right == raw.num_admitted == NUM_BATCHES * TOKENS
    assert raw.nearest_right == raw.num_tokens
    assert (raw.precision, raw.recall, raw.nearest_recall) == (1.0, 1.0, 1.0)
    assert raw.num_whole_texts == raw.num_texts == 2 * NUM_BATCHES
    assert raw.num_silent == 0
    assert raw.nearest_by_chance == pytest.approx(NUM_BATCHES * TOKENS**2 / VOCABULARY)


def chance() -> tuple[int, int]:
    """Returns the limits of hits by chance, beyond which RATE lies.

    Batches are uniform sets of tokens, so that whatever the ranking, a batch's hits are
    hypergeometric.
    """
    one = hypergeom(VOCABULARY, TOKENS, TOKENS).pmf(np.arange(TOKENS + 1))
    law = reduce(np.convolve, [one] * NUM_BATCHES)
    low = int(np.searchsorted(law.cumsum(), RATE / 2))
    high = law.size - 1 - int(np.searchsorted(law[::-1].cumsum(), RATE / 2))
    return low, high


@pytest.mark.parametrize("name", ["dp", "pac"])
def test_behind_a_mechanism_it_is_chance(rows: dict[str, InversionRow], name: str) -> None:
    """No token is admitted, and the nearest are right by chance: fails wrongly with rate 1e-7."""
    row = rows[name]
    assert row.num_admitted == row.num_right == row.num_whole_texts == 0
    assert row.precision is None
    low, high = chance()
    assert low <= row.nearest_right <= high
    assert row.nearest_of_another is not None
    assert low <= row.nearest_of_another <= high


def test_with_hardly_any_noise_tokens_are_found() -> None:
    """The same mechanism, set badly: the attack has power against it, not against its name."""
    model, tensors = client()
    size = sum(p.numel() for p in tensors.values())
    settings = SendingSettings(noise_multiplier=1e-6, clip_norm=100.0)
    releases = make_releases(settings, 2, size, stream=seeded_stream([6]))
    found = run_inversion_control(model, tensors, random_batches(), releases)
    assert found[1].nearest_right > chance()[1]


def test_clipping_alone_hides_nothing() -> None:
    """Each record's gradient is shortened, and no direction is lost."""
    size = 500
    releases = make_releases(SendingSettings(clip_norm=1e-3, noise_multiplier=1e-6), 2, size)
    gradients = np.random.default_rng(0).normal(size=(2, size)).astype(np.float32)
    _, noised, _ = releases.values()
    sent = noised(gradients)
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    expected = (1e-3 * gradients / norms).mean(axis=0)
    assert np.linalg.norm(sent - expected) < 1e-2 * np.linalg.norm(expected)


def test_an_adapter_of_small_rank_says_nothing() -> None:
    model, tensors = client(rank=4)
    found = run_inversion_control(
        model, tensors, random_batches()[:2], {RAW: lambda g: g.sum(axis=0, dtype=np.float64)}
    )
    assert (found[0].num_silent, found[0].num_admitted, found[0].nearest_right) == (2, 0, 0)


def test_signs_are_the_mechanisms() -> None:
    """The update is a sum of three signs in every place."""
    settings = SendingSettings(num_signs=3, num_subsets=2)
    releases = make_releases(settings, 2, 5, entropy=SeededEntropy([1]))
    _, _, signs = releases.values()
    gradients = np.ones((2, 5), dtype=np.float32)
    update = signs(gradients)
    assert update.shape == (5,)
    assert set(np.abs(update) % 2) == {1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": float("nan")}, "clip_norm"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"noise_multiplier": float("inf")}, "noise_multiplier"),
        ({"num_signs": 0}, "num_signs"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        SendingSettings(**changes)


def test_batches_of_unequal_size() -> None:
    model, tensors = client()
    text = ScoredText([1, 2, 3], 1, "")
    for batches in ([], [[]], [[text], [text, text]]):
        with pytest.raises(InvalidParameterError, match="the same number in each"):
            run_inversion_control(model, tensors, batches, {})


def test_the_model_is_left_as_it_was() -> None:
    model, tensors = client()
    before = {name: p.detach().clone() for name, p in tensors.items()}
    releases = {RAW: lambda g: g.sum(axis=0, dtype=np.float64)}
    run_inversion_control(model, tensors, random_batches()[:1], releases)
    assert all(torch.equal(before[name], p) for name, p in tensors.items())
    assert not any(p.requires_grad for p in model.causal_lm.parameters())
