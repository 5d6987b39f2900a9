"""The Edgeworth accountant against the closed form, the PLD, and where it must refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest

from helpers_accounting import event_of
from sordino.accounting import edgeworth as ew
from sordino.accounting.dp import (
    NEIGHBORING_RELATIONS,
    EpsilonReport,
    compute_epsilon,
)
from sordino.accounting.edgeworth import edgeworth_epsilon, interval_within
from sordino.core.errors import EdgeworthRefusedError, InvalidParameterError


@pytest.mark.parametrize("relation", NEIGHBORING_RELATIONS)
def test_agrees_with_the_pld(relation: str) -> None:
    """Many steps: a tight interval that meets the PLD's."""
    event = event_of(0.8, 0.01, 10_000, relation)
    report = compute_epsilon(event, 1e-5, with_edgeworth=True)
    assert report.epsilon_edgeworth is not None
    lower, upper = report.epsilon_edgeworth
    assert lower <= upper <= lower * 1.001
    assert report.epsilon_lower <= upper
    assert lower <= report.epsilon_upper


@pytest.mark.parametrize("steps", [1, 10, 100, 1000])
def test_error_bound_holds_where_the_expansion_is_poor(steps: int) -> None:
    """Few steps: the estimate may be far off; the interval still reaches the PLD's bounds."""
    event = event_of(0.8, 0.01, steps)
    lower, upper, _, error = ew.interval_without_check(event, 1e-5)
    report = compute_epsilon(event, 1e-5)
    assert lower <= report.epsilon_upper
    assert upper >= report.epsilon_lower
    assert error > 1e-5


def test_matches_the_gaussian_near_no_sampling() -> None:
    """q = 1 - 1e-9: the loss is almost normal, and epsilon is the closed form's."""
    exact = compute_epsilon(event_of(10.0, 1.0, 100), 1e-5)
    lower, upper, _ = edgeworth_epsilon(event_of(10.0, 1 - 1e-9, 100), 1e-5)
    assert exact.epsilon_lower <= upper <= lower * 1.0001 <= exact.epsilon_upper * 1.0002


def test_refuses_vacuous_intervals() -> None:
    """An error as large as delta says nothing; the report shows None."""
    event = event_of(0.8, 0.01, 10)
    with pytest.raises(EdgeworthRefusedError, match=r"may be off by 0\.\d+ in delta"):
        edgeworth_epsilon(event, 1e-5)
    assert compute_epsilon(event, 1e-5, with_edgeworth=True).epsilon_edgeworth is None


def test_refuses_what_contradicts_the_pld() -> None:
    """A report that it does not agree with (invented here) is not confirmed."""
    event = event_of(5.0, 0.5, 100)
    for epsilon in (1.0, 9.0):
        invented = EpsilonReport(
            delta=1e-5, epsilon_upper=epsilon, epsilon_lower=epsilon, epsilon_rdp=None
        )
        assert interval_within(event, invented) is None
        with pytest.raises(EdgeworthRefusedError, match="does not agree with the PLD"):
            ew._checked(event, invented)


def test_without_sampling_there_is_nothing_to_expand() -> None:
    event = event_of(1.0, 1.0, 10)
    with pytest.raises(InvalidParameterError, match="sampling_probability must be below 1"):
        edgeworth_epsilon(event, 1e-5)
    assert compute_epsilon(event, 1e-5, with_edgeworth=True).epsilon_edgeworth is None


def test_cumulants_of_a_known_law() -> None:
    """Standard exponential minus 1: cumulants (k - 1)!."""
    x = np.linspace(0.0, 60.0, 600_001)
    weights = np.exp(-x)
    weights /= weights.sum()
    found = ew._cumulants(weights, x - 1.0, 6)
    assert found[2:] == pytest.approx([math.factorial(k - 1) for k in range(2, 7)], rel=1e-3)


def test_first_orders_are_the_textbook_ones() -> None:
    """k3 He_3 / (6 sqrt n) + (k4 He_4 / 24 + k3^2 He_6 / 72) / n."""
    found = ew._coefficients([0.0, 0.0, 1.0, 2.0, 5.0], 2, 100)
    assert found == pytest.approx([1, 0, 0, 2 / 60, 5 / 2400, 0, 4 / 7200])


def test_grid_too_coarse_is_refused() -> None:
    """A loss whose density is too steep for the grid gives an infinite error, not a guess."""
    _, upper, _, error = ew.interval_without_check(event_of(0.3, 0.001, 1000), 1e-5)
    assert upper == math.inf
    assert error == math.inf
