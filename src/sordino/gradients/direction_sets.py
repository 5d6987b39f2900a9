"""The public directions of a step over a flat set of tensors: project on them, add them up."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from sordino.core.checks import require_integer, require_one_of
from sordino.core.directions import (
    DIRECTION_KINDS,
    DirectionStream,
    public_permutation,
    public_signs,
)
from sordino.core.errors import InvalidParameterError
from sordino.gradients.hadamard import padded_length, walsh_hadamard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

ALL_DIRECTION_KINDS = (*DIRECTION_KINDS, "hadamard", "coordinates", "kronecker")
_MAX_GAUSSIAN = 4.4  # largest of the 65,536 levels
_DIRECTIONS_AT_ONCE = 32
_LARGEST_HADAMARD = 2**24


class AbstractDirectionSet(ABC):
    """K public directions a step over tensors of fixed names and sizes."""

    num_directions: int
    unit: float  # value of the integer 1 in a direction
    max_norm: float  # upper bound on a direction's Euclidean norm

    @abstractmethod
    def direction(self, step: int, index: int) -> NDArray[np.int16]:
        """Returns one direction over all tensors, flat, as int8 or int16 multiples of `unit`."""

    @abstractmethod
    def project(self, step: int, gradients: torch.Tensor) -> torch.Tensor:
        """Returns directional derivatives.

        Args:
            step: Step number.
            gradients: Flat gradients, shape (batch_size, num_params), float32.

        Returns:
            Shape (batch_size, num_directions), float32; `unit` is already multiplied in.
        """

    @abstractmethod
    def combine(self, step: int, weights: NDArray[np.int32]) -> NDArray[np.float64]:
        """Returns sum_k weights[k] * direction_k as whole numbers, shape (num_params,), exact."""


@dataclass(frozen=True)
class IndependentDirections(AbstractDirectionSet):
    """Independent Rademacher or Gaussian directions, made tensor by tensor."""

    stream: DirectionStream
    sizes: Mapping[str, int]
    num_directions: int

    @property
    def unit(self) -> float:  # type: ignore[override]
        """Value of the integer 1."""
        return self.stream.unit

    @property
    def max_norm(self) -> float:  # type: ignore[override]
        """Upper bound on a direction's Euclidean norm."""
        largest = _MAX_GAUSSIAN if self.stream.kind == "gaussian" else 1.0
        return largest * math.sqrt(sum(self.sizes.values()))

    def direction(self, step: int, index: int) -> NDArray[np.int16]:
        """Returns one direction over all tensors, flat."""
        parts = [self.stream.integers(step, index, name, size) for name, size in self.sizes.items()]
        return np.concatenate(parts)

    def project(self, step: int, gradients: torch.Tensor) -> torch.Tensor:
        """Returns directional derivatives, a block of directions at a time."""
        columns = []
        for first in range(0, self.num_directions, _DIRECTIONS_AT_ONCE):
            block = self._block(step, first)
            directions = torch.from_numpy(block).to(gradients.device, torch.float32)
            columns.append(gradients @ directions.T)
        return torch.cat(columns, dim=1) * self.unit

    def combine(self, step: int, weights: NDArray[np.int32]) -> NDArray[np.float64]:
        """Returns the weighted sum of all directions, exact."""
        total = np.zeros(sum(self.sizes.values()))
        for first in range(0, self.num_directions, _DIRECTIONS_AT_ONCE):
            block = self._block(step, first).astype(np.float64)
            total += weights[first : first + len(block)].astype(np.float64) @ block
        return total

    def _block(self, step: int, first: int) -> NDArray[np.int16]:
        """Returns up to 32 directions, shape (count, num_params)."""
        last = min(first + _DIRECTIONS_AT_ONCE, self.num_directions)
        return np.stack([self.direction(step, k) for k in range(first, last)])


