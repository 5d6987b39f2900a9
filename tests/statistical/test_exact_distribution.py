"""The exact law of tiny runs, every coin and flip enumerated: what does Y say about S*?

A run here is `training`: the sums of a step depend on everything released before it.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from mpmath import mp, mpf
from scipy.special import ndtr

from helpers_enumeration import (
    ScriptedEntropy,
    contested_sums,
    enumerate_outcomes,
    exact_law,
    exact_mutual_information,
    history_sums,
    marginals,
)
from sordino.mechanisms import binary_channel
from sordino.mechanisms.binary_channel import BUDGET_SCHEDULES, BinaryChannelMechanism
from sordino.mechanisms.candidates import CandidateSubsets
from sordino.mechanisms.unanimity import UnanimityMechanism

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from sordino.core.entropy import AbstractEntropy

M, T = 4, 3
CANDIDATES = CandidateSubsets(num_subsets=M)
BUDGETS = [1e-12, 1e-6, 1e-3, 0.03, 0.33, 0.6, 1.0]
Symbols = tuple[int, ...]
History = tuple[Symbols, ...]


def zero_leakage_law(
    seed: int, K: int, *, on_disagreement: str, flip: float
) -> dict[tuple[int, History], Fraction]:
    """Returns the exact joint law of (S*, Y) for a secret that is drawn beside the run."""

    def run(entropy: AbstractEntropy) -> tuple[int, History]:
        secret = entropy.index(M)
        mechanism = UnanimityMechanism(
            CANDIDATES, entropy, on_disagreement=on_disagreement, unanimity_flip=flip
        )
        history: History = ()
        for step in range(T):
            release = mechanism.release(history_sums(seed, history, M, K), 1.0, step)
            history += (tuple(release.integers.tolist()),)
        return secret, history

    return exact_law(run)


def predicted_law(
    seed: int, K: int, *, on_disagreement: str, flip: float
) -> dict[History, Fraction]:
    """Returns the law of Y from the definition: no line of it is the mechanism's."""
    law: dict[History, Fraction] = {(): Fraction(1)}
    eta = Fraction(flip)
    for _ in range(T):
        longer: dict[History, Fraction] = {}
        for history, probability in law.items():
            sums = history_sums(seed, history, M, K)
            options = []
            for k in range(K):
                signs = {1 if s >= 0 else -1 for s in sums[:, k]}
                if len(signs) == 1:
                    (sign,) = signs
                    options.append({sign: 1 - eta, -sign: eta})
                elif on_disagreement == "coin":
                    options.append({1: Fraction(1, 2), -1: Fraction(1, 2)})
                else:
                    options.append({0: Fraction(1)})
            for symbols in itertools.product(*options):
                p = math.prod(
                    (option[s] for option, s in zip(options, symbols, strict=True)),
                    start=probability,
                )
                if p > 0:
                    longer[(*history, symbols)] = p
        law = longer
    return law


@pytest.mark.parametrize("on_disagreement", ["coin", "skip"])
@pytest.mark.parametrize(
    ("K", "seed", "flip"), [(1, 0, 0.0), (1, 1, 0.25), (1, 2, 0.25), (1, 3, 0.4), (2, 4, 0.0)]
)
def test_zero_leakage_is_exactly_zero(on_disagreement: str, flip: float, K: int, seed: int) -> None:
    """P(S*, Y) = P(S*) P(Y) in rational numbers, and P(Y) is the one that was promised."""
    joint = zero_leakage_law(seed, K, on_disagreement=on_disagreement, flip=flip)
    secrets, released = marginals(joint)
    assert secrets == dict.fromkeys(range(M), Fraction(1, M))
    assert released == predicted_law(seed, K, on_disagreement=on_disagreement, flip=flip)
    for secret in range(M):
        for history, probability in released.items():
            assert joint[secret, history] == probability / M
    assert abs(exact_mutual_information(joint)) <= 1e-15


def open_sign_law(seed: int) -> dict[tuple[int, History], Fraction]:
    """Returns the joint law where the secret subset's own sign is sent as it is."""

    def run(entropy: AbstractEntropy) -> tuple[int, History]:
        secret = entropy.index(M)
        history: History = ()
        for _ in range(T):
            sums = history_sums(seed, history, M, 1)
            history += ((1 if sums[secret, 0] >= 0 else -1,),)
        return secret, history

    return exact_law(run)


def test_an_open_sign_is_seen() -> None:
    """Negative control: the same enumeration finds what an unprotected sign tells."""
    assert max(exact_mutual_information(open_sign_law(seed)) for seed in range(4)) > 0.5


