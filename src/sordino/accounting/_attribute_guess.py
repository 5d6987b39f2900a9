"""Guesses of an attribute of one record after a DP release; public in `inference_risk`."""

from __future__ import annotations

import math

from sordino.accounting._numerics import round_up
from sordino.core.checks import require_in_range, require_integer, require_non_negative


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
