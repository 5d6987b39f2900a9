"""Packed layers: the same numbers as plain layers with rounded weights, in less memory."""

from __future__ import annotations

import json
import math
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.autograd import forward_ad
from transformers import FalconConfig, FalconForCausalLM
from transformers.pytorch_utils import Conv1D

from helpers_tiny_models import END, WORDS, make_examples, make_model
from sordino.core.errors import InvalidParameterError
from sordino.gradients.attention import CausalAttentionMode
from sordino.gradients.direction_sets import make_direction_set
from sordino.gradients.estimators import AbstractEstimator, ZerothOrderEstimator
from sordino.gradients.forward_mode import ForwardModeEstimator
from sordino.gradients.objectives import (
    AbstractObjective,
    ClassificationObjective,
    CompletionObjective,
    LanguageModel,
)
from sordino.gradients.parameters import FlatParameterSpace
from sordino.gradients.prefix import FrozenPrefix
from sordino.gradients.projected import FirstOrderEstimator
from sordino.models import (
    PackedLinear,
    _one_token,
    _packed_codes,
    add_lora,
    load_model,
    pack_base,
    packed_linear,
    round_to_nearest,
    save_adapter,
    save_full,
    trainable_tensors,
    unpack_base,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

IDS = torch.tensor([[2, 3, 4, 9, 11, 2, 30]])
SETTINGS: dict[str, Any] = {"rank": 2, "alpha": 4.0, "seed": 1}
LENGTHS = [5, 12, 2, 9, 12, 3]
BATCHES = [[1, 4], [3, 0, 5], [2]]
BLOCK = "model.layers.0."


def random_codes(
    shape: tuple[int, int], bits: int, group_size: int, dtype: torch.dtype = torch.float16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns codes of the whole range, scales of both signs, and offsets."""
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 2**bits, shape, generator=generator)
    num_groups = math.ceil(shape[1] / group_size)
    numbers = torch.randn(2, shape[0], num_groups, generator=generator).to(dtype)
    return codes, numbers[0], numbers[1]


def make_linear(
    in_features: int = 48, out_features: int = 20, *, bias: bool = True, seed: int = 3
) -> torch.nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Linear(in_features, out_features, bias=bias).requires_grad_(False)


def plain_twin(packed: PackedLinear) -> torch.nn.Linear:
    """Returns a plain layer with the packed one's weight."""
    twin = torch.nn.Linear(packed.in_features, packed.out_features, bias=packed.bias is not None)
    twin.weight.data = packed.dequantize()
    if packed.bias is not None:
        twin.bias.data = packed.bias
    return twin.requires_grad_(requires_grad=False)


def unpack(model: torch.nn.Module, packed: torch.nn.Module) -> torch.nn.Module:
    """Gives a plain model the weights of its packed twin."""
    layers = dict(packed.named_modules())
    for name, module in model.named_modules():
        layer = layers[name]
        if isinstance(layer, PackedLinear):
            weight = layer.dequantize()
            module.weight.data = weight.t().contiguous() if layer.fan_in_fan_out else weight
    return model


@pytest.mark.parametrize("has_offsets", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    ("shape", "group_size"),
    [
        ((7, 64), 32),
        ((7, 96), 32),
        ((1, 50), 32),
        ((5, 3), 128),
        ((3, 6), 2),
        ((4, 15), 15),  # a whole row of odd length: its last byte is half empty
        ((4, 15), 5),
        ((2, 7), 1),
        ((1, 1), 1),
    ],
)
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32])
def test_unpacks_what_numpy_computes(
    shape: tuple[int, int],
    group_size: int,
    bits: int,
    has_offsets: bool,
    scale_dtype: torch.dtype,
) -> None:
    """Bit for bit in float32, then rounded once."""
    codes, scales, offsets = random_codes(shape, bits, group_size, scale_dtype)
    steps = np.repeat(scales.numpy().astype(np.float32), group_size, axis=1)[:, : shape[1]]
    starts = np.repeat(offsets.numpy().astype(np.float32), group_size, axis=1)[:, : shape[1]]
    numbers = codes.numpy().astype(np.float32)
    expected = numbers * steps + starts if has_offsets else (numbers - 2 ** (bits - 1)) * steps
    for dtype in (torch.float32, torch.bfloat16):
        layer = PackedLinear.from_codes(
            codes,
            scales,
            offsets=offsets if has_offsets else None,
            bits=bits,
            group_size=group_size,
            compute_dtype=dtype,
        )
        weight = layer.dequantize()
        assert weight.dtype == dtype
        assert weight.is_contiguous()
        assert torch.equal(weight, torch.from_numpy(expected).to(dtype))
        assert torch.equal(layer.codes().long(), codes)


