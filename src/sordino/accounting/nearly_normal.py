"""Noise that is almost normal: the noise multiplier and the share of delta that it needs.

Noise on whole numbers differs a little from normal noise. A claim made for normal noise then adds
num_steps * (1 + e**epsilon) * distance to delta, which is no constant share of it: it grows with
epsilon, with the steps, and where the whole numbers are coarse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING
from functools import partial
from typing import TYPE_CHECKING

from sordino.accounting._privacy_curve import COARSE, FINE, bisect, privacy_curve, round_up, rounded
from sordino.accounting._sampled_gaussian import NOISE_MULTIPLIERS, SampledGaussian
from sordino.accounting.dp import calibrate_noise_multiplier
from sordino.core.checks import require_in_range, require_integer, require_non_negative
from sordino.core.errors import InvalidParameterError, PrecisionError

if TYPE_CHECKING:
    from collections.abc import Callable

# Shares of delta left for the distance, tried in this order: the least one costs the least noise.
# Epsilon depends on the logarithm of delta, so half of it costs little, and more is not tried.
_SHARES = (1e-3, 0.05, 0.5)
_ROUND_UP = 1.0 + 1e-9  # more than the certificate's own 1e-12: equality there is not cut fine
_LARGEST_EPSILON = 700.0  # e**709 leaves the range of doubles


@dataclass(frozen=True, kw_only=True, slots=True)
class NearlyNormalNoise:
    """How much noise to add, and how delta is divided.

    Attributes:
        noise_multiplier: Noise standard deviation / clip_norm, no unit.
        delta_of_normal_noise: The delta at which normal noise of this size is accounted; the rest
            is for the distance from it.
    """

    noise_multiplier: float
    delta_of_normal_noise: float


def delta_with_distance(
    *, epsilon: float, delta_of_normal_noise: float, num_steps: int, distance: float
) -> float:
    """Returns delta for noise that is not quite normal.

    Guarantee:
        Where `num_steps` releases with normal noise are (epsilon, delta_of_normal_noise)-DP, they
        are (epsilon, result)-DP with noise whose total variation distance from it is at most
        `distance` in every step.

    Args:
        epsilon: Nats; at least 0.
        delta_of_normal_noise: Probability; in [0, 1].
        num_steps: Releases; at least 1.
        distance: Of the laws of one step's noise; in [0, 1].

    Returns:
        delta_of_normal_noise + num_steps * (1 + e**epsilon) * distance, rounded up; at most 1.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        The triangle inequality: P(S) <= P'(S) + d <= e**epsilon Q'(S) + delta + d, and Q'(S) <=
        Q(S) + d, with d the distance of all steps, at most the sum of theirs.

    Example:
        >>> delta_with_distance(
        ...     epsilon=0.0, delta_of_normal_noise=0.25, num_steps=2, distance=0.0625
        ... )
        0.5000000005
    """
    epsilon = require_non_negative("epsilon", epsilon)
    delta = require_in_range("delta_of_normal_noise", delta_of_normal_noise, 0.0, 1.0)
    require_integer("num_steps", num_steps, 1)
    if require_in_range("distance", distance, 0.0, 1.0) == 0.0:
        return delta
    if epsilon > _LARGEST_EPSILON:
        return 1.0
    added = num_steps * (1.0 + math.exp(epsilon)) * distance
    return min(1.0, (delta + added) * _ROUND_UP)


def calibrate_nearly_normal_noise(
    *,
    target_epsilon: float,
    delta: float,
    sampling_probability: float,
    num_steps: int,
    neighboring_relation: str,
    distance_upper: Callable[[float], float],
) -> NearlyNormalNoise:
    """Returns noise that keeps a target although it is not quite normal.

    Guarantee:
        With the result, `compute_epsilon` of the event at `delta_of_normal_noise` has
        epsilon_upper <= target_epsilon, and `delta_with_distance` of that is at most `delta`; both
        were recomputed before returning.

    Args:
        target_epsilon: Nats; above 0.
        delta: Probability; in (0, 1).
        sampling_probability: In [1e-8, 1].
        num_steps: At least 1.
        neighboring_relation: ADD_OR_REMOVE_ONE or REPLACE_ONE.
        distance_upper: Total variation distance of one step's noise from normal noise, as a
            function of the noise multiplier; in [0, 1].

    Returns:
        The noise of `calibrate_noise_multiplier` if a share of delta is enough for the distance
        (a thousandth, a twentieth or half of it). Else about the least noise beyond it at which
        half of delta is enough; epsilon then is below the target.

    Raises:
        InvalidParameterError: If an argument is out of range, or if even the largest noise
            multiplier does not keep the target.
        PrecisionError: If delta is too small for the arithmetic.

    Source:
        `calibrate_noise_multiplier`, then bisection.

    Example:
        >>> calibrate_nearly_normal_noise(
        ...     target_epsilon=4.378,
        ...     delta=1e-5,
        ...     sampling_probability=1.0,
        ...     num_steps=1,
        ...     neighboring_relation="ADD_OR_REMOVE_ONE",
        ...     distance_upper=lambda noise_multiplier: 1e-12 / noise_multiplier**2,
        ... )
        NearlyNormalNoise(noise_multiplier=1.0, delta_of_normal_noise=9.990000000000001e-06)
    """

    def account(
        noise_multiplier: float, part: float, grid: tuple[float, float] = FINE
    ) -> tuple[float, float]:
        event = SampledGaussian(
            noise_multiplier=noise_multiplier,
            sampling_probability=sampling_probability,
            num_steps=num_steps,
            neighboring_relation=neighboring_relation,
        )
        epsilon = round_up(privacy_curve(event, grid).epsilon_upper(part))
        return epsilon, delta_with_distance(
            epsilon=epsilon,
            delta_of_normal_noise=part,
            num_steps=num_steps,
            distance=distance_upper(noise_multiplier),
        )

    def keeps_target(
        noise_multiplier: float, part: float, grid: tuple[float, float] = FINE
    ) -> bool:
        epsilon, delta_stated = account(noise_multiplier, part, grid)
        return epsilon <= target_epsilon and delta_stated <= delta

    for share in _SHARES:
        part = delta * (1.0 - share)
        smallest = calibrate_noise_multiplier(
            target_epsilon=target_epsilon,
            delta=part,
            sampling_probability=sampling_probability,
            num_steps=num_steps,
            neighboring_relation=neighboring_relation,
        )
        epsilon, delta_stated = account(smallest, part)
        if epsilon <= target_epsilon and delta_stated <= delta:
            return NearlyNormalNoise(noise_multiplier=smallest, delta_of_normal_noise=part)
        if delta_stated > 2.0 * delta:  # no share of delta is enough for that
            break
    part, largest = delta * (1.0 - _SHARES[-1]), NOISE_MULTIPLIERS[1]
    if not keeps_target(largest, part):
        raise InvalidParameterError(
            "noise on whole numbers must be so close to normal noise that delta stays at "
            f"{delta:g}. Over {num_steps} steps delta is {delta_stated:.3g} at the "
            f"noise multiplier that epsilon {target_epsilon:g} takes, {smallest:g}, and "
            f"{account(largest, part)[1]:.3g} at the largest, {largest:g}. Use fewer steps, a "
            "smaller batch, fewer directions a step or a larger delta, or --noise continuous."
        )
    for grid in (COARSE, FINE):  # the coarse one is a little too pessimistic, and much faster
        _, enough = bisect(partial(keeps_target, part=part, grid=grid), smallest, largest, 1e-3)
        # a little more noise can double the unit of the whole numbers, and is then not enough
        for result in (float(rounded(enough, 5, ROUND_CEILING)), enough):
            if keeps_target(result, part):
                return NearlyNormalNoise(noise_multiplier=result, delta_of_normal_noise=part)
    raise PrecisionError(
        f"noise multiplier {enough!r} misses delta {delta!r} after it was found; report this as a "
        "bug."
    )
