"""Kronecker directions: +-1 matrices of rank one, for trainable sets as large as a whole model.

On a matrix of shape (rows, columns), direction k is the outer product of two signed columns of
Hadamard matrices. Its inner product with a gradient that is a sum of outer products (of a layer's
output gradients and inputs, token by token) needs the two factors only: the gradient itself is
never formed. A Kronecker product of Hadamard matrices is a Hadamard matrix, so what
`sordino.gradients.hadamard` says holds within every tensor: different pairs of columns are
orthogonal over the padded shape, and sums with whole-number weights are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from sordino.core.directions import public_keys, public_signs
from sordino.gradients.direction_sets import AbstractDirectionSet
from sordino.gradients.hadamard import hadamard_matrix, padded_length, walsh_hadamard

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

_ENTRIES_AT_ONCE = 2**17  # of a block of a sum or transform, a power of two; it fits in a cache
_ENTRIES_AT_ONCE_ON_DEVICE = 2**24
_MIXING_ROUNDS = 3
_CPU = torch.device("cpu")
_LOW_BITS = 9  # rows of a large Hadamard matrix are products of rows of two small ones
_LOW_MASK = 2**_LOW_BITS - 1


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Returns a tensor's shape as a matrix: a vector is one column, further axes are columns.

    Example:
        >>> [matrix_shape(shape) for shape in [(), (5,), (5, 3), (5, 3, 2)]]
        [(1, 1), (5, 1), (5, 3), (5, 6)]
    """
    rows = shape[0] if shape else 1
    return rows, math.prod(shape[1:])


@dataclass(frozen=True, slots=True, eq=False)
class _Public:
    """What everybody knows about one step's directions on one tensor."""

    row_signs: torch.Tensor  # (rows,), float32
    column_signs: torch.Tensor  # (columns,), float32
    row: torch.Tensor  # (K,): column number in the Hadamard matrix over the rows
    column: torch.Tensor  # (K,): the same over the columns
    signs: torch.Tensor  # (K,), float32


