"""Canaries after the run: exposure, extraction in several tries, and what guesses about them prove.

The numbers are empirical lower bounds: they can contradict a guarantee, and never give one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sordino.auditing.exposure import exposure
from sordino.auditing.one_run import (
    count_correct_guesses,
    epsilon_lower_bound,
    gaussian_epsilon_lower_bound,
)
from sordino.core.checks import require_in_range, require_integer
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.data.canaries import PlannedCanaries, read_canaries

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "CanaryGuessBound",
    "PlannedCanaries",
    "canary_guess_bound",
    "exposure",
    "extraction_chance",
    "read_canaries",
    "tries_needed",
]

_SMALLEST_PROBABILITY = 1e-300  # below it, a number of tries need not fit into float64


@dataclass(frozen=True, kw_only=True, slots=True)
class CanaryGuessBound:
    """What guesses about canaries prove.

    Args:
        num_canaries: Planned; each entered the pool by its own fair coin.
        num_included: Of these, those that did.
        num_guesses: Fixed before looking.
        num_correct: Right guesses, at least.
        delta: Of the bounds.
        significance: Of each bound.
        epsilon_lower: Nats, of a DP guarantee of any shape.
        gaussian_epsilon_lower: Nats, contradicts Gaussian-shaped claims only.
    """

    num_canaries: int
    num_included: int
    num_guesses: int
    num_correct: int
    delta: float
    significance: float
    epsilon_lower: float
    gaussian_epsilon_lower: float


def canary_guess_bound(
    scores: ArrayLike,
    is_included: ArrayLike,
    num_guesses: int,
    delta: float,
    significance: float = 0.05,
) -> CanaryGuessBound:
    """Returns lower bounds on epsilon from guesses: the highest scores are in, the lowest out.

    Half of the guesses are "in" (the odd one, if there is one, too). Only the scores decide them:
    neither the number of canaries in the pool nor anything else is looked at.

    Guarantee:
        If the run is (epsilon, delta)-DP in adding or removing one canary, `epsilon_lower` exceeds
        epsilon with probability at most `significance`. Assumes: independent fair coins that the
        scores know only through what was released; `num_guesses` fixed beforehand (for several
        numbers divide `significance` by how many were tried).

    Args:
        scores: One a planned canary, higher = more likely a member, shape (num_canaries,).
        is_included: Whether its coin put it in, shape (num_canaries,), booleans.
        num_guesses: In [0, num_canaries].
        delta: Of the claim, in [0, 1]. At 0 the Gaussian reading proves nothing and is 0.
        significance: Of each of the two bounds, in (0, 1).

    Raises:
        InvalidDataError: If scores or inclusions are not vectors of one length, or not finite.
        InvalidParameterError: If a number is NaN, infinite or out of range.

    Source:
        arXiv:2305.08846v1, Algorithm 1 and Corollary 5.4; arXiv:2410.22235v1.

    Example:
        >>> is_included = np.arange(1000) % 2 == 0
        >>> bound = canary_guess_bound(1.0 * is_included, is_included, 100, delta=1e-5)
        >>> bound.num_correct, f"{bound.epsilon_lower:.2f}"
        (100, '3.47')
    """
    included = np.asarray(is_included)
    if included.ndim != 1 or included.size == 0:
        raise InvalidDataError(
            f"is_included must be a vector of at least one boolean, got shape {included.shape}."
        )
    guesses = require_integer("num_guesses", num_guesses, 0, included.size)
    delta = require_in_range("delta", delta, 0.0, 1.0)
    num_in = guesses - guesses // 2
    num_correct = count_correct_guesses(scores, included, num_in, guesses // 2)
    counts = (included.size, guesses, num_correct)
    return CanaryGuessBound(
        num_canaries=included.size,
        num_included=int(included.sum()),
        num_guesses=guesses,
        num_correct=num_correct,
        delta=delta,
        significance=significance,
        epsilon_lower=epsilon_lower_bound(*counts, delta, significance),
        gaussian_epsilon_lower=(
            gaussian_epsilon_lower_bound(*counts, delta, significance) if delta > 0 else 0.0
        ),
    )


def extraction_chance(num_tries: int, probability_per_try: float) -> float:
    """Returns the probability that at least one of several independent tries gives a secret.

    Args:
        num_tries: n, at least 0.
        probability_per_try: q, the probability of one sampled continuation, in [0, 1].

    Returns:
        1 - (1 - q)^n, accurate for small q too.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        arXiv:2410.19482v3, (n, p)-discoverable extraction.

    Example:
        >>> f"{extraction_chance(1_000_000, 1e-18):.3g}"
        '1e-12'
    """
    tries = require_integer("num_tries", num_tries, 0)
    q = require_in_range("probability_per_try", probability_per_try, 0.0, 1.0)
    if tries == 0 or q == 0.0:
        return 0.0
    return 1.0 if q == 1.0 else -math.expm1(tries * math.log1p(-q))


def tries_needed(probability_per_try: float, target_chance: float) -> int:
    """Returns after how many independent tries a secret was given with the wanted probability.

    Args:
        probability_per_try: q, in [1e-300, 1].
        target_chance: p, in [0, 1); with q = 1, in [0, 1].

    Returns:
        The least n with 1 - (1 - q)^n >= p, up to float64 rounding.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range, or no number of
            tries is enough.

    Source:
        arXiv:2410.19482v3, (n, p)-discoverable extraction.

    Example:
        >>> tries_needed(0.01, 0.5)
        69
    """
    q = require_in_range("probability_per_try", probability_per_try, 0.0, 1.0)
    p = require_in_range("target_chance", target_chance, 0.0, 1.0)
    if p == 0.0:
        return 0
    if q == 1.0:
        return 1
    if q < _SMALLEST_PROBABILITY or p == 1.0:
        raise InvalidParameterError(
            f"no number of tries reaches a chance of {p:g} at a probability of {q:g} a try. Use a "
            f"probability of at least {_SMALLEST_PROBABILITY:g} and a chance below 1."
        )
    return max(1, math.ceil(math.log1p(-p) / math.log1p(-q)))
