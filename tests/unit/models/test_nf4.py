"""NF4 layers on the CPU: bitsandbytes computes there too, slowly, which is enough for the maths."""

from __future__ import annotations

import copy
import math
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from helpers_tiny_models import END, make_examples, make_model
from sordino.core.errors import InvalidParameterError, MissingExtraError
from sordino.gradients.direction_sets import make_direction_set
from sordino.gradients.estimators import ZerothOrderEstimator
from sordino.gradients.objectives import CompletionObjective, LanguageModel
from sordino.gradients.parameters import FlatParameterSpace
from sordino.gradients.prefix import FrozenPrefix
from sordino.gradients.projected import FirstOrderEstimator
from sordino.models import (
    add_lora,
    dequantize_nf4,
    is_nf4,
    is_packed,
    load_adapter,
    load_model,
    pack_base,
    pack_base_nf4,
    save_adapter,
    save_full,
    trainable_tensors,
    unpack_base,
)
from sordino.training.setup import prepare_full

bitsandbytes = pytest.importorskip("bitsandbytes")

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

IDS = torch.tensor([[2, 3, 4, 9, 11, 2, 30]])
SETTINGS: dict[str, Any] = {"rank": 2, "alpha": 4.0, "seed": 1}
LENGTHS = [5, 12, 2, 9, 12, 3]
BATCHES = [[1, 4], [3, 0, 5], [2]]
BLOCK = "model.layers.0."


def make_packed(dtype: torch.dtype = torch.float32, name: str = "llama") -> Any:
    """Returns a tiny model with NF4 layers, rounded."""
    return pack_base_nf4(make_model(name).to(dtype), dtype).to("cpu")


def make_twin(dtype: torch.dtype = torch.float32) -> Any:
    """Returns the same model with the same weights in plain layers."""
    return unpack_base(make_packed(dtype))


def adapted(
    base: Any, factors: str = "both", layers: list[int] | None = None
) -> tuple[LanguageModel, FlatParameterSpace]:
    """Returns a model with an adapter away from its start, and the space that moves it."""
    peft = add_lora(base, factors=factors, layers=layers, **SETTINGS)
    tensors = trainable_tensors(peft)
    generator = torch.Generator().manual_seed(2)
    for parameter in tensors.values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    peft.requires_grad_(requires_grad=False)
    sizes = {name: p.numel() for name, p in tensors.items()}
    space = FlatParameterSpace(tensors, make_direction_set("rademacher", 7, sizes, 4))
    prefix = FrozenPrefix.find(peft.get_base_model(), min(layers)) if layers else None
    return LanguageModel(peft.get_base_model(), END, space.rows, prefix), space


def contributions(kind: str, model: LanguageModel, space: FlatParameterSpace) -> torch.Tensor:
    objective = CompletionObjective(make_examples("completion", LENGTHS))
    estimator: Any = FirstOrderEstimator(model, objective, space, clip=1.0)
    if kind == "zeroth-order":
        estimator = ZerothOrderEstimator(model, objective, space, perturbation=1e-2, clip=1e6)
    result = torch.full((len(LENGTHS), 4), math.nan, dtype=torch.float64)
    for records, values in estimator.contributions(3, BATCHES):
        result[list(records)] = values
    return result


# -- layers --------------------------------------------------------------------------------------


def test_the_layers_are_those_of_pack_base() -> None:
    """The output layer, embeddings and norms stay."""
    packed, ours = make_packed(), pack_base(make_model("llama"))
    names = [name for name, module in packed.named_modules() if is_nf4(module)]
    assert names == [name for name, module in ours.named_modules() if is_packed(module)]
    assert BLOCK + "mlp.up_proj" in names
    assert type(packed.get_output_embeddings()) is torch.nn.Linear
    assert not any(p.requires_grad for p in packed.parameters())


