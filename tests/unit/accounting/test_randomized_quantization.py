"""Randomized quantization: its law by enumeration, the supremum, rounding up, bad arguments."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from mpmath import mp, mpf

from sordino.accounting.randomized_quantization import (
    RandomizedQuantizationEvent,
    breakpoints,
    probabilities,
    renyi_divergence,
)
from sordino.core.errors import InvalidParameterError

SETTINGS = [  # clip, margin, levels, keep probability
    (1.0, 1.0, 2, 0.5),
    (1.0, 1.0, 3, 0.5),
    (1.0, 0.25, 5, 0.3),
    (0.75, 2.0, 6, 0.9),
    (2.0, 1e-3, 7, 0.0625),
    (1.0, 40.0, 8, 0.42),
    (3.0, 0.5, 9, 0.0),
]
ORDERS = [1.0001, 2.0, 64.0, 1000.0, math.inf]


def exact_levels(clip: float, margin: float, num_levels: int) -> list[Fraction]:
    reach = Fraction(clip) + Fraction(margin)
    return [Fraction(2 * i, num_levels - 1) * reach - reach for i in range(num_levels)]


def exact_law(value: Fraction, levels: list[Fraction], keep: float) -> list[Fraction]:
    """Sums over all subsets of kept inner levels: no closed form."""
    law = [Fraction(0)] * len(levels)
    q = Fraction(keep)
    for choice in product((False, True), repeat=len(levels) - 2):
        chance = Fraction(1)
        for kept in choice:
            chance *= q if kept else 1 - q
        kept = [0, *(i for i, is_kept in enumerate(choice, 1) if is_kept), len(levels) - 1]
        low = max(i for i in kept[:-1] if levels[i] <= value)
        high = min(i for i in kept if i > low)
        weight = (value - levels[low]) / (levels[high] - levels[low])
        law[high] += chance * weight
        law[low] += chance * (1 - weight)
    return law


def exact_divergence(order: float, first: list[Fraction], second: list[Fraction]) -> mpf:
    """With 60 digits; infinity where the supports differ."""
    with mp.workdps(60):
        pairs = [
            (mpf(a.numerator) / a.denominator, mpf(b.numerator) / b.denominator)
            for a, b in zip(first, second, strict=True)
            if a
        ]
        if not all(b for _, b in pairs):
            return mp.inf
        if math.isinf(order):
            return max(mp.log(a / b) for a, b in pairs)
        moment = sum(a ** mpf(order) * b ** (1 - mpf(order)) for a, b in pairs)
        return mp.log(moment) / (mpf(order) - 1)


def exact_breakpoints(clip: float, levels: list[Fraction]) -> list[Fraction]:
    ends = [-Fraction(clip), Fraction(clip)]
    return sorted({*ends, *(level for level in levels if abs(level) < ends[1])})


@pytest.mark.parametrize(("clip", "margin", "num_levels", "keep"), SETTINGS)
def test_the_closed_law_is_the_enumerated_one(
    clip: float, margin: float, num_levels: int, keep: float
) -> None:
    """At breakpoints and between them; it sums to 1, is unbiased and symmetric."""
    levels = exact_levels(clip, margin, num_levels)
    for value in [*breakpoints(clip, margin, num_levels), 0.0, 0.37 * clip, -0.999 * clip]:
        law = probabilities(value, clip, margin, num_levels, keep)
        expected = [float(p) for p in exact_law(Fraction(value), levels, keep)]
        assert law.dtype == np.float64
        assert law == pytest.approx(expected, rel=1e-12, abs=0.0)
        assert law.sum() == pytest.approx(1.0, abs=1e-15 * num_levels)
        mean = math.fsum(p * float(b) for p, b in zip(law, levels, strict=True))
        assert mean == pytest.approx(value, abs=1e-14 * (clip + margin))
        mirrored = probabilities(-value, clip, margin, num_levels, keep)
        assert mirrored[::-1] == pytest.approx(law, rel=1e-12)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("clip", "margin", "num_levels", "keep"), SETTINGS)
def test_the_divergence_is_the_supremum_and_rounded_up(
    clip: float, margin: float, num_levels: int, keep: float, order: float
) -> None:
    """Against all pairs of breakpoints and of other values, by enumeration with 60 digits."""
    levels = exact_levels(clip, margin, num_levels)
    points = exact_breakpoints(clip, levels)
    laws = [exact_law(value, levels, keep) for value in points]
    exact = max(exact_divergence(order, a, b) for a in laws for b in laws)
    found = renyi_divergence(order, clip, margin, num_levels, keep)
    slack = 1e-12 if math.isinf(order) else 1e-12 * (1.0 + 1.0 / (order - 1.0))
    assert exact <= found <= exact * (1 + mpf("1e-12")) + slack
    rng = np.random.default_rng([num_levels, 1])
    others = [exact_law(Fraction(x), levels, keep) for x in rng.uniform(-clip, clip, 3)]
    for a, b in product(others, [*others, *laws]):
        assert exact_divergence(order, a, b) <= found
        assert exact_divergence(order, b, a) <= found


@pytest.mark.parametrize(
    ("order", "setting", "factor"),
    [(math.inf, (1.0, 6.724, 10, 0.148), 1.04), (2.0, (1.0, 1.924, 10, 0.744), 1.001)],
)
def test_the_ends_alone_understate_it(
    order: float, setting: tuple[float, float, int, float], factor: float
) -> None:
    """Here a pair inside is told apart better than -c and c: all breakpoints are needed."""
    clip, margin, num_levels, keep = setting
    levels = exact_levels(clip, margin, num_levels)
    ends = [exact_law(Fraction(x), levels, keep) for x in (-clip, clip)]
    at_the_ends = max(exact_divergence(order, a, b) for a, b in (ends, ends[::-1]))
    assert renyi_divergence(order, clip, margin, num_levels, keep) > factor * at_the_ends


@pytest.mark.parametrize(("clip", "margin"), [(1.0, 1.0), (0.3, 7.0), (5.0, 1e-6)])
@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
def test_two_levels_have_a_closed_form(clip: float, margin: float, keep: float) -> None:
    """ln(1 + 2c/D), whatever the keep probability: there is no inner level."""
    with mp.workdps(40):
        exact = mp.log(1 + 2 * mpf(clip) / mpf(margin))
        found = renyi_divergence(math.inf, clip, margin, 2, keep)
        assert exact <= found <= exact + 1e-12


@pytest.mark.parametrize("num_levels", [3, 4, 16, 255])
def test_the_limits_of_the_keep_probability(num_levels: int) -> None:
    """Nothing kept is two levels; everything kept is stochastic rounding, which hides nothing."""
    for order in (1.5, 8.0, math.inf):
        two = renyi_divergence(order, 1.0, 2.0, 2, 0.0)
        assert renyi_divergence(order, 1.0, 2.0, num_levels, 0.0) == pytest.approx(two, abs=1e-11)
        assert renyi_divergence(order, 1.0, 2.0, num_levels, 1e-9) == pytest.approx(two, abs=1e-5)
        assert renyi_divergence(order, 1.0, 0.1, num_levels, 1.0) == math.inf
    law = probabilities(0.3, 1.0, 0.5, num_levels, 1.0)
    assert np.count_nonzero(law) == 2


def test_keeping_more_spends_more_and_margins_protect() -> None:
    """Monotone in q and D where the grid is the same; and in the order."""
    by_keep = [renyi_divergence(4.0, 1.0, 1.0, 16, q) for q in (0.0, 0.1, 0.3, 0.6, 0.9, 1.0)]
    assert by_keep == sorted(by_keep)
    by_order = [renyi_divergence(a, 1.0, 1.0, 16, 0.3) for a in ORDERS]
    assert by_order == sorted(by_order)
    by_margin = [renyi_divergence(4.0, 1.0, d, 2, 0.3) for d in (0.1, 1.0, 10.0, 100.0)]
    assert by_margin == sorted(by_margin, reverse=True)


def test_tiny_probabilities_are_no_zeros() -> None:
    """Both laws underflow float64 here, and their ratio is finite and large."""
    found = renyi_divergence(math.inf, 1.0, 1.0, 200, 0.9999)
    assert math.isfinite(found)
    assert found > 99 * -math.log(0.0001) > 709
    # by the same route with exact numbers, between -c and c at the first level
    levels = exact_levels(1.0, 1.0, 12)
    laws = [exact_law(x, levels, 0.9999) for x in exact_breakpoints(1.0, levels)]
    exact = max(exact_divergence(math.inf, a, b) for a, b in combinations(laws, 2))
    assert renyi_divergence(math.inf, 1.0, 1.0, 12, 0.9999) == pytest.approx(
        float(exact), rel=1e-12
    )


def test_an_event_counts_every_coordinate() -> None:
    """No way around the number of coordinates; releases add up likewise."""
    one = renyi_divergence(3.0, 1.0, 1.0, 16, 0.3)
    event = RandomizedQuantizationEvent(
        clip=1.0,
        margin=1.0,
        num_levels=16,
        keep_probability=0.3,
        num_coordinates=50,
        num_releases=4,
    )
    assert event.renyi_divergence(3.0) == pytest.approx(200 * one, rel=1e-14)
    assert event.renyi_divergence(3.0) >= 200 * one
    with pytest.raises(TypeError, match="num_coordinates"):
        RandomizedQuantizationEvent(clip=1.0, margin=1.0, num_levels=16, keep_probability=0.3)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("clip", [0.0, -1.0, math.nan, math.inf, 1e200]),
        ("margin", [0.0, -1.0, math.nan, math.inf]),
        ("num_levels", [1, 0, 2.5, 5000, math.nan, True]),
        ("keep_probability", [-0.1, 1.1, math.nan, math.inf, 1e-200]),
        ("num_coordinates", [0, -1, 1.5]),
        ("num_releases", [0, 2.5, math.nan]),
    ],
)
def test_bad_arguments_are_refused(name: str, bad: list[float]) -> None:
    good = {"clip": 1.0, "margin": 1.0, "num_levels": 4, "keep_probability": 0.5}
    for value in bad:
        event = good | {"num_coordinates": 1, name: value}
        with pytest.raises(InvalidParameterError, match=name):
            RandomizedQuantizationEvent(**event)
        if name in good:
            with pytest.raises(InvalidParameterError, match=name):
                renyi_divergence(2.0, **(good | {name: value}))


@pytest.mark.parametrize("order", [1.0, 0.5, -math.inf, math.nan, "2"])
def test_bad_orders_are_refused(order: float) -> None:
    with pytest.raises(InvalidParameterError, match="order"):
        renyi_divergence(order, 1.0, 1.0, 4, 0.5)


@pytest.mark.parametrize("value", [1.0000001, -2.0, math.nan, math.inf])
def test_values_beyond_the_clip_have_no_law(value: float) -> None:
    with pytest.raises(InvalidParameterError, match="value"):
        probabilities(value, 1.0, 1.0, 4, 0.5)
