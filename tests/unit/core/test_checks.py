"""Argument checks: NaN, infinities, truth values and numbers beyond every float are refused."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sordino.core.checks import (
    require_in_range,
    require_integer,
    require_non_negative,
    require_one_of,
    require_positive,
)
from sordino.core.errors import InvalidParameterError, SordinoError

if TYPE_CHECKING:
    from collections.abc import Callable

NOT_A_NUMBER = [math.nan, math.inf, -math.inf, 10**400, True, False, None, "1", [1.0], 1j]
NOT_WHOLE = [1.0, math.nan, math.inf, True, None, "1", Fraction(3, 2), np.float64(2.0), np.True_]


@pytest.mark.parametrize("bad", NOT_A_NUMBER)
@pytest.mark.parametrize(
    "check",
    [
        lambda value: require_in_range("size", value, 0.0, 2.0),
        lambda value: require_positive("size", value),
        lambda value: require_non_negative("size", value),
    ],
)
def test_numbers_must_be_finite(check: Callable[[object], float], bad: object) -> None:
    """Whatever is not a finite real number raises, and the message names the argument."""
    with pytest.raises(InvalidParameterError, match=r"^size must be .*got "):
        check(bad)


@pytest.mark.parametrize("good", [0.0, -0.0, 2.0, 1, np.float32(0.5), np.int64(2), Fraction(1, 3)])
def test_range_holds_its_ends_and_returns_a_float(good: float) -> None:
    """Both ends are allowed, and every kind of real number becomes a float."""
    result = require_in_range("size", good, 0.0, 2.0)
    assert type(result) is float
    assert result == float(good)


@pytest.mark.parametrize("bad", [math.nextafter(0.0, -1.0), math.nextafter(2.0, 3.0), -5, 7])
def test_range_is_closed_and_nothing_more(bad: float) -> None:
    """The next float outside either end is refused."""
    with pytest.raises(InvalidParameterError, match=r"size must be in \[0, 2\], got"):
        require_in_range("size", bad, 0.0, 2.0)


def test_positive_and_non_negative_differ_at_zero_only() -> None:
    """Zero is not positive; the smallest denormal is."""
    assert require_non_negative("size", 0) == 0.0
    assert require_positive("size", 5e-324) == 5e-324
    with pytest.raises(InvalidParameterError, match="size must be positive"):
        require_positive("size", 0.0)
    for check in (require_positive, require_non_negative):
        with pytest.raises(InvalidParameterError, match="size must be"):
            check("size", -5e-324)


@pytest.mark.parametrize("bad", NOT_WHOLE)
def test_whole_numbers_are_not_rounded(bad: object) -> None:
    """A float is no whole number, not even 1.0; a truth value neither."""
    with pytest.raises(InvalidParameterError, match="size must be a whole number at least 0"):
        require_integer("size", bad, 0)


def test_whole_numbers_hold_both_ends() -> None:
    """Ends are allowed, the numbers beyond are not, and NumPy integers become int."""
    assert require_integer("size", 3, 3, 5) == 3
    assert require_integer("size", 10**400, 3) == 10**400
    result = require_integer("size", np.int16(5), 3, 5)
    assert result == 5
    assert type(result) is int
    for bad in (2, 6):
        with pytest.raises(InvalidParameterError, match=r"whole number in \[3, 5\], got"):
            require_integer("size", bad, 3, 5)


def test_a_choice_names_what_is_allowed() -> None:
    """The message lists every allowed word."""
    assert require_one_of("kind", "coin", ("coin", "skip")) == "coin"
    with pytest.raises(InvalidParameterError, match="kind must be one of coin, skip; got 'Coin'"):
        require_one_of("kind", "Coin", ("coin", "skip"))


def test_errors_belong_to_both_trees() -> None:
    """A refused argument is caught as a Sordino error and as a ValueError."""
    assert issubclass(InvalidParameterError, SordinoError)
    assert issubclass(InvalidParameterError, ValueError)
