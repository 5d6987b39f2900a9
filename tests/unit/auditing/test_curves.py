"""Curves: plain definitions, ties, limits that are not exceeded, intervals, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, mannwhitneyu

from sordino.auditing import areas, curves
from sordino.auditing.clopper_pearson import binomial_lower, binomial_upper
from sordino.core.errors import InvalidDataError, InvalidParameterError

TIED = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)
FUNCTIONS = [
    curves.roc_curve,
    areas.auc,
    areas.auc_interval,
    lambda a, b: curves.tpr_at_fpr(a, b, 0.1),
    curves.advantage,
    curves.advantage_lower_bound,
    curves.log_log_points,
]


def rates(members: list[float], nonmembers: list[float], threshold: float) -> tuple[float, float]:
    """Returns TPR and FPR of calling scores >= threshold members."""
    return (
        sum(s >= threshold for s in members) / len(members),
        sum(s >= threshold for s in nonmembers) / len(nonmembers),
    )


@settings(max_examples=60, deadline=None)
@given(TIED, TIED, st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_against_definitions(members: list[float], nonmembers: list[float], limit: float) -> None:
    """Every number equals its definition, by trying all thresholds."""
    thresholds = [math.inf, *sorted({*members, *nonmembers}, reverse=True)]
    every = [rates(members, nonmembers, t) for t in thresholds]
    curve = curves.roc_curve(members, nonmembers)
    assert curve.thresholds.tolist() == thresholds
    assert [*zip(curve.true_positive_rates, curve.false_positive_rates, strict=True)] == every
    pairs = [(a > b) + 0.5 * (a == b) for a in members for b in nonmembers]
    assert areas.auc(members, nonmembers) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert curves.advantage(members, nonmembers) == pytest.approx(max(t - f for t, f in every))
    best = max(t for t, f in every if f <= limit)
    assert curves.tpr_at_fpr(members, nonmembers, limit) == best
    point = curves.operating_point(members, nonmembers, limit)
    assert (point.tpr, point.fpr) == rates(members, nonmembers, point.threshold)
    assert point.fpr <= limit


def test_area_under_the_curve_is_the_auc() -> None:
    """Trapezoids under the points, ties included; and Mann and Whitney's statistic."""
    random = np.random.default_rng(4)
    members, nonmembers = random.integers(0, 9, 50), random.integers(-2, 7, 70)
    curve = curves.roc_curve(members, nonmembers)
    area = np.trapezoid(curve.true_positive_rates, curve.false_positive_rates)
    found = areas.auc(members, nonmembers)
    assert found == pytest.approx(area)
    assert found == pytest.approx(mannwhitneyu(members, nonmembers).statistic / (50 * 70))


def test_delong_variance() -> None:
    """Against the double sum over pairs of the definition."""
    random = np.random.default_rng(5)
    members, nonmembers = random.normal(1, 1, 23).round(1), random.normal(0, 1, 31).round(1)
    kernel = (members[:, None] > nonmembers) + 0.5 * (members[:, None] == nonmembers)
    variance = kernel.mean(1).var(ddof=1) / 23 + kernel.mean(0).var(ddof=1) / 31
    area = kernel.mean()
    width = 1.959963984540054 * math.sqrt(variance) / (area * (1 - area))
    center = math.log(area / (1 - area))
    found = areas.auc_interval(members, nonmembers)
    assert found.auc == pytest.approx(area)
    assert found.lower == pytest.approx(1 / (1 + math.exp(width - center)))
    assert found.upper == pytest.approx(1 / (1 + math.exp(-width - center)))


def test_no_variance_is_no_certainty() -> None:
    """Perfect separation and all scores equal leave the intervals wide."""
    perfect = areas.auc_interval(range(10, 20), range(10))
    assert (perfect.auc, perfect.upper) == (1.0, 1.0)
    assert perfect.lower == pytest.approx(0.025**0.1)
    reversed_ = areas.auc_interval(range(10), range(10, 20))
    assert (reversed_.lower, reversed_.upper) == (0.0, pytest.approx(1.0 - 0.025**0.1))
    equal = areas.auc_interval([1.0] * 50, [1.0] * 50)
    width = math.sqrt(math.log(40.0) / 100.0)
    assert (equal.lower, equal.upper) == (pytest.approx(0.5 - width), pytest.approx(0.5 + width))
    single = areas.auc_interval([1.0], [0.0, 2.0])
    assert (single.lower, single.upper) == (0.0, 1.0)


