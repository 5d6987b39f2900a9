"""Lower bounds on epsilon and on Gaussian mu from one run with many canaries.

Every canary enters the pool by its own fair coin; the auditor sees what was released, guesses for
some canaries whether they are in, and counts the right guesses. The number of guesses is fixed
before looking. Two readings of the count:

- `epsilon_lower_bound`: no (epsilon, delta)-DP mechanism with a smaller epsilon, of any shape;
- `gaussian_mu_lower_bound`: no mu-Gaussian-DP mechanism with a smaller mu. Tighter, but it
  contradicts claims of that shape only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import betaincc, betainccinv, expit, gammaln, log_expit, log_ndtr, ndtr, ndtri

from sordino.auditing._counts import require_scores, require_significance
from sordino.core.checks import require_in_range, require_integer, require_non_negative
from sordino.core.errors import InvalidDataError, InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "count_correct_guesses",
    "epsilon_lower_bound",
    "gaussian_epsilon_lower_bound",
    "gaussian_mu_lower_bound",
    "guess_probability_upper",
]

_TOLERANCE = 1e-11  # relative width of the last bracket; its lower end is returned
_MARGIN = 1e-8  # relative, in a probability; log binomials of 1e6 guesses err by up to 2e-9
_RECURSION_MARGIN = 1e-7  # relative, in a sum of shares
# Near the root the sum can amplify rounding a million times, but then it amplifies mu as well: in
# mu, the worst relative error found against 40 digits is below 1e-9.
_MU_MARGIN = 1e-8
_MAX_CANARIES = 1_000_000  # where the margins above were checked
_SMALLEST_MU = 1e-9
_SMALLEST_DELTA = 1e-300
_CLOSED_FORM_ERROR = 1e-9  # relative, in delta


def epsilon_lower_bound(
    num_canaries: int,
    num_guesses: int,
    num_correct: int,
    delta: float,
    significance: float = 0.05,
) -> float:
    """Returns an epsilon that (epsilon, delta)-DP must reach, from one run.

    Guarantee:
        If the run is (epsilon, delta)-DP in adding or removing one canary, the result exceeds
        epsilon with probability at most `significance`. Assumes: independent fair coins that
        only the audit knows; guesses from the release alone; their number fixed beforehand
        (for several numbers divide `significance` by how many were tried).

    Args:
        num_canaries: Canaries for which a coin was thrown, guessed or not; in [1, 1e6].
        num_guesses: Canaries with a guess; in [0, num_canaries].
        num_correct: Right guesses; in [0, num_guesses].
        delta: DP delta of the claim; in [0, 1].
        significance: One minus the confidence; in (0, 1).

    Returns:
        Nats, rounded down, at least 0: an epsilon whose `guess_probability_upper` is below
        `significance`, the largest one up to the search's tolerance of 1e-11.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        arXiv:2305.08846v1, Corollary 5.4 and Appendix D; docs/proofs/one_run_audit.md.

    Example:
        >>> f"{epsilon_lower_bound(1000, 100, 75, delta=1e-4):.4f}"
        '0.6730'
        >>> f"{epsilon_lower_bound(100, 100, 100, delta=0.0):.4f}"  # q = 0.05 ** (1 / 100)
        '3.4930'
    """
    num_canaries, num_guesses, num_correct = _require_counts(num_canaries, num_guesses, num_correct)
    delta = require_in_range("delta", delta, 0.0, 1.0)
    level = require_significance(significance)
    if num_correct == 0:
        return 0.0
    # From here on the binomial tail alone reaches the level, so no bound lies above.
    wrong_rate = float(betainccinv(num_guesses - num_correct + 1, num_correct, level))
    if not wrong_rate < 0.5:
        return 0.0
    high = -math.log(wrong_rate) + math.log1p(-wrong_rate)
    bound = _GuessBound(num_canaries, num_guesses, num_correct, delta)
    return _largest_rejected(lambda epsilon: bound(epsilon) * (1.0 + _MARGIN) < level, high)


def guess_probability_upper(
    num_canaries: int, num_guesses: int, num_correct: int, epsilon: float, delta: float
) -> float:
    """Returns an upper bound on the probability of so many right guesses under a claim.

    Guarantee:
        If the run is (epsilon, delta)-DP, `num_correct` or more of `num_guesses` guesses are
        right with at most this probability, under the assumptions of `epsilon_lower_bound`.

    Args:
        num_canaries: Canaries for which a coin was thrown; in [1, 1e6].
        num_guesses: Canaries with a guess; in [0, num_canaries].
        num_correct: Right guesses; in [0, num_guesses].
        epsilon: DP epsilon of the claim in nats; at least 0.
        delta: DP delta of the claim; in [0, 1].

    Returns:
        min(1, f(v) + 2 m delta max over 1 <= i <= v of (f(v - i) - f(v)) / i), where f(k) is
        the probability that Binomial(r, e^epsilon / (1 + e^epsilon)) is at least k; rounded up.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        arXiv:2305.08846v1, Corollary 5.4; docs/proofs/one_run_audit.md.

    Example:
        >>> f"{guess_probability_upper(1000, 100, 75, epsilon=0.673, delta=1e-4):.4f}"
        '0.0500'
    """
    counts = _require_counts(num_canaries, num_guesses, num_correct)
    epsilon = require_non_negative("epsilon", epsilon)
    delta = require_in_range("delta", delta, 0.0, 1.0)
    return min(_GuessBound(*counts, delta)(epsilon) * (1.0 + _MARGIN), 1.0)


def gaussian_mu_lower_bound(
    num_canaries: int, num_guesses: int, num_correct: int, significance: float = 0.05
) -> float:
    """Returns a mu that Gaussian differential privacy must reach, from one run.

    Guarantee:
        If the run is mu-Gaussian-DP in adding or removing one canary, the result exceeds mu
        with probability at most `significance`, under the assumptions of
        `epsilon_lower_bound`. It says nothing about mechanisms of another shape.

    Args:
        num_canaries: Canaries for which a coin was thrown, guessed or not; in [1, 1e6].
        num_guesses: Canaries with a guess; in [0, num_canaries].
        num_correct: Right guesses; in [0, num_guesses].
        significance: One minus the confidence; in (0, 1).

    Returns:
        mu without unit, rounded down, at least 0.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        arXiv:2410.22235v1, the version with abstention; docs/proofs/one_run_audit.md.
        Departure: mu is searched by bisection instead of a list of candidates.

    Example:
        >>> f"{gaussian_mu_lower_bound(1000, 1000, 690):.3f}"
        '0.337'
    """
    counts = _require_counts(num_canaries, num_guesses, num_correct)
    level = require_significance(significance)

    def is_rejected(mu: float) -> bool:
        return _contradicts_gaussian(*counts, mu, level)

    if not is_rejected(0.0):
        return 0.0
    high = 1.0
    while is_rejected(high):  # ends: at a large mu the recursion stays at its start
        high *= 2.0
    return _largest_rejected(is_rejected, high) * (1.0 - _MU_MARGIN)


def gaussian_epsilon_lower_bound(
    num_canaries: int,
    num_guesses: int,
    num_correct: int,
    delta: float,
    significance: float = 0.05,
) -> float:
    """Returns the epsilon at delta that belongs to `gaussian_mu_lower_bound`.

    Guarantee:
        If the run is mu-Gaussian-DP and epsilon is what mu-Gaussian-DP gives at `delta`, the
        result exceeds that epsilon with probability at most `significance`. It does not
        contradict an (epsilon, delta) claim about a mechanism of another shape.

    Args:
        num_canaries: Canaries for which a coin was thrown, guessed or not; in [1, 1e6].
        num_guesses: Canaries with a guess; in [0, num_canaries].
        num_correct: Right guesses; in [0, num_guesses].
        delta: DP delta; in [1e-300, 1]. At 0 the epsilon of every Gaussian is infinite.
        significance: One minus the confidence; in (0, 1).

    Returns:
        Nats, rounded down, at least 0.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        arXiv:2410.22235v1; arXiv:1805.06530v2, Theorem 8, for the conversion.

    Example:
        >>> f"{gaussian_epsilon_lower_bound(1000, 1000, 690, delta=1e-5):.2f}"
        '1.29'
    """
    delta = require_in_range("delta", delta, _SMALLEST_DELTA, 1.0)
    mu = gaussian_mu_lower_bound(num_canaries, num_guesses, num_correct, significance)
    if mu < _SMALLEST_MU:
        return 0.0
    wanted = math.log(delta) + _CLOSED_FORM_ERROR

    def is_below(epsilon: float) -> bool:
        return _gaussian_log_delta(mu, epsilon) > wanted

    high = 1.0
    while is_below(high):
        high *= 2.0
    return _largest_rejected(is_below, high)


def count_correct_guesses(
    scores: ArrayLike, is_member: ArrayLike, num_in_guesses: int, num_out_guesses: int
) -> int:
    """Returns how many guesses are right when the highest scores are called members.

    Guarantee:
        A lower bound on the right guesses of the rule "the `num_in_guesses` highest scores are
        in, the `num_out_guesses` lowest are out" with ties broken without looking at
        membership: where scores are tied at a cut, the wrong ones are taken first.

    Args:
        scores: One score a canary, higher = more likely a member, shape (num_canaries,).
        is_member: Whether the canary's coin put it in, shape (num_canaries,), booleans.
        num_in_guesses: Guesses "in"; at least 0, fixed before looking.
        num_out_guesses: Guesses "out"; at least 0; at most num_canaries in all.

    Returns:
        `num_correct` for the bounds of this module, whose `num_guesses` is the sum of both.

    Raises:
        InvalidDataError: If scores or memberships are not vectors of one length, or not finite.
        InvalidParameterError: If the numbers of guesses are out of range.

    Source:
        arXiv:2305.08846v1, Algorithm 1.

    Example:
        >>> count_correct_guesses([3.0, 2.0, 1.0, 0.0], [True, False, True, False], 2, 2)
        2
        >>> count_correct_guesses([1.0, 1.0], [True, False], 1, 0)  # a tie
        0
    """
    values = require_scores("scores", scores)
    members = np.asarray(is_member)
    if members.dtype != np.bool_ or members.shape != values.shape:
        raise InvalidDataError(
            f"is_member must be booleans of shape {values.shape}, got {members.dtype} of shape "
            f"{members.shape}."
        )
    num_in = require_integer("num_in_guesses", num_in_guesses, 0, values.size)
    num_out = require_integer("num_out_guesses", num_out_guesses, 0, values.size)
    if num_in + num_out > values.size:
        raise InvalidParameterError(
            f"num_in_guesses + num_out_guesses must be at most the {values.size} canaries, got "
            f"{num_in + num_out}."
        )
    # Sorted by falling score, non-members first in a tie; and the mirror image. Where both ends
    # meet in one tie they may count a canary twice, always on its wrong side: still a lower bound.
    highest = np.lexsort((members, -values))[:num_in]
    lowest = np.lexsort((~members, values))[:num_out]
    return int(members[highest].sum()) + int((~members[lowest]).sum())


class _GuessBound:
    """The probability bound as a function of epsilon, with the log factorials computed once."""

    def __init__(self, num_canaries: int, num_guesses: int, num_correct: int, delta: float) -> None:
        self._wrong = num_guesses - num_correct
        self._correct = num_correct
        self._factor = 2.0 * num_canaries * delta
        below: NDArray[np.float64] = np.arange(num_correct - 1, -1, -1, dtype=np.float64)
        self._below = below
        self._above = num_guesses - below
        self._window = np.arange(1, num_correct + 1, dtype=np.float64)
        self._log_choices = (
            gammaln(num_guesses + 1.0) - gammaln(below + 1.0) - gammaln(self._above + 1.0)
        )

    def __call__(self, epsilon: float) -> float:
        """Returns the bound at this epsilon, at most 1, without margin."""
        if self._correct == 0:
            return 1.0
        tail = float(betaincc(self._wrong + 1, self._correct, expit(-epsilon)))
        if self._factor == 0.0:
            return tail
        log_masses = (
            self._log_choices + self._below * log_expit(epsilon) + self._above * log_expit(-epsilon)
        )
        steepest = float(np.max(np.cumsum(np.exp(log_masses)) / self._window))
        return min(tail + self._factor * steepest, 1.0)


def _contradicts_gaussian(
    num_canaries: int, num_guesses: int, num_correct: int, mu: float, level: float
) -> bool:
    """Returns whether mu-Gaussian-DP makes so many right guesses less likely than the level."""
    # Shares of all canaries: guessed right, guessed wrong, in the outcomes with at least i right.
    right = level * num_correct / num_canaries
    wrong = level * (num_guesses - num_correct) / num_canaries
    limit = num_guesses / num_canaries * (1.0 + _RECURSION_MARGIN)
    for i in range(num_correct - 1, -1, -1):
        least_wrong = float(ndtr(ndtri(right) - mu))
        if least_wrong <= wrong:
            return False  # neither share can grow any more
        right += i / (num_guesses - i) * (least_wrong - wrong)
        wrong = least_wrong
        if right + wrong > limit:
            return True
    return False


def _gaussian_log_delta(mu: float, epsilon: float) -> float:
    """Returns ln(delta) of mu-Gaussian-DP at this epsilon."""
    log_p = float(log_ndtr(mu / 2.0 - epsilon / mu))
    log_q = float(log_ndtr(-mu / 2.0 - epsilon / mu)) + epsilon
    share = -math.expm1(min(log_q - log_p, 0.0))
    return log_p + math.log(share) if share > 0.0 else -math.inf


def _largest_rejected(is_rejected: Callable[[float], bool], high: float) -> float:
    """Returns a rejected value, by bisection below `high`; 0 where 0 itself is not rejected."""
    if not is_rejected(0.0):
        return 0.0
    low = 0.0
    while high - low > _TOLERANCE * high:
        middle = 0.5 * (low + high)
        if is_rejected(middle):
            low = middle
        else:
            high = middle
    return low


def _require_counts(num_canaries: int, num_guesses: int, num_correct: int) -> tuple[int, int, int]:
    """Returns counts with num_correct <= num_guesses <= num_canaries, else raises."""
    canaries = require_integer("num_canaries", num_canaries, 1, _MAX_CANARIES)
    guesses = require_integer("num_guesses", num_guesses, 0, canaries)
    return canaries, guesses, require_integer("num_correct", num_correct, 0, guesses)
