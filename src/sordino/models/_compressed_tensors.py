"""Reads folders in the `pack-quantized` format of compressed-tensors into packed layers.

Read are whole-number weights of 2, 4 or 8 bits on symmetric grids, with one scale for each group of
neighbouring inputs or for a whole row. Whatever else the format knows is refused: a weight that is
misread would look like a bad model, and not like an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sordino.core.errors import InvalidParameterError, ModelUnavailableError
from sordino.models._reading import require_complete
from sordino.models.fingerprint import weight_files
from sordino.models.packed_linear import PackedLinear
from sordino.models.rounding import FLOATS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PACKED, _SCALE, _SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"
_OWN_PARTS = (_PACKED, _SCALE, _SHAPE)
_FOREIGN_PARTS = (".weight_zero_point", ".weight_g_idx", ".weight_global_scale", ".input_scale")
_BITS = (2, 4, 8)
_WORD_BITS = 32
# the only values under which a stored weight is code * scale
_PLAIN_CONFIG: dict[str, tuple[Any, ...]] = {
    "format": ("pack-quantized",),
    "quantization_status": ("compressed",),
    "kv_cache_scheme": (None,),
    "transform_config": (None, {}),
    "sparsity_config": (None, {}),
    "moe_sparsity_config": (None, {}),
}
_PLAIN_GROUP: dict[str, tuple[Any, ...]] = {
    "format": (None, "pack-quantized"),
    "input_activations": (None,),
    "output_activations": (None,),
}
_PLAIN_WEIGHTS: dict[str, tuple[Any, ...]] = {
    "type": ("int",),
    "symmetric": (True,),
    "dynamic": (False, None),
    "block_structure": (None,),
    "actorder": (None, False, "weight", "static"),  # an order of rounding, not of storage
}


@dataclass(frozen=True, slots=True)
class _Scheme:
    """How the weights of some layers are stored."""

    bits: int
    group_size: int | None  # None: a whole row


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """What the files hold of a layer."""

    name: str
    words: torch.Tensor
    scales: torch.Tensor
    shape: tuple[int, int]


def is_compressed_tensors(settings: Mapping[str, Any]) -> bool:
    """Returns whether a quantization_config is of compressed-tensors."""
    return settings.get("quant_method") == "compressed-tensors"


def read_compressed_tensors(
    folder: Path, settings: Mapping[str, Any], dtype: torch.dtype
) -> tuple[Any, int | None]:
    """Returns the model of a folder, with packed layers, and the most bits that one of them has.

    Args:
        folder: A model folder.
        settings: The quantization_config of its config.json.
        dtype: The type of plain weights and of all products.

    Raises:
        ModelUnavailableError: If weights are stored in another way, are missing, or do not belong
            together.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    schemes = _schemes(folder, settings)
    weights = _read_weights(folder)
    names = [name.removesuffix(_PACKED) for name in weights if name.endswith(_PACKED)]
    stored = [_take_stored(folder, weights, name) for name in names]
    for layer in stored:  # no memory: packed layers take their places
        weights[f"{layer.name}.weight"] = torch.zeros((), dtype=dtype).expand(layer.shape)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    del config.quantization_config
    with torch.device("meta"):
        architecture = type(AutoModelForCausalLM.from_config(config))
    model, info = architecture.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
    )
    require_complete(folder, info)
    return model, max((_put(folder, model, layer, schemes) for layer in stored), default=None)


def _schemes(folder: Path, settings: Mapping[str, Any]) -> dict[str, _Scheme]:
    """Returns the scheme of each target, in the file's order."""
    _require_plain(folder, "", settings, _PLAIN_CONFIG, required=("format", "quantization_status"))
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise _refusal(folder, "config_groups", groups)
    schemes: dict[str, _Scheme] = {}
    for group_name, group in groups.items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            raise _refusal(folder, group_name, group)
        _require_plain(folder, f"{group_name}.", group, _PLAIN_GROUP)
        _require_plain(folder, f"{group_name}.weights.", weights, _PLAIN_WEIGHTS)
        bits, size, strategy = (weights.get(k) for k in ("num_bits", "group_size", "strategy"))
        if bits not in _BITS or isinstance(bits, bool):
            raise _refusal(folder, f"{group_name}.weights.num_bits", bits)
        is_row = strategy == "channel" and size in (None, -1)
        is_group = strategy == "group" and type(size) is int and size > 0
        if not (is_row or is_group):
            raise _refusal(folder, f"{group_name}.weights.strategy", f"{strategy}, {size}")
        targets = group.get("targets")
        if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
            raise _refusal(folder, f"{group_name}.targets", targets)
        for target in targets:
            schemes[target] = _Scheme(bits, None if is_row else size)
    return schemes


