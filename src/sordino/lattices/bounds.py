"""What is known of a rounding's loss: before it (bound, estimate) and after it (exact).

With r = L (w - s z) / diag(L), the residual of step i in weight units, and D_i = L_ii^2:

    loss = sum D_i r_i^2          always, whatever the codes
    loss <= 1/4 sum s_i^2 D_i     if every |r_i| <= s_i / 2: nearest plane that no limit changed
    loss ~ 1/12 sum s_i^2 D_i     if residuals are uniform on those intervals

The loss is the squared error of the layer's outputs on the calibration inputs (plus damping). It
is no bound on perplexity. See docs/proofs/nearest_plane.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import blas

from sordino.core.errors import InvalidParameterError
from sordino.lattices.babai import compute_factor
from sordino.lattices.problem import read_codes, read_gram, read_problem

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "axis_coordinates",
    "compute_pivots",
    "compute_residuals",
    "headroom",
    "loss_bound_upper",
    "loss_estimate",
    "reconstruction_losses",
]

_ROUND_UP = 1.0 + 1e-8  # ties within 1e-9 count as ties: residuals reach s/2 (1 + 2e-9)


def compute_pivots(gram: ArrayLike) -> NDArray[np.float64]:
    """Returns D: the squared diagonal of L, columns taken from first to last.

    Guarantee:
        D_i is what is left of column i's squared length when the columns after it are projected
        out: 0 < D_i <= H_ii. The product of D is det H, in every order. Assumes: exact arithmetic.

    Args:
        gram: Symmetric positive semidefinite, (columns, columns), in the order of rounding;
            damped by 1% of its mean diagonal if it is singular.

    Returns:
        D, positive, shape (columns,).

    Raises:
        InvalidParameterError: If gram is not symmetric positive semidefinite, or holds NaN.

    Source:
        arXiv:2507.18553 (the D of its error bound); docs/proofs/nearest_plane.md.

    Example:
        >>> compute_pivots([[2.0, 1.0], [1.0, 1.0]]).tolist()
        [1.0, 1.0]
    """
    pivots: NDArray[np.float64] = np.square(compute_factor(read_gram(gram).matrix).diagonal())
    return pivots


def loss_bound_upper(scales: ArrayLike, pivots: ArrayLike) -> NDArray[np.float64]:
    """Returns each row's largest possible nearest-plane loss, before a weight is seen.

    Guarantee:
        Whatever the weights, nearest-plane codes that no limit changed have at most this loss.
        It is reached: by targets in the middle between planes at every step.

    Args:
        scales: Positive, (rows, columns), (rows, 1), (columns,) or one number.
        pivots: D in the same order of columns, shape (columns,).

    Returns:
        1/4 sum s_i^2 D_i, rounded up by 1e-8 of itself, shape (rows,).

    Raises:
        InvalidParameterError: If shapes do not fit or an entry is not positive and finite.

    Source:
        arXiv:2507.18553 (error bound without clipping); docs/proofs/nearest_plane.md.

    Example:
        >>> [f"{bound:.6f}" for bound in loss_bound_upper([[2.0, 2.0]], [1.0, 3.0])]
        ['4.000000']
    """
    return 0.25 * _ROUND_UP * _weighted_pivots(scales, pivots)


def loss_estimate(scales: ArrayLike, pivots: ArrayLike) -> NDArray[np.float64]:
    """Returns each row's nearest-plane loss if residuals are uniform: a third of the bound.

    Guarantee:
        None: an estimate. It is exact on average over weights that are uniform modulo the
        lattice, and ignores limits.

    Args:
        scales: Positive, (rows, columns), (rows, 1), (columns,) or one number.
        pivots: D in the same order of columns, shape (columns,).

    Returns:
        1/12 sum s_i^2 D_i, shape (rows,).

    Raises:
        InvalidParameterError: If shapes do not fit or an entry is not positive and finite.

    Source:
        arXiv:2507.18553 (expected error); docs/proofs/nearest_plane.md.

    Example:
        >>> loss_estimate([[2.0, 2.0]], [1.0, 2.0]).tolist()
        [1.0]
    """
    return _weighted_pivots(scales, pivots) / 12.0


def headroom(pivots: ArrayLike) -> float:
    """Returns the largest share of the bound that any change of basis can save: 1 - GM / AM of D.

    Guarantee:
        No order of columns and no lattice reduction brings sum D below (1 - headroom) times its
        value, because the product of D does not change. Needs one scale a row.

    Args:
        pivots: D, positive, shape (columns,).

    Returns:
        One minus the geometric over the arithmetic mean of D, in [0, 1).

    Raises:
        InvalidParameterError: If an entry is not positive and finite.

    Source:
        docs/proofs/nearest_plane.md (arithmetic and geometric mean).

    Example:
        >>> f"{headroom([1.0, 4.0]):.3f}"
        '0.200'
    """
    D = _read_positive("pivots", pivots)
    share = D / D.mean()
    return max(0.0, 1.0 - float(np.exp(np.mean(np.log(share)))))


def compute_residuals(
    weights: ArrayLike, gram: ArrayLike, scales: ArrayLike, codes: ArrayLike
) -> NDArray[np.float64]:
    """Returns r = L (w - s z) / diag(L): what each step left over, in weight units.

    Guarantee:
        sum D_i r_i^2 is the loss. Codes are those of nearest plane, ties aside, if and only if
        |r_i| <= s_i / 2 at every step. Assumes: exact arithmetic.

    Args:
        weights: (rows, columns), in the order of rounding.
        gram: (columns, columns), likewise; damped by 1% of its mean diagonal if singular.
        scales: Positive, broadcastable to (rows, columns).
        codes: Whole numbers, (rows, columns).

    Returns:
        Residuals, (rows, columns).

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or of a wrong shape.

    Source:
        docs/proofs/nearest_plane.md.

    Example:
        >>> compute_residuals([[0.5, 1.0]], [[2.0, 1.0], [1.0, 1.0]], 1.0, [[0, 1]]).tolist()
        [[0.5, 0.5]]
    """
    problem = read_problem(weights, gram, scales)
    factor = compute_factor(problem.gram.matrix)
    errors = problem.weights - problem.scales * read_codes(codes, problem.weights.shape)
    residuals: NDArray[np.float64] = (errors @ factor.T) / factor.diagonal()
    return residuals


def reconstruction_losses(
    weights: ArrayLike, gram: ArrayLike, scales: ArrayLike, codes: ArrayLike
) -> NDArray[np.float64]:
    """Returns each row's loss (w - s z)^T H (w - s z), under the gram as given.

    Guarantee:
        The squared error of this row's outputs over the calibration inputs of which gram is
        X^T X. Not a bound on perplexity.

    Args:
        weights: (rows, columns).
        gram: Symmetric positive semidefinite, (columns, columns); nothing is added to it.
        scales: Positive, broadcastable to (rows, columns).
        codes: Whole numbers, (rows, columns).

    Returns:
        Losses, at least 0, shape (rows,).

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or of a wrong shape.

    Source:
        arXiv:2210.17323, Equation 1, for one row.

    Example:
        >>> reconstruction_losses([[0.5, 1.0]], [[2.0, 1.0], [1.0, 1.0]], 1.0, [[0, 1]]).tolist()
        [0.5]
    """
    problem = read_problem(weights, gram, scales)
    codes = read_codes(codes, problem.weights.shape)
    return squared_lengths(problem.weights - problem.scales * codes, problem.gram.given)


def squared_lengths(errors: NDArray[np.float64], gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns e^T H e of each row, never below 0."""
    lengths: NDArray[np.float64] = np.maximum(np.einsum("ri,ri->r", errors @ gram, errors), 0.0)
    return lengths


def axis_coordinates(
    errors: NDArray[np.float64], factor: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns L e of each row e; its squared length is e^T H e."""
    # A product that knows of the zeros costs half of a full one.
    product: NDArray[np.float64] = blas.dtrmm(1.0, factor.T, errors.T, lower=0, trans_a=1)
    return product.T


def _weighted_pivots(scales: ArrayLike, pivots: ArrayLike) -> NDArray[np.float64]:
    """Returns sum s_i^2 D_i of each row."""
    D = _read_positive("pivots", pivots)
    steps = np.atleast_2d(_read_positive("scales", scales))
    if D.ndim != 1 or steps.ndim != 2 or steps.shape[1] not in {1, D.size}:
        raise InvalidParameterError(
            f"scales must have shape (rows, {D.size}) or (rows, 1) for pivots of shape {D.shape}, "
            f"got {steps.shape}."
        )
    steps = np.broadcast_to(steps, (len(steps), D.size))
    weighted: NDArray[np.float64] = np.square(steps) @ D
    return weighted


def _read_positive(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Returns positive finite numbers, else raises."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not (np.isfinite(array).all() and array.min() > 0.0):
        raise InvalidParameterError(f"{name} must be positive and finite, and at least one.")
    return array
