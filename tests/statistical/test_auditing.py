"""Do the audits hold their level: false alarms and missed intervals over simulated audits.

A lower bound may exceed the truth in a share `LEVEL` of the audits. The count of alarms is compared
with the binomial quantile at 1e-6, so a correct bound fails a test by chance at most at that rate;
the seeds are fixed. Each test also asks that the bound is not trivially zero on what leaks.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom, norm

from sordino.auditing import areas, clopper_pearson, curves, one_run
from sordino.auditing.exposure import exposure

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

AUDITS = 2_000
LEVEL = 0.05
MOST_ALARMS = int(binom.isf(1e-6, AUDITS, LEVEL))  # 150
CANARIES = 300
GUESSES = (2, 20, 100, 300)
BOUNDS = {
    "pure": lambda m, r, v: one_run.epsilon_lower_bound(m, r, v, 0.0, LEVEL),
    "delta": lambda m, r, v: one_run.epsilon_lower_bound(m, r, v, 1e-4, LEVEL),
    "gaussian": lambda m, r, v: one_run.gaussian_mu_lower_bound(m, r, v, LEVEL),
}


def right_guesses(
    seed: int, score: Callable[[NDArray[np.bool_], np.random.Generator], NDArray[np.float64]]
) -> dict[int, list[int]]:
    """Returns the right guesses of every audit for each number of guesses."""
    random = np.random.default_rng(seed)
    found: dict[int, list[int]] = {num: [] for num in GUESSES}
    for _ in range(AUDITS):
        members = random.random(CANARIES) < 0.5
        scores = score(members, random)
        for num in GUESSES:
            found[num].append(
                one_run.count_correct_guesses(scores, members, num // 2, num - num // 2)
            )
    return found


def alarms(bound: str, counts: list[int], num_guesses: int, truth: float) -> int:
    """Returns in how many audits the bound exceeds the truth."""
    value = lru_cache(lambda v: BOUNDS[bound](CANARIES, num_guesses, v))
    return sum(value(v) > truth for v in counts)


@pytest.mark.parametrize("kind", ["continuous", "ties"])
def test_no_leak_is_not_called_a_leak(kind: str) -> None:
    """Scores that do not know the coins: any bound above 0 is a false alarm."""

    def score(members: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.float64]:
        scores = random.normal(size=members.size)
        return scores if kind == "continuous" else np.round(scores)

    for num, counts in right_guesses(11, score).items():
        for bound in BOUNDS:
            assert alarms(bound, counts, num, 0.0) <= MOST_ALARMS


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomised_response_keeps_its_epsilon(epsilon: float) -> None:
    """Each coin is released, wrong with probability 1 / (1 + e**epsilon): the exact worst case."""
    truth = 1.0 / (1.0 + math.exp(-epsilon))

    def score(members: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.float64]:
        kept = random.random(members.size) < truth
        return np.where(members == kept, 1.0, -1.0) + 0.1 * random.random(members.size)

    for num, counts in right_guesses(12, score).items():
        assert alarms("pure", counts, num, epsilon) <= MOST_ALARMS
        assert alarms("delta", counts, num, epsilon) <= MOST_ALARMS
        if num >= 100:
            assert alarms("pure", counts, num, 0.4 * epsilon) > 0.4 * AUDITS


@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_gaussian_mechanism_keeps_its_mu(mu: float) -> None:
    """One noisy number a canary, guessed from both ends."""

    def score(members: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.float64]:
        return mu * members + random.normal(size=members.size)

    for num, counts in right_guesses(13, score).items():
        assert alarms("gaussian", counts, num, mu) <= MOST_ALARMS
        if num >= 100:
            assert alarms("gaussian", counts, num, 0.1 * mu) > 0.4 * AUDITS


def test_searching_the_number_of_guesses_needs_a_correction() -> None:
    """The best of ten counts raises false alarms; a level divided by ten does not."""
    random = np.random.default_rng(14)
    numbers = [10, 20, 40, 60, 90, 120, 160, 200, 250, 300]
    right = random.random((AUDITS, CANARIES)) < 0.5  # whether the i-th surest guess is right
    counts = np.cumsum(right, axis=1)[:, [num - 1 for num in numbers]]

    def searched(level: float) -> int:
        least = [  # the smallest count that proves something
            next(
                v
                for v in range(num // 2, num + 1)
                if one_run.epsilon_lower_bound(CANARIES, num, v, 0.0, level) > 0.0
            )
            for num in numbers
        ]
        return int((counts >= np.array(least)).any(axis=1).sum())

    assert searched(LEVEL) > 1.5 * LEVEL * AUDITS
    assert searched(LEVEL / len(numbers)) <= MOST_ALARMS


@pytest.mark.parametrize(("mu", "epsilon"), [(0.0, 0.0), (1.0, 0.8)])
def test_fixed_threshold_keeps_the_epsilon_of_a_gaussian(mu: float, epsilon: float) -> None:
    """Clopper and Pearson's bound on independent runs, at the delta that belongs to epsilon."""
    runs, threshold = 4_000, 1.3  # the best test at this epsilon and mu 1
    delta = max(float(norm.sf(threshold - mu) - math.exp(epsilon) * norm.sf(threshold)), 0.0)
    random = np.random.default_rng(15)
    hits = random.binomial(runs, norm.sf(threshold - mu), AUDITS)
    false = random.binomial(runs, norm.sf(threshold), AUDITS)
    found = [
        clopper_pearson.epsilon_lower_bound(int(tp), runs, int(fp), runs, delta, LEVEL)
        for tp, fp in zip(hits, false, strict=True)
    ]
    assert sum(value > epsilon for value in found) <= MOST_ALARMS
    if mu > 0.0:
        assert np.median(found) > 0.6 * epsilon


