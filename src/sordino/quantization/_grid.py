"""Symmetric grids in groups of neighbouring inputs, for the methods that choose scales themselves.

Scales are numbers that float16 holds, in the type of the weight: they are fixed before anything is
rounded, so that no later conversion moves a grid.
"""

from __future__ import annotations

import torch

from sordino.core.checks import require_integer
from sordino.core.errors import InvalidParameterError

_SMALLEST_SCALE = 2.0**-24  # the smallest positive float16
_LARGEST_SCALE = 65504.0  # and the largest
SHRINKS = tuple(1.0 - 0.05 * step for step in range(1, 14))  # 0.95, 0.90, ..., 0.35 of the range


def code_limits(bits: int) -> tuple[int, int]:
    """Returns the smallest and the largest code of a symmetric grid of `bits` bits."""
    require_integer("bits", bits, 2, 8)
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def require_weight(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Returns a finite matrix (rows, columns) in float32 or float64, else raises."""
    if weight.ndim != 2 or weight.numel() == 0 or not weight.is_floating_point():
        raise InvalidParameterError(
            "a weight must be a matrix of floats with at least one entry, got shape "
            f"{tuple(weight.shape)} and type {weight.dtype}."
        )
    if not bool(torch.isfinite(weight).all()):
        raise InvalidParameterError("weights must be finite; check the model.")
    columns = weight.shape[1]
    require_integer("group_size", group_size, 1, columns)
    if columns % group_size:
        raise InvalidParameterError(
            f"group_size must divide the {columns} inputs of the layer, got {group_size}."
        )
    weight = weight.detach()
    return weight if weight.dtype == torch.float64 else weight.float()


def require_gram(gram: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Returns a finite Gram matrix for `like`'s columns, in its type and on its device."""
    columns = like.shape[1]
    if tuple(gram.shape) != (columns, columns) or not bool(torch.isfinite(gram).all()):
        raise InvalidParameterError(
            f"gram must be finite, of shape ({columns}, {columns}), got {tuple(gram.shape)}."
        )
    return gram.to(like)


def require_magnitudes(name: str, values: torch.Tensor, columns: int) -> torch.Tensor:
    """Returns finite numbers of at least 0, one for each column, else raises."""
    if tuple(values.shape) != (columns,) or not bool(((values >= 0) & values.isfinite()).all()):
        raise InvalidParameterError(
            f"{name} must be finite numbers of at least 0, shape ({columns},), got shape "
            f"{tuple(values.shape)}."
        )
    return values


def to_groups(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Returns the weight as (rows, groups, group_size)."""
    return weight.reshape(len(weight), -1, group_size)


def as_scales(values: torch.Tensor) -> torch.Tensor:
    """Returns values rounded to positive float16 numbers, in their own type."""
    limited = values.clamp(_SMALLEST_SCALE, _LARGEST_SCALE)
    return limited.to(torch.float16).to(values.dtype)


def absmax_scales(weight: torch.Tensor, bits: int, group_size: int) -> torch.Tensor:
    """Returns the scales (rows, groups) with which no weight is clipped, up to float16 rounding.

    A group of zeros gets the scale 1.
    """
    low, high = code_limits(bits)
    groups = to_groups(weight, group_size)
    needed = torch.maximum(groups.amax(dim=2) / high, groups.amin(dim=2) / low)
    return as_scales(needed.where(needed > 0, 1.0))


def round_weight(weight: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns the nearest codes within the limits as floats, (rows, columns)."""
    low, high = code_limits(bits)
    groups = to_groups(weight, weight.shape[1] // scales.shape[1])
    return (groups / scales.unsqueeze(2)).round_().clamp_(low, high).view(weight.shape)


def dequantize(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Returns codes * scales, (rows, columns), in the type of the scales."""
    groups = to_groups(codes.to(scales.dtype), codes.shape[1] // scales.shape[1])
    return (groups * scales.unsqueeze(2)).view(codes.shape)


def output_loss(error: torch.Tensor, gram: torch.Tensor) -> float:
    """Returns tr(E H E^T), summed in float64: the squared error of the layer's outputs."""
    return float(((error @ gram) * error).sum(dtype=torch.float64).clamp_min(0.0))


def search_scales(
    weight: torch.Tensor,
    bits: int,
    group_size: int,
    *,
    gram: torch.Tensor | None = None,
    shrinks: tuple[float, ...] = SHRINKS,
) -> torch.Tensor:
    """Returns scales (rows, groups), each the best of several shares of the range of its group.

    A group is judged alone: by the squared error of its weights, or with a Gram matrix by
    e^T H e over the group's own block of it. Neither counts what groups do to each other.
    """
    widest = absmax_scales(weight, bits, group_size)
    blocks = None
    if gram is not None:
        count = weight.shape[1] // group_size
        # (groups, group_size, group_size): the blocks along the diagonal.
        blocks = gram.view(count, group_size, count, group_size).diagonal(dim1=0, dim2=2)
        blocks = blocks.permute(2, 0, 1)
    best, best_losses = widest, _group_losses(weight, widest, bits, blocks)
    for shrink in shrinks:
        scales = as_scales(widest * shrink)
        losses = _group_losses(weight, scales, bits, blocks)
        is_better = losses < best_losses
        best = scales.where(is_better, best)
        best_losses = losses.where(is_better, best_losses)
    return best


def _group_losses(
    weight: torch.Tensor, scales: torch.Tensor, bits: int, blocks: torch.Tensor | None
) -> torch.Tensor:
    """Returns the loss of each group by itself, (rows, groups)."""
    errors = weight - dequantize(round_weight(weight, scales, bits), scales)
    errors = to_groups(errors, weight.shape[1] // scales.shape[1])
    if blocks is None:
        return errors.square().sum(dim=2)
    return (torch.einsum("rgi,gij->rgj", errors, blocks) * errors).sum(dim=2)