@dataclass(frozen=True)
class KroneckerDirections(AbstractDirectionSet):
    """Outer products of signed Hadamard columns, tensor by tensor.

    The pairs of columns are distinct as long as there are enough; beyond that (vectors have few)
    they repeat with other signs.

    Args:
        seed: Public seed.
        shapes: Shapes of the trainable tensors by name.
        num_directions: K.
    """

    seed: int
    shapes: Mapping[str, Sequence[int]]
    num_directions: int
    unit: float = 1.0

    @property
    def max_norm(self) -> float:  # type: ignore[override]
        """Euclidean norm of every direction."""
        return math.sqrt(sum(math.prod(shape) for shape in self.shapes.values()))

    def direction(self, step: int, index: int) -> NDArray[np.int16]:
        """Returns one direction over all tensors, flat."""
        parts = []
        for name in self.shapes:
            public = self._public(step, name)
            left = _signs_at(public.row[index], len(public.row_signs)) * public.row_signs
            right = _signs_at(public.column[index], len(public.column_signs)) * public.column_signs
            parts.append((torch.outer(left, right) * public.signs[index]).reshape(-1))
        return torch.cat(parts).to(torch.int16).numpy()

    def project(self, step: int, gradients: torch.Tensor) -> torch.Tensor:
        """Returns all directional derivatives by one transform a tensor and record."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        total = gradients.new_zeros(gradients.shape[0], self.num_directions)
        for name, part in zip(self.shapes, gradients.split(sizes, dim=1), strict=True):
            total += self.project_tensor(step, name, part)
        return total

    def project_tensor(self, step: int, name: str, gradients: torch.Tensor) -> torch.Tensor:
        """Returns what one tensor's gradients add to the derivatives.

        Args:
            step: Step number.
            name: Name of the tensor.
            gradients: Flat gradients, shape (batch_size, size), float32.

        Returns:
            Shape (batch_size, num_directions), float32.
        """
        public = self._public(step, name, gradients.device)
        rows, columns = matrix_shape(self.shapes[name])
        height, width = padded_length(rows), padded_length(columns)
        signed = gradients.reshape(-1, rows, columns)
        signed = signed * public.row_signs[:, None] * public.column_signs
        result = []
        for part in signed.split(max(1, _entries_at_once(gradients.device) // (height * width))):
            padded = part.new_zeros(part.shape[0], height, width)
            padded[:, :rows, :columns] = part
            transformed = walsh_hadamard(padded.reshape(part.shape[0], -1))
            result.append(transformed.index_select(1, public.row * width + public.column))
        return torch.cat(result) * public.signs

    def left(self, step: int, name: str, values: torch.Tensor) -> torch.Tensor:
        """Returns inner products with the K left factors, (n, rows) -> (n, K), float32."""
        public = self._public(step, name, values.device)
        return _transform(values, public.row_signs).index_select(1, public.row)

    def left_at(self, step: int, name: str, indices: torch.Tensor) -> torch.Tensor:
        """Returns the K left factors at some rows of a tensor, (n,) -> (n, K), float32."""
        public = self._public(step, name, indices.device)
        low, high = _row_tables(public)
        columns = low[indices & _LOW_MASK] * high[indices >> _LOW_BITS]
        return columns * public.row_signs[indices, None]

    def right(self, step: int, name: str, values: torch.Tensor) -> torch.Tensor:
        """Returns inner products with the K right factors, (n, columns) -> (n, K), float32."""
        public = self._public(step, name, values.device)
        found = _transform(values, public.column_signs).index_select(1, public.column)
        return found.mul_(public.signs)

    def combine(self, step: int, weights: NDArray[np.int32]) -> NDArray[np.float64]:
        """Returns the weighted sum of all directions by one transform a tensor, exact."""
        blocks = [
            block.reshape(-1)
            for name in self.shapes
            for _, block in self.combine_tensor(step, weights, name)
        ]
        return torch.cat(blocks).numpy()

    def combine_tensor(
        self, step: int, weights: NDArray[np.int32], name: str, device: torch.device = _CPU
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields sum_k weights[k] * direction_k for one tensor, exact, a block of rows at a time.

        Rows high * height + low of the Hadamard matrix are products of a row of a coarse one and a
        row of a fine one, so a block needs a transform of its own size only.

        Returns:
            First row and whole numbers, float64, shape (rows of the block, columns), on `device`.
        """
        public = self._public(step, name, device)
        rows, columns = matrix_shape(self.shapes[name])
        width = padded_length(columns)
        height = min(padded_length(rows), max(1, _entries_at_once(device) // width))
        place = public.row % height * width + public.column
        signed = torch.from_numpy(weights.astype(np.float64)).to(device) * public.signs
        for first in range(0, rows, height):
            coarse = _parity_signs(public.row // height & first // height)
            spread = torch.zeros(height * width, dtype=torch.float64, device=device)
            spread.index_add_(0, place, signed * coarse)
            block = walsh_hadamard(spread[None]).view(height, width)[: rows - first, :columns]
            signs = public.row_signs[first : first + height, None] * public.column_signs
            yield first, block * signs

    def _public(self, step: int, name: str, device: torch.device = _CPU) -> _Public:
        """Returns the public numbers of one step and tensor."""
        shape, count = matrix_shape(self.shapes[name]), self.num_directions
        return _make_public(self.seed, step, name, shape=shape, num_directions=count, device=device)


@lru_cache(maxsize=1024)
def _make_public(
    seed: int,
    step: int,
    name: str,
    *,
    shape: tuple[int, int],
    num_directions: int,
    device: torch.device,
) -> _Public:
    """Returns signs and distinct pairs of columns for one step and tensor."""
    rows, columns = shape
    width = padded_length(columns)
    num_bits = (padded_length(rows) * width).bit_length() - 1
    label = f"{step}/{name}"
    signs = [
        torch.from_numpy(public_signs(seed, f"kronecker-{what}", label, size).astype(np.float32))
        for what, size in (("rows", rows), ("columns", columns), ("signs", num_directions))
    ]
    keys = public_keys(seed, "kronecker-pairs", label, 2 * _MIXING_ROUNDS)
    pairs = torch.from_numpy(_shuffled(num_directions, num_bits, keys).astype(np.int64))
    found = (signs[0], signs[1], pairs // width, pairs % width, signs[2])
    return _Public(*(values.to(device) for values in found))


@lru_cache(maxsize=2)  # it serves every batch of a step
def _row_tables(public: _Public) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns two tables whose products, by low and high bits of a row, are the left factors."""
    high_bits = max(padded_length(len(public.row_signs)).bit_length() - 1 - _LOW_BITS, 0)
    low, high = (hadamard_matrix(bits).to(public.row.device) for bits in (_LOW_BITS, high_bits))
    return low[:, public.row & _LOW_MASK], high[:, public.row >> _LOW_BITS]


def _shuffled(count: int, num_bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns the first `count` places of a keyed permutation of range(2**num_bits), repeating.

    Multiplying by an odd number, adding, and folding high bits into low ones are one to one.
    Sorting 2**26 keys, as `public_permutation` would, takes longer than the step's sums.
    """
    mask, shift = np.uint64(2**num_bits - 1), np.uint64((num_bits + 1) // 2)
    places = np.arange(count, dtype=np.uint64) & mask
    for multiplier, offset in keys.reshape(-1, 2):
        places = (places * (multiplier | np.uint64(1)) + offset) & mask
        places ^= places >> shift
    return places


def _entries_at_once(device: torch.device) -> int:
    """Returns how large a block of a sum or transform is, a power of two."""
    return _ENTRIES_AT_ONCE if device.type == "cpu" else _ENTRIES_AT_ONCE_ON_DEVICE


def _transform(values: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """Returns the transform of signed and padded rows, float32."""
    padded = torch.zeros(
        values.shape[0], padded_length(values.shape[1]), dtype=torch.float32, device=values.device
    )
    torch.mul(values, signs, out=padded[:, : values.shape[1]])
    return walsh_hadamard(padded)


def _signs_at(column: torch.Tensor, size: int) -> torch.Tensor:
    """Returns the first `size` entries of a column of the Hadamard matrix."""
    return _parity_signs(torch.arange(size) & column).float()


def _parity_signs(numbers: torch.Tensor) -> torch.Tensor:
    """Returns -1 where a number has an odd count of ones, else +1."""
    for shift in (32, 16, 8, 4, 2, 1):
        numbers = numbers ^ (numbers >> shift)
    return 1 - 2 * (numbers & 1)
