"""Orders in which a layer's columns are rounded: one for all rows, known before any rounding.

The column that is rounded last has D = H_ii, the one before it what is left of its own diagonal
entry after the last is projected out, and so on. An order therefore changes how a fixed product,
det H, is split into the pivots D, and with it their sum: the bound on the loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sordino.core.checks import require_one_of
from sordino.lattices.problem import read_gram

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["ORDERS", "compute_order", "order_columns"]

ORDERS = ("natural", "activation", "min-pivot")
_BLOCK = 64  # columns that are projected out of the others in one matrix product
_SMALLEST_SHARE = 1e-15  # of a diagonal entry: smaller pivots are rounding errors


def compute_order(gram: ArrayLike, order: str = "min-pivot") -> NDArray[np.intp]:
    """Returns the columns in the order in which they are to be rounded.

    Guarantee:
        A permutation that depends on gram alone, so it is legal with limits and with scales
        that were fixed before it. `min-pivot` is greedy: each pivot, from the last on, is the
        smallest that the choices behind it leave. Among two columns it has the smallest sum of
        pivots of all orders; among three or more it often, not always, beats the others.

    Args:
        gram: Symmetric positive semidefinite, (columns, columns); damped by 1% of its mean
            diagonal if it is singular.
        order: `natural` (first to last), `activation` (descending diagonal), or `min-pivot`
            (repeatedly the smallest remaining Schur diagonal last).

    Returns:
        Column indices, shape (columns,): rounding starts with the first of them.

    Raises:
        InvalidParameterError: If the order is unknown, or gram is not symmetric positive
            semidefinite.

    Source:
        arXiv:2507.18553 (min-pivot); arXiv:2210.17323's published code (activation).

    Example:
        >>> compute_order([[1.0, 0.0, 0.9], [0.0, 1.5, 0.0], [0.9, 0.0, 2.0]]).tolist()
        [1, 2, 0]
    """
    return order_columns(read_gram(gram).matrix, order)


def order_columns(matrix: NDArray[np.float64], order: str) -> NDArray[np.intp]:
    """Returns the order for a matrix that was checked and is positive definite."""
    require_one_of("order", order, ORDERS)
    if order == "natural":
        return np.arange(len(matrix), dtype=np.intp)
    if order == "activation":
        return np.argsort(-matrix.diagonal(), kind="stable").astype(np.intp)
    return _min_pivot(matrix)


def _min_pivot(matrix: NDArray[np.float64]) -> NDArray[np.intp]:
    """Returns the order that places the smallest remaining Schur diagonal last, again and again."""
    smallest = _SMALLEST_SHARE * matrix.diagonal()
    left = np.arange(len(matrix))  # columns without a place
    schur = matrix  # what is left of the matrix, along `left`
    backwards: list[NDArray[np.intp]] = []
    while left.size:
        chosen, axes = _place_block(schur, smallest[left])
        backwards.append(left[chosen])
        keep = np.delete(np.arange(left.size), chosen)
        left, axes = left[keep], axes[:, keep]
        schur = schur[np.ix_(keep, keep)] - axes.T @ axes
    return np.concatenate(backwards)[::-1].astype(np.intp)


def _place_block(
    schur: NDArray[np.float64], smallest: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Returns the next columns to be placed, last one first, and their axes along all columns."""
    size = len(schur)
    num_chosen = min(_BLOCK, size)
    chosen = np.empty(num_chosen, dtype=np.intp)
    axes = np.empty((num_chosen, size))
    pivots = schur.diagonal().copy()
    for k in range(num_chosen):
        # Of equal pivots the last column goes last: without correlations nothing moves.
        column = size - 1 - int(np.argmin(pivots[::-1]))
        pivot = max(float(pivots[column]), float(smallest[column]))
        axes[k] = (schur[column] - axes[:k, column] @ axes[:k]) / np.sqrt(pivot)
        pivots -= np.square(axes[k])
        pivots[column] = np.inf  # placed
        chosen[k] = column
    return chosen, axes