def test_many_rows_are_unpacked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a part, the last one included, changes nothing."""
    codes, scales, _ = random_codes((11, 40), 4, 32)
    layer = PackedLinear.from_codes(codes, scales)
    whole = layer.dequantize()
    for size in (1, 64, 64 * 4, 64 * 10):
        monkeypatch.setattr(_packed_codes, "_CODES_AT_ONCE", size)
        assert torch.equal(layer.dequantize(), whole)


@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1.0, 1e-6, 1e3])
def test_nearest_is_within_half_a_step(
    size: float, dtype: torch.dtype, group_size: int, bits: int, is_symmetric: bool
) -> None:
    """Also at the ends of the grid, for subnormal scales and in a short last group."""
    generator = torch.Generator().manual_seed(1)
    weight = size * torch.randn(24, 300, generator=generator)
    weight[0] = weight[0].abs()
    weight[1] = -weight[1].abs()
    weight[2, :150] = 0.0
    weight[3, 7] = 30 * size
    codes, scales, offsets = round_to_nearest(
        weight, bits=bits, group_size=group_size, is_symmetric=is_symmetric, scale_dtype=dtype
    )
    assert (offsets is None) == is_symmetric
    assert codes.dtype == torch.uint8
    layer = PackedLinear(codes, scales, offsets=offsets, bits=bits, group_size=group_size)
    steps = scales.double().abs().repeat_interleave(group_size, dim=1)[:, :300]
    error = (layer.dequantize().double() - weight.double()).abs()
    assert bool((error <= steps * (0.5 + 1e-4) + 1e-7 * weight.abs()).all())
    assert float((error / steps.clamp_min(1e-30)).max()) > 0.4  # the bound is not a loose one
    assert not layer.dequantize()[2, :128].any()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_symmetric_grid_is_found_again(bits: int) -> None:
    """Weights on a grid whose longer side is used keep every bit; rounding twice is once."""
    codes, scales, _ = random_codes((9, 64), bits, 32)
    codes[:, ::32] = 0  # the longer side, on either side of zero by the scale's sign
    weight = PackedLinear(codes, scales, bits=bits).dequantize()
    found, steps, _ = round_to_nearest(weight, bits=bits, is_symmetric=True)
    assert torch.equal(PackedLinear(found, steps, bits=bits).dequantize(), weight)
    assert torch.equal(steps, scales)
    assert torch.equal(found.long(), codes)


@pytest.mark.parametrize("bits", [4, 8])
def test_an_asymmetric_grid_is_found_again(bits: int) -> None:
    """Where both ends are used, scales and offsets are the same; rounding twice is once."""
    codes, scales, offsets = random_codes((9, 64), bits, 32)
    codes[:, ::32], codes[:, 1::32] = 0, 2**bits - 1
    scales = scales.abs()
    offsets = -scales * (2 ** (bits - 1) + offsets.clamp(-3, 3))  # zero lies on the grid's span
    weight = PackedLinear(codes, scales, offsets=offsets, bits=bits).dequantize()
    found, steps, starts = round_to_nearest(weight, bits=bits)
    assert starts is not None
    assert torch.equal(starts, offsets)
    assert torch.equal(steps, scales)
    assert torch.equal(found.long(), codes)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_products_and_gradients_equal_those_of_a_plain_layer(
    is_symmetric: bool, bits: int, bias: bool
) -> None:
    """Bit-equal in float32."""
    packed = PackedLinear.from_linear(make_linear(bias=bias), bits=bits, is_symmetric=is_symmetric)
    plain = plain_twin(packed)
    results = []
    for layer in (packed, plain):
        x = torch.randn(3, 5, 48, generator=torch.Generator().manual_seed(2), requires_grad=True)
        output = layer(x)
        with torch.no_grad():
            assert torch.equal(layer(x), output)
        output.sigmoid().sum().backward()
        results.append((output, x.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not list(packed.parameters())  # nothing that could be trained or perturbed


def test_function_transforms_and_forward_mode() -> None:
    """grad, vmap, jvp, their compositions, and dual tensors agree with a plain layer."""
    packed = PackedLinear.from_linear(make_linear())
    plain = plain_twin(packed)
    generator = torch.Generator().manual_seed(2)
    x, tangent = torch.randn(2, 3, 48, generator=generator)
    func = torch.func

    def results(layer: torch.nn.Module) -> list[torch.Tensor]:
        def loss(row: torch.Tensor) -> torch.Tensor:
            return layer(row).sigmoid().square().sum()

        found = [
            func.grad(loss)(x),
            func.vmap(func.grad(loss))(x),
            func.grad(lambda rows: func.vmap(loss)(rows).sum())(x),
            func.jvp(loss, (x,), (tangent,))[1],
            func.jvp(func.grad(loss), (x,), (tangent,))[1],
            func.grad(lambda rows: func.jvp(loss, (rows,), (tangent,))[1])(x),
        ]
        for primal in (x, x.clone().requires_grad_()):
            with forward_ad.dual_level():
                output = layer(forward_ad.make_dual(primal, tangent))
                found.append(forward_ad.unpack_dual(output).tangent.detach())
        return found

    for found, expected in zip(results(packed), results(plain), strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)
        assert expected.abs().max() > 0


def test_no_unpacked_weight_outlives_its_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between forward and backward there are codes only; the backward pass drops its weight too."""
    packed = PackedLinear.from_linear(make_linear(64, 96))
    made: list[weakref.ref[torch.Tensor]] = []
    unpack_once = packed_linear.dequantize

    def watched(*args: Any) -> torch.Tensor:
        assert not any(old() is not None for old in made)
        weight = unpack_once(*args)
        made.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr(packed_linear, "dequantize", watched)
    x = torch.randn(5, 64, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (saved.append(tensor), tensor)[1], lambda tensor: tensor
    ):
        output = packed(x)
    assert [old() for old in made] == [None]
    kept = {tensor.data_ptr() for tensor in saved}
    assert kept == {buffer.data_ptr() for buffer in (packed.qweight, packed.scales, packed.offsets)}
    output.sum().backward()
    assert [old() for old in made] == [None, None]


