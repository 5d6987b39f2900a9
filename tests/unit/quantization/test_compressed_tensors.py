"""Folders in pack-quantized format: the other library and our own reader find equal weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from helpers_quantized import ROW, put_weights, quantize_randomly, random_layer
from helpers_runs import write_tiny_model
from helpers_tiny_models import make_model
from sordino.core.errors import InvalidParameterError, ModelUnavailableError
from sordino.models import (
    PackedLinear,
    add_lora,
    compute_fingerprint,
    load_adapter,
    load_model,
    pack_base,
    save_adapter,
    save_full,
    trainable_tensors,
    unpack_base,
)
from sordino.models._quiet import quiet
from sordino.quantization import compressed_tensors, write_compressed_tensors
from sordino.quantization.pipeline import drop_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sordino.quantization.layers import QuantizedLayer

WIDTHS = {"hidden_size": 64, "intermediate_size": 96, "tie_word_embeddings": True}
IDS = torch.tensor([[2, 3, 4, 9, 11, 2, 30]])
MIXED = [(4, 32), (2, 32), (8, ROW), (4, 16), (2, ROW), (8, 8), (4, ROW)]
LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(str(write_tiny_model(tmp_path_factory.mktemp("tiny")))).tokenizer


@pytest.fixture
def write(tmp_path: Path, tokenizer: Any) -> Callable[..., tuple[Path, Any, dict[str, Any]]]:
    """A function that writes a quantized tiny model; returns folder, model and layers."""

    def write(
        kinds: Any = MIXED, name: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any
    ) -> tuple[Path, Any, dict[str, QuantizedLayer]]:
        settings = {"vocab_size": len(tokenizer), **WIDTHS, **changes}
        model = make_model(name, **settings).to(dtype)
        layers = quantize_randomly(model, kinds)
        write_compressed_tensors(tmp_path / "packed", model, layers, tokenizer)
        return tmp_path / "packed", model, layers

    return write


def transformers_weights(folder: Path, dtype: Any, names: Any) -> dict[str, torch.Tensor]:
    """Returns the weights that transformers and compressed-tensors compute with."""
    pytest.importorskip("compressed_tensors", reason="the package compressed-tensors is absent")
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        model(IDS)  # it decompresses before its first product
    return {name: model.get_submodule(name).weight.detach() for name in names}


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_transformers_finds_our_weights(
    write: Callable[..., Any], name: str, dtype: torch.dtype
) -> None:
    """Bit for bit: 2, 4 and 8 bits, groups and whole rows, all in one model."""
    own = {"ffn_dim": 96, "word_embed_proj_dim": 64} if name == "opt" else {}
    folder, _, layers = write(name=name, **own)
    found = transformers_weights(folder, dtype, layers)
    assert len({(layer.bits, layer.group_size) for layer in layers.values()}) >= 7
    for layer_name, layer in layers.items():
        assert found[layer_name].dtype == dtype
        assert torch.equal(found[layer_name], layer.dequantize(dtype)), layer_name


def test_transformers_in_bfloat16_rounds_scales_first(write: Callable[..., Any]) -> None:
    """The one known difference: there weights are off by less than two roundings to bfloat16."""
    folder, _, layers = write(dtype=torch.bfloat16)
    found = transformers_weights(folder, "auto", layers)
    for name, layer in layers.items():
        exact = layer.dequantize()
        assert found[name].dtype == torch.bfloat16
        assert bool(((found[name].float() - exact).abs() <= 2.0**-7 * exact.abs()).all())
        assert torch.equal(
            found[name].float(),
            (
                layer.codes.view(len(exact), -1, layer.group_size)
                * layer.scales.bfloat16()[..., None]
            )
            .view_as(exact)
            .float(),
        )


def test_transformers_computes_the_same_logits(write: Callable[..., Any]) -> None:
    pytest.importorskip("compressed_tensors", reason="the package compressed-tensors is absent")
    folder, model, layers = write()
    with quiet():
        theirs = AutoModelForCausalLM.from_pretrained(folder)
        logits = theirs(IDS).logits
    assert torch.equal(logits, put_weights(model, layers)(IDS).logits)
    assert torch.equal(logits, load_model(str(folder)).model(IDS).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_our_reader_finds_our_weights(
    write: Callable[..., Any], tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    """Bit for bit in every type, in packed layers; other weights are those of the model."""
    folder, model, layers = write(name=name)
    loaded = load_model(str(folder), dtype=dtype)
    assert loaded.base_bits == 8
    assert loaded.fingerprint == compute_fingerprint(folder)
    found = {n: m for n, m in loaded.model.named_modules() if isinstance(m, PackedLinear)}
    assert sorted(found) == sorted(layers)
    for layer_name, layer in layers.items():
        packed = found[layer_name]
        assert (packed.bits, packed.group_size) == (layer.bits, layer.group_size)
        assert packed.scales.dtype == torch.float16
        assert torch.equal(packed.dequantize(), layer.dequantize(dtype)), layer_name
        bias = model.get_submodule(layer_name).bias
        assert (packed.bias is None) == (bias is None)
        assert bias is None or torch.equal(packed.bias, bias.to(dtype))
    save_full(put_weights(model, layers), loaded.tokenizer, tmp_path / "plain")
    plain = load_model(str(tmp_path / "plain"), dtype=dtype)
    assert torch.equal(loaded.model(IDS).logits, plain.model(IDS).logits)
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert "quantization_config" not in loaded.model.config.to_dict()


def test_files_are_small_and_equal(write: Callable[..., Any], tmp_path: Path) -> None:
    """Codes and scales take what the layers say; the same layers give the same bytes."""
    folder, model, layers = write([(4, 32)], dtype=torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    held = sum(
        tensors[f"{name}.{part}"].nbytes
        for name in layers
        for part in ("weight_packed", "weight_scale")
    )
    assert held == sum(layer.num_bytes for layer in layers.values())
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert not any(f"{name}.weight" in tensors for name in layers)
    write_compressed_tensors(tmp_path / "again", model, layers, load_model(str(folder)).tokenizer)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def test_type_of_the_other_weights(tmp_path: Path, tokenizer: Any) -> None:
    model = make_model("llama", vocab_size=len(tokenizer), **WIDTHS)
    layers = quantize_randomly(model, [(4, 32)])
    write_compressed_tensors(tmp_path, model, layers, tokenizer, dtype=torch.float16)
    assert load_file(tmp_path / "model.safetensors")["model.norm.weight"].dtype == torch.float16
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    with pytest.raises(InvalidParameterError, match="dtype must be one of float16"):
        write_compressed_tensors(tmp_path, model, layers, tokenizer, dtype=torch.float64)


def test_some_layers_only(tmp_path: Path, tokenizer: Any) -> None:
    """Layers that were not quantized stay plain, and are named for readers that want to know."""
    model = make_model("llama", vocab_size=len(tokenizer), **WIDTHS)
    layers = {LAYER: random_layer(LAYER, (96, 64), bits=4, group_size=32, seed=0)}
    write_compressed_tensors(tmp_path, model, layers, tokenizer)
    loaded = load_model(str(tmp_path)).model
    packed = [n for n, m in loaded.named_modules() if isinstance(m, PackedLinear)]
    assert packed == [LAYER]
    ignored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["ignore"]
    assert len(ignored) == 14
    found = transformers_weights(tmp_path, torch.float32, [LAYER, "model.layers.1.mlp.up_proj"])
    assert torch.equal(found[LAYER], layers[LAYER].dequantize())
    plain = model.get_submodule("model.layers.1.mlp.up_proj").weight
    assert torch.equal(found["model.layers.1.mlp.up_proj"], plain)


def test_a_packed_model_is_quantized_anew(write: Callable[..., Any], tmp_path: Path) -> None:
    """What was loaded packed can be written again, if every packed layer is replaced."""
    folder, _, layers = write([(8, 32)])
    loaded = load_model(str(folder))
    fresh = quantize_randomly(make_model("llama", vocab_size=40, **WIDTHS), [(4, 16)])
    with pytest.raises(InvalidParameterError, match="not quantized anew, the first is"):
        write_compressed_tensors(
            tmp_path / "b", loaded.model, {LAYER: fresh[LAYER]}, loaded.tokenizer
        )
    write_compressed_tensors(tmp_path / "b", loaded.model, fresh, loaded.tokenizer)
    again = load_model(str(tmp_path / "b")).model
    assert torch.equal(again.get_submodule(LAYER).dequantize(), fresh[LAYER].dequantize())
    assert set(fresh) == set(layers)


# -- what cannot be written ----------------------------------------------------------------------


def test_gpt2_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    """The other side quantizes torch.nn.Linear only, and GPT-2 has Conv1D layers."""
    name = "transformer.h.0.attn.c_attn"
    layers = {name: random_layer(name, (48, 16), bits=4, group_size=16, seed=0)}
    with pytest.raises(InvalidParameterError, match=r"c_attn is a Conv1D layer.*GPT-2"):
        write_compressed_tensors(tmp_path / "x", make_model("gpt2"), layers, tokenizer)
    packed = pack_base(make_model("gpt2"))
    with pytest.raises(InvalidParameterError, match="not quantized anew"):
        write_compressed_tensors(tmp_path / "x", packed, layers, tokenizer)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.layers.9.mlp.up_proj", (96, 64), "which the model does not have"),
        (LAYER, (64, 96), r"has shape \(96, 64\), got codes"),
        ("model.embed_tokens", (40, 64), "is a Embedding layer"),
        ("lm_head", (40, 64), "shares its weight with another module"),
    ],
)
def test_layers_that_do_not_fit(
    tmp_path: Path, tokenizer: Any, name: str, shape: tuple[int, int], message: str
) -> None:
    model = make_model("llama", **WIDTHS)
    layers = {name: random_layer(name, shape, bits=4, group_size=32, seed=0)}
    with pytest.raises(InvalidParameterError, match=message):
        write_compressed_tensors(tmp_path / "x", model, layers, tokenizer)
    assert not (tmp_path / "x").exists()


def test_adapters_and_no_layers(tmp_path: Path, tokenizer: Any) -> None:
    model = make_model("llama", **WIDTHS)
    with pytest.raises(InvalidParameterError, match="at least one linear layer"):
        write_compressed_tensors(tmp_path, model, {}, tokenizer)
    layers = quantize_randomly(model, [(4, 32)])
    adapted = add_lora(model, rank=2, alpha=4.0, seed=1)
    with pytest.raises(InvalidParameterError, match="merge them first"):
        write_compressed_tensors(tmp_path, adapted.get_base_model(), layers, tokenizer)


# -- what cannot be read -------------------------------------------------------------------------


def change_config(folder: Path, path: str, value: Any) -> None:
    """Sets one value inside quantization_config; "*" is the first of its level."""
    config = json.loads((folder / "config.json").read_text())
    *parents, last = path.split(".")
    place = config["quantization_config"]
    for key in parents:
        place = place[next(iter(place)) if key == "*" else key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", "int-quantized"),
        ("format", "mixed-precision"),
        ("format", None),
        ("quantization_status", "frozen"),
        ("quantization_status", None),
        ("kv_cache_scheme", {"num_bits": 8}),
        ("transform_config", {"u": 1}),
        ("sparsity_config", {"format": "sparse-24"}),
        ("config_groups", {}),
        ("config_groups", {"W4A16": ["Linear"]}),
        ("config_groups.*.format", "nvfp4-pack-quantized"),
        ("config_groups.*.input_activations", {"num_bits": 8}),
        ("config_groups.*.output_activations", {"num_bits": 8}),
        ("config_groups.*.targets", "Linear"),
        ("config_groups.*.weights.num_bits", 3),
        ("config_groups.*.weights.num_bits", True),
        ("config_groups.*.weights.num_bits", float("nan")),
        ("config_groups.*.weights.type", "float"),
        ("config_groups.*.weights.symmetric", False),
        ("config_groups.*.weights.symmetric", 1),
        ("config_groups.*.weights.dynamic", True),
        ("config_groups.*.weights.actorder", "group"),
        ("config_groups.*.weights.strategy", "tensor"),
        ("config_groups.*.weights.strategy", "channel"),
        ("config_groups.*.weights.group_size", 0),
        ("config_groups.*.weights.group_size", 32.0),
        ("config_groups.*.weights.block_structure", [1, 1]),
    ],
)
def test_other_kinds_are_refused(write: Callable[..., Any], path: str, value: Any) -> None:
    folder, _, _ = write([(4, 32)])
    change_config(folder, path, value)
    with pytest.raises(ModelUnavailableError, match="stored quantized in a way that is not read"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("config_groups.*.weights.num_bits", 8, r"64 inputs|words"),
        ("config_groups.*.weights.group_size", 16, "scales must have shape"),
        ("config_groups.*.weights.group_size", 40, "groups of 40"),
        ("config_groups.*.targets", ["re:.*attn"], "no target in config.json names it"),
        ("config_groups.*.targets", ["re:("], "cannot be read"),
    ],
)
def test_description_that_does_not_fit(
    write: Callable[..., Any], path: str, value: Any, message: str
) -> None:
    folder, _, _ = write([(4, 32)])
    change_config(folder, path, value)
    with pytest.raises(ModelUnavailableError, match=message):
        load_model(str(folder))


@pytest.mark.parametrize("targets", [["Linear"], ["re:.*mlp", "re:.*self_attn"]])
def test_targets_of_other_writers(write: Callable[..., Any], targets: list[str]) -> None:
    """Class names and patterns, as llm-compressor writes them."""
    folder, _, layers = write([(4, 32)])
    change_config(folder, "config_groups.*.targets", targets)
    loaded = load_model(str(folder)).model
    assert torch.equal(loaded.get_submodule(LAYER).dequantize(), layers[LAYER].dequantize())


def change_tensors(folder: Path, changes: dict[str, Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, value in changes.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({".weight_scale": None}, r"lacks \.weight_scale"),
        ({".weight_shape": None}, r"lacks \.weight_shape"),
        ({".weight_zero_point": torch.zeros(96, 2)}, r"has \.weight_zero_point"),
        ({".weight_g_idx": torch.zeros(64)}, r"has \.weight_g_idx"),
        ({".weight_packed": torch.zeros(96, 8)}, "stored as torch.float32"),
        ({".weight_packed": torch.zeros(96, 7, dtype=torch.int32)}, r"\(96, 7\) words"),
        ({".weight_packed": torch.zeros(95, 8, dtype=torch.int32)}, r"shape is \(96, 64\)"),
        ({".weight_scale": torch.full((96, 2), torch.nan)}, "scales must be finite"),
        ({".weight_scale": torch.ones(96, 2).double()}, "torch.float64"),
        ({".weight_scale": torch.ones(96, 1)}, "scales must have shape"),
        ({".weight_shape": torch.tensor([96, 64, 1])}, r"shape is \(96, 64, 1\)"),
        ({".weight_packed": None}, "weights are missing"),
    ],
)
def test_damaged_layers(write: Callable[..., Any], changes: dict[str, Any], message: str) -> None:
    folder, _, _ = write([(4, 32)])
    change_tensors(folder, {LAYER + part: value for part, value in changes.items()})
    with pytest.raises(ModelUnavailableError, match=message):
        load_model(str(folder))


def test_layers_that_the_model_does_not_have(write: Callable[..., Any]) -> None:
    folder, _, _ = write([(4, 32)])
    tensors = load_file(folder / "model.safetensors")
    stray = {
        "model.embed_tokens" + part: tensors[LAYER + part]
        for part in (".weight_packed", ".weight_scale", ".weight_shape")
    }
    change_tensors(folder, stray)
    with pytest.raises(ModelUnavailableError, match=r"cannot be read|wrong shape"):
        load_model(str(folder))


# -- what is done with such a base ---------------------------------------------------------------


def test_base_bits_are_refused_for_a_packed_folder(write: Callable[..., Any]) -> None:
    folder, _, _ = write([(4, 32)])
    with pytest.raises(InvalidParameterError, match="base_bits must be left out"):
        load_model(str(folder), base_bits=4)


def test_adapters_save_load_and_merge(write: Callable[..., Any], tmp_path: Path) -> None:
    """An adapter over codes is the adapter of the plain twin; plain weights take it in."""
    folder, model, layers = write([(4, 32)])
    loaded = load_model(str(folder))
    adapted = add_lora(loaded.model, rank=2, alpha=4.0, seed=1)
    for parameter in trainable_tensors(adapted).values():
        parameter.data += 0.3
    save_adapter(adapted, tmp_path / "adapter", base_model=str(folder))
    expected = adapted(IDS).logits
    again, _ = load_adapter(load_model(str(folder)).model, tmp_path / "adapter")
    assert torch.equal(again(IDS).logits, expected)
    plain, _ = load_adapter(put_weights(model, layers), tmp_path / "adapter")
    assert torch.equal(plain(IDS).logits, expected)
    unpacked, _ = load_adapter(unpack_base(load_model(str(folder)).model), tmp_path / "adapter")
    merged = unpacked.merge_and_unload()
    assert torch.allclose(merged(IDS).logits, expected, atol=1e-5)


def test_unpacked_base_is_plain_and_saves(write: Callable[..., Any], tmp_path: Path) -> None:
    folder, model, layers = write(name="qwen2")
    loaded = load_model(str(folder))
    with pytest.raises(InvalidParameterError, match="make them plain with unpack_base"):
        save_full(loaded.model, loaded.tokenizer, tmp_path / "no")
    unpack_base(loaded.model)
    assert not any(isinstance(m, PackedLinear) for m in loaded.model.modules())
    assert not any(p.requires_grad for p in loaded.model.parameters())
    save_full(loaded.model, loaded.tokenizer, tmp_path / "plain")
    plain = load_model(str(tmp_path / "plain"))
    assert plain.base_bits is None
    assert torch.equal(plain.model(IDS).logits, put_weights(model, layers)(IDS).logits)
    adapted = add_lora(load_model(str(folder)).model, rank=2, alpha=4.0, seed=1)
    with pytest.raises(InvalidParameterError, match="unpack the base model first"):
        unpack_base(adapted)


def test_unpacked_gpt2_keeps_its_kind_of_layer() -> None:
    packed = pack_base(make_model("gpt2"), group_size=8)
    before = packed(IDS).logits
    unpack_base(packed)
    assert type(packed.transformer.h[0].attn.c_attn).__name__ == "Conv1D"
    assert torch.allclose(packed(IDS).logits, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_weights_are_stored_as_short_as_they_are(
    dtype: torch.dtype, tmp_path: Path, tokenizer: Any
) -> None:
    """A 16-bit checkpoint computed in float32 takes 16 bits again; every number is kept."""
    model = make_model("llama", vocab_size=len(tokenizer), **WIDTHS).to(dtype).float()
    layers = quantize_randomly(model, [(4, 32)])
    write_compressed_tensors(tmp_path / "q", model, layers, tokenizer)
    stored = load_file(tmp_path / "q" / "model.safetensors")
    assert stored["model.embed_tokens.weight"].dtype == dtype
    config = json.loads((tmp_path / "q" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "float32"  # readers compute with the scales as they are
    loaded = load_model(str(tmp_path / "q")).model
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, model.get_parameter(name)), name


def test_one_long_number_at_the_end_of_a_matrix_is_kept(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large matrices are looked at in parts: the last part counts as much as the first."""
    monkeypatch.setattr(compressed_tensors, "_ENTRIES_AT_ONCE", 100)
    model = make_model("llama", vocab_size=len(tokenizer), **WIDTHS).bfloat16().float()
    layers = quantize_randomly(model, [(4, 32)])
    model.get_input_embeddings().weight.data[-1, -1] = 1.0 + 2.0**-20
    write_compressed_tensors(tmp_path / "q", model, layers, tokenizer)
    stored = load_file(tmp_path / "q" / "model.safetensors")
    assert stored["model.embed_tokens.weight"].dtype == torch.float32
    assert torch.equal(stored["model.embed_tokens.weight"], model.get_input_embeddings().weight)


def test_dropped_weights_take_no_memory_and_change_no_file(
    write: Callable[..., Any], tmp_path: Path, tokenizer: Any
) -> None:
    folder, model, layers = write(kinds=[(4, 32)])
    modules = {name: model.get_submodule(name) for name in layers}
    drop_weights([modules], layers)
    for name, module in modules.items():
        assert module.weight.shape == layers[name].codes.shape
        assert module.weight.untyped_storage().nbytes() == 4
    write_compressed_tensors(tmp_path / "dropped", model, layers, tokenizer)
    for file in folder.iterdir():
        assert (tmp_path / "dropped" / file.name).read_bytes() == file.read_bytes(), file.name
