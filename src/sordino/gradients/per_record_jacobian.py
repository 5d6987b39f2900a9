"""Gradients of a module's own tensors, record by record, by differentiating it again."""

from __future__ import annotations

import torch


def vector_jacobian(
    module: torch.nn.Module, keys: list[str], inputs: torch.Tensor, gradients: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Returns each record's gradients of a module's own tensors, float32, in float32."""
    weights = {key: getattr(module, key).detach().float() for key in keys}

    def one_record(x: torch.Tensor, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
        def forward(own: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.func.functional_call(module, own, (x[None],))[0].float()

        return torch.func.vjp(forward, weights)[1](gradient)[0]

    return torch.func.vmap(one_record)(inputs.float(), gradients.float())
