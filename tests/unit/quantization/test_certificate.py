"""Certificates: numbers by hand, when the bound applies, and codes from anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from helpers_lattices import make_gram, quadratic_losses
from sordino.core.errors import InvalidParameterError
from sordino.lattices import damp_gram
from sordino.lattices.babai import plane_codes
from sordino.lattices.problem import read_problem
from sordino.quantization import certify_layer, quantize_rows

GRAM = np.array([[2.0, 1.0], [1.0, 4.0]])  # D = (1.75, 4)


def test_by_hand() -> None:
    """Two rows, one scale each."""
    weights, scales = np.array([[0.25, 0.5], [3.0, 1.0]]), np.array([[1.0], [2.0]])
    found = certify_layer(weights, GRAM, scales, [[0, 1], [1, 1]], order="natural", damping=0.5)
    assert found.bound == pytest.approx(0.25 * 5.75 * 5, rel=2e-8)
    assert found.predicted == pytest.approx(5.75 * 5 / 12)
    # Errors (.25, -.5) and (1, -1); nearest: (.25, .5), and by two ties to even (-1, 1).
    assert found.exact == pytest.approx(0.125 - 0.25 + 1.0 + 4.0)
    assert found.nearest == pytest.approx(0.125 + 0.25 + 1.0 + 4.0)
    assert (found.order, found.damping) == ("natural", 0.5)


def test_clipping_takes_the_bound_away() -> None:
    """One weight out of reach is one clipped step; a larger limit brings the bound back."""
    weights = np.array([[0.2, 9.0], [0.3, 0.1]])
    codes = quantize_rows(weights, np.eye(2), 1.0, -8, 7)
    found = certify_layer(weights, np.eye(2), 1.0, codes, low=-8, high=7)
    assert (found.clipped, found.applies) == (1, False)
    assert found.exact > found.bound
    codes = quantize_rows(weights, np.eye(2), 1.0, -9, 9)
    found = certify_layer(weights, np.eye(2), 1.0, codes, low=-9, high=9)
    assert (found.clipped, found.applies) == (0, True)


def test_clipped_steps_are_those_of_nearest_plane() -> None:
    """They are read off the codes where these are nearest plane's, and counted anew elsewhere."""
    rng = np.random.default_rng(16)
    gram, _ = damp_gram(make_gram("inputs", 12, rng))
    weights = rng.normal(size=(200, 12))
    plane, is_clipped = plane_codes(read_problem(weights, gram, 0.3, -5, 4))
    codes = plane.astype(int)
    assert certify_layer(weights, gram, 0.3, codes, low=-5, high=4).clipped == is_clipped.sum()
    guarded = quantize_rows(weights, gram, 0.3, -5, 4)
    assert 0 < (guarded != codes).any(axis=1).sum() < 200
    assert certify_layer(weights, gram, 0.3, guarded, low=-5, high=4).clipped == is_clipped.sum()
    # The limits changed no step of some rows; alone, these have the bound.
    is_free = ~is_clipped.any(axis=1)
    assert 0 < is_free.sum() < 200
    found = certify_layer(weights[is_free], gram, 0.3, codes[is_free], low=-5, high=4)
    assert (found.clipped, found.applies) == (0, True)


def test_rows_that_the_guard_replaced_keep_the_bound() -> None:
    """Their loss is below that of nearest-plane codes that no limit changed."""
    gram = [[3.0, -1.0, 3.0], [-1.0, 2.0, -2.0], [3.0, -2.0, 4.0]]
    weights = [[0.3, 0.4, 0.0]]
    codes = quantize_rows(weights, gram, 1.0, -8, 7)
    assert codes.tolist() == [[0, 0, 0]]  # nearest
    found = certify_layer(weights, gram, 1.0, codes, low=-8, high=7)
    assert (found.clipped, found.applies) == (0, True)
    assert found.exact == found.nearest == pytest.approx(0.35)


def test_codes_of_any_method_are_judged() -> None:
    """Codes that lose more than nearest plane have no proven bound, even when they are below it."""
    rng = np.random.default_rng(13)
    gram, _ = damp_gram(make_gram("inputs", 10, rng))
    weights = rng.normal(size=(5, 10))
    nearest = np.rint(weights / 0.3).astype(int)
    found = certify_layer(weights, gram, 0.3, nearest)
    assert found.exact == found.nearest
    assert not found.applies
    assert found.clipped == 0
    wrong = certify_layer(weights, gram, 0.3, nearest + 5)
    assert wrong.exact > wrong.bound
    assert not wrong.applies
    assert wrong.exact == pytest.approx(
        quadratic_losses(weights, gram, 0.3, nearest + 5).sum(), rel=1e-9
    )


def test_the_order_is_part_of_the_certificate() -> None:
    """Codes made in one order are not nearest-plane codes in another, and bounds differ."""
    rng = np.random.default_rng(14)
    gram, _ = damp_gram(make_gram("inputs", 12, rng))
    weights = rng.normal(size=(20, 12))
    codes = quantize_rows(weights, gram, 0.3, order="min-pivot")
    ours = certify_layer(weights, gram, 0.3, codes, order="min-pivot")
    other = certify_layer(weights, gram, 0.3, codes, order="natural")
    assert ours.applies
    assert ours.bound < other.bound
    assert ours.exact == pytest.approx(other.exact)


def test_exact_is_at_least_the_loss_without_damping() -> None:
    """Damping only adds: lam times the squared error of the weights."""
    rng = np.random.default_rng(15)
    gram = make_gram("rank-deficient", 12, rng)
    weights = rng.normal(size=(4, 12))
    codes = quantize_rows(weights, gram, 0.3)
    found = certify_layer(weights, gram, 0.3, codes)
    without = quadratic_losses(weights, gram, 0.3, codes).sum()
    added = found.damping * np.square(weights - 0.3 * codes).sum()
    assert found.exact == pytest.approx(without + added)
    assert found.applies
    assert found.exact <= found.bound


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0.0, 1.0]], "whole numbers of shape"),
        ([[0, 1], [0, 1]], "whole numbers of shape"),
        ([[0, 9]], r"codes must lie in \[-8, 7\], got codes from 0 to 9"),
    ],
)
def test_codes_are_checked(codes: object, message: str) -> None:
    """Shape, type and limits."""
    with pytest.raises(InvalidParameterError, match=message):
        certify_layer([[0.1, 0.2]], GRAM, 1.0, codes, low=-8, high=7)


def test_damping_is_a_number() -> None:
    """NaN is not what was added."""
    with pytest.raises(InvalidParameterError, match="damping"):
        certify_layer([[0.1, 0.2]], GRAM, 1.0, [[0, 0]], damping=float("nan"))
