"""The best attacks on S* and on membership in the pool, against what is promised about each.

Clopper-Pearson intervals are exact; each statistical test fails by chance at 1e-6 or less, and
streams are seeded, so a verdict does not change from run to run.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
from mpmath import mpf
from scipy.stats import beta as beta_law

import oracles
from helpers_enumeration import (
    SeededEntropy,
    bayes_success,
    contested_sums,
    exact_law,
    history_sums,
)
from sordino.accounting.inference_risk import posterior_from_mutual_information
from sordino.mechanisms.binary_channel import BUDGET_SCHEDULES, BinaryChannelMechanism
from sordino.mechanisms.candidates import CandidateSubsets
from sordino.mechanisms.unanimity import UnanimityMechanism

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sordino.core.entropy import AbstractEntropy

M = 8
CANDIDATES = CandidateSubsets(num_subsets=M, seed=1)
History = tuple[tuple[int, ...], ...]


def clopper_pearson(hits: int, total: int, *, false_failure_rate: float) -> tuple[float, float]:
    """Returns the exact interval that holds the true probability but for this rate."""
    tail = false_failure_rate / 2
    low = beta_law.ppf(tail, hits, total - hits + 1) if hits else 0.0
    high = beta_law.ppf(1 - tail, hits + 1, total - hits) if hits < total else 1.0
    return float(low), float(high)


def most_alike(
    signs: NDArray[np.int8], released: NDArray[np.int32], rng: np.random.Generator
) -> int:
    """Returns the candidate whose signs agree most with what was released; ties by lot.

    For symbols that are the secret's signs with independent errors this is Bayes' guess.
    """
    scores = signs.astype(np.int64) @ released
    return int(rng.choice(np.flatnonzero(scores == scores.max())))


def attack_zero_leakage(num_runs: int, on_disagreement: str, flip: float) -> int:
    """Returns how often the attack names the secret that was drawn beside the run."""
    entropy, rng = SeededEntropy(20260524), np.random.default_rng(7)
    mechanism = UnanimityMechanism(
        CANDIDATES, entropy, on_disagreement=on_disagreement, unanimity_flip=flip
    )
    hits = 0
    for run in range(num_runs):
        secret = entropy.index(M)
        sums = history_sums(run % 50, [], M, 16)
        signs = np.where(sums >= 0, 1, -1).astype(np.int8)
        released = mechanism.release(sums, 1.0, 0).integers
        hits += most_alike(signs, released, rng) == secret
    return hits


@pytest.mark.parametrize(("on_disagreement", "flip"), [("coin", 0.0), ("skip", 0.0), ("coin", 0.3)])
def test_zero_leakage_leaves_a_blind_guess(on_disagreement: str, flip: float) -> None:
    """10,000 runs of 16 signs: success is 1/8, tested at 1e-6; 14.2% would be caught."""
    hits = attack_zero_leakage(10_000, on_disagreement, flip)
    low, high = clopper_pearson(hits, 10_000, false_failure_rate=1e-6)
    assert low <= 1 / M <= high
    assert high - low < 0.034


def test_an_open_sign_is_caught() -> None:
    """Negative control: the same attack and the same test, on the secret's own signs."""
    entropy, rng = SeededEntropy(1), np.random.default_rng(7)
    hits, num_runs = 0, 1000
    for run in range(num_runs):
        secret = entropy.index(M)
        signs = np.where(history_sums(run % 50, [], M, 16) >= 0, 1, -1).astype(np.int8)
        hits += most_alike(signs, signs[secret].astype(np.int32), rng) == secret
    low, _ = clopper_pearson(hits, num_runs, false_failure_rate=1e-6)
    assert low > 0.7  # far above 1/8, and above the bound of any budget used here
    assert low > posterior_from_mutual_information(0.33, 1 / M)


def run_channel(
    entropy: AbstractEntropy, seed: int, budget: float, schedule: str, steps: int
) -> tuple[int, History]:
    """Returns (secret, everything released) of one run whose sums depend on the history."""
    mechanism = BinaryChannelMechanism(
        CANDIDATES, entropy, budget_nats=budget, num_steps=steps, budget_schedule=schedule
    )
    history: History = ()
    for step in range(steps):
        release = mechanism.release(contested_sums(seed, history, M, 1), 1.0, step)
        history += (tuple(release.integers.tolist()),)
    return mechanism.private_state()["secret"], history


@pytest.mark.parametrize("schedule", BUDGET_SCHEDULES)
@pytest.mark.parametrize("budget", [1e-6, 0.01, 0.11, 0.33, 1.0, 2.0])
def test_bayes_attack_stays_below_the_bound(budget: float, schedule: str) -> None:
    """The exact success of the optimal guess of S*, from the enumerated law, at prior 1/8."""
    for seed in range(3):
        joint = exact_law(lambda entropy, s=seed: run_channel(entropy, s, budget, schedule, 3))
        success = float(bayes_success(joint))
        assert 1 / M <= success <= posterior_from_mutual_information(budget, 1 / M)
        assert success <= oracles.posterior(budget, 1 / M)
    assert success > 1 / M  # the attack does learn something


