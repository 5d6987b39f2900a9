"""Argument checks, written as what must be true, so that NaN fails them."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING

from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Sequence


def require_in_range(name: str, value: float, low: float, high: float) -> float:
    """Returns `value` as a float if it is finite and low <= value <= high, else raises."""
    if not (_is_finite(value) and low <= value <= high):
        raise InvalidParameterError(f"{name} must be in [{low:g}, {high:g}], got {value!r}.")
    return float(value)


def require_positive(name: str, value: float) -> float:
    """Returns `value` as a float if it is finite and above zero, else raises."""
    if not (_is_finite(value) and value > 0):
        raise InvalidParameterError(f"{name} must be positive and finite, got {value!r}.")
    return float(value)


def require_non_negative(name: str, value: float) -> float:
    """Returns `value` as a float if it is finite and at least zero, else raises."""
    if not (_is_finite(value) and value >= 0):
        raise InvalidParameterError(f"{name} must be at least 0 and finite, got {value!r}.")
    return float(value)


def require_integer(name: str, value: int, low: int, high: int | None = None) -> int:
    """Returns `value` as an int if it is a whole number in [low, high], else raises."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not (is_whole and value >= low and (high is None or value <= high)):
        limit = f"in [{low}, {high}]" if high is not None else f"at least {low}"
        raise InvalidParameterError(f"{name} must be a whole number {limit}, got {value!r}.")
    return int(value)


def require_one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    """Returns `value` if it is one of `allowed`, else raises."""
    if value not in allowed:
        raise InvalidParameterError(f"{name} must be one of {', '.join(allowed)}; got {value!r}.")
    return value


def _is_finite(value: object) -> bool:
    """Returns whether `value` is a finite real number and not a truth value."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False
