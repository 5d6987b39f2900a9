"""Runs over NF4 bases on the CPU, where only tests may go; tests/gpu has the same on CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

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
from sordino.core.errors import InvalidParameterError
from sordino.models import load as loading
from sordino.quantization.source import open_source

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("bitsandbytes")


@pytest.fixture
def files(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    return make_files(tmp_path, tiny_model)


@pytest.fixture
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets NF4 layers be made where users may not make them."""
    monkeypatch.setattr(loading, "require_nf4", lambda bits, device: None)


@pytest.mark.usefixtures("_on_cpu")
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_verifies_and_opens_again(mode: str, files: dict[str, Any]) -> None:
    check_run(files, mode, "cpu", "float32")


@pytest.mark.usefixtures("_on_cpu")
def test_bfloat16(files: dict[str, Any]) -> None:
    check_run(files, "pac-first-order", "cpu", "bfloat16")


@pytest.mark.usefixtures("_on_cpu")
def test_resuming(files: dict[str, Any]) -> None:
    check_resuming(files, "cpu")


@pytest.mark.usefixtures("_on_cpu")
def test_audit(files: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_audit(files, capsys, "cpu", tmp_path)


@pytest.mark.usefixtures("_on_cpu")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_quantizing_a_run_needs_cuda(files: dict[str, Any]) -> None:
    sordino.tune(**files, **(NF4 | MODES["none"]), device="cpu", dtype="float32")
    with pytest.raises(InvalidParameterError, match="Quantize it on a machine that has one"):
        open_source(str(files["output"]), base=files["model"])


def test_forward_mode_is_refused(files: dict[str, Any]) -> None:
    check_forward_mode_is_refused(files, "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "needs a CUDA device, got 'cpu'"),
        ({"base_bits": 8}, "needs --base-bits 4, got 8"),
        ({"base_bits": None}, "needs --base-bits 4, got none"),
        ({"base_format": "fp4"}, "base_format"),
        ({"adapter": "full"}, "use it with --adapter lora"),
    ],
)
def test_refused(files: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    """Before anything is written."""
    with pytest.raises(InvalidParameterError, match=message):
        sordino.tune(**files, **(NF4 | {"device": "cpu"} | changes))
    assert not files["output"].exists()
