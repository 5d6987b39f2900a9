"""Laws of rounding in a lattice: two methods, one answer; bounds hold; never worse than nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers_lattices import (
    GRAM_KINDS,
    exact_codes,
    make_gram,
    quadratic_losses,
    smallest_loss,
)
from sordino.lattices import (
    ORDERS,
    compute_order,
    compute_pivots,
    damp_gram,
    headroom,
    loss_bound_upper,
    nearest_plane,
    nearest_plane_reduced,
    reduce_basis,
)
from sordino.lattices.bounds import compute_residuals
from sordino.lattices.problem import nearest_codes, read_problem
from sordino.quantization import certify_layer, quantize_rows
from sordino.quantization.gptq import gptq_codes

if TYPE_CHECKING:
    from helpers_lattices import Matrix

MANY = settings(max_examples=120, deadline=None)
FEW = settings(max_examples=50, deadline=None)
LARGE = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 2**32)
kinds = st.sampled_from(GRAM_KINDS)
orders = st.sampled_from(ORDERS)
limits = st.sampled_from([None, (-8, 7), (-2, 1), (0, 15), (-1, 1), (3, 3)])


def make_layer(
    seed: int, kind: str, columns: int, rows: int = 6, group: int = 4
) -> tuple[Matrix, Matrix, Matrix]:
    """Weights with a few outliers, a Gram matrix in random order, and scales of groups."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_t(3, size=(rows, columns)) * 10.0 ** rng.integers(-3, 4)
    gram = make_gram(kind, columns, rng) * 10.0 ** rng.integers(-6, 7)
    groups = rng.uniform(0.1, 0.6, size=(rows, -(-columns // group))) * np.abs(weights).mean()
    scales = np.repeat(groups, group, axis=1)[:, :columns]
    mixed = rng.permutation(columns)
    return weights[:, mixed], gram[np.ix_(mixed, mixed)], scales


@MANY
@given(seed=seeds, kind=kinds, columns=st.integers(1, 40), between=limits)
def test_gptq_is_nearest_plane(
    seed: int, kind: str, columns: int, between: tuple[int, int] | None
) -> None:
    """The same integers, with and without limits, in any order of columns."""
    weights, gram, scales = make_layer(seed, kind, columns)
    low, high = between or (None, None)
    spread = gptq_codes(read_problem(weights, gram, scales, low, high))
    projected = nearest_plane(weights, gram, scales, low, high)
    assert np.array_equal(spread, projected)
    if between is None:
        assert np.array_equal(quantize_rows(weights, gram, scales), projected)


@LARGE
@given(seed=seeds, kind=kinds, columns=st.integers(120, 300))
def test_blocks_change_nothing(seed: int, kind: str, columns: int) -> None:
    """Beyond one block of columns, likewise."""
    weights, gram, scales = make_layer(seed, kind, columns, rows=2)
    gram, _ = damp_gram(gram)
    for order in ORDERS:
        columns_in_order = compute_order(gram, order)
        across = np.ix_(columns_in_order, columns_in_order)
        projected = nearest_plane(
            weights[:, columns_in_order], gram[across], scales[:, columns_in_order]
        )
        codes = quantize_rows(weights, gram, scales, order=order)
        assert np.array_equal(codes[:, columns_in_order], projected)


@MANY
@given(data=st.data(), columns=st.integers(1, 5), between=limits)
def test_against_rational_arithmetic(
    data: st.DataObject, columns: int, between: tuple[int, int] | None
) -> None:
    """Small whole numbers make exact ties at every step: all methods and the oracle agree."""
    whole = st.integers(-2, 2)
    inputs = np.array(
        [data.draw(st.lists(whole, min_size=columns, max_size=columns)) for _ in range(columns + 2)]
    )
    gram = (inputs.T @ inputs).astype(np.float64)
    assume(np.linalg.det(gram) > 0.5)  # a whole number
    quarters = st.lists(st.integers(-20, 20), min_size=columns, max_size=columns)
    weights = np.array([data.draw(quarters) for _ in range(3)]) / 4.0
    scales = np.broadcast_to(data.draw(st.sampled_from([0.5, 1.0, 1.5])), weights.shape)
    low, high = between or (None, None)
    expected = exact_codes(weights, gram, scales, between)
    assert nearest_plane(weights, gram, scales, low, high).tolist() == expected
    assert gptq_codes(read_problem(weights, gram, scales, low, high)).tolist() == expected


@MANY
@given(seed=seeds, kind=kinds, columns=st.integers(1, 30), order=orders)
def test_bound_holds_without_limits(seed: int, kind: str, columns: int, order: str) -> None:
    """Loss is sum D r^2 exactly, at most the bound, and the certificate says that it applies."""
    weights, gram, scales = make_layer(seed, kind, columns)
    gram, lam = damp_gram(gram)
    codes = quantize_rows(weights, gram, scales, order=order)
    place = compute_order(gram, order)
    ordered = gram[np.ix_(place, place)]
    losses = quadratic_losses(weights, gram, scales, codes)
    pivots = compute_pivots(ordered)
    residuals = compute_residuals(weights[:, place], ordered, scales[:, place], codes[:, place])
    np.testing.assert_allclose(np.square(residuals) @ pivots, losses, rtol=1e-7)
    assert (np.abs(residuals) <= 0.5 * scales[:, place] * (1 + 1e-6)).all()
    assert (losses <= loss_bound_upper(scales[:, place], pivots)).all()
    certificate = certify_layer(weights, gram, scales, codes, order=order, damping=lam)
    assert certificate.applies
    assert certificate.clipped == 0
    assert certificate.exact <= certificate.bound
    np.testing.assert_allclose(certificate.exact, losses.sum(), rtol=1e-7)
    np.testing.assert_allclose(3 * certificate.predicted, certificate.bound, rtol=1e-7)


@MANY
@given(
    seed=seeds, kind=kinds, columns=st.integers(1, 30), order=orders, bits=st.sampled_from([2, 4])
)
def test_never_worse_than_nearest(
    seed: int, kind: str, columns: int, order: str, bits: int
) -> None:
    """Within limits, for every row, under the very gram that was given; the bound where it says."""
    weights, gram, scales = make_layer(seed, kind, columns)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    codes = quantize_rows(weights, gram, scales, low, high, order)
    assert codes.dtype == np.int64
    assert low <= codes.min() <= codes.max() <= high
    nearest = np.clip(np.rint(weights / scales), low, high)
    losses = quadratic_losses(weights, gram, scales, codes)
    # What two ways to sum one quadratic form may differ by.
    slack = 1e-12 * np.trace(gram) * np.square(weights - scales * nearest).sum(axis=1)
    assert (losses <= quadratic_losses(weights, gram, scales, nearest) + slack).all()
    certificate = certify_layer(weights, gram, scales, codes, low=low, high=high, order=order)
    assert certificate.exact <= certificate.nearest * (1 + 1e-9)
    assert certificate.applies == (certificate.clipped == 0)
    if certificate.applies:
        assert certificate.exact <= certificate.bound


@MANY
@given(seed=seeds, columns=st.integers(1, 4))
def test_against_all_points(seed: int, columns: int) -> None:
    """Nearest plane is between the nearest point of the lattice and the bound."""
    weights, gram, scales = make_layer(seed, "inputs", columns, rows=3)
    gram, _ = damp_gram(gram, 0.3)
    scales = np.broadcast_to(scales.mean(), scales.shape)
    codes = nearest_plane(weights, gram, scales)
    losses = quadratic_losses(weights, gram, scales, codes)
    bounds = loss_bound_upper(scales, compute_pivots(gram))
    best = smallest_loss(weights, gram, scales, float(losses.max()) * (1 + 1e-9))
    assert (best <= losses * (1 + 1e-9)).all()
    assert (losses <= bounds).all()
    reduced, _ = nearest_plane_reduced(weights, gram, scales)
    reduced_losses = quadratic_losses(weights, gram, scales, reduced)
    assert (best <= reduced_losses * (1 + 1e-9)).all()
    diagonal = np.diag(gram.diagonal())  # without correlations, it is the nearest point
    codes = nearest_plane(weights, diagonal, scales)
    losses = quadratic_losses(weights, diagonal, scales, codes)
    best = smallest_loss(weights, diagonal, scales, float(losses.max()) * (1 + 1e-9))
    np.testing.assert_allclose(losses, best, rtol=1e-9)


@MANY
@given(seed=seeds, kind=kinds, columns=st.integers(1, 25))
def test_finds_a_point_within_half_a_step(seed: int, kind: str, columns: int) -> None:
    """Codes are recovered from anything inside their box, and from the lattice itself."""
    _, gram, scales = make_layer(seed, kind, columns)
    gram, _ = damp_gram(gram)
    rng = np.random.default_rng(seed)
    codes = rng.integers(-50, 50, size=scales.shape)
    factor = np.linalg.cholesky(gram[::-1, ::-1]).T[::-1, ::-1]  # L^T L = gram
    inside = rng.uniform(-0.499, 0.499, size=scales.shape) * scales * factor.diagonal()
    weights = scales * codes + np.linalg.solve(factor, inside.T).T
    assert np.array_equal(nearest_plane(weights, gram, scales), codes)
    assert np.array_equal(quantize_rows(scales * codes, gram, scales, -50, 50), codes)


@MANY
@given(seed=seeds, kind=kinds, columns=st.integers(1, 16))
def test_what_a_change_of_basis_can_do(seed: int, kind: str, columns: int) -> None:
    """The product of pivots never changes, no order passes D <= H_ii, nothing passes headroom."""
    _, gram, _ = make_layer(seed, kind, columns)
    gram, _ = damp_gram(gram)
    pivots = compute_pivots(gram)
    least = (1.0 - headroom(pivots)) * pivots.sum() * (1 - 1e-7)
    rng = np.random.default_rng(seed)
    for order in (*(compute_order(gram, name) for name in ORDERS), rng.permutation(columns)):
        assert sorted(order.tolist()) == list(range(columns))
        other = compute_pivots(gram[np.ix_(order, order)])
        assert (other <= gram.diagonal()[order] * (1 + 1e-9)).all()
        assert other.sum() >= least
        np.testing.assert_allclose(np.log(other).sum(), np.log(pivots).sum(), atol=1e-6)
    basis = reduce_basis(gram).transform
    other = compute_pivots(basis.T @ gram @ basis)
    assert other.sum() >= least
    np.testing.assert_allclose(np.log(other).sum(), np.log(pivots).sum(), atol=1e-5)


@MANY
@given(seed=seeds, kind=kinds, columns=st.integers(1, 16), between=limits)
def test_lattice_reduction_never_costs(
    seed: int, kind: str, columns: int, between: tuple[int, int] | None
) -> None:
    """Whole transforms of determinant one; rows change only where the exact loss falls."""
    weights, gram, scales = make_layer(seed, kind, columns)
    gram, _ = damp_gram(gram)
    basis = reduce_basis(gram)
    assert basis.is_complete
    exact = basis.transform.astype(object) @ basis.inverse.astype(object)
    assert (exact == np.eye(columns, dtype=int)).all()
    low, high = between or (None, None)
    plain = nearest_plane(weights, gram, scales[:, :1], low, high)
    codes, is_reduced = nearest_plane_reduced(weights, gram, scales[:, :1], low, high)
    losses = quadratic_losses(weights, gram, scales[:, :1], codes)
    plain_losses = quadratic_losses(weights, gram, scales[:, :1], plain)
    assert (losses[is_reduced] <= plain_losses[is_reduced] * (1 + 1e-9)).all()
    assert np.array_equal(codes[~is_reduced], plain[~is_reduced])
    if between is not None:
        assert low <= codes.min() <= codes.max() <= high


@MANY
@given(seed=seeds, kind=kinds, columns=st.integers(2, 20))
def test_size_reduction_alone_changes_nothing(seed: int, kind: str, columns: int) -> None:
    """Adding multiples of columns rounded earlier or later by the same triangle moves no code."""
    weights, gram, _ = make_layer(seed, kind, columns)
    gram, _ = damp_gram(gram)
    scale = float(np.abs(weights).mean())
    rng = np.random.default_rng(seed)
    # Columns of earlier steps take multiples of later ones: unit lower triangular.
    transform = np.eye(columns) + np.tril(rng.integers(-1, 2, size=(columns, columns)), -1)
    back = np.rint(np.linalg.inv(transform))
    assume(np.abs(back).max() < 1e3)
    codes = nearest_plane(weights @ back.T, transform.T @ gram @ transform, scale)
    assert np.array_equal(codes @ transform.T, nearest_plane(weights, gram, scale))


@FEW
@given(seed=seeds, kind=kinds, columns=st.integers(1, 16))
def test_units_do_not_matter(seed: int, kind: str, columns: int) -> None:
    """Powers of two in weights and scales, or in the Gram matrix, change no code."""
    weights, gram, scales = make_layer(seed, kind, columns)
    codes = quantize_rows(weights, gram, scales, -8, 7, "min-pivot")
    assert np.array_equal(
        quantize_rows(weights * 2.0**40, gram * 2.0**-60, scales * 2.0**40, -8, 7, "min-pivot"),
        codes,
    )
    again = nearest_codes(read_problem(scales * codes, gram, scales, -8, 7))
    assert np.array_equal(again, codes)  # quantizing twice is quantizing once
