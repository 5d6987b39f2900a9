"""The rounding problem of one layer, read and checked: weights, Gram matrix, scales, limits.

What every rounding method must agree on is decided here once: which input is refused, when a
Gram matrix counts as singular and what is then added to it, and where ties go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import eigvalsh, lapack

from sordino.core.checks import require_in_range, require_integer
from sordino.core.errors import InvalidParameterError, PrecisionError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "DAMPING",
    "LARGEST_CODE",
    "Gram",
    "Problem",
    "clip_codes",
    "damp_gram",
    "nearest_codes",
    "read_codes",
    "read_gram",
    "read_layer",
    "read_problem",
    "require_codes",
    "round_to_codes",
]

DAMPING = 0.01  # share of the mean diagonal: the usual value of GPTQ
LARGEST_CODE = 2**31  # integers beyond cannot be stored, and float64 soon loses them
_SMALLEST, _LARGEST = 1e-100, 1e100  # squares and products of two such numbers stay finite
_SINGULAR = 1e-12  # reciprocal condition number, diagonal scaled to 1: below, no digit is safe
_DEAD = 1e-30  # a diagonal entry this small beside the largest one is no direction at all
_ASYMMETRY = 1e-6  # of the largest entry: what sums in float32 may leave behind
_NEGATIVE = 1e-6  # of the largest eigenvalue: likewise
_TIE = 1e-9  # two ways to compute one exact tie differ by less, unless the Gram is nearly singular


@dataclass(frozen=True, slots=True)
class Gram:
    """A Gram matrix that was checked, and the positive definite one that methods work with."""

    given: NDArray[np.float64]  # symmetric, (columns, columns)
    matrix: NDArray[np.float64]  # given + added_damping I
    added_damping: float  # 0 unless `given` is singular in float64


@dataclass(frozen=True, slots=True)
class Problem:
    """Rows of weights to be written as scales * codes, under the loss of a Gram matrix."""

    weights: NDArray[np.float64]  # (rows, columns)
    gram: Gram
    scales: NDArray[np.float64]  # (rows, columns)
    low: int | None  # both limits or none
    high: int | None

    def permuted(self, order: NDArray[np.intp]) -> Problem:
        """Returns the same problem with its columns in another order."""
        across = np.ix_(order, order)
        gram = Gram(self.gram.given[across], self.gram.matrix[across], self.gram.added_damping)
        return Problem(self.weights[:, order], gram, self.scales[:, order], self.low, self.high)


def damp_gram(gram: ArrayLike, fraction: float = DAMPING) -> tuple[NDArray[np.float64], float]:
    """Returns gram + lam I and lam, a fraction of the mean diagonal entry.

    Guarantee:
        The result equals the Gram matrix of the calibration inputs with sqrt(lam) I appended as
        further rows, so a loss under it is never below the loss on the calibration inputs. For
        fraction > 0 its condition number is at most 1 + columns / fraction.

    Args:
        gram: Symmetric positive semidefinite, (columns, columns).
        fraction: lam / mean diagonal, in [0, 1e6].

    Returns:
        The damped matrix (columns, columns), and lam. A matrix of zeros gets lam = fraction: all
        directions weigh the same.

    Raises:
        InvalidParameterError: If gram is not symmetric positive semidefinite, or holds NaN.

    Source:
        arXiv:2210.17323, Section 3.3, step 3 (dampening of 1% of the mean diagonal).

    Example:
        >>> damped, lam = damp_gram([[4.0, 2.0], [2.0, 1.0]])
        >>> lam, damped.tolist()
        (0.025, [[4.025, 2.0], [2.0, 1.025]])
    """
    given = read_gram(gram).given
    lam = _damping(given, require_in_range("fraction", fraction, 0.0, 1e6))
    return given + lam * np.eye(len(given)), lam


def read_gram(gram: ArrayLike) -> Gram:
    """Returns the checked Gram matrix, damped by 1% of its mean diagonal if it is singular."""
    given = _read_matrix("gram", gram)
    if given.shape[0] != given.shape[1]:
        raise InvalidParameterError(
            f"gram must be square, (columns, columns), got shape {given.shape}."
        )
    largest = float(np.abs(given).max())
    if largest > 0.0:
        require_in_range("the largest entry of gram", largest, _SMALLEST, _LARGEST)
    asymmetry = float(np.abs(given - given.T).max())
    if asymmetry > _ASYMMETRY * largest:
        raise InvalidParameterError(
            f"gram must be symmetric, but two mirrored entries differ by {asymmetry:g}. Give "
            "X^T X, or average it with its transpose."
        )
    given = 0.5 * (given + given.T)
    if _is_well_conditioned(given):
        return Gram(given, given, 0.0)
    lam = _damping(given, DAMPING)
    _require_semidefinite(given, lam)
    return Gram(given, given + lam * np.eye(len(given)), lam)


def read_problem(
    weights: ArrayLike,
    gram: ArrayLike,
    scales: ArrayLike,
    low: int | None = None,
    high: int | None = None,
) -> Problem:
    """Returns the checked problem; raises InvalidParameterError on anything unclear."""
    return read_layer(weights, read_gram(gram), scales, low, high)


def read_layer(
    weights: ArrayLike,
    checked_gram: Gram,
    scales: ArrayLike,
    low: int | None = None,
    high: int | None = None,
) -> Problem:
    """Returns the checked problem of a layer whose Gram matrix was read already."""
    checked_weights = _read_matrix("weights", weights)
    if float(np.abs(checked_weights).max()) > _LARGEST:
        raise InvalidParameterError(f"weights must be at most {_LARGEST:g} in absolute value.")
    columns = checked_weights.shape[1]
    if len(checked_gram.given) != columns:
        raise InvalidParameterError(
            f"gram must have shape ({columns}, {columns}) for weights of shape "
            f"{checked_weights.shape}, got {checked_gram.given.shape}."
        )
    checked_scales = _read_scales(scales, checked_weights.shape)
    if (low is None) != (high is None):
        raise InvalidParameterError(
            f"low and high must be given both or not at all, got {low!r} and {high!r}."
        )
    if low is not None and high is not None:
        low = require_integer("low", low, -LARGEST_CODE, LARGEST_CODE)
        high = require_integer("high", high, low, LARGEST_CODE)
    return Problem(checked_weights, checked_gram, checked_scales, low, high)


def clip_codes(
    codes: NDArray[np.float64], low: int | None, high: int | None
) -> NDArray[np.float64]:
    """Returns the codes moved inside the limits, if there are any."""
    return codes if low is None else np.clip(codes, low, high)


def read_codes(codes: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Returns whole numbers in the shape of the weights as floats, else raises."""
    array = np.asarray(codes)
    if array.dtype.kind not in "iu" or array.shape != shape:
        raise InvalidParameterError(
            f"codes must be whole numbers of shape {shape}, got the type {array.dtype} and "
            f"shape {array.shape}."
        )
    return array.astype(np.float64)


