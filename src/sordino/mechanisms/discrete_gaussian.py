"""Exact draws of the discrete Gaussian on the whole numbers, many at a time.

Adding it to whole numbers is exact: nothing is rounded, so attacks on the low bits of floating-
point noise find nothing. The law is N_Z(0, sigma**2): integer y with mass proportional to
exp(-y**2 / (2 sigma**2)).

Every decision "True with probability exp(-x)", x a fraction, compares a lazily drawn uniform number
with exp(-x). The first 53 bits are compared in float64 with room for its errors; the few draws that
this leaves open (below one in 2**38) are decided with decimal bounds and further bits, as many as
it takes. So no draw has an error, up to the indistinguishability of the secret stream.
"""

from __future__ import annotations

import decimal
import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from sordino.core.checks import require_in_range, require_integer

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from sordino.core.secret_stream import SecretStream

SMALLEST_SIGMA = 2.0**-6
LARGEST_SIGMA = 2.0**40
TOTAL_VARIATION_PER_DRAW = 0.0  # the draws are exact: nothing is added to delta for the sampler

# Float64 errs by less than 2**-42 relative in exp(-x) down to 2**-200, the rounding of x included
# (see `_accept_gaussian`); below that the absolute term covers it. A wider margin costs time only.
_RELATIVE_MARGIN = 2.0**-40
_ABSOLUTE_MARGIN = 2.0**-200
_DRAWS_AT_ONCE = 1 << 16


def sample_discrete_gaussian(stream: SecretStream, sigma: float, count: int) -> NDArray[np.int64]:
    """Returns independent exact draws from N_Z(0, sigma**2), shape (count,).

    Args:
        stream: Secret randomness.
        sigma: The parameter, taken as the exact fraction that the float is; in [2**-6, 2**40]. The
            standard deviation is at most sigma, and at least 0.9999998 sigma from sigma = 1 on.
        count: How many numbers.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.
        EntropyError: If the stream cannot be read.

    Source:
        arXiv:2004.00010v5, Algorithms 1 to 3. Departures: Bernoulli(exp(-x)) by comparison with a
        lazily drawn uniform number; the geometric part counts its successes directly.

    Example:
        >>> from sordino.core.secret_stream import SecretStream
        >>> draws = sample_discrete_gaussian(SecretStream.from_operating_system(), 3.0, 1000)
        >>> draws.dtype.name, bool(abs(draws).max() < 40)  # beyond: once in 10**36 runs
        ('int64', True)
    """
    require_in_range("sigma", sigma, SMALLEST_SIGMA, LARGEST_SIGMA)
    require_integer("count", count, 0)
    draws = np.empty(count, dtype=np.int64)
    done = 0
    while done < count:
        # About 4 in 10 proposals are kept; a little more than are missing costs nothing.
        proposals = min(_DRAWS_AT_ONCE, 2 * (count - done) + 16)
        kept = _propose(stream, float(sigma), proposals)[: count - done]
        draws[done : done + kept.size] = kept
        done += kept.size
    return draws


def distance_to_rounded_normal_upper(sigma: float, count: int) -> float:
    """Returns a bound on how far `count` draws are from normal numbers, rounded.

    Guarantee:
        The total variation distance between `count` independent draws of N_Z(0, sigma**2) and
        `count` independent normal numbers of standard deviation sigma, each rounded to the nearest
        whole number, is at most the result. Shifts by whole numbers change nothing. So a mechanism
        that is (epsilon, delta)-DP with normal noise is, with discrete noise of the same sigma on
        whole numbers, (epsilon, delta + (1 + e**epsilon) * distance)-DP, with one distance added a
        step. (Rényi bounds of the Gaussian hold for the discrete one as they stand, without this.)

    Args:
        sigma: As for `sample_discrete_gaussian`, at least 16.
        count: Draws in all.

    Returns:
        min(0.06 count, 0.1 sqrt(count)) / sigma**2, at most 1; both constants are rounded up.

    Source:
        Ours. With z = y / sigma, the ratio r of the rounded normal's mass to the density at y is
        the mean of exp(-zs/sigma - s**2 / (2 sigma**2)) over s in [-1/2, 1/2], so that
        |r - 1| <= (1 + 1.1 z**2) / (24 sigma**2) for |z| <= sigma / 2. Half of its mean, at most
        2.1 / 48 = 0.044, gives the first term; the root of half the mean of its square (the
        chi-square divergence), at most sqrt(6.83 / 2) / 24 = 0.077, the second. The mass beyond
        |z| = sigma / 2 >= 8 and the difference of the normalising constants (below 1e-300) are
        within the rounding up.
    """
    require_in_range("sigma", sigma, 16.0, LARGEST_SIGMA)
    require_integer("count", count, 0)
    return min(1.0, min(0.06 * count, 0.1 * math.sqrt(count)) / sigma**2)


