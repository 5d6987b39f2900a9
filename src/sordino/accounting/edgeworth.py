"""A third opinion on epsilon: Edgeworth expansions of the summed privacy loss, with their error.

With S the sum of the T losses under P, delta(epsilon) is the average of P(S > epsilon + u) over a
standard exponential u, so the law of S under P is enough (the published accountants expand the
laws under P and under Q, and pay a factor e^epsilon for the error of the second). The law of S is
expanded in cumulants, and the error is *integrated*, not estimated: docs/proofs/edgeworth.md.

The interval is true but not small: it is refused where the error reaches delta, which is the rule
rather than the exception for few steps or rare sampling. Off by default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial.hermite_e import hermeval
from numpy.polynomial.legendre import leggauss
from scipy.special import ndtr

from sordino.accounting._sampled_gaussian import grid_laws, loss_range, one_step_laws
from sordino.accounting.dp import EpsilonReport, compute_epsilon
from sordino.core.errors import EdgeworthRefusedError, InvalidParameterError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sordino.accounting._sampled_gaussian import GridLaw, OneStepLaw, SampledGaussian

__all__ = ["edgeworth_epsilon", "interval_within"]

_LARGEST_ORDER = 6  # powers of 1/sqrt(T) in the expansion; uses cumulants up to this plus 2
_FREQUENCIES = np.linspace(1e-3, 60.0, 6000)  # of the standardised sum
_GRID_POINTS = 1e5  # of the discretised law, for frequencies beyond
_PADDING = 16  # of the discretised law's transform, for a fine grid of frequencies
_SMOOTHNESS_MARGIN = 1.05  # on the total variation of the loss's density, summed over nodes
_ROUNDING_PER_STEP = 1e-15
_NODES, _NODE_WEIGHTS = leggauss(400)
_TOLERANCE = 0.01  # relative, of the estimate against the PLD's bounds


@dataclass(frozen=True, slots=True)
class _Expansion:
    """An expansion of the summed loss's law under P, and how far delta may be off."""

    mean: float
    deviation: float
    coefficients: NDArray[np.float64]  # of (it)^r in the transform, r = 0, 1, ...
    error: float  # largest |delta - expanded delta| at any epsilon

    def delta(self, epsilon: float) -> float:
        """Returns the expanded delta."""
        reach = min(45.0, max(self.mean + 16.0 * self.deviation - epsilon, self.deviation))
        u = reach * (_NODES + 1.0) / 2.0
        x = (epsilon + u - self.mean) / self.deviation
        density = np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
        tail = ndtr(-x) + density * hermeval(x, self.coefficients[1:])
        return float(np.dot(_NODE_WEIGHTS, np.exp(-u) * tail)) * reach / 2.0


def edgeworth_epsilon(event: SampledGaussian, delta: float) -> tuple[float, float, float]:
    """Returns an interval for epsilon at `delta`, and an estimate, by Edgeworth expansion.

    Guarantee:
        The smallest true epsilon at `delta` lies in [lower, upper]. Assumes: exact arithmetic, and
        integrals by quadrature are exact (no directed rounding, unlike `compute_epsilon`).

    Args:
        event: The releases.
        delta: Probability; in (0, 1).

    Returns:
        (lower, upper, estimate) in nats, lower <= upper.

    Raises:
        InvalidParameterError: If delta is NaN or out of range, or without sampling (q = 1), where
            the loss is normal and there is nothing to expand.
        EdgeworthRefusedError: If the error bound reaches delta, if [lower, upper] does not meet
            the PLD's [epsilon_lower, epsilon_upper], or if the estimate lies more than 1% below
            the one or above the other.

    Source:
        arXiv:2206.04236 and arXiv:2210.15042 (the idea); arXiv:2101.05780v3 (bounds on the error by
        the same integral, there estimated from moments); docs/proofs/edgeworth.md.

    Example:
        >>> from sordino.accounting import SampledGaussian
        >>> event = SampledGaussian(
        ...     noise_multiplier=5.0,
        ...     sampling_probability=0.5,
        ...     num_steps=1000,
        ...     neighboring_relation="ADD_OR_REMOVE_ONE",
        ... )
        >>> [f"{value:.2f}" for value in edgeworth_epsilon(event, 1e-5)]
        ['18.06', '18.06', '18.06']
    """
    return _checked(event, compute_epsilon(event, delta))


