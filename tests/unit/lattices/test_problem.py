"""What is refused, what counts as singular and what is then added, and where ties go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from helpers_lattices import make_gram
from sordino.core.errors import InvalidParameterError, PrecisionError
from sordino.lattices import damp_gram, nearest_plane
from sordino.lattices.problem import read_gram, require_codes, round_to_codes
from sordino.quantization import certify_layer, quantize_rows

if TYPE_CHECKING:
    from collections.abc import Callable

GRAM = [[2.0, 1.0], [1.0, 3.0]]
NAN, INFINITY = float("nan"), float("inf")


def certify(weights: object, gram: object, scales: object, *limits: object) -> object:
    """The certificate of codes that are zero."""
    return certify_layer(
        weights, gram, scales, [[0, 0]], **dict(zip(("low", "high"), limits, strict=False))
    )


@pytest.mark.parametrize("method", [nearest_plane, quantize_rows, certify])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[NAN, 0.0]], GRAM, 1.0), "weights must be finite, got 1 of 2"),
        (([[INFINITY, 0.0]], GRAM, 1.0), "weights must be finite"),
        (([[1e101, 0.0]], GRAM, 1.0), "weights must be at most 1e\\+100"),
        (([0.1, 0.2], GRAM, 1.0), "weights must be a matrix .* shape \\(2,\\)"),
        ((np.zeros((0, 2)), GRAM, 1.0), "weights must be a matrix with at least one entry"),
        (([[0.1], [0.2, 0.3]], GRAM, 1.0), "weights must have rows of one length"),
        (([["a", "b"]], GRAM, 1.0), "weights must be real numbers"),
        (([[1j, 0.0]], GRAM, 1.0), "weights must be real numbers"),
        (([[True, False]], GRAM, 1.0), "weights must be real numbers"),
        (([[0.1, 0.2]], [[2.0, NAN], [NAN, 3.0]], 1.0), "gram must be finite, got 2 of 4"),
        (([[0.1, 0.2]], [[2.0, 1.0]], 1.0), "gram must be square"),
        (([[0.1, 0.2, 0.3]], GRAM, 1.0), "gram must have shape \\(3, 3\\)"),
        (([[0.1, 0.2]], [[2.0, 1.0], [0.5, 3.0]], 1.0), "gram must be symmetric.*0.5"),
        (([[0.1, 0.2]], [[1.0, 2.0], [2.0, 1.0]], 1.0), "semidefinite.*eigenvalue -1"),
        (([[0.1, 0.2]], [[-1.0, 0.0], [0.0, -1.0]], 1.0), "semidefinite"),
        (([[0.1, 0.2]], [[0.0, 1.0], [1.0, 0.0]], 1.0), "semidefinite"),
        (([[0.1, 0.2]], [[1e-101, 0.0], [0.0, 1e-101]], 1.0), "largest entry of gram must be"),
        (([[0.1, 0.2]], GRAM, 0.0), "scales must be in .* got a scale of 0"),
        (([[0.1, 0.2]], GRAM, [[1.0, -1.0]]), "scales must be in .* got a scale of -1"),
        (([[0.1, 0.2]], GRAM, [[1.0, NAN]]), "scales must be finite"),
        (([[0.1, 0.2]], GRAM, [[1.0, 1e101]]), "got a scale of 1e\\+101"),
        (([[0.1, 0.2]], GRAM, [1.0, 1.0, 1.0]), "scales must broadcast to .*\\(1, 2\\)"),
        (([[0.1, 0.2]], GRAM, 1.0, -8), "low and high must be given both"),
        (([[0.1, 0.2]], GRAM, 1.0, 1, 0), "high must be a whole number in \\[1"),
        (([[0.1, 0.2]], GRAM, 1.0, -0.5, 7), "low must be a whole number"),
    ],
)
def test_refused(
    method: Callable[..., object], arguments: tuple[object, ...], message: str
) -> None:
    """Each bad input is named, by every method alike."""
    with pytest.raises(InvalidParameterError, match=message):
        method(*arguments)


def test_unlimited_codes_stay_within_32_bits() -> None:
    """A scale far too small is a clear error without limits, and clipped with them."""
    for method in (nearest_plane, quantize_rows):
        with pytest.raises(PrecisionError, match=r"1 of 2 do not\. Use larger scales"):
            method([[1.0, 0.0]], np.eye(2), 1e-10)
        assert method([[1.0, 0.0]], np.eye(2), 1e-10, -8, 7).tolist() == [[7, 0]]
    with pytest.raises(PrecisionError, match="2 of 3"):
        require_codes(np.array([NAN, INFINITY, 1.0]))


def test_damping_is_rows_below_the_inputs() -> None:
    """Adding lam I to X^T X is appending sqrt(lam) I to X; lam is 1% of the mean diagonal."""
    inputs = np.random.default_rng(1).normal(size=(3, 5))
    damped, lam = damp_gram(inputs.T @ inputs)
    assert lam == pytest.approx(0.01 * np.square(inputs).sum() / 5)
    longer = np.vstack([inputs, np.sqrt(lam) * np.eye(5)])
    np.testing.assert_allclose(damped, longer.T @ longer, rtol=1e-12)
    assert np.linalg.cond(damped) <= 1 + 5 / 0.01
    assert damp_gram(np.zeros((2, 2)))[1] == 0.01
    assert damp_gram(GRAM, 0.0)[1] == 0.0
    with pytest.raises(InvalidParameterError, match="fraction"):
        damp_gram(GRAM, NAN)


@pytest.mark.parametrize("kind", ["rank-deficient", "dead"])
def test_singular_grams_are_damped_and_others_are_not(kind: str) -> None:
    """As the certificate reports; ill-conditioned is not singular."""
    rng = np.random.default_rng(2)
    gram = make_gram(kind, 8, rng)
    found = read_gram(gram)
    assert found.added_damping == pytest.approx(0.01 * np.trace(gram) / 8)
    assert np.array_equal(found.matrix, found.given + found.added_damping * np.eye(8))
    assert read_gram(make_gram("ill-conditioned", 8, rng)).added_damping == 0.0
    assert read_gram(np.diag([1e20, 1.0, 1e-5])).added_damping == 0.0  # units of columns
    weights = rng.normal(size=(4, 8))
    damped, lam = damp_gram(gram)
    assert np.array_equal(nearest_plane(weights, gram, 0.3), nearest_plane(weights, damped, 0.3))
    codes = quantize_rows(weights, gram, 0.3)
    assert certify_layer(weights, gram, 0.3, codes).damping == lam
    assert certify_layer(weights, damped, 0.3, codes, damping=lam).damping == lam


def test_inputs_that_never_came() -> None:
    """A Gram matrix of zeros weighs all directions alike: every weight goes to its nearest code."""
    codes = quantize_rows([[0.6, -1.2]], np.zeros((2, 2)), 0.5)
    assert codes.tolist() == [[1, -2]]
    assert np.array_equal(nearest_plane([[0.6, -1.2]], np.zeros((2, 2)), 0.5), codes)


def test_sums_in_float32_pass() -> None:
    """Rounding errors of X^T X are neither asymmetry nor a negative eigenvalue."""
    inputs = np.random.default_rng(3).normal(size=(20, 40)).astype(np.float32)
    gram = inputs.T @ inputs
    gram[0, 1] *= np.float32(1 + 2e-7)
    assert np.linalg.eigvalsh(gram.astype(np.float64))[0] < 0.0
    codes = quantize_rows(np.ones((2, 40), np.float32), gram, np.float32(0.3), -2, 1)
    assert codes.shape == (2, 40)


def test_ties_go_to_even_codes() -> None:
    """Exact ties and what rounding errors make of them; everything else to the nearest."""
    targets = np.array([0.5, 1.5, -0.5, -1.5, 2.5 + 4e-16, 2.5 + 1e-10, 0.49, -0.51, 1e8 + 0.5])
    expected = [0.0, 2.0, 0.0, -2.0, 2.0, 2.0, 0.0, -1.0, 1e8]
    assert round_to_codes(targets).tolist() == expected
    assert round_to_codes(np.array([0.5 + 1e-8, 0.5 - 1e-8])).tolist() == [1.0, 0.0]
    assert np.isinf(round_to_codes(np.array([INFINITY]))).all()
