"""The area under the ROC curve, its interval, and the change of it between two models.

Scores are oriented: higher = more likely a member. Intervals treat the scores as independent;
scores of one model share its training, so they describe this model, not the method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit, logit, ndtri
from scipy.stats import rankdata

from sordino.auditing._counts import require_both, require_significance
from sordino.auditing.clopper_pearson import binomial_lower
from sordino.core.errors import InvalidDataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["AucDifference", "AucInterval", "auc", "auc_difference", "auc_interval"]


@dataclass(frozen=True, slots=True)
class AucInterval:
    """Area under the ROC curve with its confidence interval."""

    auc: float
    lower: float
    upper: float
    significance: float


@dataclass(frozen=True, slots=True)
class AucDifference:
    """How much larger one area is than another on the same records, with its interval."""

    difference: float
    lower: float
    upper: float
    significance: float


def auc(member_scores: ArrayLike, nonmember_scores: ArrayLike) -> float:
    """Returns the area under the ROC curve.

    Guarantee:
        The share of pairs in which the member scores higher, equal scores counted half.

    Args:
        member_scores: Scores of members, finite, shape (num_members,).
        nonmember_scores: Scores of non-members, finite, shape (num_nonmembers,).

    Returns:
        A number in [0, 1]; 0.5 for a guess.

    Raises:
        InvalidDataError: If scores are missing, NaN, infinite or not numbers.

    Source:
        Mann and Whitney 1947, from mid-ranks.

    Example:
        >>> auc([2.0, 1.0], [1.0, 0.0])
        0.875
    """
    members, nonmembers = require_both(member_scores, nonmember_scores)
    above, _ = _placements(members, nonmembers)
    return float(above.mean())


def auc_interval(
    member_scores: ArrayLike, nonmember_scores: ArrayLike, significance: float = 0.05
) -> AucInterval:
    """Returns the area under the ROC curve with a two-sided confidence interval.

    Guarantee:
        Asymptotic: the interval misses the true area with probability near `significance` for
        many independent scores. Where the estimated variance is zero, which says nothing, the
        interval is exact instead: from disjoint pairs if all pairs agree, else Hoeffding's.

    Args:
        member_scores: Scores of members, finite, shape (num_members,).
        nonmember_scores: Scores of non-members, finite, shape (num_nonmembers,).
        significance: One minus the confidence; in (0, 1).

    Returns:
        The `AucInterval`, within [0, 1].

    Raises:
        InvalidDataError: If scores are missing, NaN, infinite or not numbers.
        InvalidParameterError: If `significance` is out of range.

    Source:
        DeLong, DeLong and Clarke-Pearson 1988, on the logit scale; docs/proofs/threshold_audit.md.

    Example:
        >>> found = auc_interval([3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 3.5, 0.0])
        >>> f"{found.auc:.4f} {found.lower:.3f} {found.upper:.3f}"
        '0.9375 0.438 0.997'
    """
    members, nonmembers = require_both(member_scores, nonmember_scores)
    level = require_significance(significance)
    above, below = _placements(members, nonmembers)
    area = float(above.mean())
    pairs = min(members.size, nonmembers.size)
    variance = _variance_of_mean(above) + _variance_of_mean(below)
    if area in {0.0, 1.0}:
        # disjoint pairs are independent trials that all came out alike
        limit = binomial_lower(pairs, pairs, level / 2.0)
        lower, upper = (limit, 1.0) if area == 1.0 else (0.0, 1.0 - limit)
    elif pairs == 1 or not variance > 0.0:
        width = math.sqrt(math.log(2.0 / level) / (2.0 * pairs))
        lower, upper = area - width, area + width
    else:
        center = float(logit(area))
        scale = math.sqrt(variance) / (area * (1.0 - area))
        width = float(-ndtri(level / 2.0)) * scale
        lower, upper = float(expit(center - width)), float(expit(center + width))
    return AucInterval(area, max(lower, 0.0), min(upper, 1.0), level)


def auc_difference(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    significance: float = 0.05,
) -> AucDifference:
    """Returns the first area less the second, both from the same records.

    Guarantee:
        Asymptotic: the interval misses the true difference with probability near `significance`
        for many independent records. Where the estimated variance is zero, which says nothing,
        the interval is Hoeffding's for disjoint pairs, which is exact.

    Args:
        first: Scores of members and of non-members under one model, each a finite vector.
        second: Scores of the same records, in the same order, under another model.
        significance: One minus the confidence; in (0, 1).

    Returns:
        The `AucDifference`, within [-1, 1].

    Raises:
        InvalidDataError: If scores are missing, NaN, infinite, or not of the same records.
        InvalidParameterError: If `significance` is out of range.

    Source:
        DeLong, DeLong and Clarke-Pearson 1988: the covariance of two areas.

    Example:
        >>> scores = [3.0, 4.0, 0.5, 6.0], [1.0, 2.0, 3.5, 0.0]
        >>> found = auc_difference(scores, ([0.0, 4.0, 0.5, 6.0], [1.0, 2.0, 3.5, 0.0]))
        >>> f"{found.difference:.4f} {found.lower:.3f} {found.upper:.3f}"
        '0.1562 -0.172 0.484'
    """
    sides = [require_both(*pair) for pair in (first, second)]
    level = require_significance(significance)
    sizes = [(members.size, nonmembers.size) for members, nonmembers in sides]
    if sizes[0] != sizes[1]:
        raise InvalidDataError(
            "two areas can be compared on the same records only, got (members, non-members) "
            f"{sizes[0]} and {sizes[1]}."
        )
    placements = [_placements(*side) for side in sides]
    above, below = (placements[0][i] - placements[1][i] for i in (0, 1))
    difference = float(above.mean())
    variance = _variance_of_mean(above) + _variance_of_mean(below)
    if min(sizes[0]) == 1 or not variance > 0.0:
        width = math.sqrt(2.0 * math.log(2.0 / level) / min(sizes[0]))  # terms lie in [-1, 1]
    else:
        width = float(-ndtri(level / 2.0)) * math.sqrt(variance)
    return AucDifference(
        difference, max(difference - width, -1.0), min(difference + width, 1.0), level
    )


def _placements(
    members: NDArray[np.float64], nonmembers: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns each member's share of non-members below it, each non-member's of members above."""
    ranks = rankdata(np.concatenate((members, nonmembers)))
    of_members = (ranks[: members.size] - rankdata(members)) / nonmembers.size
    of_nonmembers = 1.0 - (ranks[members.size :] - rankdata(nonmembers)) / members.size
    return of_members, of_nonmembers


def _variance_of_mean(values: NDArray[np.float64]) -> float:
    """Returns the estimated variance of a mean; 0 for one value, which has no estimate."""
    return float(np.var(values, ddof=1)) / values.size if values.size > 1 else 0.0
