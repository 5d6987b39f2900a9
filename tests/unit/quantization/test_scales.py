"""Scales: positive float16, nothing clipped by `absmax`, `searched` never worse."""

from __future__ import annotations

import math

import pytest
import torch

from sordino.core.errors import InvalidParameterError
from sordino.quantization.awq import output_loss
from sordino.quantization.scales import (
    COARSE_SHARES,
    absmax_scales,
    as_scales,
    choose_scales,
    code_limits,
    dequantize,
    round_weight,
    search_scales,
    spread_scales,
)


def _errors(
    weights: torch.Tensor, scales: torch.Tensor, bits: int, group_size: int
) -> torch.Tensor:
    """Returns the squared error of rounding to nearest, per group."""
    low, high = code_limits(bits)
    groups = weights.view(len(weights), -1, group_size)
    steps = scales.float().unsqueeze(2)
    return ((groups / steps).round().clamp(low, high) * steps - groups).square().sum(2)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_absmax_clips_nothing(bits: int) -> None:
    """Every weight lies within half a step of the grid's ends, and the widest one touches them."""
    weights = torch.randn(20, 64, generator=torch.Generator().manual_seed(bits))
    scales = choose_scales(weights, bits=bits, group_size=16)
    low, high = code_limits(bits)
    free = weights / scales.float().repeat_interleave(16, dim=1)
    assert scales.dtype == torch.float16
    assert free.min() > low - 0.5
    assert free.max() < high + 0.5
    ends = torch.maximum(free.view(20, -1, 16).amax(2) / high, free.view(20, -1, 16).amin(2) / low)
    assert (ends - 1.0).abs().max() < 2.0**-10  # float16's own rounding


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_searched_is_never_worse_for_any_group(bits: int) -> None:
    """The widest scale is one of the candidates; at 2 bits others are far better."""
    weights = torch.randn(20, 64, generator=torch.Generator().manual_seed(bits))
    errors = [
        _errors(weights, choose_scales(weights, bits=bits, group_size=16, scales=kind), bits, 16)
        for kind in ("searched", "absmax")
    ]
    assert (errors[0] <= errors[1]).all()
    assert errors[0].sum() <= (0.7 if bits == 2 else 1.0) * errors[1].sum()


@pytest.mark.parametrize("kind", ["absmax", "searched"])
def test_zeros_and_tiny_weights_have_positive_scales(kind: str) -> None:
    """A layer may hold dead groups; a scale below float16 is its smallest number."""
    weights = torch.tensor([[0.0, 0.0, 1e-12, -1e-12, 3.0, -1.0]])
    scales = choose_scales(weights, bits=4, group_size=2, scales=kind)
    assert scales[0, 0] == 1.0
    assert 0.0 < scales[0, 1] < 1e-6
    assert (scales > 0).all()


def test_spread_repeats_a_scale_over_its_group() -> None:
    scales = torch.tensor([[0.5, 2.0]], dtype=torch.float16)
    assert spread_scales(scales, 2).tolist() == [[0.5, 0.5, 2.0, 2.0]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 3}, "bits must be 2, 4 or 8"),
        ({"group_size": 3}, "must divide the 4"),
        ({"scales": "best"}, "scales must be one of"),
        ({"weights": torch.tensor([[math.nan, 1.0, 1.0, 1.0]])}, "must be finite"),
        ({"weights": torch.tensor([[math.inf, 1.0, 1.0, 1.0]])}, "must be finite"),
        ({"weights": torch.full((1, 4), 1e7)}, "small enough"),
    ],
)
def test_refuses(change: dict[str, object], words: str) -> None:
    arguments = {"weights": torch.ones(1, 4), "bits": 4, "group_size": 2} | change
    with pytest.raises(InvalidParameterError, match=words):
        choose_scales(arguments.pop("weights"), **arguments)


def random_weight(seed: int = 0, rows: int = 5, columns: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return weight * torch.exp(torch.randn(rows, columns, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [1, 4, 16])
def test_absmax_is_what_a_group_needs(bits: int, group_size: int) -> None:
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
            tried = [as_scales(torch.tensor(widest * f).double()) for f in COARSE_SHARES]
            assert loss(found[row, group]) == pytest.approx(min(loss(s) for s in tried))


def test_group_of_zeros_and_extreme_weights() -> None:
    """Zeros keep a positive scale; scales never leave float16."""
    weight = torch.zeros(1, 4)
    assert absmax_scales(weight, 4, 4).tolist() == [[1.0]]
    assert search_scales(weight, 4, 4).tolist() == [[1.0]]
    tiny = absmax_scales(torch.full((1, 4), 1e-30), 4, 4)
    assert float(tiny) == 2.0**-24
    with pytest.raises(InvalidParameterError, match="small enough"):
        absmax_scales(torch.full((1, 4), 1e30), 4, 4)


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


def test_one_bit_has_no_grid() -> None:
    with pytest.raises(InvalidParameterError, match="bits"):
        code_limits(1)
