"""Membership scores that need more than two forward passes: other models, other texts, other users.

Who calls them brings the losses (see `token_statistics`) of models that were trained without the
records, of perturbed copies, or of a user's fresh samples; here is only what is made of them. NLL
is a text's mean negative log-likelihood in nats. Larger scores = more likely a member.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import log_ndtr, logsumexp

from sordino.attacks.scores import num_smallest
from sordino.core.checks import require_in_range, require_integer
from sordino.core.errors import InvalidDataError, InvalidParameterError, PrecisionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

_MODELS_FOR_OWN_VARIANCE = 16  # fewer give one record's variance too badly
_DEFAULT_A = 0.3
_LARGEST_GAMMA = 1e6


def lira_offline(target_statistics: ArrayLike, out_statistics: ArrayLike) -> NDArray[np.float64]:
    """Returns how far the target model's statistic lies above those of models without the record.

    With phi the target's statistic, and mean and deviation s of the out models': -ln(1 - Phi(z)),
    z = (phi - mean) / s. It rises with Phi(z), the usual form, but does not saturate at 1 where
    the strongest members are. One-sided: a statistic *below* the mean is no evidence.

    Args:
        target_statistics: Larger = more likely a member, such as -NLL; shape (num_records,).
        out_statistics: The same of models trained without the record, shape (num_models,
            num_records), at least 2 models. Under 16 models all records share one variance, pooled
            around each record's own mean; from 16 on each has its own. Both are unbiased.

    Raises:
        InvalidDataError: If shapes do not fit, or the out models do not differ at all.
        PrecisionError: If a number is NaN or infinite.

    Source:
        arXiv:2112.03570, offline attack. Departure: the survival function's logarithm.
    """
    target = _require_numbers("target_statistics", target_statistics, 1)
    out = _require_numbers("out_statistics", out_statistics, 2)
    num_models = out.shape[0]
    if out.shape[1] != target.size or num_models < 2:
        raise InvalidDataError(
            f"out_statistics must be of at least 2 models and {target.size} records, got shape "
            f"{out.shape}."
        )
    variance = out.var(axis=0, ddof=1)
    if num_models < _MODELS_FOR_OWN_VARIANCE:
        variance = np.full_like(variance, variance.mean())
    if not (variance > 0.0).all():
        raise InvalidDataError(
            "out_statistics must differ between the models, got a record on which all agree. Train "
            "the out models on different data."
        )
    z = (target - out.mean(axis=0)) / np.sqrt(variance)
    scores: NDArray[np.float64] = -log_ndtr(-z)
    return scores


def rmia_offline(
    target_nll: ArrayLike,
    out_nll: ArrayLike,
    population_nll: ArrayLike,
    population_out_nll: ArrayLike,
    *,
    a: float = _DEFAULT_A,
    gamma: float = 1.0,
) -> NDArray[np.float64]:
    """Returns the share of population texts that each record beats by a factor of at least gamma.

    With P_theta(x) = exp(-NLL) under the target model and P(x) = ((1 + a) mean_out exp(-NLL) +
    1 - a) / 2: the share of z with (P_theta(x) / P(x)) / (P_theta(z) / P(z)) >= gamma.

    Args:
        target_nll: Of the records under the target model, shape (num_records,).
        out_nll: Of the records under models without them, shape (num_models, num_records).
        population_nll: Of other texts of the same kind, shape (num_population,).
        population_out_nll: Of these under the same models, shape (num_models, num_population).
        a: How likely the out models find texts that they were not trained on, relative to their
            own; in [0, 1]. 1 means that being in changes nothing.
        gamma: At least 1.

    Returns:
        Multiples of 1 / num_population in [0, 1], shape (num_records,).

    Raises:
        InvalidDataError: If shapes do not fit.
        PrecisionError: If a number is NaN or infinite.

    Source:
        arXiv:2312.03262, equations for the offline attack. Everything in log space.
    """
    require_in_range("a", a, 0.0, 1.0)
    require_in_range("gamma", gamma, 1.0, _LARGEST_GAMMA)
    records = _log_ratio_to_out("target_nll", target_nll, out_nll, a)
    population = np.sort(_log_ratio_to_out("population_nll", population_nll, population_out_nll, a))
    num_beaten = np.searchsorted(population, records - math.log(gamma), side="right")
    shares: NDArray[np.float64] = num_beaten / population.size
    return shares


def neighbourhood(negative_log_likelihood: float, of_copies: ArrayLike) -> float:
    """Returns mean NLL of perturbed copies - NLL of the text: how sharply it stands out.

    Args:
        negative_log_likelihood: Of the text.
        of_copies: Of copies such as those of `perturb_tokens`, shape (num_copies,).

    Source:
        arXiv:2305.18462. Departure: neighbours are the caller's; theirs come from a masked model.
    """
    copies = _require_numbers("of_copies", of_copies, 1)
    own = _require_numbers("negative_log_likelihood", [negative_log_likelihood], 1)
    return float(copies.mean() - own[0])


def perturb_tokens(
    input_ids: Sequence[int],
    vocabulary: Sequence[int],
    num_copies: int,
    share: float,
    seed: int,
    *,
    first_scored: int = 1,
) -> list[list[int]]:
    """Returns copies in which some scored tokens are others, drawn uniformly.

    Args:
        input_ids: The text's tokens.
        vocabulary: Tokens to draw from, at least 2 different; leave special tokens out.
        num_copies: How many copies, at least 1.
        share: Share of the scored tokens that are replaced in each copy, in (0, 1]; rounded down,
            but at least one. Positions differ from copy to copy; a replaced token always changes.
        seed: Public, at least 0.
        first_scored: As in `ScoredText`; tokens before it stay.

    Raises:
        InvalidParameterError: If an argument is out of range.
    """
    require_integer("first_scored", first_scored, 0, len(input_ids) - 1)
    require_integer("num_copies", num_copies, 1)
    allowed = np.unique(np.asarray(vocabulary, dtype=np.int64))
    if allowed.size < 2:
        raise InvalidParameterError(
            f"vocabulary must hold at least 2 different tokens, got {allowed.size}."
        )
    generator = np.random.default_rng(require_integer("seed", seed, 0))
    ids = np.asarray(input_ids, dtype=np.int64)
    count = num_smallest(share, ids.size - first_scored)
    copies = []
    for _ in range(num_copies):
        copy = ids.copy()
        places = first_scored + generator.choice(ids.size - first_scored, count, replace=False)
        found = np.searchsorted(allowed, ids[places])
        is_allowed = allowed[np.minimum(found, allowed.size - 1)] == ids[places]
        drawn = generator.integers(0, allowed.size - is_allowed)
        drawn += is_allowed & (drawn >= found)  # steps over the token that stands there
        copy[places] = allowed[drawn]
        copies.append(copy.tolist())
    return copies


def self_prompt_calibration(negative_log_likelihood: float, reference_nll: float) -> float:
    """Returns NLL under a self-prompted reference - NLL under the target model.

    The reference is the base model tuned on texts that the *target model wrote*, so that it knows
    their kind but not the records. Making it is the caller's work; this is a function of two
    numbers only, like `reference_difference` with another reference.

    Source:
        arXiv:2311.06062 (SPV-MIA). Departure: losses are compared, not probabilistic variations;
        give the values of `neighbourhood` under both models, negated, for those.
    """
    values = _require_numbers("losses", [negative_log_likelihood, reference_nll], 1)
    return float(values[1] - values[0])


def user_score(tuned_log_likelihoods: ArrayLike, base_log_likelihoods: ArrayLike) -> float:
    """Returns a user's score: the mean over fresh samples of log p_tuned - log p_base.

    The samples are the user's, but need not have been in the pool.

    Args:
        tuned_log_likelihoods: Of each sample (of all tokens or a token, as long as it is the same
            for all users), shape (num_samples,).
        base_log_likelihoods: Of the same samples.

    Source:
        arXiv:2310.09266.
    """
    tuned = _require_numbers("tuned_log_likelihoods", tuned_log_likelihoods, 1)
    base = _require_numbers("base_log_likelihoods", base_log_likelihoods, 1)
    if tuned.size != base.size:
        raise InvalidDataError(
            "tuned_log_likelihoods and base_log_likelihoods must be of the same samples, got "
            f"{tuned.size} and {base.size}."
        )
    return float((tuned - base).mean())


def user_interval(
    member_samples: Sequence[ArrayLike],
    nonmember_samples: Sequence[ArrayLike],
    statistic: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
    *,
    seed: int,
    num_resamples: int = 2000,
    significance: float = 0.05,
) -> tuple[float, float]:
    """Returns a percentile bootstrap interval of a statistic of users.

    Whole users are drawn again, with all of their samples: samples of one user are alike, and
    drawing rows would pretend to know more than it does. An approximation: with few users its
    true level is larger than `significance`.

    Args:
        member_samples: For each user in the pool, log p_tuned - log p_base of each fresh sample.
        nonmember_samples: The same for users outside of the pool.
        statistic: Of the members' and the non-members' user scores, such as
            `sordino.auditing.areas.auc`.
        seed: Public, at least 0.
        num_resamples: At least 100.
        significance: One minus confidence, in (0, 1).

    Raises:
        InvalidDataError: If a side has fewer than two users, or a user no sample.
        PrecisionError: If a number is NaN or infinite.
    """
    require_integer("num_resamples", num_resamples, 100)
    require_in_range("significance", significance, math.ulp(0.0), math.nextafter(1.0, 0.0))
    members = _user_means("member_samples", member_samples)
    nonmembers = _user_means("nonmember_samples", nonmember_samples)
    generator = np.random.default_rng(require_integer("seed", seed, 0))
    values = [
        statistic(
            members[generator.integers(0, members.size, members.size)],
            nonmembers[generator.integers(0, nonmembers.size, nonmembers.size)],
        )
        for _ in range(num_resamples)
    ]
    found = _require_numbers("statistic", values, 1)
    lower, upper = np.quantile(found, [significance / 2.0, 1.0 - significance / 2.0])
    return float(lower), float(upper)


def _user_means(name: str, samples: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Returns each user's mean."""
    if len(samples) < 2:
        raise InvalidDataError(f"{name} must be of at least 2 users, got {len(samples)}.")
    return np.array([_require_numbers(name, user, 1).mean() for user in samples])


