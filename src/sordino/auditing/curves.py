"""ROC curves of attack scores and the numbers read off them, with intervals.

A record is called a member where its score is at least the threshold, so equal scores are always
called alike. Scores are oriented: higher = more likely a member. Intervals treat the scores as
independent; scores of one model share its training, so they describe this model, not the method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sordino.auditing._counts import require_both, require_significance
from sordino.auditing.areas import auc  # callers outside the project know it from here
from sordino.auditing.clopper_pearson import binomial_lower, binomial_upper
from sordino.core.checks import require_in_range, require_integer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "LogLogPoints",
    "OperatingPoint",
    "RocCurve",
    "advantage",
    "advantage_lower_bound",
    "auc",
    "log_log_points",
    "operating_point",
    "roc_curve",
    "tpr_at_fpr",
]


@dataclass(frozen=True, slots=True)
class RocCurve:
    """All operating points of a score, from "nobody" to "everybody", each at a distinct score."""

    thresholds: NDArray[np.float64]  # falling; the first is infinite
    false_positive_rates: NDArray[np.float64]
    true_positive_rates: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A true-positive rate at a limit on the false-positive rate, and what was realised."""

    fpr_limit: float
    threshold: float  # called a member: score >= threshold; infinite where nobody may be called
    false_positives: int
    num_nonmembers: int
    true_positives: int
    num_members: int
    fpr_upper: float  # of the rule, on new non-members
    tpr_lower: float
    tpr_upper: float
    significance: float  # of each interval

    @property
    def fpr(self) -> float:
        """The realised false-positive rate, at most `fpr_limit`."""
        return self.false_positives / self.num_nonmembers

    @property
    def tpr(self) -> float:
        """The true-positive rate."""
        return self.true_positives / self.num_members


@dataclass(frozen=True, slots=True)
class LogLogPoints:
    """A thinned curve for a figure with two logarithmic axes, with pointwise intervals."""

    false_positive_rates: NDArray[np.float64]
    true_positive_rates: NDArray[np.float64]
    tpr_lower: NDArray[np.float64]
    tpr_upper: NDArray[np.float64]


def roc_curve(member_scores: ArrayLike, nonmember_scores: ArrayLike) -> RocCurve:
    """Returns the ROC curve, one point for each distinct score.

    Guarantee:
        Every point is reached by a threshold; no tie is split.

    Args:
        member_scores: Scores of members, finite, shape (num_members,).
        nonmember_scores: Scores of non-members, finite, shape (num_nonmembers,).

    Returns:
        The curve from (0, 0) at an infinite threshold to (1, 1).

    Raises:
        InvalidDataError: If scores are missing, NaN, infinite or not numbers.

    Source:
        The definition.

    Example:
        >>> roc_curve([2.0, 1.0], [1.0, 0.0]).true_positive_rates.tolist()
        [0.0, 0.5, 1.0, 1.0]
    """
    members, nonmembers = require_both(member_scores, nonmember_scores)
    scores = np.union1d(members, nonmembers)[::-1]
    return RocCurve(
        thresholds=np.concatenate(([np.inf], scores)),
        false_positive_rates=np.concatenate(([0], _num_at_least(nonmembers, scores)))
        / nonmembers.size,
        true_positive_rates=np.concatenate(([0], _num_at_least(members, scores))) / members.size,
    )


def tpr_at_fpr(member_scores: ArrayLike, nonmember_scores: ArrayLike, fpr: float) -> float:
    """Returns the largest true-positive rate whose false-positive rate is at most `fpr`.

    Guarantee:
        A threshold reaches it on these scores; nothing is interpolated, no tie is split.

    Args:
        member_scores: Scores of members, finite, shape (num_members,).
        nonmember_scores: Scores of non-members, finite, shape (num_nonmembers,).
        fpr: Limit on the share of non-members called members; in [0, 1].

    Returns:
        A rate in [0, 1]. `operating_point` has the threshold, the counts and the intervals.

    Raises:
        InvalidDataError: If scores are missing, NaN, infinite or not numbers.
        InvalidParameterError: If `fpr` is NaN or out of range.

    Source:
        The definition of arXiv:2112.03570, Section IV.

    Example:
        >>> tpr_at_fpr([4.0, 3.0, 1.0], [3.0, 2.0, 0.0, -1.0], fpr=0.2)
        0.3333333333333333
    """
    return operating_point(member_scores, nonmember_scores, fpr).tpr


