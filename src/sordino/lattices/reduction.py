"""LLL lattice reduction in front of the nearest plane, kept only where the exact loss falls.

A reduced basis describes the same lattice, so it is legal only if every integer is allowed and
all columns of a row share a scale. With limits on the codes its points may have to be moved back
inside, which can cost more than the reduction gained: no general gain is claimed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sordino.core.checks import require_in_range, require_integer
from sordino.core.errors import InvalidParameterError, PrecisionError
from sordino.lattices.babai import compute_factor, plane_codes
from sordino.lattices.bounds import squared_lengths
from sordino.lattices.problem import (
    LARGEST_CODE,
    Problem,
    read_gram,
    read_problem,
    require_codes,
    round_to_codes,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["ReducedBasis", "is_inverse", "nearest_plane_reduced", "reduce_basis"]


@dataclass(frozen=True, slots=True)
class ReducedBasis:
    """A change of basis: codes z = transform @ z', with z' the codes in the reduced basis."""

    transform: NDArray[np.int64]  # (columns, columns), determinant +1 or -1
    inverse: NDArray[np.int64]
    num_swaps: int
    is_complete: bool  # False: stopped at most_swaps, still a legal basis


def reduce_basis(gram: ArrayLike, lovasz: float = 0.99, most_swaps: int = 100_000) -> ReducedBasis:
    """Returns an LLL-reduced basis of the lattice with the given Gram matrix.

    Guarantee:
        `transform` is an integer matrix with |det| = 1, checked exactly: transform @ inverse is
        the identity over the integers. The reducedness itself holds up to rounding in float64,
        which is why users compare exact losses.

    Args:
        gram: Symmetric positive semidefinite, (columns, columns); damped by 1% of its mean
            diagonal if it is singular.
        lovasz: Lovasz parameter, in [0.26, 0.999]; larger reduces more.
        most_swaps: Swaps after which reduction stops early.

    Returns:
        The `ReducedBasis`.

    Raises:
        InvalidParameterError: If gram is not symmetric positive semidefinite, or a parameter is
            out of range.
        PrecisionError: If an entry of the transform or of its inverse passes 2**31.

    Source:
        Lenstra, Lenstra, Lovasz, Math. Ann. 261 (1982), with floating-point Givens updates.
        Departure: the basis is taken from the last column to the first, as nearest plane does.

    Example:
        >>> reduce_basis([[5.0, 2.0], [2.0, 1.0]]).transform.tolist()
        [[1, 0], [-2, 1]]
    """
    require_in_range("lovasz", lovasz, 0.26, 0.999)
    require_integer("most_swaps", most_swaps, 0)
    factor = compute_factor(read_gram(gram).matrix)
    # Reversed, L^T L becomes R^T R with R upper triangular: the usual orientation of LLL.
    upper = np.ascontiguousarray(factor[::-1, ::-1])
    transform, inverse, num_swaps, is_complete = _lll(upper, lovasz, most_swaps)
    transform, inverse = transform[::-1, ::-1].copy(), inverse[::-1, ::-1].copy()
    if not is_inverse(transform, inverse):
        raise PrecisionError(
            "the transform of the lattice reduction does not invert exactly. Add damping to gram "
            "(damp_gram), or do without lattice reduction."
        )
    return ReducedBasis(transform, inverse, num_swaps, is_complete)


def nearest_plane_reduced(
    weights: ArrayLike,
    gram: ArrayLike,
    scales: ArrayLike,
    low: int | None = None,
    high: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns nearest-plane codes, with an LLL-reduced basis in the rows where that helps.

    Guarantee:
        No row's exact loss, after limits, is above that of `nearest_plane`. Nothing more: a
        gain is measured, not promised.

    Args:
        weights: (rows, columns).
        gram: Symmetric positive semidefinite, (columns, columns); damped by 1% of its mean
            diagonal if it is singular.
        scales: Positive, broadcastable to (rows, columns), one scale in all columns of a row.
        low: Smallest code; give both limits or none.
        high: Largest code.

    Returns:
        Codes (rows, columns), and which rows took the reduced basis, shape (rows,).

    Raises:
        InvalidParameterError: If a row has several scales, or as `nearest_plane`.
        PrecisionError: As `nearest_plane`. A reduction that overflows takes no row instead.

    Source:
        docs/proofs/nearest_plane.md.

    Example:
        >>> codes, is_reduced = nearest_plane_reduced([[0.45, 0.3]], [[5.0, 2.0], [2.0, 1.0]], 1.0)
        >>> codes.shape, is_reduced.shape
        ((1, 2), (1,))
    """
    problem = read_problem(weights, gram, scales, low, high)
    if not (problem.scales == problem.scales[:, :1]).all():
        raise InvalidParameterError(
            "scales must be one number a row for lattice reduction: it adds integer multiples of "
            "columns to each other. Use order='min-pivot' with groups."
        )
    codes = require_codes(plane_codes(problem)[0])
    try:
        reduced = _reduced_codes(problem)
    except PrecisionError:
        return codes, np.zeros(len(codes), dtype=np.bool_)
    is_better: NDArray[np.bool_] = _losses(problem, reduced) < _losses(problem, codes)
    return np.where(is_better[:, None], reduced, codes), is_better


