"""The discrete Gaussian: exact decisions, bounds, ranges; tests/statistical tests its law."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from mpmath import mp, mpf

from helpers_streams import BrokenStream, ScriptedStream, seeded_stream
from sordino.core.errors import EntropyError, InvalidParameterError
from sordino.mechanisms import discrete_gaussian
from sordino.mechanisms.discrete_gaussian import (
    LARGEST_SIGMA,
    SMALLEST_SIGMA,
    _bernoulli_exp,
    _exp_bounds,
    _uniform_below,
    distance_to_rounded_normal_upper,
    sample_discrete_gaussian,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

FRACTIONS = [Fraction(1), Fraction(1, 3), Fraction(7, 2**40), Fraction(355, 113), Fraction(150)]


def decide(words: list[int], x: Fraction) -> bool:
    """Returns one decision with probability exp(-x) that uses all the given words."""
    stream = ScriptedStream(words)
    decided = bool(_bernoulli_exp(stream, np.array([float(x)]), lambda _: x)[0])
    assert not stream.script
    return decided


@pytest.mark.parametrize("x", FRACTIONS)
@pytest.mark.parametrize("num_bits", [64, 128, 640])
def test_the_bounds_hold_the_exponential(x: Fraction, num_bits: int) -> None:
    """By mpmath at 400 digits; the bounds are as close as promised."""
    low, high = _exp_bounds(x, num_bits)
    with mp.workdps(400):
        exact = mp.exp(-mpf(x.numerator) / x.denominator)
        assert mpf(low.numerator) / low.denominator < exact < mpf(high.numerator) / high.denominator
    assert high - low < Fraction(1, 2**num_bits)


@pytest.mark.parametrize("x", FRACTIONS)
def test_decisions_are_exact_to_the_last_bit(x: Fraction) -> None:
    """Numbers next to exp(-x) at 64, 128 and 192 bits are decided as they must be.

    The word that holds exp(-x) itself takes another word: nothing is rounded.
    """
    with mp.workdps(400):
        bits = int(mp.floor(mp.exp(-mpf(x.numerator) / x.denominator) * mpf(2) ** 192))
    words = [(bits >> shift) % 2**64 for shift in (128, 64, 0)]
    for last in range(3):
        same, edge = words[:last], words[last]
        if edge > 0:
            assert decide([*same, edge - 1], x) is True
        assert decide([*same, edge + 1], x) is False
    assert decide([*words, 0], x) is True  # below exp(-x) unless its next 64 bits are all 0
    assert decide([*words, 2**64 - 1], x) is False


def test_probability_one_is_always_true() -> None:
    """x = 0: the largest word too, which float64 cannot tell from 1."""
    assert decide([2**64 - 1], Fraction(0)) is True
    assert decide([0], Fraction(0)) is True


def test_the_fast_path_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no trust in float64 at all, every decision is the slow one: the same draws come out."""
    for sigma in (0.3, 1.0, 5.5, 2.0**20):
        fast = sample_discrete_gaussian(seeded_stream(1), sigma, 60)
        with monkeypatch.context() as patch:
            patch.setattr(discrete_gaussian, "_RELATIVE_MARGIN", 1.0)
            patch.setattr(discrete_gaussian, "_ABSOLUTE_MARGIN", 1.0)
            slow = sample_discrete_gaussian(seeded_stream(1), sigma, 60)
        assert fast.tolist() == slow.tolist()


@pytest.mark.parametrize(("limit", "shift"), [(1, 63), (2, 63), (3, 62), (2**40 + 1, 23)])
def test_uniform_numbers_are_top_bits(limit: int, shift: int) -> None:
    """As many upper bits as needed; a number that is too large is drawn again."""
    words = [0, (limit - 1) << shift]
    assert _uniform_below(ScriptedStream(words), limit, 2).tolist() == [0, limit - 1]
    if limit < 2 ** (64 - shift):
        words = [limit << shift, 0, limit << shift, (limit - 1) << shift]
        assert _uniform_below(ScriptedStream(words), limit, 2).tolist() == [limit - 1, 0]


@pytest.mark.parametrize("count", [0, 1, 7, 65_537])
def test_any_count_is_given(count: int) -> None:
    """Also more than one block of proposals."""
    draws = sample_discrete_gaussian(seeded_stream(2), 30.5, count)
    assert draws.shape == (count,)
    assert draws.dtype == np.int64


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, -math.inf, 0.0, -1.0, SMALLEST_SIGMA / 2, 2 * LARGEST_SIGMA, None]
)
def test_a_bad_sigma_is_refused(bad: float) -> None:
    """NaN, infinity, zero, and what the method does not cover."""
    with pytest.raises(InvalidParameterError, match="sigma must be in"):
        sample_discrete_gaussian(seeded_stream(3), bad, 1)
    with pytest.raises(InvalidParameterError, match="sigma must be in"):
        distance_to_rounded_normal_upper(bad, 1)


@pytest.mark.parametrize("bad", [-1, 1.5, math.nan, True, None])
def test_a_bad_count_is_refused(bad: int) -> None:
    """A negative number of draws is an error, not none."""
    with pytest.raises(InvalidParameterError, match="count must be a whole number at least 0"):
        sample_discrete_gaussian(seeded_stream(3), 1.0, bad)
    with pytest.raises(InvalidParameterError, match="count must be a whole number at least 0"):
        distance_to_rounded_normal_upper(20.0, bad)


def test_without_entropy_there_is_no_draw() -> None:
    """The stream's error goes through."""
    with pytest.raises(EntropyError):
        sample_discrete_gaussian(BrokenStream(), 1.0, 1)


def laws(sigma: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the masses of the discrete Gaussian and of the rounded normal, in 30 digits each."""
    with mp.workdps(30):
        integers = range(-int(14 * sigma), int(14 * sigma) + 1)
        weights = [mp.exp(-(mpf(y) ** 2) / (2 * mpf(sigma) ** 2)) for y in integers]
        total = mp.fsum(weights)
        edges = [mp.ncdf((mpf(y) - 0.5) / mpf(sigma)) for y in (*integers, integers[-1] + 1)]
        discrete = [w / total for w in weights]
        rounded = [b - a for a, b in itertools.pairwise(edges)]
        return np.array(discrete), np.array(rounded)


@pytest.mark.parametrize("sigma", [16.0, 23.7, 100.0])
def test_the_distance_bound_holds(sigma: float) -> None:
    """One draw against the sum itself; many against the chi-square divergence, by definition."""
    discrete, rounded = laws(sigma)
    one = float(abs(discrete - rounded).sum() / 2)
    assert one <= distance_to_rounded_normal_upper(sigma, 1) <= 3 * one
    divergence = float(((discrete - rounded) ** 2 / discrete).sum())
    for count in (1, 100, 10_000):
        many = math.sqrt(count * divergence / 2)
        bound = distance_to_rounded_normal_upper(sigma, count)
        assert min(many, count * one) <= bound


def test_the_distance_bound_has_its_ends() -> None:
    """No draws, no distance; never above 1."""
    assert distance_to_rounded_normal_upper(16.0, 0) == 0.0
    assert distance_to_rounded_normal_upper(16.0, 10**12) == 1.0
