"""Babai's nearest plane: codes of a lattice point near the weights, one column after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import cholesky

from sordino.lattices.problem import (
    Problem,
    clip_codes,
    read_problem,
    require_codes,
    round_to_codes,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["compute_factor", "nearest_plane", "plane_codes"]


_BLOCK = 128  # columns whose points reach the later targets in one matrix product


def nearest_plane(
    weights: ArrayLike,
    gram: ArrayLike,
    scales: ArrayLike,
    low: int | None = None,
    high: int | None = None,
) -> NDArray[np.int64]:
    """Returns the nearest-plane codes of every row, columns taken from first to last.

    Guarantee:
        Without limits, or where they change no code, the loss
        (w - s z)^T H (w - s z) of a row is at most 1/4 sum s_i^2 D_i, with D the pivots of H
        (`compute_pivots`). If some lattice point lies within half a step of the row along every
        axis of the factor, its codes are returned. Assumes: exact arithmetic.
        With limits there is no such bound: a row can be worse than rounding every weight.

    Args:
        weights: (rows, columns).
        gram: H, symmetric positive semidefinite, (columns, columns), damped or not. If it is
            singular in float64 (reciprocal condition below 1e-12 with the diagonal scaled to
            1), 1% of its mean diagonal is added first.
        scales: Positive, broadcastable to (rows, columns).
        low: Smallest code; give both limits or none.
        high: Largest code.

    Returns:
        Codes z, whole numbers, (rows, columns): the row is rounded to scales * z.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite, of a wrong shape, not positive
            semidefinite, or a scale is not positive.
        PrecisionError: If a code without limits would lie beyond 2**31.

    Source:
        L. Babai, Combinatorica 6 (1986), the nearest plane procedure; arXiv:2507.18553 for its
        identity with GPTQ. Departure: ties, and what lies within 1e-9 of one, go to even codes.

    Example:
        >>> nearest_plane([[0.6, 0.7]], [[1.0, 0.9], [0.9, 1.0]], 1.0).tolist()
        [[1, 0]]
    """
    codes, _ = plane_codes(read_problem(weights, gram, scales, low, high))
    return require_codes(codes)


def compute_factor(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the lower triangular L with a positive diagonal and L^T L = gram."""
    # Cholesky from the last column to the first: reverse, factor, reverse back.
    factor: NDArray[np.float64] = cholesky(gram[::-1, ::-1], lower=True)
    return np.ascontiguousarray(factor.T[::-1, ::-1])


def plane_codes(
    problem: Problem, factor: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Returns codes as floats (overflow leaves NaN or infinity), and which ones limits changed."""
    if factor is None:
        factor = compute_factor(problem.gram.matrix)
    size = len(factor)
    codes = np.empty((size, len(problem.weights)))
    is_clipped = np.zeros(codes.shape, dtype=np.bool_)
    scales = problem.scales.T
    with np.errstate(over="ignore", invalid="ignore"):
        targets = factor @ problem.weights.T  # (columns, rows): coordinates along the axes
        for start in range(0, size, _BLOCK):
            stop = min(start + _BLOCK, size)
            points = np.empty((stop - start, codes.shape[1]))
            for i in range(start, stop):
                free = round_to_codes(targets[i] / (factor[i, i] * scales[i]))
                codes[i] = clip_codes(free, problem.low, problem.high)
                is_clipped[i] = codes[i] != free
                points[i - start] = scales[i] * codes[i]
                targets[i:stop] -= np.outer(factor[i:stop, i], points[i - start])
            targets[stop:] -= factor[stop:, start:stop] @ points
    return codes.T, is_clipped.T
