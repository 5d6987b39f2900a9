"""The verdict: every branch of the written rule, and what must not be compared."""

from __future__ import annotations

import math

import pytest

from sordino.auditing.verdict import Claim, Measurement, Outcome, judge
from sordino.core.errors import InvalidParameterError

CLAIM = Claim("epsilon", 2.0, delta=1e-5)


def measured(lower: float, attack: str = "loss", delta: float = 1e-5) -> Measurement:
    return Measurement(attack, "epsilon", lower, significance=0.05, delta=delta)


@pytest.mark.parametrize(
    ("run", "control", "outcome", "words"),
    [
        ([2.1], [], Outcome.CONTRADICTED, "claimed epsilon <= 2, but loss proves epsilon >= 2.1"),
        ([2.1], [9.0], Outcome.CONTRADICTED, "at 95% confidence"),
        ([2.0], [2.1], Outcome.CONSISTENT, "the positive control was caught"),
        ([0.0], [2.0], Outcome.NO_POWER, "the best attack proves only 2"),
        ([0.0], [], Outcome.NO_POWER, "no positive control was run"),
    ],
)
def test_rule(run: list[float], control: list[float], outcome: Outcome, words: str) -> None:
    """Strictly above the claim, on the run and on the control."""
    verdict = judge(CLAIM, [measured(v) for v in run], [measured(v) for v in control])
    assert verdict.outcome is outcome
    assert words in verdict.line()


def test_several_attacks_share_the_false_alarms() -> None:
    """The strongest decides; the stated level is the sum."""
    verdict = judge(
        CLAIM,
        [measured(0.3), measured(2.5, "min-k")],
        [measured(3.0), measured(1.0, "min-k")],
    )
    assert verdict.outcome is Outcome.CONTRADICTED
    assert verdict.significance == pytest.approx(0.1)
    assert "min-k proves epsilon >= 2.5 at 90% confidence" in verdict.line()
    assert verdict.strongest_on_control == measured(3.0)


def test_a_larger_delta_contradicts_and_a_smaller_one_does_not() -> None:
    """A claim at delta holds at every larger delta; at a smaller one it says nothing."""
    assert judge(CLAIM, [measured(2.5, delta=1e-3)], []).outcome is Outcome.CONTRADICTED
    with pytest.raises(InvalidParameterError, match="at delta 1e-05 or above"):
        judge(CLAIM, [measured(2.5, delta=0.0)], [])


def test_nothing_claimed() -> None:
    """No guarantee is neither confirmed nor contradicted, however strong the attack."""
    claim = Claim("epsilon", None)
    assert judge(claim, [measured(9.0)], []).outcome is Outcome.NOTHING_CLAIMED
    assert "loss proves epsilon >= 9" in judge(claim, [measured(9.0)], []).line()
    assert "no formal guarantee" in judge(claim, [], []).line()


def test_posterior_line() -> None:
    """A vacuous claim of 1 cannot be tested by anything."""
    found = [Measurement("loss", "posterior", 0.52, 0.05)]
    caught = [Measurement("loss", "posterior", 0.97, 0.05)]
    assert judge(Claim("posterior", 0.9), found, caught).outcome is Outcome.CONSISTENT
    assert judge(Claim("posterior", 0.5), found, caught).outcome is Outcome.CONTRADICTED
    assert judge(Claim("posterior", 1.0), found, caught).outcome is Outcome.NO_POWER


def test_a_gaussian_bound_is_not_held_against_an_epsilon_of_any_shape() -> None:
    with pytest.raises(InvalidParameterError, match="must measure epsilon"):
        judge(CLAIM, [Measurement("loss", "gaussian_mu", 9.0, 0.05)], [])


def test_lower_bounds_are_printed_rounded_down() -> None:
    assert "epsilon >= 1.999 at" in judge(CLAIM, [measured(1.9999)], [measured(3.0)]).line()


@pytest.mark.parametrize(
    "control",
    [
        [measured(3.0, "other")],
        [measured(3.0, delta=1e-3)],
        [Measurement("loss", "epsilon", 3.0, significance=0.2, delta=1e-5)],
        [measured(3.0), measured(4.0)],
        [Measurement("loss", "gaussian_mu", 3.0, 0.05)],
    ],
)
def test_a_control_measured_in_another_way_is_refused(control: list[Measurement]) -> None:
    with pytest.raises(InvalidParameterError):
        judge(CLAIM, [measured(0.1)], control)


def test_a_claim_needs_a_measurement_and_attacks_one_name_each() -> None:
    with pytest.raises(InvalidParameterError, match="must not be empty"):
        judge(CLAIM, [], [])
    with pytest.raises(InvalidParameterError, match="name every attack once"):
        judge(CLAIM, [measured(0.1), measured(0.2)], [])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, "1", True])
def test_bad_values_are_refused(bad: object) -> None:
    for build in [
        lambda: Claim("epsilon", bad),
        lambda: Claim("epsilon", 1.0, delta=bad),
        lambda: Measurement("loss", "epsilon", bad, 0.05),
        lambda: Measurement("loss", "epsilon", 1.0, bad),
    ]:
        with pytest.raises(InvalidParameterError):
            build()


def test_bad_quantities_are_refused() -> None:
    with pytest.raises(InvalidParameterError, match="quantity must be one of"):
        Claim("eps", 1.0)
    with pytest.raises(InvalidParameterError, match="delta belongs to epsilon"):
        Claim("posterior", 0.9, delta=1e-5)
    with pytest.raises(InvalidParameterError, match="value must be in"):
        Claim("posterior", 1.2)
