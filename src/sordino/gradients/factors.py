"""Per-record gradients of a matrix as factors: norms and inner products without the matrix.

The gradient of one record with respect to a weight is a sum of outer products, one a token: of the
layer's output gradient and its input, or of a one-hot row and the output gradient of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENTRIES_AT_ONCE = 2**22


@dataclass(frozen=True)
class Spans:
    """Which rows belong to which record: those of record b are offsets[b] to offsets[b + 1]."""

    offsets: tuple[int, ...]

    @classmethod
    def even(cls, num_records: int, length: int) -> Spans:
        """Returns spans of equal length."""
        return cls(tuple(length * b for b in range(num_records + 1)))

    @classmethod
    def of(cls, records: torch.Tensor, num_records: int) -> Spans:
        """Returns the spans of rows in ascending order of their records."""
        counts = torch.bincount(records, minlength=num_records)
        if len(counts) != num_records or bool((records.diff() < 0).any()):
            raise ValueError("rows must be in ascending order of their records.")
        return cls((0, *counts.cumsum(0).tolist()))

    @cached_property
    def length(self) -> int | None:
        """The number of rows of every record; None if they differ."""
        lengths = {stop - start for start, stop in self}
        return lengths.pop() if len(lengths) == 1 else None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self.offsets, self.offsets[1:], strict=False))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Returns sums over each record's rows, (num_rows, ...) -> (num_records, ...), float32."""
        if self.length is not None:
            rows = values.reshape(len(self), self.length, *values.shape[1:])
            return rows.sum(dim=1, dtype=torch.float32)
        return torch.stack([values[a:b].sum(dim=0, dtype=torch.float32) for a, b in self])

    def merged(self, groups: Spans) -> Spans:
        """Returns the spans of groups of adjacent records; `groups` counts records."""
        return Spans(tuple(self.offsets[record] for record in groups.offsets))

    def parts(self, rows_at_once: int) -> Iterator[tuple[slice, slice, Spans]]:
        """Yields records and rows in parts of about a size: as (records, rows, spans within).

        A record longer than a part comes in several parts.
        """
        first = 0
        while first < len(self):
            last = first + 1
            start = self.offsets[first]
            while last < len(self) and self.offsets[last + 1] - start <= rows_at_once:
                last += 1
            stop = self.offsets[last]
            if stop - start > rows_at_once:
                for piece in range(start, stop, rows_at_once):
                    end = min(piece + rows_at_once, stop)
                    yield slice(first, last), slice(piece, end), Spans((0, end - piece))
            else:
                within = tuple(offset - start for offset in self.offsets[first : last + 1])
                yield slice(first, last), slice(start, stop), Spans(within)
            first = last


@dataclass(frozen=True, eq=False)
class Left:
    """The left factors of N outer products: rows of length `size`, whole or in part.

    Args:
        values: Shape (N, size); or (N, num_columns), at `columns`; or None: one-hot rows.
        columns: None; or the columns of `values`, shape (num_columns,), distinct or adding up; or
            the place of each row's one, shape (N,).
    """

    values: torch.Tensor | None
    columns: torch.Tensor | None = None

    def __getitem__(self, rows: slice) -> Left:
        if self.values is not None:
            return Left(self.values[rows], self.columns)
        return Left(None, None if self.columns is None else self.columns[rows])

    def at(self, columns: torch.Tensor) -> torch.Tensor:
        """Returns the entries at some columns, shape (N, num_columns)."""
        if self.columns is None:
            return _known(self.values)[:, columns]
        is_same = (self.columns[:, None] == columns).float()
        return is_same if self.values is None else self.values @ is_same

    def products(self, other: Left) -> torch.Tensor:
        """Returns all inner products, shape (N, N of the other)."""
        if other.columns is None:
            if self.columns is None:
                return _known(self.values) @ _known(other.values).T
            return other.products(self).T
        found = self.at(other.columns)
        return found if other.values is None else found @ other.values.T

    def restricted(self, columns: torch.Tensor) -> Left:
        """Returns the part of whole rows that products with rows within `columns` need."""
        if self.columns is not None:
            return self
        distinct = columns.unique()
        return Left(_known(self.values)[:, distinct], distinct)


@dataclass(frozen=True, eq=False)
class Factors:
    """Per-record gradients of a matrix by one of its uses: sums of outer products over spans.

    Args:
        left: Left factors, N rows; float32, or bfloat16 for a sink that keeps that.
        right: Right factors, shape (N, columns of the matrix), of the same type.
        spans: Which of the N rows belong to which record.
    """

    left: Left
    right: torch.Tensor
    spans: Spans

    def squared_norms(self) -> torch.Tensor:
        """Returns each record's squared Frobenius norm, shape (num_records,), float64."""
        values, length = self.left.values, self.spans.length
        if length is None or (values is not None and self.left.columns is not None):
            return self.products(self)
        right = self.right.reshape(len(self.spans), length, -1)
        if values is None:
            places = _known(self.left.columns).reshape(len(self.spans), length)
            products = (places[:, :, None] == places[:, None, :]).float()
            return (products * (right @ right.mT)).sum(dim=(1, 2)).double()
        left = values.reshape(len(self.spans), length, -1)
        size, width = left.shape[2], right.shape[2]
        if length * (size + width) <= size * width:
            return ((left @ left.mT) * (right @ right.mT)).sum(dim=(1, 2)).double()
        at_once = max(1, _ENTRIES_AT_ONCE // (size * width))
        pairs = zip(left.split(at_once), right.split(at_once), strict=True)
        return torch.cat([(a.mT @ b).square().sum(dim=(1, 2)) for a, b in pairs]).double()

    def products(self, other: Factors) -> torch.Tensor:
        """Returns each record's inner product of two uses' gradients, (num_records,), float64."""
        result = []
        for (start, stop), (start_2, stop_2) in zip(self.spans, other.spans, strict=True):
            rows, rows_2 = slice(start, stop), slice(start_2, stop_2)
            left = self.left[rows].products(other.left[rows_2])
            result.append((left * (self.right[rows] @ other.right[rows_2].T)).sum().double())
        return torch.stack(result)

    def materialised(self, num_rows: int) -> torch.Tensor:
        """Returns the gradients themselves, shape (num_records, num_rows, columns)."""
        width = self.right.shape[1]
        values, length = self.left.values, self.spans.length
        if values is not None and self.left.columns is None and length is not None:
            left = values.reshape(len(self.spans), length, -1)
            return left.mT @ self.right.reshape(len(self.spans), length, width)
        result = self.right.new_zeros(len(self.spans), num_rows, width)
        for total, (start, stop) in zip(result, self.spans, strict=True):
            part, right = self.left[slice(start, stop)], self.right[start:stop]
            added = right if part.values is None else part.values.T @ right
            if part.columns is None:
                total.add_(added)
            else:
                total.index_add_(0, part.columns, added)
        return result


def _known(values: torch.Tensor | None) -> torch.Tensor:
    """Returns values that a `Left` of this kind always has."""
    if values is None:
        raise TypeError("a left factor needs values or columns.")
    return values
