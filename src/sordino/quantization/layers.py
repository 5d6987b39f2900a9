"""A quantized layer: integer codes, and a scale for each group of neighbouring inputs of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sordino.core.checks import require_integer
from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["QUANTIZED_BITS", "QuantizedLayer", "packed_bytes"]

QUANTIZED_BITS = (2, 4, 8)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantizedLayer:
    """The weight of one linear layer on a symmetric grid: weight = code * scale.

    Args:
        name: Path of the layer in its model, as in `named_modules`.
        codes: int8, in [-2**(bits - 1), 2**(bits - 1) - 1], shape (out_features, in_features).
        scales: float16, positive and finite, shape (out_features, in_features / group_size).
        bits: 2, 4 or 8.
        group_size: Neighbouring inputs that share a scale; it divides in_features. A whole row is
            in_features.

    Raises:
        InvalidParameterError: If shapes, types or values do not belong together.
    """

    name: str
    codes: torch.Tensor
    scales: torch.Tensor
    bits: int
    group_size: int

    def __post_init__(self) -> None:
        if self.bits not in QUANTIZED_BITS:
            raise InvalidParameterError(f"bits must be 2, 4 or 8, got {self.bits!r}.")
        rows, columns = self.codes.shape
        require_integer("group_size", self.group_size, 1, columns)
        if columns % self.group_size:
            raise InvalidParameterError(
                f"group_size must divide the {columns} inputs of {self.name}, got "
                f"{self.group_size}."
            )
        shape = (rows, columns // self.group_size)
        if self.codes.dtype != torch.int8 or self.scales.dtype != torch.float16:
            raise InvalidParameterError(
                f"codes must be int8 and scales float16, got {self.codes.dtype} and "
                f"{self.scales.dtype}."
            )
        if tuple(self.scales.shape) != shape:
            raise InvalidParameterError(
                f"scales must have shape {shape}, got {tuple(self.scales.shape)}."
            )
        if not (torch.isfinite(self.scales) & (self.scales > 0)).all():
            raise InvalidParameterError(f"scales of {self.name} must be positive and finite.")
        if not (self.low <= int(self.codes.min()) and int(self.codes.max()) <= self.high):
            raise InvalidParameterError(
                f"codes of {self.name} must lie in [{self.low}, {self.high}], got codes from "
                f"{int(self.codes.min())} to {int(self.codes.max())}."
            )

    @property
    def low(self) -> int:
        """Smallest code."""
        return -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest code."""
        return 2 ** (self.bits - 1) - 1

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and scales, packed."""
        return packed_bytes(self.codes.shape, self.bits, self.group_size)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Returns the weight, shape (out_features, in_features), rounded to `dtype` once."""
        rows, columns = self.codes.shape
        groups = self.codes.float().view(rows, -1, self.group_size)
        return (groups * self.scales.float().unsqueeze(-1)).view(rows, columns).to(dtype)


def packed_bytes(shape: Sequence[int], bits: int, group_size: int | None) -> int:
    """Returns the bytes of a layer's codes and scales, packed; None is one scale a row."""
    rows, columns = shape
    groups = 1 if group_size is None else columns // group_size
    return -(-rows * columns * bits // 8) + 2 * rows * groups
