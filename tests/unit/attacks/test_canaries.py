"""What canaries prove after a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sordino.attacks import canaries
from sordino.attacks.canaries import canary_guess_bound, extraction_chance, tries_needed
from sordino.auditing.one_run import epsilon_lower_bound, gaussian_epsilon_lower_bound
from sordino.core.errors import InvalidDataError, InvalidParameterError

INCLUDED = np.array([True, False] * 100)


def test_exposure_is_that_of_auditing() -> None:
    """One definition, under the name that outside checks call."""
    from sordino.auditing.exposure import exposure

    assert canaries.exposure is exposure
    assert canaries.exposure([9.0], [0.0, 1.0, 2.0]).tolist() == [2.0]


def test_perfect_guesses() -> None:
    """With v = r and delta 0 the bound is that of q = significance ** (1 / r)."""
    bound = canary_guess_bound(np.where(INCLUDED, 1.0, 0.0), INCLUDED, 50, 0.0)
    q = 0.05 ** (1 / 50)
    assert bound.num_correct == 50
    assert bound.epsilon_lower == pytest.approx(math.log(q / (1 - q)), rel=1e-6)
    assert bound.gaussian_epsilon_lower == 0.0  # nothing to say at delta 0
    assert (bound.num_canaries, bound.num_included, bound.num_guesses) == (200, 100, 50)


def test_bounds_are_those_of_one_run() -> None:
    """The counts go to both bounds as they are; odd guesses give one more to "in"."""
    scores = np.random.default_rng(1).normal(size=200) + INCLUDED
    bound = canary_guess_bound(scores, INCLUDED, 41, 1e-5, significance=0.01)
    order = np.argsort(-scores)
    right = INCLUDED[order[:21]].sum() + (~INCLUDED[order[-20:]]).sum()
    assert bound.num_correct == right
    counts = (200, 41, int(right), 1e-5, 0.01)
    assert bound.epsilon_lower == epsilon_lower_bound(*counts)
    assert bound.gaussian_epsilon_lower == gaussian_epsilon_lower_bound(*counts)


def test_knowing_the_number_of_included_canaries_does_not_help() -> None:
    """Defect: guesses that follow the total. Constant scores prove nothing, whatever the coins."""
    for included in (np.ones(200, dtype=bool), np.zeros(200, dtype=bool), INCLUDED):
        bound = canary_guess_bound(np.zeros(200), included, 200, 0.0)
        assert bound.num_correct <= 100
        assert bound.epsilon_lower == 0.0


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"scores": [float("nan")] * 200}, InvalidDataError),
        ({"scores": [0.0] * 3}, InvalidDataError),
        ({"is_included": INCLUDED.astype(int)}, InvalidDataError),
        ({"is_included": True}, InvalidDataError),
        ({"is_included": [], "scores": []}, InvalidDataError),
        ({"num_guesses": 201}, InvalidParameterError),
        ({"num_guesses": -1}, InvalidParameterError),
        ({"delta": float("nan")}, InvalidParameterError),
        ({"delta": 1.5}, InvalidParameterError),
        ({"significance": 0.0}, InvalidParameterError),
    ],
)
def test_bound_checks_its_arguments(changes: dict[str, Any], error: type[Exception]) -> None:
    given = {"scores": np.zeros(200), "is_included": INCLUDED, "num_guesses": 10, "delta": 0.0}
    with pytest.raises(error):
        canary_guess_bound(**(given | changes))


@pytest.mark.parametrize(
    ("num_tries", "probability", "expected"),
    [(0, 0.5, 0.0), (1, 0.25, 0.25), (2, 0.5, 0.75), (5, 1.0, 1.0), (7, 0.0, 0.0)],
)
def test_extraction_chance(num_tries: int, probability: float, expected: float) -> None:
    assert extraction_chance(num_tries, probability) == pytest.approx(expected, rel=1e-14)


def test_rare_secrets_do_not_underflow() -> None:
    """Defect: 1 - (1 - q) ** n is 0 for q below 1e-16."""
    assert extraction_chance(10**6, 1e-20) == pytest.approx(1e-14, rel=1e-9)
    assert tries_needed(1e-20, 0.5) == pytest.approx(math.log(2) * 1e20, rel=1e-9)


@pytest.mark.parametrize(
    ("probability", "chance", "expected"), [(0.5, 0.75, 2), (0.3, 0.0, 0), (1.0, 1.0, 1)]
)
def test_tries_needed(probability: float, chance: float, expected: int) -> None:
    assert tries_needed(probability, chance) == expected


@pytest.mark.parametrize(
    ("probability", "chance"),
    [(0.0, 0.5), (5e-324, 0.5), (0.5, 1.0), (float("nan"), 0.5), (0.5, float("inf")), (-0.1, 0.5)],
)
def test_impossible_tries(probability: float, chance: float) -> None:
    with pytest.raises(InvalidParameterError):
        tries_needed(probability, chance)


@pytest.mark.parametrize(("num_tries", "probability"), [(-1, 0.5), (1.5, 0.5), (1, float("nan"))])
def test_chance_checks_its_arguments(num_tries: float, probability: float) -> None:
    with pytest.raises(InvalidParameterError):
        extraction_chance(num_tries, probability)  # type: ignore[arg-type]
