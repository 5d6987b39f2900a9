"""Per-record gradients of a small trainable set, from one backward pass over a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sordino.gradients.uses import AbstractGradientSink, UseWatcher

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sordino.gradients.factors import Factors


class PerRecordGradients(AbstractGradientSink):
    """Per-record gradients of linear layers, embeddings and norms, side by side in one tensor.

    Args:
        model: The module whose forward pass the loss runs.
        tensors: Trainable parameters by name, in the order of the flat gradient.
        watcher: One for the same model and tensors, to be shared; None makes one.

    Raises:
        InvalidParameterError: If a trainable tensor belongs to a module that is not covered.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tensors: Mapping[str, torch.nn.Parameter],
        watcher: UseWatcher | None = None,
    ) -> None:
        self._tensors = dict(tensors)
        self._num_params = sum(p.numel() for p in self._tensors.values())
        self._buffer: torch.Tensor | None = None
        self._watcher = watcher or UseWatcher(model, self._tensors)
        self._places: dict[str, slice] = {}
        offset = 0
        for name, parameter in self._tensors.items():
            self._places[name] = slice(offset, offset + parameter.numel())
            offset += parameter.numel()

    def compute(self, losses: Callable[[], torch.Tensor], batch_size: int) -> torch.Tensor:
        """Returns the gradients of `losses()`, shape (batch_size, num_params), float32."""
        device = next(iter(self._tensors.values())).device
        self._buffer = torch.zeros(batch_size, self._num_params, device=device)
        try:
            self._watcher.run(losses, batch_size, self)
            return self._buffer
        finally:
            self._buffer = None

    def add_factors(self, name: str, number: int, factors: Factors) -> None:  # noqa: ARG002
        """Adds the gradients of one use of a matrix."""
        self.add_values(name, factors.materialised(self._tensors[name].shape[0]))

    def add_values(self, name: str, values: torch.Tensor) -> None:
        """Adds what one use gives."""
        if self._buffer is not None:
            self._buffer[:, self._places[name]] += values.reshape(len(values), -1)
