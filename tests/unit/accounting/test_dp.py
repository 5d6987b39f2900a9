"""Accounting of Poisson-subsampled Gaussians against integration, closed forms and refusals."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri

from helpers_accounting import event_of
from sordino.accounting import dp
from sordino.accounting._privacy_curve import COARSE, privacy_curve
from sordino.accounting._sampled_gaussian import grid_laws, loss_range
from sordino.accounting.dp import (
    ADD_OR_REMOVE_ONE,
    NEIGHBORING_RELATIONS,
    REPLACE_ONE,
    SampledGaussian,
    calibrate_noise_multiplier,
    compute_delta,
    compute_epsilon,
    compute_tradeoff,
    require_small_delta,
)
from sordino.accounting.inference_risk import posterior_from_epsilon
from sordino.core.errors import InvalidParameterError, PrecisionError

NOT_A_NUMBER = [math.nan, math.inf, -math.inf, "1", None, True]
EVENT_FIELDS = ("noise_multiplier", "sampling_probability", "num_steps", "neighboring_relation")


def densities(event: SampledGaussian, contribution: float, x: np.ndarray) -> np.ndarray:
    """Returns the density of one release where the unit contributes this much when sampled."""
    s, q = event.noise_multiplier, event.sampling_probability
    kernel = lambda a: np.exp(-0.5 * ((x - a) / s) ** 2) / (s * math.sqrt(2 * math.pi))  # noqa: E731
    return (1 - q) * kernel(0.0) + q * kernel(contribution)


def divergence(p: np.ndarray, r: np.ndarray, epsilon: float, spacing: float) -> float:
    """Returns the hockey-stick divergence by plain summation."""
    return float(np.maximum(p - math.exp(epsilon) * r, 0.0).sum() * spacing)


@pytest.mark.parametrize("relation", NEIGHBORING_RELATIONS)
@pytest.mark.parametrize(("noise", "q"), [(0.5, 0.01), (1.0, 0.3), (4.0, 0.9), (20.0, 1e-3)])
def test_one_step_is_the_integrated_divergence(relation: str, noise: float, q: float) -> None:
    """One release: delta is the integral for every pair of contributions, worst pair attained."""
    event = event_of(noise, q, 1, relation)
    x, spacing = np.linspace(-14 * noise - 1, 14 * noise + 1, 100_001, retstep=True)
    if relation == REPLACE_ONE:
        contributions = [(1.0, -1.0), (-1.0, 1.0), (1.0, 0.3), (1.0, 0.0), (0.0, -1.0)]
    else:
        contributions = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.0, -1.0)]
    curve = privacy_curve(event, COARSE)
    for scale in (0.1, 0.5, 2.0):
        epsilon = scale * math.log1p(q * math.expm1(1.0 / noise))
        found = [
            divergence(densities(event, a, x), densities(event, b, x), epsilon, spacing)
            for a, b in contributions
        ]
        claimed = curve.delta_upper(epsilon)
        assert max(found) <= claimed * (1 + 1e-6) + 1e-13
        assert claimed <= max(found) * (1 + 4e-3) + 3e-14


@pytest.mark.parametrize("relation", NEIGHBORING_RELATIONS)
def test_grid_keeps_both_masses(relation: str) -> None:
    """The discretised pair is one: the masses of P and Q both sum to 1, in both directions."""
    event = event_of(0.8, 0.02, 1, relation)
    interval = (loss_range(event)[1] - loss_range(event)[0]) / 2000.0
    for law in grid_laws(event, interval):
        losses = (law.first + np.arange(law.masses.size)) * interval
        assert law.masses.min() >= 0.0
        assert law.masses.sum() + law.infinity_mass == pytest.approx(1.0, abs=1e-13)
        assert float(law.masses @ np.exp(-losses)) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("relation", "sensitivity"), [(ADD_OR_REMOVE_ONE, 1.0), (REPLACE_ONE, 2.0)]
)
@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (4.0, 100), (50.0, 100_000)])
def test_without_sampling_it_is_the_gaussian(
    relation: str, sensitivity: float, noise: float, steps: int
) -> None:
    """At q = 1 delta is the closed form, with the factor 2 under REPLACE_ONE."""
    mu = sensitivity * math.sqrt(steps) / noise
    event = event_of(noise, 1.0, steps, relation)
    report = compute_epsilon(event, 1e-5)
    assert report.epsilon_lower <= report.epsilon_upper <= report.epsilon_lower * 1.002
    for epsilon, compare in ((report.epsilon_upper, 1e-5), (report.epsilon_lower, 1e-5)):
        exact = ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon) * ndtr(-mu / 2 - epsilon / mu)
        assert (
            exact <= compare * (1 + 1e-9) if epsilon == report.epsilon_upper else exact >= compare
        )
        assert compute_delta(event, epsilon) == pytest.approx(exact, rel=2e-3)
    assert report.epsilon_rdp is not None
    assert report.epsilon_rdp >= report.epsilon_upper


@pytest.mark.parametrize("relation", NEIGHBORING_RELATIONS)
@pytest.mark.parametrize(("noise", "steps"), [(2.0, 10), (30.0, 20_000)])
def test_discretised_composition_brackets_the_closed_form(
    relation: str, noise: float, steps: int
) -> None:
    """With q = 1 - 1e-12 nothing is hidden in practice: the grid must bracket the Gaussian."""
    near, exact = event_of(noise, 1 - 1e-12, steps, relation), event_of(noise, 1.0, steps, relation)
    curve = privacy_curve(near, COARSE)
    for delta in (1e-3, 1e-5, 1e-8):
        truth = privacy_curve(exact, COARSE).epsilon_upper(delta)
        assert truth * 0.93 <= curve.epsilon_lower(delta) <= truth * (1 + 1e-6)
        assert truth * (1 - 1e-6) <= curve.epsilon_upper(delta) <= truth * 1.01


@pytest.mark.parametrize("name", ["noise_multiplier", "sampling_probability", "num_steps"])
@pytest.mark.parametrize("bad", [*NOT_A_NUMBER, 0, -1, 1e12])
def test_refuses_bad_numbers(name: str, bad: float) -> None:
    """NaN must not become epsilon 0; zero, negative and untested ranges raise too."""
    arguments = dict(zip(EVENT_FIELDS, (1.0, 0.1, 10, ADD_OR_REMOVE_ONE), strict=True))
    with pytest.raises(InvalidParameterError, match=name):
        SampledGaussian(**(arguments | {name: bad}))


@pytest.mark.parametrize("bad", ["REPLACE_SPECIAL", "add_or_remove_one", "", None])
def test_refuses_unknown_relation(bad: str) -> None:
    with pytest.raises(InvalidParameterError, match="neighboring_relation must be one of"):
        event_of(1.0, 0.1, 10, bad)


@pytest.mark.parametrize("bad", [*NOT_A_NUMBER, 0.0, -1e-9, 1.5])
def test_refuses_bad_delta(bad: float) -> None:
    event = event_of(1.0, 1.0, 10)
    with pytest.raises(InvalidParameterError, match="delta"):
        compute_epsilon(event, bad)
    with pytest.raises(InvalidParameterError, match="delta"):
        calibrate(target_epsilon=1.0, delta=bad)
    with pytest.raises(InvalidParameterError, match="delta"):
        require_small_delta(bad, 10, is_large_allowed=True)


@pytest.mark.parametrize("bad", [*NOT_A_NUMBER, -1e-9])
def test_refuses_bad_epsilon(bad: float) -> None:
    with pytest.raises(InvalidParameterError, match="epsilon"):
        compute_delta(event_of(1.0, 1.0, 10), bad)
    with pytest.raises(InvalidParameterError, match="target_epsilon"):
        calibrate(target_epsilon=bad)


def test_delta_must_be_small_for_the_units() -> None:
    """Below 1 / (10 N), strictly, unless waived."""
    assert require_small_delta(0.99e-4, 1000, is_large_allowed=False) == 0.99e-4
    with pytest.raises(InvalidParameterError, match="--allow-large-delta"):
        require_small_delta(1e-4, 1000, is_large_allowed=False)
    assert require_small_delta(1e-2, 1000, is_large_allowed=True) == 1e-2


def test_delta_never_becomes_zero() -> None:
    """An underflow is not pure DP, with and without sampling."""
    assert compute_delta(event_of(1.0, 1.0, 1), 1e6) > 0.0
    assert compute_delta(event_of(5.0, 0.001, 10), 1e3) >= 10 * 1e-14


def test_refuses_what_rounding_hides_and_infinite_epsilon() -> None:
    """A delta below the arithmetic's reach raises instead of giving a number."""
    with pytest.raises(PrecisionError, match=r"delta 1e-13 is too small .* at least"):
        compute_epsilon(event_of(1.0, 0.001, 1000), 1e-13)


