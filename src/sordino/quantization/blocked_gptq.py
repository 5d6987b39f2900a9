"""GPTQ for whole models: the codes of `quantize_rows`, from one factorization an input.

Layers that read the same input share one geometry, so its matrix is factored once for all of them;
columns are rounded in PyTorch, which updates a block of rows in place. Measured: 1.1 to 1.4 times
as fast for a single layer, more where layers share an input. Everything stays in float64, and tests
hold the codes against `quantize_rows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.linalg import lapack

from sordino.core.checks import require_one_of
from sordino.core.errors import PrecisionError
from sordino.lattices.babai import compute_factor
from sordino.lattices.bounds import axis_coordinates
from sordino.lattices.orders import ORDERS, order_columns
from sordino.lattices.problem import (
    DAMPING,
    Gram,
    Problem,
    damp_gram,
    read_gram,
    read_layer,
    require_codes,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["InputGeometry", "damped_geometry", "gptq_codes_blocked"]

_BLOCK = 128  # columns whose errors reach the later ones in one matrix product
_TIE = 1e-9  # as in `round_to_codes`


@dataclass(frozen=True)
class InputGeometry:
    """What rounding needs to know of a layer's input, computed once for all layers that read it.

    Made by `damped_geometry`, which checks the matrix once for all of them.

    Args:
        gram: X^T X with `damping` on its diagonal, positive definite, (columns, columns), float64.
        damping: lam.
        order: One of `ORDERS`.
    """

    gram: NDArray[np.float64]
    damping: float
    order: str

    def __post_init__(self) -> None:
        require_one_of("order", self.order, ORDERS)

    @cached_property
    def columns(self) -> NDArray[np.intp]:
        """The order in which columns are rounded."""
        return order_columns(self.gram, self.order)

    @cached_property
    def factor(self) -> NDArray[np.float64]:
        """L, lower triangular in the order of rounding: L^T L is the Gram matrix."""
        return compute_factor(self.gram[np.ix_(self.columns, self.columns)])

    @cached_property
    def upper(self) -> torch.Tensor:
        """U, upper triangular in the order of rounding: U^T U is the inverse of the Gram matrix."""
        # With L^T L = H it is the inverse of L^T, so that the matrix is factored only once.
        inverse, failed = lapack.dtrtri(self.factor.T, lower=0)
        if failed:  # read_gram has seen to it that this does not happen
            raise PrecisionError("the factor of a Gram matrix is singular in float64.")
        return torch.from_numpy(np.ascontiguousarray(inverse))

    def problem(self, weights: ArrayLike, scales: ArrayLike, low: int, high: int) -> Problem:
        """Returns the rounding problem of a layer that reads this input.

        Raises:
            InvalidParameterError: If an argument is NaN, infinite, of a wrong shape or out of
                range.
        """
        return read_layer(weights, Gram(self.gram, self.gram, 0.0), scales, low, high)


def damped_geometry(gram: ArrayLike, order: str, fraction: float = DAMPING) -> InputGeometry:
    """Returns the geometry of an input from its Gram matrix X^T X, damped by `damp_gram`.

    Raises:
        InvalidParameterError: If gram is not symmetric positive semidefinite, or order is unknown.
    """
    damped, lam = damp_gram(gram, fraction)
    checked = read_gram(damped)  # adds more where so small a fraction leaves the matrix singular
    return InputGeometry(checked.matrix, lam + checked.added_damping, order)


def gptq_codes_blocked(
    weights: ArrayLike, geometry: InputGeometry, scales: ArrayLike, low: int, high: int
) -> NDArray[np.int64]:
    """Returns the codes of `quantize_rows` with limits: each row never worse than nearest.

    Args:
        weights: (rows, columns).
        geometry: Of the layer's input.
        scales: Positive, broadcastable to (rows, columns).
        low: Smallest code.
        high: Largest code.

    Returns:
        Whole numbers in [low, high], (rows, columns), columns as in weights.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite, of a wrong shape or out of range.
    """
    problem = geometry.problem(weights, scales, low, high)
    rows = torch.from_numpy(problem.weights)
    steps = torch.from_numpy(problem.scales.copy())  # a broadcast view cannot be a tensor
    columns = torch.from_numpy(geometry.columns)
    codes = torch.empty_like(rows)
    in_order, losses = _round_columns(
        rows[:, columns].T.contiguous(), steps[:, columns].T.contiguous(), geometry.upper, low, high
    )
    codes[:, columns] = in_order.T
    nearest = _round_to_codes(rows / steps, low, high)
    errors = (rows - steps * nearest)[:, columns]
    along_axes = torch.from_numpy(axis_coordinates(errors.numpy(), geometry.factor))
    nearest_losses = along_axes.square_().sum(dim=1)
    is_no_worse = losses <= nearest_losses  # NaN is not
    return require_codes(codes.where(is_no_worse[:, None], nearest).numpy())


def _round_columns(
    work: torch.Tensor, steps: torch.Tensor, upper: torch.Tensor, low: int, high: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns unguarded codes, (columns, rows), and losses; `work` is the weights, used up."""
    codes = torch.empty_like(work)
    losses = work.new_zeros(work.shape[1])
    num_columns = len(work)
    for start in range(0, num_columns, _BLOCK):
        stop = min(start + _BLOCK, num_columns)
        errors = torch.empty_like(work[start:stop])
        for i in range(start, stop):
            codes[i] = _round_to_codes(work[i] / steps[i], low, high)
            error = torch.div(work[i] - steps[i] * codes[i], upper[i, i], out=errors[i - start])
            work[i:stop].addr_(upper[i, i:stop], error, alpha=-1.0)
        work[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1.0)
        losses += errors.square_().sum(dim=0)  # errors are lengths along the axes
    return codes, losses


def _round_to_codes(targets: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Returns the nearest codes within limits; what lies within 1e-9 of a tie goes to even."""
    codes = targets.round()
    distances = (targets - codes).abs_()
    if bool(distances.amax() >= 0.5 - _TIE):
        below = targets.floor()
        codes = codes.where(distances < 0.5 - _TIE, below + below.remainder(2.0))
    return codes.clamp_(low, high)
