"""Runs over NF4 bases on CUDA, from files to a run that opens again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import sordino
from helpers_nf4 import (
    MODES,
    NF4,
    check_audit,
    check_forward_mode_is_refused,
    check_resuming,
    check_run,
    make_files,
)
from helpers_runs import write_tiny_model
from sordino.ledger.ledger import Ledger
from sordino.models import dequantize_nf4, is_nf4, load_model, pack_base_nf4
from sordino.quantization.source import open_source

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are whole blocks of 64, as those of real models are."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    return write_tiny_model(
        folder, hidden_size=64, intermediate_size=128, num_attention_heads=4, initializer_range=0.1
    )


@pytest.fixture
def files(tmp_path: Path, wide: Path) -> dict[str, Any]:
    return make_files(tmp_path, wide)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_verifies_and_opens_again(
    mode: str, dtype: str, files: dict[str, Any]
) -> None:
    check_run(files, mode, "cuda", dtype)


def test_rows_that_are_no_whole_blocks(tmp_path: Path, tiny_model: Path) -> None:
    """Rows of 16 and 24 weights share blocks."""
    check_run(make_files(tmp_path, tiny_model), "pac-first-order", "cuda", "float32")


def test_resuming(files: dict[str, Any]) -> None:
    check_resuming(files, "cuda")


def test_audit(files: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_audit(files, capsys, "cuda", tmp_path)


def test_forward_mode_is_refused(files: dict[str, Any]) -> None:
    check_forward_mode_is_refused(files, "cuda")


def test_quantizing_a_run(files: dict[str, Any]) -> None:
    """The run is opened plain, on the CPU, with the weights that NF4 stands for."""
    sordino.tune(**files, **(NF4 | MODES["none"]), device="cuda", dtype="float32")
    assert Ledger.open(files["output"] / "ledger.jsonl").events[0]["base_format"] == "nf4"
    source = open_source(str(files["output"]), base=files["model"])
    assert source.open_base is not None
    for model in (source.model, source.open_base()):
        assert not any(is_nf4(module) for module in model.modules())
        assert {p.device.type for p in model.parameters()} == {"cpu"}
    loaded = load_model(files["model"], device="cuda", base_bits=4, base_format="nf4")
    name = "model.layers.0.mlp.up_proj"
    expected = dequantize_nf4(loaded.model.get_submodule(name)).cpu()
    assert torch.equal(source.open_base().get_submodule(name).weight, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 128), (48, 20)])
def test_forward_and_backward(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Products are those with the dequantized weight, up to the rounding of the kernel."""
    torch.manual_seed(3)
    linear = torch.nn.Linear(*shape).to(dtype).requires_grad_(requires_grad=False).eval()
    layer = pack_base_nf4(torch.nn.Sequential(linear), dtype).to("cuda")[0]
    weight, inputs = dequantize_nf4(layer), torch.randn(3, 7, shape[0], dtype=dtype, device="cuda")
    tolerance = 1e-2 if dtype == torch.float32 else 5e-2  # TF32 and half types
    for x in (inputs, inputs[:1, :1], inputs.clone().requires_grad_()):
        expected = F.linear(x, weight, linear.bias.to("cuda"))
        assert torch.allclose(layer(x), expected, rtol=tolerance, atol=tolerance)
    x = inputs.clone().requires_grad_()
    (found,) = torch.autograd.grad(layer(x).sum(), x)
    (gradient,) = torch.autograd.grad(F.linear(x, weight).sum(), x)
    assert torch.allclose(found, gradient, rtol=tolerance, atol=10 * tolerance)
