"""Upper bounds on a membership guess, from the whole privacy curve of an event."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy.optimize import minimize_scalar

from sordino.accounting._privacy_curve import FINE, Curve, privacy_curve, round_up
from sordino.core.checks import require_in_range

if TYPE_CHECKING:
    from sordino.accounting._sampled_gaussian import SampledGaussian

_LARGEST_EPSILON = 1e9
_HOPELESS_DELTA = 1e-6  # beyond its epsilon the search for a bound gains nothing worth having


@dataclass(frozen=True, slots=True)
class TradeoffBound:
    """Upper bounds on what a membership guess can reach against all releases of an event.

    Tighter than the conversion from one (epsilon, delta): the whole curve delta(epsilon) is used.
    Under ADD_OR_REMOVE_ONE the question is whether a unit took part; under REPLACE_ONE, which of
    two known units did.
    """

    _curve: Curve

    def success(self, prior: float) -> float:
        """Returns an upper bound on the probability that the best guess is right.

        Args:
            prior: The adversary's probability of "took part" before the release; in [0, 1].

        Returns:
            A probability in [max(prior, 1 - prior), 1], rounded up. Exact identity for a pair:
            with a = min(prior, 1 - prior), success = (1 - a) + a delta(ln((1 - a) / a)).
        """
        prior = require_in_range("prior", prior, 0.0, 1.0)
        rare = min(prior, 1.0 - prior)
        if rare == 0.0:
            return 1.0  # the guess is right without any release
        epsilon = min(math.log1p(-rare) - math.log(rare), _LARGEST_EPSILON)
        delta = min(self._curve.delta_upper(max(epsilon, 0.0)), 1.0)
        return min(1.0, round_up((1.0 - rare) + rare * delta, digits=9))

    def tpr_at_fpr(self, fpr: float) -> float:
        """Returns an upper bound on the true positive rate at a false positive rate.

        Args:
            fpr: False positive rate of the guess "took part"; in [0, 1].

        Returns:
            A probability in [fpr, 1], rounded up. Every epsilon gives a valid bound
            min(e^epsilon fpr + delta, 1 - e^-epsilon (1 - delta - fpr)); the best found is used.
        """
        fpr = require_in_range("fpr", fpr, 0.0, 1.0)

        def bound(epsilon: float) -> float:
            delta = min(self._curve.delta_upper(epsilon), 1.0)
            steep = math.exp(min(epsilon, 700.0)) * fpr + delta if fpr > 0.0 else delta
            return min(steep, 1.0 - math.exp(-epsilon) * max(1.0 - delta - fpr, 0.0))

        largest = min(self._curve.epsilon_upper(_HOPELESS_DELTA), 700.0)
        found = minimize_scalar(
            bound, bounds=(0.0, largest), method="bounded", options={"xatol": 1e-4 * largest}
        )
        best = min(float(found.fun), bound(0.0), bound(largest), 1.0)
        return min(1.0, max(round_up(best, digits=9), fpr))


def compute_tradeoff(event: SampledGaussian) -> TradeoffBound:
    """Returns upper bounds on membership guesses against all releases of `event`.

    Guarantee:
        No guess does better than the object's methods say, for any pair of neighboring data sets.
        Assumes: exact arithmetic in the mechanism, secret sampling and noise.

    Args:
        event: The releases.

    Returns:
        An object with `success(prior)` and `tpr_at_fpr(fpr)`.

    Raises:
        PrecisionError: If the curve cannot be computed.

    Source:
        arXiv:1311.0776 (tests and (epsilon, delta)), arXiv:2407.02191 (from the PLD directly).

    Example:
        >>> from sordino.accounting.dp import ADD_OR_REMOVE_ONE, SampledGaussian
        >>> event = SampledGaussian(
        ...     noise_multiplier=1.0,
        ...     sampling_probability=1.0,
        ...     num_steps=1,
        ...     neighboring_relation=ADD_OR_REMOVE_ONE,
        ... )
        >>> f"{compute_tradeoff(event).success(0.5):.4f}"
        '0.6915'
    """
    return TradeoffBound(privacy_curve(event, FINE))
