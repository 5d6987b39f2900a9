"""Adapters: public and repeatable, trained where asked, saved with equal bytes."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from sordino.core.directions import public_uniform
from sordino.core.errors import InvalidParameterError
from sordino.models import add_lora, load_model, save_adapter, save_full, trainable_tensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

IDS = torch.tensor([[2, 3, 4, 9, 11, 2, 30]])
A_NAME = "model.layers.0.self_attn.q_proj.lora_A.weight"
SETTINGS = {"rank": 2, "alpha": 4.0, "seed": 7}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def randomize_b(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    for name, tensor in trainable_tensors(model).items():
        if "lora_B" in name:
            tensor.data = torch.randn(tensor.shape, generator=generator)


def test_trains_b_of_query_and_value_by_default(
    make_llama: Callable[..., LlamaForCausalLM],
) -> None:
    model = make_llama().eval()
    before = logits(model)
    tensors = trainable_tensors(add_lora(model, **SETTINGS))
    expected = [
        f"model.layers.{block}.self_attn.{part}.lora_B.weight"
        for block in range(3)
        for part in ("q_proj", "v_proj")
    ]
    assert list(tensors) == expected
    assert all(torch.count_nonzero(tensor) == 0 for tensor in tensors.values())
    assert torch.equal(logits(model), before)  # B is zero


def test_both_factors(make_llama: Callable[..., LlamaForCausalLM]) -> None:
    names = list(trainable_tensors(add_lora(make_llama(), factors="both", **SETTINGS)))
    assert len(names) == 12
    assert names == sorted(names)
    assert sum(name.endswith(".lora_A.weight") for name in names) == 6


def test_every_trainable_tensor_moves_the_output(
    make_llama: Callable[..., LlamaForCausalLM],
) -> None:
    model = add_lora(make_llama(), factors="both", **SETTINGS)
    randomize_b(model)
    model(IDS).logits.square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0 for p in trainable_tensors(model).values()
    )


def test_a_is_one_product_of_the_public_stream(
    make_llama: Callable[..., LlamaForCausalLM],
) -> None:
    model = add_lora(make_llama(), factors="both", **SETTINGS)
    bound = np.float32(1.0 / math.sqrt(16))
    expected = public_uniform(7, "lora-a", A_NAME, 32) * bound
    found = trainable_tensors(model)[A_NAME].detach().numpy()
    assert found.shape == (2, 16)
    assert np.array_equal(found.reshape(-1), expected)
    assert np.abs(found).max() <= 0.25
    assert found.std() > 0.1


def test_a_depends_on_seed_alone(make_llama: Callable[..., LlamaForCausalLM]) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = trainable_tensors(add_lora(make_llama(), factors="both", **SETTINGS))
    assert torch.equal(torch.random.get_rng_state(), state)  # not consumed
    torch.manual_seed(6)
    same = trainable_tensors(add_lora(make_llama(), factors="both", **SETTINGS))
    other = trainable_tensors(add_lora(make_llama(), factors="both", **(SETTINGS | {"seed": 8})))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first[A_NAME], other[A_NAME])
    assert not torch.equal(first[A_NAME], first[A_NAME.replace("layers.0", "layers.1")])


def test_adapters_are_float32_in_a_bfloat16_model(folder: Path) -> None:
    base = load_model(str(folder), dtype=torch.bfloat16).model
    model = add_lora(base, factors="both", **SETTINGS)
    assert {p.dtype for p in trainable_tensors(model).values()} == {torch.float32}
    exact = add_lora(load_model(str(folder)).model, factors="both", **SETTINGS)
    for name, tensor in trainable_tensors(exact).items():
        assert torch.equal(tensor, trainable_tensors(model)[name])
    randomize_b(model)
    assert logits(model).isfinite().all()


def test_scale_is_alpha_over_rank(make_llama: Callable[..., LlamaForCausalLM]) -> None:
    model = add_lora(make_llama(), target_modules=["o_proj"], rank=4, alpha=6, seed=1)
    randomize_b(model)
    layer = model.base_model.model.model.layers[0].self_attn.o_proj
    x = torch.ones(1, 16)
    update = layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
    expected = layer.base_layer(x) + 1.5 * x @ update
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=8, n_layer=2, n_head=2)),
            {"attn.c_attn"},
        ),
        (
            OPTForCausalLM(
                OPTConfig(
                    vocab_size=32, hidden_size=8, ffn_dim=8, num_hidden_layers=2,
                    num_attention_heads=2, word_embed_proj_dim=8,
                )
            ),
            {"self_attn.q_proj", "self_attn.v_proj"},
        ),
        (  # PEFT's own default would adapt fc1 and fc2 too
            PhiForCausalLM(
                PhiConfig(
                    vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
                    num_attention_heads=2, num_key_value_heads=2,
                )
            ),
            {"self_attn.q_proj", "self_attn.v_proj"},
        ),
        (  # not in PEFT's table
            SmolLM3ForCausalLM(
                SmolLM3Config(
                    vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
                    num_attention_heads=2, num_key_value_heads=2, pad_token_id=0,
                )
            ),
            {"self_attn.q_proj", "self_attn.v_proj"},
        ),
    ],
    ids=["gpt2", "opt", "phi", "smollm3"],
)  # fmt: skip
def test_default_targets(model: nn.Module, expected: set[str]) -> None:
    names = trainable_tensors(add_lora(model, **SETTINGS))
    assert {".".join(name.split(".")[-4:-2]) for name in names} == expected
    assert len(names) == 2 * len(expected)
    randomize_b(model)
    model.eval()
    assert logits(model).isfinite().all()


def test_chosen_layers_only(make_llama: Callable[..., LlamaForCausalLM]) -> None:
    model = add_lora(
        make_llama(), target_modules=["down_proj", "q_proj"], layers=[2, 0, 2], **SETTINGS
    )
    assert list(trainable_tensors(model)) == [
        f"model.layers.{block}.{part}.lora_B.weight"
        for block in (0, 2)
        for part in ("mlp.down_proj", "self_attn.q_proj")
    ]


def test_full_names_as_targets(make_llama: Callable[..., LlamaForCausalLM]) -> None:
    name = "model.layers.1.mlp.up_proj"
    model = add_lora(make_llama(), target_modules=[name], **SETTINGS)
    assert list(trainable_tensors(model)) == [f"{name}.lora_B.weight"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["q_proj", "query"]}, r"got 'query'.*down_proj, gate_proj, k_proj"),
        ({"target_modules": ["proj"]}, "got 'proj'"),
        ({"target_modules": ["lm_head"]}, "got 'lm_head'"),
        ({"target_modules": ["embed_tokens"]}, "got 'embed_tokens'"),
        ({"target_modules": []}, "got an empty list"),
        ({"target_modules": "q_proj"}, "must be a list"),
        ({"layers": [0, 3]}, "from 0 to 2, got 3"),
        ({"layers": [-1]}, "from 0 to 2, got -1"),
        ({"layers": []}, "got an empty list"),
        ({"layers": [0], "target_modules": ["model.layers.1.mlp.up_proj"]}, "from 1 to 1, got 0"),
        (
            {"layers": [0], "target_modules": ["model.layers.1.mlp.up_proj", "q_proj"]},
            "not both",
        ),
        ({"rank": 0}, "rank must be"),
        ({"rank": 1.5}, "rank must be"),
        ({"alpha": 0.0}, "alpha must be"),
        ({"alpha": math.nan}, "alpha must be"),
        ({"alpha": math.inf}, "alpha must be"),
        ({"factors": "a"}, "factors must be one of b, both"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_refuses(
    changes: dict[str, object], message: str, make_llama: Callable[..., LlamaForCausalLM]
) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        add_lora(make_llama(), **(SETTINGS | changes))


def test_refuses_a_second_adapter(make_llama: Callable[..., LlamaForCausalLM]) -> None:
    model = make_llama()
    add_lora(model, **SETTINGS)
    with pytest.raises(InvalidParameterError, match="already has LoRA adapters"):
        add_lora(model, **SETTINGS)


def test_names_do_not_depend_on_wrappers(make_llama: Callable[..., LlamaForCausalLM]) -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    plain = make_llama()
    names = list(trainable_tensors(plain))
    assert "model.layers.0.mlp.up_proj.weight" in names
    assert names == sorted(names)
    assert list(trainable_tensors(Wrapper(plain))) == names
    adapted = add_lora(plain, factors="both", **SETTINGS)
    adapter_names = list(trainable_tensors(adapted))
    assert list(trainable_tensors(Wrapper(adapted))) == adapter_names
    adapted.requires_grad_(requires_grad=True)
    assert set(trainable_tensors(adapted)) == {*names, *adapter_names}


def test_tied_parameters_appear_once(make_llama: Callable[..., LlamaForCausalLM]) -> None:
    names = trainable_tensors(make_llama(tie_word_embeddings=True))
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert "lm_head.weight" in trainable_tensors(make_llama())


def test_frozen_model_has_no_trainable_tensors(folder: Path) -> None:
    assert trainable_tensors(load_model(str(folder)).model) == {}


def test_two_parameters_of_one_name() -> None:
    outer = nn.Module()
    outer.module = nn.Module()
    outer.weight, outer.module.weight = (nn.Parameter(torch.ones(1)) for _ in range(2))
    with pytest.raises(InvalidParameterError, match="two parameters called 'weight'"):
        trainable_tensors(outer)


def test_plain_peft_loads_a_saved_adapter(
    make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path
) -> None:
    model = add_lora(make_llama(), layers=[1], **SETTINGS).eval()
    randomize_b(model)
    save_adapter(model, tmp_path / "a", base_model="embedded")
    again = PeftModel.from_pretrained(make_llama().eval(), tmp_path / "a")
    assert torch.equal(logits(again), logits(model))
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "embedded"
    assert config["inference_mode"] is True
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["lora_dropout"] == 0.0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    with safe_open(tmp_path / "a" / "adapter_model.safetensors", "pt") as file:
        assert len(list(file.keys())) == 4


def test_plain_peft_loads_a_saved_gpt2_adapter(tmp_path: Path) -> None:
    settings = GPT2Config(vocab_size=32, n_embd=8, n_layer=2, n_head=2)
    base = GPT2LMHeadModel(settings).eval()
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = add_lora(base, **SETTINGS)
    randomize_b(model)
    save_adapter(model, tmp_path, base_model="gpt2")
    plain = GPT2LMHeadModel(settings).eval()
    plain.load_state_dict(weights)
    assert torch.equal(logits(PeftModel.from_pretrained(plain, tmp_path)), logits(model))


def test_saving_does_not_change_the_model(
    make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path
) -> None:
    model = add_lora(make_llama(), **SETTINGS)
    save_adapter(model, tmp_path, base_model="x")
    assert model.peft_config["default"].inference_mode is False
    assert len(trainable_tensors(model)) == 6


def test_equal_weights_give_equal_bytes(
    make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path
) -> None:
    """PEFT keeps the targets as a set, whose order changes from process to process."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    for name, names in (("1", targets), ("2", targets[::-1])):
        model = add_lora(make_llama(), target_modules=names, **SETTINGS)
        assert isinstance(model.peft_config["default"].target_modules, set)
        save_adapter(model, tmp_path / name, base_model="tiny")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    config = json.loads((tmp_path / "1" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(targets)


def test_full_weights_of_an_adapted_model_are_refused(
    make_llama: Callable[..., LlamaForCausalLM],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    model = add_lora(make_llama(), **SETTINGS)
    with pytest.raises(InvalidParameterError, match="Use save_adapter"):
        save_full(model, tokenizer, tmp_path)
