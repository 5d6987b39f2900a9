"""GPTQ: the guard on a known counterexample, orders, and shapes."""

from __future__ import annotations

import numpy as np
import pytest

from helpers_lattices import clamping_counterexample, make_gram, quadratic_losses
from sordino.core.errors import InvalidParameterError
from sordino.lattices.problem import read_problem
from sordino.quantization import certify_layer, quantize_rows
from sordino.quantization.gptq import gptq_codes


@pytest.mark.parametrize("columns", [16, 100, 256])
def test_limits_can_make_gptq_arbitrarily_worse(columns: int) -> None:
    """On the published counterexample its loss grows with columns squared; the guard holds."""
    weights, gram = clamping_counterexample(columns)
    bare = gptq_codes(read_problem(weights, gram, 1.0, 0, 1))
    nearest = np.clip(np.rint(weights), 0, 1)
    nearest_loss = quadratic_losses(weights, gram, 1.0, nearest)
    ratio = quadratic_losses(weights, gram, 1.0, bare) / nearest_loss
    assert ratio > 0.6 * columns  # 250 times as bad at 256 columns
    for order in ("natural", "activation", "min-pivot"):
        codes = quantize_rows(weights, gram, 1.0, 0, 1, order)
        assert quadratic_losses(weights, gram, 1.0, codes) <= nearest_loss
        certificate = certify_layer(weights, gram, 1.0, codes, low=0, high=1, order=order)
        assert certificate.clipped > 0
        assert not certificate.applies
        assert certificate.exact == certificate.nearest
    # Without limits nothing is clipped: the bound is back, and nearest is beaten.
    free = quantize_rows(weights, gram, 1.0)
    certificate = certify_layer(weights, gram, 1.0, free)
    assert certificate.applies
    assert certificate.exact <= certificate.bound
    assert certificate.exact < certificate.nearest


def test_guard_works_row_by_row() -> None:
    """Only the rows that limits spoil are replaced."""
    weights, gram = clamping_counterexample(32)
    easy = np.random.default_rng(1).uniform(0.1, 0.9, size=(3, 32))
    both = np.vstack([easy, weights])
    codes = quantize_rows(both, gram, 1.0, 0, 1)
    bare = gptq_codes(read_problem(both, gram, 1.0, 0, 1))
    losses = [quadratic_losses(both, gram, 1.0, z) for z in (bare, np.rint(both))]
    kept = losses[0] <= losses[1]
    assert not kept[3]
    assert kept.any()
    assert np.array_equal(codes[kept], bare[kept])
    assert np.array_equal(codes[~kept], np.rint(both)[~kept])


def test_no_guard_without_limits() -> None:
    """The integers are nearest plane's even where nearest would lose less."""
    gram = [[3.0, -1.0, 3.0], [-1.0, 2.0, -2.0], [3.0, -2.0, 4.0]]
    assert quantize_rows([[0.3, 0.4, 0.0]], gram, 1.0).tolist() == [[0, 1, 1]]
    assert quantize_rows([[0.3, 0.4, 0.0]], gram, 1.0, -8, 7).tolist() == [[0, 0, 0]]


def test_guard_holds_under_the_gram_that_was_given() -> None:
    """Beating nearest under the damped Gram matrix implies beating it under a singular one."""
    rng = np.random.default_rng(12)
    for _ in range(20):
        gram = make_gram("rank-deficient", 16, rng)
        weights = rng.normal(size=(20, 16))
        codes = quantize_rows(weights, gram, 0.8, -2, 1, "min-pivot")
        nearest = np.clip(np.rint(weights / 0.8), -2, 1)
        losses = quadratic_losses(weights, gram, 0.8, codes)
        assert (losses <= quadratic_losses(weights, gram, 0.8, nearest) * (1 + 1e-9)).all()


def test_codes_come_back_in_the_columns_of_the_weights() -> None:
    """An order moves work, not columns."""
    gram = np.diag([1.0, 5.0, 3.0])
    weights = [[1.2, -3.7, 0.4]]
    for order in ("natural", "activation", "min-pivot"):
        assert quantize_rows(weights, gram, 1.0, order=order).tolist() == [[1, -4, 0]]
    codes = quantize_rows(weights, gram, [[0.5, 1.0, 0.1]], -8, 7, "activation")
    assert codes.tolist() == [[2, -4, 4]]
    assert codes.dtype == np.int64
    with pytest.raises(InvalidParameterError, match="order must be one of"):
        quantize_rows(weights, gram, 1.0, order="random")


def test_extreme_inputs_give_codes_not_nan() -> None:
    """Largest weights, smallest scales, steep Gram matrices: limits hold, every code is finite."""
    steep = np.array([[2.0**67, 2.0**33], [2.0**33, 1.0]])
    for weights in ([[1e100, -1e100]], [[1e-300, 1e100]], [[0.0, 0.0]]):
        for scale in (1e-100, 1.0, 1e100):
            for gram in (steep, np.eye(2), np.ones((2, 2)), 1e100 * np.eye(2)):
                codes = quantize_rows(weights, gram, scale, -8, 7, "min-pivot")
                assert codes.min() >= -8
                assert codes.max() <= 7