@pytest.mark.parametrize(
    ("bits", "group_size", "is_symmetric", "most"),
    [(4, 32, True, 0.5625), (4, 32, False, 0.625), (4, 128, False, 0.53125), (8, 32, True, 1.0625)],
)
def test_memory(bits: int, group_size: int, is_symmetric: bool, most: float) -> None:
    """Half a byte a weight, and 2 or 4 bytes a group."""
    packed = PackedLinear.from_linear(
        make_linear(256, 64, bias=False),
        bits=bits,
        group_size=group_size,
        is_symmetric=is_symmetric,
    )
    assert sum(tensor.nbytes for tensor in packed.buffers()) <= most * 256 * 64


# -- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"), [("llama", 14), ("qwen2", 14), ("gpt2", 8), ("opt", 14)]
)
def test_packs_linear_layers_and_nothing_else(name: str, count: int) -> None:
    """Embeddings, norms and the output layer stay; outputs are those of rounded weights."""
    packed = pack_base(make_model(name), group_size=8)
    layers = {name: m for name, m in packed.named_modules() if isinstance(m, PackedLinear)}
    assert len(layers) == count
    assert not isinstance(packed.get_output_embeddings(), PackedLinear)
    plain = unpack(make_model(name), packed)
    ids = torch.tensor([[2, 3, 4, 9, 11, 2, 30]])
    assert torch.allclose(packed(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain(ids).logits, make_model(name)(ids).logits, atol=1e-3)
    choices = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": END}
    assert torch.equal(packed.generate(ids, **choices), plain.generate(ids, **choices))


def test_trainable_and_skipped_layers_stay(make_llama: Callable[..., LlamaForCausalLM]) -> None:
    model = make_llama().requires_grad_(requires_grad=False)
    kept = model.get_submodule(BLOCK + "mlp.up_proj").requires_grad_()
    pack_base(model, skip=["o_proj", "lm_head", BLOCK + "mlp.down_proj"])
    plain = {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert plain == {
        "lm_head",
        BLOCK + "mlp.up_proj",
        BLOCK + "mlp.down_proj",
        *(f"model.layers.{block}.self_attn.o_proj" for block in range(3)),
    }
    assert model.get_submodule(BLOCK + "mlp.up_proj") is kept


def test_a_layer_in_two_places_stays_one() -> None:
    linear = make_linear()
    model = pack_base(torch.nn.ModuleDict({"one": linear, "two": linear}))
    assert isinstance(model["one"], PackedLinear)
    assert model["one"] is model["two"]


def test_nothing_to_pack() -> None:
    config = FalconConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=4)
    falcon = FalconForCausalLM(config).requires_grad_(requires_grad=False)
    with pytest.raises(InvalidParameterError, match="an architecture's own kind"):
        pack_base(falcon)  # its layers subclass Linear and multiply themselves
    with pytest.raises(InvalidParameterError, match="Freeze the model with"):
        pack_base(torch.nn.Sequential(torch.nn.Linear(2, 2)))


# -- training ------------------------------------------------------------------------------------


def make_objective(kind: str) -> AbstractObjective:
    examples = make_examples(kind, LENGTHS)
    if kind == "classification":
        return ClassificationObjective(examples, WORDS)
    return CompletionObjective(examples)


def adapted(
    base: Any, *, factors: str, layers: list[int] | None = None, num_directions: int = 4
) -> tuple[LanguageModel, FlatParameterSpace]:
    """Returns a model with an adapter away from its start, and the space that moves it."""
    peft = add_lora(base, factors=factors, layers=layers, **SETTINGS)
    tensors = trainable_tensors(peft)
    generator = torch.Generator().manual_seed(2)
    for parameter in tensors.values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    peft.requires_grad_(requires_grad=False)
    sizes = {name: p.numel() for name, p in tensors.items()}
    space = FlatParameterSpace(tensors, make_direction_set("rademacher", 7, sizes, num_directions))
    prefix = FrozenPrefix.find(peft.get_base_model(), min(layers)) if layers else None
    return LanguageModel(peft.get_base_model(), END, space.rows, prefix), space


def make_estimator(
    kind: str, model: LanguageModel, space: FlatParameterSpace, objective: AbstractObjective
) -> AbstractEstimator:
    if kind == "zeroth-order":
        return ZerothOrderEstimator(model, objective, space, perturbation=1e-2, clip=1e6)
    if kind == "forward-mode":
        return ForwardModeEstimator(model, objective, space, clip=1e6)
    return FirstOrderEstimator(model, objective, space, clip=1.0)


def contributions(
    kind: str, task: str, model: LanguageModel, space: FlatParameterSpace
) -> torch.Tensor:
    estimator = make_estimator(kind, model, space, make_objective(task))
    result = torch.full((len(LENGTHS), 4), math.nan, dtype=torch.float64)
    for records, values in estimator.contributions(3, BATCHES):
        result[list(records)] = values
    return result


@pytest.mark.parametrize("factors", ["b", "both"])
@pytest.mark.parametrize("kind", ["zeroth-order", "first-order", "forward-mode"])
@pytest.mark.parametrize(
    ("name", "task"),
    [("llama", "completion"), ("llama", "classification"), ("gpt2", "completion")],
)
def test_contributions_are_those_of_a_plain_base(
    name: str, task: str, kind: str, factors: str
) -> None:
    """Every estimator sees the model whose weights are the rounded ones."""
    packed = pack_base(make_model(name), group_size=8)
    plain = unpack(make_model(name), packed)
    found = contributions(kind, task, *adapted(packed, factors=factors))
    expected = contributions(kind, task, *adapted(plain, factors=factors))
    assert expected.abs().median() > 1e-3
    if name == "llama":
        assert torch.equal(found, expected)  # GPT-2's own product takes its weight transposed
    # a difference of float32 losses at step 1e-2 keeps about four digits
    size = float(expected.abs().max())
    assert torch.allclose(found, expected, rtol=1e-3, atol=3e-4 * size)


@pytest.mark.parametrize("kind", ["zeroth-order", "first-order", "forward-mode"])
def test_contributions_in_bfloat16(kind: str) -> None:
    """The bits are the same in the usual compute type too."""
    packed = pack_base(make_model("llama").bfloat16(), group_size=8)
    plain = unpack(make_model("llama").bfloat16(), packed)
    found = contributions(kind, "completion", *adapted(packed, factors="both"))
    assert torch.equal(found, contributions(kind, "completion", *adapted(plain, factors="both")))


@pytest.mark.parametrize("kind", ["zeroth-order", "first-order", "forward-mode"])
def test_kept_prefix_states(kind: str) -> None:
    """A frozen prefix of packed blocks gives the same bits."""
    base = pack_base(make_model("llama"), group_size=8)
    model, space = adapted(base, factors="both", layers=[1])
    assert model.prefix is not None
    found = contributions(kind, "completion", model, space)
    model.prefix = None
    assert torch.equal(found, contributions(kind, "completion", model, space))


def test_causal_attention_mode() -> None:
    """Its backward pass lies between packed layers."""
    gradients = []
    packed = pack_base(make_model("llama"), group_size=8)
    for base in (packed, unpack(make_model("llama"), packed)):
        model = add_lora(base, **SETTINGS)
        with CausalAttentionMode():
            model(IDS).logits.square().sum().backward()
        gradients.append(torch.cat([p.grad.ravel() for p in trainable_tensors(model).values()]))
    assert gradients[0].abs().sum() > 0
    assert torch.equal(*gradients)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("factors", ["b", "both"])
def test_the_adapter_fits_the_unpacked_base(name: str, factors: str, tmp_path: Path) -> None:
    """Same names, same start, same configuration; plain PEFT loads it on plain weights."""
    packed = pack_base(make_model(name), group_size=8)
    plain = unpack(make_model(name), packed)
    over_packed = add_lora(packed, factors=factors, **SETTINGS)
    over_plain = add_lora(make_model(name), factors=factors, **SETTINGS)
    tensors, usual = trainable_tensors(over_packed), trainable_tensors(over_plain)
    assert list(tensors) == list(usual)
    assert all(torch.equal(tensors[key], usual[key]) for key in tensors)
    assert {p.dtype for p in tensors.values()} == {torch.float32}
    save_adapter(over_plain, tmp_path / "usual", base_model="some/base")
    save_adapter(over_packed, tmp_path / "packed", base_model="some/base")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        usual_bytes = (tmp_path / "usual" / file).read_bytes()
        assert (tmp_path / "packed" / file).read_bytes() == usual_bytes
    for parameter in tensors.values():
        parameter.data += 0.1
    save_adapter(over_packed, tmp_path / "moved", base_model="some/base")
    loaded = PeftModel.from_pretrained(plain, tmp_path / "moved")
    assert torch.allclose(loaded(IDS).logits, over_packed(IDS).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(loaded(IDS).logits, over_plain(IDS).logits, atol=1e-3)
    config = json.loads((tmp_path / "moved" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] == (name == "gpt2")


def test_adapter_in_bfloat16_stays_float32() -> None:
    model = add_lora(pack_base(make_model("llama").bfloat16()), factors="both", **SETTINGS)
    assert {p.dtype for p in trainable_tensors(model).values()} == {torch.float32}
    assert model(IDS).logits.dtype == torch.bfloat16


def test_merging_fails_and_changes_nothing() -> None:
    """An adapter cannot be added to codes; it must not vanish without a word."""
    model = add_lora(pack_base(make_model("llama")), **SETTINGS)
    with pytest.raises(AttributeError, match="no attribute 'weight'"):
        model.merge_and_unload()


def test_packed_layers_are_not_saved_as_a_model(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(InvalidParameterError, match="without base_bits"):
        save_full(pack_base(make_model("llama")), tokenizer, tmp_path / "model")
    assert not (tmp_path / "model").exists()


# -- loading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_load_model(folder: Path, dtype: torch.dtype, bits: int) -> None:
    """The fingerprint is that of the files; the weights are those rounded after loading."""
    plain = load_model(str(folder), dtype=dtype)
    loaded = load_model(str(folder), dtype=dtype, base_bits=bits)
    assert (plain.base_bits, loaded.base_bits) == (None, bits)
    assert loaded.fingerprint == plain.fingerprint
    layer = loaded.model.get_submodule(BLOCK + "mlp.up_proj")
    assert isinstance(layer, PackedLinear)
    assert (layer.bits, layer.group_size, layer.compute_dtype) == (bits, 32, dtype)
    assert not any(p.requires_grad for p in loaded.model.parameters())
    expected = pack_base(plain.model, bits=bits)(IDS).logits
    assert torch.equal(loaded.model(IDS).logits, expected)


def test_gguf(gguf_file: Path) -> None:
    """A model read from a packed file is packed anew, and is close to what it was."""
    plain = load_model(str(gguf_file))
    loaded = load_model(str(gguf_file), base_bits=8)
    ids = torch.tensor([[2, 3, 4]])
    before = plain.model(ids).logits
    after = loaded.model(ids).logits
    assert loaded.fingerprint == plain.fingerprint
    assert not torch.equal(after, before)
    assert torch.allclose(after, before, atol=1e-2)
    assert torch.equal(after, pack_base(plain.model, bits=8)(ids).logits)


# -- errors --------------------------------------------------------------------------------------


def test_bits_are_checked_before_anything_is_loaded() -> None:
    with pytest.raises(InvalidParameterError, match="4 or 8, got 3"):
        load_model("./no-such-folder", base_bits=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 5}, "must be 4 or 8, got 5"),
        ({"bits": True}, "must be 4 or 8, got True"),
        ({"bits": math.nan}, "must be 4 or 8, got nan"),
        ({"bits": 2}, "must be 4 or 8, got 2"),
        ({"group_size": 0}, "group_size must be a whole number at least 1"),
        ({"group_size": 32.0}, "group_size must be a whole number"),
        ({"skip": ["q_prj"]}, "skip must name linear layers of the model, got 'q_prj'"),
        ({"skip": "lm_head"}, "skip must be a list of names"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    model = make_model("llama")
    with pytest.raises(InvalidParameterError, match=message):
        pack_base(model, **changes)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": torch.full((4, 64), 16)}, "must be in \\[0, 15\\], found 16 to 16"),
        (
            {"codes": torch.full((4, 64), -1)},
            "found -1 to -1. Signed codes must be shifted up by 8",
        ),
        ({"codes": torch.zeros(4, 64)}, "integer type, got torch.float32"),
        ({"codes": torch.zeros(64, dtype=torch.uint8)}, "shape \\(out_features, in_features\\)"),
        ({"codes": torch.zeros(0, 64, dtype=torch.uint8)}, "shape \\(out_features, in_features\\)"),
        ({"scales": torch.ones(4, 3)}, "scales must have shape \\(4, 2\\), got \\(4, 3\\)"),
        ({"scales": torch.ones(4, 2).double()}, "scales must be float16, bfloat16 or float32"),
        ({"scales": torch.full((4, 2), math.nan)}, "scales must be finite"),
        ({"scales": torch.full((4, 2), math.inf)}, "scales must be finite"),
        ({"offsets": torch.ones(4)}, "offsets must have shape"),
        ({"offsets": torch.full((4, 2), math.nan)}, "offsets must be finite"),
        ({"bias": torch.ones(5)}, "bias must have shape \\(4,\\), got \\(5,\\)"),
        ({"compute_dtype": torch.float64}, "compute_dtype must be"),
        ({"bits": 3}, "2, 4 or 8, got 3"),
        ({"group_size": 0}, "group_size must be a whole number at least 1"),
    ],
)
def test_what_a_quantizer_gives_is_checked(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "codes": torch.zeros(4, 64, dtype=torch.uint8),
        "scales": torch.ones(4, 2),
    } | changes
    with pytest.raises(InvalidParameterError, match=message):
        PackedLinear.from_codes(given.pop("codes"), given.pop("scales"), **given)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e6])