@pytest.mark.parametrize("budget", [1e-3, 0.11, 0.33, 0.6])
def test_bayes_attack_on_a_record_stays_below_the_bound(budget: float) -> None:
    """ "Was record x in the secret subset?", guessed optimally, for each of 30 records."""
    member = CANDIDATES.membership(30)
    bound = posterior_from_mutual_information(budget, CANDIDATES.prior)
    for seed in range(3):
        joint = exact_law(lambda entropy, s=seed: run_channel(entropy, s, budget, "adaptive", 3))
        successes = []
        for row in member:
            about_record: dict[tuple[bool, History], Fraction] = {}
            for (secret, history), probability in joint.items():
                key = (bool(row[secret]), history)
                about_record[key] = about_record.get(key, Fraction(0)) + probability
            successes.append(float(bayes_success(about_record)))
        assert max(successes) <= bound
        assert min(successes) >= 0.5
    assert max(successes) > 0.5


@pytest.mark.parametrize("budget", [0.11, 1.0])
def test_simulated_bayes_attack(budget: float) -> None:
    """2,500 simulated runs agree with the exact success and do not exceed the bound, at 1e-6.

    The guess for each transcript comes from the enumerated law: nobody can do better. A success
    6 percentage points above the exact one would be caught.
    """
    seed, steps, num_runs = 3, 3, 2500
    joint = exact_law(lambda entropy: run_channel(entropy, seed, budget, "adaptive", steps))
    best: dict[History, int] = {}
    for secret, history in joint:
        known = best.setdefault(history, secret)
        if joint[secret, history] > joint[known, history]:
            best[history] = secret
    entropy = SeededEntropy(99)
    hits = 0
    for _ in range(num_runs):
        secret, history = run_channel(entropy, seed, budget, "adaptive", steps)
        hits += best[history] == secret
    low, high = clopper_pearson(hits, num_runs, false_failure_rate=1e-6)
    exact = float(bayes_success(joint))
    bound = posterior_from_mutual_information(budget, 1 / M)
    assert low <= exact <= high
    assert low <= bound
    assert exact <= bound
    assert exact > 1 / M + 0.03


# Membership in the pool: the likelihood of what is released, with a record and without it.

FLIPS = [1e-3, 0.1, 0.25, 0.4]
HALVES = [np.array(row) for row in itertools.product((0, 1), repeat=4) if sum(row) == 2]


@cache
def law_of_signs(columns: tuple[tuple[bool, ...], ...], flip: float) -> dict[object, Fraction]:
    """Returns the mechanism's exact law for sums with the given signs, one tuple a column."""
    sums = np.where(np.array(columns).T, 1.0, -1.0)
    candidates = CandidateSubsets(num_subsets=max(2, sums.shape[0]))

    def run(entropy: AbstractEntropy) -> tuple[int, ...]:
        mechanism = UnanimityMechanism(candidates, entropy, unanimity_flip=flip)
        return tuple(mechanism.release(sums, 1.0, 0).integers.tolist())

    return exact_law(run)


def signs_of(sums: NDArray[np.float64]) -> tuple[tuple[bool, ...], ...]:
    """Returns the signs of sums of shape (M, K), column by column."""
    return tuple(tuple(column) for column in (sums >= 0).T.tolist())


def largest_ratio(first: dict[object, Fraction], second: dict[object, Fraction]) -> Fraction:
    """Returns the largest likelihood ratio of an outcome, either way."""
    assert first.keys() == second.keys()
    return max(max(first[y] / second[y], second[y] / first[y]) for y in first)


def drawn(flip: float) -> Fraction:
    """Returns the flip probability that the entropy source draws."""
    return Fraction(math.ceil(Fraction(flip) * 2**53), 2**53)


@pytest.mark.parametrize("flip", FLIPS)
def test_worst_neighbours_of_one_release(flip: float) -> None:
    """Every pool of three records with contributions of -2 to 2, every place emptied: 81,000 pairs.

    The largest likelihood ratio is 1 / (2 eta) exactly: the bound holds and is attained.
    """
    worst = Fraction(0)
    pairs = set()
    for rows in itertools.product(HALVES, repeat=3):
        member = np.array(rows).T  # (4, 3)
        pools = np.array(list(itertools.product(range(-2, 3), repeat=3))).T  # (3, 125)
        whole = signs_of(member @ pools)
        for x in range(3):
            without = signs_of(member @ pools - np.outer(member[:, x], pools[x]))
            pairs.update(zip(whole, without, strict=True))
    for whole_column, without_column in pairs:
        first, second = (law_of_signs((c,), flip) for c in (whole_column, without_column))
        worst = max(worst, largest_ratio(first, second))
    assert worst == 1 / (2 * drawn(flip))
    assert worst <= Fraction(math.exp(-math.log(2 * flip))) * (1 + Fraction(1, 10**12))


