"""The subset game: an attacker who knows the pool orders the candidate subsets, likeliest first.

The rank of the true one is what a run proves. One run has one secret, so a single run proves little
however clear its answer: with 128 candidates at most 0.05 nats at 95% confidence.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sordino.auditing._counts import require_scores, require_significance
from sordino.core.checks import require_integer
from sordino.core.errors import InvalidDataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["mutual_information_lower_bound", "order_candidates", "rank_of"]

_ROUND_DOWN = 1e-9  # relative; two logarithms and a few operations


def order_candidates(scores: ArrayLike, membership: ArrayLike) -> NDArray[np.float64]:
    """Returns how likely each candidate subset is to be the one that was used.

    Args:
        scores: One membership score a record of the pool, finite, shape (num_records,).
        membership: Which record is in which candidate, bool, shape (num_records, num_subsets).

    Returns:
        Shape (num_subsets,), larger is likelier: the mean rank of a candidate's records less that
        of the others. Ranks, so that one extreme score does not decide.

    Raises:
        InvalidDataError: If shapes do not belong together, or a candidate is empty or the pool.

    Source:
        The definition of the game; Mann and Whitney's statistic orders the candidates.

    Example:
        >>> order_candidates([3.0, 2.0, 1.0], [[True, False], [True, True], [False, True]]).tolist()
        [1.5, -1.5]
    """
    from scipy.stats import rankdata

    values = require_scores("scores", scores)
    member = np.asarray(membership)
    if member.dtype != np.bool_ or member.ndim != 2 or member.shape[0] != values.size:
        raise InvalidDataError(
            f"membership must be truth values of shape ({values.size}, num_subsets), got "
            f"{member.dtype} of shape {member.shape}."
        )
    sizes = member.sum(axis=0)
    if np.any(sizes == 0) or np.any(sizes == values.size):
        raise InvalidDataError("membership must not hold an empty candidate or the whole pool.")
    ranks = rankdata(values)
    inside = ranks @ member
    likelihood: NDArray[np.float64] = inside / sizes - (ranks.sum() - inside) / (
        values.size - sizes
    )
    return likelihood


def rank_of(likelihoods: ArrayLike, true_candidate: int) -> int:
    """Returns the place of the true candidate, from 1; ties count against the attacker.

    Raises:
        InvalidDataError: If likelihoods are missing, NaN, infinite or not numbers.
        InvalidParameterError: If there is no such candidate.

    Source:
        The definition.

    Example:
        >>> rank_of([0.3, 2.0, 2.0, -1.0], 2)
        2
    """
    values = require_scores("likelihoods", likelihoods)
    place = require_integer("true_candidate", true_candidate, 0, values.size - 1)
    return int(np.sum(values >= values[place]))


def mutual_information_lower_bound(
    rank: int, num_subsets: int, significance: float = 0.05
) -> float:
    """Returns the nats about the secret subset that a release must have told, from one run.

    Guarantee:
        If the secret was drawn uniformly and I(secret; release) is smaller than the result, a rank
        this good or better had a probability below `significance`. Assumes: the order was made
        from the release and public facts alone.

    Args:
        rank: Place of the true candidate; in [1, num_subsets].
        num_subsets: Candidates, M; at least 2.
        significance: One minus the confidence; in (0, 1).

    Returns:
        Nats, rounded down: KL(significance || rank / M) where rank / M is below the significance,
        else 0.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        docs/proofs/subset_game.md.

    Example:
        >>> f"{mutual_information_lower_bound(1, 128):.5f}"
        '0.05154'
    """
    candidates = require_integer("num_subsets", num_subsets, 2)
    share = require_integer("rank", rank, 1, candidates) / candidates
    level = require_significance(significance)
    if share >= level:
        return 0.0
    # log1p: both levels may be tiny
    divergence = level * math.log(level / share) + (1.0 - level) * (
        math.log1p(-level) - math.log1p(-share)
    )
    return max(divergence * (1.0 - _ROUND_DOWN), 0.0)
