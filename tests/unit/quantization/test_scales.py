"""Scales: positive float16, nothing clipped by `absmax`, `searched` never worse."""

from __future__ import annotations

import math

import pytest
import torch

from sordino.core.errors import InvalidParameterError
from sordino.quantization.scales import choose_scales, code_limits, spread_scales


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
        ({"group_size": 3}, "must divide 4"),
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
