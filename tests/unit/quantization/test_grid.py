"""Symmetric grids: limits, float16 scales, and the search over shares of the range."""

from __future__ import annotations

import pytest
import torch

from sordino.core.errors import InvalidParameterError
from sordino.quantization._grid import (
    SHRINKS,
    absmax_scales,
    as_scales,
    code_limits,
    dequantize,
    output_loss,
    require_gram,
    require_magnitudes,
    require_weight,
    round_weight,
    search_scales,
)


def random_weight(seed: int = 0, rows: int = 5, columns: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return weight * torch.exp(torch.randn(rows, columns, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [1, 4, 16])
def test_absmax_clips_nothing(bits: int, group_size: int) -> None:
    """A scale is what the group needs, up to float16 rounding."""
    weight = random_weight(bits)
    scales = absmax_scales(weight, bits, group_size)
    assert torch.equal(scales.to(torch.float16).double(), scales)
    low, high = code_limits(bits)
    groups = weight.view(5, -1, group_size)
    needed = torch.maximum(groups.amax(2) / high, groups.amin(2) / low)
    rounding = torch.maximum(needed * 2**-11, torch.tensor(2.0**-25))  # of float16, subnormal too
    assert bool(((needed - scales).abs() <= rounding * (1 + 1e-9)).all())


@pytest.mark.parametrize("with_gram", [False, True])
@pytest.mark.parametrize("bits", [2, 4])
def test_search_takes_the_best_share(bits: int, with_gram: bool) -> None:
    """Group by group, as trying all shares one by one."""
    weight = random_weight(7, rows=3, columns=8)
    inputs = random_weight(8, rows=20, columns=8)
    gram = inputs.T @ inputs if with_gram else None
    found = search_scales(weight, bits, 4, gram=gram)
    low, high = code_limits(bits)
    for row in range(3):
        for group in range(2):
            part = weight[row, 4 * group : 4 * group + 4]
            block = torch.eye(4, dtype=torch.float64)
            if gram is not None:
                block = gram[4 * group : 4 * group + 4, 4 * group : 4 * group + 4]

            def loss(
                scale: torch.Tensor, part: torch.Tensor = part, block: torch.Tensor = block
            ) -> float:
                error = part - scale * torch.clamp(torch.round(part / scale), low, high)
                return float(error @ block @ error)

            widest = max(float(part.max()) / high, float(part.min()) / low)
            widest = float(as_scales(torch.tensor(widest, dtype=torch.float64)))
            tried = [as_scales(torch.tensor(widest * f).double()) for f in (1.0, *SHRINKS)]
            assert loss(found[row, group]) == pytest.approx(min(loss(s) for s in tried))


def test_group_of_zeros_and_extreme_weights() -> None:
    """Zeros keep a positive scale; scales never leave float16."""
    weight = torch.zeros(1, 4)
    assert absmax_scales(weight, 4, 4).tolist() == [[1.0]]
    assert search_scales(weight, 4, 4).tolist() == [[1.0]]
    tiny = absmax_scales(torch.full((1, 4), 1e-30), 4, 4)
    assert float(tiny) == 2.0**-24
    assert float(absmax_scales(torch.full((1, 4), 1e30), 4, 4)) == 65504.0


def test_rounding_and_loss() -> None:
    """Codes times scales, and tr(E H E^T), by hand."""
    weight = torch.tensor([[0.9, -2.2, 30.0, 0.2]])
    scales = torch.tensor([[1.0, 2.0]])
    codes = round_weight(weight, scales, 3)
    assert codes.tolist() == [[1.0, -2.0, 3.0, 0.0]]
    assert dequantize(codes, scales).tolist() == [[1.0, -2.0, 6.0, 0.0]]
    error = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    gram = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    assert output_loss(error, gram) == pytest.approx(2 + 12 + 4 + 3)


def test_refuses_what_is_not_a_layer() -> None:
    with pytest.raises(InvalidParameterError, match="finite"):
        require_weight(torch.tensor([[float("nan")]]), 1)
    with pytest.raises(InvalidParameterError, match="divide the 4 inputs"):
        require_weight(torch.ones(2, 4), 3)
    with pytest.raises(InvalidParameterError, match="matrix of floats"):
        require_weight(torch.ones(2, 4, dtype=torch.int8), 2)
    with pytest.raises(InvalidParameterError, match="gram"):
        require_gram(torch.eye(3), torch.ones(2, 4))
    with pytest.raises(InvalidParameterError, match="gram"):
        require_gram(torch.full((4, 4), float("inf")), torch.ones(2, 4))
    for bad in (torch.tensor([1.0, float("nan")]), torch.tensor([-1.0, 1.0]), torch.ones(3)):
        with pytest.raises(InvalidParameterError, match="magnitudes"):
            require_magnitudes("magnitudes", bad, 2)
    with pytest.raises(InvalidParameterError, match="bits"):
        code_limits(1)


def test_half_precision_weights_are_read_in_float32() -> None:
    assert require_weight(torch.ones(2, 4, dtype=torch.bfloat16), 2).dtype == torch.float32
    assert require_weight(torch.ones(2, 4).double(), 2).dtype == torch.float64
