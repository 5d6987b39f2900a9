"""Noise that differs from normal noise: what that adds to delta, and the noise it takes."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers_accounting import event_of
from sordino.accounting.dp import (
    NEIGHBORING_RELATIONS,
    calibrate_noise_multiplier,
    compute_epsilon,
)
from sordino.accounting.nearly_normal import (
    NearlyNormalNoise,
    calibrate_nearly_normal_noise,
    delta_with_distance,
)
from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Callable

TARGET = {
    "target_epsilon": 4.0,
    "delta": 1e-6,
    "sampling_probability": 1.0,
    "num_steps": 100,
    "neighboring_relation": "ADD_OR_REMOVE_ONE",
}


def delta_of(epsilon: float, delta: float, num_steps: int, distance: float) -> float:
    """Returns delta with the distance, in one line."""
    return delta_with_distance(
        epsilon=epsilon, delta_of_normal_noise=delta, num_steps=num_steps, distance=distance
    )


def plan(distance_upper: Callable[[float], float], **changes: Any) -> NearlyNormalNoise:
    """Returns the noise for a target that is accounted in closed form."""
    return calibrate_nearly_normal_noise(**TARGET | changes, distance_upper=distance_upper)


@pytest.mark.parametrize("name", ["distance", "epsilon", "delta", "num_steps"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1])
def test_what_is_no_bound_is_refused(name: str, bad: float) -> None:
    """Not-a-number must not turn into a small delta."""
    given = {"epsilon": 1.0, "delta": 1e-6, "num_steps": 10, "distance": 1e-9} | {name: bad}
    with pytest.raises(InvalidParameterError):
        delta_of(**given)


def test_delta_with_distance_is_rounded_up() -> None:
    """Without a distance nothing is added; a claim beyond the range of doubles says nothing."""
    assert delta_of(3.0, 1e-6, 10, 0.0) == 1e-6
    exact = 1e-6 + 10 * (1 + math.exp(3.0)) * 1e-9
    assert exact < delta_of(3.0, 1e-6, 10, 1e-9) < exact * (1 + 1e-8)
    assert delta_of(1000.0, 1e-6, 1, 1e-300) == 1.0
    assert delta_of(20.0, 1e-6, 10**6, 0.01) == 1.0


def test_delta_with_distance_bounds_composed_laws() -> None:
    """Three steps of noise moved by the distance stay below the bound, whatever the direction."""
    epsilon, distance = 0.7, 0.01
    upper, lower = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.3, 0.3])
    moves = [np.array(m) * distance for m in ([1, -1, 0], [-1, 0, 1], [0, 1, -1], [1, 0, -1])]

    def exact(p: np.ndarray, q: np.ndarray) -> float:
        p3, q3 = (np.einsum("i,j,k", a, a, a).ravel() for a in (p, q))
        return float(np.maximum(p3 - math.exp(epsilon) * q3, 0.0).sum())

    bound = delta_of(epsilon, exact(upper, lower), 3, distance)
    worst = max(exact(upper + a, lower + b) for a, b in product(moves, moves))
    assert exact(upper, lower) < worst <= bound


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.05, 12.0),
    st.floats(-9.0, -2.0),
    st.integers(1, 10**5),
    st.floats(-16.0, -2.0),
    st.sampled_from(NEIGHBORING_RELATIONS),
)
def test_the_target_is_kept_or_refused(
    epsilon: float, log_delta: float, num_steps: int, log_distance: float, relation: str
) -> None:
    """Delta with the distance and epsilon never exceed what was asked."""

    def distance_upper(noise_multiplier: float) -> float:
        return min(1.0, 10.0**log_distance / noise_multiplier**2)

    delta = 10.0**log_delta
    try:
        noise = plan(
            distance_upper,
            target_epsilon=epsilon,
            delta=delta,
            num_steps=num_steps,
            neighboring_relation=relation,
        )
    except InvalidParameterError:
        normal = math.sqrt(num_steps) * 2e-3 / epsilon  # near 1: the noise is not enough for that
        least = num_steps * (2.0 + 4.0 * normal) * distance_upper(1000.0)
        assert normal > 0.1 or least > 0.4 * delta  # noise could not mend it
        return
    event = event_of(noise.noise_multiplier, 1.0, num_steps, relation)
    report = compute_epsilon(event, noise.delta_of_normal_noise)
    assert report.epsilon_upper <= epsilon
    distance = distance_upper(noise.noise_multiplier)
    added = num_steps * (1 + math.exp(report.epsilon_upper)) * distance
    assert noise.delta_of_normal_noise + added <= delta


def test_a_small_distance_costs_a_thousandth_of_delta() -> None:
    """Then the noise is that of normal noise at the rest."""
    noise = plan(lambda _: 1e-14)
    rest = 1e-6 * (1 - 1e-3)
    assert noise.delta_of_normal_noise == rest
    assert noise.noise_multiplier == calibrate_noise_multiplier(**TARGET | {"delta": rest})


@pytest.mark.parametrize(("needed", "share"), [(0.03, 0.05), (0.4, 0.5)])
def test_a_larger_share_is_tried_before_more_noise(needed: float, share: float) -> None:
    """Epsilon stays at its target while some share of delta is enough."""
    noise = plan(lambda _: needed * 1e-6 / (100 * (1 + math.exp(4.0))))
    assert noise.delta_of_normal_noise == pytest.approx((1 - share) * 1e-6)
    event = event_of(noise.noise_multiplier, 1.0, 100)
    assert 3.95 < compute_epsilon(event, noise.delta_of_normal_noise).epsilon_upper <= 4.0


def test_more_noise_where_no_share_is_enough() -> None:
    """The least such noise: a percent less would miss delta."""
    distance = 1e-6 / (100 * (1 + math.exp(4.0)))  # of a constant size: only epsilon can fall
    noise = plan(lambda _: distance)
    assert noise.delta_of_normal_noise == 5e-7
    least = calibrate_noise_multiplier(**TARGET | {"delta": 5e-7})
    assert noise.noise_multiplier > 1.05 * least
    less = compute_epsilon(event_of(0.99 * noise.noise_multiplier, 1.0, 100), 5e-7)
    assert delta_of(less.epsilon_upper, 5e-7, 100, distance) > 1e-6


def test_a_grid_that_doubles_is_not_stepped_over() -> None:
    """Where more noise makes the distance larger, what is returned still keeps the target."""
    for edge in np.geomspace(4.0, 12.0, 9):
        distance_upper = lambda m, edge=edge: (1 + 3 * (m > edge)) * 1.5e-10 / (m / 4) ** 2  # noqa: E731
        noise = plan(distance_upper)
        report = compute_epsilon(
            event_of(noise.noise_multiplier, 1.0, 100), noise.delta_of_normal_noise
        )
        distance = distance_upper(noise.noise_multiplier)
        assert delta_of(report.epsilon_upper, report.delta, 100, distance) <= 1e-6
        assert report.epsilon_upper <= 4.0


def test_refused_with_what_was_required_found_and_can_be_done() -> None:
    """No noise makes a distance good that is too large at epsilon 0."""
    with pytest.raises(InvalidParameterError) as refused:
        plan(lambda _: 1e-6 / 300)
    message = str(refused.value)
    assert "delta stays at 1e-06. Over 100 steps delta is" in message
    assert "the largest, 1000. Use fewer steps" in message
    assert "smaller batch" in message
    assert "larger delta, or --noise continuous." in message
