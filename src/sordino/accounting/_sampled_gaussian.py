"""The one-step pairs of distributions behind a Poisson-subsampled Gaussian, and their losses.

Lengths are in units of `clip_norm`, so one unit's contribution is a vector of norm at most 1. The
worst contributions lie on one line (docs/proofs/sampled_gaussian.md), so everything here is
one-dimensional. With M(a) = (1 - q) N(0, s^2) + q N(a, s^2) the dominating pairs (P, Q) are

    ADD_OR_REMOVE_ONE: (M(1), N(0, s^2)) and (N(0, s^2), M(1)),      REPLACE_ONE: (M(1), M(-1)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr

from sordino.core.checks import require_in_range, require_integer, require_one_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

ADD_OR_REMOVE_ONE = "ADD_OR_REMOVE_ONE"
REPLACE_ONE = "REPLACE_ONE"
NEIGHBORING_RELATIONS = (ADD_OR_REMOVE_ONE, REPLACE_ONE)

NOISE_MULTIPLIERS = (0.1, 1000.0)  # the range that the tests cover
SAMPLING_PROBABILITIES = (1e-8, 1.0)
LARGEST_NUM_STEPS = 10**7

TAIL_WIDTH = 10.0  # in noise stds: 1.5e-23 of the mass lies beyond
_INTEGRAL_WIDTH = 13.0  # in noise stds, for moments


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledGaussian:
    """Noisy sums of a Poisson sample of units, released `num_steps` times.

    Each release is the sum of the sampled units' contributions, each of L2 norm at most
    clip_norm, plus Gaussian noise of standard deviation noise_multiplier * clip_norm in each
    coordinate. In each step every unit is sampled independently with `sampling_probability`.

    Attributes:
        noise_multiplier: Noise standard deviation / clip_norm, no unit; in [0.1, 1000]. Under
            REPLACE_ONE the sum changes by up to 2 clip_norm; that factor is the accountant's
            business, the noise multiplier stays relative to clip_norm.
        sampling_probability: In [1e-8, 1].
        num_steps: Number of releases; in [1, 10^7].
        neighboring_relation: ADD_OR_REMOVE_ONE or REPLACE_ONE.
    """

    noise_multiplier: float
    sampling_probability: float
    num_steps: int
    neighboring_relation: str

    def __post_init__(self) -> None:
        """Refuses NaN, infinities, and what the accountants were not tested for."""
        require_in_range("noise_multiplier", self.noise_multiplier, *NOISE_MULTIPLIERS)
        require_in_range("sampling_probability", self.sampling_probability, *SAMPLING_PROBABILITIES)
        require_integer("num_steps", self.num_steps, 1, LARGEST_NUM_STEPS)
        require_one_of("neighboring_relation", self.neighboring_relation, NEIGHBORING_RELATIONS)

    @property
    def sensitivity(self) -> float:
        """How far one unit moves the sum, in units of clip_norm, if it is always sampled."""
        return 2.0 if self.neighboring_relation == REPLACE_ONE else 1.0


@dataclass(frozen=True, slots=True)
class OneStepLaw:
    """The privacy loss ln(P/Q) of one step at quadrature nodes, with the masses of both laws."""

    losses: NDArray[np.float64]
    upper_log_weights: NDArray[np.float64]  # of P; the weights sum to 1
    lower_log_weights: NDArray[np.float64]  # of Q; the weights sum to 1
    log_slopes: NDArray[np.float64]  # ln |d loss / dx|
    spacing: float  # of the nodes

    def density_variation(self) -> float:
        """Returns the total variation of the loss's density under P, summed over the nodes."""
        density = np.exp(self.upper_log_weights - math.log(self.spacing) - self.log_slopes)
        return float(np.abs(np.diff(density, prepend=0.0, append=0.0)).sum())

    def deviation(self) -> float:
        """Returns the standard deviation of the loss under P."""
        weights = np.exp(self.upper_log_weights)
        centred = self.losses - np.dot(weights, self.losses)
        return math.sqrt(np.dot(weights, centred * centred))


def one_step_laws(
    event: SampledGaussian, *, reach: float = 1.0, refinement: int = 1
) -> tuple[OneStepLaw, ...]:
    """Returns the laws of the dominating pairs, one or two, as trapezoidal rules.

    The integrands are analytic in a strip of half-width pi s^2 (where a mixture vanishes), so the
    rule converges exponentially: a spacing of s^2/2 leaves exp(-4 pi^2), of s/10 less. `reach` is
    where the farthest bump of the wanted integrand lies.
    """
    std = event.noise_multiplier
    spacing = min(std / 10.0, std * std / 2.0) / refinement
    num_half = math.ceil((reach + _INTEGRAL_WIDTH * std) / spacing)
    x: NDArray[np.float64] = np.arange(-num_half, num_half + 1, dtype=np.float64) * spacing
    loss = log_ratio(x, event)
    noise: NDArray[np.float64] = (
        -0.5 * (x / std) ** 2 + math.log(spacing / std) - 0.5 * math.log(2.0 * math.pi)
    )
    plus = noise + loss
    slope = math.log(event.sampling_probability) + (x - 0.5) / std**2 - loss - 2.0 * math.log(std)
    if event.neighboring_relation == REPLACE_ONE:
        both = np.logaddexp(slope, slope[::-1])
        return (OneStepLaw(loss - loss[::-1], plus, plus[::-1], both, spacing),)
    return (
        OneStepLaw(loss, plus, noise, slope, spacing),
        OneStepLaw(-loss, noise, plus, slope, spacing),
    )


