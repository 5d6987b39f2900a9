"""Accounting of Poisson-subsampled Gaussians against integration, closed forms and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr

from sordino.accounting import dp
from sordino.accounting._sampled_gaussian import grid_laws, loss_range
from sordino.accounting.dp import (
    ADD_OR_REMOVE_ONE,
    NEIGHBORING_RELATIONS,
    REPLACE_ONE,
    SampledGaussian,
    compute_delta,
    compute_epsilon,
)

NOT_A_NUMBER = [math.nan, math.inf, -math.inf, "1", None, True]
COARSE = dp._COARSE


def event_of(
    noise_multiplier: float,
    sampling_probability: float,
    num_steps: int,
    relation: str = ADD_OR_REMOVE_ONE,
) -> SampledGaussian:
    return SampledGaussian(
        noise_multiplier=noise_multiplier,
        sampling_probability=sampling_probability,
        num_steps=num_steps,
        neighboring_relation=relation,
    )


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
    x, spacing = np.linspace(-14 * noise - 1, 14 * noise + 1, 400_001, retstep=True)
    if relation == REPLACE_ONE:
        contributions = [(1.0, -1.0), (-1.0, 1.0), (1.0, 0.3), (1.0, 0.0), (0.0, -1.0)]
    else:
        contributions = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.0, -1.0)]
    curve = dp._curve(event, dp._FINE)
    for scale in (0.1, 0.5, 2.0):
        epsilon = scale * math.log1p(q * math.expm1(1.0 / noise))
        found = [
            divergence(densities(event, a, x), densities(event, b, x), epsilon, spacing)
            for a, b in contributions
        ]
        claimed = curve.delta_upper(epsilon)
        assert max(found) <= claimed * (1 + 1e-6) + 1e-13
        assert claimed <= max(found) * (1 + 2e-3) + 3e-14


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
    curve = dp._curve(near, dp._FINE)
    for delta in (1e-3, 1e-5, 1e-8):
        truth = dp._curve(exact, dp._FINE).epsilon_upper(delta)
        assert curve.epsilon_lower(delta) <= truth * (1 + 1e-6)
        assert truth * (1 - 1e-6) <= curve.epsilon_upper(delta)
        assert curve.epsilon_upper(delta) <= truth * 1.01
        assert curve.epsilon_lower(delta) >= truth * 0.98
