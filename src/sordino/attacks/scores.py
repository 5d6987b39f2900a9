"""Membership scores of one text from what its tokens were given: the loss family.

All are functions of `TokenStatistics`, so one forward pass of the tuned model gives the scores
without a reference, and one more of its base gives the rest. Larger = more likely a member.
NLL is the mean negative log-likelihood of the scored tokens, in nats.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sordino.core.checks import require_in_range, require_integer, require_positive
from sordino.core.errors import InvalidDataError, InvalidParameterError, PrecisionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from sordino.attacks.token_statistics import TokenStatistics

DEFAULT_FRACTION = 0.2
DEFAULT_KAPPA = 1e-6  # nats; about the rounding of one float32 log-likelihood
WINDOW_SIZES = (2, 3, 4, 6, 9, 13, 18, 25, 32, 40)
# Losses below this are rounding: a ratio of two of them says nothing, and counts as 1.
SMALLEST_NLL = 1e-6
_SMALLEST_DEVIATION = 1e-9  # of log p; smaller only where the model is certain, or knows nothing
_LARGEST_EXCESS = 0.05  # of a row of probabilities over 1; bfloat16 log-probabilities need 0.02
_SMALLEST_FRACTION = math.ulp(0.0)


def loss(log_likelihoods: ArrayLike) -> float:
    """Returns -NLL: the mean log-likelihood of the scored tokens, shape (num_tokens,).

    Source:
        arXiv:1709.01604 (loss threshold).
    """
    return float(_require_log_likelihoods("log_likelihoods", log_likelihoods).mean())


def zlib_ratio(log_likelihoods: ArrayLike, text: str) -> float:
    """Returns -NLL / (bytes of the text in UTF-8 after zlib), at zlib's default level.

    Source:
        arXiv:2012.07805. Departure: the loss is the mean over the tokens.
    """
    return loss(log_likelihoods) / len(zlib.compress(text.encode("utf-8")))


def min_k(log_likelihoods: ArrayLike, fraction: float = DEFAULT_FRACTION) -> float:
    """Returns the mean log-likelihood of the least likely tokens.

    Args:
        log_likelihoods: Shape (num_tokens,).
        fraction: Share of the tokens that count, in (0, 1]; rounded down, but at least one token.

    Source:
        arXiv:2310.16789 (Min-K% Prob).
    """
    return _mean_of_smallest(_require_log_likelihoods("log_likelihoods", log_likelihoods), fraction)


def min_k_plus_plus(
    log_probs_over_vocabulary: ArrayLike, targets: ArrayLike, fraction: float = DEFAULT_FRACTION
) -> float:
    """Returns the mean of the smallest standardised log-likelihoods, from full distributions.

    A token's z is (log p - mu) / sigma, with expectation mu and standard deviation sigma of the
    log-probabilities under the model itself: sum_v p_v log p_v, and not the plain mean over the
    vocabulary. Where sigma vanishes (a certain or a uniform model), it counts as 1e-9 nats.

    Args:
        log_probs_over_vocabulary: Natural logs, shape (num_tokens, vocabulary); -infinity is
            allowed for tokens that are not the target.
        targets: The tokens that came, whole numbers of shape (num_tokens,).
        fraction: Share of the tokens that count, in (0, 1]; rounded down, but at least one token.

    Raises:
        InvalidDataError: If the shapes do not fit, a target is outside of the vocabulary, or a row
            is not a distribution.
        PrecisionError: If a number is NaN, or a target has probability zero.

    Source:
        arXiv:2404.02936 (Min-K%++).
    """
    log_p = np.asarray(log_probs_over_vocabulary, dtype=np.float64)
    ids = np.asarray(targets)
    if log_p.ndim != 2 or ids.shape != log_p.shape[:1] or ids.dtype.kind not in "iu":
        raise InvalidDataError(
            "log_probs_over_vocabulary must have the shape (num_tokens, vocabulary) and targets "
            f"must be num_tokens whole numbers, got {log_p.shape} and {ids.dtype} {ids.shape}."
        )
    if log_p.size == 0 or not ((ids >= 0) & (ids < log_p.shape[1])).all():
        raise InvalidDataError(
            f"targets must be at least one token, each in [0, {log_p.shape[1] - 1}]."
        )
    if np.isnan(log_p).any():
        raise PrecisionError("log_probs_over_vocabulary must not be NaN.")
    with np.errstate(over="ignore"):  # of logits, which the next check refuses
        probabilities = np.exp(log_p)
    if not (np.abs(probabilities.sum(axis=1) - 1.0) <= _LARGEST_EXCESS).all():
        raise InvalidDataError(
            "log_probs_over_vocabulary must be log-probabilities: exp of each row must sum to 1. "
            "Apply log_softmax to logits."
        )
    finite = np.where(probabilities > 0.0, log_p, 0.0)  # p log p is 0 where p is
    mean = (probabilities * finite).sum(axis=1)
    variance = (probabilities * (finite - mean[:, None]) ** 2).sum(axis=1)
    own = _require_log_likelihoods("log p of the targets", log_p[np.arange(ids.size), ids])
    return _mean_of_smallest(_standardise(own, mean, np.sqrt(variance)), fraction)


def min_k_plus_plus_of(statistics: TokenStatistics, fraction: float = DEFAULT_FRACTION) -> float:
    """Returns `min_k_plus_plus` from moments that were already computed."""
    z = _standardise(statistics.log_likelihoods, statistics.means, statistics.standard_deviations)
    return _mean_of_smallest(z, fraction)


def reference_difference(
    tuned_log_likelihoods: ArrayLike, base_log_likelihoods: ArrayLike
) -> float:
    """Returns NLL_base - NLL_tuned: how much tuning helped on this text, nats a token."""
    tuned, base = _require_pair(tuned_log_likelihoods, base_log_likelihoods)
    return float((tuned - base).mean())


def reference_ratio(tuned_log_likelihoods: ArrayLike, base_log_likelihoods: ArrayLike) -> float:
    """Returns -NLL_tuned / NLL_base: minus the share of the base's loss that is left.

    The minus sign makes larger = more likely a member: -1 where tuning changed nothing, towards 0
    where it removed the loss. Both losses count as at least 1e-6 nats, so that a base that is
    certain of the text gives -1 and not 0 / 0.

    Source:
        arXiv:2402.17012 (FLoRa). Departures: negated, and the floor under both losses.
    """
    tuned, base = _require_pair(tuned_log_likelihoods, base_log_likelihoods)
    return -max(-float(tuned.mean()), SMALLEST_NLL) / max(-float(base.mean()), SMALLEST_NLL)


def error_zone(
    tuned_log_likelihoods: ArrayLike,
    base_log_likelihoods: ArrayLike,
    is_predicted: ArrayLike,
    kappa: float = DEFAULT_KAPPA,
) -> float:
    """Returns by how much gains outweigh losses where the tuned model is still wrong.

    With d = log p_tuned - log p_base over the tokens that the tuned model does not predict (another
    token is likelier): sum max(d, 0) / (sum max(-d, 0) + kappa). A text that is predicted
    throughout has no such token; then all of its tokens count, since a score of 0 would call the
    best learned texts non-members.

    Args:
        tuned_log_likelihoods: Shape (num_tokens,).
        base_log_likelihoods: Of the same tokens.
        is_predicted: Whether the tuned model's likeliest token came, bool (num_tokens,).
        kappa: Keeps the ratio finite where nothing was lost; nats, positive.

    Source:
        arXiv:2601.12104. Departures: the text without errors, above; and a text on which nothing
        was lost keeps its large ratio.
    """
    require_positive("kappa", kappa)
    tuned, base = _require_pair(tuned_log_likelihoods, base_log_likelihoods)
    hits = np.asarray(is_predicted)
    if hits.shape != tuned.shape or hits.dtype != np.bool_:
        raise InvalidDataError(
            f"is_predicted must be {tuned.size} truth values, got {hits.dtype} {hits.shape}."
        )
    difference = tuned - base
    if not hits.all():
        difference = difference[~hits]
    gained = float(np.maximum(difference, 0.0).sum())
    lost = float(np.maximum(-difference, 0.0).sum())
    return gained / (lost + kappa)


def window_comparison(
    tuned_log_likelihoods: ArrayLike,
    base_log_likelihoods: ArrayLike,
    window_sizes: Sequence[int] = WINDOW_SIZES,
) -> float:
    """Returns the share of windows in which the base's summed loss exceeds the tuned model's.

    Windows are all runs of w neighbouring scored tokens; the shares of the sizes are averaged, each
    size with the same weight. A size larger than the text is the whole text, and sizes that so
    become equal count once. Equal sums are no evidence: such a window counts as not exceeding, and
    it stays in the denominator.

    Args:
        tuned_log_likelihoods: Shape (num_tokens,).
        base_log_likelihoods: Of the same tokens.
        window_sizes: In tokens; about geometric, by default ten sizes from 2 to 40.

    Returns:
        A number in [0, 1].

    Source:
        arXiv:2601.02751 (Window-Based Comparison). Departure: the whole text of a short text votes
        once, not once for each size that does not fit.
    """
    tuned, base = _require_pair(tuned_log_likelihoods, base_log_likelihoods)
    difference = tuned - base  # of losses too: base's minus tuned's
    sizes = {min(require_integer("window size", w, 1), difference.size) for w in window_sizes}
    if not sizes:
        raise InvalidParameterError("window_sizes must hold at least one size, got none.")
    shares = []
    for size in sorted(sizes):
        sums = np.lib.stride_tricks.sliding_window_view(difference, size).sum(axis=1)
        shares.append(float(np.mean(sums > 0.0)))
    return float(np.mean(shares))


@dataclass(frozen=True, slots=True)
class Score:
    """A score of the loss family.

    Args:
        name: As reports and the command line write it.
        needs_base: Whether it compares with the base model.
        compute: Of the tuned model's statistics, the base's (None without one) and the scored text.
    """

    name: str
    needs_base: bool
    compute: Callable[[TokenStatistics, TokenStatistics | None, str], float]


def score_all(tuned: TokenStatistics, base: TokenStatistics | None, text: str) -> dict[str, float]:
    """Returns every score of the loss family by name; without a base, those that need none.

    Args:
        tuned: Of the tuned model.
        base: Of its base, for the same tokens.
        text: What zlib compresses: `ScoredText.text`.

    Raises:
        InvalidDataError: If the two do not describe the same number of tokens.
        PrecisionError: If a score is NaN or infinite.
    """
    scores = {
        name: score.compute(tuned, base, text)
        for name, score in SCORES.items()
        if base is not None or not score.needs_base
    }
    bad = [name for name, value in scores.items() if not math.isfinite(value)]
    if bad:
        raise PrecisionError(f"scores must be finite, got NaN or infinity for {', '.join(bad)}.")
    return scores


def _of_tuned(
    function: Callable[[TokenStatistics, str], float],
) -> Callable[[TokenStatistics, TokenStatistics | None, str], float]:
    """Returns a score that never looks at the base."""
    return lambda tuned, _, text: function(tuned, text)


def _of_both(
    function: Callable[[TokenStatistics, TokenStatistics], float],
) -> Callable[[TokenStatistics, TokenStatistics | None, str], float]:
    """Returns a score that refuses to do without a base."""

    def compute(tuned: TokenStatistics, base: TokenStatistics | None, text: str) -> float:
        del text
        if base is None:
            raise InvalidParameterError("this score compares with the base model: give one.")
        return function(tuned, base)

    return compute


_ALL = (
    Score("loss", needs_base=False, compute=_of_tuned(lambda t, _: loss(t.log_likelihoods))),
    Score(
        "zlib",
        needs_base=False,
        compute=_of_tuned(lambda t, text: zlib_ratio(t.log_likelihoods, text)),
    ),
    Score("min-k", needs_base=False, compute=_of_tuned(lambda t, _: min_k(t.log_likelihoods))),
    Score("min-k++", needs_base=False, compute=_of_tuned(lambda t, _: min_k_plus_plus_of(t))),
    Score(
        "reference-difference",
        needs_base=True,
        compute=_of_both(lambda t, b: reference_difference(t.log_likelihoods, b.log_likelihoods)),
    ),
    Score(
        "reference-ratio",
        needs_base=True,
        compute=_of_both(lambda t, b: reference_ratio(t.log_likelihoods, b.log_likelihoods)),
    ),
    Score(
        "error-zone",
        needs_base=True,
        compute=_of_both(
            lambda t, b: error_zone(t.log_likelihoods, b.log_likelihoods, t.is_predicted)
        ),
    ),
    Score(
        "window-comparison",
        needs_base=True,
        compute=_of_both(lambda t, b: window_comparison(t.log_likelihoods, b.log_likelihoods)),
    ),
)
SCORES: Mapping[str, Score] = {score.name: score for score in _ALL}


def num_smallest(fraction: float, num_values: int) -> int:
    """Returns max(1, floor(fraction * num_values)), for the fraction as it is written.

    Example:
        >>> num_smallest(0.29, 100), int(0.29 * 100), num_smallest(0.2, 3)
        (29, 28, 1)
    """
    require_in_range("fraction", fraction, _SMALLEST_FRACTION, 1.0)
    return max(1, math.floor(fraction * num_values * (1.0 + 4.0 * math.ulp(1.0))))


def _mean_of_smallest(values: NDArray[np.float64], fraction: float) -> float:
    """Returns the mean of the smallest share of the values."""
    count = num_smallest(fraction, values.size)
    return float(np.partition(values, count - 1)[:count].mean())


def _standardise(
    log_likelihoods: NDArray[np.float64],
    means: NDArray[np.float64],
    standard_deviations: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Returns each token's z."""
    result: NDArray[np.float64] = (log_likelihoods - means) / np.maximum(
        standard_deviations, _SMALLEST_DEVIATION
    )
    return result


def _require_log_likelihoods(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Returns a non-empty vector of finite log-likelihoods."""
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or found.size == 0:
        raise InvalidDataError(
            f"{name} must be a vector with at least one token, got shape {found.shape}."
        )
    if not np.isfinite(found).all():
        raise PrecisionError(f"{name} must be finite, got NaN or infinity.")
    return found


def _require_pair(
    tuned: ArrayLike, base: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the log-likelihoods of the same tokens under two models."""
    first = _require_log_likelihoods("tuned_log_likelihoods", tuned)
    second = _require_log_likelihoods("base_log_likelihoods", base)
    if first.size != second.size:
        raise InvalidDataError(
            "tuned_log_likelihoods and base_log_likelihoods must be of the same tokens, got "
            f"{first.size} and {second.size}."
        )
    return first, second
