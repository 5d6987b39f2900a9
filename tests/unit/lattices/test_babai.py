"""Nearest plane by hand, and its factor."""

from __future__ import annotations

import numpy as np
import pytest

from helpers_lattices import make_gram, quadratic_losses
from sordino.lattices.babai import compute_factor, nearest_plane, plane_codes
from sordino.lattices.bounds import compute_pivots, loss_bound_upper
from sordino.lattices.problem import read_problem


def test_two_columns_by_hand() -> None:
    """The second column takes up the error of the first: 0.7 + 0.9 (0.6 - 1) = 0.34 -> 0."""
    gram = [[1.0, 0.9], [0.9, 1.0]]
    assert nearest_plane([[0.6, 0.7]], gram, 1.0).tolist() == [[1, 0]]
    # The other order of columns: 0.6 + 0.9 (0.7 - 1) = 0.33.
    assert nearest_plane([[0.7, 0.6]], gram, 1.0).tolist() == [[1, 0]]
    assert nearest_plane([[2.6, 0.7]], gram, 1.0, -1, 1).tolist() == [[1, 1]]
    assert nearest_plane([[1.3, 0.7]], gram, [[0.5, 1.0]]).tolist() == [[3, 1]]


@pytest.mark.parametrize("kind", ["inputs", "ill-conditioned", "diagonal"])
def test_factor(kind: str) -> None:
    """L is lower triangular, its diagonal is positive, and L^T L is the Gram matrix."""
    gram = make_gram(kind, 7, np.random.default_rng(0))
    factor = compute_factor(gram)
    assert np.array_equal(factor, np.tril(factor))
    assert (factor.diagonal() > 0.0).all()
    np.testing.assert_allclose(factor.T @ factor, gram, atol=1e-14 * np.trace(gram))


def test_scales_broadcast() -> None:
    """One number, one a row, one a column, one a weight."""
    rng = np.random.default_rng(4)
    weights, gram = rng.normal(size=(3, 4)), make_gram("inputs", 4, rng)
    for scales in (0.3, np.full((3, 1), 0.3), np.full(4, 0.3), np.full((1, 4), 0.3)):
        codes = nearest_plane(weights, gram, scales)
        assert np.array_equal(codes, nearest_plane(weights, gram, np.full((3, 4), 0.3)))
        assert codes.dtype == np.int64


def test_clipped_steps_are_marked() -> None:
    """Exactly those whose code the limits moved."""
    problem = read_problem([[5.0, 0.2], [0.3, -4.0]], np.eye(2), 1.0, -2, 3)
    codes, is_clipped = plane_codes(problem)
    assert codes.tolist() == [[3.0, 0.0], [0.0, -2.0]]
    assert is_clipped.tolist() == [[True, False], [False, True]]


def test_can_be_worse_than_nearest_without_limits() -> None:
    """Only the bound is promised: nearest plane does not beat nearest in every row."""
    gram = np.array([[3.0, -1.0, 3.0], [-1.0, 2.0, -2.0], [3.0, -2.0, 4.0]])
    weights = np.array([[0.3, 0.4, 0.0]])
    codes = nearest_plane(weights, gram, 1.0)
    assert codes.tolist() == [[0, 1, 1]]
    assert quadratic_losses(weights, gram, 1.0, codes) == pytest.approx([1.15])
    assert quadratic_losses(weights, gram, 1.0, np.rint(weights)) == pytest.approx([0.35])
    assert loss_bound_upper([1.0] * 3, compute_pivots(gram)) == pytest.approx([1.375])
