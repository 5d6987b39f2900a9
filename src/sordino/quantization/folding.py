"""Input scales folded into the module before: the model computes the same, its weights differ.

A layer's columns are multiplied by s, and what feeds it is divided by s: the weight and bias of a
norm, or the output rows of a linear layer whose result reaches the layer without leaving its
channel (Llama's up_proj, which is multiplied by the gate, before down_proj).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Fold", "find_folds", "fold_input_scales", "scale_gram"]

_LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
_MODEL_TYPES = (*_LLAMA_LIKE, "gpt2", "bert")
_NUM_PROBES = 4
# Share of the probe's outputs that a fold may move, by type: rounding of the folded weights.
_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@dataclass(frozen=True, slots=True)
class Fold:
    """Layers that share one input, and the module whose output that input is, by name."""

    previous: str
    layers: tuple[str, ...]


def find_folds(model: Any) -> list[Fold]:
    """Returns where input scales can be folded in a Llama-like model, GPT-2 or BERT.

    Llama-like (Llama, Mistral, Qwen2, Qwen3): input norm to q, k, v; second norm to gate and up;
    up to down; v to o where every query head has its own value head. With grouped queries several
    inputs of o share an output of v, and the fold is left out. GPT-2: both norms; the
    nonlinearity before its last layer allows no fold there. BERT: value to the layer after
    attention alone, for its norms feed the residual stream too.

    Raises:
        InvalidParameterError: If the model is of another type: an order of norms that was not
            checked would change its function silently.
    """
    kind = getattr(model.config, "model_type", None)
    if kind not in _MODEL_TYPES:
        raise InvalidParameterError(
            f"folding input scales is known for {', '.join(_MODEL_TYPES)}; got {kind!r}. Use a "
            "method without input scales: gptq, hqq or nearest."
        )
    if kind in _LLAMA_LIKE:
        return _llama_folds(model)
    return _gpt2_folds(model) if kind == "gpt2" else _bert_folds(model)


@torch.no_grad()
def fold_input_scales(previous: Any, layers: Sequence[Any], scales: torch.Tensor) -> None:
    """Divides the outputs of `previous` by scales and multiplies the layers' inputs by them.

    The function of the model stays the same up to rounding, provided that each output of
    `previous` reaches the same input of the layers and nothing else, times something that does
    not depend on it. `find_folds` names such places.

    Args:
        previous: A norm with a weight (and perhaps a bias), or a linear layer. Changed in place.
        layers: Linear layers (torch's, or GPT-2's with transposed weights) with that input.
            Changed in place.
        scales: Positive and finite, (columns,).

    Raises:
        InvalidParameterError: If sizes do not fit, scales are not positive, or the outputs of
            `previous` do not fall by exactly the scales (a norm of another kind). Nothing is
            changed then.
    """
    if scales.ndim != 1 or not bool(((scales > 0) & scales.isfinite()).all()):
        raise InvalidParameterError("input scales must be positive and finite, one a column.")
    columns = len(scales)
    for layer in layers:
        found = layer.weight.shape[0 if _is_transposed(layer) else 1]
        if found != columns:
            raise InvalidParameterError(
                f"a layer must have as many inputs as there are scales, {columns}, got {found}."
            )
    _divide_outputs(previous, scales)
    for layer in layers:
        factors = scales.to(device=layer.weight.device, dtype=torch.float64)
        along = factors[:, None] if _is_transposed(layer) else factors
        layer.weight.copy_(layer.weight.double() * along)


def scale_gram(gram: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Returns the Gram matrix of inputs divided by scales, (columns, columns)."""
    return gram / scales / scales[:, None]


def _divide_outputs(previous: Any, scales: torch.Tensor) -> None:
    """Divides the outputs of a norm or a linear layer, tries it out, and undoes what went wrong."""
    weight, bias = previous.weight, getattr(previous, "bias", None)
    is_matrix, columns = weight.ndim == 2, len(scales)
    is_transposed = is_matrix and _is_transposed(previous)
    num_outputs = weight.shape[1] if is_transposed else weight.shape[0]
    if num_outputs != columns:
        raise InvalidParameterError(
            f"the module before must have as many outputs as there are scales, {columns}, got "
            f"{num_outputs}."
        )
    divisors = scales.to(device=weight.device, dtype=torch.float64)
    num_inputs = weight.shape[0 if is_transposed else 1] if is_matrix else columns
    probes = _make_probes(num_inputs, weight)
    before, kept = previous(probes).double(), weight.clone()
    kept_bias = None if bias is None else bias.clone()
    along = divisors[:, None] if is_matrix and not is_transposed else divisors
    if bias is not None:
        bias.copy_(bias.double() / divisors)
    weight.copy_(weight.double() / along)
    after = previous(probes).double() * divisors
    if float((after - before).abs().max()) <= _TOLERANCES[weight.dtype] * float(before.abs().max()):
        return
    weight.copy_(kept)
    if bias is not None:
        bias.copy_(kept_bias)
    raise InvalidParameterError(
        f"{type(previous).__name__} does not scale with its weight and bias, so input scales "
        "cannot be folded into it. Use a method without input scales."
    )


def _make_probes(num_inputs: int, like: torch.Tensor) -> torch.Tensor:
    """Returns a few public random inputs, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_NUM_PROBES, num_inputs, generator=generator).to(like)


def _is_transposed(layer: Any) -> bool:
    """Returns whether a layer holds its weight as (in, out), as GPT-2's do."""
    return type(layer).__name__ == "Conv1D"


def _llama_folds(model: Any) -> list[Fold]:
    """Returns the folds of each block of a Llama-like model."""
    config = model.config
    heads = config.num_attention_heads
    has_own_values = (getattr(config, "num_key_value_heads", None) or heads) == heads
    folds = []
    for name, block in model.named_modules():
        if not (hasattr(block, "self_attn") and hasattr(block, "mlp")):
            continue
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        inputs = tuple(f"{attention}.{part}_proj" for part in "qkv")
        folds.append(Fold(f"{name}.input_layernorm", inputs))
        if has_own_values:
            folds.append(Fold(f"{attention}.v_proj", (f"{attention}.o_proj",)))
        inputs = (f"{mlp}.gate_proj", f"{mlp}.up_proj")
        folds.append(Fold(f"{name}.post_attention_layernorm", inputs))
        folds.append(Fold(f"{mlp}.up_proj", (f"{mlp}.down_proj",)))
    return folds


def _gpt2_folds(model: Any) -> list[Fold]:
    """Returns the folds of each block of GPT-2."""
    folds = []
    for name, block in model.named_modules():
        if hasattr(block, "ln_1") and hasattr(block, "attn") and hasattr(block, "mlp"):
            folds.append(Fold(f"{name}.ln_1", (f"{name}.attn.c_attn",)))
            folds.append(Fold(f"{name}.ln_2", (f"{name}.mlp.c_fc",)))
    return folds


def _bert_folds(model: Any) -> list[Fold]:
    """Returns the folds of each block of BERT; cross-attention is left out."""
    folds = []
    for name, block in model.named_modules():
        if hasattr(block, "attention") and hasattr(block, "intermediate"):
            inside = f"{name}.attention"
            folds.append(Fold(f"{inside}.self.value", (f"{inside}.output.dense",)))
    return folds
