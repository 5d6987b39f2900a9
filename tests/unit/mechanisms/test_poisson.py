"""Poisson sampling: every unit by its own coin, every step afresh, empty batches included."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, chi2

from helpers_streams import BrokenStream, ScriptedStream, seeded_stream
from sordino.core.errors import EntropyError, InvalidParameterError
from sordino.mechanisms.poisson import PoissonSampler

NUM_UNITS, NUM_STEPS = 40, 20_000


def membership(probability: float, seed: int) -> np.ndarray:
    """Returns which units were in which steps, shape (NUM_STEPS, NUM_UNITS)."""
    sampler = PoissonSampler(seeded_stream(seed), probability, NUM_UNITS)
    member = np.zeros((NUM_STEPS, NUM_UNITS), dtype=bool)
    for row in member:
        row[sampler.sample()] = True
    return member


@pytest.mark.parametrize("probability", [0.02, 0.3, 0.9])
def test_every_unit_has_its_probability(probability: float) -> None:
    """Counts over 20,000 steps are binomial, 40 units at 2.5e-8 each: false failure 1e-6 in all."""
    counts = membership(probability, 1).sum(axis=0)
    low, high = binom.ppf([1.25e-8, 1 - 1.25e-8], NUM_STEPS, probability)
    assert (low <= counts).all()
    assert (counts <= high).all()


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_pairs_are_independent(probability: float) -> None:
    """Units in one step, and one unit in steps that follow each other.

    A joint inclusion has probability q**2 exactly. 780 pairs and 40 units, each tested at
    1e-6 / 820: false failure 1e-6 in all. (Steps that follow each other overlap, so every other
    pair of steps is taken.)
    """
    member = membership(probability, 2)
    rate = 1e-6 / 820
    both = member.T.astype(np.int64) @ member
    upper = np.triu_indices(NUM_UNITS, 1)
    low, high = binom.ppf([rate / 2, 1 - rate / 2], NUM_STEPS, probability**2)
    assert (low <= both[upper]).all()
    assert (both[upper] <= high).all()
    again = (member[0::2] & member[1::2]).sum(axis=0)
    low, high = binom.ppf([rate / 2, 1 - rate / 2], NUM_STEPS // 2, probability**2)
    assert (low <= again).all()
    assert (again <= high).all()


def test_batch_sizes_are_binomial() -> None:
    """Empty batches occur as often as they should; each size class is tested at 1e-7."""
    probability = 0.05
    sizes = membership(probability, 3).sum(axis=1)
    for size in range(10):
        mass = binom.pmf(size, NUM_UNITS, probability)
        low, high = binom.ppf([0.5e-7, 1 - 0.5e-7], NUM_STEPS, mass)
        assert low <= (sizes == size).sum() <= high
    assert (sizes == 0).sum() > 2000  # 12.9% of 20,000
    spread = sizes.var(ddof=1) / (NUM_UNITS * probability * (1 - probability))
    low, high = chi2.ppf([0.5e-7, 1 - 0.5e-7], NUM_STEPS - 1) / (NUM_STEPS - 1)
    assert low * 0.98 <= spread <= high * 1.02  # chi-square up to the kurtosis; fixed-size: 0


def test_one_takes_all() -> None:
    """At probability 1 every unit is in every batch."""
    sampler = PoissonSampler(seeded_stream(4), 1.0, 7)
    for _ in range(3):
        assert sampler.sample().tolist() == list(range(7))


def test_indices_are_sorted_int64() -> None:
    """Which words are below the threshold decides, and nothing else."""
    sampler = PoissonSampler(ScriptedStream([0, 2**63, 2**63 - 1, 2**64 - 1] + [2**63] * 4), 0.5, 4)
    batch = sampler.sample()
    assert batch.tolist() == [0, 2]
    assert batch.dtype == np.int64
    empty = sampler.sample()
    assert empty.shape == (0,)
    assert empty.dtype == np.int64


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -0.1, 1.0 + 1e-15, True, None])
def test_a_bad_probability_is_refused(bad: float) -> None:
    """NaN, infinity, zero and what is beyond 1."""
    with pytest.raises(InvalidParameterError, match="sampling_probability must be"):
        PoissonSampler(seeded_stream(5), bad, 10)


@pytest.mark.parametrize("bad", [0, -1, 1.5, math.nan, math.inf, True, None])
def test_a_bad_number_of_units_is_refused(bad: int) -> None:
    """There is nothing to sample from below one unit."""
    with pytest.raises(InvalidParameterError, match="num_units must be a whole number at least 1"):
        PoissonSampler(seeded_stream(5), 0.5, bad)


def test_without_entropy_there_is_no_batch() -> None:
    """The stream's error goes through."""
    with pytest.raises(EntropyError):
        PoissonSampler(BrokenStream(), 0.5, 10).sample()
