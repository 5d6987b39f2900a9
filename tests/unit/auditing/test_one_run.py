"""One-run bounds: published values, exact laws of known mechanisms, direct sums, refusals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from mpmath import erfinv, mp, mpf, ncdf
from scipy.special import ndtr
from scipy.stats import binom

from sordino.auditing import one_run
from sordino.auditing.one_run import (
    count_correct_guesses,
    epsilon_lower_bound,
    gaussian_epsilon_lower_bound,
    gaussian_mu_lower_bound,
    guess_probability_upper,
)
from sordino.core.errors import InvalidDataError, InvalidParameterError

NOT_COUNTS = [math.nan, math.inf, -1, 2.5, True, "3", None]
BOUNDS = [
    lambda m, r, v: epsilon_lower_bound(m, r, v, 1e-5),
    gaussian_mu_lower_bound,
    lambda m, r, v: gaussian_epsilon_lower_bound(m, r, v, 1e-5),
]


def direct_probability(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """Returns the theorem's bound by plain summation."""
    q = 1.0 / (1.0 + math.exp(-epsilon))
    tail = binom.sf(v - 1, r, q)
    steepest = max(
        (binom.sf(v - i - 1, r, q) - tail) / i
        for i in range(1, m + 1)  # the theorem's range; beyond i = v nothing is larger
    )
    return min(tail + 2.0 * m * delta * steepest, 1.0)


@pytest.mark.parametrize(
    ("counts", "delta", "published"),
    [((1000, 100, 75), 1e-4, 0.673), ((100_000, 1510, 1439), 1e-5, 2.675)],
)
def test_published_values(counts: tuple[int, int, int], delta: float, published: float) -> None:
    """arXiv:2305.08846v1, Appendix D and Section 7 (one rounded, one cut to three digits)."""
    assert epsilon_lower_bound(*counts, delta, significance=0.05) == pytest.approx(
        published, abs=1e-3
    )


@pytest.mark.parametrize("num_guesses", [5, 17, 100, 3000])
@pytest.mark.parametrize("significance", [0.3, 0.05, 1e-6])
def test_all_right_without_delta_has_a_closed_form(num_guesses: int, significance: float) -> None:
    """q ** r = significance, and the answer is on the low side of it."""
    q = significance ** (1.0 / num_guesses)
    exact = max(math.log(q) - math.log1p(-q), 0.0)
    found = epsilon_lower_bound(5000, num_guesses, num_guesses, 0.0, significance)
    assert exact - 1e-6 <= found <= exact


def test_probability_is_the_theorems() -> None:
    """Against a plain sum over the theorem's whole range."""
    random = np.random.default_rng(1)
    for _ in range(60):
        m = int(random.integers(1, 120))
        r = int(random.integers(0, m + 1))
        v = int(random.integers(0, r + 1))
        epsilon, delta = random.uniform(0.0, 4.0), 10.0 ** -random.uniform(0.5, 6.0)
        found = guess_probability_upper(m, r, v, epsilon, delta)
        assert found == pytest.approx(direct_probability(m, r, v, epsilon, delta), rel=1e-7)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.02])
def test_probability_covers_worst_mechanisms(epsilon: float, delta: float) -> None:
    """Randomised response that leaks each bit, or all bits, with probability delta."""
    m = 40
    q = 1.0 / (1.0 + math.exp(-epsilon))
    for v in range(m + 1):
        bound = guess_probability_upper(m, m, v, epsilon, delta)
        assert binom.sf(v - 1, m, delta + (1.0 - delta) * q) <= bound
        assert delta + (1.0 - delta) * binom.sf(v - 1, m, q) <= bound * (1.0 + 1e-12)
    if delta == 0.0:  # randomised response reaches it
        assert binom.sf(29, m, q) == pytest.approx(guess_probability_upper(m, m, 30, epsilon, 0.0))


