"""Randomized quantization: which words give which level, what is refused, charges before draws."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers_streams import BrokenStream, ScriptedStream, seeded_stream
from sordino.core.errors import BudgetExceededError, EntropyError, InvalidParameterError
from sordino.ledger.releases import ReleaseLedger
from sordino.mechanisms import randomized_quantization
from sordino.mechanisms.randomized_quantization import (
    RandomizedQuantization,
    StochasticRounding,
    probabilities,
    renyi_divergence,
)

if TYPE_CHECKING:
    from pathlib import Path

    from sordino.core.secret_stream import SecretStream

KEEP, DROP = 0, 2**64 - 1  # words that decide any keep probability but 0 and 1


def make(stream: SecretStream | None = None, **changes: Any) -> RandomizedQuantization:
    settings = {
        "clip": 1.0,
        "margin": 1.0,
        "num_levels": 5,
        "keep_probability": 0.5,
        "num_coordinates": 1,
    }
    return RandomizedQuantization(stream or seeded_stream(0), **(settings | changes))


def share(fraction: Fraction) -> int:
    """Returns the word that a uniform number just below the fraction starts with."""
    return math.ceil(fraction * 2**64) - 1


@pytest.mark.parametrize(
    ("kept", "low", "high"),
    [
        ((), 0, 4),
        ((1,), 1, 4),
        ((2,), 2, 4),
        ((3,), 0, 3),
        ((1, 3), 1, 3),
        ((1, 2, 3), 2, 3),
    ],
)
@pytest.mark.parametrize("value", [0.0, 0.25, 0.9999])
def test_a_value_goes_to_a_kept_neighbour(
    kept: tuple[int, ...], low: int, high: int, value: float
) -> None:
    """Levels stand at -2, -1, 0, 1, 2; up exactly where the uniform number is below the weight."""
    keeps = [KEEP if level in kept else DROP for level in (1, 2, 3)]
    weight = (Fraction(value) + 2 - low) / (high - low)
    if weight > 0:
        below = make(ScriptedStream([*keeps, share(weight), 0])).release(np.array([value]))
        assert below.tolist() == [high]
    above = ScriptedStream([*keeps, share(weight) + 1, 2**64 - 1])
    assert make(above).release(np.array([value])).tolist() == [low]


def test_probabilities_below_two_to_the_minus_64_are_not_lost() -> None:
    """At -c the upper of two levels has probability 2**-71 or so: decided with further words."""
    margin = 2.0**-70
    weight = Fraction(margin) / (2 * (1 + Fraction(margin)))
    second = math.floor(weight * 2**128)
    for word, level in ((second - 1, 1), (second + 1, 0)):
        stream = ScriptedStream([0, word])
        found = make(stream, margin=margin, num_levels=2).release(np.array([-1.0]))
        assert found.tolist() == [level]
        assert stream.script == []
    assert make(ScriptedStream([1]), margin=margin, num_levels=2).release(np.array([-1.0])) == [0]


def test_a_value_beside_a_level_is_in_its_own_cell() -> None:
    """One rounding error away from a level, float64 places could put it on the other side."""
    stream = [DROP, KEEP, DROP, 2**63]
    assert make(ScriptedStream(stream)).release(np.array([0.0])).tolist() == [2]
    assert make(ScriptedStream(stream)).release(np.array([-(2.0**-60)])).tolist() == [2]
    only_upper = [DROP, KEEP, DROP, 2**64 - 1, 0]  # the weight of level 2 is 1 - 2**-61
    found = make(ScriptedStream(only_upper)).release(np.array([-(2.0**-60)])).tolist()
    assert found == [0]


@pytest.mark.parametrize("num_levels", [2, 3, 16, 256])
@pytest.mark.parametrize("keep_probability", [0.0, 2.0**-12, 0.3, 1.0])
def test_levels_and_shapes(num_levels: int, keep_probability: float) -> None:
    """Blocks join; the mean of decoded draws is the value; impossible levels do not come."""
    values = np.linspace(-1.0, 1.0, 9001)
    mechanism = make(num_levels=num_levels, keep_probability=keep_probability, num_coordinates=9001)
    levels = mechanism.release(values)
    assert levels.dtype == np.int16
    assert levels.shape == (9001,)
    assert mechanism.levels[[0, -1]].tolist() == [-2.0, 2.0]
    # a mean of 9001 independent errors of at most 4 each; Hoeffding: 2 exp(-9001 t**2 / 8) < 1e-12
    assert abs((mechanism.decode(levels) - values).mean()) < 0.16
    for place in (0, 4500, 9000):
        law = probabilities(float(values[place]), 1.0, 1.0, num_levels, keep_probability)
        assert law[levels[place]] > 0


def test_small_blocks_give_the_same_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every coordinate is drawn once, in its place."""
    monkeypatch.setattr(randomized_quantization, "_WORDS_AT_ONCE", 16)
    values = np.where(np.arange(100) % 2, 1.0, -1.0)
    mechanism = make(margin=1e-9, num_levels=4, keep_probability=1.0, num_coordinates=100)
    levels = mechanism.release(values)
    assert ((levels >= 2) == (values > 0)).all()
    assert make(num_coordinates=1).release(np.array([0.5], dtype=np.float32)).shape == (1,)


