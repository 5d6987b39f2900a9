"""Resuming trusts no file: what was released must be what was charged."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

import sordino
from helpers_runs import SMALL, sentiment_rows, write_jsonl
from sordino.core.errors import LedgerError
from sordino.training import symbols

if TYPE_CHECKING:
    from pathlib import Path


def test_symbols_that_were_not_charged_stop_a_resumed_run(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the journal lost and a bit changed, --resume refuses to build on the transcript."""
    settings = SMALL | {
        "model": str(tiny_model),
        "train": write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(12)),
        "output": tmp_path / "run",
    }
    take = symbols.run_one_step

    def interrupted(*arguments: Any) -> object:
        if arguments[-1] == 2:
            raise KeyboardInterrupt
        return take(*arguments)

    monkeypatch.setattr(symbols, "run_one_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sordino.tune(**settings)
    monkeypatch.setattr(symbols, "run_one_step", take)
    shutil.rmtree(tmp_path / "run.private")
    transcript = tmp_path / "run" / "transcript.bin"
    raw = transcript.read_bytes()
    transcript.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(LedgerError, match="step 0 is not what the ledger charged for"):
        sordino.tune(**settings, resume=True)
    transcript.write_bytes(raw)
    sordino.tune(**settings, resume=True)
