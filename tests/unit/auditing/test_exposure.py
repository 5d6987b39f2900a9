"""Exposure: ranks by hand, the fitted law against integrals, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from mpmath import mp, ncdf, npdf, quad
from scipy.special import ndtri
from scipy.stats import skewnorm

from sordino.auditing.exposure import _fit, _log_survival, exposure, extrapolated_exposure
from sordino.core.errors import InvalidDataError

QUANTILES = (np.arange(2000) + 0.5) / 2000


def test_ranks_by_hand() -> None:
    """Above all, among, below; in a tie the references come first."""
    found = exposure([10.0, 2.0, 1.0, 0.0], [1.0, 1.0, 3.0])
    assert found.tolist() == [2.0, 1.0, 0.0, 0.0]
    assert exposure([1.0], [1.0]).tolist() == [0.0]
    assert exposure([9.0], range(1023)).tolist() == [math.log2(1024 / 1015)]
    assert exposure([5000.0], range(1023)).tolist() == [10.0]


def test_an_unused_secret_is_exposed_by_chance_only() -> None:
    """Each of n + 1 exchangeable scores takes each rank once: P(exposure >= e) <= 2**-e."""
    scores = np.array([0.0, 1.0, 1.0, 2.0, 5.0, 5.0, 7.0, 8.0])
    found = np.array([exposure([s], np.delete(scores, i))[0] for i, s in enumerate(scores)])
    for bits in (0.5, 1.0, 2.0, 3.0):
        assert (found >= bits).mean() <= 2.0**-bits


@pytest.mark.parametrize("shape", [0.0, 0.7, 5.0, -0.5, -3.0])
@pytest.mark.parametrize("z", [-1.0, 2.0, 3.5, 6.0, 15.0])
def test_tail_of_the_skew_normal_law(shape: float, z: float) -> None:
    """Against integration in 30 digits."""
    with mp.workdps(30):
        ends = [z, z + 0.02, z + 0.1, z + 0.5, z + 1, z + 2, z + 5, z + 20]
        exact = float(mp.log(quad(lambda t: 2 * npdf(t) * ncdf(shape * t), ends)))
    assert _log_survival(z, shape) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("shape", [0.0, 3.0, -3.0])
def test_fit_recovers_the_law(shape: float) -> None:
    """From quantiles, whose moments are nearly the law's."""
    found = _fit(skewnorm.ppf(QUANTILES, shape, loc=-2.0, scale=3.0))
    assert found[0] == pytest.approx(shape, abs=0.35)
    assert found[1:] == pytest.approx((-2.0, 3.0), abs=0.2)


def test_extrapolation_agrees_with_ranks_and_goes_beyond() -> None:
    """A secret at a reference's quantile has nearly its rank exposure; six deviations have 30."""
    references = 5.0 + 2.0 * ndtri(QUANTILES)
    found = extrapolated_exposure([5.0 + 2.0 * ndtri(0.99), 17.0, 85.0], references)
    assert found.exposures[0] == pytest.approx(math.log2(100.0), abs=0.05)
    assert found.exposures[1] == pytest.approx(29.9, abs=0.3)
    assert found.exposures[2] > 1000.0  # far beyond the smallest double
    assert found.largest_distance < 0.005
    two_humps = np.concatenate((references, references + 50.0))
    assert extrapolated_exposure([90.0], two_humps).largest_distance > 0.1


def test_extreme_skew_is_kept_in_range() -> None:
    """Moments beyond the family are pulled to its edge."""
    found = extrapolated_exposure([12.0], -np.log(QUANTILES))  # exponential: skewness 2
    assert math.isfinite(found.shape)
    assert found.exposures[0] > 10.0


@pytest.mark.parametrize("function", [exposure, extrapolated_exposure])
@pytest.mark.parametrize("bad", [[], [math.nan], [math.inf] * 200, [[1.0]], ["a"]])
def test_bad_scores_are_refused(function: object, bad: object) -> None:
    with pytest.raises(InvalidDataError):
        function(bad, QUANTILES)
    with pytest.raises(InvalidDataError):
        function([1.0], bad)


@pytest.mark.parametrize("references", [QUANTILES[:99], np.ones(200)])
def test_no_fit_from_few_or_equal_references(references: np.ndarray) -> None:
    with pytest.raises(InvalidDataError, match="not all equal"):
        extrapolated_exposure([1.0], references)