@pytest.mark.parametrize("relation", NEIGHBORING_RELATIONS)
@pytest.mark.parametrize(
    ("noise", "q", "steps"),
    [(0.3, 0.5, 100_000), (50.0, 1e-4, 100_000), (0.1, 1e-8, 1), (1e3, 0.9, 7)],
)
def test_corners_stay_bounded(relation: str, noise: float, q: float, steps: int) -> None:
    """Where other tools raise, answer below zero or use 75 GB: a few million points, in order."""
    curve = privacy_curve(event_of(noise, q, steps, relation), COARSE)
    assert curve.pld._pmf_remove.size < 4e6
    upper, lower = curve.epsilon_upper(1e-6), curve.epsilon_lower(1e-6)
    assert 0.0 <= lower <= upper < math.inf


log_noise, log_q = st.floats(math.log(0.3), math.log(50.0)), st.floats(math.log(1e-4), -1e-3)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(noise=log_noise, q=log_q, steps=st.integers(1, 20_000), which=st.integers(0, 3))
def test_monotone(noise: float, q: float, steps: int, which: int) -> None:
    """More steps, more sampling, less noise, or REPLACE_ONE: never a smaller epsilon."""
    first = (math.exp(noise), math.exp(q), steps, ADD_OR_REMOVE_ONE)
    second = [
        (first[0] * 0.9, *first[1:]),
        (first[0], min(first[1] * 1.1, 1.0), *first[2:]),
        (*first[:2], math.ceil(steps * 1.2), first[3]),
        (*first[:3], REPLACE_ONE),
    ][which]
    small, large = (privacy_curve(event_of(*values), COARSE) for values in (first, second))
    for delta in (1e-2, 1e-6):
        assert 0.0 <= small.epsilon_lower(delta) <= large.epsilon_upper(delta)
        assert small.epsilon_upper(delta) <= large.epsilon_upper(delta) * 1.001 + 1e-9
        assert small.epsilon_lower(delta) <= small.epsilon_upper(delta)