def test_bisection_finds_the_largest_rejected_epsilon() -> None:
    """The delta term need not grow with epsilon; a scan finds nothing above the answer."""
    random = np.random.default_rng(2)
    grid = np.linspace(0.0, 6.0, 61).tolist()
    for _ in range(60):
        m = int(random.integers(5, 300))
        r = int(random.integers(2, m + 1))
        v = int(random.integers(r // 2 + 1, r + 1))
        delta = 10.0 ** -random.uniform(0.5, 6.0)
        significance = float(random.choice([0.01, 0.05, 0.4]))
        found = epsilon_lower_bound(m, r, v, delta, significance)
        rejected = [e for e in grid if guess_probability_upper(m, r, v, e, delta) < significance]
        assert max(rejected, default=0.0) <= found + 1e-9
        if found > 0.0:
            assert guess_probability_upper(m, r, v, found, delta) < significance
            above = guess_probability_upper(m, r, v, found + 1e-6, delta)
            assert above >= significance * (1.0 - 1e-9)


@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("num_canaries", [12, 60])
def test_gaussian_bound_covers_the_gaussian_mechanism(mu: float, num_canaries: int) -> None:
    """One noisy number a canary: the right guesses are binomial, so the false alarms are exact."""
    right = float(ndtr(mu / 2.0))
    for significance in (0.5, 0.1, 0.01):
        alarms = [
            v
            for v in range(num_canaries + 1)
            if gaussian_mu_lower_bound(num_canaries, num_canaries, v, significance) > mu
        ]
        rate = binom.pmf(alarms, num_canaries, right).sum() if alarms else 0.0
        assert rate <= significance


def test_gaussian_recursion_in_forty_digits() -> None:
    """The root of the recursion without rounding is just above the answer."""

    def contradicts(mu: mpf, counts: tuple[int, int, int]) -> bool:
        m, r, v = counts
        level = mpf(0.05)
        right, wrong = level * v / m, level * (r - v) / m
        for i in range(v - 1, -1, -1):
            least = ncdf(-mp.sqrt(2) * erfinv(1 - 2 * right) - mu)
            if least <= wrong:
                return False
            right, wrong = right + mpf(i) / (r - i) * (least - wrong), least
            if right + wrong > mpf(r) / m:
                return True
        return False

    with mp.workdps(40):
        for counts in [(50, 50, 40), (120, 60, 55), (60, 60, 59)]:
            found = gaussian_mu_lower_bound(*counts)
            assert contradicts(mpf(found), counts)
            assert not contradicts(mpf(found) * (1 + mpf(10) ** -6), counts)


def test_conversion_is_the_gaussian_curve() -> None:
    """At the returned epsilon the Gaussian's delta is at least the asked one, by direct formula."""
    mu = gaussian_mu_lower_bound(1000, 200, 180)
    for delta in (1e-12, 1e-5, 0.01):
        epsilon = gaussian_epsilon_lower_bound(1000, 200, 180, delta)
        exact = ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon) * ndtr(-mu / 2 - epsilon / mu)
        assert exact == pytest.approx(delta, rel=1e-6)
    assert gaussian_epsilon_lower_bound(1000, 200, 180, 1.0) == 0.0


def test_gaussian_bound_is_tighter_for_many_guesses() -> None:
    """The reason to have it; its epsilon is about a Gaussian, not about every mechanism."""
    assert gaussian_epsilon_lower_bound(10_000, 1000, 903, 1e-5) > 1.3 * epsilon_lower_bound(
        10_000, 1000, 903, 1e-5
    )


@pytest.mark.parametrize("bound", BOUNDS)
def test_nothing_is_proved_by_guessing(bound: object) -> None:
    """No guesses, all wrong, half right: zero."""
    for counts in [(100, 0, 0), (100, 100, 0), (100, 100, 50), (100, 1, 1), (1, 1, 1), (1, 0, 0)]:
        assert bound(*counts) == 0.0


@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_move_the_right_way(bound: object) -> None:
    """More right guesses prove more; the same counts among more canaries never prove more."""
    values = [bound(200, 60, v) for v in range(61)]
    assert values == sorted(values)
    assert values[-1] > 1.0
    assert bound(200, 60, 55) >= bound(2000, 60, 55)
    assert epsilon_lower_bound(200, 60, 55, 0.0) > epsilon_lower_bound(200, 60, 55, 1e-3)
    assert epsilon_lower_bound(200, 60, 55, 0.0, 0.2) > epsilon_lower_bound(200, 60, 55, 0.0, 0.01)
    assert epsilon_lower_bound(200, 60, 60, 1.0) == 0.0


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("bad", NOT_COUNTS)
def test_bad_counts_are_refused(bound: object, bad: object) -> None:
    for counts in [(bad, 10, 5), (100, bad, 0), (100, 10, bad)]:
        with pytest.raises(InvalidParameterError):
            bound(*counts)


@pytest.mark.parametrize("counts", [(10, 11, 5), (10, 5, 6), (0, 0, 0), (1_000_001, 5, 5)])
@pytest.mark.parametrize("bound", BOUNDS)
def test_impossible_counts_are_refused(bound: object, counts: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidParameterError, match="must be a whole number"):
        bound(*counts)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, 1.1, "0", None])