def test_weights_must_be_finite_and_fit_the_scale(bad: float) -> None:
    """1e6 / 15 is beyond float16, and fits in float32."""
    model = make_model("llama")
    model.get_submodule(BLOCK + "mlp.up_proj").weight.data[3, 4] = bad
    with pytest.raises(
        InvalidParameterError, match=r"layers.0.mlp.up_proj: weights must be finite"
    ):
        pack_base(model)


def test_scale_type() -> None:
    weight = torch.full((1, 32), 1e6)
    _, scales, _ = round_to_nearest(weight, is_symmetric=True, scale_dtype=torch.float32)
    assert scales.item() == -1e6 / 8
    with pytest.raises(InvalidParameterError, match="scale_dtype must be"):
        round_to_nearest(weight, scale_dtype=torch.float64)


def test_only_plain_layers_before_adapters() -> None:
    adapted_model = add_lora(make_model("llama"), **SETTINGS)
    with pytest.raises(InvalidParameterError, match="already has adapters: pack the base model"):
        pack_base(adapted_model)
    with pytest.raises(InvalidParameterError, match="got Embedding"):
        PackedLinear.from_linear(torch.nn.Embedding(3, 4))
    packed = PackedLinear.from_linear(Conv1D(6, 8))
    assert (packed.out_features, packed.in_features, packed.fan_in_fan_out) == (6, 8, True)
    assert "bits=4, group_size=32" in repr(packed)


