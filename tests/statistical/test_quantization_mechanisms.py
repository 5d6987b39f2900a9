"""The laws of randomized quantization and of noisy Gram matrices, and attacks on both claims.

Streams are seeded. Bins are compared by exact binomial intervals and by chi-square, each test at
a false-failure rate of 1e-6 or less; every test has a negative control.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.stats import binom, chi2

from helpers_streams import seeded_stream
from sordino.accounting.composition import gram_noise_multiplier
from sordino.auditing.clopper_pearson import epsilon_lower_bound
from sordino.auditing.local_protocols import audit_local_protocol
from sordino.mechanisms.private_gram import _symmetric_noise
from sordino.mechanisms.randomized_quantization import (
    RandomizedQuantization,
    StochasticRounding,
    breakpoints,
    probabilities,
    renyi_divergence,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sordino.core.secret_stream import SecretStream

RATE = 1e-6
COUNT = 60_000
SETTINGS = pytest.mark.parametrize(
    ("margin", "num_levels", "keep"),
    [(1.0, 2, 0.5), (1.0, 16, 0.42), (0.05, 5, 0.9), (3.0, 32, 0.1), (2.0, 9, 2.0**-10)],
)


def quantizer(
    stream: SecretStream, margin: float, num_levels: int, keep: float, count: int = COUNT
) -> RandomizedQuantization:
    return RandomizedQuantization(
        stream,
        clip=1.0,
        margin=margin,
        num_levels=num_levels,
        keep_probability=keep,
        num_coordinates=count,
    )


def fits(levels: NDArray[np.int16], law: NDArray[np.float64], values: int) -> bool:
    """Compares counts with a law: intervals for each level, chi-square over the common ones.

    Together they reject the true law with probability at most RATE / values.
    """
    counts = np.bincount(levels, minlength=law.size)
    tail = RATE / values / (4 * law.size)
    low, high = binom.ppf(tail, levels.size, law), binom.isf(tail, levels.size, law)
    if not ((low <= counts) & (counts <= high)).all():
        return False
    common = law * levels.size >= 500  # there the limit at 1e-9 is safely above RATE / 10
    expected, found = law[common] * levels.size, counts[common]
    rest = levels.size - expected.sum(), levels.size - found.sum()
    if rest[0] >= 500:
        expected, found = np.append(expected, rest[0]), np.append(found, rest[1])
    statistic = float(((found - expected) ** 2 / expected).sum())
    return statistic <= chi2.isf(1e-9 / values, max(1, expected.size - 1))


@SETTINGS
def test_draws_follow_the_law(margin: float, num_levels: int, keep: float) -> None:
    """At the ends, a level, and between; a margin or keep probability 10% off is caught."""
    points = breakpoints(1.0, margin, num_levels)
    values = [-1.0, points[len(points) // 2], 0.123]
    stream = seeded_stream([1, num_levels])
    is_seen = False
    for value in values:
        drawn = quantizer(stream, margin, num_levels, keep).release(np.full(COUNT, value))
        assert fits(drawn, probabilities(value, 1.0, margin, num_levels, keep), len(values))
        other = probabilities(value, 1.0, 1.1 * margin, num_levels, keep)
        is_seen |= not fits(drawn, other, len(values))
        if num_levels > 2 and keep > 0.01:
            wrong = probabilities(value, 1.0, margin, num_levels, 0.9 * keep)
            assert not fits(drawn, wrong, len(values))
    assert is_seen


def test_coordinates_are_independent() -> None:
    """Pairs of neighbouring coordinates against the product law, at RATE; a copy is caught."""
    law = probabilities(0.3, 1.0, 1.0, 4, 0.5)
    drawn = quantizer(seeded_stream(5), 1.0, 4, 0.5).release(np.full(COUNT, 0.3)).reshape(-1, 2)
    assert fits(drawn[:, 0] * 4 + drawn[:, 1], np.outer(law, law).ravel(), 1)
    assert not fits(drawn[:, 0] * 4 + drawn[:, 0], np.outer(law, law).ravel(), 1)


@SETTINGS
def test_an_audit_does_not_exceed_the_claim(margin: float, num_levels: int, keep: float) -> None:
    """Clopper and Pearson on the worst pair and level, with power.

    The bound is above the claim with probability at most RATE.
    """
    claim = renyi_divergence(math.inf, 1.0, margin, num_levels, keep)
    points = breakpoints(1.0, margin, num_levels)
    laws = np.array([probabilities(x, 1.0, margin, num_levels, keep) for x in points])
    # planned from the laws alone: the pair and level of the largest likely ratio
    ratios = laws[:, None, :] / np.maximum(laws[None, :, :], 100.0 / COUNT)
    best = np.unravel_index(
        int(np.where(laws[:, None, :] > 0.01, ratios, 0.0).argmax()), ratios.shape
    )
    first, second, level = points[best[0]], points[best[1]], best[2]
    stream = seeded_stream([2, num_levels])
    draws = {
        value: iter(
            quantizer(stream, margin, num_levels, keep).release(np.full(COUNT, value)).tolist()
        )
        for value in (first, second)
    }
    found = audit_local_protocol(
        lambda value: next(draws[value]),
        lambda report: float(report == level),
        first,
        second,
        threshold=1.0,
        num_trials=COUNT,
        significance=RATE,
    )
    assert min(0.4 * claim, 2.0) < found.epsilon_lower <= claim


def test_stochastic_rounding_is_contradicted_at_any_claim() -> None:
    """It proves what the number of trials allows, whatever was claimed."""
    stream = seeded_stream(7)
    draws = {
        value: iter(
            StochasticRounding(stream, clip=1.0, num_levels=16).release(np.full(COUNT, value))
        )
        for value in (-1.0, 1.0)
    }
    found = audit_local_protocol(
        lambda value: int(next(draws[value])),
        float,
        1.0,
        -1.0,
        threshold=15.0,
        num_trials=COUNT,
        significance=RATE,
    )
    assert found.true_positives == COUNT
    assert found.false_positives == 0
    assert found.epsilon_lower > 8.0


def noise_samples(size: int, count: int, noise_std: float, seed: int) -> NDArray[np.float64]:
    """Returns matrices, as the blocks on the diagonals of large ones: they are independent."""
    stream = seeded_stream([8, size, seed])
    place = np.arange(300 // size * size).reshape(-1, size)
    blocks = []
    for _ in range(math.ceil(count / len(place))):
        noise = _symmetric_noise(stream, place.size, noise_std)
        blocks.append(noise[place[:, :, None], place[:, None, :]])
    return np.concatenate(blocks)[:count]


def has_deviation(samples: NDArray[np.float64], std: float, rate: float) -> bool:
    """Returns whether normal samples of mean 0 have this deviation; wrong with at most `rate`."""
    low, high = chi2.ppf(rate / 2, samples.size), chi2.isf(rate / 2, samples.size)
    return bool(low <= float(np.sum((samples / std) ** 2)) <= high)


def test_gram_noise_has_the_stated_deviations() -> None:
    """Diagonal s, off it s / sqrt(2); quadratic forms v'Nv: s for every unit v. RATE in all."""
    size, std = 4, 1.7
    samples = noise_samples(size, 3_000, std, 0)
    rate = RATE / 20
    for i in range(size):
        for j in range(i + 1):
            expected = std if i == j else std / math.sqrt(2.0)
            assert has_deviation(samples[:, i, j], expected, rate)
            assert not has_deviation(samples[:, i, j], expected * 1.12, rate)
    rng = np.random.default_rng(1)
    for _ in range(5):
        v = rng.standard_normal(size)
        v /= np.linalg.norm(v)
        # an isometry: <N, vv'> has the deviation s |vv'|_F = s, in every direction
        assert has_deviation(np.einsum("nij,i,j->n", samples, v, v), std, rate)


