"""Composition of different releases: against the single accountants, monotone, fail closed."""

from __future__ import annotations

import math

import pytest

from helpers_accounting import event_of
from sordino.accounting.composition import (
    compose_epsilon,
    gram_noise_multiplier,
    merge_gaussians,
)
from sordino.accounting.dp import REPLACE_ONE, compute_epsilon
from sordino.accounting.randomized_quantization import (
    RandomizedQuantizationEvent,
    renyi_divergence,
)
from sordino.core.errors import InvalidParameterError

DELTA = 1e-5


def quantized(num_coordinates: int, **changes: float) -> RandomizedQuantizationEvent:
    settings = {"clip": 1.0, "margin": 20.0, "num_levels": 8, "keep_probability": 0.2}
    return RandomizedQuantizationEvent(num_coordinates=num_coordinates, **(settings | changes))


def test_gaussians_alone_are_accounted_for_by_their_losses() -> None:
    """One, or several without subsampling, give the epsilon of one; none give 0."""
    one = event_of(1.5, 1.0, 1)
    assert compose_epsilon([one], DELTA) == compute_epsilon(one, DELTA).epsilon_upper
    four = [event_of(3.0, 1.0, 3), event_of(3.0, 1.0, 1)]
    assert merge_gaussians(four)[0].noise_multiplier == pytest.approx(1.5, rel=1e-12)
    assert merge_gaussians(four)[0].noise_multiplier <= 1.5
    assert compose_epsilon(four, DELTA) == pytest.approx(compose_epsilon([one], DELTA), rel=1e-3)
    sampled = event_of(1.0, 0.1, 10)
    assert compose_epsilon([sampled], DELTA) == compute_epsilon(sampled, DELTA).epsilon_upper
    assert compose_epsilon([], DELTA) == compose_epsilon([], 0.0) == 0.0


def test_training_and_grams_compose() -> None:
    """More than either, at most their sum at delta each."""
    training, grams = event_of(2.0, 0.05, 20), event_of(20.0, 1.0, 7)
    both = compose_epsilon([training, grams], DELTA)
    alone = [compose_epsilon([event], DELTA / 2) for event in (training, grams)]
    assert compute_epsilon(training, DELTA).epsilon_upper < both < 1.2 * sum(alone)


def test_quantization_has_a_pure_and_an_approximate_epsilon() -> None:
    """Pure: coordinates times ln of the largest ratio. With delta, less for many coordinates."""
    event = quantized(1000)
    pure = 1000 * renyi_divergence(math.inf, 1.0, 20.0, 8, 0.2)
    assert pure <= compose_epsilon([event], 0.0) <= 1.001 * pure
    assert compose_epsilon([event], DELTA) < 0.5 * pure
    # the basic conversion at one order is valid, so the best of all is below it
    order = 4.0
    basic = 1000 * renyi_divergence(order, 1.0, 20.0, 8, 0.2) + math.log(1 / DELTA) / (order - 1)
    assert compose_epsilon([event], DELTA) < basic
    few = quantized(1)
    assert compose_epsilon([few], 1e-12) == compose_epsilon([few], 0.0)


def test_order_and_grouping_do_not_matter() -> None:
    """Releases one by one spend what they spend in one event."""
    apart = [quantized(10) for _ in range(5)]
    assert compose_epsilon(apart, DELTA) == compose_epsilon([quantized(50)], DELTA)
    assert compose_epsilon(apart, DELTA) == compose_epsilon([quantized(10, num_releases=5)], DELTA)
    mixed = [quantized(10), quantized(3, margin=5.0), event_of(4.0, 1.0, 2, REPLACE_ONE)]
    assert compose_epsilon(mixed, DELTA) == compose_epsilon(mixed[::-1], DELTA)
    assert compose_epsilon(mixed, DELTA) > compose_epsilon(mixed[1:], DELTA)


def test_what_hides_nothing_spends_infinity() -> None:
    """Also beside others; and a Gaussian has no pure epsilon."""
    rounding = quantized(1, keep_probability=1.0, margin=0.5)
    gaussian = event_of(4.0, 1.0, 1, REPLACE_ONE)
    assert compose_epsilon([rounding], DELTA) == math.inf
    assert compose_epsilon([rounding, gaussian], DELTA) == math.inf
    assert compose_epsilon([gaussian], 0.0) == math.inf


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="neighboring relations"):
        compose_epsilon([quantized(1), event_of(4.0, 1.0, 1)], DELTA)
    with pytest.raises(InvalidParameterError, match="known kind"):
        compose_epsilon([quantized(1), {"noise_multiplier": 1.0}], DELTA)  # type: ignore[list-item]
    for delta in (math.nan, -1e-9, 1.0, math.inf):
        with pytest.raises(InvalidParameterError, match="delta"):
            compose_epsilon([quantized(1)], delta)


@pytest.mark.parametrize("num_grams", [1, 2, 7, 210])
@pytest.mark.parametrize("epsilon", [0.5, 4.0])
def test_gram_noise_keeps_the_target(epsilon: float, num_grams: int) -> None:
    """All matrices together stay within the target, and 1% less noise does not."""
    noise = gram_noise_multiplier(epsilon, DELTA, num_grams)
    assert compose_epsilon([event_of(noise, 1.0, num_grams)], DELTA) <= epsilon
    assert compose_epsilon([event_of(noise * 0.99, 1.0, num_grams)], DELTA) > epsilon


@pytest.mark.parametrize(
    ("epsilon", "delta", "num_grams"),
    [(0.0, 1e-5, 1), (math.nan, 1e-5, 1), (1.0, 0.0, 1), (1.0, math.nan, 1), (1.0, 1e-5, 0)],
)
def test_bad_targets_are_refused(epsilon: float, delta: float, num_grams: int) -> None:
    with pytest.raises(InvalidParameterError):
        gram_noise_multiplier(epsilon, delta, num_grams)