def split_sums(seed: int, history: Sequence[Symbols], K: int) -> NDArray[np.float64]:
    """Returns sums of which two subsets are positive and two negative, in every column."""
    return contested_sums(seed, history, M, K)


def mixed_sums(seed: int, history: Sequence[Symbols], K: int) -> NDArray[np.float64]:
    """Returns sums of every kind: unanimous, nearly so, split, tied."""
    return history_sums(seed, history, M, K)


def first_bit_decides(seed: int, history: Sequence[Symbols], K: int) -> NDArray[np.float64]:
    """Returns split sums, but unanimous ones for ever after a first +1."""
    if history and history[0][0] == 1:
        return np.ones((M, K))
    return split_sums(seed, history, K)


SUMS = [split_sums, mixed_sums, first_bit_decides]


def channel_law(
    sums: Callable[[int, Sequence[Symbols], int], NDArray[np.float64]],
    seed: int,
    K: int,
    budget: float,
    schedule: str,
) -> tuple[dict[tuple[int, History], Fraction], dict[History, Fraction]]:
    """Returns the exact joint law of (S*, Y) and what each path was charged."""
    charged: dict[History, Fraction] = {}

    def run(entropy: AbstractEntropy) -> tuple[int, History]:
        mechanism = BinaryChannelMechanism(
            CANDIDATES, entropy, budget_nats=budget, num_steps=T, budget_schedule=schedule
        )
        history: History = ()
        total = Fraction(0)
        for step in range(T):
            release = mechanism.release(sums(seed, history, K), 1.0, step)
            history += (tuple(release.integers.tolist()),)
            total += Fraction(release.mutual_information_nats)
        assert charged.setdefault(history, total) == total  # a function of what was released
        return mechanism.private_state()["secret"], history

    return exact_law(run), charged


@pytest.mark.parametrize("schedule", BUDGET_SCHEDULES)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("sums", SUMS)
def test_a_budget_bounds_the_information(
    sums: Callable[[int, Sequence[Symbols], int], NDArray[np.float64]],
    budget: float,
    schedule: str,
) -> None:
    """0 < I(S*; Y) <= E[charges] <= B, by brute force over secrets, flips and histories."""
    is_positive = []
    runs = [(1, seed) for seed in range(4)]
    if budget in (1e-6, 0.6):
        runs.append((2, 4))
    for K, seed in runs:
        joint, charged = channel_law(sums, seed, K, budget, schedule)
        information = exact_mutual_information(joint)
        _, released = marginals(joint)
        with mp.workdps(80):
            expected = sum(
                (_exact(p * charged[history]) for history, p in released.items()), mpf(0)
            )
        assert information <= expected <= mpf(budget)
        assert max(charged.values()) <= Fraction(budget)
        is_positive.append(information > 0)
    assert any(is_positive)
    assert all(is_positive) or sums is mixed_sums


@pytest.mark.parametrize("schedule", BUDGET_SCHEDULES)
@pytest.mark.parametrize("budget", [1e-12, 1e-6, 1e-3, 0.03, 0.33])
def test_the_budget_is_used(budget: float, schedule: str) -> None:
    """Where every sign is contested, I(S*; Y) is the budget: the bound is not loose.

    The posterior moves in an early step and shrinks a later minority, and doubles near 1/2 are
    coarse at 1e-12: hence the margins.
    """
    for K, seed in ((1, 0), (1, 1), (1, 2)):
        joint, _ = channel_law(split_sums, seed, K, budget, schedule)
        information = exact_mutual_information(joint)
        assert budget * (1 - 1e-8 - 1e-13 / math.sqrt(budget)) <= information <= budget


def test_a_path_may_be_charged_less_than_the_information() -> None:
    """Why the certificate states B: a holder who quoted this path's charges would understate I.

    After a first +1 all later signs are free, so that path is charged a third of the budget while
    the information is an average over paths that pay for all three steps.
    """
    budget = 0.3
    joint, charged = channel_law(first_bit_decides, 0, 1, budget, "uniform")
    information = exact_mutual_information(joint)
    cheapest = min(charged.values())
    assert float(cheapest) == pytest.approx(budget / 3, rel=1e-9)
    assert _exact(cheapest) < information / 1.5
    _, released = marginals(joint)
    share = sum(p for history, p in released.items() if charged[history] == cheapest)
    assert share > Fraction(1, 4)  # and it is no rare path
    assert information <= mpf(budget)


