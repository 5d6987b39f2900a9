"""NF4: the frozen linear layers of a base model as 4-bit layers of bitsandbytes, on CUDA.

A weight is one of 16 quantiles of a normal distribution times the largest absolute value of its
block of 64, which itself is held in 8 bits. bitsandbytes rounds, stores and multiplies; this module
chooses the layers, and says what cannot be done with them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

from sordino.core.errors import InvalidParameterError, MissingExtraError
from sordino.models._frozen_layers import linear_kind, replace_frozen_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

NF4_BITS = 4
_INSTALL = "pip install 'sordino[nf4]'"


def require_nf4(bits: int | None, device: str) -> None:
    """Raises unless NF4 layers can be made: 4 bits, a CUDA device, bitsandbytes.

    Raises:
        InvalidParameterError: If bits or device are others.
        MissingExtraError: If bitsandbytes is not installed.
    """
    require_nf4_bits(bits)
    if not device.startswith("cuda"):
        raise InvalidParameterError(
            f"base_format nf4 needs a CUDA device, got {device!r}: bitsandbytes is made for those. "
            "Use --base-format codes, which computes everywhere. A run that was tuned over NF4 "
            "weights needs --device cuda to be opened, too."
        )
    _import_bitsandbytes()


def require_nf4_bits(bits: int | None) -> None:
    """Raises unless the bits are those of NF4.

    Raises:
        InvalidParameterError: If they are not.
    """
    if bits != NF4_BITS:
        raise InvalidParameterError(
            f"--base-format nf4 needs --base-bits 4, got {'none' if bits is None else bits}."
        )


def pack_base_nf4(
    model: torch.nn.Module, compute_dtype: torch.dtype, *, skip: Sequence[str] = ()
) -> torch.nn.Module:
    """Replaces the layers that `pack_base` would by NF4 ones, in place; returns the model.

    The new layers round their weights when the model is moved to its device, with .to(device), and
    not before. Blocks have 64 weights; their scales are held in 8 bits (double quantization).

    Args:
        model: A model without adapters, frozen.
        compute_dtype: What inputs and unpacked weights are cast to in a product.
        skip: Names of linear layers that stay, such as "o_proj", or full names.

    Raises:
        InvalidParameterError: If a name in `skip` matches no linear layer, there is nothing to
            pack, a weight is not finite, or a layer is not a torch.nn.Linear (GPT-2's are not).
        MissingExtraError: If bitsandbytes is not installed.

    Source:
        arXiv:2305.14314 (QLoRA), as bitsandbytes implements it.
    """
    bitsandbytes = _import_bitsandbytes()

    def make(linear: torch.nn.Module) -> torch.nn.Module:
        return _make_layer(bitsandbytes, linear, compute_dtype)

    return replace_frozen_layers(model, make, skip=skip)


def is_nf4(module: torch.nn.Module) -> bool:
    """Returns whether a layer is a 4-bit one of bitsandbytes; does not import it."""
    bitsandbytes = sys.modules.get("bitsandbytes")  # not imported: there are no such layers
    return bitsandbytes is not None and isinstance(module, bitsandbytes.nn.Linear4bit)


def dequantize_nf4(layer: Any) -> torch.Tensor:
    """Returns a layer's weight, shape (out_features, in_features), in the type it was packed from.

    Raises:
        InvalidParameterError: If the layer has not been moved to its device yet.
    """
    state = layer.weight.quant_state
    if state is None:
        raise InvalidParameterError(
            "NF4 weights are rounded when the model is moved: call model.to(device) first."
        )
    return _import_bitsandbytes().functional.dequantize_4bit(layer.weight.data, state)


def make_plain_linear(layer: Any) -> torch.nn.Linear:
    """Returns a frozen plain layer with the weight that an NF4 layer stands for."""
    with torch.device("meta"):  # the weights it would draw are never used
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
    plain.weight = torch.nn.Parameter(dequantize_nf4(layer), requires_grad=False)
    if layer.bias is not None:
        plain.bias = torch.nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return plain.train(layer.training)


def refuse_merging(adapted: torch.nn.Module) -> None:
    """Makes adapters over NF4 layers refuse to be merged, in words of ours."""
    for module in adapted.modules():
        if is_nf4(getattr(module, "base_layer", module)) and not is_nf4(module):
            module.merge = _refuse_merge


def _refuse_merge(*_arguments: Any, **_settings: Any) -> None:
    """Raises: an adapter must not be rounded to 16 levels, nor vanish without a word."""
    raise InvalidParameterError(
        "an adapter cannot be merged into NF4 weights. Load the base model without base_bits and "
        "the adapter on it, or make the base plain with unpack_base before load_adapter."
    )


def _make_layer(
    bitsandbytes: Any, linear: torch.nn.Module, compute_dtype: torch.dtype
) -> torch.nn.Module:
    """Returns an NF4 layer that will round a plain layer's weight."""
    if linear_kind(linear) != "linear":
        raise InvalidParameterError(
            f"NF4 is for torch.nn.Linear layers, got {type(linear).__name__}. Use --base-format "
            "codes, which packs these too."
        )
    if not bool(linear.weight.isfinite().all()):
        raise InvalidParameterError("weight must be finite.")
    with torch.device("meta"):  # the weights it would draw are never used
        layer = bitsandbytes.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=False,
            compute_dtype=compute_dtype,
            quant_type="nf4",
        )
    layer.weight = bitsandbytes.nn.Params4bit(
        linear.weight.detach(), requires_grad=False, quant_type="nf4", module=layer
    )
    layer.bias = linear.bias
    # else a forward pass on some processors would store the codes in another order
    layer.support_avx512bf16_for_cpu = False
    return layer.train(linear.training)


def _import_bitsandbytes() -> Any:
    """Returns the module bitsandbytes.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingExtraError(
            f"base_format nf4 needs bitsandbytes, which cannot be imported ({error}). Install it "
            f"with: {_INSTALL}"
        ) from None
    return bitsandbytes
