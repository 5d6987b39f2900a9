"""HQQ: never worse than plain rounding in its own norm, whatever the weights' unit."""

from __future__ import annotations

import pytest
import torch

from sordino.core.errors import InvalidParameterError
from sordino.quantization.hqq import hqq, hqq_asymmetric, shrink_errors
from sordino.quantization.scales import absmax_scales, dequantize, round_weight


def heavy_tailed(seed: int, rows: int = 8, columns: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    weight[:, ::16] *= 6.0
    return 0.02 * weight


def test_shrinkage_is_the_formula() -> None:
    """One number at a time; small errors vanish, large ones lose little, zero stays."""
    for value in (-2.0, -0.3, 0.0, 0.05, 0.9, 40.0):
        size = abs(value)
        expected = 0.0 if size == 0 else max(size - size ** (0.7 - 1) / 1.5, 0.0)
        found = float(shrink_errors(torch.tensor(value, dtype=torch.float64), 1.5, 0.7))
        assert found == pytest.approx(expected * (1 if value > 0 else -1), abs=1e-12)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [8, 64])
@pytest.mark.parametrize("seed", range(3))
def test_lp_norm_of_no_group_rises(bits: int, group_size: int, seed: int) -> None:
    weight = heavy_tailed(seed)
    codes, scales = hqq(weight, bits=bits, group_size=group_size)
    assert codes.dtype == torch.int8
    assert scales.dtype == torch.float16
    assert int(codes.min()) >= -(2 ** (bits - 1))
    assert int(codes.max()) <= 2 ** (bits - 1) - 1
    shape = (len(weight), -1, group_size)
    plain = absmax_scales(weight, bits, group_size)
    errors = [
        (weight - dequantize(z, s)).abs().pow(0.7).view(shape).sum(dim=2)
        for z, s in ((codes, scales.double()), (round_weight(weight, plain, bits), plain))
    ]
    assert bool((errors[0] <= errors[1] * (1 + 1e-12)).all())


def test_outliers_no_longer_stretch_the_range() -> None:
    """With few bits the lp norm and the error of ordinary weights fall clearly."""
    weight = heavy_tailed(5)
    codes, scales = hqq(weight, bits=3, group_size=64)
    plain = absmax_scales(weight, 3, 64)
    ordinary = torch.ones(64, dtype=torch.bool)
    ordinary[::16] = False
    ours = (weight - dequantize(codes, scales.double()))[:, ordinary]
    theirs = (weight - dequantize(round_weight(weight, plain, 3), plain))[:, ordinary]
    assert float(ours.square().sum()) < 0.8 * float(theirs.square().sum())


def test_unit_of_the_weights_does_not_matter() -> None:
    """Powers of two change the scales and no code."""
    weight = heavy_tailed(1)
    codes, scales = hqq(weight, bits=4, group_size=32)
    for power in (0.25, 4.0):
        other_codes, other_scales = hqq(weight * power, bits=4, group_size=32)
        assert torch.equal(codes, other_codes)
        assert torch.equal(scales.double() * power, other_scales.double())


def test_no_turns_is_plain_rounding_and_zeros_stay() -> None:
    weight = heavy_tailed(2)
    codes, scales = hqq(weight, bits=4, group_size=32, num_turns=0)
    plain = absmax_scales(weight, 4, 32)
    assert torch.equal(scales.double(), plain)
    assert torch.equal(codes.double(), round_weight(weight, plain, 4))
    codes, scales = hqq(torch.zeros(2, 8), bits=2, group_size=4)
    assert not codes.any()
    assert scales.tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("bits", [2, 4])
def test_asymmetric_grid(bits: int) -> None:
    """Never worse than the min-max grid in its norm, and it follows a shift of the weights."""
    weight = heavy_tailed(4) + 0.05
    grid = hqq_asymmetric(weight, bits=bits, group_size=16)
    assert float(grid.codes.min()) >= 0
    assert float(grid.codes.max()) <= 2**bits - 1
    plain = hqq_asymmetric(weight, bits=bits, group_size=16, num_turns=0)
    low = weight.view(8, -1, 16).amin(dim=2, keepdim=True)
    step = (weight.view(8, -1, 16).amax(dim=2, keepdim=True) - low) / (2**bits - 1)
    expected = (low + step * ((weight.view(8, -1, 16) - low) / step).round()).view(8, -1)
    assert torch.allclose(plain.dequantize(), expected, atol=1e-12)
    losses = [
        (weight - g.dequantize()).abs().pow(0.7).view(8, -1, 16).sum(dim=2) for g in (grid, plain)
    ]
    assert bool((losses[0] <= losses[1] * (1 + 1e-9)).all())
    assert float(losses[0].sum()) < float(losses[1].sum())
    constant = hqq_asymmetric(torch.full((1, 4), 0.3), bits=bits, group_size=4)
    assert torch.allclose(constant.dequantize(), torch.full((1, 4), 0.3))


def test_refusals() -> None:
    for function in (hqq, hqq_asymmetric):
        with pytest.raises(InvalidParameterError, match="exponent"):
            function(torch.ones(1, 4), bits=4, group_size=4, exponent=float("nan"))
        with pytest.raises(InvalidParameterError, match="num_turns"):
            function(torch.ones(1, 4), bits=4, group_size=4, num_turns=-1)
        with pytest.raises(InvalidParameterError, match="finite"):
            function(torch.full((1, 4), float("inf")), bits=4, group_size=4)
