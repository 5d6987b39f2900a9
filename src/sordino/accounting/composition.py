"""Epsilon of different kinds of releases about the same units, taken together."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from dp_accounting.rdp import compute_epsilon as epsilon_from_renyi

from sordino.accounting._privacy_curve import round_up
from sordino.accounting._sampled_gaussian import ADD_OR_REMOVE_ONE, SampledGaussian
from sordino.accounting.dp import calibrate_noise_multiplier, compute_epsilon, renyi_divergences
from sordino.accounting.randomized_quantization import RandomizedQuantizationEvent
from sordino.core.checks import require_in_range, require_integer
from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ReleaseEvent", "compose_epsilon", "gram_noise_multiplier", "merge_gaussians"]

ReleaseEvent: TypeAlias = SampledGaussian | RandomizedQuantizationEvent

# Even steps of the logarithm of order - 1: few enough for tables with hundreds of levels.
_ORDERS = tuple(1.0 + 0.05 * (255.0 / 0.05) ** (k / 59.0) for k in range(60))
_ROUND_UP = 1.0 + 2.0**-48  # more than all roundings of the few operations it covers


def compose_epsilon(events: Sequence[ReleaseEvent], delta: float) -> float:
    """Returns an upper bound on the epsilon of all releases together.

    Guarantee:
        Publishing all releases is (result, delta)-DP under the events' common neighboring relation,
        also if each is chosen after seeing the earlier ones. Assumes: one unit takes part in all of
        them; exact arithmetic in the Gaussian mechanisms; secret sampling, noise and coins.

    Args:
        events: The releases; none spend nothing.
        delta: Probability; in [0, 1). At 0 only randomized quantization has a finite epsilon.

    Returns:
        Nats, rounded up to 4 significant digits: the smallest of three bounds. Gaussian releases
        alone by privacy loss distributions; everything by Renyi DP; and the pure epsilon of
        randomized quantization added to the Gaussians' epsilon. Infinity where nothing is hidden.

    Raises:
        InvalidParameterError: If delta is NaN or out of range, if the events differ in their
            neighboring relation, or if one is of an unknown kind.
        PrecisionError: If no finite epsilon of the Gaussian part can be stated at this delta.

    Source:
        arXiv:1702.07476 (composition), arXiv:2004.00010v4 Proposition 12 (from Renyi DP to
        epsilon, as in dp_accounting), and `sordino.accounting.dp`.

    Example:
        >>> event = RandomizedQuantizationEvent(
        ...     clip=1.0, margin=40.0, num_levels=16, keep_probability=0.1, num_coordinates=100
        ... )
        >>> compose_epsilon([event], 1e-6), compose_epsilon([event], 0.0)
        (4.686, 11.96)
    """
    delta = require_in_range("delta", delta, 0.0, math.nextafter(1.0, 0.0))
    _require_one_relation(events)
    quantized = _merge_quantized([e for e in events if isinstance(e, RandomizedQuantizationEvent)])
    gaussians = merge_gaussians([e for e in events if isinstance(e, SampledGaussian)])
    pure = math.fsum(event.renyi_divergence(math.inf) for event in quantized) * _ROUND_UP
    if not gaussians and (delta == 0.0 or pure == 0.0 or math.isinf(pure)):
        return _reported(pure)
    if delta == 0.0:
        return math.inf
    if not quantized and len(gaussians) == 1:
        return compute_epsilon(gaussians[0], delta).epsilon_upper
    bounds = [_epsilon_by_renyi([*gaussians, *quantized], delta)]
    if len(gaussians) == 1:
        bounds.append(compute_epsilon(gaussians[0], delta).epsilon_upper + pure)
    elif not gaussians:
        bounds.append(pure)
    return _reported(min(bounds))


def merge_gaussians(events: Sequence[SampledGaussian]) -> list[SampledGaussian]:
    """Returns events that spend the same: those without subsampling become one release.

    Guarantee:
        Gaussian releases of noise multipliers s_1, s_2, ... are one Gaussian release of noise
        multiplier (sum of 1 / s_i^2)^(-1/2), here rounded down.

    Args:
        events: Of one neighboring relation.

    Returns:
        The subsampled ones as they are, behind at most one other.

    Raises:
        InvalidParameterError: If the merged noise multiplier is below 0.1.

    Source:
        Gaussian noise of equal variances in the joint space, after rescaling each release.

    Example:
        >>> one = SampledGaussian(
        ...     noise_multiplier=2.0,
        ...     sampling_probability=1.0,
        ...     num_steps=4,
        ...     neighboring_relation=ADD_OR_REMOVE_ONE,
        ... )
        >>> f"{merge_gaussians([one])[0].noise_multiplier:.6f}"
        '1.000000'
    """
    plain = [event for event in events if event.sampling_probability == 1.0]
    others = [event for event in events if event.sampling_probability != 1.0]
    if len(plain) <= 1 and all(event.num_steps == 1 for event in plain):
        return [*plain, *others]
    precision = math.fsum(event.num_steps / event.noise_multiplier**2 for event in plain)
    merged = SampledGaussian(
        noise_multiplier=1.0 / (math.sqrt(precision) * _ROUND_UP),
        sampling_probability=1.0,
        num_steps=1,
        neighboring_relation=plain[0].neighboring_relation,
    )
    return [merged, *others]


def gram_noise_multiplier(epsilon: float, delta: float, num_grams: int) -> float:
    """Returns the noise multiplier of each of several Gram matrices that one unit contributes to.

    Guarantee:
        `num_grams` sums of clipped contributions, each with Gaussian noise of the result times its
        own clip norm in an isometric embedding, are together (epsilon, delta)-DP under
        ADD_OR_REMOVE_ONE. In units of the clip norms, one unit moves all of them by at most
        sqrt(num_grams), so they are one Gaussian release of the result / sqrt(num_grams).

    Args:
        epsilon: Nats; positive.
        delta: Probability; in (0, 1).
        num_grams: Gram matrices made from the same units; at least 1.

    Returns:
        Noise standard deviation / clip norm, no unit, rounded up.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        `calibrate_noise_multiplier` for one release; the embedding is that of
        `sordino.mechanisms.private_gram`.

    Example:
        >>> gram_noise_multiplier(4.378, 1e-5, 1), round(gram_noise_multiplier(4.378, 1e-5, 4), 9)
        (1.0, 2.0)
    """
    num_grams = require_integer("num_grams", num_grams, 1, 10**6)
    one = calibrate_noise_multiplier(
        target_epsilon=epsilon,
        delta=delta,
        sampling_probability=1.0,
        num_steps=1,
        neighboring_relation=ADD_OR_REMOVE_ONE,
    )
    # The room for rounding is more than what `merge_gaussians` takes off again.
    return one if num_grams == 1 else one * math.sqrt(num_grams) * _ROUND_UP**2


def _merge_quantized(
    events: Sequence[RandomizedQuantizationEvent],
) -> list[RandomizedQuantizationEvent]:
    """Returns one event for all that differ in the number of releases alone."""
    releases = Counter[RandomizedQuantizationEvent]()
    for event in events:
        releases[replace(event, num_releases=1)] += event.num_releases
    return [replace(event, num_releases=count) for event, count in releases.items()]


def _epsilon_by_renyi(events: Sequence[ReleaseEvent], delta: float) -> float:
    """Returns epsilon by the sum of the divergences; infinity if no order gives a finite one."""
    orders = np.array(_ORDERS, dtype=np.float64)
    total = np.zeros_like(orders)
    for event in events:
        if isinstance(event, SampledGaussian):
            total += event.num_steps * renyi_divergences(event, orders)
        else:
            total += np.array([event.renyi_divergence(order) for order in _ORDERS])
    return float(epsilon_from_renyi(orders, total * _ROUND_UP, delta)[0]) * _ROUND_UP


def _require_one_relation(events: Sequence[ReleaseEvent]) -> None:
    """Raises unless every event is of a known kind and all have one neighboring relation."""
    for event in events:
        if not isinstance(event, SampledGaussian | RandomizedQuantizationEvent):
            raise InvalidParameterError(
                f"an event must be a known kind of release, got {type(event).__name__}; what it "
                "spends is unknown, so nothing can be stated."
            )
    relations = sorted({event.neighboring_relation for event in events})
    if len(relations) > 1:
        raise InvalidParameterError(
            f"releases under different neighboring relations ({', '.join(relations)}) have no "
            "common epsilon; account for them separately."
        )


def _reported(epsilon: float) -> float:
    """Returns an epsilon rounded up to few digits."""
    return round_up(epsilon) if math.isfinite(epsilon) else math.inf