def is_inverse(transform: NDArray[np.int64], inverse: NDArray[np.int64]) -> bool:
    """Returns whether the product of two matrices within 2**31 is the identity, over the integers.

    int64 arithmetic proves it modulo 2**64, float64 that no entry is 2**64 or more away.
    """
    identity = np.eye(len(transform), dtype=np.int64)
    with np.errstate(over="ignore"):
        is_congruent = bool((transform @ inverse == identity).all())
    rounded = transform.astype(np.float64) @ inverse.astype(np.float64)
    return is_congruent and bool((np.abs(rounded - identity) < 2.0**62).all())


def _reduced_codes(problem: Problem) -> NDArray[np.int64]:
    """Returns codes from the reduced basis, moved inside the limits."""
    basis = reduce_basis(problem.gram.matrix)
    scale = problem.scales[:, :1]
    inverse, transform = basis.inverse.astype(np.float64), basis.transform.astype(np.float64)
    factor = compute_factor(problem.gram.matrix)
    # A fresh triangular factor of the new basis: the updated one has drifted.
    upper = np.asarray(np.linalg.qr((factor @ transform)[:, ::-1], mode="r"), dtype=np.float64)
    upper *= np.sign(upper.diagonal())[:, None]
    lower = upper[::-1, ::-1]
    targets = lower @ (inverse @ (problem.weights / scale).T)
    codes = np.empty_like(targets)
    for i in range(len(lower)):
        codes[i] = round_to_codes(targets[i] / lower[i, i])
        targets[i:] -= np.outer(lower[i:, i], codes[i])
    reduced = require_codes(codes)
    # In float64 first: it shows whether the sum in int64 can wrap around.
    require_codes(transform @ codes)
    found = (basis.transform @ reduced).T
    if not np.array_equal(basis.inverse @ found.T, reduced):
        raise PrecisionError("codes do not survive the way to the reduced basis and back.")
    return found if problem.low is None else np.clip(found, problem.low, problem.high)


def _losses(problem: Problem, codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns each row's exact loss."""
    return squared_lengths(problem.weights - problem.scales * codes, problem.gram.matrix)


def _lll(
    upper: NDArray[np.float64], lovasz: float, most_swaps: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], int, bool]:
    """Reduces the columns of R in place; returns T, its inverse, the swaps, and if it finished."""
    size = len(upper)
    transform, inverse = np.eye(size, dtype=np.int64), np.eye(size, dtype=np.int64)
    k, num_swaps = 1, 0
    while k < size:
        _size_reduce(upper, transform, inverse, k)
        is_long_enough = (
            upper[k - 1, k] ** 2 + upper[k, k] ** 2 >= lovasz * upper[k - 1, k - 1] ** 2
        )
        if is_long_enough:
            k += 1
            continue
        if num_swaps == most_swaps:
            return transform, inverse, num_swaps, False
        _swap(upper, transform, inverse, k)
        num_swaps += 1
        k = max(k - 1, 1)
    return transform, inverse, num_swaps, True


def _size_reduce(
    upper: NDArray[np.float64],
    transform: NDArray[np.int64],
    inverse: NDArray[np.int64],
    k: int,
) -> None:
    """Subtracts multiples of earlier columns from column k until each is at most half of them."""
    j = k
    while True:
        # Entries above row j do not change any more, so skip to the next one that is too large.
        shares = upper[:j, k] / upper.diagonal()[:j]
        too_large = np.flatnonzero(np.abs(shares) > 0.5 + 1e-9)
        if too_large.size == 0:
            return
        j = int(too_large[-1])
        multiple = float(np.rint(shares[j]))
        if not abs(multiple) <= LARGEST_CODE:
            _refuse()
        upper[: j + 1, k] -= multiple * upper[: j + 1, j]
        transform[:, k] -= int(multiple) * transform[:, j]
        inverse[j] += int(multiple) * inverse[k]
        # Both factors were within 2**31, so these sums did not wrap around.
        if max(np.abs(transform[:, k]).max(), np.abs(inverse[j]).max()) > LARGEST_CODE:
            _refuse()


def _swap(
    upper: NDArray[np.float64],
    transform: NDArray[np.int64],
    inverse: NDArray[np.int64],
    k: int,
) -> None:
    """Swaps columns k - 1 and k, and rotates two rows so that R is upper triangular again."""
    pair, swapped = [k - 1, k], [k, k - 1]
    upper[:, pair] = upper[:, swapped]
    transform[:, pair] = transform[:, swapped]
    inverse[pair] = inverse[swapped]
    a, b = upper[k - 1, k - 1], upper[k, k - 1]
    length = float(np.hypot(a, b))
    rotation = np.array([[a, b], [-b, a]]) / length
    upper[pair, k - 1 :] = rotation @ upper[pair, k - 1 :]
    upper[k, k - 1] = 0.0
    if upper[k, k] < 0.0:  # keep the diagonal positive
        upper[k, k:] *= -1.0


def _refuse() -> None:
    """Raises: integers of the transform are too large."""
    raise PrecisionError(
        "lattice reduction needs integers beyond 2**31. Add damping to gram (damp_gram), or do "
        "without lattice reduction."
    )