def _log_ratio_to_out(
    name: str, nll: ArrayLike, out_nll: ArrayLike, a: float
) -> NDArray[np.float64]:
    """Returns ln(P_theta / P) of each text."""
    own = _require_numbers(name, nll, 1)
    out = _require_numbers(f"out models' {name}", out_nll, 2)
    if out.shape[1] != own.size:
        raise InvalidDataError(
            f"out models' {name} must be of {own.size} texts, got shape {out.shape}."
        )
    log_mean = logsumexp(-out, axis=0) - math.log(out.shape[0])
    log_of_others = math.log1p(-a) if a < 1.0 else -math.inf
    log_p = np.logaddexp(math.log1p(a) + log_mean, log_of_others) - math.log(2.0)
    ratios: NDArray[np.float64] = -own - log_p
    return ratios


def _require_numbers(name: str, values: ArrayLike, num_dimensions: int) -> NDArray[np.float64]:
    """Returns a non-empty array of finite numbers."""
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != num_dimensions or found.size == 0:
        raise InvalidDataError(
            f"{name} must have {num_dimensions} dimension(s) and at least one number, got shape "
            f"{found.shape}."
        )
    if not np.isfinite(found).all():
        raise PrecisionError(f"{name} must be finite, got NaN or infinity.")
    return found
