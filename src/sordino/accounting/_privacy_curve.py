"""Delta as a function of epsilon, with bounds on both sides: in closed form, or discretised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dp_accounting.pld.pld_pmf import create_pmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from scipy.optimize import brentq
from scipy.special import log_ndtr

from sordino.accounting._sampled_gaussian import (
    SampledGaussian,
    grid_laws,
    loss_range,
    one_step_laws,
)
from sordino.core.errors import PrecisionError

if TYPE_CHECKING:
    from collections.abc import Callable

FINE = (2e5, 1e6)  # grid points for one step and for the composition
COARSE = (2e4, 1e5)  # while searching
_DIGITS = 4  # significant digits of a reported epsilon: hides the last bits of other machines' FFT
_SMALLEST_INTERVAL = 1e-10  # finer, and a cell's masses of P and Q differ by rounding alone
_TAIL_MASS = 4e-23  # what one step has outside the grid, both ends
_COMPOSITION_TAIL = 1e-15  # what the composition may move to infinity; the library's default
_ROUNDING_PER_STEP = 1e-14  # in delta: a Fourier coefficient's relative error times num_steps
_COUPLING_SHARE = 1e-3  # part of delta given to the failure of the lower bound's coupling
_LARGEST_EPSILON = 1e9
_NEGLIGIBLE_EPSILON = 1e-12  # where a search stops
_CLOSED_FORM_ERROR = 1e-9  # relative, in delta; worst found is below 1e-10


@dataclass(frozen=True, slots=True)
class GaussianCurve:
    """The exact curve of one Gaussian release with mean difference `mu` in noise stds."""

    mu: float

    def log_delta(self, epsilon: float) -> float:
        """Returns ln(delta): arXiv:1805.06530v2, Theorem 8, in log space."""
        log_p = float(log_ndtr(self.mu / 2.0 - epsilon / self.mu))
        log_q = float(log_ndtr(-self.mu / 2.0 - epsilon / self.mu)) + epsilon
        return log_p + math.log(max(-math.expm1(min(log_q - log_p, 0.0)), 1e-300))

    def delta_upper(self, epsilon: float) -> float:
        """Returns delta, rounded up, never 0."""
        return max(math.exp(self.log_delta(epsilon)) * (1.0 + _CLOSED_FORM_ERROR), 1e-300)

    def epsilon_upper(self, delta: float) -> float:
        """Returns the smallest epsilon at this delta, from above."""
        return self._solve(math.log(delta) - _CLOSED_FORM_ERROR)[1]

    def epsilon_lower(self, delta: float) -> float:
        """Returns the smallest epsilon at this delta, from below."""
        return self._solve(math.log(delta) + _CLOSED_FORM_ERROR)[0]

    def _solve(self, log_delta: float) -> tuple[float, float]:
        """Returns neighbors between which ln(delta) crosses the value."""
        if self.log_delta(0.0) <= log_delta:
            return 0.0, 0.0
        high = 1.0
        while self.log_delta(high) > log_delta:
            high *= 2.0
        return bisect(lambda epsilon: self.log_delta(epsilon) <= log_delta, 0.0, high, 1e-11)


@dataclass(frozen=True, slots=True)
class DiscretisedCurve:
    """The curve of a composed, discretised pair (or pairs) of distributions."""

    pld: Any  # dp_accounting's PrivacyLossDistribution, which has no type information
    rounding: float  # in delta
    added_mass: float  # largest probability that the discretised loss is not the coupled one
    added_mean: float  # largest mean shift of the summed loss by discretisation
    added_scale: float  # its deviation: interval * sqrt(num_steps / 2)

    def delta_upper(self, epsilon: float) -> float:
        """Returns delta, pessimistically."""
        return max(float(self.pld.get_delta_for_epsilon(epsilon)), 0.0) + self.rounding

    def epsilon_upper(self, delta: float) -> float:
        """Returns an epsilon whose pessimistic delta is at most `delta`."""
        wanted = delta - self.rounding
        if not wanted >= delta / 2.0:
            raise PrecisionError(
                f"delta {delta:g} is too small for this many steps: rounding alone may hide "
                f"{self.rounding:.2g}. Use a delta of at least {2.0 * self.rounding:.2g}."
            )
        return self._solve(wanted)

    def epsilon_lower(self, delta: float) -> float:
        """Returns an epsilon that every true epsilon at `delta` reaches."""
        failure = _COUPLING_SHARE * delta
        raised = delta + failure + self.added_mass + self.rounding
        shift = self.added_mean + self.added_scale * math.sqrt(-math.log(failure))
        if not raised < 1.0:
            return 0.0
        return max(self._solve(raised) * (1.0 - 1e-6) - shift, 0.0)

    def _solve(self, delta: float) -> float:
        """Returns the smallest epsilon with pessimistic delta <= `delta`, from above."""
        # The library's own inverse walks a million masses in Python, and its sums of exp(-loss)
        # leave the range of doubles where epsilon passes 700.

        def excess(epsilon: float) -> float:
            return math.log(max(float(self.pld.get_delta_for_epsilon(epsilon)), 1e-300) / delta)

        if excess(0.0) <= 0.0:
            return 0.0
        high = 1.0
        while excess(high) > 0.0:
            high *= 4.0
            if high > _LARGEST_EPSILON:
                raise PrecisionError(
                    f"no finite epsilon can be stated at delta {delta:g}: more mass than that has "
                    "an unbounded loss. Use more noise, fewer steps or a larger delta."
                )
        while high > _NEGLIGIBLE_EPSILON and excess(high / 4.0) <= 0.0:
            high /= 4.0
        low = high / 4.0 if high > _NEGLIGIBLE_EPSILON else 0.0
        epsilon = float(brentq(excess, low, high, xtol=1e-16, rtol=1e-8))
        slack = 1e-7
        while excess(epsilon) > 0.0:
            epsilon *= 1.0 + slack
            slack *= 2.0
        return epsilon


Curve = GaussianCurve | DiscretisedCurve


@lru_cache(maxsize=4)  # one plan is asked for its epsilon, its trade-off and its certificate
def privacy_curve(event: SampledGaussian, grid: tuple[float, float]) -> Curve:
    """Returns delta as a function of epsilon for all releases of the event."""
    if event.sampling_probability == 1.0:
        scale = math.sqrt(event.num_steps) * event.sensitivity
        return GaussianCurve(scale / event.noise_multiplier)
    low, high = loss_range(event)
    spread = max(law.deviation() for law in one_step_laws(event))
    reach = high - low + 20.0 * spread * math.sqrt(event.num_steps)
    interval = max((high - low) / grid[0], reach / grid[1], _SMALLEST_INTERVAL)
    masses = [
        create_pmf(
            dict(enumerate(law.masses.tolist(), start=law.first)),
            discretization=interval,
            infinity_mass=law.infinity_mass,
            pessimistic_estimate=True,
        )
        for law in grid_laws(event, interval)
    ]
    steps = event.num_steps
    return DiscretisedCurve(
        pld=PrivacyLossDistribution(*masses).self_compose(
            steps, tail_mass_truncation=_COMPOSITION_TAIL
        ),
        rounding=steps * _ROUNDING_PER_STEP,
        added_mass=steps * _TAIL_MASS + _COMPOSITION_TAIL,
        added_mean=steps * interval * interval / 8.0,
        added_scale=interval * math.sqrt(steps / 2.0),
    )


def bisect(
    is_enough: Callable[[float], bool], low: float, high: float, tolerance: float
) -> tuple[float, float]:
    """Returns a bracket of relative width `tolerance`; `high` keeps is_enough(high)."""
    while high - low > tolerance * high:
        middle = math.sqrt(low * high) if low > 0.0 else high / 2.0
        if not low < middle < high:
            break
        if is_enough(middle):
            high = middle
        else:
            low = middle
        if high < _NEGLIGIBLE_EPSILON:
            break
    return low, high


def rounded(value: float, digits: int, rounding: str) -> Decimal:
    """Returns the value's exact decimal expansion, rounded to significant digits."""
    return Context(prec=digits, rounding=rounding).create_decimal(value)


def round_up(value: float, digits: int = _DIGITS) -> float:
    """Returns a float not below `value` with few digits: the last step before reporting."""
    result = float(rounded(value, digits, ROUND_CEILING))
    return result if result >= value else math.nextafter(result, math.inf)


def round_down(value: float, digits: int = _DIGITS) -> float:
    """Returns a float not above `value` with few digits."""
    result = float(rounded(value, digits, ROUND_FLOOR))
    return result if result <= value else math.nextafter(result, 0.0)
