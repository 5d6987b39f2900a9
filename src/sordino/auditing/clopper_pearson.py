"""Exact binomial bounds, and the epsilon that an attack at one fixed threshold proves.

The trials must be independent: separate runs, or releases that do not share noise. For many
canaries in one run use `sordino.auditing.one_run`.
"""

from __future__ import annotations

import math

from scipy.special import betainc, betaincc, betainccinv, betaincinv

from sordino.auditing._counts import require_significance
from sordino.core.checks import require_in_range, require_integer

__all__ = ["binomial_lower", "binomial_upper", "epsilon_lower_bound"]

_MARGIN = 1e-9  # of the level; the incomplete beta function errs by up to 1e-14 (1,000 trials)
_ROUND_DOWN = 1e-12  # relative, of a bound: a few operations after the quantile


def binomial_lower(num_successes: int, num_trials: int, significance: float = 0.05) -> float:
    """Returns a lower bound on a probability from independent trials (Clopper and Pearson).

    Guarantee:
        For every success probability, the result exceeds it with probability at most
        `significance`. Assumes: independent trials whose number was fixed beforehand.

    Args:
        num_successes: Successes; in [0, num_trials].
        num_trials: Trials; at least 1.
        significance: One minus the confidence; in (0, 1).

    Returns:
        A probability in [0, 1), rounded down: the p with P[Binomial(num_trials, p) >=
        num_successes] = significance.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        Clopper and Pearson 1934, as a beta quantile.

    Example:
        >>> f"{binomial_lower(10, 10):.5f}"
        '0.74113'
    """
    trials = require_integer("num_trials", num_trials, 1)
    successes = require_integer("num_successes", num_successes, 0, trials)
    level = require_significance(significance)
    if successes == 0:
        return 0.0
    bound = float(betaincinv(successes, trials - successes + 1, level * (1.0 - _MARGIN)))
    # the quantile is searched by the library: checked, not trusted
    step = _ROUND_DOWN
    while bound > 0.0 and betainc(successes, trials - successes + 1, bound) > level:
        bound *= 1.0 - step
        step = min(2.0 * step, 0.5)
    return bound * (1.0 - _ROUND_DOWN)


def binomial_upper(num_successes: int, num_trials: int, significance: float = 0.05) -> float:
    """Returns an upper bound on a probability from independent trials (Clopper and Pearson).

    Guarantee:
        For every success probability, the result is below it with probability at most
        `significance`. Assumes: independent trials whose number was fixed beforehand.

    Args:
        num_successes: Successes; in [0, num_trials].
        num_trials: Trials; at least 1.
        significance: One minus the confidence; in (0, 1).

    Returns:
        A probability in (0, 1], rounded up: the p with P[Binomial(num_trials, p) <=
        num_successes] = significance.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        Clopper and Pearson 1934, as a beta quantile.

    Example:
        >>> f"{binomial_upper(0, 10):.5f}"
        '0.25887'
    """
    trials = require_integer("num_trials", num_trials, 1)
    successes = require_integer("num_successes", num_successes, 0, trials)
    level = require_significance(significance)
    if successes == trials:
        return 1.0
    bound = float(betainccinv(successes + 1, trials - successes, level * (1.0 - _MARGIN)))
    step = _ROUND_DOWN
    while bound < 1.0 and betaincc(successes + 1, trials - successes, bound) > level:
        bound = min(bound * (1.0 + step), 1.0)
        step *= 2.0
    return min(bound * (1.0 + _ROUND_DOWN), 1.0)


def epsilon_lower_bound(  # noqa: PLR0917 (callers outside the project fixed these arguments)
    true_positives: int,
    num_members: int,
    false_positives: int,
    num_nonmembers: int,
    delta: float,
    significance: float = 0.05,
) -> float:
    """Returns an epsilon that (epsilon, delta)-DP must reach, from an attack's two error counts.

    Guarantee:
        If the mechanism is (epsilon, delta)-DP, the result exceeds epsilon with probability
        at most `significance`. Assumes: independent trials; a threshold and an attack fixed
        before these trials (chosen on others, or `significance` divided by the number tried).

    Args:
        true_positives: Members called members; in [0, num_members].
        num_members: Trials with the record; at least 1.
        false_positives: Non-members called members; in [0, num_nonmembers].
        num_nonmembers: Trials without it; at least 1.
        delta: DP delta of the claim; in [0, 1].
        significance: One minus the confidence, shared equally by the two rates; in (0, 1).

    Returns:
        Nats, rounded down, at least 0: the larger of ln((TPR_lower - delta) / FPR_upper) and
        ln((TNR_lower - delta) / FNR_upper).

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        docs/proofs/threshold_audit.md; arXiv:2006.07709, for one direction.

    Example:
        >>> f"{epsilon_lower_bound(1000, 1000, 0, 1000, delta=0.0):.4f}"
        '5.6006'
    """
    members = require_integer("num_members", num_members, 1)
    nonmembers = require_integer("num_nonmembers", num_nonmembers, 1)
    hits = require_integer("true_positives", true_positives, 0, members)
    alarms = require_integer("false_positives", false_positives, 0, nonmembers)
    delta = require_in_range("delta", delta, 0.0, 1.0)
    half = require_significance(significance) / 2.0
    # 1 - TPR_lower is FNR_upper and 1 - FPR_upper is TNR_lower: two bounds serve both
    # directions. Each is computed from its own counts, which keeps small rates accurate.
    positive = _log_ratio(
        binomial_lower(hits, members, half), binomial_upper(alarms, nonmembers, half), delta
    )
    negative = _log_ratio(
        binomial_lower(nonmembers - alarms, nonmembers, half),
        binomial_upper(members - hits, members, half),
        delta,
    )
    return max(positive, negative, 0.0)


def _log_ratio(rate_lower: float, error_upper: float, delta: float) -> float:
    """Returns ln((rate - delta) / error), rounded down; 0 where delta covers the rate."""
    if not rate_lower > delta:
        return 0.0
    # the difference is rounded by at most 1 ulp of the rate
    gap = (rate_lower - delta) - math.ulp(rate_lower)
    if not gap > 0.0:
        return 0.0
    return math.log(gap / error_upper) - 4.0 * _ROUND_DOWN
