"""The change of an area between two models: DeLong's covariance, and honest limits."""

from __future__ import annotations

import numpy as np
import pytest

from sordino.auditing import curves
from sordino.auditing.areas import auc, auc_difference
from sordino.core.errors import InvalidDataError


def test_difference_and_variance_by_definition() -> None:
    """Against the covariance of the two areas, from indicators of all pairs."""
    rng = np.random.default_rng(0)
    first = rng.normal(0.5, 1, 40), rng.normal(0, 1, 30)
    second = first[0] + rng.normal(0, 0.5, 40), first[1] + rng.normal(0, 0.5, 30)
    found = auc_difference(first, second)
    assert found.difference == pytest.approx(auc(*first) - auc(*second))
    pairs = [(m[:, None] > n[None, :]).astype(float) for m, n in (first, second)]
    change = pairs[0] - pairs[1]
    variance = change.mean(axis=1).var(ddof=1) / 40 + change.mean(axis=0).var(ddof=1) / 30
    half_width = (found.upper - found.lower) / 2
    assert half_width == pytest.approx(1.959964 * variance**0.5, rel=1e-6)


def test_interval_covers_no_change() -> None:
    """Two scores of equal power: 95% intervals miss 0 in about 5% of 400 trials.

    False-failure rate of a correct interval that misses with probability .05: below 1e-6 (a
    binomial with 400 trials exceeds 46 with probability 7e-8). DeLong's is only asymptotic.
    """
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(400):
        shared = rng.normal(0.5, 1, 80), rng.normal(0, 1, 80)
        first, second = (tuple(s + rng.normal(0, 0.7, 80) for s in shared) for _ in range(2))
        found = auc_difference(first, second)
        missed += not found.lower <= 0.0 <= found.upper
    assert 0 < missed <= 46


def test_same_scores_are_no_certainty() -> None:
    """Two models that rank alike differ by 0, with an interval that is not a point."""
    scores = [3.0, 2.0, 0.5], [1.0, 0.0, 2.5]
    found = auc_difference(scores, scores)
    assert (found.difference, found.lower, found.upper) == (0.0, -1.0, 1.0)


def test_other_records_are_refused() -> None:
    with pytest.raises(InvalidDataError, match=r"same records only, got .*\(2, 1\) and \(1, 1\)"):
        auc_difference(([1.0, 2.0], [0.0]), ([1.0], [0.0]))


def test_area_is_found_where_callers_outside_know_it() -> None:
    assert curves.auc is auc
