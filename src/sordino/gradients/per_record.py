"""Per-record gradients of a small trainable set, from one backward pass over a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sordino.core.errors import InvalidParameterError
from sordino.gradients.attention import CausalAttentionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


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
            with torch.enable_grad(), CausalAttentionMode():
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