def operating_point(
    member_scores: ArrayLike,
    nonmember_scores: ArrayLike,
    fpr: float,
    significance: float = 0.05,
) -> OperatingPoint:
    """Returns the best operating point at a false-positive limit, with its intervals.

    Guarantee:
        The rule is "a member above the (k + 1)-th highest non-member score", k the largest count
        within the limit. It is chosen from non-members alone, so the interval of its
        true-positive rate is Clopper and Pearson's, and its false-positive rate on new
        non-members exceeds `fpr_upper` with probability at most `significance`.
        Assumes: independent scores.

    Args:
        member_scores: Scores of members, finite, shape (num_members,).
        nonmember_scores: Scores of non-members, finite, shape (num_nonmembers,).
        fpr: Limit on the share of non-members called members; in [0, 1].
        significance: One minus the confidence of each interval; in (0, 1).

    Returns:
        The `OperatingPoint`; its threshold is the lowest score that is called a member.

    Raises:
        InvalidDataError: If scores are missing, NaN, infinite or not numbers.
        InvalidParameterError: If `fpr` or `significance` is NaN or out of range.

    Source:
        docs/proofs/threshold_audit.md.

    Example:
        >>> point = operating_point([4.0, 3.0, 1.0], [3.0, 2.0, 0.0, -1.0], fpr=0.25)
        >>> point.threshold, point.fpr, point.true_positives
        (3.0, 0.25, 2)
    """
    members, nonmembers = require_both(member_scores, nonmember_scores)
    limit = require_in_range("fpr", fpr, 0.0, 1.0)
    level = require_significance(significance)
    return _point_at(np.sort(members), np.sort(nonmembers), limit, level)


def advantage(member_scores: ArrayLike, nonmember_scores: ArrayLike) -> float:
    """Returns the largest TPR - FPR over all thresholds.

    Guarantee:
        Reached by a threshold on these scores. That threshold was chosen on them, so it is
        optimistic: claims need `advantage_lower_bound`.

    Args:
        member_scores: Scores of members, finite, shape (num_members,).
        nonmember_scores: Scores of non-members, finite, shape (num_nonmembers,).

    Returns:
        A number in [0, 1].

    Raises:
        InvalidDataError: If scores are missing, NaN, infinite or not numbers.

    Source:
        arXiv:1709.01604, Definition 4; Youden 1950.

    Example:
        >>> advantage([2.0, 1.0], [1.0, 0.0])
        0.5
    """
    curve = roc_curve(member_scores, nonmember_scores)
    return float(np.max(curve.true_positive_rates - curve.false_positive_rates))


def advantage_lower_bound(
    member_scores: ArrayLike, nonmember_scores: ArrayLike, significance: float = 0.05
) -> float:
    """Returns a lower bound on the advantage that holds although the threshold was searched.

    Guarantee:
        The true largest TPR - FPR is below the result with probability at most
        `significance`. Assumes: independent scores.

    Args:
        member_scores: Scores of members, finite, shape (num_members,).
        nonmember_scores: Scores of non-members, finite, shape (num_nonmembers,).
        significance: One minus the confidence; in (0, 1).

    Returns:
        A number in [0, 1].

    Raises:
        InvalidDataError: If scores are missing, NaN, infinite or not numbers.
        InvalidParameterError: If `significance` is out of range.

    Source:
        Massart 1990 (one-sided Dvoretzky-Kiefer-Wolfowitz), half the level for each side;
        docs/proofs/threshold_audit.md.

    Example:
        >>> f"{advantage_lower_bound(range(100, 200), range(100)):.3f}"
        '0.728'
    """
    members, nonmembers = require_both(member_scores, nonmember_scores)
    level = require_significance(significance)
    width = sum(
        math.sqrt(math.log(2.0 / level) / (2.0 * scores.size)) for scores in (members, nonmembers)
    )
    return max(advantage(members, nonmembers) - width, 0.0)


