"""Tiny models and tokenizers, built here: no file of another project is needed."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

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


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def permute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """The order of rows in which llama.cpp stores query and key weights."""
    rows, columns = weight.shape
    split = weight.reshape(num_heads, 2, rows // num_heads // 2, columns)
    return split.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(model: LlamaForCausalLM, path: Path) -> None:
    """Writes a tiny Llama as llama.cpp would, with 8-bit linear layers of 32 columns."""
    c = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("a name with /home/someone in it")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    letters = [chr(ord("a") + i) for i in range(c.vocab_size - 4)]
    writer.add_token_list(["<|endoftext|>", "Ġ", "Ġa", "ab", *letters])
    writer.add_token_types([3, *([1] * (c.vocab_size - 1))])
    writer.add_token_merges(["Ġ a", "a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    ends = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        weight = tensor.numpy()
        if name in ends:
            writer.add_tensor(ends[name], weight)
            continue
        _, _, block, part, _ = (
            name.replace("self_attn.", "self_attn#").replace("mlp.", "mlp#").split(".")
        )
        part = part.replace("#", ".")
        if part == "self_attn.q_proj":
            weight = permute(weight, c.num_attention_heads)
        if part == "self_attn.k_proj":
            weight = permute(weight, c.num_key_value_heads)
        target = f"blk.{block}.{parts[part]}.weight"
        if weight.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def gguf_file(tmp_path: Path, make_llama: Callable[..., LlamaForCausalLM]) -> Path:
    model = make_llama(
        vocab_size=28, hidden_size=32, intermediate_size=64, tie_word_embeddings=True
    )
    path = tmp_path / "gguf" / "tiny.gguf"
    path.parent.mkdir()
    write_gguf(model, path)
    return path
