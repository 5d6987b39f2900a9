"""The certificate's formulas by hand, their sharpness, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from sordino.core.errors import InvalidParameterError
from sordino.lattices import (
    compute_pivots,
    headroom,
    loss_bound_upper,
    loss_estimate,
    nearest_plane,
    reconstruction_losses,
)
from sordino.lattices.bounds import compute_residuals

GRAM = np.array([[2.0, 1.0], [1.0, 4.0]])  # D = (2 - 1/4, 4) from first to last


def test_by_hand() -> None:
    """Pivots, bound, estimate, residuals and loss of one row."""
    assert compute_pivots(GRAM) == pytest.approx([1.75, 4.0])
    scales = [[1.0, 0.5], [2.0, 2.0]]
    assert loss_bound_upper(scales, [1.75, 4.0]) == pytest.approx([0.6875, 5.75], rel=2e-8)
    assert loss_estimate(scales, [1.75, 4.0]) == pytest.approx([0.6875 / 3, 5.75 / 3])
    weights, codes = [[0.25, 0.5]], [[0, 1]]
    errors = np.array([0.25, 0.0])
    assert compute_residuals(weights, GRAM, [1.0, 0.5], codes) == pytest.approx(
        np.array([[0.25, 0.25 * 0.25]])
    )
    assert reconstruction_losses(weights, GRAM, [1.0, 0.5], codes) == pytest.approx(
        [errors @ GRAM @ errors]
    )


def test_one_number_or_one_a_row() -> None:
    """Scales broadcast over the columns."""
    pivots = [1.0, 2.0, 3.0]
    assert loss_bound_upper(2.0, pivots) == pytest.approx([6.0], rel=2e-8)
    assert loss_bound_upper([[2.0], [4.0]], pivots) == pytest.approx([6.0, 24.0], rel=2e-8)
    assert loss_estimate([2.0, 2.0, 2.0], pivots) == pytest.approx([2.0])


def test_the_bound_is_reached() -> None:
    """Weights half a step from two planes at every step lose all of it, and no more."""
    factor = np.linalg.cholesky(GRAM[::-1, ::-1]).T[::-1, ::-1]
    half = np.linalg.solve(factor, 0.5 * factor.diagonal())[None, :]
    loss = reconstruction_losses(half, GRAM, 1.0, nearest_plane(half, GRAM, 1.0))
    bound = loss_bound_upper(1.0, compute_pivots(GRAM))
    assert bound * (1 - 2e-8) <= loss <= bound


def test_reconstruction_loss_adds_no_damping() -> None:
    """An error along which no input ever went costs nothing."""
    gram = np.array([[1.0, 1.0], [1.0, 1.0]])
    assert reconstruction_losses([[0.3, -0.3]], gram, 1.0, [[0, 0]]).tolist() == [0.0]


def test_headroom() -> None:
    """Zero where pivots are equal, near one where they are far apart; units do not matter."""
    assert headroom([3.0, 3.0, 3.0]) == pytest.approx(0.0, abs=1e-15)
    assert headroom([1e-90, 1e-90]) == pytest.approx(0.0, abs=1e-15)
    assert headroom([1.0, 4.0]) == pytest.approx(0.2)
    assert headroom([1e-90, 1e90]) == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [[1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], []])
def test_pivots_and_scales_are_positive(bad: list[float]) -> None:
    """Anything else is refused."""
    for call in (
        lambda: headroom(bad),
        lambda: loss_bound_upper(1.0, bad),
        lambda: loss_estimate(bad, [1.0, 1.0]),
    ):
        with pytest.raises(InvalidParameterError, match="must be positive and finite"):
            call()


def test_shapes_are_checked() -> None:
    """Scales fit pivots; codes are whole numbers in the shape of the weights."""
    with pytest.raises(InvalidParameterError, match=r"scales must have shape \(rows, 2\)"):
        loss_bound_upper([1.0, 1.0, 1.0], [1.0, 1.0])
    for codes in ([[0.0, 1.0]], [[0]], [0, 1]):
        with pytest.raises(InvalidParameterError, match="codes must be whole numbers"):
            reconstruction_losses([[0.1, 0.2]], GRAM, 1.0, codes)
