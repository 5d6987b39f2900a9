"""Audit of mechanisms that release single values: can two values be told apart too well?

The mechanism is a function that releases a value afresh each time; the attack is a score of what
was released. Both are given by the caller, so anybody's protocol can be audited.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from sordino.auditing._counts import require_significance
from sordino.auditing.clopper_pearson import epsilon_lower_bound
from sordino.auditing.verdict import EPSILON, Measurement
from sordino.core.checks import require_in_range, require_integer
from sordino.core.errors import InvalidDataError, InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

__all__ = ["LocalProtocolAudit", "audit_local_protocol", "guess_among"]

_Value = TypeVar("_Value")
_Report = TypeVar("_Report")


@dataclass(frozen=True, slots=True)
class LocalProtocolAudit:
    """How often the attack said "first value", and the epsilon that this proves."""

    num_trials: int  # of each value
    true_positives: int  # releases of the first value
    false_positives: int  # releases of the second value
    epsilon_lower: float
    delta: float
    significance: float

    def measurement(self, attack: str) -> Measurement:
        """Returns the bound in the form that `sordino.auditing.verdict.judge` reads."""
        return Measurement(attack, EPSILON, self.epsilon_lower, self.significance, self.delta)


def audit_local_protocol(
    release: Callable[[_Value], _Report],
    score: Callable[[_Report], float],
    first: _Value,
    second: _Value,
    *,
    threshold: float,
    num_trials: int,
    delta: float = 0.0,
    significance: float = 0.05,
) -> LocalProtocolAudit:
    """Returns an epsilon that any (epsilon, delta)-DP claim for the release must reach.

    Guarantee:
        If the release is (epsilon, delta)-DP in its value, `epsilon_lower` exceeds epsilon with
        probability at most `significance`. Assumes: releases are independent; score, threshold
        and values were fixed before these trials. Several audits of one claim share one
        significance between them.

    Args:
        release: Releases a value, with fresh secret randomness in each call.
        score: Larger means more likely a release of `first`. The best attack is the likelihood
            ratio of the two values, or any increasing function of it.
        first: One value.
        second: The other.
        threshold: A score of at least this counts as "first".
        num_trials: Releases of each value; at least 1.
        delta: DP delta of the claim; in [0, 1].
        significance: One minus the confidence; in (0, 1).

    Returns:
        The counts and the bound, in nats, rounded down.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range, or if the two
            values are the same.
        InvalidDataError: If a score is NaN.

    Source:
        arXiv:2309.01597v3. Departures: the likelihood ratio where the paper guesses one of all
        values (`guess_among`), which is weaker; both directions of the test count; the second
        value is fixed and not drawn.

    Example:
        >>> import random
        >>> draw = random.Random(0)
        >>> release = lambda bit: bit if draw.random() < 0.75 else 1 - bit
        >>> audit = audit_local_protocol(
        ...     release, float, 1, 0, threshold=1.0, num_trials=10_000
        ... )
        >>> 1.0 < audit.epsilon_lower < math.log(3)
        True
    """
    trials = require_integer("num_trials", num_trials, 1)
    require_in_range("delta", delta, 0.0, 1.0)
    require_significance(significance)
    if not math.isfinite(threshold):
        raise InvalidParameterError(f"threshold must be finite, got {threshold!r}.")
    if first == second:
        raise InvalidParameterError("first and second must be different values, got the same.")
    hits, alarms = (
        sum(_is_positive(score(release(value)), threshold) for _ in range(trials))
        for value in (first, second)
    )
    return LocalProtocolAudit(
        num_trials=trials,
        true_positives=hits,
        false_positives=alarms,
        epsilon_lower=epsilon_lower_bound(hits, trials, alarms, trials, delta, significance),
        delta=delta,
        significance=significance,
    )


def guess_among(candidates: Sequence[int], domain_size: int, rng: np.random.Generator) -> int:
    """Returns a random candidate, or a random value of the domain where there are none.

    This is the published attack on frequency protocols. As a score: 1.0 if it names the first
    value, else 0.0, with the threshold 1.0.

    Guarantee:
        None; it is an attack.

    Args:
        candidates: The values that a report supports.
        domain_size: Number of values; at least 1.
        rng: The attacker's randomness, which is no secret.

    Returns:
        A value in [0, domain_size).

    Raises:
        InvalidParameterError: If the domain is empty or a candidate lies outside it.

    Source:
        arXiv:2309.01597v3, attacks on GRR, unary encoding and local hashing.

    Example:
        >>> import numpy as np
        >>> guess_among([3], 8, np.random.default_rng(0))
        3
    """
    size = require_integer("domain_size", domain_size, 1)
    if not candidates:
        return int(rng.integers(size))
    chosen = candidates[int(rng.integers(len(candidates)))]
    return require_integer("candidate", chosen, 0, size - 1)


def _is_positive(score: float, threshold: float) -> bool:
    """Returns whether a score says "first"."""
    if math.isnan(score):
        raise InvalidDataError("score must be a number for every release, got NaN.")
    return score >= threshold