@pytest.mark.parametrize("num_grams", [1, 3])
@pytest.mark.parametrize("direction", ["diagonal", "off", "mixed"])
def test_neighbours_are_told_apart_no_better_than_claimed(num_grams: int, direction: str) -> None:
    """The best test between with and without a unit at the clip norm in every layer.

    At delta 0.01 its Clopper-Pearson bound stays within the claim (RATE), and half the noise
    exceeds it.
    """
    epsilon, delta, size, trials = 1.0, 0.01, 2, 6_000
    unit = {
        "diagonal": np.diag([1.0, 0.0]),
        "off": np.array([[0.0, 1.0], [1.0, 0.0]]) / math.sqrt(2.0),
        "mixed": np.array([[0.5, 0.5], [0.5, 0.5]]),
    }[direction]
    assert np.linalg.norm(unit) == pytest.approx(1.0)
    std = gram_noise_multiplier(epsilon, delta, num_grams)

    def bound(noise_std: float, seed: int) -> float:
        rates = []
        for shift in (1.0, 0.0):
            noise = noise_samples(size, trials * num_grams, noise_std, seed + int(shift))
            # The log-likelihood ratio, but for a factor: the inner product with the unit.
            inner = ((noise + shift * unit) * unit).sum(axis=(1, 2)).reshape(trials, num_grams)
            threshold = num_grams / 2 + epsilon * noise_std**2
            rates.append(int((inner.sum(axis=1) >= threshold).sum()))
        return epsilon_lower_bound(rates[0], trials, rates[1], trials, delta, RATE)

    assert bound(std, 2) <= epsilon
    assert bound(std / 2, 4) > epsilon