@pytest.mark.parametrize("flip", FLIPS)
def test_joint_sensitivity_of_several_releases(flip: float) -> None:
    """Defect 13: K releases of one step are as sensitive as K, and the count is charged.

    All pools of two records with K = 3 contributions of -1 or 1, over two subsets.
    """
    K = 3
    worst = Fraction(0)
    for rows in itertools.product([(1, 0), (0, 1)], repeat=2):
        member = np.array(rows, dtype=float).T
        for values in itertools.product((-1.0, 1.0), repeat=2 * K):
            pool = np.array(values).reshape(2, K)
            whole = member @ pool
            for x in range(2):
                without = whole - np.outer(member[:, x], pool[x])
                first, second = (law_of_signs(signs_of(s), flip) for s in (whole, without))
                worst = max(worst, largest_ratio(first, second))
    one = 1 / (2 * drawn(flip))
    assert worst == one**K
    assert worst > one  # negative control: charging one release for three would be wrong


@pytest.mark.parametrize("flip", [0.1, 0.4])
def test_adaptive_steps_add_up(flip: float) -> None:
    """Two steps whose contributions depend on the first bit: at most 2 ln(1 / (2 eta)) in all."""
    one = 1 / (2 * drawn(flip))
    worst = Fraction(0)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        member = np.array([HALVES[i] for i in rng.integers(0, 6, 3)]).T
        steps = {key: rng.integers(-2, 3, (3, 1)) for key in ((), (1,), (-1,))}
        for x in range(3):
            laws = []
            for keep in (np.ones(3), np.arange(3) != x):
                law: dict[object, Fraction] = {}
                for (b1,), p1 in _release_law(member, steps[()] * keep[:, None], flip):
                    for (b2,), p2 in _release_law(member, steps[b1,] * keep[:, None], flip):
                        law[b1, b2] = p1 * p2
                laws.append(law)
            worst = max(worst, largest_ratio(*laws))
    assert one < worst <= one**2


def _release_law(
    member: NDArray[np.int64], contributions: NDArray[np.float64], flip: float
) -> list[tuple[tuple[int, ...], Fraction]]:
    """Returns the exact law of one step's release."""
    return list(law_of_signs(signs_of(member @ contributions), flip).items())


def test_without_flips_the_ratio_is_infinite() -> None:
    """At eta = 0 a coin can contradict a certain sign: no formal guarantee about the pool."""
    certain = law_of_signs(((True, True, True, True),), 0.0)
    contested = law_of_signs(((True, True, True, False),), 0.0)
    assert certain == {(1,): Fraction(1)}
    assert contested == {(1,): Fraction(1, 2), (-1,): Fraction(1, 2)}


def test_a_renumbered_pool_is_another_neighbour() -> None:
    """Defect 10: why the certificate says REPLACE_SPECIAL and not ADD_OR_REMOVE_ONE.

    Taking record 1 out of the *file* renumbers the one behind it, which then falls into other
    subsets: here every subset says minus before and plus afterwards, so the ratio exceeds
    1 / (2 eta). Emptying the record's place keeps the bound.
    """
    flip = 0.3
    values = np.array([2.0, -3.0, -2.0])
    candidates = CandidateSubsets(num_subsets=4, seed=32)
    member = candidates.membership(3)
    whole = (values @ member)[:, None]
    renumbered = (np.delete(values, 1) @ candidates.membership(2))[:, None]
    emptied = whole - np.outer(member[1], values[1:2])
    laws = [law_of_signs(signs_of(sums), flip) for sums in (whole, renumbered, emptied)]
    assert largest_ratio(laws[0], laws[1]) > 1 / (2 * drawn(flip))
    assert largest_ratio(laws[0], laws[2]) <= 1 / (2 * drawn(flip))


def test_the_interval_is_clopper_pearson() -> None:
    """Coverage computed exactly, from the definition: never below what is promised."""
    total, rate = 40, 1e-3
    intervals = [clopper_pearson(h, total, false_failure_rate=rate) for h in range(total + 1)]
    for p in (0.01, 0.125, 0.5, 0.99):
        covered = sum(
            math.comb(total, h) * mpf(p) ** h * mpf(1 - p) ** (total - h)
            for h, (low, high) in enumerate(intervals)
            if low <= p <= high
        )
        assert covered >= 1 - rate
