"""Folding: the unquantized model's logits stay, in the models where it is offered."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from helpers_tiny_models import VOCABULARY, make_model
from sordino.core.errors import InvalidParameterError
from sordino.quantization.folding import find_folds, fold_input_scales, scale_gram


def random_scales(columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(1.5 * torch.randn(columns, generator=generator, dtype=torch.float64))


def logits_of(model: Any) -> torch.Tensor:
    """Returns logits, or the last hidden states of an encoder."""
    ids = torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(input_ids=ids)[0]


def fold_all(model: Any) -> int:
    """Folds random scales everywhere; returns in how many places."""
    modules = dict(model.named_modules())
    folds = find_folds(model)
    for seed, fold in enumerate(folds):
        layers = [modules[name] for name in fold.layers]
        is_transposed = type(layers[0]).__name__ == "Conv1D"
        columns = layers[0].weight.shape[0 if is_transposed else 1]
        fold_input_scales(modules[fold.previous], layers, random_scales(columns, seed))
    return len(folds)


@pytest.mark.parametrize(
    ("name", "changes", "num_folds"),
    [
        ("llama", {}, 6),  # two value heads for four query heads: o_proj is left out
        ("llama", {"num_key_value_heads": 4}, 8),
        ("llama", {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}, 8),
        ("qwen2", {}, 6),
        ("qwen3", {}, 6),
        ("gpt2", {}, 4),
        ("bert", {}, 2),
    ],
)
def test_logits_stay(name: str, changes: dict[str, Any], num_folds: int) -> None:
    model = make_model(name, **changes).double()
    before = logits_of(model)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    assert fold_all(model) == num_folds
    after = logits_of(model)
    assert float((after - before).abs().max()) <= 1e-10 * float(before.abs().max())
    moved = [
        key for key, value in model.state_dict().items() if not torch.equal(value, weights[key])
    ]
    assert len(moved) > num_folds


def test_grouped_query_attention_would_change_the_function() -> None:
    """Why o_proj is left out: a value head feeds several inputs of o_proj."""
    block = make_model("llama").model.layers[0].self_attn
    assert block.v_proj.weight.shape[0] != block.o_proj.weight.shape[1]
    with pytest.raises(InvalidParameterError, match="as many outputs"):
        fold_input_scales(block.v_proj, [block.o_proj], random_scales(16, 0))


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "phi", "opt"])
def test_other_models_are_refused(name: str) -> None:
    with pytest.raises(InvalidParameterError, match="folding input scales is known for llama"):
        find_folds(make_model(name))


def test_norm_of_another_kind_is_left_as_it_was() -> None:
    """Gemma's norm multiplies by 1 + weight: dividing the weight does not divide the output."""
    layer = make_model("gemma3").model.layers[0]
    norm, linear = layer.input_layernorm, layer.self_attn.q_proj
    kept = copy.deepcopy((norm.weight, linear.weight))
    with pytest.raises(InvalidParameterError, match="does not scale with its weight"):
        fold_input_scales(norm, [linear], random_scales(16, 0))
    assert torch.equal(norm.weight, kept[0])
    assert torch.equal(linear.weight, kept[1])


@pytest.mark.parametrize("bad", [float("nan"), 0.0, -1.0, float("inf")])
def test_bad_scales_are_refused(bad: float) -> None:
    layer = make_model("llama").model.layers[0]
    scales = torch.ones(16)
    scales[2] = bad
    with pytest.raises(InvalidParameterError, match="positive and finite"):
        fold_input_scales(layer.input_layernorm, [layer.self_attn.q_proj], scales)
    with pytest.raises(InvalidParameterError, match="as many inputs"):
        fold_input_scales(layer.input_layernorm, [layer.self_attn.q_proj], torch.ones(8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_shorter_types_fold_within_their_rounding(dtype: torch.dtype) -> None:
    model = make_model("llama").to(dtype)
    before = logits_of(model).float()
    assert fold_all(model) == 6
    limit = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-4}[dtype]
    assert float((logits_of(model).float() - before).abs().max()) <= limit * float(
        before.abs().max()
    )


def test_gram_of_divided_inputs() -> None:
    inputs = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scales = random_scales(5, 1)
    divided = inputs / scales
    assert torch.allclose(scale_gram(inputs.T @ inputs, scales), divided.T @ divided)