@dataclass(frozen=True)
class HadamardDirections(AbstractDirectionSet):
    """Orthogonal Rademacher directions for the price of a few: z_k[i] = s[i] * H[r_k, i mod L].

    L is the padded number of directions, H the Hadamard matrix of that order, s public signs and
    r_k distinct public rows, both new at every step. Coordinates L apart share an entry of H and
    differ in their own signs, so a projection is one signed sum of chunks and one transform of
    length L, whatever the number of trainable numbers.
    """

    seed: int
    sizes: Mapping[str, int]
    num_directions: int
    unit: float = 1.0

    def __post_init__(self) -> None:
        if self._num_params > _LARGEST_HADAMARD:
            raise InvalidParameterError(
                f"Hadamard directions cover up to {_LARGEST_HADAMARD} trainable numbers, found "
                f"{self._num_params}. Train an adapter, or use direction_kind rademacher."
            )
        require_integer(
            "directions_per_step", self.num_directions, 1, padded_length(self._num_params)
        )

    @property
    def max_norm(self) -> float:  # type: ignore[override]
        """Euclidean norm of every direction."""
        return math.sqrt(self._num_params)

    @property
    def _num_params(self) -> int:
        return sum(self.sizes.values())

    @property
    def _length(self) -> int:
        return padded_length(self.num_directions)

    def direction(self, step: int, index: int) -> NDArray[np.int16]:
        """Returns one direction over all tensors, flat."""
        weights = np.zeros(self.num_directions, dtype=np.int32)
        weights[index] = 1
        return self.combine(step, weights).astype(np.int16)

    def project(self, step: int, gradients: torch.Tensor) -> torch.Tensor:
        """Returns all directional derivatives: signed chunks added up, then one transform."""
        signs, rows = self._public(step)
        signs = signs.to(gradients)
        folded = gradients.new_zeros(gradients.shape[0], self._length)
        for start in range(0, self._num_params, self._length):
            chunk = gradients[:, start : start + self._length]
            folded[:, : chunk.shape[1]].addcmul_(chunk, signs[start : start + self._length])
        return walsh_hadamard(folded)[:, rows.to(gradients.device)]

    def combine(self, step: int, weights: NDArray[np.int32]) -> NDArray[np.float64]:
        """Returns the weighted sum of all directions by one transform, exact."""
        signs, rows = self._public(step)
        spread = torch.zeros(1, self._length, dtype=torch.float64)
        spread[0, rows] = torch.from_numpy(weights.astype(np.float64))
        whole = walsh_hadamard(spread)[0]
        num_chunks = -(-self._num_params // self._length)
        return (whole.repeat(num_chunks)[: self._num_params] * signs).numpy()

    def _public(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the step's random signs and the rows of the Hadamard matrix that it uses."""
        return _signs_and_rows(self.seed, step, self._num_params, self._length, self.num_directions)


@lru_cache(maxsize=2)
def _signs_and_rows(
    seed: int, step: int, num_params: int, length: int, num_rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns public signs, shape (num_params,), and distinct row numbers, shape (num_rows,)."""
    signs = public_signs(seed, "hadamard-signs", str(step), num_params)
    rows = public_permutation(seed, "hadamard-rows", str(step), length)[:num_rows]
    return torch.from_numpy(signs.copy()), torch.from_numpy(rows.copy())


@dataclass(frozen=True)
class CoordinateDirections(AbstractDirectionSet):
    """Single trainable numbers, chosen anew at every step; all of them where K is their number."""

    seed: int
    sizes: Mapping[str, int]
    num_directions: int
    unit: float = 1.0
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        require_integer("directions_per_step", self.num_directions, 1, self._num_params)

    @property
    def _num_params(self) -> int:
        return sum(self.sizes.values())

    def direction(self, step: int, index: int) -> NDArray[np.int16]:
        """Returns one direction over all tensors, flat."""
        whole = np.zeros(self._num_params, dtype=np.int16)
        whole[self._chosen(step)[index]] = 1
        return whole

    def project(self, step: int, gradients: torch.Tensor) -> torch.Tensor:
        """Returns the chosen entries."""
        return gradients[:, torch.from_numpy(self._chosen(step)).to(gradients.device)]

    def combine(self, step: int, weights: NDArray[np.int32]) -> NDArray[np.float64]:
        """Returns the weights in their places."""
        total = np.zeros(self._num_params)
        total[self._chosen(step)] = weights
        return total

    def _chosen(self, step: int) -> NDArray[np.int64]:
        """Returns which numbers the step's directions are, shape (num_directions,)."""
        return _permutation(self.seed, step, self._num_params)[: self.num_directions]


@lru_cache(maxsize=2)
def _permutation(seed: int, step: int, num_params: int) -> NDArray[np.int64]:
    """Returns the public order of the trainable numbers at one step."""
    return public_permutation(seed, "coordinates", str(step), num_params)


def make_direction_set(
    kind: str, seed: int, shapes: Mapping[str, int | Sequence[int]], num_directions: int
) -> AbstractDirectionSet:
    """Returns the direction set of the given kind.

    Args:
        kind: One of `ALL_DIRECTION_KINDS`.
        seed: Public seed.
        shapes: Shapes of the trainable tensors by name; a number stands for a vector.
        num_directions: K.
    """
    from sordino.gradients.kronecker import KroneckerDirections  # it implements this interface

    require_one_of("direction_kind", kind, ALL_DIRECTION_KINDS)
    require_integer("directions_per_step", num_directions, 1)
    known = {n: (shape,) if isinstance(shape, int) else tuple(shape) for n, shape in shapes.items()}
    if kind == "kronecker":
        return KroneckerDirections(seed, known, num_directions)
    sizes = {name: math.prod(shape) for name, shape in known.items()}
    if kind == "coordinates":
        return CoordinateDirections(seed, sizes, num_directions)
    if kind == "hadamard":
        return HadamardDirections(seed, sizes, num_directions)
    return IndependentDirections(DirectionStream(seed, kind), sizes, num_directions)