@pytest.mark.parametrize(
    "values",
    [
        [math.nan],
        [1.0000001],
        [-math.inf],
        [0.0, 0.0],
        [[0.0]],
        [],
        0.0,
    ],
)
def test_bad_values_are_refused(values: Any) -> None:
    """Out of range is no rounding matter: it would break the claim."""
    with pytest.raises(InvalidParameterError, match="value"):
        make().release(np.array(values, dtype=np.float64))
    with pytest.raises(InvalidParameterError, match="floats"):
        make().release(np.array([0]))


@pytest.mark.parametrize(
    "change",
    [
        {"clip": math.nan},
        {"margin": 0.0},
        {"num_levels": 1},
        {"keep_probability": 2.0**-13},
        {"keep_probability": math.nan},
        {"num_coordinates": 0},
    ],
)
def test_bad_parameters_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InvalidParameterError, match=next(iter(change))):
        make(**change)


def test_without_entropy_nothing_is_released() -> None:
    with pytest.raises(EntropyError):
        make(BrokenStream()).release(np.array([0.0]))
    with pytest.raises(EntropyError):
        StochasticRounding(BrokenStream(), clip=1.0, num_levels=4).release(np.array([0.0]))


def test_charged_before_anything_is_drawn(tmp_path: Path) -> None:
    """A draw that fails is paid for; a release that does not fit draws nothing."""
    budget = {"delta": 0.0, "neighboring_relation": "REPLACE_ONE", "privacy_unit": "device"}
    one = 3 * renyi_divergence(math.inf, 1.0, 1.0, 5, 0.5)
    ledger = ReleaseLedger.open(tmp_path / "ledger.jsonl", target_epsilon=2.5 * one, **budget)
    values = np.zeros(3)
    with pytest.raises(EntropyError):
        make(BrokenStream(), num_coordinates=3, ledger=ledger).release(values)
    assert ledger.epsilon_spent == pytest.approx(one, rel=1e-3)
    with pytest.raises(InvalidParameterError):  # a bad value is not charged for
        make(num_coordinates=3, ledger=ledger).release(values + 2.0)
    make(num_coordinates=3, ledger=ledger).release(values)
    with pytest.raises(BudgetExceededError):
        make(BrokenStream(), num_coordinates=3, ledger=ledger).release(values)
    assert ledger.epsilon_spent == pytest.approx(2 * one, rel=1e-3)


def test_the_description_is_public_and_complete() -> None:
    described = make(num_coordinates=7).describe()
    assert described["num_coordinates"] == 7
    assert described["total_variation_per_draw"] == 0.0
    assert described["name"] == "randomized-quantization"


@pytest.mark.parametrize("num_levels", [2, 3, 17])
def test_stochastic_rounding_hides_nothing_and_says_so(num_levels: int) -> None:
    """The ends are never confused, and every order says infinity."""
    rounding = StochasticRounding(seeded_stream(1), clip=0.3, num_levels=num_levels)
    assert (rounding.release(np.full(1000, -0.3)) == 0).all()
    assert (rounding.release(np.full(1000, 0.3)) == num_levels - 1).all()
    inside = rounding.release(np.full(1000, 0.1))
    assert len(set(inside.tolist())) == 2
    assert rounding.renyi_divergence(1.01) == rounding.renyi_divergence(math.inf) == math.inf
    for order in (1.0, math.nan):
        with pytest.raises(InvalidParameterError, match="order"):
            rounding.renyi_divergence(order)
    for bad in ({"clip": 0.0}, {"clip": math.nan}, {"num_levels": 1}):
        with pytest.raises(InvalidParameterError):
            StochasticRounding(seeded_stream(1), **({"clip": 1.0, "num_levels": num_levels} | bad))
