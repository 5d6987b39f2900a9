"""Sums of clipped gradients: what DP-SGD releases, before the noise.

A unit is whoever is protected: a record, or a user whose adjacent records are summed first. Each
unit's gradient is scaled to norm at most `clip_norm` and added up; nothing is divided by the number
of units, because that number may be secret. One forward and one backward pass give it all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sordino.core.checks import require_in_range, require_one_of
from sordino.core.errors import InvalidParameterError, PrecisionError
from sordino.gradients.bookkeeping import MARGIN_BFLOAT16, MARGIN_FLOAT32, BookKeeping
from sordino.gradients.factors import Spans
from sordino.gradients.objectives import require_differentiable
from sordino.gradients.per_record import PerRecordGradients
from sordino.gradients.uses import UseWatcher

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sordino.gradients.objectives import AbstractObjective, LanguageModel

CLIPPINGS = ("flat", "per-layer", "automatic")
METHODS = ("auto", "materialised", "book-keeping")
_AUTOMATIC_OFFSET = 0.01
_SMALLEST_NORM = 1e-30
_CLIP_NORMS = (1e-12, 1e12)  # far from where squares of float32 numbers vanish
_LARGEST_EXCESS = 2.0**100  # of a norm over clip_norm; a smaller factor would lose digits
_LARGEST_MATERIALISED = 2**24  # numbers of one record's whole gradient: 64 MiB
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What a batch did.

    Args:
        num_units: Units whose clipped gradients were added. As secret as the sample is.
        is_all_zero: Whether every gradient was exactly zero: if that is so for a whole step, the
            trainable tensors do not reach the losses. A reason to stop, not a metric to publish.
    """

    num_units: int
    is_all_zero: bool