def interval_within(event: SampledGaussian, report: EpsilonReport) -> tuple[float, float] | None:
    """Returns the interval of `edgeworth_epsilon` beside a report, or None where it is refused."""
    if event.sampling_probability == 1.0:
        return None
    try:
        lower, upper, _ = _checked(event, report)
    except EdgeworthRefusedError:
        return None
    return lower, upper


def interval_without_check(
    event: SampledGaussian, delta: float
) -> tuple[float, float, float, float]:
    """Returns (lower, upper, estimate, error in delta); upper is infinite where it is vacuous."""
    if event.sampling_probability == 1.0:
        raise InvalidParameterError(
            "sampling_probability must be below 1 for an Edgeworth expansion, got 1: the loss is "
            "normal and its epsilon is known in closed form (compute_epsilon)."
        )
    low, high = loss_range(event)
    interval = (high - low) / _GRID_POINTS
    expansions = [
        _expand(law, grid, event.num_steps, interval)
        for law, grid in zip(one_step_laws(event), grid_laws(event, interval), strict=True)
    ]
    return (
        max(_crossing(e, delta + e.error) for e in expansions),
        max(_crossing(e, delta - e.error) for e in expansions),
        max(_crossing(e, delta) for e in expansions),
        max(e.error for e in expansions),
    )


def _checked(event: SampledGaussian, report: EpsilonReport) -> tuple[float, float, float]:
    """Returns the interval and the estimate if they do not contradict the PLD, else raises."""
    delta = report.delta
    lower, upper, estimate, error = interval_without_check(event, delta)
    if not math.isfinite(upper):
        raise EdgeworthRefusedError(
            f"the Edgeworth expansion may be off by {error:.2g} in delta, which is not below delta "
            f"{delta:g}: its interval is vacuous. Use the PLD, or many more steps."
        )
    known = (report.epsilon_lower, report.epsilon_upper)
    is_apart = upper < known[0] or lower > known[1]
    is_off = not known[0] * (1.0 - _TOLERANCE) <= estimate <= known[1] * (1.0 + _TOLERANCE)
    if is_apart or is_off:
        raise EdgeworthRefusedError(
            f"the Edgeworth interval [{lower:.6g}, {upper:.6g}] with estimate {estimate:.6g} does "
            f"not agree with the PLD's [{known[0]:g}, {known[1]:g}]; use the PLD."
        )
    return lower, upper, estimate


def _expand(law: OneStepLaw, grid: GridLaw, num_steps: int, interval: float) -> _Expansion:
    """Returns the expansion, of the order whose error bound is smallest."""
    weights = np.exp(law.upper_log_weights)
    mean = float(np.dot(weights, law.losses))
    deviation = math.sqrt(float(np.dot(weights, (law.losses - mean) ** 2)))
    standard = (law.losses - mean) / deviation
    cumulants = _cumulants(weights, standard, _LARGEST_ORDER + 2)
    t = _FREQUENCIES
    root = math.sqrt(num_steps)
    one_step = np.array([np.dot(weights, np.exp(1j * (value / root) * standard)) for value in t])
    exact = one_step**num_steps
    scale = deviation * root  # of the summed loss
    kernel = 1.0 / (t * np.sqrt(1.0 + (scale * t) ** 2)) / math.pi
    beyond = _beyond(law, grid, num_steps, interval, float(t[-1]) / scale)
    best: _Expansion | None = None
    for order in range(1, _LARGEST_ORDER + 1):
        coefficients = _coefficients(cumulants, order, num_steps)
        powers = np.array([1j**r for r in range(coefficients.size)]) * coefficients
        expanded = np.exp(-0.5 * t * t) * np.polynomial.polynomial.polyval(t, powers)
        integrand = np.abs(exact - expanded) * kernel  # vanishes with t at 0
        integral = float(np.trapezoid(integrand, t)) + float(integrand[0] * t[0])
        error = integral * 1.001 + beyond + num_steps * _ROUNDING_PER_STEP
        if best is None or error < best.error:
            best = _Expansion(mean * num_steps, scale, coefficients, error)
    if best is None:
        raise EdgeworthRefusedError("no order of the Edgeworth expansion gives a finite error.")
    return best


