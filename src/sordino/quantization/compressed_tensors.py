"""Writes the `pack-quantized` format of compressed-tensors, which transformers and vLLM load.

Codes lie in 32-bit words, the first code in the lowest bits; each row begins with a word of its
own. Scales are stored as they are, in float16.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812

from sordino.core.errors import InvalidParameterError
from sordino.models import PackedLinear, quiet
from sordino.quantization._targets import require_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sordino.quantization.layers import QuantizedLayer

_WORD_BYTES = 4
_ENTRIES_AT_ONCE = 2**20
_DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}


def write_compressed_tensors(
    folder: str | Path,
    model: PreTrainedModel,
    layers: Mapping[str, QuantizedLayer],
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a model whose linear layers in `layers` are stored as codes and scales.

    `load_model` reads the folder without further packages, transformers with the package
    compressed-tensors. Both give `QuantizedLayer.dequantize` bit for bit when they compute in
    float16 or float32. In bfloat16 ours does too; transformers rounds each scale to bfloat16 first.

    Args:
        folder: Created if it does not exist.
        model: The model that was quantized; weights other than those in `layers` are taken from it.
        layers: By name in the model; bits and group sizes may differ from layer to layer.
        tokenizer: Saved beside the model.
        dtype: Type that readers compute in and other weights are rounded to: float16, bfloat16 or
            float32. None takes the model's, and stores each tensor in the shortest type that keeps
            it, bfloat16 or float16, so that weights of a 16-bit checkpoint take 16 bits again.

    Raises:
        InvalidParameterError: If a layer is not a plain linear layer of the model, has another
            shape, or shares its weight with another module; or if the model has adapters, or packed
            layers that are not in `layers`.
    """
    store = _shortest if dtype is None else _as_type(dtype)
    dtype = model.dtype if dtype is None else dtype
    if dtype not in _DTYPES:
        raise InvalidParameterError(f"dtype must be one of {', '.join(_DTYPES.values())}.")
    require_layers(model, layers)
    replaced = {f"{name}.{part}" for name in layers for part in _replaced(model, name)}
    weights = {
        name: store(value) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
        if name not in replaced
    }
    for name, layer in layers.items():
        weights[f"{name}.weight_packed"] = _words(layer)
        weights[f"{name}.weight_scale"] = layer.scales.contiguous()
        weights[f"{name}.weight_shape"] = torch.tensor(layer.codes.shape)
    with quiet():
        model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"dtype": _DTYPES[dtype], "quantization_config": _describe(model, layers)}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _as_type(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns what rounds a tensor to one type."""

    def store(value: torch.Tensor) -> torch.Tensor:
        return value.to(dtype)

    return store


def _shortest(value: torch.Tensor) -> torch.Tensor:
    """Returns a tensor in the shortest type that keeps every number of it."""
    for dtype in (torch.bfloat16, torch.float16):
        parts = value.reshape(-1).split(_ENTRIES_AT_ONCE)  # an embedding is large
        if all(torch.equal(part.to(dtype).to(value.dtype), part) for part in parts):
            return value.to(dtype)
    return value


def _replaced(model: PreTrainedModel, name: str) -> tuple[str, ...]:
    """Returns the tensors of a layer that its codes and scales replace."""
    is_packed = isinstance(model.get_submodule(name), PackedLinear)
    return ("qweight", "scales", "offsets") if is_packed else ("weight",)


def _words(layer: QuantizedLayer) -> torch.Tensor:
    """Returns the codes of each row in 32-bit words, shape (out_features, words)."""
    in_byte = 8 // layer.bits
    unsigned = (layer.codes.short() - layer.low).to(torch.uint8)
    padded = F.pad(unsigned, (0, -unsigned.shape[1] % (in_byte * _WORD_BYTES)))
    places = padded.view(len(padded), -1, in_byte)
    packed = places[:, :, 0].clone()
    for place in range(1, in_byte):
        packed |= places[:, :, place] << (place * layer.bits)
    return packed.view(torch.int32)  # little-endian, as safetensors files are


def _describe(model: PreTrainedModel, layers: Mapping[str, QuantizedLayer]) -> dict[str, Any]:
    """Returns the quantization_config of config.json."""
    kinds: dict[tuple[int, int | None], list[str]] = defaultdict(list)
    for name, layer in sorted(layers.items()):
        is_row = layer.group_size == layer.codes.shape[1]
        kinds[layer.bits, None if is_row else layer.group_size].append(name)
    groups = {
        f"group_{number}": {
            "targets": kinds[bits, group_size],
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": True,
                "strategy": "channel" if group_size is None else "group",
                "group_size": group_size,
                "dynamic": False,
            },
            "input_activations": None,
            "output_activations": None,
        }
        for number, (bits, group_size) in enumerate(
            sorted(kinds, key=lambda kind: (kind[0], kind[1] or 0))
        )
    }
    others = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in layers
    ]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(others),  # vLLM wants every linear layer named
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
