"""Which linear layers of a frozen base model can be held in few bits, and putting others there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch


def linear_kind(module: torch.nn.Module) -> str | None:
    """Returns "linear" or "conv1d"; None for every other class, subclasses too."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return {torch.nn.Linear: "linear", Conv1D: "conv1d"}.get(type(module))


def replace_frozen_layers(
    model: torch.nn.Module,
    make: Callable[[torch.nn.Module], torch.nn.Module],
    *,
    skip: Sequence[str] = (),
) -> torch.nn.Module:
    """Replaces the frozen linear layers of a base model, in place; returns the model.

    Embeddings, norms, the output layer (its rows are read one by one, and it may be tied),
    subclasses of Linear, experts held in one tensor and layers with a trainable tensor stay.

    Args:
        model: A model without adapters.
        make: Returns what takes a layer's place.
        skip: Names of linear layers that stay, such as "o_proj", or full names.

    Raises:
        InvalidParameterError: If a name in `skip` matches no linear layer, there is nothing to
            pack, or a layer cannot be packed.
    """
    if isinstance(skip, str):
        raise InvalidParameterError(f"skip must be a list of names, got the string {skip!r}.")
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if linear_kind(module) is not None
    }
    if any(".lora_" in name for name in found):
        raise InvalidParameterError("model already has adapters: pack the base model first.")
    for wanted in skip:
        if not any(_is_named(name, wanted) for name in found):
            raise InvalidParameterError(
                f"skip must name linear layers of the model, got {wanted!r}. There are: "
                f"{', '.join(sorted({name.rsplit('.', 1)[-1] for name in found}))}."
            )
    output = getattr(model, "get_output_embeddings", lambda: None)()
    packed: dict[int, torch.nn.Module] = {}  # a layer that occurs twice is packed once
    for name in list(found):
        module = found.pop(name)  # so that its weight is freed before the next one is packed
        is_trained = any(p.requires_grad for p in module.parameters())
        if module is output or is_trained or any(_is_named(name, wanted) for wanted in skip):
            continue
        if id(module) not in packed:
            try:
                layer = make(module)
            except InvalidParameterError as error:
                raise InvalidParameterError(f"{name}: {error}") from error
            packed[id(module)] = layer
        model.set_submodule(name, packed[id(module)])
    if not packed:
        raise InvalidParameterError(
            "there is no frozen linear layer to pack. Freeze the model with "
            "requires_grad_(False); layers of an architecture's own kind cannot be packed."
        )
    return model


def _is_named(name: str, wanted: str) -> bool:
    """Returns whether a full name is `wanted`, or ends in "." and it."""
    return name == wanted or name.endswith(f".{wanted}")
