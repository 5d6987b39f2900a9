"""How many records an audit needs before it can say anything."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sordino.auditing._counts import require_significance
from sordino.auditing.clopper_pearson import binomial_lower
from sordino.core.checks import require_in_range
from sordino.core.errors import InvalidParameterError

__all__ = ["SampleSizes", "sample_sizes_needed"]


@dataclass(frozen=True, slots=True)
class SampleSizes:
    """How many records a statement about TPR at FPR needs."""

    num_members: int
    num_nonmembers: int


def sample_sizes_needed(tpr: float, fpr: float, significance: float = 0.05) -> SampleSizes:
    """Returns the fewest records from which on "this TPR at this FPR" says something.

    Guarantee:
        From the returned number of non-members on, a count of zero false positives bounds the
        rate by `fpr`. From the returned number of members on, floor(tpr * num_members) true
        positives are told from a guess, whose true-positive rate is `fpr`.

    Args:
        tpr: True-positive rate that one hopes to measure; in (fpr, 1].
        fpr: False-positive rate; in (0, 1).
        significance: One minus the confidence of each one-sided bound; in (0, 1).

    Returns:
        The two smallest such numbers.

    Raises:
        InvalidParameterError: If an argument is NaN or out of range, or if more than 1e8
            members would be needed.

    Source:
        Clopper and Pearson 1934; docs/proofs/threshold_audit.md.

    Example:
        >>> sample_sizes_needed(tpr=0.05, fpr=0.001)
        SampleSizes(num_members=20, num_nonmembers=2995)
    """
    rate = require_in_range("tpr", tpr, 0.0, 1.0)
    chance = require_in_range("fpr", fpr, 1e-9, 1.0 - 1e-9)
    level = require_significance(significance)
    if not rate > chance:
        raise InvalidParameterError(f"tpr must be above fpr {chance:g}, got {rate:g}.")
    nonmembers = max(math.ceil(math.log(level) / math.log1p(-chance)), 1)

    # A sample of n has at least rate * n successes first at n = ceil(k / rate): the bound falls
    # in n between two such sizes, so the last n before the next success is the one that must do.
    def suffices(successes: int) -> bool:
        largest = max(math.ceil((successes + 1) / rate) - 1, successes)
        return binomial_lower(successes, largest, level) > chance

    high = 1
    while not suffices(high):
        high *= 2
        if high / rate > 1e8:
            raise InvalidParameterError(
                f"tpr {rate:g} is too close to fpr {chance:g}: more than 1e8 members are needed."
            )
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return SampleSizes(num_members=math.ceil(high / rate), num_nonmembers=nonmembers)
