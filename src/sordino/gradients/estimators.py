"""Estimators: from a batch of records to bounded contributions, one column a public direction."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch

from sordino.core.checks import require_positive
from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sordino.gradients.objectives import AbstractObjective, LanguageModel
    from sordino.gradients.parameters import AbstractParameterSpace


class AbstractEstimator(ABC):
    """Turns records into contributions whose absolute value never exceeds `bound`."""

    bound: float

    @abstractmethod
    def contributions(
        self, step: int, batches: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Yields (records, contributions) for every batch.

        Args:
            step: Step number; names the public directions.
            batches: Lists of record indices; a list may be empty only if all are.

        Returns:
            Contributions of shape (batch_size, num_directions), float64 on the CPU.
        """


class ZerothOrderEstimator(AbstractEstimator):
    """Central differences of the loss: two forward passes a direction and nothing else.

    Args:
        model: The language model.
        objective: Losses per record; need not be differentiable.
        space: Trainable tensors.
        perturbation: Step of the difference; must fit the compute dtype (rounding noise is neither
            a gradient nor privacy).
        clip: Largest absolute directional derivative of one record.

    Source:
        SPSA as in MeZO (arXiv:2305.17333), per record as in DPZero (arXiv:2310.09639).
    """

    def __init__(
        self,
        model: LanguageModel,
        objective: AbstractObjective,
        space: AbstractParameterSpace,
        *,
        perturbation: float,
        clip: float,
    ) -> None:
        self._model = model
        self._objective = objective
        self._space = space
        self.perturbation = require_positive("perturbation", perturbation)
        self.bound = require_positive("clip", clip)

    @torch.no_grad()
    def contributions(
        self, step: int, batches: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Yields clipped central differences."""
        num_directions = self._space.directions.num_directions
        results = [torch.empty(len(b), num_directions, dtype=torch.float64) for b in batches]
        for k in range(num_directions):
            upper = self._losses(step, k, self.perturbation, batches)
            lower = self._losses(step, k, -self.perturbation, batches)
            for result, plus, minus in zip(results, upper, lower, strict=True):
                difference = (plus - minus) / (2.0 * self.perturbation)
                clipped = difference.clamp(-self.bound, self.bound)
                result[:, k] = clipped.where(difference.isfinite(), math.nan)  # refused when summed
        yield from zip(batches, results, strict=True)

    def _losses(
        self, step: int, index: int, scale: float, batches: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """Returns the losses of all batches at one perturbed point, float64 on the CPU."""
        with self._space.perturbed(step, index, scale):
            return [self._objective.losses(self._model, batch).cpu().double() for batch in batches]


class FirstOrderEstimator(AbstractEstimator):
    """Exact directional derivatives: one backward pass gives every direction of the step.

    Per-record gradients of the adapter's linear layers are formed inside the backward pass from
    each layer's input and output gradient, clipped together to norm `clip`, projected on the
    step's public directions, and dropped: no more than one batch of gradients is ever held.

    Args:
        model: The language model.
        objective: Differentiable losses per record.
        space: Trainable tensors; each must be the weight of a linear layer without bias.
        clip: Largest Euclidean norm of one record's gradient.
    """

    def __init__(
        self,
        model: LanguageModel,
        objective: AbstractObjective,
        space: AbstractParameterSpace,
        *,
        clip: float,
    ) -> None:
        if not objective.is_differentiable:
            raise InvalidParameterError(
                "objective token-f1 has no gradient: use --estimator zeroth-order."
            )
        self._model = model
        self._objective = objective
        self._space = space
        self._clip = require_positive("clip", clip)
        self.bound = self._clip * space.directions.max_norm
        self._gradients = PerRecordGradients(model.causal_lm, space.tensors)

    def contributions(
        self, step: int, batches: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Yields projections of clipped per-record gradients."""
        for batch in batches:
            gradients = self.clipped_gradients(batch)
            yield batch, self._space.directions.project(step, gradients).double().cpu()

    def clipped_gradients(self, records: Sequence[int]) -> torch.Tensor:
        """Returns per-record gradients of norm at most `clip`, (batch_size, num_params) float32."""
        gradients = self._gradients.compute(
            lambda: self._objective.losses(self._model, records), len(records)
        )
        norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
        factors = (self._clip / norms.clamp_min(1e-30)).clamp_max(1.0)
        # an overflow must not turn into a contribution of 0: NaN is refused when summed
        return gradients.mul_(factors.where(norms.isfinite(), math.nan))


class PerRecordGradients:
    """Per-record gradients of linear layers, from one backward pass over a batch.

    Args:
        model: The module whose forward pass the loss runs.
        tensors: Trainable parameters by name, in the order of the flat gradient.

    Raises:
        InvalidParameterError: If a trainable tensor is not the weight of a linear layer.
    """

    def __init__(self, model: torch.nn.Module, tensors: Mapping[str, torch.nn.Parameter]) -> None:
        self._tensors = dict(tensors)
        self._num_params = sum(p.numel() for p in self._tensors.values())
        self._buffer: torch.Tensor | None = None
        owners = {
            id(module.weight): module
            for module in model.modules()
            if isinstance(module, torch.nn.Linear) and module.bias is None
        }
        offset = 0
        for name, parameter in self._tensors.items():
            layer = owners.get(id(parameter))
            if layer is None:
                raise InvalidParameterError(
                    f"the first-order estimator covers the weights of linear layers in an adapter; "
                    f"{name} is something else. Use --adapter lora, or --estimator zeroth-order."
                )
            self._install(layer, offset)
            offset += parameter.numel()

    def compute(self, losses: Callable[[], torch.Tensor], batch_size: int) -> torch.Tensor:
        """Returns the gradients of `losses()`, shape (batch_size, num_params), float32."""
        device = next(iter(self._tensors.values())).device
        self._buffer = torch.zeros(batch_size, self._num_params, device=device)
        try:
            for parameter in self._tensors.values():
                parameter.requires_grad_(requires_grad=True)
            with torch.enable_grad():
                losses().sum().backward()
            return self._buffer
        finally:
            self._buffer = None
            for parameter in self._tensors.values():
                parameter.requires_grad_(requires_grad=False)
                parameter.grad = None  # a sum over private records: never kept

    def _install(self, layer: torch.nn.Linear, offset: int) -> None:
        """Makes one layer write its part of the gradient during the backward pass."""
        end = offset + layer.weight.numel()

        def forward_hook(
            _layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> None:
            buffer = self._buffer
            if buffer is None or not output.requires_grad:
                return
            layer_input = inputs[0].detach()

            def gradient_hook(gradient: torch.Tensor) -> None:
                parts = torch.einsum("bto,bti->boi", gradient.float(), layer_input.float())
                buffer[:, offset:end] += parts.reshape(parts.shape[0], -1)

            output.register_hook(gradient_hook)

        layer.register_forward_hook(forward_hook)
