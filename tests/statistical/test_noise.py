"""The laws of the noise: normal numbers, noise on tensors, and the discrete Gaussian.

Counts in bins are binomial exactly, so each bin gets an exact interval and the rates add up. The
chi-square statistic of the same counts sees many small departures at once; its limit is taken at
1e-9, with at least 500 expected a bin, so that 1e-6 is safely above its true rate. Streams are
seeded: a verdict does not change from run to run.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from mpmath import mp, mpf
from scipy.stats import beta, binom, chi2, norm

from helpers_streams import seeded_stream
from sordino.mechanisms.discrete_gaussian import sample_discrete_gaussian
from sordino.mechanisms.noise import add_noise, standard_normals

COUNT = 1_000_000


def fits(counts: np.ndarray, masses: np.ndarray, *, false_failure_rate: float) -> bool:
    """Returns whether the counts agree with the masses, which must add up to 1."""
    assert math.isclose(masses.sum(), 1.0, rel_tol=1e-12)
    total = int(counts.sum())
    tail = false_failure_rate / (4 * counts.size)
    low, high = binom.ppf(tail, total, masses), binom.isf(tail, total, masses)
    if not ((low <= counts) & (counts <= high)).all():
        return False
    common = masses * total >= 500
    expected = np.append(masses[common], masses[~common].sum()) * total
    found = np.append(counts[common], counts[~common].sum())
    if expected[-1] < 500:
        expected, found = expected[:-1], found[:-1]
    statistic = float(((found - expected) ** 2 / expected).sum())
    return statistic <= chi2.isf(1e-9, max(1, expected.size - 1))


def normal_counts(draws: np.ndarray, std: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns counts and masses of 80 bins of a tenth of a deviation, and of the tails."""
    edges = np.concatenate([[-np.inf], np.linspace(-4, 4, 81), [np.inf]])
    return np.histogram(draws, edges * std)[0], np.diff(norm.cdf(edges))


@pytest.mark.parametrize("std", [1.0, 0.003])
def test_noise_on_a_tensor_is_normal(std: float) -> None:
    """A million numbers in 82 bins, at 1e-6; a standard deviation 2% off is caught."""
    tensor = torch.zeros(COUNT)
    add_noise(tensor, seeded_stream(1), std)
    draws = tensor.double().numpy()
    assert fits(*normal_counts(draws, std), false_failure_rate=1e-6)
    assert not fits(*normal_counts(draws * 0.98, std), false_failure_rate=1e-6)


def test_the_two_halves_of_a_pair_are_independent() -> None:
    """Quadrants, and radii: cosine and sine share a radius, and are independent all the same.

    64 cells of equal mass of (first, second) of a pair, at 1e-6; and 100 cells of the radius.
    """
    normals = standard_normals(seeded_stream(2), 2**16).numpy()  # one block: halves are pairs
    more = [standard_normals(seeded_stream(seed), 2**16).numpy() for seed in range(3, 11)]
    pairs = np.concatenate([each.reshape(2, -1) for each in (normals, *more)], axis=1)
    cells = np.floor(norm.cdf(pairs) * 8).astype(int)
    counts = np.bincount(cells[0] * 8 + cells[1], minlength=64)
    assert fits(counts, np.full(64, 1 / 64), false_failure_rate=1e-6)
    radii = np.floor(-np.expm1(-(pairs**2).sum(axis=0) / 2) * 100).astype(int)
    counts = np.bincount(radii, minlength=100)
    assert fits(counts, np.full(100, 1 / 100), false_failure_rate=1e-6)
    tied = np.floor(norm.cdf(np.stack([pairs[0], np.abs(pairs[1]) * np.sign(pairs[0])])) * 8)
    counts = np.bincount((tied[0] * 8 + tied[1]).astype(int), minlength=64)
    assert not fits(counts, np.full(64, 1 / 64), false_failure_rate=1e-6)  # negative control


def test_neighbouring_draws_are_uncorrelated() -> None:
    """A sign agrees with the sign 1, 2 and 2**15 later half of the time; 1e-6 in all."""
    positive = standard_normals(seeded_stream(11), COUNT).numpy() > 0
    for lag in (1, 2, 2**15):
        size = COUNT - lag
        agree = int((positive[:-lag] == positive[lag:]).sum())
        low, high = binom.ppf([1e-6 / 6, 1 - 1e-6 / 6], size, 0.5)
        assert low <= agree <= high