def test_limit_is_not_exceeded() -> None:
    """The first point above the wanted rate is a known mistake; so is losing 29 of 100."""
    members, nonmembers = np.arange(100) + 0.5, np.arange(100.0)
    assert curves.operating_point(members, nonmembers, 0.29).false_positives == 29
    assert curves.operating_point(members, nonmembers, 0.2899999).false_positives == 28
    assert curves.operating_point(members, nonmembers, 0.001).false_positives == 0
    point = curves.operating_point([5.0, 5.0, 7.0], [5.0, 4.0, 3.0, 2.0], 0.1)
    assert (point.true_positives, point.threshold) == (1, 7.0)
    nobody = curves.operating_point([1.0], [2.0, 2.0], 0.5)  # the tie may not be split
    assert (nobody.threshold, nobody.tpr, nobody.fpr) == (math.inf, 0.0, 0.0)
    everybody = curves.operating_point([1.0], [2.0, 0.5], 1.0)
    assert (everybody.threshold, everybody.tpr, everybody.fpr) == (0.5, 1.0, 1.0)


def test_intervals_of_an_operating_point() -> None:
    """Clopper and Pearson's for the members; the law of an order statistic for the limit."""
    point = curves.operating_point(np.arange(50.0) + 60, np.arange(100.0), 0.05, 0.1)
    assert point.true_positives == 15
    assert point.threshold == 95.0  # the lowest called score belongs to a non-member too
    assert point.tpr_lower == binomial_lower(15, 50, 0.05)
    assert point.tpr_upper == binomial_upper(15, 50, 0.05)
    assert point.fpr_upper == pytest.approx(beta.ppf(0.9, 6, 95), rel=1e-8)


def test_advantage_bound() -> None:
    """Two one-sided bands, never below zero."""
    width = 2.0 * math.sqrt(math.log(40.0) / 2000.0)
    found = curves.advantage_lower_bound(np.arange(1000) + 500, np.arange(1000))
    assert found == pytest.approx(0.5 - width)
    assert curves.advantage_lower_bound([2.0], [1.0]) == 0.0


def test_log_log_points() -> None:
    """Rising distinct rates, each an operating point, none without a place on the axis."""
    random = np.random.default_rng(6)
    members, nonmembers = random.normal(1, 1, 400), random.normal(0, 1, 900)
    points = curves.log_log_points(members, nonmembers, num_points=40)
    found = points.false_positive_rates
    assert found[0] == 1 / 900
    assert found[-1] == 1.0
    assert (np.diff(found) > 0.0).all()
    for rate, tpr in zip(found, points.true_positive_rates, strict=True):
        assert tpr == curves.tpr_at_fpr(members, nonmembers, rate)
    assert (points.tpr_lower <= points.true_positive_rates).all()
    assert (points.true_positive_rates <= points.tpr_upper).all()
    tied = curves.log_log_points([1.0, 2.0], [1.0, 1.0, 1.0], num_points=5)
    assert tied.false_positive_rates.tolist() == [1.0]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("bad", [[], [math.nan], [math.inf], [[1.0]], ["a"], 1.0, [True], [None]])
def test_bad_scores_are_refused(function: object, bad: object) -> None:
    for pair in [(bad, [1.0, 2.0]), ([1.0, 2.0], bad)]:
        with pytest.raises(InvalidDataError):
            function(*pair)


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1, math.inf, None])
def test_bad_limits_are_refused(bad: object) -> None:
    with pytest.raises(InvalidParameterError, match="fpr"):
        curves.tpr_at_fpr([1.0], [0.0], bad)
    with pytest.raises(InvalidParameterError, match="significance"):
        areas.auc_interval([1.0], [0.0], bad)
    with pytest.raises(InvalidParameterError, match="num_points"):
        curves.log_log_points([1.0], [0.0], bad)
