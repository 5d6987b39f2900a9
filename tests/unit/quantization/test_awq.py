"""AWQ: the exponent against a search of its own, and what it promises about losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sordino.core.errors import InvalidParameterError
from sordino.quantization.awq import EXPONENTS, awq, awq_input_scales, clipped_scales
from sordino.quantization.scales import (
    absmax_scales,
    dequantize,
    round_weight,
    search_scales,
)

BITS, GROUP = 4, 8


def make_case(seed: int, rows: int = 6, columns: int = 16, spread: float = 1.5) -> tuple:
    """Two layers with one input, some of whose columns are far larger than others."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = draw(64, columns) @ (torch.eye(columns) + 0.3 * draw(columns, columns))
    inputs *= torch.exp(spread * draw(columns))
    weights = [draw(rows, columns), draw(rows // 2, columns)]
    return weights, inputs.T @ inputs, inputs.abs().mean(dim=0), inputs


def brute_force_loss(weights: list, inputs: torch.Tensor, factors: np.ndarray) -> float:
    """The loss on the inputs themselves: no Gram matrix, NumPy, one group at a time."""
    total = 0.0
    for weight in weights:
        scaled = weight.numpy() * factors
        for start in range(0, scaled.shape[1], GROUP):
            part = scaled[:, start : start + GROUP]
            scale = np.maximum(part.max(1) / 7, part.min(1) / -8).astype(np.float16)[:, None]
            scale = scale.astype(np.float64)
            scaled[:, start : start + GROUP] = scale * np.clip(np.rint(part / scale), -8, 7)
        error = weight.numpy() - scaled / factors
        total += float(np.square(inputs.numpy() @ error.T).sum())
    return total


@pytest.mark.parametrize("seed", range(5))
def test_exponent_is_the_best_of_the_grid(seed: int) -> None:
    weights, gram, magnitudes, inputs = make_case(seed)
    scales, exponent = awq_input_scales(weights, gram, magnitudes, bits=BITS, group_size=GROUP)
    losses = {}
    for a in EXPONENTS:
        powers = magnitudes.numpy() ** a
        losses[a] = brute_force_loss(weights, inputs, powers / np.sqrt(powers.max() * powers.min()))
    assert losses[exponent] == pytest.approx(min(losses.values()), rel=1e-9)
    assert brute_force_loss(weights, inputs, scales.numpy()) == pytest.approx(
        min(losses.values()), rel=1e-9
    )
    assert min(losses.values()) < losses[0.0]  # outlying columns: scaling pays


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group_size", [4, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_are_those_of_the_shipped_codes(
    bits: int, group_size: int, dtype: torch.dtype
) -> None:
    """The loss is recomputed on the inputs from codes and float16 scales, and never above plain."""
    weights, gram, magnitudes, inputs = make_case(bits)
    weights = [weight.to(dtype) for weight in weights]
    result = awq(weights, gram, magnitudes, bits=bits, group_size=group_size)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    for weight, codes, scales, loss in zip(
        weights, result.codes, result.scales, result.losses, strict=True
    ):
        assert codes.dtype == torch.int8
        assert scales.dtype == torch.float16
        assert int(codes.min()) >= -(2 ** (bits - 1))
        assert int(codes.max()) <= 2 ** (bits - 1) - 1
        steps = scales.double().repeat_interleave(group_size, dim=1)
        error = weight.double() - codes.double() * steps / result.input_scales.double()
        assert loss == pytest.approx(float((inputs @ error.T).square().sum()), rel=tolerance)
    assert sum(result.losses) <= sum(result.nearest_losses) * (1 + tolerance)


def test_clipping_is_kept_only_where_the_layer_gains() -> None:
    """At 2 bits the clipped grid wins: below the loss of the scaled columns alone."""
    weights, gram, magnitudes, inputs = make_case(3, rows=32)
    result = awq(weights, gram, magnitudes, bits=2, group_size=8)
    factors = result.input_scales
    for weight, loss in zip(weights, result.losses, strict=True):
        scaled = (weight * factors).view(len(weight), -1, 8)
        steps = torch.maximum(scaled.amax(2), scaled.amin(2) / -2).half().double().unsqueeze(2)
        rounded = (steps * (scaled / steps).round().clamp(-2, 1)).view(weight.shape) / factors
        unclipped = float((inputs @ (weight - rounded).T).square().sum())
        assert loss < unclipped


def test_ranges_that_hurt_the_layer_are_not_kept() -> None:
    """With equal inputs, groups that are best alone add up their errors: the guard must act."""
    gram = torch.ones(16, 16).double() + 0.05 * torch.eye(16).double()
    for seed, is_hurt in ((2, True), (8, True), (0, False)):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.rand(1, 16, generator=generator).double()
        widest = absmax_scales(weight, 3, 4)
        losses = []
        for scales in (widest, search_scales(weight, 3, 4, gram=gram)):
            error = weight - dequantize(round_weight(weight, scales, 3), scales)
            losses.append(float(torch.trace(error @ gram @ error.T)))
        assert (losses[1] > losses[0]) == is_hurt
        kept = clipped_scales(weight, gram, bits=3, group_size=4)
        assert torch.equal(kept, widest) == is_hurt


def test_dead_inputs_and_equal_inputs() -> None:
    """Columns without input get finite scales; equal magnitudes change nothing."""
    weights, gram, magnitudes, _ = make_case(1)
    gram[3], gram[:, 3], magnitudes[3] = 0.0, 0.0, 0.0
    result = awq(weights, gram, magnitudes, bits=BITS, group_size=GROUP)
    assert bool((torch.isfinite(result.input_scales) & (result.input_scales > 0)).all())
    assert float(result.input_scales.max() / result.input_scales.min()) <= 1.0001e4
    for uniform in (torch.zeros(16), torch.ones(16)):
        scales, _ = awq_input_scales(weights, gram, uniform, bits=BITS, group_size=GROUP)
        assert torch.equal(scales, torch.ones_like(scales))


def test_refuses_layers_that_do_not_belong_together() -> None:
    weights, gram, magnitudes, _ = make_case(0)
    for bad in ([], [weights[0], weights[1][:, :8]]):
        with pytest.raises(InvalidParameterError, match="same inputs"):
            awq(bad, gram, magnitudes, bits=BITS, group_size=GROUP)
    with pytest.raises(InvalidParameterError, match="mean_magnitudes"):
        awq(weights, gram, torch.full((16,), float("nan")), bits=BITS, group_size=GROUP)