def test_bad_levels_are_refused(bad: object) -> None:
    with pytest.raises(InvalidParameterError, match="delta"):
        epsilon_lower_bound(10, 10, 9, bad)
    with pytest.raises(InvalidParameterError, match="delta"):
        gaussian_epsilon_lower_bound(10, 10, 9, bad)
    with pytest.raises(InvalidParameterError, match="significance"):
        gaussian_mu_lower_bound(10, 10, 9, bad)
    with pytest.raises(InvalidParameterError, match="significance"):
        epsilon_lower_bound(10, 10, 9, 0.0, bad)
    if bad != 1.1:  # an epsilon, not a probability
        with pytest.raises(InvalidParameterError, match="epsilon"):
            guess_probability_upper(10, 10, 9, bad, 0.0)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_certain_levels_are_refused(level: float) -> None:
    with pytest.raises(InvalidParameterError, match="significance"):
        epsilon_lower_bound(10, 10, 9, 0.0, level)


def test_pure_dp_has_no_gaussian_conversion() -> None:
    with pytest.raises(InvalidParameterError, match="delta"):
        gaussian_epsilon_lower_bound(10, 10, 9, 0.0)


def test_guesses_without_ties() -> None:
    """Against sorting by hand."""
    random = np.random.default_rng(3)
    for _ in range(20):
        scores, members = random.normal(size=30), random.random(30) < 0.5
        order = np.argsort(scores)
        found = count_correct_guesses(scores, members, 7, 11)
        assert found == members[order[-7:]].sum() + (~members[order[:11]]).sum()
    assert count_correct_guesses(scores, members, 0, 0) == 0


def test_ties_never_help() -> None:
    """No order among tied scores has fewer right guesses, whatever the memberships."""
    scores = [1.0, 1.0, 1.0, 2.0, 0.0]
    for members in itertools.product([False, True], repeat=5):
        for num_in, num_out in [(1, 1), (2, 2), (3, 2), (2, 0), (0, 3)]:
            found = count_correct_guesses(scores, np.array(members), num_in, num_out)
            for order in itertools.permutations(range(5)):
                ranked = sorted(order, key=lambda i: scores[i])
                right = sum(members[i] for i in ranked[5 - num_in :])
                right += sum(not members[i] for i in ranked[:num_out])
                assert found <= right


@pytest.mark.parametrize(
    ("scores", "members"),
    [
        ([1.0, math.nan], [True, False]),
        ([1.0, math.inf], [True, False]),
        ([1.0, 2.0], [True]),
        ([1.0, 2.0], [1, 0]),
        ([], np.array([], dtype=bool)),
        ([[1.0, 2.0]], [[True, False]]),
        (["a", "b"], [True, False]),
        ([1.0 + 1j, 2.0], [True, False]),
    ],
)
def test_bad_scores_are_refused(scores: object, members: object) -> None:
    with pytest.raises(InvalidDataError):
        count_correct_guesses(scores, members, 1, 1)


@pytest.mark.parametrize(("num_in", "num_out"), [(2, 2), (-1, 0), (4, 0), (1.0, 1), (math.nan, 0)])
def test_bad_numbers_of_guesses_are_refused(num_in: object, num_out: object) -> None:
    with pytest.raises(InvalidParameterError):
        count_correct_guesses([1.0, 2.0, 3.0], [True, False, True], num_in, num_out)


def test_large_audits_are_fast_enough_to_finish() -> None:
    """The largest accepted audit; its log factorials are inside the stated margin."""
    most = one_run._MAX_CANARIES
    found = epsilon_lower_bound(most, 10_000, 6000, 1e-8)
    assert 0.3 < found < math.log(0.6 / 0.4)
