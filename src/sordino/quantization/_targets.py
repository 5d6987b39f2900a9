"""Whether quantized layers belong to a model that is to be written with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sordino.core.errors import InvalidParameterError
from sordino.models import PackedLinear, is_packed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

    from sordino.quantization.layers import QuantizedLayer


def require_layers(model: PreTrainedModel, layers: Mapping[str, QuantizedLayer]) -> None:
    """Raises unless every layer is a plain linear layer of the model and replaces its weight.

    Raises:
        InvalidParameterError: If one is not, the model has adapters, or packed layers of its own
            are not among `layers`.
    """
    modules = dict(model.named_modules())
    if any(".lora_" in name for name in modules):
        raise InvalidParameterError("model has adapters: merge them first (merge_and_unload).")
    if not layers:
        raise InvalidParameterError("layers must name at least one linear layer, got none.")
    packed = [name for name, module in modules.items() if is_packed(module)]
    left = [name for name in packed if name not in layers]
    if left:
        raise InvalidParameterError(
            f"model holds packed weights that are not quantized anew, the first is {left[0]}. Make "
            "them plain with unpack_base."
        )
    uses = _uses(model)
    for name, layer in layers.items():
        module = modules.get(name)
        if module is None:
            raise InvalidParameterError(f"layers names {name}, which the model does not have.")
        is_plain = type(module) is torch.nn.Linear or (
            isinstance(module, PackedLinear) and not module.fan_in_fan_out
        )
        if not is_plain:
            raise InvalidParameterError(
                f"{name} is a {type(module).__name__} layer, and readers of this format know "
                "torch.nn.Linear only. Models with such layers (GPT-2) cannot be written so."
            )
        shape = (module.out_features, module.in_features)
        if layer.name != name or tuple(layer.codes.shape) != shape:
            raise InvalidParameterError(
                f"{name} has shape {shape}, got codes of {layer.name} with shape "
                f"{tuple(layer.codes.shape)}."
            )
        weight = getattr(module, "weight", None)
        if weight is not None and uses[id(weight)] > 1:
            raise InvalidParameterError(
                f"{name} shares its weight with another module (tied embeddings), which would keep "
                "the unrounded one. Leave it out of layers."
            )


def _uses(model: torch.nn.Module) -> dict[int, int]:
    """Returns in how many places each parameter occurs."""
    counts: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    return counts
