"""Checks of counts, levels and scores that every audit shares."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import numpy as np

from sordino.core.checks import require_in_range
from sordino.core.errors import InvalidDataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_SMALLEST = sys.float_info.min
_BELOW_ONE = math.nextafter(1.0, 0.0)


def require_significance(significance: float) -> float:
    """Returns a significance level (one minus confidence) in (0, 1), else raises."""
    return require_in_range("significance", significance, _SMALLEST, _BELOW_ONE)


def require_scores(name: str, scores: ArrayLike) -> NDArray[np.float64]:
    """Returns a non-empty vector of finite scores, else raises without showing a score."""
    values = np.asarray(scores)
    if values.dtype.kind not in "fiu":
        raise InvalidDataError(f"{name} must be real numbers, got the type {values.dtype}.")
    if values.ndim != 1 or values.size == 0:
        raise InvalidDataError(
            f"{name} must be a vector with at least one score, got shape {values.shape}."
        )
    values = values.astype(np.float64)
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise InvalidDataError(
            f"{name} must be finite, got {bad} of {values.size} NaN or infinite. Leave the records "
            "without a score out of both sides by a rule that does not look at membership."
        )
    return values


def require_both(
    member_scores: ArrayLike, nonmember_scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns both vectors of scores, checked."""
    return (
        require_scores("member_scores", member_scores),
        require_scores("nonmember_scores", nonmember_scores),
    )