@pytest.mark.parametrize("relation", NEIGHBORING_RELATIONS)
def test_report_is_consistent(relation: str) -> None:
    """lower <= upper <= RDP here; 4 digits; delta at the upper end is within delta."""
    event = event_of(0.8, 0.01, 1000, relation)
    report = compute_epsilon(event, 1e-5)
    assert report.epsilon_rdp is not None
    assert report.epsilon_lower <= report.epsilon_upper <= report.epsilon_rdp
    assert report.epsilon_lower > 0.99 * report.epsilon_upper
    assert float(f"{report.epsilon_upper:.4g}") == report.epsilon_upper
    assert compute_delta(event, report.epsilon_upper) <= 1e-5
    assert report.epsilon_edgeworth is None
    assert astuple(report)[0] == 1e-5


@pytest.mark.parametrize(("noise", "q"), [(0.8, 0.01), (2.0, 0.3)])
def test_renyi_matches_the_library(noise: float, q: float) -> None:
    """Whole orders, where the library's sum is exact."""
    orders = np.array([2.0, 5.0, 16.0, 64.0])
    library = RdpAccountant(orders)
    library.compose(PoissonSampledDpEvent(q, GaussianDpEvent(noise)))
    ours = dp.renyi_divergences(event_of(noise, q, 1), orders)
    assert ours == pytest.approx(library._rdp, rel=1e-7)