def _propose(stream: SecretStream, sigma: float, count: int) -> NDArray[np.int64]:
    """Returns the accepted ones of `count` proposals, in order."""
    scale = math.floor(sigma) + 1
    laplace = _discrete_laplace(stream, scale, count)
    return laplace[_accept_gaussian(stream, np.abs(laplace), sigma, scale)]


def _accept_gaussian(
    stream: SecretStream, sizes: NDArray[np.int64], sigma: float, scale: int
) -> NDArray[np.bool_]:
    """Returns truth values, each with probability exp(-(|y| - sigma**2/t)**2 / (2 sigma**2))."""
    centre = Fraction(sigma) ** 2 / scale
    twice_variance = 2 * Fraction(sigma) ** 2
    # The quotient errs by at most 2**-52 (1 + |quotient|), so its half square errs by at most
    # 2**-51 (1 + quotient**2): below 2**-42 while exp is above 2**-200.
    quotient = (sizes.astype(np.float64) - float(centre)) / sigma
    return _bernoulli_exp(
        stream, quotient**2 / 2, lambda i: (int(sizes[i]) - centre) ** 2 / twice_variance
    )


def _discrete_laplace(stream: SecretStream, scale: int, count: int) -> NDArray[np.int64]:
    """Returns draws with mass proportional to exp(-|y| / scale); fewer than `count` come back."""
    offsets = _uniform_below(stream, scale, count)
    kept = _bernoulli_exp(
        stream, offsets / np.float64(scale), lambda i: Fraction(int(offsets[i]), scale)
    )
    sizes = offsets[kept]
    going = np.arange(sizes.size)  # those whose geometric number still grows
    while going.size:
        again = _bernoulli_exp(stream, np.ones(going.size), lambda _: Fraction(1))
        going = going[again]
        sizes[going] += scale
    is_negative = stream.bernoulli(0.5, sizes.size)
    is_second_zero = is_negative & (sizes == 0)  # 0 must not be drawn with both signs
    return np.where(is_negative, -sizes, sizes)[~is_second_zero]


def _uniform_below(stream: SecretStream, limit: int, count: int) -> NDArray[np.int64]:
    """Returns independent uniform whole numbers in [0, limit), by rejection."""
    shift = np.uint64(64 - max(1, (limit - 1).bit_length()))
    numbers = (stream.words(count) >> shift).astype(np.int64)
    while (rejected := np.flatnonzero(numbers >= limit)).size:
        numbers[rejected] = (stream.words(rejected.size) >> shift).astype(np.int64)
    return numbers


def _bernoulli_exp(
    stream: SecretStream, approximate: NDArray[np.float64], exact: Callable[[int], Fraction]
) -> NDArray[np.bool_]:
    """Returns truth values, each with probability exp(-x).

    Args:
        stream: Secret randomness.
        approximate: x in float64, shape (n,), within the error that the margins allow for.
        exact: Gives x itself for an index.
    """
    words = stream.words(approximate.size)
    low = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53  # U is in [low, low + 2**-53]
    chance = np.exp(-approximate)
    is_below = low + 2.0**-53 <= chance * (1 - _RELATIVE_MARGIN) - _ABSOLUTE_MARGIN
    is_above = low >= chance * (1 + _RELATIVE_MARGIN) + _ABSOLUTE_MARGIN
    for i in np.flatnonzero(~(is_below | is_above)):
        is_below[i] = _decide(stream, int(words[i]), exact(int(i)))
    return is_below


def _decide(stream: SecretStream, word: int, x: Fraction) -> bool:
    """Returns whether U < exp(-x), for a uniform U whose first 64 bits are given."""
    if x == 0:
        return True
    bits, num_bits = word, 64
    while True:
        low, high = _exp_bounds(x, num_bits)
        # exp(-x) is no fraction for x > 0, so enough bits always decide.
        if Fraction(bits + 1, 2**num_bits) <= low:
            return True
        if Fraction(bits, 2**num_bits) >= high:
            return False
        bits, num_bits = (bits << 64) | int(stream.words(1)[0]), num_bits + 64


def _exp_bounds(x: Fraction, num_bits: int) -> tuple[Fraction, Fraction]:
    """Returns numbers below and above exp(-x), closer to each other than 2**-num_bits."""
    digits = num_bits // 3 + 30
    context = decimal.Context(
        prec=digits,
        Emax=decimal.MAX_EMAX,
        Emin=decimal.MIN_EMIN,
        traps=[],
        rounding="ROUND_CEILING",
    )
    larger = context.divide(decimal.Decimal(-x.numerator), decimal.Decimal(x.denominator))
    context.rounding = "ROUND_FLOOR"
    smaller = context.divide(decimal.Decimal(-x.numerator), decimal.Decimal(x.denominator))
    # `exp` is rounded to the nearest number of this precision, so one step outwards is a bound.
    low = context.next_minus(context.exp(smaller))
    high = context.next_plus(context.exp(larger))
    return Fraction(low), Fraction(high)