def round_to_codes(targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the nearest whole numbers as floats; ties go to even numbers.

    Whatever lies within 1e-9 of a tie is one: two exact methods that compute 2.5 as 2.5 and as
    2.4999999999999996 must not part ways. Targets that are not finite stay so.
    """
    with np.errstate(invalid="ignore"):  # infinity - infinity
        codes = np.rint(targets)
        is_tie = 0.5 - np.abs(targets - codes) <= _TIE + 8 * np.spacing(np.abs(targets))
    if is_tie.any():  # seldom, and a pass over all targets would cost more than all the rest
        below = np.floor(targets[is_tie])
        codes[is_tie] = below + np.mod(below, 2.0)
    return codes


def nearest_codes(problem: Problem) -> NDArray[np.float64]:
    """Returns the codes of rounding every weight by itself, within the limits, as floats."""
    return clip_codes(round_to_codes(problem.weights / problem.scales), problem.low, problem.high)


def require_codes(codes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns whole floats as integers; raises PrecisionError where one is lost or too large."""
    num_lost = int(np.sum(~(np.abs(codes) <= LARGEST_CODE)))
    if num_lost:
        raise PrecisionError(
            f"codes must lie within 2**31, but {num_lost} of {codes.size} do not. Use larger "
            "scales, limits (low and high), or a gram with more damping (damp_gram)."
        )
    return codes.astype(np.int64)


def _read_matrix(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Returns a finite matrix in float64 with at least one entry, else raises."""
    array = _read_real(name, values)
    if array.ndim != 2 or array.size == 0:
        raise InvalidParameterError(
            f"{name} must be a matrix with at least one entry, got shape {array.shape}."
        )
    return array


def _read_scales(scales: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Returns positive scales in the shape of the weights, else raises."""
    array = _read_real("scales", scales)
    try:
        array = np.broadcast_to(array, shape)
    except ValueError as error:
        raise InvalidParameterError(
            f"scales must broadcast to the weights' shape {shape}, got {array.shape}."
        ) from error
    if not (array.min() >= _SMALLEST and array.max() <= _LARGEST):
        raise InvalidParameterError(
            f"scales must be in [{_SMALLEST:g}, {_LARGEST:g}], got a scale of "
            f"{array.min() if array.min() < _SMALLEST else array.max():g}. Give a group of zero "
            "weights any positive scale."
        )
    return array


def _read_real(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Returns finite real numbers in float64, else raises."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InvalidParameterError(f"{name} must have rows of one length.") from error
    if array.dtype.kind not in "fiu":
        raise InvalidParameterError(f"{name} must be real numbers, got the type {array.dtype}.")
    array = array.astype(np.float64)
    num_bad = array.size - int(np.isfinite(array).sum())
    if num_bad:
        raise InvalidParameterError(
            f"{name} must be finite, got {num_bad} of {array.size} entries NaN or infinite."
        )
    return array


def _damping(given: NDArray[np.float64], fraction: float) -> float:
    """Returns lam: a fraction of the mean diagonal entry, or of 1 if nothing is there."""
    mean = float(np.mean(given.diagonal()))
    return fraction * (mean if mean > 0.0 else 1.0)


def _is_well_conditioned(given: NDArray[np.float64]) -> bool:
    """Returns whether triangular factors of a symmetric matrix have digits left in float64."""
    diagonal = given.diagonal()
    if not diagonal.min() > _DEAD * diagonal.max():
        return False
    # Triangular factors do not care about units of columns, so neither does this test.
    units = 1.0 / np.sqrt(diagonal)
    scaled = np.asfortranarray(given * units[:, None] * units[None, :])
    norm = float(np.abs(scaled).sum(axis=0).max())
    factor, failed = lapack.dpotrf(scaled, lower=0)
    if failed:
        return False
    reciprocal_condition, _ = lapack.dpocon(factor, norm)
    return bool(reciprocal_condition >= _SINGULAR)


def _require_semidefinite(given: NDArray[np.float64], lam: float) -> None:
    """Raises unless negative eigenvalues are rounding errors that `lam` outweighs twice."""
    eigenvalues = eigvalsh(given)
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    if not smallest >= -min(_NEGATIVE * max(largest, 0.0), 0.5 * lam):
        raise InvalidParameterError(
            f"gram must be positive semidefinite, but has the eigenvalue {smallest:g} (the "
            f"largest is {largest:g}). Give X^T X, or project noisy sums first."
        )
