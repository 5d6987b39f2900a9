"""Half-quadratic quantization: a grid fitted to the weights alone, without calibration data.

The grid minimizes sum |w - q|^p with p < 1: a few large errors count for little, so that outliers
do not stretch the range. Half-quadratic splitting puts a variable e in the place of the error, and
turns by turn: e shrinks the error towards zero, the grid is the least-squares fit to w - e, and
the codes are the nearest ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sordino.core.checks import require_in_range, require_integer
from sordino.quantization._arguments import require_weight
from sordino.quantization.scales import (
    absmax_scales,
    as_scales,
    code_limits,
    dequantize,
    round_weight,
    to_groups,
)

__all__ = ["AsymmetricGrid", "hqq", "hqq_asymmetric", "shrink_errors"]

_EXPONENT = 0.7  # p
# Errors are measured in steps of the grid, so that the result does not depend on the weights'
# unit. An error is kept only above beta^(-1 / (2 - p)) steps: from 1 step on, down to about 0.25.
_FIRST_BETA, _BETA_GROWTH = 1.0, 1.1
_NUM_TURNS = 20


@dataclass(frozen=True, slots=True, eq=False)
class AsymmetricGrid:
    """Codes with a zero point: weight = (code - zero) * scale. For comparison, never shipped."""

    codes: torch.Tensor  # whole numbers in [0, 2**bits), (rows, columns)
    scales: torch.Tensor  # (rows, groups)
    zeros: torch.Tensor  # (rows, groups), not whole

    def dequantize(self) -> torch.Tensor:
        """Returns the weight, (rows, columns)."""
        group_size = self.codes.shape[1] // self.scales.shape[1]
        groups = to_groups(self.codes, group_size) - self.zeros.unsqueeze(2)
        return (groups * self.scales.unsqueeze(2)).view(self.codes.shape)


def hqq(
    weight: torch.Tensor,
    *,
    bits: int,
    group_size: int,
    exponent: float = _EXPONENT,
    num_turns: int = _NUM_TURNS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns codes (int8) and scales (float16) of a symmetric grid fitted in the lp norm.

    The zero point is held at 0, because the shipped formats have none; the scale is optimized in
    its place.

    Guarantee:
        No group's sum |w - q|^p is above that of the grid without clipping. Nothing is promised
        for the squared error or the layer's outputs.

    Args:
        weight: (rows, columns).
        bits: 2 to 8.
        group_size: Neighbouring inputs that share a scale; it divides columns.
        exponent: p, in [0.1, 1].
        num_turns: Turns of the splitting; 0 is plain rounding.

    Raises:
        InvalidParameterError: If an argument is out of range or not finite.

    Source:
        Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models (2023).
        Departures: the scale is fitted, not the zero point; errors are measured in steps; the
        best turn of each group is kept.
    """
    weight = require_weight(weight, group_size)
    require_in_range("exponent", exponent, 0.1, 1.0)
    require_integer("num_turns", num_turns, 0)
    scales = absmax_scales(weight, bits, group_size)
    groups = to_groups(weight, group_size)
    best, beta = scales, _FIRST_BETA
    best_losses = _lp_losses(weight, scales, bits, exponent)
    for _ in range(num_turns):
        codes = to_groups(round_weight(weight, scales, bits), group_size)
        errors = groups / scales.unsqueeze(2) - codes  # in steps
        kept = shrink_errors(errors, beta, exponent)
        target = groups - kept * scales.unsqueeze(2)
        norms = codes.square().sum(dim=2)
        fitted = (codes * target).sum(dim=2) / norms.clamp_min(1.0)
        # A group whose codes are all zero says nothing about its scale.
        scales = as_scales(fitted.where((norms > 0) & (fitted > 0), scales))
        losses = _lp_losses(weight, scales, bits, exponent)
        best = scales.where(losses < best_losses, best)
        best_losses = torch.minimum(losses, best_losses)
        beta *= _BETA_GROWTH
    codes = round_weight(weight, best, bits)
    return codes.to(torch.int8), best.to(torch.float16)


def hqq_asymmetric(
    weight: torch.Tensor,
    *,
    bits: int,
    group_size: int,
    exponent: float = _EXPONENT,
    num_turns: int = _NUM_TURNS,
) -> AsymmetricGrid:
    """Returns a grid with a fitted zero point, and the scale of the full range: the method as told.

    Guarantee:
        No group's sum |w - q|^p is above that of the grid from its smallest to its largest weight.

    Args:
        weight: (rows, columns).
        bits: 2 to 8.
        group_size: Neighbouring inputs that share a scale and a zero point; it divides columns.
        exponent: p, in [0.1, 1].
        num_turns: Turns of the splitting.

    Raises:
        InvalidParameterError: If an argument is out of range or not finite.

    Source:
        As `hqq`. Departures: errors are measured in steps; the best turn of each group is kept.
    """
    weight = require_weight(weight, group_size)
    require_in_range("exponent", exponent, 0.1, 1.0)
    require_integer("num_turns", num_turns, 0)
    top = code_limits(bits)[1] * 2 + 1
    groups = to_groups(weight, group_size)
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    scales = ((high - low) / top).where(high > low, 1.0)
    steps = groups / scales.unsqueeze(2)
    zeros, beta = -low / scales, _FIRST_BETA
    best, best_losses = zeros, torch.full_like(zeros, torch.inf)
    for turn in range(num_turns + 1):
        codes = (steps + zeros.unsqueeze(2)).round().clamp(0, top)
        errors = steps - (codes - zeros.unsqueeze(2))
        losses = errors.abs().pow(exponent).sum(dim=2)
        best = zeros.where(losses < best_losses, best)
        best_losses = torch.minimum(losses, best_losses)
        if turn < num_turns:
            kept = shrink_errors(errors, beta, exponent)
            zeros = (codes - (steps - kept)).mean(dim=2)
            beta *= _BETA_GROWTH
    codes = (steps + best.unsqueeze(2)).round().clamp(0, top)
    return AsymmetricGrid(codes.view(weight.shape), scales, best)


def shrink_errors(errors: torch.Tensor, beta: float, exponent: float) -> torch.Tensor:
    """Returns sign(x) max(|x| - |x|^(p - 1) / beta, 0): generalized soft thresholding."""
    sizes = errors.abs()
    # 0 to a negative power is infinite, and max(0 - inf, 0) = 0: as it should be.
    return errors.sign() * (sizes - sizes.pow(exponent - 1.0) / beta).clamp_min(0.0)


def _lp_losses(
    weight: torch.Tensor, scales: torch.Tensor, bits: int, exponent: float
) -> torch.Tensor:
    """Returns sum |w - q|^p of each group, (rows, groups)."""
    errors = weight - dequantize(round_weight(weight, scales, bits), scales)
    return to_groups(errors.abs().pow(exponent), weight.shape[1] // scales.shape[1]).sum(dim=2)
