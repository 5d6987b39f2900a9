"""The Gaussian mechanism: sensitivity, grid, ranges, and what it refuses."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers_enumeration import SeededEntropy
from helpers_mechanisms import NUM_RELEASES, UNIT, MechanismContract, sums_of
from helpers_streams import BrokenStream, seeded_stream
from sordino.core.errors import EntropyError, InvalidParameterError, PrecisionError
from sordino.mechanisms.gaussian import GaussianMechanism

if TYPE_CHECKING:
    from sordino.core.entropy import AbstractEntropy

K = NUM_RELEASES


def make(seed: int = 0, **changes: Any) -> GaussianMechanism:
    """Returns a mechanism that adds noise of about one clip norm."""
    settings: dict[str, Any] = {
        "clip_norm": 2.0,
        "noise_multiplier": 1.0,
        "num_releases": K,
        "expected_batch_size": 8.0,
        "contribution_unit": UNIT,
    }
    stream = changes.pop("stream", None) or seeded_stream(seed)
    return GaussianMechanism(stream, **(settings | changes))


class TestContinuous(MechanismContract):
    """It draws from a secret stream, not from `AbstractEntropy`."""

    num_subsets = 1
    grid = False

    def make(self, entropy: AbstractEntropy) -> GaussianMechanism:
        return make(entropy.index(2**32), grid=self.grid)

    def test_one_release_a_step_works_too(self) -> None:
        """K = 1 is not special."""
        release = make(num_releases=1, grid=self.grid).release(sums_of(0, 1)[:, :1], UNIT, 0)
        assert release.integers.shape == (1,)

    def test_without_entropy_nothing_is_released(self) -> None:
        """Defect 15: the stream's error goes through."""
        with pytest.raises(EntropyError):
            make(stream=BrokenStream(), grid=self.grid).release(sums_of(0, 1), UNIT, 0)

    def test_the_private_state_continues_identically(self) -> None:
        """There is none: a new mechanism draws new noise."""
        mechanism = self.make(SeededEntropy(8))
        assert mechanism.private_state() == {}
        mechanism.restore({})


class TestDiscrete(TestContinuous):
    """The same on a grid."""

    grid = True


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("contribution_unit", [2.0**-50, 2.0**-20, 2.0**-3, 0.013])
@pytest.mark.parametrize("num_releases", [1, 4096])
def test_the_sensitivity_covers_every_rounding(
    grid: bool, contribution_unit: float, num_releases: int
) -> None:
    """In exact arithmetic: the roots compared as squares; never more than a billionth too much."""
    mechanism = make(grid=grid, contribution_unit=contribution_unit, num_releases=num_releases)
    unit, norm = Fraction(contribution_unit), Fraction(2)
    added = unit / 2
    if grid and mechanism._shift > 0:
        added += unit * 2**mechanism._shift
    exact = float(norm) + math.sqrt(num_releases) * float(added)
    beyond = Fraction(mechanism.sensitivity_upper) - norm
    assert beyond**2 >= num_releases * added**2
    assert mechanism.sensitivity_upper <= exact * (1 + 1e-9)
    assert exact * (1 - 1e-15) <= mechanism.noise_std <= mechanism.sensitivity_upper * (1 + 1e-9)
    sigma = Fraction(mechanism._sigma) * Fraction(mechanism._grid_unit)
    assert sigma >= Fraction(mechanism.sensitivity_upper)  # at noise multiplier 1


@pytest.mark.parametrize("contribution_unit", [2.0**-50, 2.0**-20, 0.3])
def test_sums_of_neighbours_stay_within_the_sensitivity(contribution_unit: float) -> None:
    """What the noise is added to moves by no more than the sensitivity, over 2,000 random pairs."""
    num_releases = 64
    mechanism = make(
        grid=True, contribution_unit=contribution_unit, num_releases=num_releases, clip_norm=2.0
    )
    rng = np.random.default_rng(1)
    worst = 0.0
    for _ in range(2000):
        row = rng.standard_normal(num_releases) * rng.choice([0, 1], num_releases)
        row *= 2.0 / max(np.linalg.norm(row), 1e-9)
        others = np.rint(rng.standard_normal(num_releases) * 20 / contribution_unit)
        both = others + np.rint(row / contribution_unit)
        first, second = (np.rint(np.ldexp(s, -mechanism._shift)) for s in (others, both))
        worst = max(worst, float(np.linalg.norm(second - first)))
    limit = mechanism.sensitivity_upper / mechanism._grid_unit
    assert 0.5 * limit < worst <= limit