def test_the_library_answers_zero_to_nan() -> None:
    """The defect behind the checks; if this fails, the library has changed."""
    accountant = RdpAccountant()
    accountant.compose(PoissonSampledDpEvent(0.1, GaussianDpEvent(math.nan)))
    assert accountant.get_epsilon(1e-5) == 0.0


def test_renyi_of_replacement_is_larger() -> None:
    """REPLACE_ONE: above ADD_OR_REMOVE_ONE, and 4 times it for q = 1."""
    orders = np.array([1.5, 8.0])
    pair = [dp.renyi_divergences(event_of(1.0, 0.1, 1, r), orders) for r in NEIGHBORING_RELATIONS]
    assert np.all(pair[1] > pair[0])
    full = [dp.renyi_divergences(event_of(1.0, 1.0, 1, r), orders) for r in NEIGHBORING_RELATIONS]
    assert full[1] == pytest.approx(4.0 * full[0])


def test_contradicting_accountants_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp, "_renyi_epsilon", lambda *_: 0.001)
    with pytest.raises(PrecisionError, match="below the proved lower bound"):
        compute_epsilon(event_of(1.0, 1.0, 1), 1e-5)


def calibrate(**changes: object) -> float:
    arguments = {
        "target_epsilon": 2.0,
        "delta": 1e-5,
        "sampling_probability": 1.0,
        "num_steps": 10,
        "neighboring_relation": ADD_OR_REMOVE_ONE,
    }
    return calibrate_noise_multiplier(**(arguments | changes))


@pytest.mark.parametrize("relation", NEIGHBORING_RELATIONS)
@pytest.mark.parametrize("q", [1.0, 0.02])
def test_calibration_keeps_the_target_tightly(
    relation: str, q: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never above the target; 0.3% less noise is."""
    monkeypatch.setattr(dp, "FINE", COARSE)
    changes = {"sampling_probability": q, "neighboring_relation": relation}
    noise = calibrate(**changes)
    assert compute_epsilon(event_of(noise, q, 10, relation), 1e-5).epsilon_upper <= 2.0
    assert compute_epsilon(event_of(noise * 0.997, q, 10, relation), 1e-5).epsilon_upper > 2.0


def test_calibration_at_its_limits() -> None:
    """A loose target gives the smallest allowed noise; an unreachable one raises."""
    assert calibrate(target_epsilon=1e6) == 0.1
    with pytest.raises(InvalidParameterError, match="needs a noise multiplier above 1000"):
        calibrate(target_epsilon=1e-6)


def test_tradeoff_without_sampling_is_the_gaussian() -> None:
    """mu-GDP: success Phi(mu / 2) at prior 1/2, TPR Phi(mu + Phi^-1(FPR))."""
    bound = compute_tradeoff(event_of(2.0, 1.0, 4))  # mu = 1
    assert bound.success(0.5) == pytest.approx(ndtr(0.5), rel=1e-6)
    assert bound.tpr_at_fpr(0.01) == pytest.approx(ndtr(1.0 + ndtri(0.01)), rel=1e-3)
    assert bound.tpr_at_fpr(0.01) >= ndtr(1.0 + ndtri(0.01))
    assert bound.tpr_at_fpr(1.0) == 1.0
    assert bound.success(0.0) == bound.success(1.0) == 1.0
    assert 0.9 <= bound.success(0.1) == pytest.approx(bound.success(0.9))


def test_tradeoff_is_tighter_than_one_epsilon() -> None:
    """The curve beats posterior_from_epsilon at the same releases."""
    event = event_of(1.0, 0.01, 100)
    bound = compute_tradeoff(event)
    epsilon = compute_epsilon(event, 1e-5).epsilon_upper
    assert 0.5 < bound.success(0.5) < posterior_from_epsilon(epsilon, 1e-5, 0.5)
    rates = [bound.tpr_at_fpr(fpr) for fpr in (0.0, 1e-3, 0.01, 0.5, 1.0)]
    assert rates == sorted(rates)
    for bad in (*NOT_A_NUMBER, -0.1, 1.1):
        with pytest.raises(InvalidParameterError):
            bound.success(bad)
        with pytest.raises(InvalidParameterError):
            bound.tpr_at_fpr(bad)
