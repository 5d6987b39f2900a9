"""Numbers of an audit in words: on the private side, and never without their interval."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers_audits import make_audit, make_canaries, make_verdict
from sordino.core.errors import InvalidDataError
from sordino.reports.audit_record import Point
from sordino.reports.audit_words import (
    confidence,
    gravest,
    headline,
    interval,
    is_on_canaries,
    lower,
    make_cards,
    point_words,
    setting_words,
    upper,
)


@given(st.floats(0.0, 1e9, allow_subnormal=False))
def test_bounds_are_rounded_to_their_side(bound: float) -> None:
    """A lower bound is never shown larger than it is, an upper bound never smaller."""
    assert Fraction(lower(bound)) <= Fraction(repr(bound)) <= Fraction(upper(bound))


@pytest.mark.parametrize("bound", [math.nan, math.inf, -math.inf])
def test_bounds_must_be_finite(bound: float) -> None:
    for shown in (lower, upper):
        with pytest.raises(InvalidDataError, match="must be finite"):
            shown(bound)


def test_intervals_are_rounded_outwards() -> None:
    assert interval(0.60601, 0.65449) == "[0.606, 0.655]"
    assert interval(0.0, 1.0) == "[0.000, 1.000]"
    assert interval(0.022811, 0.0461, as_percent=True) == "[2.28%, 4.61%]"


def test_points_say_how_they_came_about() -> None:
    """Interval, realised rate and threshold are never left out."""
    point = Point(fpr_limit=0.01, threshold=1.5, fpr=0.008, tpr=0.12, tpr_lower=0.1, tpr_upper=0.14)
    assert point_words(point) == ("12%", "[10%, 14%]", "realised FPR 0.8%", "threshold 1.5")
    nobody = Point(
        fpr_limit=0.001, threshold=None, fpr=0.0, tpr=0.0, tpr_lower=0.0, tpr_upper=0.0123
    )
    assert point_words(nobody)[2:] == ("realised FPR 0%", "nobody called a member")
    assert point_words(None) == ("not run",)


def test_confidence() -> None:
    assert (confidence(0.05), confidence(0.001)) == ("95%", "99.9%")


def test_the_gravest_outcome_decides() -> None:
    """A contradiction before no power, before nothing measured, before consistent."""
    for pool, subset, expected in (
        ("consistent", "contradicted", "Contradicted"),
        ("no power", "consistent", "No power"),
        ("consistent", "nothing claimed", "Consistent"),
        ("nothing claimed", "nothing claimed", "Nothing claimed"),
    ):
        cards = make_cards(make_audit(pool, subset), ())
        assert gravest(cards).title == expected
        assert headline(cards).startswith(expected)
    assert headline(make_cards(make_audit(), ())) == "Consistent"
    assert headline(make_cards(None, ())) == "Nothing was measured"


def test_unknown_games_are_refused() -> None:
    audit = make_audit(verdicts=(make_verdict(game="other"),))
    with pytest.raises(InvalidDataError, match="subset or pool"):
        make_cards(audit, ())


def test_a_claim_is_drawn_only_where_there_is_one() -> None:
    subset, pool = make_cards(make_audit("consistent", "nothing claimed"), ())
    assert subset.bounds == []
    assert [bar[2] for bar in pool.bounds] == [2.0, 0.4189, 4.211]
    assert pool.end == 4.211


def test_bounds_of_zero_are_drawn() -> None:
    """A claim of zero and a measurement of zero still have an axis."""
    verdict = make_verdict(claimed=0.0, measured_lower=0.0, control_lower=None)
    _, pool = make_cards(make_audit(verdicts=(verdict,)), ())
    assert pool.end > 0.0
    assert dict(pool.facts)["The same on the positive control"] == "none"


def test_verdicts_on_canaries_are_told_from_others() -> None:
    """By the number they rest on; without canaries none does."""
    audit = make_audit()
    pool = make_verdict()
    assert is_on_canaries(pool, audit)
    assert not is_on_canaries(make_verdict(measured_lower=0.6), audit)
    assert not is_on_canaries(make_verdict("subset", measured_lower=0.4189), audit)
    assert not is_on_canaries(pool, make_audit(canaries=None))
    shaped = make_audit(canaries=make_canaries(epsilon_lower=0.1, gaussian_epsilon_lower=0.4189))
    assert is_on_canaries(pool, shaped)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "not set"),
        (True, "yes"),
        (7, "7"),
        (1830222.0, "1,830,222"),
        (412.5, "412.5"),
        (1e-5, "1e-05"),
        ([], "none"),
        (["loss", 0.2], "loss, 0.2"),
        ({"learning_rate": 0.5, "on": False}, "learning rate: 0.5; on: no"),
        ("text", "text"),
    ],
)
def test_settings_in_words(value: object, words: str) -> None:
    assert setting_words(value) == words