@pytest.mark.parametrize("grid", [False, True])
def test_the_mean_comes_out(grid: bool) -> None:
    """With almost no noise the release is the sum over the public normaliser."""
    sums = np.array([[0.0, 1.0, -1.0, 2.0**20, -(2.0**21)]])
    mechanism = make(grid=grid, noise_multiplier=1e-4)
    release = mechanism.release(sums, UNIT, 0)
    mean = sums[0] * UNIT / 8.0
    assert np.abs(release.integers * release.unit - mean).max() < 8 * 2e-4 / 8.0


@pytest.mark.parametrize("grid", [False, True])
def test_the_unit_does_not_depend_on_the_data(grid: bool) -> None:
    """Nor on the step or the noise: it is fixed by the settings."""
    units = set()
    for seed in range(4):
        mechanism = make(seed, grid=grid)
        for scale in (0.0, 1.0, 2.0**30):
            sums = sums_of(seed, 1) * scale
            units.add(mechanism.release(sums, UNIT, seed).unit)
    assert len(units) == 1


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("noise_multiplier", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("batch", [1.0, 64.0, 65_536.0])
def test_a_large_batch_is_not_cut_off(grid: bool, noise_multiplier: float, batch: float) -> None:
    """2 B + 32 units that all point the same way are released as they are, at any settings."""
    mechanism = make(
        grid=grid, noise_multiplier=noise_multiplier, expected_batch_size=batch, num_releases=1
    )
    total = (2 * batch + 32) * 2.0
    release = mechanism.release(np.array([[total / UNIT]]), UNIT, 0)
    assert abs(release.integers[0]) < 2**31 - 1
    error = abs(release.integers[0] * release.unit * batch - total)
    assert error <= 9 * mechanism.noise_std
    assert 16 <= mechanism._sigma <= 2**20 * (1 + 1e-9)  # K = 1 adds one grid unit at most


@pytest.mark.parametrize("grid", [False, True])
def test_what_does_not_fit_is_cut_off(grid: bool) -> None:
    """Both ends of int32, symmetrically: no wrap, no warning, however large the sum."""
    sums = np.array([[2.0**45, -(2.0**45), 2.0**200, -(2.0**200), 0.0]])
    integers = make(grid=grid).release(sums, UNIT, 0).integers
    assert integers[:4].tolist() == [2**31 - 1, -(2**31) + 1] * 2
    assert abs(integers[4]) < 2**24


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.5])
def test_bad_sums_are_refused(grid: bool, bad: float) -> None:
    """NaN, infinity, and what is no whole number, before any noise is drawn."""
    sums = np.zeros((1, K))
    sums[0, 3] = bad
    with pytest.raises(PrecisionError, match="nothing was released"):
        make(grid=grid, stream=BrokenStream()).release(sums, UNIT, 0)


def test_other_units_and_shapes_are_refused() -> None:
    """The noise was computed for one unit and one K."""
    for unit in (2 * UNIT, math.nan, 0.0):
        with pytest.raises(InvalidParameterError, match="sums must be in units of"):
            make().release(np.zeros((1, K)), unit, 0)
    for shape in ((2, K), (1, K + 1), (K,)):
        with pytest.raises(InvalidParameterError, match="sums must have shape"):
            make().release(np.zeros(shape), UNIT, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -1.0, True, None])
@pytest.mark.parametrize(
    "name", ["clip_norm", "noise_multiplier", "expected_batch_size", "contribution_unit"]
)
def test_bad_settings_are_refused(name: str, bad: float) -> None:
    """NaN, infinity, zero and negative numbers, before anything is drawn."""
    with pytest.raises(InvalidParameterError, match=f"{name}.* must be"):
        make(**{name: bad})


@pytest.mark.parametrize("bad", [0, -1, 1.5, math.nan, True])
def test_a_bad_number_of_releases_is_refused(bad: int) -> None:
    """At least one number."""
    with pytest.raises(InvalidParameterError, match="num_releases must be a whole number"):
        make(num_releases=bad)


def test_a_grid_too_coarse_for_the_noise_is_refused() -> None:
    """A tiny multiplier with a huge batch leaves less than 16 integers a deviation."""
    with pytest.raises(InvalidParameterError, match="noise standard deviation in integers"):
        make(grid=True, noise_multiplier=1e-6, expected_batch_size=1e6)


def test_the_description_says_what_the_accountant_needs() -> None:
    """Names and numbers, and which noise."""
    described = make().describe()
    assert described["name"] == "gaussian"
    assert described["noise"] == "continuous"
    assert described["noise_multiplier"] == 1.0
    assert described["clip_norm"] == 2.0
    assert described["expected_batch_size"] == 8.0
    assert described["distance_to_normal_upper"] == 0.0
    assert make(grid=True).describe()["noise"] == "discrete"
    assert 0 < make(grid=True).describe()["distance_to_normal_upper"] < 1e-12