def test_auc_interval_covers() -> None:
    """Asymptotic, so 1.5 times the level is allowed for 60 and 80 scores; ties included."""
    random = np.random.default_rng(16)
    truth = float(ndtr(1.0 / math.sqrt(2.0)))
    missed = 0
    for _ in range(AUDITS):
        found = areas.auc_interval(random.normal(1, 1, 60), random.normal(0, 1, 80), LEVEL)
        missed += not found.lower <= truth <= found.upper
    assert missed <= binom.isf(1e-6, AUDITS, 1.5 * LEVEL)


def test_operating_point_and_advantage_bounds_hold() -> None:
    """The threshold comes from the same non-members, the advantage from a searched threshold."""
    random = np.random.default_rng(17)
    above = tpr_missed = advantage_missed = 0
    best = float(2.0 * ndtr(0.5) - 1.0)
    for _ in range(AUDITS):
        members, nonmembers = random.normal(1, 1, 150), random.normal(0, 1, 200)
        point = curves.operating_point(members, nonmembers, 0.05, LEVEL)
        cut = np.sort(nonmembers)[-11]
        above += float(norm.sf(cut)) > point.fpr_upper
        tpr_missed += not point.tpr_lower <= float(norm.sf(cut - 1.0)) <= point.tpr_upper
        advantage_missed += curves.advantage_lower_bound(members, nonmembers, LEVEL) > best
    assert 0 < above <= MOST_ALARMS
    assert 0 < tpr_missed <= MOST_ALARMS
    assert advantage_missed <= MOST_ALARMS


def test_exposure_of_unused_secrets() -> None:
    """P(exposure >= e) <= 2**-e, with ties."""
    random = np.random.default_rng(18)
    found = np.array(
        [
            exposure(scores[:1], scores[1:])[0]
            for scores in np.round(random.normal(size=(AUDITS, 128)), 1)
        ]
    )
    for bits in (1.0, 3.0, 5.0):
        assert (found >= bits).sum() <= binom.isf(1e-6, AUDITS, 2.0**-bits)