def test_the_enumeration_is_complete() -> None:
    """Probabilities add up to 1 exactly, and a run that draws nothing has one outcome."""
    law = exact_law(lambda entropy: (entropy.index(3), tuple(entropy.coins(2).tolist())))
    assert len(law) == 12
    assert set(law.values()) == {Fraction(1, 12)}
    assert exact_law(lambda entropy: "x") == {"x": Fraction(1)}
    assert exact_law(lambda entropy: entropy.bernoulli(0.0)) == {False: Fraction(1)}
    assert exact_law(lambda entropy: entropy.bernoulli(0.25))[True] == Fraction(1, 4)
    dependent = exact_law(lambda entropy: entropy.index(2) and entropy.index(5))
    assert dependent[0] == Fraction(3, 5)
    assert sum(1 for _ in enumerate_outcomes(lambda entropy: entropy.coins(10))) == 1024


class OneNormal(ScriptedEntropy):
    """Chooses a given secret and returns given noise."""

    def __init__(self, secret: int, *noise: float) -> None:
        super().__init__([secret])
        self._noise = list(noise)

    def normal(self) -> float:
        """Returns the next number of the list."""
        return self._noise.pop(0)


@pytest.mark.parametrize("budget", [1e-3, 0.03, 0.3])
def test_gaussian_bits_stay_within_the_budget(
    budget: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I(S*; b_1, b_2) by quadrature over the first real output, which steers the second noise.

    The bound is on the unpublished real outputs; for the published bits it must hold with room
    (a bit keeps 2/pi of a weak Gaussian's information).
    """
    used: list[float] = []
    solve = binary_channel.gaussian_noise_std

    def spy(mass: float, nats: float) -> float:
        used.append(solve(mass, nats))
        return used[-1]

    monkeypatch.setattr(binary_channel, "gaussian_noise_std", spy)
    nodes, weights = np.polynomial.legendre.leggauss(24)
    law = np.zeros((M, 2, 2))
    for secret in range(M):
        first_noise = _first_noise(used, budget)
        s1 = 1.0 if split_sums(0, (), 1)[secret, 0] >= 0 else -1.0
        for b1 in (-1, 1):
            # y = s1 + sigma n with sign b1: n from the threshold on, eight deviations far
            threshold = -s1 / first_noise
            low, high = (threshold, 8.5) if b1 == 1 else (-8.5, threshold)
            for node, weight in zip(nodes, weights, strict=True):
                noise = (low + high) / 2 + (high - low) / 2 * node
                density = math.exp(-(noise**2) / 2) / math.sqrt(2 * math.pi)
                plus = _second_bit_is_plus(secret, noise, b1, budget, used)
                mass = weight * (high - low) / 2 * density
                law[secret, (b1 + 1) // 2, 1] += mass * plus
                law[secret, (b1 + 1) // 2, 0] += mass * (1 - plus)
    assert np.abs(law.sum(axis=(1, 2)) - 1).max() < 1e-9  # the quadrature is accurate
    law /= M
    independent = law.sum(axis=(1, 2), keepdims=True) * law.sum(axis=0, keepdims=True)
    information = float(np.sum(law * np.log(law / independent)))
    assert 0.5 * budget < information < 0.75 * budget


def _first_noise(used: list[float], budget: float) -> float:
    """Returns the noise of the first step."""
    mechanism = _gaussian(OneNormal(0, 0.5), budget)
    mechanism.release(split_sums(0, (), 1), 1.0, 0)
    return used[-1]


def _gaussian(entropy: AbstractEntropy, budget: float) -> BinaryChannelMechanism:
    """Returns a mechanism for two steps."""
    return BinaryChannelMechanism(
        CANDIDATES, entropy, budget_nats=budget, num_steps=2, channel="gaussian"
    )


def _second_bit_is_plus(
    secret: int, noise: float, b1: int, budget: float, used: list[float]
) -> float:
    """Returns P(b_2 = +1) after the first noise, from the noise that the mechanism solved for."""
    mechanism = _gaussian(OneNormal(secret, noise, 0.0), budget)
    first = mechanism.release(split_sums(0, (), 1), 1.0, 0)
    assert first.integers.tolist() == [b1]
    sums = split_sums(0, ((b1,),), 1)
    mechanism.release(sums, 1.0, 1)
    sign = 1.0 if sums[secret, 0] >= 0 else -1.0
    if used[-1] == 0.0:  # after eight deviations the rest of the secret is within the budget
        return float(sign > 0)
    return float(ndtr(sign / used[-1]))


def _exact(value: Fraction) -> mpf:
    """Returns a fraction at the working precision."""
    return mpf(value.numerator) / mpf(value.denominator)
