"""Writes GGUF files with the codes and scales of quantized layers, which llama.cpp runs.

Q4_0 and Q8_0 hold blocks of 32 neighbouring inputs: a float16 scale and 32 codes. A symmetric grid
whose groups are multiples of 32 is such a file exactly: the scale of a longer group is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sordino.core.errors import InvalidParameterError
from sordino.quantization._gguf_tokenizer import add_tokenizer, describe_tokenizer
from sordino.quantization._targets import require_layers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gguf import GGUFWriter
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sordino.quantization.layers import QuantizedLayer

_BLOCK = 32
_QUANTIZATION_VERSION = 2  # of the block formats
_FILE_TYPES = {4: 2, 8: 7}  # what the file is mostly: Q4_0, Q8_0
# settings of the configuration that change the computation, and the values that readers assume
_ASSUMED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "partial_rotary_factor": (1.0, None),
}


@dataclass(frozen=True, slots=True)
class _Architecture:
    """How the readers of GGUF want a model.

    Args:
        name: Its name in GGUF.
        has_paired_rotations: Whether rows of query and key lie so that a rotation's two parts are
            neighbours, and not half a head apart as in transformers.
    """

    name: str
    has_paired_rotations: bool


_ARCHITECTURES = {
    "llama": _Architecture("llama", has_paired_rotations=True),
    "qwen2": _Architecture("qwen2", has_paired_rotations=False),
    "qwen3": _Architecture("qwen3", has_paired_rotations=False),
}


def write_gguf(
    path: str | Path,
    model: PreTrainedModel,
    layers: Mapping[str, QuantizedLayer],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Writes one GGUF file: layers of 4 bits as Q4_0, of 8 bits as Q8_0, bit for bit.

    Other matrices are stored in 16 bits if that loses nothing (F16, else BF16), else in F32; norms
    and biases in F32. So gguf's dequantization of the file is the model with the weights that
    `QuantizedLayer.dequantize` gives. Programs that run the file may round activations on top.

    Args:
        path: The file; its folder is created.
        model: The model that was quantized: Llama, Qwen2 or Qwen3.
        layers: By name in the model; 4 or 8 bits, groups of a multiple of 32 inputs.
        tokenizer: A byte-level BPE tokenizer of GPT-2, SmolLM, Llama 3 or Qwen2 kind.

    Raises:
        InvalidParameterError: If the architecture, a layer or the tokenizer has no exact equivalent
            in such a file, or layers do not belong to the model.
    """
    import gguf

    architecture = _require_architecture(model)
    require_layers(model, layers)
    for layer in layers.values():
        _require_blocks(layer)
    words = describe_tokenizer(tokenizer, model.get_input_embeddings().weight.shape[0])
    names = gguf.get_tensor_name_map(
        getattr(gguf.MODEL_ARCH, architecture.name.upper()), model.config.num_hidden_layers
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture.name)
    try:
        _add_settings(writer, model, layers)
        add_tokenizer(writer, words)
        for name in _tensor_names(model, layers):
            target = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise InvalidParameterError(
                    f"{name} has no place in a GGUF file of {model.config.model_type}."
                )
            order = _row_order(model, name) if architecture.has_paired_rotations else None
            layer = layers.get(name.removesuffix(".weight"))
            if layer is None:
                _add_plain(writer, target, model.state_dict()[name], order)
            else:
                _add_blocks(writer, target, layer, order)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _require_architecture(model: PreTrainedModel) -> _Architecture:
    """Returns what is known of the model's architecture, or says why it cannot be written."""
    config = model.config
    architecture = _ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise InvalidParameterError(
            f"GGUF files are written for {', '.join(_ARCHITECTURES)} models, got "
            f"{config.model_type}. Take the format compressed-tensors."
        )
    for name, known in _ASSUMED.items():
        value = getattr(config, name, None)
        if value not in known:
            raise InvalidParameterError(
                f"GGUF files are written for models with {name} {known[0]!r}, got {value!r}. Take "
                "the format compressed-tensors."
            )
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise InvalidParameterError(
            f"GGUF files are written for plain rotary positions, got {rope['rope_type']!r}. Take "
            "the format compressed-tensors."
        )
    return architecture