def discrete_masses(sigma: float, limit: int) -> np.ndarray:
    """Returns the masses of -limit-1 (and below), -limit, ..., limit, limit + 1 (and above)."""
    with mp.workdps(40):
        scale = 2 * mpf(sigma) ** 2
        reach = limit + int(20 * sigma) + 20
        weights = {y: mp.exp(-(mpf(y) ** 2) / scale) for y in range(reach + 1)}
        total = weights[0] + 2 * mp.fsum(weights[y] for y in range(1, reach + 1))
        tail = mp.fsum(weights[y] for y in range(limit + 1, reach + 1)) / total
        inner = [weights[abs(y)] / total for y in range(-limit, limit + 1)]
        return np.array([tail, *inner, tail], dtype=float)


def discrete_counts(draws: np.ndarray, limit: int) -> np.ndarray:
    """Returns the counts of the same bins."""
    shifted = np.clip(draws, -limit - 1, limit + 1) + limit + 1
    return np.bincount(shifted, minlength=2 * limit + 3)


@pytest.mark.parametrize("sigma", [2.0**-6, 0.15, 0.3, 0.5, 0.999, 1.0, 1.7, 3.0, 12.3])
def test_discrete_draws_have_the_exact_law(sigma: float) -> None:
    """A million draws against the masses by 40 digits: each whole number to 5 deviations, tails.

    At 1e-6 for each sigma. Negative control: a sigma 3% off (where there is more than one value).
    """
    draws = sample_discrete_gaussian(seeded_stream([12, int(sigma * 1000)]), sigma, COUNT)
    limit = math.ceil(5 * sigma)
    counts = discrete_counts(draws, limit)
    assert fits(counts, discrete_masses(sigma, limit), false_failure_rate=1e-6)
    if sigma >= 0.3:
        assert not fits(counts, discrete_masses(1.03 * sigma, limit), false_failure_rate=1e-6)


@pytest.mark.parametrize("sigma", [100.7, 2.0**20, 3.0 * 2.0**38])
def test_many_integers_a_deviation_look_normal(sigma: float) -> None:
    """A million draws in 82 bins, edges between whole numbers, at 1e-6 for each sigma.

    For sigma >= 100 the law is within 5e-6 of the rounded normal's in total, a hundredth of what
    a million draws can see.
    """
    draws = sample_discrete_gaussian(seeded_stream(13), sigma, COUNT)
    edges = np.floor(np.linspace(-4, 4, 81) * sigma) + 0.5
    edges = np.concatenate([[-np.inf], edges, [np.inf]])
    counts, masses = np.histogram(draws, edges)[0], np.diff(norm.cdf(edges / sigma))
    assert fits(counts, masses, false_failure_rate=1e-6)
    assert not fits(np.histogram(draws * 1.02, edges)[0], masses, false_failure_rate=1e-6)


def test_low_bits_of_discrete_noise_are_fair() -> None:
    """At sigma = 2**20 the last three bits are uniform to 1e-300: no pattern of a coarse step."""
    draws = sample_discrete_gaussian(seeded_stream(14), 2.0**20, COUNT)
    assert fits(np.bincount(draws % 8, minlength=8), np.full(8, 1 / 8), false_failure_rate=1e-6)


def test_far_tails_of_discrete_draws() -> None:
    """Beyond 4 and 4.5 deviations, in four million draws; Clopper-Pearson at 1e-7 each."""
    sigma, total = 50.0, 4_000_000
    draws = np.abs(sample_discrete_gaussian(seeded_stream(15), sigma, total))
    for limit in (200, 225):
        mass = 2 * discrete_masses(sigma, limit)[0]
        hits = int((draws > limit).sum())
        low, high = beta.ppf(
            [0.5e-7, 1 - 0.5e-7], [hits, hits + 1], [total - hits + 1, total - hits]
        )
        assert low <= mass <= high
        assert hits > 15


def test_draws_are_independent_of_their_place() -> None:
    """Signs of draws that follow each other, which shared rejection rounds, at 1e-6."""
    draws = sample_discrete_gaussian(seeded_stream(16), 2.5, COUNT)
    zero = float(discrete_masses(2.5, 1)[2])
    up, masses = draws > 0, [(1 + zero) / 2, (1 - zero) / 2]
    cells = np.bincount(up[0::2] * 2 + up[1::2], minlength=4)
    joint = np.array([a * b for a, b in itertools.product(masses, masses)])
    assert fits(cells, joint, false_failure_rate=1e-6)
