"""Mutual information of one released sign, and the noise that keeps it within a budget.

The secret sign s is +1 with probability q. It is published through a binary symmetric channel
(flipped with probability f) or a Gaussian one (s + sigma n). Both information functions are exact
up to a relative error far below `_ROUND_UP`, also at 1e-15 nats or for q = 1e-300; what is
*charged* is `charge_upper` of them, and that is also what the two solvers keep below the budget:

    exact information <= charge_upper(information) <= budget.

By symmetry only the minority mass min(q, 1 - q) matters: pass that, computed accurately. A q that
has been rounded to 1 claims that the sign is known, and the information is then 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from scipy.optimize import brentq

from sordino.accounting._numerics import SMALLEST, entropy_term, entropy_terms
from sordino.core.checks import require_in_range, require_non_negative

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

FloatOrArray = TypeVar("FloatOrArray", float, "NDArray[np.float64]")

_ROUND_UP = 1.0 + 1e-12  # worst relative error found: 3e-15 (bit, q near 0.04, f near 0.39)
_SOLVER_SLACK = 1e-11  # relative; the solvers aim this far below the budget, so ends are safe
_ROOT_TOLERANCE = 1e-13  # in the logarithm of the unknown, hence relative
_SMALLEST_BIAS = 2.0**-56  # a log-odds below it gives a flip probability that rounds to 1/2
_LARGEST_LOG_ODDS = 746.0  # exp(-746) is 0: the bit is not flipped
_SMALLEST_SEPARATION = 1e-8  # below it the information is its leading term to 17 digits
_LARGEST_SEPARATION = 60.0  # above it the information is the entropy, even for q = 1e-308


def binary_symmetric_information(positive_mass: float, flip_probability: float) -> float:
    """Returns I(s; b) for a sign s sent as a bit b that is flipped with `flip_probability`.

    Guarantee:
        `charge_upper` of the result is at least the exact mutual information
        h(q(1-f) + (1-q)f) - h(f) of the two doubles given, h the binary entropy.

    Args:
        positive_mass: P(s = +1), the adversary's probability before the release; in
            [0, 1]. Give the smaller of the two masses where it is known more accurately.
        flip_probability: P(b != s); in [0, 1/2].

    Returns:
        Nats in [0, ln 2]; 0 only if nothing is learned (q in {0, 1} or f = 1/2), and
        otherwise never below 2.2e-308. Relative error below 1e-12.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        arXiv:2605.06505v2 states the channel's entropies; here they are written as
        weighted relative entropies, see docs/proofs/flip_probability.md.

    Example:
        >>> f"{binary_symmetric_information(0.5, 0.49092):.3e}"
        '1.649e-04'
        >>> f"{binary_symmetric_information(0.5, 0.5 - 1e-8):.3e}"
        '2.000e-16'
    """
    q = _minority_mass(positive_mass)
    flip = require_in_range("flip_probability", flip_probability, 0.0, 0.5)
    return _bit_information(q, flip)


def gaussian_channel_information(positive_mass: float, noise_std: float) -> float:
    """Returns I(s; s + noise_std * n) for a sign s in {-1, +1} and a standard normal n.

    Guarantee:
        `charge_upper` of the result is at least the exact mutual information of the
        two doubles given. Assumes: exact arithmetic in the noise.

    Args:
        positive_mass: P(s = +1), the adversary's probability before the release; in
            [0, 1]. Give the smaller of the two masses where it is known more accurately.
        noise_std: Standard deviation of the noise where the signs are -1 and +1; at
            least 0. Infinity is allowed (nothing is learned): the solver returns it.

    Returns:
        Nats in [0, ln 2]; 0 only if nothing is learned (q in {0, 1} or infinite noise),
        and otherwise never below 2.2e-308. Relative error below 1e-12.

    Raises:
        InvalidParameterError: If an argument is NaN, negative or out of range.

    Source:
        arXiv:2605.06505v2 (binary-input Gaussian channel). Departure: the paper's
        Gauss-Hermite rule converges slowly at small noise, so |y| is integrated by the
        trapezoidal rule: given |y| the channel is a binary symmetric one.

    Example:
        >>> f"{gaussian_channel_information(0.5, 1.0):.6f}"
        '0.336831'
        >>> f"{gaussian_channel_information(0.5, 1e6):.6e}"
        '5.000000e-13'
    """
    q = _minority_mass(positive_mass)
    if noise_std == math.inf:
        return 0.0
    std = require_non_negative("noise_std", noise_std)
    return _gaussian_information(q, 2.0 / std if std > 0.0 else math.inf)


def charge_upper(information_nats: float) -> float:
    """Returns what to charge for a release whose information was computed by this module.

    Guarantee:
        Not below the exact mutual information, if `information_nats` is the result of
        `binary_symmetric_information` or `gaussian_channel_information`.

    Args:
        information_nats: Computed mutual information in nats; at least 0.

    Returns:
        Nats: information_nats * (1 + 1e-12); 0 stays 0.

    Raises:
        InvalidParameterError: If the argument is NaN, infinite or negative.

    Source:
        The constant is this module's own; tests/property/test_accounting.py keeps the
        worst cases that were found.

    Example:
        >>> charge_upper(0.5)
        0.5000000000005
        >>> charge_upper(0.0)
        0.0
    """
    return require_non_negative("information_nats", information_nats) * _ROUND_UP


def flip_probability(positive_mass: float, mutual_information_nats: float) -> float:
    """Returns the smallest flip probability that keeps a bit within an information budget.

    Guarantee:
        Flipping the sign with the returned probability f costs
        charge_upper(binary_symmetric_information(q, f)) <= mutual_information_nats,
        and the exact information is not above that charge.

    Args:
        positive_mass: P(s = +1), the adversary's probability before the release; in
            [0, 1]. Give the smaller of the two masses where it is known more accurately.
        mutual_information_nats: Budget of this one release; at least 0.

    Returns:
        A probability in [0, 1/2]. 0 if the sign is known already (q in {0, 1}) or its
        whole entropy, charged, is within the budget; 1/2 at budget 0. Otherwise the
        charge is at least budget * (1 - 1e-10), except where doubles near 1/2 are too
        coarse: the loss is then below a factor 1 - 1e-15 / sqrt(budget).

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        docs/proofs/flip_probability.md.

    Example:
        >>> f"{flip_probability(0.5, 1.65e-4):.5f}"
        '0.49092'
        >>> f"{flip_probability(0.5, 0.1):.5f}"
        '0.28021'
    """
    q = _minority_mass(positive_mass)
    budget = require_non_negative("mutual_information_nats", mutual_information_nats)
    if q == 0.0 or charge_upper(_bit_information(q, 0.0)) <= budget:
        return 0.0
    target = budget * (1.0 - _SOLVER_SLACK)
    # Information <= q(1-q) log_odds**2, so the root lies above; it rounds to 1/2 if too small.
    lower = 0.9 * math.sqrt(target / (q * (1.0 - q)))
    if target < SMALLEST or lower < _SMALLEST_BIAS:
        return 0.5
    log_odds = _increasing_root(
        lambda value: _log_odds_information(q, value), target, lower, _LARGEST_LOG_ODDS
    )
    odds = math.exp(-log_odds)
    flip = odds / (1.0 + odds)
    step = math.ulp(flip)
    while charge_upper(_bit_information(q, flip)) > budget:  # a few ulps, only near 1/2
        flip = min(flip + step, 0.5)
        step *= 2.0
    return flip


def gaussian_noise_std(positive_mass: float, mutual_information_nats: float) -> float:
    """Returns the smallest noise that keeps a Gaussian sign channel within a budget.

    Guarantee:
        Releasing s + noise_std * n costs
        charge_upper(gaussian_channel_information(q, noise_std)) <= mutual_information_nats,
        and the exact information is not above that charge. Assumes: exact arithmetic in
        the noise.

    Args:
        positive_mass: P(s = +1), the adversary's probability before the release; in
            [0, 1]. Give the smaller of the two masses where it is known more accurately.
        mutual_information_nats: Budget of this one release; at least 0.

    Returns:
        A standard deviation, for signs -1 and +1. 0 (no noise) if the sign is known
        already (q in {0, 1}) or its whole entropy, charged, is within the budget;
        infinity at a budget below 2.2e-308, where no finite noise is known to be enough.
        Otherwise the charge is at least budget * (1 - 1e-10).

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        arXiv:2605.06505v2; `gaussian_channel_information` names the departure.

    Example:
        >>> f"{gaussian_noise_std(0.5, 1.65e-4):.3f}"
        '55.044'
        >>> gaussian_noise_std(0.5, 0.0)
        inf
    """
    q = _minority_mass(positive_mass)
    budget = require_non_negative("mutual_information_nats", mutual_information_nats)
    if q == 0.0 or charge_upper(_bit_information(q, 0.0)) <= budget:
        return 0.0
    target = budget * (1.0 - _SOLVER_SLACK)
    if target < SMALLEST:
        return math.inf
    leading = math.sqrt(2.0 * target / (q * (1.0 - q)))  # information <= q(1-q) separation**2 / 2
    if leading < _SMALLEST_SEPARATION:
        separation = leading
    else:
        separation = _increasing_root(
            lambda value: _gaussian_information(q, value),
            target,
            0.9 * leading,
            _LARGEST_SEPARATION + 1.0,
        )
    std = 2.0 / separation
    step = math.ulp(std)
    while charge_upper(_gaussian_information(q, 2.0 / std)) > budget:
        std += step
        step *= 2.0
    return std


def _minority_mass(positive_mass: float) -> float:
    """Returns min(q, 1 - q), raised to the smallest normal double unless it is 0."""
    q = require_in_range("positive_mass", positive_mass, 0.0, 1.0)
    q = min(q, 1.0 - q)
    return max(q, SMALLEST) if q > 0.0 else 0.0  # the information grows with q up to 1/2


def _bit_information(q: float, flip: float) -> float:
    """Returns the information of a flipped bit, for a minority mass and f in [0, 1/2]."""
    bias = 1.0 - 2.0 * flip
    if q == 0.0 or bias <= 0.0:
        return 0.0
    return max(_flip_information(q, flip, 1.0 - flip, bias, entropy_term), SMALLEST)


def _log_odds_information(q: float, log_odds: float) -> float:
    """Returns the information of a bit flipped with probability 1 / (1 + exp(log_odds))."""
    odds = math.exp(-log_odds)
    keep = 1.0 / (1.0 + odds)
    bias = -math.expm1(-log_odds) * keep
    return max(_flip_information(q, odds * keep, keep, bias, entropy_term), SMALLEST)


def _flip_information(
    q: float,
    flip: FloatOrArray,
    keep: FloatOrArray,
    bias: FloatOrArray,
    term: Callable[[FloatOrArray, FloatOrArray, FloatOrArray], FloatOrArray],
) -> FloatOrArray:
    """Returns the sum over s of P(s) KL(P(b|s) || P(b)), where bias = keep - flip."""
    minority = flip + q * bias  # P(b = the less likely sign)
    majority = flip + (1.0 - q) * bias
    rest = 1.0 - q
    return q * (term(keep, minority, rest * bias) + term(flip, majority, -rest * bias)) + rest * (
        term(keep, majority, q * bias) + term(flip, minority, -q * bias)
    )


def _gaussian_information(q: float, separation: float) -> float:
    """Returns I(s; y) where the two means are `separation` noise standard deviations apart."""
    if q == 0.0 or separation == 0.0:
        return 0.0
    if separation < _SMALLEST_SEPARATION:
        return max(q * (1.0 - q) * separation * separation / 2.0, SMALLEST)
    if separation > _LARGEST_SEPARATION:
        return _bit_information(q, 0.0)
    # Given x = |y| / sigma the sign of y is a flipped bit with log-odds separation * x. The
    # integrand is even and analytic but for poles at Im x = pi / separation: the trapezoidal
    # rule with this step errs by less than 1e-16. It is 0 at x = 0.
    step = 0.4 * min(1.0, 1.0 / separation)
    center = separation / 2.0
    x = step * np.arange(max(1.0, (center - 9.5) // step), (center + 9.5) / step)
    odds = np.exp(-separation * x)
    keep = 1.0 / (1.0 + odds)
    flip = odds * keep
    bias = -np.expm1(-separation * x) * keep
    information = _flip_information(q, flip, keep, bias, entropy_terms)
    density = np.exp(-0.5 * (x - center) ** 2) * (1.0 + odds) * (step / math.sqrt(2.0 * math.pi))
    return max(float(np.sum(density * information)), SMALLEST)


def _increasing_root(
    function: Callable[[float], float], target: float, lower: float, largest: float
) -> float:
    """Returns x with function(x) = target, both positive, to a relative tolerance in x.

    The function increases, like a square at first; function(lower) < target < function(largest).
    """
    log_target = math.log(target)
    upper = 2.0 * lower
    while upper < largest and function(upper) <= target:
        lower, upper = upper, 4.0 * upper
    root = brentq(
        lambda log_x: math.log(function(math.exp(log_x))) - log_target,
        math.log(lower),
        math.log(min(upper, largest)),
        xtol=_ROOT_TOLERANCE,
    )
    return math.exp(root)