def _require_blocks(layer: QuantizedLayer) -> None:
    """Raises unless a layer is blocks of 32 codes of 4 or 8 bits."""
    if layer.bits not in _FILE_TYPES:
        raise InvalidParameterError(
            f"{layer.name} has {layer.bits} bits: a GGUF file holds such codes in 4 or 8 only. "
            "Take the format compressed-tensors."
        )
    if layer.group_size % _BLOCK:
        raise InvalidParameterError(
            f"{layer.name} has groups of {layer.group_size} inputs: a GGUF file needs multiples "
            f"of {_BLOCK}. Take group_size {_BLOCK}, or the format compressed-tensors."
        )


def _add_settings(
    writer: GGUFWriter, model: PreTrainedModel, layers: Mapping[str, QuantizedLayer]
) -> None:
    """Writes what a reader must know to build the model."""
    config = model.config
    num_heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    num_codes = {
        bits: sum(layer.codes.numel() for layer in layers.values() if layer.bits == bits)
        for bits in _FILE_TYPES
    }
    writer.add_type("model")
    writer.add_file_type(_FILE_TYPES[max(num_codes, key=lambda bits: num_codes[bits])])
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    writer.add_vocab_size(model.get_input_embeddings().weight.shape[0])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(num_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head_size)
    if head_size * num_heads != config.hidden_size or config.model_type == "qwen3":
        writer.add_key_length(head_size)
        writer.add_value_length(head_size)


def _tensor_names(model: PreTrainedModel, layers: Mapping[str, QuantizedLayer]) -> list[str]:
    """Returns the names of the tensors to write; an output layer tied to the embeddings is none."""
    output = model.get_output_embeddings()
    is_tied = output is not None and output.weight is model.get_input_embeddings().weight
    parts = (".qweight", ".scales", ".offsets")
    plain = [
        name
        for name in model.state_dict()
        if not name.endswith(parts)
        and name.removesuffix(".weight") not in layers
        and not (is_tied and name == "lm_head.weight")
    ]
    return plain + [f"{name}.weight" for name in layers]


def _row_order(model: PreTrainedModel, name: str) -> torch.Tensor | None:
    """Returns which row goes where in a query or key layer; None for all others."""
    kind = name.split(".")[-2]
    config = model.config
    num_heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    if kind not in num_heads:
        return None
    num_rows = model.get_submodule(name.rsplit(".", 1)[0]).out_features
    halves = torch.arange(num_rows).view(num_heads[kind], 2, -1)  # (heads, halves, rotations)
    return halves.transpose(1, 2).reshape(-1)


def _add_blocks(
    writer: GGUFWriter, name: str, layer: QuantizedLayer, order: torch.Tensor | None
) -> None:
    """Writes a layer as blocks: the scale's two bytes, then the codes."""
    import gguf

    codes, scales = layer.codes, layer.scales
    if order is not None:
        codes, scales = codes[order], scales[order]
    rows = len(codes)
    repeated = scales.repeat_interleave(layer.group_size // _BLOCK, dim=1)
    heads = repeated.contiguous().numpy().astype("<f2").view(np.uint8).reshape(rows, -1, 2)
    blocks = codes.contiguous().numpy().reshape(rows, -1, _BLOCK)
    kind = gguf.GGMLQuantizationType.Q8_0
    if layer.bits == 4:  # the block's first half lies in the lower four bits
        kind = gguf.GGMLQuantizationType.Q4_0
        unsigned = (blocks - layer.low).astype(np.uint8)
        blocks = unsigned[:, :, : _BLOCK // 2] | (unsigned[:, :, _BLOCK // 2 :] << 4)
    data = np.concatenate([heads, blocks.view(np.uint8)], axis=2).reshape(rows, -1)
    writer.add_tensor(name, data, raw_dtype=kind)


def _add_plain(
    writer: GGUFWriter, name: str, tensor: torch.Tensor, order: torch.Tensor | None
) -> None:
    """Writes a tensor in the shortest type that keeps it; vectors in F32, as readers expect."""
    import gguf

    values = (tensor if order is None else tensor[order]).detach().cpu().float()
    if values.ndim > 1 and torch.equal(values.half().float(), values):
        writer.add_tensor(name, values.half().numpy())
    elif values.ndim > 1 and torch.equal(values.bfloat16().float(), values):
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quants.quantize(values.numpy(), kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, values.numpy())
