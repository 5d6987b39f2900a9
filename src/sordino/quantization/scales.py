"""Scales of a symmetric grid, fixed as float16 before any weight is rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sordino.core.checks import require_integer, require_one_of
from sordino.core.errors import InvalidParameterError
from sordino.quantization.layers import QUANTIZED_BITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SCALES", "choose_scales", "code_limits", "spread_scales"]

SCALES = ("absmax", "searched")
_SHARES = torch.linspace(1.0, 0.3, 36)  # of the range that clips nothing; 2 bits choose about 0.5
_SMALLEST = 2.0**-24  # the smallest positive float16
_ROWS_AT_ONCE = 2**18  # weights: the search's temporaries stay in the processor's cache


def code_limits(bits: int) -> tuple[int, int]:
    """Returns the smallest and the largest signed code of so many bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def choose_scales(
    weights: torch.Tensor, *, bits: int, group_size: int, scales: str = "absmax"
) -> torch.Tensor:
    """Returns a scale for each group of each row.

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
    rows, columns = weights.shape
    require_integer("group_size", group_size, 1, columns)
    if columns % group_size:
        raise InvalidParameterError(f"group_size must divide {columns}, got {group_size}.")
    low, high = code_limits(bits)
    groups = weights.float().reshape(rows, -1, group_size)
    widest = torch.maximum(groups.amax(dim=2) / high, groups.amin(dim=2) / low)
    chosen = _to_float16(widest)
    if not bool(chosen.isfinite().all()):
        raise InvalidParameterError(
            "weights must be finite, and small enough for scales in float16. Check the model."
        )
    if scales == "searched":
        at_once = max(1, _ROWS_AT_ONCE // columns)
        for start in range(0, rows, at_once):
            part = slice(start, start + at_once)
            chosen[part] = _search(groups[part], widest[part], low, high)
    return chosen.where(widest > 0, 1.0)


def spread_scales(scales: torch.Tensor, group_size: int) -> NDArray[np.float64]:
    """Returns float16 scales of groups as float64 scales of weights, (rows, columns)."""
    return scales.double().repeat_interleave(group_size, dim=1).numpy()


def _to_float16(scales: torch.Tensor) -> torch.Tensor:
    """Returns scales in float16; the smallest positive number instead of zero."""
    return scales.clamp_min(_SMALLEST).half()


def _search(groups: torch.Tensor, widest: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Returns the scales with the smallest squared error; of equal ones the largest."""
    best = _to_float16(widest)
    smallest = torch.full_like(widest, torch.inf)
    for share in _SHARES:
        candidate = _to_float16(share * widest)
        steps = candidate.float().unsqueeze(2)
        codes = (groups / steps).round_().clamp_(low, high)
        error = (codes * steps - groups).square_().sum(dim=2)
        is_better = error < smallest
        best = candidate.where(is_better, best)
        smallest = error.where(is_better, smallest)
    return best
