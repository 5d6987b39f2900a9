"""Clopper-Pearson bounds: scipy's interval, exact coverage by enumeration, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from sordino.auditing.clopper_pearson import binomial_lower, binomial_upper, epsilon_lower_bound
from sordino.core.errors import InvalidParameterError

BAD_COUNTS = [math.nan, math.inf, -1, 0.5, True, "1", None]


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (7, 7), (3, 7), (1, 1000), (999, 1000)])
@pytest.mark.parametrize("significance", [0.5, 0.05, 1e-6])
def test_bounds_are_scipys(successes: int, trials: int, significance: float) -> None:
    """Against binomtest, and on the safe side of it."""
    confidence = 1.0 - significance
    test = lambda side: binomtest(successes, trials, alternative=side).proportion_ci(confidence)  # noqa: E731
    lower, upper = test("greater").low, test("less").high
    assert binomial_lower(successes, trials, significance) == pytest.approx(lower, rel=1e-8)
    assert binomial_upper(successes, trials, significance) == pytest.approx(upper, rel=1e-8)


@pytest.mark.parametrize("trials", [1, 13, 60])
@pytest.mark.parametrize("significance", [0.3, 0.01])
def test_bounds_cover_exactly(trials: int, significance: float) -> None:
    """For every probability on a grid, by enumerating all outcomes."""
    counts = np.arange(trials + 1)
    lower = np.array([binomial_lower(int(k), trials, significance) for k in counts])
    upper = np.array([binomial_upper(int(k), trials, significance) for k in counts])
    assert (np.diff(lower) > 0.0).all()
    assert (np.diff(upper) > 0.0).all()
    for probability in np.linspace(0.0, 1.0, 41):
        masses = binom.pmf(counts, trials, probability)
        assert masses[lower > probability].sum() <= significance
        assert masses[upper < probability].sum() <= significance


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
@pytest.mark.parametrize("delta", [0.0, 0.1])
@pytest.mark.parametrize(("members", "nonmembers"), [(25, 25), (8, 30)])
def test_false_alarms_are_enumerated(
    epsilon: float, delta: float, members: int, nonmembers: int
) -> None:
    """The worst (epsilon, delta) mechanisms for a test, in both directions."""
    share = (1.0 - delta) / (1.0 + math.exp(epsilon))
    alarm = np.array(
        [
            [
                epsilon_lower_bound(tp, members, fp, nonmembers, delta, 0.1) > epsilon
                for fp in range(nonmembers + 1)
            ]
            for tp in range(members + 1)
        ]
    )
    for tpr, fpr in [(1.0 - share, share), (delta, 0.0), (1.0, 1.0 - delta), (0.5, 0.5)]:
        masses = np.outer(
            binom.pmf(np.arange(members + 1), members, tpr),
            binom.pmf(np.arange(nonmembers + 1), nonmembers, fpr),
        )
        assert masses[alarm].sum() <= 0.1


def test_value_by_hand() -> None:
    """Both bounds are powers where an attack is never wrong."""
    edge = 0.025 ** (1.0 / 1000)
    exact = math.log(edge / (1.0 - edge))
    assert exact - 1e-8 <= epsilon_lower_bound(1000, 1000, 0, 1000, 0.0) <= exact
    exact = math.log((edge - 0.25) / (1.0 - edge))
    assert exact - 1e-8 <= epsilon_lower_bound(1000, 1000, 0, 1000, 0.25) <= exact


def test_both_directions_count() -> None:
    """Few errors among members prove as much as few among non-members."""
    rare_alarm = epsilon_lower_bound(100, 1000, 0, 1000, 0.0)
    rare_miss = epsilon_lower_bound(1000, 1000, 900, 1000, 0.0)
    assert rare_alarm == pytest.approx(rare_miss, rel=1e-9)
    assert rare_alarm > 2.5


def test_nothing_is_proved_by_chance_or_against_delta() -> None:
    assert epsilon_lower_bound(0, 10, 0, 10, 0.0) == 0.0
    assert epsilon_lower_bound(10, 10, 10, 10, 0.0) == 0.0
    assert epsilon_lower_bound(0, 10, 10, 10, 0.0) == 0.0  # always wrong: flip the attack first
    assert epsilon_lower_bound(1000, 1000, 0, 1000, 1.0) == 0.0
    assert epsilon_lower_bound(500, 1000, 500, 1000, 1e-5) == 0.0


@pytest.mark.parametrize("bad", BAD_COUNTS)
def test_bad_counts_are_refused(bad: object) -> None:
    for place in range(4):
        counts: list[object] = [5, 10, 2, 10]
        counts[place] = bad
        with pytest.raises(InvalidParameterError):
            epsilon_lower_bound(*counts, 0.0)
    with pytest.raises(InvalidParameterError):
        binomial_lower(bad, 10)
    with pytest.raises(InvalidParameterError):
        binomial_upper(1, bad)


@pytest.mark.parametrize("counts", [(11, 10, 2, 10), (5, 10, 11, 10), (0, 0, 1, 10), (1, 10, 0, 0)])
def test_impossible_counts_are_refused(counts: tuple[int, ...]) -> None:
    with pytest.raises(InvalidParameterError):
        epsilon_lower_bound(*counts, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, 1.5, None])
def test_bad_levels_are_refused(bad: object) -> None:
    with pytest.raises(InvalidParameterError, match="delta"):
        epsilon_lower_bound(5, 10, 2, 10, bad)
    with pytest.raises(InvalidParameterError, match="significance"):
        epsilon_lower_bound(5, 10, 2, 10, 0.0, bad)
