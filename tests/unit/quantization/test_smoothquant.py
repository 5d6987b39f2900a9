"""SmoothQuant's scales: the formula, and columns that have none."""

from __future__ import annotations

import pytest
import torch

from sordino.core.errors import InvalidParameterError
from sordino.quantization.smoothquant import smoothquant_input_scales


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_formula(alpha: float) -> None:
    """Column by column; the largest weight is that of all layers with the input."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(rows, 6, generator=generator).double() for rows in (3, 5)]
    inputs = torch.rand(6, generator=generator).double() + 0.1
    scales = smoothquant_input_scales(weights, inputs, alpha=alpha)
    for j in range(6):
        largest = max(float(weight[:, j].abs().max()) for weight in weights)
        expected = float(inputs[j]) ** alpha / largest ** (1 - alpha)
        assert float(scales[j]) == pytest.approx(expected, rel=1e-12)


def test_half_balances_inputs_and_weights() -> None:
    """With alpha = 1/2, inputs and weights get the same largest value in every column."""
    weight = torch.tensor([[1.0, 4.0, 0.1], [0.5, 0.2, 0.01]])
    inputs = torch.tensor([100.0, 1.0, 2.0])
    scales = smoothquant_input_scales([weight], inputs)
    assert torch.allclose(inputs / scales, (weight * scales).abs().amax(dim=0))


def test_dead_columns_keep_their_scale() -> None:
    weight = torch.tensor([[1.0, 0.0, 2.0]])
    scales = smoothquant_input_scales([weight], torch.tensor([0.0, 5.0, 8.0]))
    assert scales.tolist() == [1.0, 1.0, 2.0]
    assert smoothquant_input_scales([torch.zeros(2, 2)], torch.ones(2)).tolist() == [1.0, 1.0]


def test_refusals() -> None:
    with pytest.raises(InvalidParameterError, match="alpha"):
        smoothquant_input_scales([torch.ones(1, 2)], torch.ones(2), alpha=1.5)
    with pytest.raises(InvalidParameterError, match="max_magnitudes"):
        smoothquant_input_scales([torch.ones(1, 2)], torch.tensor([1.0, float("inf")]))
    with pytest.raises(InvalidParameterError, match="same inputs"):
        smoothquant_input_scales([], torch.ones(2))
