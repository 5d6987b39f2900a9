"""Tiny models and tokenizers, built here: no file of another project is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = ["</s>", "<unk>", "it", "was", "great", "terrible", *(f"w{i}" for i in range(26))]
STORIES = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "stories260K-hf"


@pytest.fixture
def stories() -> Path:
    """The folder of a real model with 260,032 parameters."""
    if not STORIES.is_dir():
        pytest.skip("shared/data is not on this machine")
    return STORIES


@pytest.fixture
def make_llama() -> Callable[..., LlamaForCausalLM]:
    """A function that builds the same tiny model each time."""

    def make(**changes: object) -> LlamaForCausalLM:
        settings = {
            "vocab_size": len(WORDS),
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "attention_dropout": 0.1,
        }
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return LlamaForCausalLM(LlamaConfig(**(settings | changes)))

    return make


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words that has no padding token."""
    end, unknown = WORDS[:2]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, unk_token=unknown, model_max_length=64
    )


@pytest.fixture
def folder(
    tmp_path: Path,
    make_llama: Callable[..., LlamaForCausalLM],
    tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """A folder with a tiny model in Hugging Face format."""
    path = tmp_path / "tiny"
    make_llama().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