def _beyond(law: OneStepLaw, grid: GridLaw, num_steps: int, interval: float, first: float) -> float:
    """Returns a bound on (1/pi) times the integral of |f|^T / s over frequencies s >= `first`.

    |f(s)| <= V / s with V the total variation of the loss's density; up to s = 2 V a maximum over
    the discretised law's transform, raised by what the grids of losses and frequencies can hide.
    """
    variation = _SMOOTHNESS_MARGIN * law.density_variation()
    tail = 0.5**num_steps / (math.pi * num_steps)
    last = 2.0 * variation
    if last <= first:
        return (variation / first) ** num_steps / (math.pi * num_steps)
    length = 1 << (_PADDING * grid.masses.size - 1).bit_length()
    transform = np.abs(np.fft.rfft(grid.masses, length))
    spacing = 2.0 * math.pi / (length * interval)
    frequencies = spacing * np.arange(transform.size)
    if frequencies[-1] < last:
        return math.inf  # the grid is too coarse to see these frequencies
    inside = (frequencies >= first - spacing) & (frequencies <= last + spacing)
    raised = transform[inside] + frequencies[inside] * interval + 0.5 * spacing * law.deviation()
    largest = min(float(raised.max()), 1.0)
    return tail + largest**num_steps * math.log(last / first) / math.pi


def _cumulants(
    weights: NDArray[np.float64], standard: NDArray[np.float64], largest: int
) -> list[float]:
    """Returns the cumulants 0 (unused), 1, ..., `largest` of a standardised variable."""
    moments = [float(np.dot(weights, standard**k)) for k in range(largest + 1)]
    cumulants = [0.0]
    for n in range(1, largest + 1):
        lower_terms = sum(
            math.comb(n - 1, m - 1) * cumulants[m] * moments[n - m] for m in range(1, n)
        )
        cumulants.append(moments[n] - lower_terms)
    return cumulants


def _coefficients(cumulants: list[float], order: int, num_steps: int) -> NDArray[np.float64]:
    """Returns the coefficients of (it)^r in the expansion up to num_steps^(-order/2).

    The bracket exp(sum_j k_(j+2) (it)^(j+2) / (j+2)! z^j), z = 1/sqrt(T), is expanded in z by
    j a_j = sum_i i b_i a_(j-i), with a_j and b_j polynomials in (it).
    """
    size = 3 * order + 1
    series = [np.zeros(size) for _ in range(order + 1)]
    series[0][0] = 1.0
    for j in range(1, order + 1):
        for i in range(1, j + 1):
            power = i + 2
            factor = i * cumulants[power] / math.factorial(power) / j
            series[j][power:] += factor * series[j - i][: size - power]
    result = np.zeros(size)
    for j, term in enumerate(series):
        result += term * num_steps ** (-j / 2.0)
    return result


def _crossing(expansion: _Expansion, delta: float) -> float:
    """Returns an epsilon at which the expanded delta is at most `delta`, at its last crossing."""
    if delta <= 0.0:
        return math.inf
    high = max(expansion.mean + 16.0 * expansion.deviation, 0.0)
    points = np.linspace(0.0, high, 400)
    above = [expansion.delta(float(point)) > delta for point in points]
    if not any(above):
        return 0.0
    last = max(index for index, is_above in enumerate(above) if is_above)
    if last == points.size - 1:
        return math.inf
    low, high = float(points[last]), float(points[last + 1])
    while high - low > 1e-9 * high:
        middle = (low + high) / 2.0
        if expansion.delta(middle) > delta:
            low = middle
        else:
            high = middle
    return high
