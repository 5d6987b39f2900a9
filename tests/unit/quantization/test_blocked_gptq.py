"""The fast GPTQ: the integers of `quantize_rows`, guard included."""

from __future__ import annotations

import math

import numpy as np
import pytest

from helpers_lattices import GRAM_KINDS, clamping_counterexample, make_gram, quadratic_losses
from sordino.core.errors import InvalidParameterError
from sordino.lattices import ORDERS
from sordino.quantization import quantize_rows
from sordino.quantization.blocked_gptq import (
    InputGeometry,
    damped_geometry,
    gptq_codes_blocked,
)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", GRAM_KINDS)
@pytest.mark.parametrize(("rows", "columns", "bits"), [(5, 7, 2), (40, 150, 4), (9, 300, 8)])
def test_codes_are_those_of_the_reference(
    kind: str, order: str, rows: int, columns: int, bits: int
) -> None:
    """Limits, group scales, ties in the weights: the same integers, over several blocks."""
    rng = np.random.default_rng(columns)
    geometry = damped_geometry(make_gram(kind, columns, rng), order)
    scales = rng.uniform(0.05, 0.2, size=(rows, columns))
    weights = rng.normal(size=(rows, columns))
    weights[0] = scales[0] * (rng.integers(-3, 3, size=columns) + 0.5)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    codes = gptq_codes_blocked(weights, geometry, scales, low, high)
    expected = quantize_rows(weights, geometry.gram, scales, low, high, order)
    assert np.array_equal(codes, expected)
    losses = quadratic_losses(weights, geometry.gram, scales, codes)
    nearest = np.clip(np.rint(weights / scales), low, high)
    assert (losses <= quadratic_losses(weights, geometry.gram, scales, nearest) * (1 + 1e-9)).all()


def test_guard_holds_on_the_counterexample() -> None:
    """Where limits make GPTQ far worse than nearest, nearest is taken."""
    weights, gram = clamping_counterexample(200)
    geometry = InputGeometry(gram, 0.0, "natural")
    codes = gptq_codes_blocked(weights, geometry, 1.0, 0, 1)
    assert np.array_equal(codes, np.rint(weights))


def test_damping_is_a_share_of_the_mean_diagonal() -> None:
    geometry = damped_geometry(np.diag([1.0, 3.0]), "natural", 0.1)
    assert geometry.damping == pytest.approx(0.2)
    assert geometry.gram.diagonal().tolist() == pytest.approx([1.2, 3.2])


def test_refuses_what_is_not_finite() -> None:
    geometry = damped_geometry(np.eye(2), "natural")
    with pytest.raises(InvalidParameterError, match="finite"):
        gptq_codes_blocked([[math.nan, 1.0]], geometry, 1.0, -8, 7)
    with pytest.raises(InvalidParameterError, match="finite"):
        damped_geometry([[math.inf, 0.0], [0.0, 1.0]], "natural")
    with pytest.raises(InvalidParameterError, match="order must be one of"):
        damped_geometry(np.eye(2), "random")
