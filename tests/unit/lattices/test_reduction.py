"""LLL: reduced bases, exact transforms, the guard, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from helpers_lattices import make_gram, quadratic_losses
from sordino.core.errors import InvalidParameterError, PrecisionError
from sordino.lattices import (
    compute_pivots,
    damp_gram,
    nearest_plane,
    nearest_plane_reduced,
    reduce_basis,
)
from sordino.lattices.problem import read_problem
from sordino.lattices.reduction import _reduced_codes, is_inverse

# The short column leaves the long one 2**33 of itself: an integer that does not fit.
STEEP = np.array([[2.0**67, 2.0**33], [2.0**33, 1.0]])


@pytest.mark.parametrize("lovasz", [0.75, 0.99])
@pytest.mark.parametrize("kind", ["inputs", "ill-conditioned", "outliers"])
def test_bases_are_reduced(kind: str, lovasz: float) -> None:
    """Size-reduced, and no pivot falls by more than the Lovasz condition allows."""
    gram = make_gram(kind, 12, np.random.default_rng(8))
    transform = reduce_basis(gram, lovasz).transform
    reduced = (transform.T @ gram @ transform)[::-1, ::-1]  # the usual orientation of LLL
    upper = np.linalg.cholesky(reduced).T
    diagonal = upper.diagonal()
    shares = np.triu(upper / diagonal[:, None], 1)
    assert np.abs(shares).max() <= 0.5 + 1e-4
    next_squares = np.square(diagonal[1:]) + np.square(upper.diagonal(1))
    assert (next_squares >= (lovasz - 1e-4) * np.square(diagonal[:-1])).all()


def test_two_columns_give_the_shortest_vectors() -> None:
    """Gauss reduction: the short basis of a skewed square lattice is the square."""
    skewed = np.array([[1, 7], [3, 22]])  # determinant 1
    transform = reduce_basis((skewed.T @ skewed).astype(float)).transform
    found = skewed @ transform
    assert sorted(np.abs(found).ravel().tolist()) == [0, 0, 1, 1]


def test_stopping_early_leaves_a_legal_basis() -> None:
    """A limit on swaps is honest: not complete, still of determinant one."""
    gram = make_gram("inputs", 20, np.random.default_rng(9))
    basis = reduce_basis(gram, most_swaps=5)
    assert not basis.is_complete
    assert basis.num_swaps == 5
    assert is_inverse(basis.transform, basis.inverse)
    assert abs(np.linalg.det(basis.transform)) == pytest.approx(1.0)
    assert reduce_basis(np.eye(3)).num_swaps == 0


def test_without_limits_it_gains_and_with_two_bits_it_may_lose() -> None:
    """Why nothing is claimed: better before limits, worse after them; the guard takes the best."""
    rng = np.random.default_rng(4)
    gram, _ = damp_gram(make_gram("inputs", 8, rng))
    weights = rng.normal(size=(50, 8))
    for between, is_gain in (((None, None), True), ((-2, 1), False)):
        plain = quadratic_losses(weights, gram, 0.9, nearest_plane(weights, gram, 0.9, *between))
        bare = _reduced_codes(read_problem(weights, gram, 0.9, *between))
        bare_losses = quadratic_losses(weights, gram, 0.9, bare)
        assert (bare_losses.sum() < plain.sum()) == is_gain
        codes, is_reduced = nearest_plane_reduced(weights, gram, 0.9, *between)
        losses = quadratic_losses(weights, gram, 0.9, codes)
        np.testing.assert_allclose(losses, np.minimum(plain, bare_losses), rtol=1e-9)
        assert 0 < is_reduced.sum() < 50


def test_groups_are_refused() -> None:
    """Columns that are added to each other need one scale; rows may differ."""
    gram = make_gram("inputs", 4, np.random.default_rng(10))
    weights = np.ones((2, 4))
    nearest_plane_reduced(weights, gram, [[0.5], [0.25]])
    with pytest.raises(InvalidParameterError, match="scales must be one number a row"):
        nearest_plane_reduced(weights, gram, [0.5, 0.5, 0.25, 0.25])


def test_large_integers_are_refused_and_the_rows_stay() -> None:
    """Past 2**31 reduction stops; the guarded codes are then those of nearest plane."""
    with pytest.raises(PrecisionError, match=r"beyond 2\*\*31. Add damping"):
        reduce_basis(STEEP)
    weights = [[0.1, 0.2]]
    codes, is_reduced = nearest_plane_reduced(weights, STEEP, 1.0)
    assert np.array_equal(codes, nearest_plane(weights, STEEP, 1.0))
    assert not is_reduced.any()


def test_inverse_is_checked_over_the_integers() -> None:
    """Not modulo 2**64: a product that wraps around to the identity is caught."""
    large = 2**31
    left, right = np.eye(6, dtype=np.int64), np.eye(6, dtype=np.int64)
    left[0, 1:5], right[0, 1:5] = large, -large
    left[1:5, 5], right[1:5, 5] = -large, large
    assert np.array_equal(left @ right, np.eye(6))  # in int64
    assert (left.astype(object) @ right.astype(object))[0, 5] == 2**64
    assert not is_inverse(left, right)
    assert not is_inverse(2 * np.eye(2, dtype=np.int64), np.eye(2, dtype=np.int64))
    assert is_inverse(np.array([[1, large], [0, 1]]), np.array([[1, -large], [0, 1]]))


def test_pivots_of_the_reduced_basis() -> None:
    """Their sum falls, their product does not change."""
    gram, _ = damp_gram(make_gram("inputs", 15, np.random.default_rng(11)))
    transform = reduce_basis(gram).transform
    before, after = compute_pivots(gram), compute_pivots(transform.T @ gram @ transform)
    assert after.sum() < before.sum()
    assert np.log(after).sum() == pytest.approx(np.log(before).sum(), abs=1e-8)


@pytest.mark.parametrize("lovasz", [0.2, 1.0, float("nan")])
def test_parameters_are_checked(lovasz: float) -> None:
    """A Lovasz parameter that is refused."""
    with pytest.raises(InvalidParameterError, match="lovasz"):
        reduce_basis(np.eye(2), lovasz)
    with pytest.raises(InvalidParameterError, match="most_swaps"):
        reduce_basis(np.eye(2), most_swaps=-1)
