"""What a privacy number means for an attacker's guess: the only conversion in the project.

Three languages are translated here: mutual information in nats (PAC), epsilon and delta (DP), and
the probability that a guess about the secret is right. The PAC side is an average over the secret
and its candidates; the DP side is a worst case over data sets and records. `Risk.lines` says so
wherever both are printed. A posterior or a success is rounded up, a budget is rounded down.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import ndtr

from sordino.accounting._attribute_guess import (
    AttributeRisk,
    attribute_guess_success,
    attribute_guess_success_with_correlation,
    attribute_risk,
)
from sordino.accounting._numerics import SMALLEST, bernoulli_divergence, entropy_term, round_up
from sordino.accounting._risk import Risk
from sordino.core.checks import require_in_range, require_non_negative
from sordino.core.errors import InvalidParameterError

__all__ = [
    "AttributeRisk",
    "Risk",
    "attribute_guess_success",
    "attribute_guess_success_with_correlation",
    "attribute_risk",
    "epsilon_from_posterior",
    "mutual_information_from_posterior",
    "posterior_from_epsilon",
    "posterior_from_gaussian_mu",
    "posterior_from_mutual_information",
    "risk",
]

_SOLVER_MARGIN = 1e-12  # relative, in nats; a few hundred times the error of the divergence
_INVERSE_MARGIN = 2e-11  # relative, in nats; what the search may add at the smallest priors
_CHECK_MARGIN = 1e-14  # relative, in nats; a few times the error of the divergence
_LARGEST_SHIFT = 1500.0  # in log-odds: takes the smallest normal prior to 1
_LARGEST_PRIOR = math.nextafter(1.0, 0.0)


def posterior_from_mutual_information(mutual_information_nats: float, prior: float = 0.5) -> float:
    """Returns an upper bound on an attack's success at a mutual information budget.

    Guarantee:
        If I(secret; release) <= mutual_information_nats and no guess is right with
        probability above `prior` without the release, then no guess is right with
        probability above the result with it: on average over the secret, its candidates
        and the mechanism's coins.

    Args:
        mutual_information_nats: Total budget in nats; at least 0.
        prior: Success of the best guess before the release; in (0, 1). For a yes-or-no
            secret it is at least 1/2: with a record in k of M candidates it is
            max(k, M - k) / M. Below 1/2 it describes a guess among several candidates.

    Returns:
        A probability in [prior, 1]: the largest p with KL(p || prior) <= budget, for a
        budget raised by at most 2e-11 of itself, then rounded up. 1 (vacuous) from ln(1 / prior).

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        docs/proofs/posterior_from_mutual_information.md; Xiao and Devadas 2023.

    Example:
        >>> f"{posterior_from_mutual_information(0.125):.4f}"
        '0.7446'
    """
    budget = require_non_negative("mutual_information_nats", mutual_information_nats)
    prior = _require_prior(prior)
    if budget == 0.0:
        return prior
    target = max(budget, SMALLEST) * (1.0 + _SOLVER_MARGIN)
    if target >= -math.log(prior) * (1.0 - _SOLVER_MARGIN):
        return 1.0
    # The divergence at a shift s of the log-odds is at most s**2 / 8.
    log_shift = brentq(
        lambda value: math.log(_shifted(math.exp(value), prior)[1] / target),
        math.log(0.9 * math.sqrt(8.0 * target)),
        math.log(_LARGEST_SHIFT),
        xtol=1e-14,
    )
    posterior = prior + _shifted(math.exp(log_shift), prior)[0]
    needed = max(budget, SMALLEST) * (1.0 + _CHECK_MARGIN)
    step = math.ulp(posterior)
    while posterior < 1.0 and bernoulli_divergence(posterior, prior) < needed:
        posterior += step  # only where doubles near the prior or near 1 are coarse
        step *= 2.0
    return min(posterior, 1.0)


def mutual_information_from_posterior(posterior: float, prior: float = 0.5) -> float:
    """Returns the mutual information budget at which no attack exceeds a wanted success.

    Guarantee:
        With I(secret; release) <= result, no guess is right with probability above
        `posterior`, on average over the secret, its candidates and the coins.

    Args:
        posterior: Largest tolerated success; in [prior, 1].
        prior: Success of the best guess before the release; in (0, 1), see
            `posterior_from_mutual_information`.

    Returns:
        Nats, rounded down by at most 3e-11 of the exact KL(posterior || prior), so that
        `posterior_from_mutual_information` leads back to the posterior or just below;
        0 if the exact number is below 2.2e-308.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range, or if the
            posterior is below the prior.

    Source:
        docs/proofs/posterior_from_mutual_information.md.

    Example:
        >>> f"{mutual_information_from_posterior(0.75):.4f}"
        '0.1308'
    """
    prior = _require_prior(prior)
    posterior = require_in_range("posterior", posterior, prior, 1.0)
    nats = bernoulli_divergence(posterior, prior) * (1.0 - _INVERSE_MARGIN)
    return nats if nats >= SMALLEST else 0.0


def posterior_from_epsilon(epsilon: float, delta: float = 0.0, prior: float = 0.5) -> float:
    """Returns an upper bound on an attacker's posterior (delta = 0) or success (delta > 0).

    The two are different numbers unless prior = 1/2. At delta = 0 no single outcome can raise
    the probability of "the record is in" above the result. With delta > 0 some outcomes may
    reveal everything, so what is bounded is the success of the best guess, averaged over
    outcomes; it is at least max(prior, 1 - prior), which is what guessing blindly achieves.

    Guarantee:
        For an (epsilon, delta)-DP release and an attacker who knows all other records:
        at delta = 0, P(record in | outcome) <= result for every outcome; at delta > 0,
        P(guess about the record is right) <= result for every guess. Worst case over
        data sets and records.

    Args:
        epsilon: Privacy loss in nats; at least 0.
        delta: Probability; in [0, 1].
        prior: P(record is in) before the release; in (0, 1).

    Returns:
        A probability, rounded up by at most 4e-15 of itself.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        Bayes' rule; and the best test between the two laws on four outcomes that dominate
        every (epsilon, delta) pair: arXiv:1311.0776v4, proof of Theorem 3.3.

    Example:
        >>> f"{posterior_from_epsilon(1.0):.4f}"
        '0.7311'
        >>> f"{posterior_from_epsilon(1.0, delta=0.01):.4f}"
        '0.7337'
    """
    epsilon = require_non_negative("epsilon", epsilon)
    delta = require_in_range("delta", delta, 0.0, 1.0)
    prior = _require_prior(prior)
    shrink = math.exp(-epsilon)  # e^epsilon may overflow
    if delta == 0.0:
        return prior if epsilon == 0.0 else round_up(prior / (prior + (1.0 - prior) * shrink))
    return round_up(
        max(
            (1.0 - prior) + prior * delta,
            (1.0 + delta * shrink) / (1.0 + shrink),
            prior + (1.0 - prior) * delta,
        )
    )


def epsilon_from_posterior(posterior: float, prior: float = 0.5) -> float:
    """Returns the matched epsilon: logit(posterior) - logit(prior).

    Guarantee:
        None by itself: it is the epsilon of the pure DP release that allows the same
        posterior. A PAC budget does not imply any epsilon.

    Args:
        posterior: Probability; in [prior, 1].
        prior: Probability before the release; in (0, 1).

    Returns:
        Nats, at least 0, to a relative error below 1e-14 (not rounded to a side);
        infinity for a posterior of 1.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range, or if the
            posterior is below the prior.

    Source:
        The inverse of `posterior_from_epsilon` at delta = 0.

    Example:
        >>> f"{epsilon_from_posterior(0.75):.6f}"
        '1.098612'
    """
    prior = _require_prior(prior)
    posterior = require_in_range("posterior", posterior, prior, 1.0)
    if posterior == 1.0:
        return math.inf
    growth = ((posterior - prior) / (1.0 - posterior)) / prior  # e^epsilon - 1
    if math.isfinite(growth):
        return math.log1p(growth)
    return math.log(posterior - prior) - math.log1p(-posterior) - math.log(prior)


def posterior_from_gaussian_mu(mu: float, prior: float = 0.5) -> float:
    """Returns the success of the best guess about a record after a mu-GDP release.

    Guarantee:
        For a mu-GDP release and an attacker who knows all other records, no guess is
        right with probability above the result. Worst case over data sets and records.

    Args:
        mu: Gaussian DP parameter, no unit; at least 0.
        prior: P(record is in) before the release; in (0, 1).

    Returns:
        A probability of at least max(prior, 1 - prior), rounded up by at most 4e-15 of
        itself. At prior 1/2 it is Phi(mu / 2).

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        The likelihood ratio test of N(0, 1) against N(mu, 1), to which every test of a
        mu-GDP release reduces: arXiv:1905.02383v3, definition of mu-GDP.

    Example:
        >>> f"{posterior_from_gaussian_mu(1.0):.4f}"
        '0.6915'
    """
    mu = require_non_negative("mu", mu)
    prior = _require_prior(prior)
    blind = max(prior, 1.0 - prior)
    if mu == 0.0:
        return blind
    threshold = (math.log(prior) - math.log1p(-prior)) / mu
    success = prior * ndtr(mu / 2.0 + threshold) + (1.0 - prior) * ndtr(mu / 2.0 - threshold)
    return round_up(max(blind, float(success)))


def risk(
    *,
    mutual_information: float | None = None,
    epsilon: float | None = None,
    delta: float = 0.0,
    posterior: float | None = None,
    prior: float = 0.5,
    attribute_values: int | None = None,
    public_success: float | None = None,
) -> Risk:
    """Returns one privacy level in all three languages, from exactly one of them.

    Guarantee:
        The stated number keeps its own guarantee; the other two are matched to it by an
        equal posterior and guarantee nothing by themselves, except the posterior, which
        bounds the attack as `posterior_from_mutual_information` or
        `posterior_from_epsilon` says.

    Args:
        mutual_information: PAC budget in nats; at least 0.
        epsilon: DP privacy loss in nats; at least 0.
        delta: DP delta, only beside epsilon; in [0, 1].
        posterior: Largest tolerated success; in [prior, 1].
        prior: Success of the best guess before the release; in (0, 1), and 1/2 where
            delta > 0: elsewhere that average success is no posterior to be matched.
        attribute_values: With epsilon: number of equally likely values of an attribute of a
            training record, at least 2; adds bounds on guesses of it.
        public_success: With epsilon: success of a guess of the attribute from public data alone;
            in [0, 1]; adds bounds on guesses with both.

    Returns:
        The `Risk`.

    Raises:
        InvalidParameterError: If not exactly one level is given, or if an argument is NaN,
            infinite or out of range.

    Example:
        >>> level = risk(mutual_information=0.33)
        >>> f"{level.posterior:.3f} {level.epsilon_matched:.2f}"
        '0.882 2.01'
        >>> risk(epsilon=1.0).lines()[0]
        'A guess is right with probability at most 0.7311 (before: 0.5).'
    """
    levels = {"mutual_information": mutual_information, "epsilon": epsilon, "posterior": posterior}
    given = [name for name, value in levels.items() if value is not None]
    if len(given) != 1:
        raise InvalidParameterError(
            f"give exactly one of {', '.join(levels)}; got {', '.join(given) or 'none'}."
        )
    prior = _require_prior(prior)
    delta = require_in_range("delta", delta, 0.0, 1.0)
    if delta > 0.0 and epsilon is None:
        raise InvalidParameterError(f"delta belongs to epsilon, got {delta!r} without it.")
    attribute = None
    if attribute_values is not None or public_success is not None:
        if epsilon is None:
            raise InvalidParameterError(
                "attribute_values and public_success belong to epsilon: other levels imply no "
                "epsilon for a change of an attribute."
            )
        attribute = attribute_risk(
            epsilon, delta, num_values=attribute_values, public_success=public_success
        )
    if delta > 0.0 and prior != 0.5:
        raise InvalidParameterError(
            f"prior must be 0.5 where delta > 0, got {prior!r}; use posterior_from_epsilon, whose "
            "average success cannot be matched to a posterior at another prior."
        )
    nats, matched = mutual_information, epsilon if delta == 0.0 else None
    if mutual_information is not None:
        posterior = posterior_from_mutual_information(mutual_information, prior)
    elif epsilon is not None:
        posterior = posterior_from_epsilon(epsilon, delta, prior)
    success = math.nan if posterior is None else posterior  # None was ruled out above
    from_success = mutual_information_from_posterior(success, prior)  # refuses a bad posterior
    return Risk(
        given=given[0],
        mutual_information_nats=from_success if nats is None else float(nats),
        posterior=float(success),
        epsilon_matched=epsilon_from_posterior(success, prior)
        if matched is None
        else float(matched),
        delta=delta,
        prior=prior,
        is_vacuous=success == 1.0,
        attribute=attribute,
    )


def _require_prior(prior: float) -> float:
    """Returns a prior in (0, 1), away from the denormal numbers."""
    return require_in_range("prior", prior, SMALLEST, _LARGEST_PRIOR)


def _shifted(shift: float, prior: float) -> tuple[float, float]:
    """Returns p - prior and KL(p || prior) at logit(p) = logit(prior) + shift, never below 1e-308.

    1 - p is taken from its own formula, so the divergence keeps its accuracy near p = 1.
    """
    shrink = math.exp(-shift)
    scale = prior + (1.0 - prior) * shrink
    rest = (1.0 - prior) * (shrink / scale)
    rise = prior * (1.0 - prior) * (-math.expm1(-shift) / scale)
    divergence = entropy_term(prior + rise, prior, rise) + entropy_term(rest, 1.0 - prior, -rise)
    return rise, max(divergence, SMALLEST)