def log_log_points(
    member_scores: ArrayLike,
    nonmember_scores: ArrayLike,
    num_points: int = 100,
    significance: float = 0.05,
) -> LogLogPoints:
    """Returns points of the ROC curve for a figure with two logarithmic axes.

    Guarantee:
        Every point is an `operating_point`. Intervals are pointwise: the whole curve leaves
        them more often than at `significance`.

    Args:
        member_scores: Scores of members, finite, shape (num_members,).
        nonmember_scores: Scores of non-members, finite, shape (num_nonmembers,).
        num_points: Limits, spaced evenly on the logarithmic axis from one false positive to
            all; in [2, 10000]. Limits with equal counts give one point.
        significance: One minus the confidence of each interval; in (0, 1).

    Returns:
        `LogLogPoints` with rising, positive false-positive rates. A true-positive rate or a
        lower end may be 0, which a logarithmic axis cannot show.

    Raises:
        InvalidDataError: If scores are missing, NaN, infinite or not numbers.
        InvalidParameterError: If `num_points` or `significance` is out of range.

    Source:
        arXiv:2112.03570, for the axes.

    Example:
        >>> log_log_points([2.0, 3.0], [0.0, 1.0], num_points=2).false_positive_rates.tolist()
        [0.5, 1.0]
    """
    members, nonmembers = require_both(member_scores, nonmember_scores)
    level = require_significance(significance)
    count = require_integer("num_points", num_points, 2, 10_000)
    members, nonmembers = np.sort(members), np.sort(nonmembers)
    limits = np.geomspace(1.0 / nonmembers.size, 1.0, count)
    limits[-1] = 1.0  # not one rounding below it
    # A tie may leave the realised rate at 0, which has no place on the axis.
    points = {
        point.false_positives: point
        for point in (_point_at(members, nonmembers, limit, level) for limit in limits.tolist())
        if point.false_positives > 0
    }
    chosen = [points[count] for count in sorted(points)]
    return LogLogPoints(
        false_positive_rates=np.array([point.fpr for point in chosen]),
        true_positive_rates=np.array([point.tpr for point in chosen]),
        tpr_lower=np.array([point.tpr_lower for point in chosen]),
        tpr_upper=np.array([point.tpr_upper for point in chosen]),
    )


def _point_at(
    members: NDArray[np.float64], nonmembers: NDArray[np.float64], limit: float, level: float
) -> OperatingPoint:
    """Returns the operating point at a limit, from sorted scores."""
    size = nonmembers.size
    # compared as rates, so that 29 of 100 keeps a limit written 0.29
    allowed = min(math.floor(limit * size) + 1, size)
    while allowed / size > limit:
        allowed -= 1
    if allowed == size:
        hits, alarms = members.size, size
    else:
        cut = nonmembers[size - 1 - allowed]  # the highest score that may not be called
        hits = members.size - int(np.searchsorted(members, cut, side="right"))
        alarms = size - int(np.searchsorted(nonmembers, cut, side="right"))
    called = [scores[-count] for scores, count in ((members, hits), (nonmembers, alarms)) if count]
    return OperatingPoint(
        fpr_limit=limit,
        threshold=float(min(called)) if called else math.inf,
        false_positives=alarms,
        num_nonmembers=size,
        true_positives=hits,
        num_members=members.size,
        # the cut is the (allowed + 1)-th highest score: ties can only lower the true rate
        fpr_upper=binomial_upper(allowed, size, level),
        tpr_lower=binomial_lower(hits, members.size, level / 2.0),
        tpr_upper=binomial_upper(hits, members.size, level / 2.0),
        significance=level,
    )


def _num_at_least(scores: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.intp]:
    """Returns how many scores are at least each threshold."""
    return scores.size - np.searchsorted(np.sort(scores), thresholds, side="left")
