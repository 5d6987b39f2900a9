"""GPTQ in NumPy float64: round a column, spread its error over the columns still to come.

This is nearest plane in other words (`sordino.lattices.babai`, docs/proofs/nearest_plane.md), and
is written without it: errors are spread by the inverse Gram matrix here, targets are projected by
its factor there. Tests hold the two against each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky

from sordino.lattices.bounds import squared_lengths
from sordino.lattices.orders import order_columns
from sordino.lattices.problem import (
    Problem,
    clip_codes,
    nearest_codes,
    read_problem,
    require_codes,
    round_to_codes,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["gptq_codes", "quantize_rows"]

_BLOCK = 128  # columns whose errors reach the later ones in one matrix product


def quantize_rows(  # noqa: PLR0917 (order is the sixth positional argument for callers outside)
    weights: ArrayLike,
    gram: ArrayLike,
    scales: ArrayLike,
    low: int | None = None,
    high: int | None = None,
    order: str = "natural",
) -> NDArray[np.int64]:
    """Returns the GPTQ codes of every row; with limits, never worse than rounding every weight.

    Guarantee:
        Without limits: the integers of `nearest_plane` in the same order of columns, so the
        loss is at most 1/4 sum s_i^2 D_i. With limits: each row has those integers, or those of
        rounding every weight to its nearest code where these have the smaller loss under gram.
        Assumes: exact arithmetic (for the identity of integers; losses are compared as computed).

    Args:
        weights: (rows, columns).
        gram: H = X^T X, damped or not, (columns, columns). If it is singular in float64
            (reciprocal condition below 1e-12 with the diagonal scaled to 1), 1% of its mean
            diagonal is added first.
        scales: Positive, broadcastable to (rows, columns).
        low: Smallest code; give both limits or none.
        high: Largest code.
        order: `natural`, `activation` or `min-pivot`: which column is rounded first.

    Returns:
        Codes z, whole numbers, (rows, columns), columns as in weights: the row is rounded to
        scales * z.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite, of a wrong shape, unknown, not
            positive semidefinite, or a scale is not positive.
        PrecisionError: If a code without limits would lie beyond 2**31.

    Source:
        arXiv:2210.17323, Algorithm 1. Departures: codes that may be unlimited, a guard for each
        row, ties (and what lies within 1e-9 of one) to even codes.

    Example:
        >>> quantize_rows([[0.6, 0.7]], [[1.0, 0.9], [0.9, 1.0]], 1.0).tolist()
        [[1, 0]]
    """
    problem = read_problem(weights, gram, scales, low, high)
    columns = order_columns(problem.gram.matrix, order)
    codes = np.empty_like(problem.weights)
    codes[:, columns] = gptq_codes(problem.permuted(columns))
    if problem.low is None:
        return require_codes(codes)
    nearest = nearest_codes(problem)
    return require_codes(np.where(_is_no_worse(problem, codes, nearest)[:, None], codes, nearest))


def gptq_codes(problem: Problem) -> NDArray[np.float64]:
    """Returns unguarded codes, first column first, as floats; overflow leaves NaN or infinity."""
    upper = _inverse_factor(problem.gram.matrix)
    columns, rows = len(upper), len(problem.weights)
    work = problem.weights.T.copy()  # (columns, rows): what is to be rounded now
    scales = problem.scales.T
    codes = np.empty_like(work)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, columns, _BLOCK):
            stop = min(start + _BLOCK, columns)
            errors = np.empty((stop - start, rows))
            for i in range(start, stop):
                free = round_to_codes(work[i] / scales[i])
                codes[i] = clip_codes(free, problem.low, problem.high)
                errors[i - start] = (work[i] - scales[i] * codes[i]) / upper[i, i]
                work[i:stop] -= np.outer(upper[i, i:stop], errors[i - start])
            work[stop:] -= upper[start:stop, stop:].T @ errors
    return codes.T


def _inverse_factor(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the upper triangular U with U^T U = the inverse of gram."""
    inverse = cho_solve(cho_factor(gram, lower=True), np.eye(len(gram)))
    upper: NDArray[np.float64] = cholesky(0.5 * (inverse + inverse.T), lower=False)
    return upper


def _is_no_worse(
    problem: Problem, codes: NDArray[np.float64], nearest: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Returns which rows lose no more than nearest codes.

    The damped loss decides, and implies the other: nearest codes have the smallest squared error
    of the weights, so whoever beats them with lam times that error added beats them without it.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        errors = problem.weights - problem.scales * codes
        nearest_errors = problem.weights - problem.scales * nearest
        losses = squared_lengths(errors, problem.gram.matrix)
    # Codes lost to overflow make the loss NaN, and NaN is not smaller.
    return np.asarray(losses <= squared_lengths(nearest_errors, problem.gram.matrix))
