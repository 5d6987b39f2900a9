"""Norms and weighted sums of gradients from one backward pass: nothing is differentiated twice.

Layer by layer the backward pass leaves the factors of each unit's gradient (output gradients and
inputs, token by token). Their norms are taken at once; when all norms are known, the same factors
are contracted, each unit's with its own weight. A unit is a record, or several adjacent ones.

Rounding is accounted for. Norms come with an upper bound that covers the arithmetic below, and in
bfloat16 a unit's gradient is formed alone, measured or bounded, and scaled and added in float32: no
unit's contribution is rounded together with another's.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import torch

from sordino.gradients.factors import Factors, Left, Spans
from sordino.gradients.uses import AbstractGradientSink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from sordino.gradients.uses import UseWatcher

# Contributions stay below the clip norm by so much. A unit's gradient of a matrix, formed in
# bfloat16, is rounded by up to 2**-8 of each entry; the rest is for scaling and adding in float32.
MARGIN_BFLOAT16 = 2.0**-8 + 2.0**-12
MARGIN_FLOAT32 = 2.0**-14
_ROUNDING = 2.0**-24  # of float32
# Inner products of n numbers err by about sqrt(n) roundings of the product of norms; taken 4-fold.
# (A worst case, n roundings, is not met by any order of summation that a processor uses.)
_CERTAINTY = 4.0
_OF_SUMS = 2.0**-18  # relative error of a sum of squares, many times what PyTorch's sums have
_OF_BFLOAT16_PRODUCTS = 2.0**-7 + 2.0**-12  # two matrices of inner products, rounded to bfloat16
_FEWEST_ROWS = 16  # a unit; below, one float32 product of all units is faster than many small ones
_ENTRIES_AT_ONCE = 2**22
_ENTRIES_IN_CACHE = 2**20  # of a block of a total, which then passes by all units

# What one use gives: each unit's squared norm; what the rounding of entries may hide of it; its
# magnitude, the sum of the norms of its outer products; and the rounding of inner products relative
# to squared magnitudes. Float64.
_Norms: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]


class BookKeeping(AbstractGradientSink):
    """Squared norms of every unit's gradient, and then their weighted sum.

    Args:
        watcher: Runs the pass that this sink receives.
        tensors: Trainable parameters by name.
        groups: Which adjacent records make a unit.
        on_complete: Called with the name of a matrix as soon as all its uses have come, in the
            backward pass; small tensors come after it. None: nothing is done early.
    """

    keeps_bfloat16 = True

    def __init__(
        self,
        watcher: UseWatcher,
        tensors: Mapping[str, torch.nn.Parameter],
        groups: Spans,
        on_complete: Callable[[str], None] | None = None,
    ) -> None:
        self._watcher = watcher
        self._tensors = tensors
        self._groups = groups
        self._on_complete = on_complete
        self.matrices: dict[str, MatrixGradients] = {}
        self.vectors: dict[str, torch.Tensor] = {}  # gradients small enough to be formed

    def add_factors(self, name: str, number: int, factors: Factors) -> None:  # noqa: ARG002
        """Takes one use of a matrix."""
        num_uses = len(self._watcher.supports[name])
        found = self.matrices.setdefault(name, MatrixGradients(len(self._groups)))
        found.add(
            Factors(factors.left, factors.right, factors.spans.merged(self._groups)),
            is_only=num_uses == 1,
        )
        if found.num_uses == num_uses and self._on_complete is not None:
            self._on_complete(name)

    def add_values(self, name: str, values: torch.Tensor) -> None:
        """Adds up a small tensor's gradients."""
        values = self._groups.sum(values)
        found = self.vectors.get(name)
        self.vectors[name] = values if found is None else found + values

    def squared_norms(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Returns each unit's squared norm of one tensor and an upper bound on it, float64.

        None if the tensor was not used.
        """
        matrix, vector = self.matrices.get(name), self.vectors.get(name)
        if matrix is not None:
            return matrix.squared_norms, matrix.squared_norms_upper
        if vector is not None:
            squared_norms = vector.double().square().sum(dim=1)
            return squared_norms, squared_norms * (1.0 + _OF_SUMS)
        return None

    def add_weighted(self, name: str, total: torch.Tensor, weights: torch.Tensor) -> None:
        """Adds a tensor's gradients, weighted by unit, to a float32 `total` and forgets them."""
        matrix, vector = self.matrices.pop(name, None), self.vectors.pop(name, None)
        if matrix is not None:
            matrix.add_weighted(total, weights)
        if vector is not None:
            total.view(-1).add_(weights @ vector)


class MatrixGradients:
    """Every unit's gradient of one matrix, by all its uses: as factors, or formed where smaller.

    Args:
        num_units: Number of units.
    """

    def __init__(self, num_units: int) -> None:
        self.num_uses = 0
        self._num_units = num_units
        self._kept: list[Factors] = []
        self._formed: torch.Tensor | None = None
        self._squared_norms: list[torch.Tensor] = []
        self._slack: list[torch.Tensor] = []  # of products rounded to bfloat16, and of sums
        self._magnitudes: list[torch.Tensor] = []  # sums of norms of outer products
        self._rounding = 0.0  # of inner products, relative to squares of magnitudes

    @property
    def squared_norms(self) -> torch.Tensor:
        """Each unit's squared norm, float64; a difference of rounded products can be below 0."""
        return torch.stack(self._squared_norms).sum(dim=0)

    @property
    def squared_norms_upper(self) -> torch.Tensor:
        """An upper bound on the squared norms of what `add_weighted` adds at weight 1."""
        slack = torch.stack(self._slack).sum(dim=0)
        magnitudes = torch.stack(self._magnitudes).sum(dim=0)
        # NaN stays NaN
        return self.squared_norms.clamp_min(0.0) + slack + self._rounding * magnitudes.square()

    def add(self, factors: Factors, *, is_only: bool) -> None:
        """Takes one use; `is_only` promises that no other comes."""
        self.num_uses += 1
        if is_only and _is_smaller_formed(factors):
            self._formed = _formed(factors)
            found = _square_sums(self._formed)
            self._note(found, found * _OF_SUMS, torch.zeros_like(found), 0.0)
            return
        if factors.left.columns is None:
            self._note(*_dense_norms(factors))
        elif factors.left.values is None:
            self._note(*_one_hot_norms(factors))
        else:
            self._note(*_partial_norms(factors))
        for other in self._kept:
            self._squared_norms.append(2.0 * _products(factors, other))
        self._kept.append(factors)

    def _note(
        self, squared: torch.Tensor, slack: torch.Tensor, magnitudes: torch.Tensor, rounding: float
    ) -> None:
        """Adds what one use alone gives; see `_Norms`."""
        self._squared_norms.append(squared)
        self._slack.append(slack)
        self._magnitudes.append(magnitudes)
        self._rounding = max(self._rounding, rounding)

    def add_weighted(self, total: torch.Tensor, weights: torch.Tensor) -> None:
        """Adds the gradients, weighted by unit, to `total`, shape of the matrix, float32.

        Args:
            total: Added to in place.
            weights: Shape (num_units,), float32.
        """
        if self._formed is not None:
            if self._formed.dtype == torch.float32:
                total.view(-1).add_(weights @ self._formed.view(self._num_units, -1))
            else:
                _add_each(total, self._formed, weights)
            return
        for factors in self._kept:
            _add_weighted(factors, total, weights)


def _is_smaller_formed(factors: Factors) -> bool:
    """Returns whether gradients are cheaper than their factors: to measure, and to keep."""
    values = factors.left.values
    if values is None or factors.left.columns is not None:
        return False
    rows, columns = values.shape[1], factors.right.shape[1]
    return len(values) * (rows + columns) >= len(factors.spans) * rows * columns


def _formed(factors: Factors) -> torch.Tensor:
    """Returns each unit's gradient, shape (num_units, rows, columns), in the factors' type."""
    left, right, spans = factors.left.values, factors.right, factors.spans
    if left is None:
        raise TypeError("only dense factors are formed.")
    if spans.length is not None:
        a = left.reshape(len(spans), spans.length, -1)
        return torch.bmm(a.mT, right.reshape(len(spans), spans.length, -1))
    result = right.new_empty(len(spans), left.shape[1], right.shape[1])
    for out, (start, stop) in zip(result, spans, strict=True):
        torch.mm(left[start:stop].T, right[start:stop], out=out)
    return result


def _square_sums(gradients: torch.Tensor) -> torch.Tensor:
    """Returns each unit's sum of squares, (num_units, ...) -> (num_units,), float64."""
    # by rows: one long float32 sum of squares would lose digits
    norms = torch.linalg.vector_norm(gradients, dim=-1, dtype=torch.float32)
    return norms.double().square().reshape(len(gradients), -1).sum(dim=1)


def _dense_norms(factors: Factors) -> _Norms:
    """Returns squared norms, slack and magnitudes by inner products of rows, token by token."""
    left, right, spans = _values(factors), factors.right, factors.spans
    relative = _OF_SUMS + (_OF_BFLOAT16_PRODUCTS if left.dtype == torch.bfloat16 else 0.0)
    if spans.length is None:
        parts = [_inner(left[a:b][None], right[a:b][None]) for a, b in spans]
    else:
        at_once = max(1, _ENTRIES_AT_ONCE // max(1, spans.length**2))
        lefts = left.reshape(len(spans), spans.length, -1).split(at_once)
        rights = right.reshape(len(spans), spans.length, -1).split(at_once)
        parts = [_inner(a, b) for a, b in zip(lefts, rights, strict=True)]
    squared, absolute, magnitudes = (
        torch.cat(values).double() for values in zip(*parts, strict=True)
    )
    rounding = _rounding(spans, left.shape[1], right.shape[1])
    return squared, relative * absolute, magnitudes, rounding


def _rounding(spans: Spans, rows: int, columns: int) -> float:
    """Returns what rounding does to squared norms of products over rows, columns and tokens."""
    longest = max((stop - start for start, stop in spans), default=1)
    # tokens count twice: they are summed when gradients are contracted, too
    return _CERTAINTY * _ROUNDING * (rows**0.5 + columns**0.5 + 2.0 * longest**0.5)


def _inner(
    left: torch.Tensor, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns, for (U, T, a) and (U, T, b): <l l^T, r r^T>, the same of absolutes, magnitudes."""
    products = (left @ left.mT).float().mul_(right @ right.mT)
    magnitudes = products.diagonal(dim1=1, dim2=2).sqrt().sum(dim=1)
    return products.sum(dim=(1, 2)), products.abs_().sum(dim=(1, 2)), magnitudes


def _one_hot_norms(factors: Factors) -> _Norms:
    """Returns the same for looked-up rows: those of one place and unit are summed first."""
    right, units = factors.right.float(), _units(factors)
    places = _columns(factors)
    keys = units * (int(places.max()) + 1 if len(places) else 1) + places
    distinct, where = keys.unique(return_inverse=True)
    sums = right.new_zeros(len(distinct), right.shape[1]).index_add_(0, where, right)
    owners = units.new_zeros(len(distinct)).scatter_(0, where, units)
    zeros = torch.zeros(len(factors.spans), dtype=torch.float64, device=right.device)
    squared = zeros.index_add(0, owners, sums.double().square().sum(dim=1))
    magnitudes = zeros.index_add(0, units, right.double().norm(dim=1))
    return squared, squared * _OF_SUMS, magnitudes, _rounding(factors.spans, 1, right.shape[1])


def _partial_norms(factors: Factors) -> _Norms:
    """Returns the same for a few rows of a matrix, such as those of the label words."""
    left, right = _values(factors).float(), factors.right.float()
    columns, inverse = _columns(factors).unique(return_inverse=True)
    left = left.new_zeros(len(left), len(columns)).index_add_(1, inverse, left)
    formed = _formed(Factors(Left(left), right, factors.spans))
    squared = _square_sums(formed)
    magnitudes = factors.spans.sum(left.norm(dim=1) * right.norm(dim=1)).double()
    return squared, squared * _OF_SUMS, magnitudes, _rounding(factors.spans, 1, right.shape[1])


def _products(one: Factors, other: Factors) -> torch.Tensor:
    """Returns each unit's inner product of two uses' gradients, float64."""
    if one.left.columns is None and other.left.columns is not None:
        return _products(other, one)
    result = []
    for (a, b), (c, d) in zip(one.spans, other.spans, strict=True):
        left, left_2 = one.left[slice(a, b)], other.left[slice(c, d)]
        if left.columns is not None and left_2.columns is None:  # few columns of a wide matrix
            distinct, inverse = left.columns.unique(return_inverse=True)
            left = Left(None if left.values is None else left.values.float(), inverse)
            left_2 = Left(_known(left_2.values)[:, distinct].float())
        else:
            left, left_2 = _in_float32(left), _in_float32(left_2)
        inner = one.right[a:b].float() @ other.right[c:d].float().T
        result.append((left.products(left_2) * inner).sum().double())
    return torch.stack(result)


def _add_weighted(factors: Factors, total: torch.Tensor, weights: torch.Tensor) -> None:
    """Adds the gradients of one use, weighted by unit, to `total`."""
    left, right, spans = factors.left, factors.right, factors.spans
    if (
        left.values is not None
        and left.columns is None
        and left.values.dtype == torch.bfloat16
        and right.device.type == "cpu"  # elsewhere launching a product per unit takes longer
        and len(right) > _FEWEST_ROWS * len(spans)
    ):
        for some, values in _blocks(total, left.values, _ENTRIES_IN_CACHE // right.shape[1]):
            gradient = right.new_empty(some.shape)  # the same memory for all units
            products = (
                torch.mm(values[start:stop].T, right[start:stop], out=gradient)
                for start, stop in spans
            )
            _add_each(some, products, weights)
        return
    weighted = right.float() * weights[_units(factors)][:, None]
    if left.values is None:
        total.index_add_(0, _columns(factors), weighted)
    elif left.columns is not None:
        total.index_add_(0, left.columns, left.values.float().T @ weighted)
    else:
        for some, values in _blocks(total, left.values, _ENTRIES_AT_ONCE // max(1, len(right))):
            some.addmm_(values.float().T, weighted)


def _blocks(
    total: torch.Tensor, left: torch.Tensor, num_rows: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Returns so many rows of a total at a time, with the columns of a left factor they need."""
    num_rows = max(1, num_rows)
    return zip(total.split(num_rows), left.split(num_rows, dim=1), strict=True)


def _add_each(
    total: torch.Tensor, gradients: Iterable[torch.Tensor], weights: torch.Tensor
) -> None:
    """Adds bfloat16 gradients one after the other, weighted in float32."""
    widened = torch.empty_like(total)
    for gradient, weight in zip(gradients, weights.tolist(), strict=True):
        total.add_(widened.copy_(gradient), alpha=weight)


def _units(factors: Factors) -> torch.Tensor:
    """Returns the unit of each row."""
    counts = torch.tensor([b - a for a, b in pairwise(factors.spans.offsets)])
    units = torch.arange(len(factors.spans)).repeat_interleave(counts)
    return units.to(factors.right.device)


def _values(factors: Factors) -> torch.Tensor:
    return _known(factors.left.values)


def _columns(factors: Factors) -> torch.Tensor:
    return _known(factors.left.columns)


def _known(values: torch.Tensor | None) -> torch.Tensor:
    """Returns values that a left factor of this kind always has."""
    if values is None:
        raise TypeError("a left factor needs values or columns.")
    return values


def _in_float32(left: Left) -> Left:
    """Returns a left factor in float32."""
    return Left(None if left.values is None else left.values.float(), left.columns)
