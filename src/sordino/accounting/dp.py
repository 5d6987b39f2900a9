"""Epsilon and delta of Poisson-subsampled Gaussian releases, around `dp_accounting`.

The curve comes from privacy loss distributions (PLD, connect-the-dots); Renyi DP is a cross-check
that must not contradict it. One discretised composition gives both sides: the upper side is the
library's pessimistic answer, the lower side takes back what the discretisation can have added
(docs/proofs/sampled_gaussian.md). Without subsampling the closed form of the Gaussian is used.

Arguments are checked here because the library does not: its Renyi accountant answers epsilon 0 to a
NaN noise multiplier. The grid is chosen from the problem, so time and memory stay bounded: at most
about 2e5 points for one step and a few million for the composition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING
from typing import TYPE_CHECKING

import numpy as np
from dp_accounting.rdp import compute_epsilon as epsilon_from_renyi
from scipy.special import logsumexp

from sordino.accounting._membership_tradeoff import TradeoffBound, compute_tradeoff
from sordino.accounting._privacy_curve import (
    COARSE,
    FINE,
    bisect,
    privacy_curve,
    round_down,
    round_up,
    rounded,
)
from sordino.accounting._sampled_gaussian import (
    ADD_OR_REMOVE_ONE,
    NEIGHBORING_RELATIONS,
    NOISE_MULTIPLIERS,
    REPLACE_ONE,
    SampledGaussian,
    one_step_laws,
)
from sordino.core.checks import require_in_range, require_integer, require_positive
from sordino.core.errors import InvalidParameterError, PrecisionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = [
    "ADD_OR_REMOVE_ONE",
    "NEIGHBORING_RELATIONS",
    "NOISE_MULTIPLIERS",
    "REPLACE_ONE",
    "EpsilonReport",
    "SampledGaussian",
    "TradeoffBound",
    "calibrate_noise_multiplier",
    "compute_delta",
    "compute_epsilon",
    "compute_tradeoff",
    "require_small_delta",
]

_LARGEST_EPSILON = 1e9
_RENYI_ORDERS = (*(1.0 + k / 10.0 for k in range(1, 100)), *range(11, 64), 96, 128, 256)


@dataclass(frozen=True, kw_only=True, slots=True)
class EpsilonReport:
    """What is known about epsilon at one delta, in nats.

    Attributes:
        delta: The delta it was asked for.
        epsilon_upper: The guarantee: PLD, pessimistic, rounded up to 4 significant digits.
        epsilon_lower: No epsilon below it is true at this delta, rounded down likewise.
        epsilon_rdp: By Renyi DP, also an upper bound, usually looser; None if no order converged.
        epsilon_edgeworth: The Edgeworth accountant's interval; None if not asked for or refused.
    """

    delta: float
    epsilon_upper: float
    epsilon_lower: float
    epsilon_rdp: float | None
    epsilon_edgeworth: tuple[float, float] | None = None


def require_small_delta(delta: float, num_units: int, *, is_large_allowed: bool) -> float:
    """Returns `delta` if it is small enough to mean something for `num_units` units.

    Guarantee:
        The result is in (0, 1), and below 1 / (10 num_units) unless that was waived. A mechanism
        that publishes one random unit in full is (0, 1 / num_units)-DP.

    Args:
        delta: Probability; in (0, 1).
        num_units: Number of protected units; at least 1.
        is_large_allowed: Whether a larger delta was asked for explicitly.

    Returns:
        The delta.

    Raises:
        InvalidParameterError: If delta is NaN, out of range, or too large and not waived.

    Source:
        Dwork and Roth 2014, section 2.3; the factor 10 is this project's.

    Example:
        >>> require_small_delta(1e-5, 5000, is_large_allowed=False)
        1e-05
    """
    delta = _require_delta(delta)
    num_units = require_integer("num_units", num_units, 1)
    if not is_large_allowed and not delta * 10.0 * num_units < 1.0:
        raise InvalidParameterError(
            f"delta must be below 1 / (10 N) = {0.1 / num_units:.3g} for N = {num_units} units, "
            f"got {delta:g}; choose a smaller delta, or pass --allow-large-delta if you mean it."
        )
    return delta


def compute_epsilon(
    event: SampledGaussian, delta: float, *, with_edgeworth: bool = False
) -> EpsilonReport:
    """Returns bounds on the epsilon of all releases of `event` at `delta`.

    Guarantee:
        Publishing all releases is (epsilon_upper, delta)-DP under the event's neighboring relation,
        also if each step is chosen after seeing the earlier ones. Assumes: exact arithmetic in the
        mechanism, secret sampling and noise.

    Args:
        event: The releases.
        delta: Probability; in (0, 1), and above what rounding hides (1e-14 num_steps).
        with_edgeworth: Whether to ask the Edgeworth accountant too (off by default).

    Returns:
        A report with epsilon_lower <= epsilon_upper, in nats.

    Raises:
        InvalidParameterError: If delta is NaN or out of range.
        PrecisionError: If no finite epsilon can be stated at this delta, or if two accountants
            contradict each other.

    Source:
        arXiv:2207.04380 (connect-the-dots), docs/proofs/sampled_gaussian.md (the pairs, the lower
        bound), arXiv:1805.06530v2 Theorem 8 (no subsampling).

    Example:
        >>> event = SampledGaussian(
        ...     noise_multiplier=1.0,
        ...     sampling_probability=1.0,
        ...     num_steps=1,
        ...     neighboring_relation=ADD_OR_REMOVE_ONE,
        ... )
        >>> compute_epsilon(event, 1e-5).epsilon_upper
        4.378
    """
    delta = _require_delta(delta)
    curve = privacy_curve(event, FINE)
    upper = round_up(curve.epsilon_upper(delta))
    lower = min(round_down(curve.epsilon_lower(delta)), upper)
    renyi = _renyi_epsilon(event, delta)
    if renyi is not None and renyi < lower:
        raise PrecisionError(
            f"Renyi DP claims epsilon {renyi!r}, below the proved lower bound {lower!r}; "
            "report this event as a bug."
        )
    report = EpsilonReport(delta=delta, epsilon_upper=upper, epsilon_lower=lower, epsilon_rdp=renyi)
    if not with_edgeworth:
        return report
    from sordino.accounting.edgeworth import interval_within  # it builds on this module

    return replace(report, epsilon_edgeworth=interval_within(event, report))


def compute_delta(event: SampledGaussian, epsilon: float) -> float:
    """Returns an upper bound on delta at `epsilon` for all releases of `event`.

    Guarantee:
        Publishing all releases is (epsilon, result)-DP, as in `compute_epsilon`.

    Args:
        event: The releases.
        epsilon: Nats; in [0, 1e9].

    Returns:
        A probability in (0, 1], rounded up to 4 significant digits. Never 0: an underflow must
        not turn into a claim of pure DP. With subsampling it is at least 1e-14 num_steps.

    Raises:
        InvalidParameterError: If epsilon is NaN, infinite or out of range.

    Source:
        As `compute_epsilon`.

    Example:
        >>> event = SampledGaussian(
        ...     noise_multiplier=1.0,
        ...     sampling_probability=1.0,
        ...     num_steps=1,
        ...     neighboring_relation=ADD_OR_REMOVE_ONE,
        ... )
        >>> compute_delta(event, 1.0)
        0.127
    """
    epsilon = require_in_range("epsilon", epsilon, 0.0, _LARGEST_EPSILON)
    return min(1.0, round_up(privacy_curve(event, FINE).delta_upper(epsilon)))


def calibrate_noise_multiplier(
    *,
    target_epsilon: float,
    delta: float,
    sampling_probability: float,
    num_steps: int,
    neighboring_relation: str,
) -> float:
    """Returns a noise multiplier that keeps epsilon at or below a target.

    Guarantee:
        `compute_epsilon` of the event with the result has epsilon_upper <= target_epsilon; this
        was recomputed before returning.

    Args:
        target_epsilon: Nats; above 0.
        delta: Probability; in (0, 1).
        sampling_probability: In [1e-8, 1].
        num_steps: At least 1.
        neighboring_relation: ADD_OR_REMOVE_ONE or REPLACE_ONE.

    Returns:
        Noise std / clip_norm, no unit, in [0.1, 1000]: the smallest that the search found, within
        0.1% of the smallest whose epsilon_upper keeps the target.

    Raises:
        InvalidParameterError: If an argument is out of range, or if even the largest noise
            multiplier does not reach the target.
        PrecisionError: If delta is too small for the arithmetic.

    Source:
        Bisection; arXiv:2207.04380 for the curve.

    Example:
        >>> calibrate_noise_multiplier(
        ...     target_epsilon=4.378,
        ...     delta=1e-5,
        ...     sampling_probability=1.0,
        ...     num_steps=1,
        ...     neighboring_relation="ADD_OR_REMOVE_ONE",
        ... )
        1.0
    """
    target = require_positive("target_epsilon", target_epsilon)
    delta = _require_delta(delta)
    smallest, largest = NOISE_MULTIPLIERS

    def keeps_target(noise_multiplier: float, grid: tuple[float, float]) -> bool:
        event = SampledGaussian(
            noise_multiplier=noise_multiplier,
            sampling_probability=sampling_probability,
            num_steps=num_steps,
            neighboring_relation=neighboring_relation,
        )
        return round_up(privacy_curve(event, grid).epsilon_upper(delta)) <= target

    if keeps_target(smallest, FINE):
        return smallest
    if not keeps_target(largest, FINE):
        raise InvalidParameterError(
            f"target_epsilon {target:g} at delta {delta:g} needs a noise multiplier above "
            f"{largest:g}; ask for a larger epsilon, fewer steps or a smaller sampling probability."
        )
    low, high = bisect(lambda value: keeps_target(value, COARSE), smallest, largest, 1e-3)
    # The fine grid is a little less pessimistic than the coarse one: start just below.
    low, high = _widen(lambda value: keeps_target(value, FINE), low, high, (smallest, largest))
    _, high = bisect(lambda value: keeps_target(value, FINE), low, high, 1e-3)
    result = float(rounded(high, 5, ROUND_CEILING))
    if not keeps_target(result, FINE):
        raise PrecisionError(
            f"noise multiplier {result!r} misses the target epsilon {target!r} after rounding; "
            "report this as a bug."
        )
    return result


def _renyi_epsilon(event: SampledGaussian, delta: float) -> float | None:
    """Returns epsilon by Renyi DP, rounded up; None if no order gives a finite one."""
    orders = np.array(_RENYI_ORDERS, dtype=np.float64)
    divergences = event.num_steps * renyi_divergences(event, orders)
    epsilon = float(epsilon_from_renyi(orders, divergences, delta)[0])
    return round_up(epsilon) if math.isfinite(epsilon) else None


def renyi_divergences(event: SampledGaussian, orders: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the one-step Renyi divergences, the larger of both directions, by quadrature.

    The library's own have no REPLACE_ONE for Poisson sampling, take a plain Gaussian's noise
    multiplier without the factor 2 there, and fail to converge at orders such as 1.1 (q = 0.5).
    """
    if event.sampling_probability == 1.0:
        return orders * event.sensitivity**2 / (2.0 * event.noise_multiplier**2)
    laws = one_step_laws(event, reach=1.0 + float(orders.max()))
    moments = [
        max(float(logsumexp(law.upper_log_weights + (a - 1.0) * law.losses)) for law in laws)
        for a in orders
    ]
    # Below 1e-13 a moment is rounding: it must not be taken for a perfect secret.
    log_moments = np.maximum(np.array(moments, dtype=np.float64), 0.0)
    result: NDArray[np.float64] = (log_moments * (1.0 + 1e-9) + 1e-13) / (orders - 1.0)
    return result


def _widen(
    is_enough: Callable[[float], bool], low: float, high: float, limits: tuple[float, float]
) -> tuple[float, float]:
    """Returns a bracket with is_enough(high) and not is_enough(low), starting near a guess."""
    factor = 1.002
    while not is_enough(high):
        low, high = high, min(high * factor, limits[1])
        factor *= factor
    factor = 1.002
    while is_enough(low):
        low, high = max(low / factor, limits[0]), low
        factor *= factor
    return low, high


def _require_delta(delta: float) -> float:
    """Returns delta as a float in (0, 1)."""
    delta = require_positive("delta", delta)
    if not delta < 1.0:
        raise InvalidParameterError(f"delta must be below 1, got {delta!r}.")
    return delta