def log_ratio(x: NDArray[np.float64], event: SampledGaussian) -> NDArray[np.float64]:
    """Returns ln(M(1)/N(0, s^2)) at x, accurate also where it is near zero."""
    q = event.sampling_probability
    exponent = (x - 0.5) / event.noise_multiplier**2
    if q == 1.0:
        return exponent
    near = np.log1p(q * np.expm1(np.minimum(exponent, 1.0)))
    far = np.logaddexp(math.log1p(-q), math.log(q) + exponent)
    return np.where(exponent < 1.0, near, far)


def loss_range(event: SampledGaussian) -> tuple[float, float]:
    """Returns the losses of the (first) pair at the ends of what is kept of the real line."""
    edge = 1.0 + TAIL_WIDTH * event.noise_multiplier
    low, high = log_ratio(np.array([-edge, edge]), event)
    if event.neighboring_relation == REPLACE_ONE:
        return float(low - high), float(high - low)
    return float(low), float(high)


def where_loss_is(losses: NDArray[np.float64], event: SampledGaussian) -> NDArray[np.float64]:
    """Returns the x at which the (first) pair has these losses; -inf below the smallest loss."""
    q, variance = event.sampling_probability, event.noise_multiplier**2
    if event.neighboring_relation == REPLACE_ONE:
        # (1 - q + c y) = e^loss (1 - q + c / y) with y = e^(x/s^2), c = q e^(-1/(2 s^2))
        stretch = (1.0 - q) / q * math.exp(0.5 / variance)
        return variance * (losses / 2.0 + np.arcsinh(stretch * np.sinh(losses / 2.0)))
    with np.errstate(divide="ignore"):
        return 0.5 + variance * np.log1p(np.maximum(np.expm1(losses) / q, -1.0))


@dataclass(frozen=True, slots=True)
class GridLaw:
    """A discretised privacy loss: masses at multiples of an interval, and at infinity."""

    first: int
    masses: NDArray[np.float64]
    infinity_mass: float


def grid_laws(event: SampledGaussian, interval: float) -> tuple[GridLaw, ...]:
    """Returns pessimistic laws of the loss on the grid, one or two as in `one_step_laws`.

    Connect-the-dots: in each cell of losses the masses of P and of Q are moved to the cell's ends
    so that both are kept. Written per cell, not as second differences of delta(epsilon): these
    lose interval^2 of all digits, and their negative results must be cut off.
    """
    std, q = event.noise_multiplier, event.sampling_probability
    low, high = loss_range(event)
    grid = np.arange(math.floor(low / interval), math.ceil(high / interval) + 1)
    edges = where_loss_is(grid.astype(np.float64) * interval, event)
    noise = _normal_masses(edges / std)
    plus = (1.0 - q) * noise + q * _normal_masses((edges - 1.0) / std)
    if event.neighboring_relation == REPLACE_ONE:
        minus = (1.0 - q) * noise + q * _normal_masses((edges + 1.0) / std)
        return (_connect(grid, plus, minus, interval),)
    return (
        _connect(grid, plus, noise, interval),
        _connect(-grid[::-1], noise[::-1], plus[::-1], interval),
    )


def _connect(
    grid: NDArray[np.int64],
    upper: NDArray[np.float64],
    lower: NDArray[np.float64],
    interval: float,
) -> GridLaw:
    """Returns the law for masses of P and Q per cell, tails included, in order of the loss."""
    inner_upper, inner_lower = upper[1:-1], lower[1:-1]
    ratio_kept = (inner_upper - np.exp(grid[:-1] * interval) * inner_lower) / -math.expm1(-interval)
    to_right = np.clip(ratio_kept, 0.0, inner_upper)
    masses = np.zeros(grid.size)
    masses[:-1] += inner_upper - to_right
    masses[1:] += to_right
    masses[0] += upper[0]  # losses below the grid are raised to it
    return GridLaw(first=int(grid[0]), masses=masses, infinity_mass=float(upper[-1]))


def _normal_masses(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the standard normal's masses below, between and above ascending edges."""
    below, above = ndtr(edges), ndtr(-edges)
    # Differences on the side where the numbers are small keep their relative accuracy.
    inner = np.where(edges[:-1] > 0.0, above[:-1] - above[1:], below[1:] - below[:-1])
    return np.concatenate(([below[0]], np.maximum(inner, 0.0), [above[-1]]))
