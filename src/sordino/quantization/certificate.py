"""A certificate for every layer: what its codes lose, and which bound on that was proven.

It is computed from weights, Gram matrix, scales and codes alone, by the nearest plane of
`sordino.lattices`: a quantizer is not trusted, whichever one wrote the codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sordino.core.checks import require_non_negative
from sordino.core.errors import InvalidParameterError
from sordino.lattices.babai import compute_factor, plane_codes
from sordino.lattices.bounds import axis_coordinates, loss_bound_upper, loss_estimate
from sordino.lattices.orders import order_columns
from sordino.lattices.problem import (
    Problem,
    clip_codes,
    nearest_codes,
    read_codes,
    read_problem,
    require_codes,
    round_to_codes,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["LayerCertificate", "certify_layer", "certify_problem"]


@dataclass(frozen=True, slots=True)
class LayerCertificate:
    """Losses of one layer, summed over its rows: squared output error on the calibration inputs.

    None of these numbers bounds perplexity.
    """

    bound: float  # 1/4 sum s_i^2 D_i, rounded up: proven before a weight is seen, if `applies`
    predicted: float  # 1/12 sum s_i^2 D_i: an estimate
    exact: float  # of these codes
    nearest: float  # of rounding every weight to its nearest code within the limits
    clipped: int  # steps of nearest plane that the limits changed
    applies: bool  # the bound holds for these codes by proof, not by luck
    order: str
    damping: float  # lam: what stands on the diagonal beside X^T X


def certify_layer(
    weights: ArrayLike,
    gram: ArrayLike,
    scales: ArrayLike,
    codes: ArrayLike,
    *,
    low: int | None = None,
    high: int | None = None,
    order: str = "natural",
    damping: float = 0.0,
) -> LayerCertificate:
    """Returns the certificate of a layer's codes.

    Guarantee:
        `exact` is the loss of the codes under the damped gram, up to rounding in float64, and
        never below their loss without damping. If `applies`, exact <= bound follows from the
        theorem: every row has nearest-plane codes that no limit changed, or loses no more than
        those would.

    Args:
        weights: (rows, columns).
        gram: H, (columns, columns), with `damping` already on its diagonal. If it is singular
            all the same, 1% of its mean diagonal is added, and reported.
        scales: Positive, broadcastable to (rows, columns).
        codes: Whole numbers within the limits, (rows, columns), from any method.
        low: Smallest code; give both limits or none.
        high: Largest code.
        order: The order of columns that the codes were made in.
        damping: lam that the caller has added to X^T X.

    Returns:
        The `LayerCertificate`.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite, of a wrong shape or out of range,
            or a code is beyond the limits.
        PrecisionError: If a nearest-plane code without limits would lie beyond 2**31.
    """
    problem = read_problem(weights, gram, scales, low, high)
    columns = order_columns(problem.gram.matrix, order)
    factor = compute_factor(problem.gram.matrix[np.ix_(columns, columns)])
    return certify_problem(problem, columns, factor, codes, order=order, damping=damping)


def certify_problem(
    problem: Problem,
    columns: NDArray[np.intp],
    factor: NDArray[np.float64],
    codes: ArrayLike,
    *,
    order: str,
    damping: float,
) -> LayerCertificate:
    """Returns `certify_layer` for a matrix that was put in order and factored before.

    Args:
        problem: Checked, columns as the layer has them.
        columns: The order that the codes were made in.
        factor: Of the matrix in that order.
        codes: Whole numbers within the limits, (rows, columns), columns as the layer has them.
        order: What the order is called.
        damping: lam that the caller has added to X^T X.

    Raises:
        InvalidParameterError: If codes are of a wrong shape or beyond the limits.
        PrecisionError: If a nearest-plane code without limits would lie beyond 2**31.
    """
    checked = read_codes(codes, problem.weights.shape)
    _require_limits(checked, problem)
    checked = checked[:, columns]
    problem = Problem(
        problem.weights[:, columns],
        problem.gram,
        problem.scales[:, columns],
        problem.low,
        problem.high,
    )
    pivots = np.square(factor.diagonal())
    losses, clipped, is_bounded = _compare_with_plane(problem, factor, checked)
    nearest = _losses(problem, factor, nearest_codes(problem))
    return LayerCertificate(
        bound=float(loss_bound_upper(problem.scales, pivots).sum()),
        predicted=float(loss_estimate(problem.scales, pivots).sum()),
        exact=float(losses.sum()),
        nearest=float(nearest.sum()),
        clipped=clipped,
        applies=is_bounded,
        order=order,
        damping=require_non_negative("damping", damping) + problem.gram.added_damping,
    )


def _compare_with_plane(
    problem: Problem, factor: NDArray[np.float64], codes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], int, bool]:
    """Returns each row's loss, the steps that limits changed, and if the bound covers all rows."""
    along_axes = axis_coordinates(problem.weights - problem.scales * codes, factor)
    losses: NDArray[np.float64] = np.einsum("ri,ri->r", along_axes, along_axes)
    is_off = (np.abs(along_axes / factor.diagonal()) > 0.5 * problem.scales).any(axis=1)
    if not is_off.any():
        return losses, 0, True
    # Limits changed these rows, or another method made them. Where nearest plane would have stood
    # before each step of these codes: if it gives the same ones, they are its own, step by step.
    rest, own = _take_rows(problem, is_off), codes[is_off]
    free = round_to_codes(own + along_axes[is_off] / (factor.diagonal() * rest.scales))
    limited = clip_codes(free, rest.low, rest.high)
    is_clipped = limited != free
    # A clipped row has no bound to inherit, so its plane codes need no loss.
    is_covered = ~is_clipped.any(axis=1)
    is_other = (limited != own).any(axis=1)
    if is_other.any():  # they parted, and only a run of its own tells where it goes
        other = _take_rows(rest, is_other)
        plane, is_clipped[is_other] = plane_codes(other, factor)
        plane = require_codes(plane).astype(np.float64)
        is_free = ~is_clipped[is_other].any(axis=1)
        is_better = is_free.copy()
        if is_free.any():
            plane_losses = _losses(_take_rows(other, is_free), factor, plane[is_free])
            is_better[is_free] = losses[is_off][is_other][is_free] <= plane_losses
        is_covered[is_other] = is_better
    return losses, int(is_clipped.sum()), bool(is_covered.all())


def _take_rows(problem: Problem, chosen: NDArray[np.bool_]) -> Problem:
    """Returns the problem of some of its rows."""
    return Problem(
        problem.weights[chosen], problem.gram, problem.scales[chosen], problem.low, problem.high
    )


def _losses(
    problem: Problem, factor: NDArray[np.float64], codes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns each row's loss under the damped gram: the squared length of L (w - s z)."""
    along_axes = axis_coordinates(problem.weights - problem.scales * codes, factor)
    losses: NDArray[np.float64] = np.einsum("ri,ri->r", along_axes, along_axes)
    return losses


def _require_limits(codes: NDArray[np.float64], problem: Problem) -> None:
    """Raises if a code is beyond the limits."""
    if problem.low is None or problem.high is None:
        return
    low, high = int(codes.min()), int(codes.max())
    if not problem.low <= low <= high <= problem.high:
        raise InvalidParameterError(
            f"codes must lie in [{problem.low}, {problem.high}], got codes from {low} to {high}."
        )
