"""A model stored in few bits as the base of an adapter: every mode trains, verifies and audits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import sordino
from helpers_quantized import ROW, quantize_randomly
from helpers_runs import SMALL, run_cli, sentiment_rows, write_jsonl, write_tiny_model
from sordino.core.errors import InvalidParameterError
from sordino.ledger.ledger import Ledger
from sordino.models import PackedLinear, compute_fingerprint, load_adapter, load_model, unpack_base
from sordino.quantization import write_compressed_tensors

if TYPE_CHECKING:
    from pathlib import Path

COMMON = {name: SMALL[name] for name in ("num_steps", "lora_rank", "dtype", "device")}
PAC = {"num_subsets": 8, "guarantee": "pac"}
DP = {"guarantee": "dp", "epsilon": 8.0, "delta": 1e-3, "batch_size": 12}
FIRST = {"estimator": "first-order", "learning_rate": 0.01}
ZEROTH = {"estimator": "zeroth-order", "learning_rate": 0.05}
NONE = {"guarantee": "none", "optimizer": "adamw", "batch_size": 12} | FIRST
MODES: dict[str, dict[str, Any]] = {
    "pac-zeroth-order": PAC | ZEROTH,
    "pac-first-order": PAC | FIRST | {"directions_per_step": 64},
    "pac-bfloat16": PAC | ZEROTH | {"dtype": "bfloat16"},
    "dp-first-order": DP | FIRST,
    "dp-first-order-both": DP | FIRST | {"lora_factors": "both"},
    "dp-zeroth-order": DP | ZEROTH,
    "none": NONE,
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in 4 bits, one kind of layer in 2 and one in 8."""
    folder = tmp_path_factory.mktemp("base")
    loaded = load_model(str(write_tiny_model(folder / "plain", initializer_range=0.1)))
    layers = quantize_randomly(loaded.model, [(4, 8), (4, ROW), (2, 8), (8, 8), (4, 8)])
    write_compressed_tensors(folder / "packed", loaded.model, layers, loaded.tokenizer)
    return folder / "packed"


@pytest.fixture
def files(tmp_path: Path, packed: Path) -> dict[str, Any]:
    return {
        "model": str(packed),
        "train": write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(24)),
        "output": tmp_path / "run",
    }


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_and_verifies(mode: str, files: dict[str, Any], packed: Path) -> None:
    result = sordino.tune(**files, **(COMMON | MODES[mode]))
    opening = Ledger.open(files["output"] / "ledger.jsonl").events[0]
    assert opening["base_model_sha256"] == compute_fingerprint(packed)
    assert opening["base_bits"] is None  # nothing was rounded here
    card = (files["output"] / "README.md").read_text()
    assert "| bits of a frozen weight | as in the base model |" in card
    if MODES[mode]["guarantee"] == "dp":
        assert 0.5 < result.certificate.pool.success_upper <= 1.0
    assert sordino.verify(files["output"], model=files["model"]).is_valid
    assert any(
        bool(tensor.any())
        for name, tensor in load_file(files["output"] / "adapter_model.safetensors").items()
        if "lora_B" in name
    )


def test_the_adapter_is_that_of_the_plain_twin(
    files: dict[str, Any], packed: Path, tmp_path: Path
) -> None:
    """The same run over the same weights held plain, from another folder, moves as far."""
    settings = COMMON | NONE
    sordino.tune(**files, **settings)
    loaded = load_model(str(packed))
    unpack_base(loaded.model)
    loaded.model.save_pretrained(tmp_path / "twin")
    loaded.tokenizer.save_pretrained(tmp_path / "twin")
    sordino.tune(
        **(files | {"model": str(tmp_path / "twin"), "output": tmp_path / "other"}), **settings
    )
    ours, others = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (files["output"], tmp_path / "other")
    )
    assert sorted(ours) == sorted(others)
    assert all(torch.equal(ours[name], others[name]) for name in ours)


def test_audit(files: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Canaries, membership and the control, all over the packed base."""
    sordino.tune(**files, **(COMMON | NONE | {"canaries": 8}))
    write_jsonl(tmp_path / "others.jsonl", sentiment_rows(24, start=40))
    shell = run_cli(
        capsys,
        "audit",
        files["output"],
        *("--model", files["model"], "--members", files["train"]),
        *("--nonmembers", tmp_path / "others.jsonl", "--output", tmp_path / "audit"),
    )
    assert shell.code == 0, shell.err
    assert (tmp_path / "audit" / "audit.json").exists()


def test_all_weights_cannot_be_trained(files: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match="stored in few bits"):
        sordino.tune(**files, **(COMMON | DP | FIRST | {"adapter": "full"}))
    with pytest.raises(InvalidParameterError, match="base_bits must be left out"):
        sordino.tune(**files, **(COMMON | DP | FIRST | {"base_bits": 4}))


def test_merging_into_the_unpacked_base(files: dict[str, Any], packed: Path) -> None:
    """What a merged export needs: the plain twin takes the adapter in."""
    sordino.tune(**files, **(COMMON | NONE))
    ids = torch.tensor([[2, 3, 4, 9, 11, 2, 30]])
    over_codes, _ = load_adapter(load_model(str(packed)).model, files["output"])
    plain, _ = load_adapter(unpack_base(load_model(str(packed)).model), files["output"])
    merged = plain.merge_and_unload()
    assert not any(isinstance(module, PackedLinear) for module in merged.modules())
    assert torch.allclose(merged(ids).logits, over_codes(ids).logits, atol=1e-4)
