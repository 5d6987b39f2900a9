"""Guesses of an attribute of one record after a DP release; public in `inference_risk`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sordino.accounting._numerics import round_up
from sordino.core.checks import require_in_range, require_integer, require_non_negative
from sordino.core.errors import InvalidParameterError


def attribute_guess_success(epsilon: float, delta: float, num_values: int) -> float:
    """Returns the best success at guessing a uniform attribute of one record.

    Guarantee:
        If changing the attribute of a record keeps a release (epsilon, delta)-close for
        every pair of values, and all `num_values` values are equally likely to an
        attacker who knows the rest, then no guess is right with probability above the
        result. Worst case over data sets and records.

    Args:
        epsilon: Privacy loss of changing the attribute, in nats; at least 0.
        delta: Probability; in [0, 1].
        num_values: Number of values G; at least 2.

    Returns:
        A probability, (e^epsilon + (G-1) delta) / (e^epsilon + G - 1), capped at 1 and
        rounded up by at most 4e-15 of itself.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        Sum over g of (G-1) P_g(guess g) <= e^epsilon P_j(guess g) + delta over j != g.

    Example:
        >>> f"{attribute_guess_success(1.0, 0.0, 10):.4f}"
        '0.2320'
    """
    shrink = math.exp(-require_non_negative("epsilon", epsilon))
    delta = require_in_range("delta", delta, 0.0, 1.0)
    others = require_integer("num_values", num_values, 2) - 1
    return round_up((1.0 + others * delta * shrink) / (1.0 + others * shrink))


def attribute_guess_success_with_correlation(
    epsilon: float, delta: float, public_success: float
) -> float:
    """Returns the best success at guessing an attribute that other knowledge already tells.

    Guarantee:
        If the best guess is right with probability `public_success` when the release is
        computed without the record, and the release is (epsilon, delta)-DP for removing
        it, then no guess is right with probability above the result. Worst case over
        data sets and records.

    Args:
        epsilon: Privacy loss of removing the record, in nats; at least 0.
        delta: Probability; in [0, 1].
        public_success: Success p0 without the record; in [0, 1].

    Returns:
        A probability, min(e^epsilon p0 + delta, 1 - e^-epsilon (1 - p0 - delta)), capped
        at 1 and rounded up by at most 4e-15 of itself.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        The definition of DP for the event "the guess is right" and for its complement.

    Example:
        >>> f"{attribute_guess_success_with_correlation(0.1, 0.0, 0.8):.4f}"
        '0.8190'
    """
    epsilon = require_non_negative("epsilon", epsilon)
    delta = require_in_range("delta", delta, 0.0, 1.0)
    known = require_in_range("public_success", public_success, 0.0, 1.0)
    root = math.exp(min(epsilon / 2.0, 700.0))  # e^epsilon may overflow; root**2 exceeds 1e607
    failure = math.exp(-epsilon) * ((1.0 - known) - delta)
    return round_up(min(known * root * root + delta, 1.0 - failure))


@dataclass(frozen=True, kw_only=True, slots=True)
class AttributeRisk:
    """What (epsilon, delta) means for guesses of one attribute of a training record.

    Attributes:
        num_values: Number of values G, all equally likely; None if not asked for.
        success: Upper bound on the success of a guess among them; None without G.
        advantage: Upper bound on (success - 1/G) / (1 - 1/G); None without G.
        public_success: Success p0 of a guess from what is public alone; None if not asked for.
        correlated_success: Upper bound on the success of a guess from both; None without p0.
        correlated_advantage: Upper bound on (success - p0) / (1 - p0), 0 at p0 = 1; None without
            p0.
    """

    num_values: int | None = None
    success: float | None = None
    advantage: float | None = None
    public_success: float | None = None
    correlated_success: float | None = None
    correlated_advantage: float | None = None

    def lines(self) -> list[str]:
        """Returns the bounds in words, with what they cover and what they do not."""
        words = []
        if self.success is not None and self.advantage is not None:
            words.append(
                f"Attribute with {self.num_values} equally likely values: a guess is right with "
                f"probability at most {display_up(self.success)}, an advantage of at most "
                f"{display_up(self.advantage)}."
            )
        if self.correlated_success is not None and self.correlated_advantage is not None:
            words.append(
                f"Attribute that public data give away with probability {self.public_success:g}: "
                f"with the release at most {display_up(self.correlated_success)}, an advantage of "
                f"at most {display_up(self.correlated_advantage)}."
            )
        return [
            *words,
            "Refusals are post-processing: the sensitivity-awareness advantage is no larger.",
            (
                "This takes epsilon and delta for a change of the attribute (with public data: for "
                "removing the record). If they are for adding or removing a record, a change costs "
                "2 epsilon and (1 + e^epsilon) delta."
            ),
            (
                "Scope: attributes of records used in training. Of records in a prompt, no "
                "training epsilon says anything."
            ),
        ]


def attribute_risk(
    epsilon: float,
    delta: float,
    *,
    num_values: int | None = None,
    public_success: float | None = None,
) -> AttributeRisk:
    """Returns bounds on guesses of an attribute, as success and as advantage.

    Guarantee:
        As `attribute_guess_success` and `attribute_guess_success_with_correlation` say. An
        attacker who sees answers that were held back or refused does no better.

    Args:
        epsilon: Privacy loss in nats; at least 0.
        delta: Probability; in [0, 1].
        num_values: Number of values G; at least 2. None leaves this bound out.
        public_success: Success p0 without the record; in [0, 1], and at least 1/G where G is
            given too. None leaves this bound out.

    Returns:
        The bounds, rounded up.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range, or none of the two
            is given.

    Source:
        arXiv:2601.20901 for the advantage; at G = 2 it is (e^epsilon - 1 + 2 delta) /
        (e^epsilon + 1).

    Example:
        >>> f"{attribute_risk(1.0, 0.0, num_values=2).advantage:.4f}"
        '0.4621'
    """
    if num_values is None and public_success is None:
        raise InvalidParameterError("give the number of values, the public success, or both.")
    success = advantage = with_public = over_public = None
    if num_values is not None:
        success = attribute_guess_success(epsilon, delta, num_values)
        advantage = round_up(max(0.0, (num_values * success - 1.0) / (num_values - 1.0)))
    if public_success is not None:
        least = 0.0 if num_values is None else 1.0 / num_values
        known = require_in_range("public_success", public_success, least, 1.0)
        with_public = attribute_guess_success_with_correlation(epsilon, delta, known)
        rest = 1.0 - known
        over_public = round_up(max(0.0, (with_public - known) / rest)) if rest > 0.0 else 0.0
    return AttributeRisk(
        num_values=num_values,
        success=success,
        advantage=advantage,
        public_success=public_success,
        correlated_success=with_public,
        correlated_advantage=over_public,
    )


def display_up(probability: float) -> str:
    """Returns a probability with 4 digits, never less than it is."""
    return f"{min(1.0, math.ceil(probability * 1e4 - 1e-8) / 1e4):.4f}"
