"""The ghost estimator: every record's derivatives along K directions for a whole model.

Per-record gradients of a whole model are as large as the model, each. Here none is ever formed:
layer by layer, during the backward pass, the factors of the gradients (output gradients and inputs,
token by token) give squared norms and projections, and are dropped.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from sordino.core.checks import require_positive
from sordino.core.errors import InvalidParameterError
from sordino.gradients.estimators import AbstractEstimator
from sordino.gradients.hadamard import padded_length
from sordino.gradients.kronecker import KroneckerDirections, matrix_shape
from sordino.gradients.objectives import require_differentiable
from sordino.gradients.uses import AbstractGradientSink, UseWatcher

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sordino.gradients.factors import Factors
    from sordino.gradients.objectives import AbstractObjective, LanguageModel

_ENTRIES_AT_ONCE = 2**20  # of a layer's projections; larger is slower on processors
_ENTRIES_AT_ONCE_ON_DEVICE = 2**25
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


class GhostEstimator(AbstractEstimator):
    """Exact directional derivatives of clipped gradients, in memory of one layer's activations.

    Clipping is one factor a record, and a projection is linear, so it is applied last: to K numbers
    a record instead of to a gradient.

    Args:
        model: The language model.
        objective: Differentiable losses per record.
        tensors: Trainable parameters of `model` by name, as it computes with them.
        directions: Public directions over the same names.
        clip: Largest Euclidean norm of one record's gradient.

    Raises:
        InvalidParameterError: If a tensor belongs to a module that is not covered, or the
            directions are of another kind.

    Source:
        Ghost norms: arXiv:2205.10683v3 (mixed by cost, layer by layer); projecting on directions of
        rank one, instead of weighting a second backward pass, is ours.
    """

    def __init__(
        self,
        model: LanguageModel,
        objective: AbstractObjective,
        tensors: Mapping[str, torch.nn.Parameter],
        directions: object,
        *,
        clip: float,
    ) -> None:
        require_differentiable(objective)
        if not isinstance(directions, KroneckerDirections):
            raise InvalidParameterError(
                "first order on all weights projects on directions of rank one: use direction_kind "
                "kronecker."
            )
        config = model.causal_lm.config
        if any(getattr(config, name, None) for name in _EXPERTS):
            raise InvalidParameterError(
                "first order on all weights does not cover mixtures of experts, whose layers see "
                "tokens of many records. Use --adapter lora, or --estimator zeroth-order."
            )
        self._model = model
        self._objective = objective
        self._directions = directions
        self._clip = require_positive("clip", clip)
        self.bound = self._clip * directions.max_norm
        self._watcher = UseWatcher(model.causal_lm, tensors)

    def contributions(
        self, step: int, batches: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Yields projections of clipped per-record gradients."""
        for batch in batches:
            squared_norms, projections = self.measure(step, batch)
            norms = squared_norms.sqrt()
            factors = (self._clip / norms.clamp_min(1e-30)).clamp_max(1.0)
            # an overflow must not turn into a contribution of 0: NaN is refused when summed
            factors = factors.where(norms.isfinite(), math.nan)
            yield batch, (projections.double() * factors[:, None]).cpu()

    def measure(self, step: int, records: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns squared norms and unclipped projections of every record's gradient.

        Returns:
            Shapes (batch_size,), float64, and (batch_size, num_directions), float32.
        """
        sums = _Sums(self._directions, step, len(records), self._model.device, self._watcher)
        self._watcher.run(lambda: self._objective.losses(self._model, records), len(records), sums)
        return sums.finish()


class _Sums(AbstractGradientSink):
    """Squared norms and projections, added up use by use."""

    def __init__(
        self,
        directions: KroneckerDirections,
        step: int,
        num_records: int,
        device: torch.device,
        watcher: UseWatcher,
    ) -> None:
        self._directions = directions
        self._step = step
        self._watcher = watcher
        self._squared_norms = torch.zeros(num_records, dtype=torch.float64, device=device)
        self._projections = torch.zeros(num_records, directions.num_directions, device=device)
        self._vectors: dict[str, torch.Tensor] = {}  # gradients small enough to be formed
        self._kept: dict[str, list[Factors]] = {}  # of matrices used more than once

    def add_factors(self, name: str, number: int, factors: Factors) -> None:
        """Adds a use of a matrix, with its inner products with the uses before."""
        self._project(name, factors)
        self._squared_norms += factors.squared_norms()
        supports = self._watcher.supports[name]
        if len(supports) == 1:
            return
        kept = self._kept.setdefault(name, [])
        for other in kept:
            self._squared_norms += 2.0 * factors.products(other)
        others = [rows for i, rows in enumerate(supports) if i != number and rows is not None]
        if len(others) == len(supports) - 1:  # a tied head meets an embedding: few rows matter
            factors = replace(factors, left=factors.left.restricted(torch.cat(others)))
        kept.append(factors)

    def add_values(self, name: str, values: torch.Tensor) -> None:
        """Adds up a small tensor's gradients."""
        found = self._vectors.get(name)
        self._vectors[name] = values if found is None else found + values

    def _project(self, name: str, factors: Factors) -> None:
        """Adds the projections of one use, some rows at a time."""
        directions, step = self._directions, self._step
        left, right = factors.left, factors.right
        shape = matrix_shape(directions.shapes[name])
        widest = max(directions.num_directions, padded_length(shape[1]))
        if left.columns is None:
            widest = max(widest, padded_length(shape[0]))
        is_cpu = right.device.type == "cpu"
        at_once = (_ENTRIES_AT_ONCE if is_cpu else _ENTRIES_AT_ONCE_ON_DEVICE) // widest
        part_at = None
        if left.values is not None and left.columns is not None:
            part_at = directions.left_at(step, name, left.columns)
        for records, rows, spans in factors.spans.parts(max(1, at_once)):
            values = left[rows].values
            if part_at is not None and values is not None:
                products = values @ part_at
            elif values is not None:
                products = directions.left(step, name, values)
            else:
                products = directions.left_at(step, name, left.columns[rows])  # type: ignore[index]
            products *= directions.right(step, name, right[rows])
            self._projections[records] += spans.sum(products)

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns squared norms and projections over all tensors."""
        for name, values in self._vectors.items():
            self._squared_norms += values.double().square().sum(dim=1)
            self._projections += self._directions.project_tensor(self._step, name, values)
        # differences of rounded products can be below zero; NaN stays NaN
        return self._squared_norms.clamp_min(0.0), self._projections
