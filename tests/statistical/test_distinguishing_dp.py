"""The best test between neighbours, against the epsilon of one step of the Gaussian mechanism.

One release carries many independent trials: unit j fills coordinates of its own with contributions
of joint norm C, and whether it is there moves nothing else. So a trial is the worst case of one
step: a unit at the clip norm, everything else known. Epsilon is computed here by integration of the
densities, without the accountant. Bounds are Clopper and Pearson's; a correct mechanism fails a
test by chance at 1e-6, one with half the noise must fail it. Streams are seeded.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import log_ndtr
from scipy.stats import beta, norm

from helpers_streams import seeded_stream
from sordino.mechanisms.gaussian import GaussianMechanism
from sordino.mechanisms.poisson import PoissonSampler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sordino.core.secret_stream import SecretStream

    Law = tuple[float, float, float]  # sampling probability, shift, noise std, in clip norms

TRIALS = 100_000
DELTA = 0.01
CLIP_NORM = 0.75
UNIT = 2.0**-35
LEVEL = 1e-6
THRESHOLDS = np.linspace(-5.0, 5.0, 41)  # in clip norms
ADD_OR_REMOVE_ONE, REPLACE_ONE = (0.0, 1.0), (-1.0, 1.0)  # where the unit's contribution points

SETTINGS = pytest.mark.parametrize(
    ("signs", "probability", "noise_multiplier"),
    [
        (ADD_OR_REMOVE_ONE, 1.0, 1.0),
        (ADD_OR_REMOVE_ONE, 0.2, 0.8),
        (REPLACE_ONE, 1.0, 2.0),
        (REPLACE_ONE, 0.2, 1.0),
    ],
)
NOISE = pytest.mark.parametrize("grid", [False, True], ids=["continuous", "discrete"])


def log_density(y: NDArray[np.float64], law: Law) -> NDArray[np.float64]:
    """Returns the log density of one coordinate: the unit is in the batch, or is not."""
    probability, shift, std = law
    if probability == 1.0:
        return norm.logpdf(y, shift, std)
    out, into = norm.logpdf(y, 0.0, std), norm.logpdf(y, shift, std)
    return np.logaddexp(math.log1p(-probability) + out, math.log(probability) + into)


def hockey_stick(epsilon: float, first: Law, second: Law) -> float:
    """Returns the smallest delta at this epsilon: the integral of max(0, p - e**epsilon q)."""
    y = np.linspace(-2.0 - 12 * first[2], 2.0 + 12 * first[2], 40_001)
    return _integral(epsilon, y, *(np.exp(log_density(y, law)) for law in (first, second)))


@cache
def one_step_epsilon(first: Law, second: Law) -> float:
    """Returns the epsilon of one step at DELTA, in this direction."""
    y = np.linspace(-2.0 - 12 * first[2], 2.0 + 12 * first[2], 40_001)
    p, q = (np.exp(log_density(y, law)) for law in (first, second))
    return float(brentq(lambda e: _integral(e, y, p, q) - DELTA, 0.0, 30.0, xtol=1e-9))


def _integral(
    epsilon: float, y: NDArray[np.float64], p: NDArray[np.float64], q: NDArray[np.float64]
) -> float:
    """Returns the integral of max(0, p - e**epsilon q)."""
    return float(np.trapezoid(np.maximum(p - math.exp(epsilon) * q, 0.0), y))


def release_trials(
    stream: SecretStream,
    sign: float,
    probability: float,
    noise_multiplier: float,
    *,
    grid: bool,
    width: int = 1,
) -> NDArray[np.float64]:
    """Returns what was released of each trial's unit, in clip norms, shape (TRIALS,).

    Args:
        stream: Secret randomness.
        sign: Where the unit's contributions point; 0 for a unit that is not there.
        probability: Sampling probability.
        noise_multiplier: Of the mechanism.
        grid: Whether the noise is discrete.
        width: Coordinates a unit; the attack looks along its contributions.
    """
    mechanism = GaussianMechanism(
        stream,
        clip_norm=CLIP_NORM,
        noise_multiplier=noise_multiplier,
        num_releases=TRIALS * width,
        expected_batch_size=3.0,
        contribution_unit=UNIT,
        grid=grid,
    )
    sums = np.zeros((TRIALS, width))
    sums[PoissonSampler(stream, probability, TRIALS).sample()] = np.rint(
        sign * CLIP_NORM / math.sqrt(width) / UNIT
    )
    release = mechanism.release(sums.reshape(1, -1), UNIT, 0)
    means = release.integers.reshape(TRIALS, width) * release.unit
    return means.sum(axis=1) / math.sqrt(width) * 3.0 / CLIP_NORM


def epsilon_lower(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Returns the largest epsilon at DELTA that an event proves, at confidence 1 - LEVEL / 2.

    The events are all the half-lines that end at a THRESHOLD, fixed before the draws; the level is
    shared between them and between the two bounds of each.
    """
    share = LEVEL / 2 / (2 * THRESHOLDS.size) / 2
    above = [TRIALS - np.searchsorted(np.sort(y), THRESHOLDS) for y in (first, second)]
    hits = [np.concatenate([count, TRIALS - count]) for count in above]
    often = beta.ppf(share, hits[0], TRIALS - hits[0] + 1)
    seldom = beta.isf(share, hits[1] + 1, TRIALS - hits[1])
    often, seldom = np.where(hits[0] > 0, often, 0.0), np.where(hits[1] < TRIALS, seldom, 1.0)
    return float(np.log(np.maximum(often - DELTA, 1e-9) / seldom).max())


