"""What every test gets: one thread, no network, a tiny model made here."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from helpers_runs import write_tiny_model
from sordino.accounting.dp import calibrate_noise_multiplier
from sordino.training import dp_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

torch.set_num_threads(1)  # tiny models lose more to waiting threads than they gain

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def _shared(name: str) -> Path:
    """Returns a folder of ../shared/data, or skips the test."""
    path = SHARED / name
    if not path.exists():
        pytest.skip("../shared/data is not on this machine")
    return path


@pytest.fixture(scope="session")
def stories() -> Path:
    """The folder of a real model with 260,032 parameters and 512 tokens."""
    return _shared("stories260K-hf")


@pytest.fixture(scope="session")
def xquad() -> Path:
    """The English part of XQuAD, in SQuAD's own format."""
    return _shared("xquad-en") / "xquad.en.json"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama with 2 blocks and a tokenizer of whole words."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def calibrated_once() -> Iterator[None]:
    """For modules whose runs ask for the same noise: the search for it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dp_plan, "calibrate_noise_multiplier", lru_cache(calibrate_noise_multiplier))
        yield