def test_skipped_layers_stay() -> None:
    model = pack_base_nf4(make_model("llama"), torch.float32, skip=["o_proj"])
    assert type(model.get_submodule(BLOCK + "self_attn.o_proj")) is torch.nn.Linear
    assert is_nf4(model.get_submodule(BLOCK + "self_attn.q_proj"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_those_of_bitsandbytes(dtype: torch.dtype) -> None:
    """Packed as bitsandbytes packs a matrix: NF4, blocks of 64, scales in 8 bits."""
    plain = make_model("llama").to(dtype)
    weight = plain.get_submodule(BLOCK + "mlp.up_proj").weight.data.clone()
    layer = pack_base_nf4(plain, dtype).to("cpu").get_submodule(BLOCK + "mlp.up_proj")
    codes, state = bitsandbytes.functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    expected = bitsandbytes.functional.dequantize_4bit(codes, state)
    found = dequantize_nf4(layer)
    assert (found.dtype, found.shape) == (dtype, weight.shape)
    assert torch.equal(found, expected)
    assert 0.02 < float((found - weight).norm() / weight.norm()) < 0.15
    assert torch.equal(layer.weight.data, codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_forward_is_a_product_with_the_dequantized_weight(
    dtype: torch.dtype, has_bias: bool
) -> None:
    """Whether a gradient is kept or not, for one token and for many."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        linear = torch.nn.Linear(48, 20, bias=has_bias).to(dtype).requires_grad_(False).eval()
        inputs = torch.randn(2, 5, 48).to(dtype)
    model = pack_base_nf4(torch.nn.Sequential(linear), dtype).to("cpu")
    weight = dequantize_nf4(model[0])
    for x in (inputs, inputs[:1, :1], inputs.clone().requires_grad_()):
        found, expected = model(x), F.linear(x, weight, linear.bias)
        assert found.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(dequantize_nf4(model[0]), weight)  # no pass reorders the codes
    x = inputs.clone().requires_grad_()
    (found_gradient,) = torch.autograd.grad(model(x).float().square().sum(), x)
    (gradient,) = torch.autograd.grad(F.linear(x, weight, linear.bias).float().square().sum(), x)
    assert torch.allclose(found_gradient, gradient, rtol=tolerance, atol=20 * tolerance)


def test_unpacking() -> None:
    """A plain model of the same weights; copies too."""
    packed = make_packed()
    logits = packed(IDS).logits
    twin = unpack_base(copy.deepcopy(packed))
    assert not any(is_packed(module) for module in twin.modules())
    assert torch.allclose(twin(IDS).logits, logits, atol=1e-5)
    assert torch.equal(packed(IDS).logits, logits)


# -- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("factors", ["b", "both"])
@pytest.mark.parametrize("kind", ["zeroth-order", "first-order"])
def test_contributions_are_those_of_a_plain_base(kind: str, factors: str) -> None:
    """Both estimators see the model whose weights are the dequantized ones."""
    found = contributions(kind, *adapted(make_packed(), factors))
    expected = contributions(kind, *adapted(make_twin(), factors))
    assert expected.abs().median() > 1e-3
    size = float(expected.abs().max())
    assert torch.allclose(found, expected, rtol=1e-3, atol=3e-4 * size)


@pytest.mark.parametrize("kind", ["zeroth-order", "first-order"])
def test_kept_prefix_states(kind: str) -> None:
    """A frozen prefix of NF4 blocks gives the same numbers."""
    model, space = adapted(make_packed(), layers=[1])
    assert model.prefix is not None
    found = contributions(kind, model, space)
    model.prefix = None
    assert torch.allclose(found, contributions(kind, model, space), rtol=1e-3, atol=1e-4)


def test_gradients_of_the_adapter() -> None:
    """Backpropagation through NF4 layers gives what plain layers give; adapters are float32."""
    gradients = []
    for base in (make_packed(), make_twin()):
        model = add_lora(base, factors="both", target_modules=["q_proj", "down_proj"], **SETTINGS)
        for parameter in trainable_tensors(model).values():
            parameter.data += 0.1
        model(IDS).logits.square().sum().backward()
        tensors = trainable_tensors(model)
        assert {p.dtype for p in tensors.values()} == {torch.float32}
        gradients.append(torch.cat([p.grad.ravel() for p in tensors.values()]))
    assert gradients[1].abs().max() > 0
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[1].abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_adapter_fits_a_plain_base(dtype: torch.dtype, tmp_path: Path) -> None:
    """Same names, same start, same files; it loads on both."""
    packed = add_lora(make_packed(dtype), **SETTINGS)
    plain = add_lora(make_model("llama").to(dtype), **SETTINGS)
    for model, name in ((packed, "packed"), (plain, "plain")):
        save_adapter(model, tmp_path / name, base_model="some/base")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "packed" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
    for parameter in trainable_tensors(packed).values():
        parameter.data += 0.1
    save_adapter(packed, tmp_path / "moved", base_model="some/base")
    again, _ = load_adapter(make_packed(dtype), tmp_path / "moved")
    assert torch.equal(again(IDS).logits, packed(IDS).logits)
    over_twin, _ = load_adapter(make_twin(dtype), tmp_path / "moved")
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    assert torch.allclose(over_twin(IDS).logits, packed(IDS).logits, atol=tolerance)


def test_merging_is_refused(tmp_path: Path) -> None:
    model = add_lora(make_packed(), **SETTINGS)
    save_adapter(model, tmp_path / "adapter", base_model="some/base")
    with pytest.raises(InvalidParameterError, match="cannot be merged into NF4"):
        model.merge_and_unload()
    loaded, _ = load_adapter(make_packed(), tmp_path / "adapter")
    with pytest.raises(InvalidParameterError, match="cannot be merged into NF4"):
        loaded.merge_adapter()
    load_adapter(make_twin(), tmp_path / "adapter")[0].merge_and_unload()


# -- refusals ------------------------------------------------------------------------------------


def test_load_model_refuses_what_cannot_compute() -> None:
    """Before anything is read."""
    with pytest.raises(InvalidParameterError, match=r"CUDA device, got 'cpu'.*--base-format codes"):
        load_model("./no-such-folder", base_bits=4, base_format="nf4")
    for bits, said in ((8, "8"), (None, "none")):
        with pytest.raises(InvalidParameterError, match=f"needs --base-bits 4, got {said}"):
            load_model("./no-such-folder", base_bits=bits, base_format="nf4")
    with pytest.raises(InvalidParameterError, match="base_format"):
        load_model("./no-such-folder", base_bits=4, base_format="fp4")


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    model = make_model("llama")
    with pytest.raises(MissingExtraError, match=r"pip install 'sordino\[nf4\]'"):
        pack_base_nf4(model, torch.float32)
    assert not any(is_packed(module) for module in model.modules())


def test_models_that_cannot_be_packed() -> None:
    with pytest.raises(InvalidParameterError, match=r"got Conv1D\. Use --base-format codes"):
        pack_base_nf4(make_model("gpt2"), torch.float32)
    model = make_model("llama")
    model.get_submodule(BLOCK + "mlp.up_proj").weight.data[0, 0] = math.nan
    with pytest.raises(InvalidParameterError, match=r"up_proj: weight must be finite"):
        pack_base_nf4(model, torch.float32)
    with pytest.raises(InvalidParameterError, match="no frozen linear layer"):
        pack_base_nf4(make_packed(), torch.float32)
    with pytest.raises(InvalidParameterError, match="already has adapters"):
        pack_base_nf4(add_lora(make_model("llama"), **SETTINGS), torch.float32)


def test_weights_are_known_on_the_device_only() -> None:
    model = pack_base_nf4(make_model("llama"), torch.float32)
    with pytest.raises(InvalidParameterError, match=r"model\.to\(device\) first"):
        unpack_base(model)


def test_nf4_layers_are_neither_trained_nor_saved(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(InvalidParameterError, match="Train an adapter"):
        prepare_full(make_packed())
    with pytest.raises(InvalidParameterError, match="without base_bits"):
        save_full(make_packed(), tokenizer, tmp_path / "model")
    assert not (tmp_path / "model").exists()
