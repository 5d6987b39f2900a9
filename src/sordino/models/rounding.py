"""Weights rounded to the nearest point of a grid of 4 or 8 bits, group by group."""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812

from sordino.core.checks import require_integer
from sordino.core.errors import InvalidParameterError

GROUP_SIZE = 32
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_BITS = (4, 8)
_PACKED_BITS = (2, 4, 8)
_FLOAT32_ROUNDING = 2.0**-20  # more than that of a difference of two numbers and a quotient


def require_base_bits(bits: int) -> int:
    """Returns `bits` if weights can be rounded to so many bits while loading, else raises."""
    if bits not in _BITS:
        raise InvalidParameterError(f"bits of packed weights must be 4 or 8, got {bits!r}.")
    return bits


def require_packed_bits(bits: int) -> int:
    """Returns `bits` if codes of so many bits can be packed, else raises."""
    if bits not in _PACKED_BITS:
        raise InvalidParameterError(f"bits of packed codes must be 2, 4 or 8, got {bits!r}.")
    return bits


def require_group_size(group_size: int) -> int:
    """Returns `group_size` if it is a whole number from 1 on, else raises."""
    return require_integer("group_size", group_size, 1)


def round_to_nearest(
    weight: torch.Tensor,
    *,
    bits: int = 4,
    group_size: int = GROUP_SIZE,
    is_symmetric: bool = False,
    scale_dtype: torch.dtype = torch.float16,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Returns codes, scales and offsets (None if symmetric) whose error is at most half a scale.

    The grid of a group spans its weights and zero. A symmetric grid costs one number a group less;
    it has one more step on one side of zero, and the scale is negative where that has to be the
    positive side. Nothing is clipped: scales are rounded outwards.

    Args:
        weight: Shape (out_features, in_features).
        bits: 4 or 8.
        group_size: Neighbouring inputs that share a scale.
        is_symmetric: Whether there are no offsets.
        scale_dtype: float16, bfloat16 or float32.

    Raises:
        InvalidParameterError: If a weight is not finite, or too large for the scale's type.
    """
    require_base_bits(bits)
    require_group_size(group_size)
    if scale_dtype not in FLOATS:
        raise InvalidParameterError(
            f"scale_dtype must be float16, bfloat16 or float32, got {scale_dtype}."
        )
    rows, columns = weight.shape
    padded = F.pad(weight.detach().float(), (0, -columns % group_size))
    groups = padded.view(rows, -1, group_size)
    low, high = groups.amin(dim=2).clamp_max(0.0), groups.amax(dim=2).clamp_min(0.0)
    top = 2**bits - 1
    if is_symmetric:
        above, below = top // 2, top // 2 + 1  # steps on either side of zero
        plain = torch.maximum(high / above, -low / below)
        mirrored = torch.maximum(-low / above, high / below)
        exact, offsets, start = plain.where(plain <= mirrored, -mirrored), None, -float(below)
    else:
        offsets = _outwards(low, scale_dtype)
        exact, start = (high - offsets.float()) / top, 0.0
    scales = _outwards(exact, scale_dtype)
    if not bool(scales.isfinite().all()):
        raise InvalidParameterError(
            f"weights must be finite, and small enough for scales in {scale_dtype}: check the "
            "model, or take scale_dtype float32."
        )
    steps = scales.float()[:, :, None]
    shifted = groups if offsets is None else groups - offsets.float()[:, :, None]
    codes = (shifted / steps.where(steps != 0, 1.0)).round_().sub_(start).clamp_(0, top)
    return codes.to(torch.uint8).view(rows, -1)[:, :columns].contiguous(), scales, offsets


def _outwards(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns float32 values in `dtype`, rounded away from zero.

    A float32 rounding error is no reason to go outwards: weights that come from such a grid would
    lose it.
    """
    rounded = values.to(dtype)
    if dtype == torch.float32:
        return rounded
    is_short = rounded.float().abs() < values.abs() * (1.0 - _FLOAT32_ROUNDING)
    return (rounded.view(torch.int16) + is_short).view(dtype)  # the next number has the next bits
