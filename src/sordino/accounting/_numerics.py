"""Relative entropies of two-valued laws without cancellation, and rounding to the safe side.

A privacy charge of 1e-12 nats is the difference of two entropies near 0.7: taken literally it has
no correct digit. Everything here is a sum of terms p ln(p/r) - (p - r), which are never negative,
each computed from a difference p - r that the caller knows to full relative accuracy.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import xlogy

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST = sys.float_info.min  # below it doubles lose digits, so no positive bound is smaller

# 1/25, 1/23, ..., 1/3: the next term is below 1e-17 of the sum where the series is used.
_SERIES = tuple(1.0 / k for k in range(25, 1, -2))
_SERIES_LIMIT = 0.2
_ROUND_UP = 1.0 + 2e-15  # of probabilities in closed form; worst relative error found: 4e-16


def entropy_term(p: float, r: float, difference: float) -> float:
    """Returns p ln(p/r) - (p - r) for p >= 0 and r > 0, given the accurate difference p - r."""
    t = difference / (p + r)
    if abs(t) > _SERIES_LIMIT:
        return (p * math.log(p / r) if p > 0.0 else 0.0) - difference
    # ln(p/r) = 2 atanh(t), expanded so that the linear terms cancel on paper
    square = t * t
    tail = 0.0
    for coefficient in _SERIES:
        tail = tail * square + coefficient
    return (p + r) * square * (1.0 + (1.0 + t) * t * tail)


def entropy_terms(
    p: NDArray[np.float64], r: NDArray[np.float64], difference: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns `entropy_term` elementwise, for arrays of one shape."""
    t = difference / (p + r)
    square = t * t
    series = (p + r) * square * (1.0 + (1.0 + t) * t * np.polyval(_SERIES, square))
    direct = xlogy(p, p / r) - difference
    return np.where(np.abs(t) > _SERIES_LIMIT, direct, series)


def bernoulli_divergence(p: float, r: float) -> float:
    """Returns KL(Bernoulli(p) || Bernoulli(r)) in nats for 0 <= p <= 1 and 0 < r < 1."""
    return entropy_term(p, r, p - r) + entropy_term(1.0 - p, 1.0 - r, r - p)


def round_up(probability: float) -> float:
    """Returns a probability from a closed form of a few operations, rounded up, at most 1."""
    return min(probability * _ROUND_UP, 1.0)