class ClippedGradients:
    """Adds up clipped gradients of units, batch by batch.

    Guarantee:
        A unit adds a vector of Euclidean norm at most `clip_norm` over all tensors together, the
        rounding of its own gradient included, whatever the clipping; so under ADD_OR_REMOVE_ONE the
        sum has l2_sensitivity `clip_norm`. Assumes: all records of a unit come in one batch of a
        step; exact arithmetic where units meet, which is in the float32 running total and in the
        rounding of a layer's products, which may depend on the shape of the batch.

    Args:
        model: The language model.
        objective: Differentiable losses per record.
        tensors: Trainable parameters of `model` by name, as it computes with them.
        clip_norm: Largest Euclidean norm of one unit's contribution; in [1e-12, 1e12].
        clipping: "flat" scales by min(1, clip_norm / norm); "automatic" by clip_norm / (norm +
            0.01); "per-layer" clips each of the L tensors to clip_norm / sqrt(L), inside of the
            backward pass, so that no layer's factors outlive it.
        method: "materialised" forms each record's whole gradient in float32, which is quicker for
            small adapters; "book-keeping" keeps factors, or the gradients of single matrices where
            these are smaller; "auto" chooses, batch by batch.

    Raises:
        InvalidParameterError: If an argument is not allowed or a tensor's module is not covered.

    Source:
        Book-keeping: arXiv:2210.00038. Automatic clipping: arXiv:2206.07136, gamma = 0.01.
        Per-layer, in the backward pass: arXiv:2507.01154; our joint bound is clip_norm.
        Departures: norms are rounded up, and clip_norm down by `clip_margin`.
    """

    def __init__(
        self,
        model: LanguageModel,
        objective: AbstractObjective,
        tensors: Mapping[str, torch.nn.Parameter],
        *,
        clip_norm: float,
        clipping: str = "flat",
        method: str = "auto",
    ) -> None:
        require_differentiable(objective)
        if not tensors:
            raise InvalidParameterError("no trainable tensor: nothing would ever move.")
        self._model = model
        self._objective = objective
        self._tensors = dict(tensors)
        self.clip_norm = require_in_range("clip_norm", clip_norm, *_CLIP_NORMS)
        self._clipping = require_one_of("clipping", clipping, CLIPPINGS)
        self._method = require_one_of("method", method, METHODS)
        _require_no_experts(model, self._tensors)
        self._watcher = UseWatcher(model.causal_lm, self._tensors)
        self._per_record = PerRecordGradients(model.causal_lm, self._tensors, self._watcher)
        is_bfloat16 = any(p.dtype == torch.bfloat16 for p in self._tensors.values())
        self.clip_margin = MARGIN_BFLOAT16 if is_bfloat16 else MARGIN_FLOAT32
        self._num_params = sum(p.numel() for p in self._tensors.values())
        # numbers in the factors of one token, by all matrices used once
        self._factor_size = sum(sum(p.shape) for p in self._tensors.values() if p.ndim > 1)

    def zeros(self) -> dict[str, torch.Tensor]:
        """Returns a new total."""
        return {
            name: torch.zeros(p.shape, dtype=torch.float32, device=p.device)
            for name, p in self._tensors.items()
        }

    def add_batch(
        self,
        total: dict[str, torch.Tensor],
        batch: Sequence[int],
        units: Sequence[int] | None = None,
    ) -> BatchReport:
        """Adds the clipped gradients of a batch's units to `total`.

        Args:
            total: Float32 sums by name, changed in place.
            batch: Numbers of distinct records; none is a batch that adds nothing.
            units: The unit of each record, those of one unit side by side; None: each its own.

        Raises:
            PrecisionError: If a gradient is not finite; `total` is then NaN throughout.
            InvalidParameterError: If arguments do not fit, or the model uses no trainable tensor.
        """
        self._require_total(total)
        groups = group_units(batch, units)
        if not batch:
            return BatchReport(num_units=0, is_all_zero=True)
        self._objective.prepare(self._model, batch)
        try:
            if self._is_materialised(batch):
                is_all_zero = self._add_materialised(total, batch, groups)
            else:
                is_all_zero = self._add_book_keeping(total, batch, groups)
        except PrecisionError:
            for values in total.values():  # part of a sum must not look like one
                values.fill_(math.nan)
            raise
        return BatchReport(num_units=len(groups), is_all_zero=is_all_zero)

    def _is_materialised(self, batch: Sequence[int]) -> bool:
        """Returns whether whole gradients are few numbers, and fewer than their factors."""
        if self._method != "auto":
            return self._method == "materialised"
        if self._num_params > _LARGEST_MATERIALISED:
            return False
        longest = max(self._objective.lengths[record] for record in batch)
        return self._num_params <= longest * self._factor_size

    def _add_materialised(
        self, total: dict[str, torch.Tensor], batch: Sequence[int], groups: Spans
    ) -> bool:
        """Adds a batch by whole gradients; returns whether all were zero."""
        gradients = self._per_record.compute(
            lambda: self._objective.losses(self._model, batch), len(batch)
        )
        if len(groups) < len(batch):
            gradients = groups.sum(gradients)
        parts = dict(
            zip(
                self._tensors,
                gradients.split([p.numel() for p in self._tensors.values()], dim=1),
                strict=True,
            )
        )
        squared = {name: part.double().square().sum(dim=1) for name, part in parts.items()}
        weights = self._weights(squared)
        for name, part in parts.items():
            total[name].view(-1).addmv_(part.T, weights[name])
        return not any(bool(values.any()) for values in squared.values())

    def _add_book_keeping(
        self, total: dict[str, torch.Tensor], batch: Sequence[int], groups: Spans
    ) -> bool:
        """Adds a batch by factors; returns whether all gradients were zero."""
        has_gradient = []

        def finish(names: Sequence[str]) -> None:
            found = {name: books.squared_norms(name) for name in names}
            upper = {name: norms[1] for name, norms in found.items() if norms is not None}
            has_gradient.extend(bool(norms[0].any()) for norms in found.values() if norms)
            for name, weights in self._weights(upper).items():
                books.add_weighted(name, total[name], weights)

        early = (lambda name: finish([name])) if self._clipping == "per-layer" else None
        books = BookKeeping(self._watcher, self._tensors, groups, early)
        self._watcher.run(lambda: self._objective.losses(self._model, batch), len(batch), books)
        finish([*books.matrices, *books.vectors])
        return not any(has_gradient)

    def _weights(self, squared: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns each tensor's weights by unit, float32, from squared norms, float64."""
        if not squared:
            return {}
        clip_norm = self.clip_norm * (1.0 - self.clip_margin)
        if self._clipping == "per-layer":
            clip_norm /= math.sqrt(len(self._tensors))
            return {name: _scale(values, clip_norm) for name, values in squared.items()}
        joint = torch.stack(list(squared.values())).sum(dim=0)
        offset = _AUTOMATIC_OFFSET if self._clipping == "automatic" else None
        weights = _scale(joint, clip_norm, offset)
        return dict.fromkeys(squared, weights)

    def _require_total(self, total: Mapping[str, torch.Tensor]) -> None:
        """Raises unless `total` holds a float32 sum for every tensor and no other."""
        for name in {*total, *self._tensors}:
            is_right = (
                name in total
                and name in self._tensors
                and total[name].dtype == torch.float32
                and total[name].shape == self._tensors[name].shape
                and total[name].is_contiguous()
            )
            if not is_right:
                raise InvalidParameterError(
                    f"total must hold a contiguous float32 sum of each trainable tensor and no "
                    f"other; {name} does not fit. Use zeros()."
                )


def group_units(batch: Sequence[int], units: Sequence[int] | None) -> Spans:
    """Returns which adjacent records of a batch belong to one unit.

    Raises:
        InvalidParameterError: If a record or a unit would contribute twice.
    """
    if len(set(batch)) != len(batch):
        raise InvalidParameterError("a batch must hold distinct records: one would count twice.")
    if units is None:
        return Spans.even(len(batch), 1)
    if len(units) != len(batch):
        raise InvalidParameterError(f"{len(batch)} records need as many units, got {len(units)}.")
    starts = [i for i in range(len(units)) if i == 0 or units[i] != units[i - 1]]
    if len({units[i] for i in starts}) != len(starts):
        raise InvalidParameterError(
            "records of one unit must stand side by side in a batch: a unit would be clipped twice."
        )
    return Spans((*starts, len(batch)))


def _scale(
    squared_norms: torch.Tensor, clip_norm: float, offset: float | None = None
) -> torch.Tensor:
    """Returns clip factors by unit: at most 1 without an offset, else clip_norm / (norm + it)."""
    norms = squared_norms.sqrt()
    if not bool((norms <= _LARGEST_EXCESS * clip_norm).all()):  # NaN fails here, by design
        raise PrecisionError(
            "a gradient is not finite or too large to measure: it cannot be clipped; nothing "
            "was released. Lower the learning rate, or compute in bfloat16 or float32."
        )
    if offset is not None:
        return (clip_norm / (norms + offset)).float()
    return (clip_norm / norms.clamp_min(_SMALLEST_NORM)).clamp_max(1.0).float()


def _require_no_experts(model: LanguageModel, tensors: Mapping[str, torch.nn.Parameter]) -> None:
    """Raises if experts are trained: their layers see tokens of many records."""
    config = model.causal_lm.config
    has_experts = any(getattr(config, name, None) for name in _EXPERTS)
    for name in tensors:
        if has_experts and "expert" in name:
            raise InvalidParameterError(
                f"mixtures of experts are not covered, whose layers see tokens of many records: "
                f"{name} is trainable. Train an adapter of the attention."
            )