# -- single tokens -------------------------------------------------------------------------------

needs_operator = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in _one_token._FAST_PROCESSORS,
    reason="this processor unpacks weights for single tokens too",
)


def one_token_layer(
    shape: tuple[int, int] = (48, 192), group_size: int = 32, **settings: Any
) -> PackedLinear:
    codes, scales, _ = random_codes(shape, 4, group_size)
    scales = scales.abs() / 8
    return PackedLinear(
        codes, scales, group_size=group_size, compute_dtype=torch.bfloat16, **settings
    )


@needs_operator
@pytest.mark.parametrize(
    ("shape", "group_size"),
    [((48, 192), 32), ((16, 64), 64), ((32, 192), 192), ((16, 256), 128), ((16, 512), 512)],
)
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_single_tokens_agree_within_rounding(
    shape: tuple[int, int], group_size: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off by a rounding of each scale and of the result, where unpacking rounds each weight."""
    layer = one_token_layer(shape, group_size, bias=torch.ones(shape[0]))
    x = torch.randn(rows, 1, shape[1], generator=torch.Generator().manual_seed(1)).bfloat16()
    unpacked = layer(x.expand(rows, 2, shape[1]))[:, :1]  # two tokens: not for the operator
    weight = layer.dequantize().double()
    with monkeypatch.context() as patch:
        patch.setattr(packed_linear, "dequantize", None)  # nothing is unpacked
        found = layer(x)
    assert found.shape == (rows, 1, shape[0])
    assert found.dtype == torch.bfloat16
    exact = x.double() @ weight.t() + 1.0
    size = x.double().abs() @ weight.abs().t()
    for result in (found, unpacked):
        allowed = 2.0**-8 * size + 2.0**-7 * exact.abs()
        assert bool(((result.double() - exact).abs() <= allowed).all())
    assert not torch.equal(found[0], found[0] * 0)


@pytest.mark.parametrize(
    ("changes", "x"),
    [
        ({}, torch.ones(17, 1, 192).bfloat16()),  # many rows
        ({}, torch.ones(1, 2, 192).bfloat16()),  # two tokens
        ({}, torch.ones(1, 192).bfloat16()),
        ({"shape": (47, 192)}, torch.ones(1, 1, 192).bfloat16()),
        ({"group_size": 16}, torch.ones(1, 1, 192).bfloat16()),
        ({"group_size": 128}, torch.ones(1, 1, 192).bfloat16()),  # the last group is short
        ({"offsets": torch.ones(48, 6)}, torch.ones(1, 1, 192).bfloat16()),
    ],
)
def test_all_else_is_unpacked(changes: dict[str, Any], x: torch.Tensor) -> None:
    """Bit for bit the product with the unpacked weight."""
    layer = one_token_layer(**changes)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.dequantize()))
    assert layer._one_token is None


@needs_operator
def test_derivatives_of_single_tokens() -> None:
    """Whatever needs a derivative or a transform takes the unpacked weight."""
    layer = one_token_layer()
    plain = plain_twin(layer)
    x, tangent = torch.randn(2, 4, 1, 192, generator=torch.Generator().manual_seed(2)).bfloat16()
    leaf = x.clone().requires_grad_()
    layer(leaf).float().square().sum().backward()
    twin = x.clone().requires_grad_()
    plain(twin).float().square().sum().backward()
    assert torch.equal(leaf.grad, twin.grad)
    with torch.no_grad(), forward_ad.dual_level():
        found = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent))).tangent
    assert torch.equal(found, plain(tangent))
    with torch.no_grad():
        assert torch.equal(torch.func.vmap(layer)(x[:, None]), torch.func.vmap(plain)(x[:, None]))
        assert torch.equal(torch.func.jvp(layer, (x,), (tangent,))[1], plain(tangent))
    assert layer._one_token is None


@needs_operator
def test_changed_buffers_are_seen() -> None:
    """Loading other codes, or moving the layer, drops what was made from the old ones."""
    layer = one_token_layer()
    x = torch.ones(1, 1, 192).bfloat16()
    before = layer(x)
    assert layer._one_token is not None
    state = layer.state_dict()
    assert not any("one_token" in name for name in state)
    layer.load_state_dict(state | {"scales": state["scales"] * 2})
    assert torch.allclose(layer(x), before * 2)
    layer.to("cpu")
    assert layer._one_token is None


@needs_operator
def test_generation_takes_the_operator() -> None:
    """After the first token of a text; the tokens are those of the unpacked weights here."""
    model = make_model("llama", hidden_size=64, intermediate_size=96).bfloat16()
    packed = pack_base(model, is_symmetric=True)
    choices = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": END}
    made = packed.generate(IDS, **choices)
    layers = [m for m in packed.modules() if isinstance(m, PackedLinear)]
    assert all(layer._one_token is not None for layer in layers)
    plain = unpack_base(packed)
    assert torch.equal(made, plain.generate(IDS, **choices))
