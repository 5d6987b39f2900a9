"""Symmetric grids in groups of neighbouring inputs: scales, nearest codes, and back to weights.

Scales are numbers that float16 holds, and they are fixed before anything is rounded, so that no
later conversion moves a grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sordino.core.checks import require_integer, require_one_of
from sordino.core.errors import InvalidParameterError
from sordino.quantization._arguments import require_weight
from sordino.quantization.layers import QUANTIZED_BITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "COARSE_SHARES",
    "SCALES",
    "SHARES",
    "absmax_scales",
    "as_scales",
    "choose_scales",
    "code_limits",
    "dequantize",
    "round_weight",
    "search_scales",
    "spread_scales",
    "to_groups",
]

SCALES = ("absmax", "searched")
# Shares of the range that clips nothing; 2 bits choose about 0.5.
SHARES = tuple(torch.linspace(1.0, 0.3, 36).tolist())
COARSE_SHARES = tuple(1.0 - 0.05 * step for step in range(14))  # 1, 0.95, ..., 0.35
_SMALLEST_SCALE = 2.0**-24  # the smallest positive float16
_LARGEST_SCALE = 65504.0  # and the largest
_WEIGHTS_AT_ONCE = 2**18  # the search's temporaries stay in the processor's cache


def code_limits(bits: int) -> tuple[int, int]:
    """Returns the smallest and the largest signed code of so many bits."""
    require_integer("bits", bits, 2, 8)
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def choose_scales(
    weights: torch.Tensor, *, bits: int, group_size: int, scales: str = "absmax"
) -> torch.Tensor:
    """Returns a scale for each group of each row, for a layer that is to be shipped.

    Args:
        weights: Shape (rows, columns), finite.
        bits: 2, 4 or 8.
        group_size: Neighbouring columns that share a scale; it divides the columns.
        scales: `absmax` takes the smallest scale that clips no weight, `searched` the one of 36
            down to 30% of it with the smallest squared error of the weights, clipping included.

    Returns:
        float16, positive and finite, shape (rows, columns / group_size). A group of zeros gets 1.

    Raises:
        InvalidParameterError: If an argument is out of range, or a weight is not finite or too
            large for a scale in float16.
    """
    require_one_of("scales", scales, SCALES)
    if bits not in QUANTIZED_BITS:
        raise InvalidParameterError(f"bits must be 2, 4 or 8, got {bits!r}.")
    weights = require_weight(weights, group_size).float()
    if scales == "absmax":
        return absmax_scales(weights, bits, group_size).half()
    return search_scales(weights, bits, group_size, shares=SHARES).half()


def absmax_scales(weight: torch.Tensor, bits: int, group_size: int) -> torch.Tensor:
    """Returns the scales (rows, groups) with which no weight is clipped, up to float16 rounding.

    A group of zeros gets the scale 1.

    Raises:
        InvalidParameterError: If a scale would be too large for float16.
    """
    return as_scales(_widest(weight, bits, group_size))


def search_scales(
    weight: torch.Tensor,
    bits: int,
    group_size: int,
    *,
    gram: torch.Tensor | None = None,
    shares: tuple[float, ...] = COARSE_SHARES,
) -> torch.Tensor:
    """Returns scales (rows, groups), each the best of several shares of the range of its group.

    A group is judged alone: by the squared error of its weights, or with a Gram matrix by
    e^T H e over the group's own block of it. Neither counts what groups do to each other. Of
    equal shares the first one is taken.

    Raises:
        InvalidParameterError: If a scale would be too large for float16.
    """
    widest = _widest(weight, bits, group_size)
    blocks = None
    if gram is not None:
        count = weight.shape[1] // group_size
        # (groups, group_size, group_size): the blocks along the diagonal.
        blocks = gram.view(count, group_size, count, group_size).diagonal(dim1=0, dim2=2)
        blocks = blocks.permute(2, 0, 1)
    at_once = max(1, _WEIGHTS_AT_ONCE // weight.shape[1])
    parts = zip(weight.split(at_once), widest.split(at_once), strict=True)
    return torch.cat([_search(rows, own, bits, blocks, shares) for rows, own in parts])


def as_scales(values: torch.Tensor) -> torch.Tensor:
    """Returns values rounded to positive float16 numbers, in their own type."""
    limited = values.clamp(_SMALLEST_SCALE, _LARGEST_SCALE)
    return limited.to(torch.float16).to(values.dtype)


def round_weight(weight: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns the nearest codes within the limits as floats, (rows, columns)."""
    low, high = code_limits(bits)
    groups = to_groups(weight, weight.shape[1] // scales.shape[1])
    return (groups / scales.unsqueeze(2)).round_().clamp_(low, high).view(weight.shape)


def dequantize(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Returns codes * scales, (rows, columns), in the type of the scales."""
    groups = to_groups(codes.to(scales.dtype), codes.shape[1] // scales.shape[1])
    return (groups * scales.unsqueeze(2)).view(codes.shape)


def to_groups(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Returns the weight as (rows, groups, group_size)."""
    return weight.reshape(len(weight), -1, group_size)


def spread_scales(scales: torch.Tensor, group_size: int) -> NDArray[np.float64]:
    """Returns float16 scales of groups as float64 scales of weights, (rows, columns)."""
    return scales.double().repeat_interleave(group_size, dim=1).numpy()


def _widest(weight: torch.Tensor, bits: int, group_size: int) -> torch.Tensor:
    """Returns what each group needs so that no weight is clipped; 1 for zeros."""
    low, high = code_limits(bits)
    groups = to_groups(weight, group_size)
    needed = torch.maximum(groups.amax(dim=2) / high, groups.amin(dim=2) / low)
    if not bool((needed <= _LARGEST_SCALE).all()):
        raise InvalidParameterError(
            "weights must be finite, and small enough for scales in float16. Check the model."
        )
    return needed.where(needed > 0, 1.0)


def _search(
    weight: torch.Tensor,
    widest: torch.Tensor,
    bits: int,
    blocks: torch.Tensor | None,
    shares: tuple[float, ...],
) -> torch.Tensor:
    """Returns the best scales of a few rows."""
    best, smallest = as_scales(widest), torch.full_like(widest, torch.inf)
    for share in shares:
        scales = as_scales(widest * share)
        losses = _group_losses(weight, scales, bits, blocks)
        is_better = losses < smallest
        best = scales.where(is_better, best)
        smallest = losses.where(is_better, smallest)
    return best


def _group_losses(
    weight: torch.Tensor, scales: torch.Tensor, bits: int, blocks: torch.Tensor | None
) -> torch.Tensor:
    """Returns the loss of each group by itself, (rows, groups)."""
    errors = weight - dequantize(round_weight(weight, scales, bits), scales)
    errors = to_groups(errors, weight.shape[1] // scales.shape[1])
    if blocks is None:
        return errors.square_().sum(dim=2)
    return (torch.einsum("rgi,gij->rgj", errors, blocks) * errors).sum(dim=2)
