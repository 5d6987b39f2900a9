"""Runs over NF4 bases, and what must hold of each; on whichever device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import sordino
from helpers_runs import SMALL, run_cli, sentiment_rows, write_jsonl
from sordino.attacks.subject import open_subject
from sordino.core.errors import InvalidParameterError, SordinoError
from sordino.ledger.ledger import Ledger
from sordino.models import is_nf4

if TYPE_CHECKING:
    from pathlib import Path

NF4 = {"num_steps": 3, "lora_rank": SMALL["lora_rank"], "base_bits": 4, "base_format": "nf4"}
_PAC = {"num_subsets": 8, "guarantee": "pac"}
_DP = {"guarantee": "dp", "epsilon": 8.0, "delta": 1e-3, "batch_size": 12}
_FIRST = {"estimator": "first-order", "learning_rate": 0.01}
_ZEROTH = {"estimator": "zeroth-order", "learning_rate": 0.05}
MODES: dict[str, dict[str, Any]] = {
    "pac-zeroth-order": _PAC | _ZEROTH,
    "pac-first-order": _PAC | _FIRST | {"directions_per_step": 64},
    "dp-first-order": _DP | _FIRST,
    "dp-first-order-both": _DP | _FIRST | {"lora_factors": "both"},
    "dp-zeroth-order": _DP | _ZEROTH,
    "none": {"guarantee": "none", "optimizer": "adamw", "batch_size": 12} | _FIRST,
}


def make_files(folder: Path, model: Path) -> dict[str, Any]:
    """Returns the arguments of `tune` that name files."""
    return {
        "model": str(model),
        "train": write_jsonl(folder / "pool.jsonl", sentiment_rows(24)),
        "output": folder / "run",
    }


def check_run(files: dict[str, Any], mode: str, device: str, dtype: str) -> None:
    """Trains, verifies, and opens the run again as an audit would: over the same base."""
    sordino.tune(**files, **(NF4 | MODES[mode]), device=device, dtype=dtype)
    folder = files["output"]
    opening = Ledger.open(folder / "ledger.jsonl").events[0]
    assert (opening["base_bits"], opening["base_format"]) == (4, "nf4")
    assert "| bits of a frozen weight | 4 (NF4) |" in (folder / "README.md").read_text()
    assert sordino.verify(folder, model=files["model"]).is_valid
    tensors = load_file(folder / "adapter_model.safetensors")
    assert any(bool(tensor.any()) for name, tensor in tensors.items() if "lora_B" in name)
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    subject = open_subject(
        str(folder), base=files["model"], dtype=getattr(torch, dtype), device=device
    )
    model = subject.tuned.causal_lm
    assert any(is_nf4(module) for module in model.modules())
    ids = torch.tensor([[2, 3, 4, 5]], device=device)
    tuned = model(ids).logits
    with subject.base():
        assert not torch.equal(model(ids).logits, tuned)


def check_resuming(files: dict[str, Any], device: str) -> None:
    """A finished run goes on under the same settings, and under no other format."""
    settings = NF4 | MODES["pac-zeroth-order"] | {"device": device, "dtype": "float32"}
    sordino.tune(**files, **settings)
    sordino.tune(**files, **settings, resume=True)
    with pytest.raises(SordinoError):
        sordino.tune(**files, **(settings | {"base_format": "codes"}), resume=True)


def check_audit(
    files: dict[str, Any], capsys: pytest.CaptureFixture[str], device: str, folder: Path
) -> None:
    """Membership, canaries and the control over an NF4 base."""
    settings = NF4 | MODES["none"] | {"canaries": 8, "device": device, "dtype": "float32"}
    sordino.tune(**files, **settings)
    write_jsonl(folder / "others.jsonl", sentiment_rows(24, start=40))
    shell = run_cli(
        capsys,
        *("audit", files["output"], "--device", device, "--dtype", "float32"),
        *("--model", files["model"], "--members", files["train"]),
        *("--nonmembers", folder / "others.jsonl", "--output", folder / "audit"),
    )
    assert shell.code == 0, shell.err
    assert (folder / "audit" / "audit.json").exists()


def check_forward_mode_is_refused(files: dict[str, Any], device: str) -> None:
    """bitsandbytes' product has no forward-mode derivative."""
    settings = NF4 | {"estimator": "first-order", "directions_per_step": 1, "device": device}
    with pytest.raises(InvalidParameterError, match="no forward-mode derivative"):
        sordino.tune(**files, **settings)
    assert not files["output"].exists()
