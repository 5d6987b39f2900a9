"""Randomized quantization of bounded numbers: its exact law and what it spends.

A value x in [-c, c] is released as one of m levels, B(i) = -(c + D) + 2 i (c + D) / (m - 1). The
two ends are always kept, each inner level with probability q; x is rounded at random to one of its
kept neighbours, so that its mean is x. For x in [B_j, B_(j+1)] the neighbours are i <= j < k with
probability a_i (1 - q)^(j-i) a_k (1 - q)^(k-j-1), where a is 1 at the ends and q elsewhere.

Within a cell every probability is linear in x. The Renyi divergence of two values is quasi-convex
in both laws, so its supremum is reached where cells end: at -c, c and the levels between them.
Looking at -c and c alone understates it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logsumexp

from sordino.accounting._sampled_gaussian import REPLACE_ONE
from sordino.core.checks import require_in_range, require_integer
from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["RandomizedQuantizationEvent", "breakpoints", "probabilities", "renyi_divergence"]

LARGEST_NUM_LEVELS = 1024
_LENGTHS = (1e-100, 1e100)  # of clip and margin: far from the ends of float64
_SMALLEST_KEEP_PROBABILITY = 1e-100
_LARGEST_COUNT = 10**12
_UNIT = 2.0**-50  # eight times the rounding of one operation
_DEEPEST = 750.0  # exp(-750) is 0 in float64


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomizedQuantizationEvent:
    """Vectors of bounded numbers, each coordinate released by randomized quantization.

    One unit owns a whole vector and all `num_releases` of its vectors, so what the coordinates
    spend adds up. The relation is REPLACE_ONE: the unit's vector becomes any other with coordinates
    in [-clip, clip]; that something was released is not hidden.

    Attributes:
        clip: c, the largest size of a coordinate; in [1e-100, 1e100].
        margin: D, by how much the levels reach beyond the clip; in [1e-100, 1e100].
        num_levels: m; in [2, 1024].
        keep_probability: q; 0, or in [1e-100, 1]. At 1 it is plain stochastic rounding.
        num_coordinates: Coordinates of a vector; at least 1.
        num_releases: Vectors that one unit releases; at least 1.
    """

    clip: float
    margin: float
    num_levels: int
    keep_probability: float
    num_coordinates: int
    num_releases: int = 1

    def __post_init__(self) -> None:
        """Refuses NaN, infinities, and what the accountant was not tested for."""
        _require_parameters(self.clip, self.margin, self.num_levels, self.keep_probability)
        require_integer("num_coordinates", self.num_coordinates, 1, _LARGEST_COUNT)
        require_integer("num_releases", self.num_releases, 1, _LARGEST_COUNT)

    @property
    def neighboring_relation(self) -> str:
        """The relation that the divergences are for."""
        return REPLACE_ONE

    def renyi_divergence(self, order: float) -> float:
        """Returns the divergence of all releases of one unit, rounded up; see `renyi_divergence`.

        Of one coordinate alone no divergence is offered: it would not be a guarantee.
        """
        one = renyi_divergence(
            order, self.clip, self.margin, self.num_levels, self.keep_probability
        )
        return math.nextafter(one * (self.num_coordinates * self.num_releases), math.inf)


def probabilities(
    value: float, clip: float, margin: float, num_levels: int, keep_probability: float
) -> NDArray[np.float64]:
    """Returns the law of what is released for a value.

    Guarantee:
        None; it is the law that `renyi_divergence` bounds and that the mechanism draws from.

    Args:
        value: x; in [-clip, clip].
        clip: c, as in `RandomizedQuantizationEvent`.
        margin: D, likewise.
        num_levels: m, likewise.
        keep_probability: q, likewise.

    Returns:
        The probability of every level, shape (num_levels,), float64, to about 1e-12 relative; the
        sum is 1 up to rounding and the mean is the value.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        Youn, Hu, Ziani and Abernethy, "Randomized Quantization is All You Need for Differential
        Privacy in Federated Learning", arXiv:2306.11913. Departure: q may be 0 or 1.

    Example:
        >>> probabilities(0.0, 1.0, 1.0, 3, 0.5).tolist()
        [0.25, 0.5, 0.25]
    """
    _require_parameters(clip, margin, num_levels, keep_probability)
    require_in_range("value", value, -clip, clip)
    place = level_position(value, clip, margin, num_levels)
    law: NDArray[np.float64] = np.exp(_log_law(place, num_levels, float(keep_probability)))
    law /= law.sum()
    return law


def renyi_divergence(
    order: float, clip: float, margin: float, num_levels: int, keep_probability: float
) -> float:
    """Returns the largest Renyi divergence between the laws of any two values, rounded up.

    Guarantee:
        For all x, y in [-clip, clip] the divergence of this order between what is released for x
        and for y is at most the result. It is that of ONE number: a vector of n coordinates spends
        n times as much, see `RandomizedQuantizationEvent`.

    Args:
        order: Above 1; infinity gives the logarithm of the largest ratio, which is the epsilon of
            pure differential privacy.
        clip: c, as in `RandomizedQuantizationEvent`.
        margin: D, likewise.
        num_levels: m, likewise.
        keep_probability: q, likewise.

    Returns:
        Nats. Above the exact supremum by at most about 1e-12 + 1e-13 / (order - 1) times the number
        of levels; infinity where one value can release a level that another cannot: at
        q = 1, plain stochastic rounding, whenever a level lies in [-clip, clip].

    Raises:
        InvalidParameterError: If an argument is NaN or out of range.

    Source:
        arXiv:2306.11913 for the mechanism. Departure: the supremum is taken over all pairs of
        breakpoints, as the top of this module says.

    Example:
        >>> f"{renyi_divergence(math.inf, 1.0, 1.0, 2, 0.5):.6f}"  # ln(1 + 2c/D)
        '1.098612'
        >>> renyi_divergence(2.0, 1.0, 1.0, 16, 1.0)
        inf
    """
    _require_parameters(clip, margin, num_levels, keep_probability)
    if not (isinstance(order, Real) and order > 1.0):  # NaN fails here
        raise InvalidParameterError(f"order must be above 1, or infinity, got {order!r}.")
    return _divergence(
        float(order), float(clip), float(margin), int(num_levels), float(keep_probability)
    )


def breakpoints(clip: float, margin: float, num_levels: int) -> list[float]:
    """Returns where the law changes its formula: -clip, the levels inside, clip.

    Guarantee:
        None. The inner ones are rounded to float64; the accountant uses their exact places.

    Args:
        clip: c, as in `RandomizedQuantizationEvent`.
        margin: D, likewise.
        num_levels: m, likewise.

    Returns:
        Values in [-clip, clip], ascending.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        The top of this module.

    Example:
        >>> breakpoints(1.0, 1.0, 5)
        [-1.0, 0.0, 1.0]
    """
    _require_parameters(clip, margin, num_levels, 0.0)
    reach = Fraction(clip) + Fraction(margin)
    values = [
        float(place * 2 * reach / (num_levels - 1) - reach)
        for place in _places(clip, margin, num_levels)
    ]
    return [min(max(value, -clip), clip) for value in values]


def level_position(value: float, clip: float, margin: float, num_levels: int) -> Fraction:
    """Returns the exact place of a value on the scale on which level i stands at i."""
    reach = Fraction(clip) + Fraction(margin)
    return (Fraction(value) + reach) * (num_levels - 1) / (2 * reach)


@lru_cache(maxsize=4096)
def _divergence(
    order: float, clip: float, margin: float, num_levels: int, keep_probability: float
) -> float:
    """Returns the supremum over all pairs of breakpoints, rounded up."""
    table, error = _log_table(clip, margin, num_levels, keep_probability)
    # Turning x and y around turns the levels around: half of the first values are enough.
    firsts = table[: (len(table) + 1) // 2]
    is_possible = table > -math.inf
    if (is_possible != is_possible[0]).any():
        return math.inf
    table, firsts = table[:, is_possible[0]], firsts[:, is_possible[0]]
    largest_ratio = max(float((row - table).max()) for row in firsts) + 2.0 * error
    if math.isinf(order):
        return math.nextafter(largest_ratio, math.inf)
    moment = max(
        float(logsumexp(order * row - (order - 1.0) * table, axis=1).max()) for row in firsts
    )
    # An error in both logarithms is multiplied by at most 2 order - 1 in all.
    rounded = max(moment, 0.0) / (order - 1.0) + (2.0 * order - 1.0) / (order - 1.0) * error
    return math.nextafter(min(rounded, largest_ratio), math.inf)


@lru_cache(maxsize=8)
def _log_table(
    clip: float, margin: float, num_levels: int, keep_probability: float
) -> tuple[NDArray[np.float64], float]:
    """Returns the log-laws of all breakpoints, a row each, and a bound on their error."""
    places = _places(clip, margin, num_levels)
    table = np.stack([_log_law(place, num_levels, keep_probability) for place in places])
    largest = float(np.abs(table[table > -math.inf]).max())
    # Powers of 0 are exact.
    depth = num_levels * -math.log1p(-keep_probability) if keep_probability < 1.0 else 0.0
    # All summands are positive, so relative errors do not grow: those of the powers of 1 - q, of
    # sums of m terms, and of the rounding of the logarithms themselves.
    return table, _UNIT * (num_levels + 16.0 + largest + min(depth, _DEEPEST))


def _places(clip: float, margin: float, num_levels: int) -> list[Fraction]:
    """Returns the exact places of all breakpoints."""
    first = level_position(-clip, clip, margin, num_levels)
    last = level_position(clip, clip, margin, num_levels)
    inner: Sequence[int] = range(math.floor(first) + 1, math.ceil(last))
    return [first, *map(Fraction, inner), last]


def _log_law(place: Fraction, num_levels: int, keep_probability: float) -> NDArray[np.float64]:
    """Returns the logarithms of the law of a value at this place, shape (num_levels,).

    The inner sums are in float64 and their largest term is far from underflow; the powers of
    1 - q outside of them, which may be tiny, stay logarithms.
    """
    cell = math.floor(place)
    offset = place - cell
    lower, upper = np.arange(cell + 1), np.arange(cell + 1, num_levels)
    down, up = cell - lower, upper - cell - 1
    kept = np.full(num_levels, keep_probability)
    kept[[0, -1]] = 1.0
    with np.errstate(divide="ignore"):  # ln 0 is -infinity
        log_kept = np.log(kept)
        log_lower = log_kept[lower] + _log_power(keep_probability, down)
        log_upper = log_kept[upper] + _log_power(keep_probability, up)
        apart = 1.0 / (upper[None, :] - lower[:, None])
        to_upper = np.exp(log_upper) * (
            up + float(1 - offset)
        )  # times k - x, as a sum of positives
        to_lower = np.exp(log_lower) * (down + float(offset))
        result: NDArray[np.float64] = np.concatenate(
            [log_lower + np.log(apart @ to_upper), log_upper + np.log(to_lower @ apart)]
        )
        return result


def _log_power(keep_probability: float, exponents: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns ln (1 - q)^n; a power of 0 is 1 where n is 0."""
    if keep_probability == 1.0:
        return np.where(exponents == 0, 0.0, -math.inf)
    powers: NDArray[np.float64] = exponents.astype(np.float64) * math.log1p(-keep_probability)
    return powers


def _require_parameters(
    clip: float, margin: float, num_levels: int, keep_probability: float
) -> None:
    """Raises unless the four parameters are in range."""
    require_in_range("clip", clip, *_LENGTHS)
    require_in_range("margin", margin, *_LENGTHS)
    require_in_range("margin / clip", margin / clip, *_LENGTHS)
    require_integer("num_levels", num_levels, 2, LARGEST_NUM_LEVELS)
    require_in_range("keep_probability", keep_probability, 0.0, 1.0)
    if 0.0 < keep_probability < _SMALLEST_KEEP_PROBABILITY:
        raise InvalidParameterError(
            f"keep_probability must be 0 or at least {_SMALLEST_KEEP_PROBABILITY:g}, got "
            f"{keep_probability!r}."
        )