def _require_plain(
    folder: Path,
    where: str,
    found: Mapping[str, Any],
    allowed: Mapping[str, tuple[Any, ...]],
    required: tuple[str, ...] = (),
) -> None:
    """Raises if a setting has a value under which weights are something else than code * scale."""
    for name, values in allowed.items():
        default = None if name in required else values[0]
        value = found.get(name, default)
        if not any(type(value) is type(known) and value == known for known in values):
            raise _refusal(folder, where + name, value)


def _refusal(folder: Path, name: str, value: Any) -> ModelUnavailableError:
    """Returns the error for a way of storing weights that is not read."""
    return ModelUnavailableError(
        f"Model {folder}: its weights are stored quantized in a way that is not read "
        f"({name} is {str(value)[:80]!r}). Read are compressed-tensors' pack-quantized weights of "
        "2, 4 or 8 bits on symmetric grids in groups or whole rows, without quantized activations. "
        "Give the unquantized model, or a .gguf file."
    )


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns all tensors of the folder's safetensors files."""
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        weights |= load_file(file)
    return weights


def _take_stored(folder: Path, weights: dict[str, torch.Tensor], name: str) -> _Stored:
    """Returns words, scales and shape of a layer, and takes them out of `weights`."""
    foreign = [part for part in _FOREIGN_PARTS if name + part in weights]
    absent = [part for part in _OWN_PARTS if name + part not in weights]
    if foreign or absent:
        what = f"has {foreign[0]}" if foreign else f"lacks {absent[0]}"
        raise _damage(folder, name, f"it {what}")
    words, scales, shape = (weights.pop(name + part) for part in _OWN_PARTS)
    if words.dtype != torch.int32 or words.ndim != 2 or scales.dtype not in FLOATS:
        raise _damage(folder, name, f"it is stored as {words.dtype} and {scales.dtype}")
    rows_and_columns = tuple(int(size) for size in shape.flatten())
    if len(rows_and_columns) != 2 or rows_and_columns[0] != len(words):
        raise _damage(folder, name, f"its shape is {rows_and_columns}")
    return _Stored(name, words, scales, (rows_and_columns[0], rows_and_columns[1]))


def _damage(folder: Path, name: str, what: str) -> ModelUnavailableError:
    """Returns the error for a layer whose tensors do not belong together."""
    return ModelUnavailableError(
        f"Model {folder}: the packed layer {name} cannot be read ({what}). The files are damaged, "
        "or of a format that is not read."
    )


def _put(
    folder: Path, model: torch.nn.Module, stored: _Stored, schemes: Mapping[str, _Scheme]
) -> int:
    """Puts a packed layer into the model; returns its bits."""
    name, (rows, columns) = stored.name, stored.shape
    linear = dict(model.named_modules()).get(name)
    if type(linear) is not torch.nn.Linear:
        raise _damage(folder, name, "the model has no linear layer of this name")
    if linear is model.get_output_embeddings() and model.config.tie_word_embeddings:
        raise _damage(folder, name, "it is tied to the embeddings")
    scheme = _scheme_of(name, schemes)
    if scheme is None:
        raise _damage(folder, name, "no target in config.json names it")
    group_size = scheme.group_size or columns
    num_words = -(-columns * scheme.bits // _WORD_BITS)
    if tuple(stored.words.shape) != (rows, num_words) or columns % group_size:
        what = f"{tuple(stored.words.shape)} words, {scheme.bits} bits, groups of {group_size}"
        raise _damage(folder, name, f"{what}, {columns} inputs")
    try:
        layer = PackedLinear.from_codes(
            _codes(stored.words, scheme.bits)[:, :columns],
            stored.scales,
            bias=linear.bias,
            bits=scheme.bits,
            group_size=group_size,
            compute_dtype=linear.weight.dtype,
        )
    except InvalidParameterError as error:
        raise _damage(folder, name, str(error)) from None
    model.set_submodule(name, layer)
    return scheme.bits


def _codes(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns the codes in 32-bit words, the first in the lowest bits, as uint8."""
    in_byte = 8 // bits
    octets = words.contiguous().view(torch.uint8)  # little-endian, as safetensors files are
    codes = torch.empty(*octets.shape, in_byte, dtype=torch.uint8)
    for place in range(in_byte):
        codes[:, :, place] = (octets >> (place * bits)) & (2**bits - 1)
    return codes.view(len(words), -1)


def _scheme_of(name: str, schemes: Mapping[str, _Scheme]) -> _Scheme | None:
    """Returns the scheme of a layer: exact names go before patterns, patterns before classes."""
    if name in schemes:
        return schemes[name]
    for target, scheme in schemes.items():
        if target.startswith("re:") and re.match(target.removeprefix("re:"), name):
            return scheme  # an invalid pattern raises, and is told as an unreadable model
    return schemes.get("Linear")
