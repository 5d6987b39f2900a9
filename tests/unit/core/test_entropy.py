"""Secret entropy: from the operating system alone, never from a seed, never with a fallback."""

from __future__ import annotations

import math
import os
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.stats import binom

from sordino.core.directions import DirectionStream
from sordino.core.entropy import AbstractEntropy, OperatingSystemEntropy
from sordino.core.errors import EntropyError, InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Callable

DRAWS = {
    "coins": lambda entropy: entropy.coins(256).tolist(),
    "bernoulli": lambda entropy: [entropy.bernoulli(0.5) for _ in range(256)],
    "index": lambda entropy: [entropy.index(2**32) for _ in range(8)],
    "normal": lambda entropy: [entropy.normal() for _ in range(8)],
}


def seed_everything(seed: int) -> None:
    """Seeds every global generator that a training script knows."""
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@pytest.fixture
def entropy() -> OperatingSystemEntropy:
    return OperatingSystemEntropy()


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_no_seed_repeats_a_secret(draw: Callable[[AbstractEntropy], object]) -> None:
    """Defects 1 and 2: equal global seeds and an equal public seed give other coins and noise."""
    results = []
    for _ in range(2):
        seed_everything(0)
        directions = DirectionStream(seed=0).integers(0, 0, "w", 64)
        results.append((directions.tolist(), draw(OperatingSystemEntropy())))
    assert results[0][0] == results[1][0]  # what is public repeats
    assert results[0][1] != results[1][1]  # equal by chance: below 2**-200


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_global_generators_are_left_alone(draw: Callable[[AbstractEntropy], object]) -> None:
    """Drawing a secret does not move any global stream, so nothing public can depend on it."""
    import torch

    expected, found = [], []
    for numbers, use in ((expected, False), (found, True)):
        seed_everything(7)
        if use:
            draw(OperatingSystemEntropy())
        numbers += [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002, S311
    assert found == expected


@pytest.mark.parametrize("failure", [OSError("no entropy"), NotImplementedError("no source")])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_fails_closed_without_the_operating_system(
    draw: Callable[[AbstractEntropy], object],
    failure: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Defect 15: no randomness means no release; there is no seed to fall back to."""

    def refuse(count: int) -> bytes:
        raise failure

    monkeypatch.setattr(os, "urandom", refuse)
    monkeypatch.setattr(random, "_urandom", refuse)  # what `secrets` uses
    with pytest.raises(EntropyError, match=r"nothing was released\. There is no fallback"):
        draw(OperatingSystemEntropy())


def test_there_is_nothing_to_seed_or_save(entropy: OperatingSystemEntropy) -> None:
    """The source takes no argument and holds no state."""
    assert vars(entropy) == {}
    with pytest.raises(TypeError):
        OperatingSystemEntropy(0)


def test_an_entropy_source_must_define_every_draw() -> None:
    """A stand-in that forgets a draw cannot be made."""
    with pytest.raises(TypeError, match="abstract"):
        AbstractEntropy()


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_coins_come_in_the_number_asked_for(entropy: OperatingSystemEntropy, count: int) -> None:
    """Any number of coins, not only multiples of eight, as truth values."""
    coins = entropy.coins(count)
    assert coins.shape == (count,)
    assert coins.dtype == np.bool_


def test_coins_are_the_operating_system_s_bits(
    entropy: OperatingSystemEntropy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each bit of each byte is one coin: none is used twice and none is left out."""
    monkeypatch.setattr(os, "urandom", lambda count: bytes([0b10110010, 0b01000000])[:count])
    assert entropy.coins(10).tolist() == [bool(int(bit)) for bit in "1011001001"]


@pytest.mark.parametrize(
    ("word", "probability", "expected"),
    [
        (0, 0.0, False),  # never, even at the lowest draw
        (2**64 - 1, 1.0, True),  # always, even at the highest
        (0, 5e-324, True),  # rounded up to 2**-53, not down to 0
        (1 << 11, 5e-324, False),
        (1 << 11, math.nextafter(2.0**-53, 1.0), True),
        (2**63 - 1, 0.5, True),
        (2**63, 0.5, False),
        (2**64 - 1, 1.0 - 2.0**-53, False),
        (2**64 - 1 - (1 << 11), 1.0 - 2.0**-53, True),
    ],
)
def test_bernoulli_compares_53_bits(
    word: int,
    probability: float,
    expected: bool,
    entropy: OperatingSystemEntropy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The probability is exact on multiples of 2**-53 and is rounded up to one elsewhere."""
    monkeypatch.setattr(os, "urandom", lambda count: word.to_bytes(count, "little"))
    assert entropy.bernoulli(probability) is expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1e-300, 1.0 + 1e-15, True, None])
def test_bernoulli_refuses_what_is_no_probability(
    entropy: OperatingSystemEntropy, bad: float
) -> None:
    """NaN would compare as False: a flip that never happens."""
    with pytest.raises(InvalidParameterError, match="probability must be in"):
        entropy.bernoulli(bad)


@pytest.mark.parametrize("bad", [0, -1, 2.0, math.nan, True, None])
def test_index_refuses_what_is_no_count(entropy: OperatingSystemEntropy, bad: int) -> None:
    """There is no index below 0 candidates."""
    with pytest.raises(InvalidParameterError, match="count must be a whole number at least 1"):
        entropy.index(bad)


@pytest.mark.parametrize("bad", [-1, 2.0, math.nan, True])
def test_coins_refuse_what_is_no_count(entropy: OperatingSystemEntropy, bad: int) -> None:
    """A negative number of coins is an error, not none."""
    with pytest.raises(InvalidParameterError, match="count must be a whole number at least 0"):
        entropy.coins(bad)


def test_index_covers_its_range(entropy: OperatingSystemEntropy) -> None:
    """All of three indices occur and no other (false failure: below 3 (2/3)**200 < 1e-34)."""
    assert {entropy.index(3) for _ in range(200)} == {0, 1, 2}
    assert entropy.index(1) == 0


@pytest.mark.parametrize("probability", [0.5, 0.1])
def test_draws_have_their_probability(entropy: OperatingSystemEntropy, probability: float) -> None:
    """20,000 fresh draws are binomial; each parameter fails by chance at 1e-9."""
    if probability == 0.5:
        hits = int(entropy.coins(20_000).sum())
    else:
        hits = sum(entropy.bernoulli(probability) for _ in range(20_000))
    low, high = binom.ppf([0.5e-9, 1 - 0.5e-9], 20_000, probability)
    assert low <= hits <= high


def test_normal_draws_have_the_normal_law(entropy: OperatingSystemEntropy) -> None:
    """Counts beyond 0 and 1.2816 deviations are binomial; false failure 2e-9 in all."""
    draws = np.array([entropy.normal() for _ in range(10_000)])
    for limit, share in ((0.0, 0.5), (1.2815515655446004, 0.1)):
        low, high = binom.ppf([0.5e-9, 1 - 0.5e-9], draws.size, share)
        assert low <= (draws > limit).sum() <= high