def audit(
    signs: tuple[float, float],
    probability: float,
    claimed: float,
    *,
    used: float,
    grid: bool,
    width: int = 1,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """Returns (proved, claimed) epsilon in both directions, for noise that is `used`."""
    stream = seeded_stream([seed, grid, width])
    outcomes = [
        release_trials(stream, sign, probability, used, grid=grid, width=width) for sign in signs
    ]
    laws = [(probability if sign else 0.0, sign, claimed) for sign in signs]
    laws = [law if law[0] else (1.0, 0.0, claimed) for law in laws]  # not there: noise alone
    pairs = []
    for i, j in ((0, 1), (1, 0)):
        epsilon = one_step_epsilon(laws[i], laws[j])
        proved = epsilon_lower(outcomes[i], outcomes[j])
        pairs.append((proved, epsilon))
    return pairs


@SETTINGS
@NOISE
@pytest.mark.parametrize("width", [1, 4])
def test_no_attack_exceeds_epsilon(
    signs: tuple[float, float], probability: float, noise_multiplier: float, grid: bool, width: int
) -> None:
    """The bound is kept in both directions, and the attack comes within a third of it."""
    pairs = audit(
        signs, probability, noise_multiplier, used=noise_multiplier, grid=grid, width=width, seed=1
    )
    assert all(proved <= epsilon for proved, epsilon in pairs)
    assert max(proved / epsilon for proved, epsilon in pairs) > 2 / 3


@SETTINGS
@NOISE
def test_half_the_noise_is_caught(
    signs: tuple[float, float], probability: float, noise_multiplier: float, grid: bool
) -> None:
    """Negative control: the same test on a mechanism that adds half of what it should."""
    pairs = audit(
        signs, probability, noise_multiplier, used=noise_multiplier / 2, grid=grid, seed=2
    )
    assert max(proved - epsilon for proved, epsilon in pairs) > 0.1


@NOISE
def test_replacing_under_a_claim_for_adding_is_caught(grid: bool) -> None:
    """Negative control: a replaced unit moves the sums twice as far as an added one."""
    stream = seeded_stream([3, grid])
    outcomes = [release_trials(stream, sign, 1.0, 1.0, grid=grid) for sign in (-1.0, 1.0)]
    laws = ((1.0, 1.0, 1.0), (1.0, 0.0, 1.0))
    epsilon = one_step_epsilon(*laws)
    assert epsilon_lower(outcomes[1], outcomes[0]) > epsilon + 0.5


@NOISE
def test_a_higher_sampling_probability_is_caught(grid: bool) -> None:
    """Negative control: 0.4 where 0.2 is claimed."""
    stream = seeded_stream([4, grid])
    outcomes = [release_trials(stream, sign, 0.4, 0.8, grid=grid) for sign in (0.0, 1.0)]
    laws = ((0.2, 1.0, 0.8), (1.0, 0.0, 0.8))
    epsilon = one_step_epsilon(*laws)
    assert epsilon_lower(outcomes[1], outcomes[0]) > epsilon + 0.1


@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
def test_the_integral_is_the_closed_form(noise_multiplier: float, epsilon: float) -> None:
    """Without sampling: Phi(a - e s) - e**e Phi(-a - e s), with a = 1 / (2 s)."""
    shift = 0.5 / noise_multiplier
    exact = math.exp(log_ndtr(shift - epsilon * noise_multiplier))
    exact -= math.exp(epsilon + log_ndtr(-shift - epsilon * noise_multiplier))
    laws = ((1.0, 1.0, noise_multiplier), (1.0, 0.0, noise_multiplier))
    assert hockey_stick(epsilon, *laws) == pytest.approx(exact, abs=1e-6)
