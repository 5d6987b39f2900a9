"""GGUF files: gguf's own dequantization, transformers and llama.cpp find our weights."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import gguf
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers_quantized import ROW, put_weights, quantize_randomly, random_layer
from helpers_runs import write_tiny_model
from helpers_tiny_models import make_model
from sordino.core.errors import InvalidParameterError
from sordino.models import load_model
from sordino.quantization import write_gguf
from sordino.quantization._gguf_tokenizer import _LLAMA_3, _QWEN_2, describe_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sordino.quantization.layers import QuantizedLayer

TEXT = "Once upon a time, there were 12 little words; they'd never met before.\n  And then?"
MERGES = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("r", "e"), ("1", "2"), ("Ġ", "a"), ("n", "d")]
SPECIAL = ["<|endoftext|>", "<|im_start|>"]
NUM_TOKENS = 280  # more than the tokenizer has
WIDTHS = {
    "vocab_size": NUM_TOKENS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "tie_word_embeddings": True,
}
IDS = torch.tensor([[2, 3, 4, 9, 11, 2, 30]])
MIXED = [(4, 32), (8, 32), (4, ROW), (8, ROW)]
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
NO_REGEX = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
RULES = {
    "gpt-2": BYTE_LEVEL,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]),
    "llama-bpe": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_LLAMA_3), "isolated"), NO_REGEX]
    ),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_QWEN_2), "isolated"), NO_REGEX]),
}


def make_tokenizer(rule: Any = RULES["smollm"], **settings: Any) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer with a few merges and special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *letters, *("".join(pair) for pair in MERGES)]
    backend = Tokenizer(
        models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=MERGES, **settings)
    )
    backend.pre_tokenizer = rule
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        model_max_length=64,
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., tuple[Path, Any, dict[str, QuantizedLayer]]]:
    """A function that writes a quantized tiny model; returns file, model and layers."""

    def write(
        name: str = "llama", kinds: Any = MIXED, **changes: Any
    ) -> tuple[Path, Any, dict[str, QuantizedLayer]]:
        model = make_model(name, **{**WIDTHS, **changes})
        layers = quantize_randomly(model, kinds)
        path = tmp_path / "made" / "model.gguf"
        write_gguf(path, model, layers, make_tokenizer())
        return path, model, layers

    return write


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def test_gguf_dequantizes_to_our_weights(write: Callable[..., Any]) -> None:
    """Bit for bit; without a row order (Qwen3) the rows are ours as they are."""
    path, _, layers = write("qwen3")
    found = tensors(path)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 2)
    kinds = set()
    for name, layer in layers.items():
        tensor = found[names.get_name(f"{name}.weight", try_suffixes=(".weight",))]
        kinds.add(tensor.tensor_type.name)
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert torch.equal(torch.from_numpy(weight), layer.dequantize()), name
    assert kinds == {"Q4_0", "Q8_0"}


def test_rows_of_query_and_key_are_paired(write: Callable[..., Any]) -> None:
    """In each head, row 2 i is ours i and row 2 i + 1 is ours i plus half a head."""
    path, model, layers = write("llama")
    heads = {"q": model.config.num_attention_heads, "k": model.config.num_key_value_heads}
    for kind, num_heads in heads.items():
        tensor = tensors(path)[f"blk.1.attn_{kind}.weight"]
        weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
        ours = layers[f"model.layers.1.self_attn.{kind}_proj"].dequantize()
        half = len(ours) // num_heads // 2
        for row in range(len(ours)):
            head, place = divmod(row, 2 * half)
            source = head * 2 * half + place // 2 + half * (place % 2)
            assert torch.equal(weight[row], ours[source])


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_transformers_computes_our_logits(
    write: Callable[..., Any], name: str, is_tied: bool
) -> None:
    """Through its own reader of GGUF, row order and all; equal bits."""
    own = {"head_dim": 128} if name == "qwen3" else {}  # the only size that its reader knows
    path, model, layers = write(name, tie_word_embeddings=is_tied, **own)
    loaded = load_model(str(path))
    expected = put_weights(model, layers)
    for key, value in expected.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value), key
    assert torch.equal(loaded.model(IDS).logits, expected(IDS).logits)
    assert ("output.weight" in tensors(path)) == (not is_tied)


def test_heads_of_another_size_and_other_kinds_of_layer(write: Callable[..., Any]) -> None:
    """Heads need not divide the width; layers that are not quantized keep every bit."""
    path, model, layers = write("llama", head_dim=32)
    fields = gguf.GGUFReader(path).fields
    assert fields["llama.attention.key_length"].contents() == 32
    assert load_model(str(path)).model.config.head_dim == 32
    some = dict(list(layers.items())[3:])
    write_gguf(path, model, some, make_tokenizer())
    expected = put_weights(model, some)
    assert torch.equal(load_model(str(path)).model(IDS).logits, expected(IDS).logits)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(torch.float16, "F16"), (torch.bfloat16, "BF16"), (torch.float32, "F32")],
)
def test_plain_matrices_take_the_shortest_exact_type(
    write: Callable[..., Any], tmp_path: Path, dtype: torch.dtype, kind: str
) -> None:
    _, model, layers = write()
    model.get_input_embeddings().weight.data[3, 4] = 1e-9  # too small for F16, and not for BF16
    model = model.to(dtype)
    write_gguf(tmp_path / "x.gguf", model, layers, make_tokenizer())
    tensor = tensors(tmp_path / "x.gguf")["token_embd.weight"]
    assert tensor.tensor_type.name == kind
    weight = gguf.dequantize(tensor.data, tensor.tensor_type)
    assert torch.equal(torch.tensor(weight), model.get_input_embeddings().weight.float())
    assert tensors(tmp_path / "x.gguf")["output_norm.weight"].tensor_type.name == "F32"


def test_smollm2_like_fields(write: Callable[..., Any]) -> None:
    """What llama.cpp needs to cut text and to stop."""
    path, _, _ = write(kinds=[(4, 32)])
    fields = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.file_type": 2,
        "general.quantization_version": 2,
        "llama.vocab_size": NUM_TOKENS,
        "llama.rope.dimension_count": 16,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": make_tokenizer().chat_template,
    }
    assert {name: fields[name] for name in expected} == expected
    assert fields["tokenizer.ggml.merges"] == [" ".join(pair) for pair in MERGES]
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(set(tokens)) == len(kinds) == NUM_TOKENS
    known = make_tokenizer().get_vocab()
    assert all(tokens[number] == token for token, number in known.items())
    assert kinds[:3] == [3, 3, 1]
    assert kinds[len(known) :] == [5] * (NUM_TOKENS - len(known))
    assert not any("/" in str(value) for name, value in fields.items() if "general" in name)


def test_the_tokenizer_comes_back(write: Callable[..., Any]) -> None:
    path, _, _ = write()
    loaded = load_model(str(path)).tokenizer
    assert loaded("the red hat").input_ids == make_tokenizer()("the red hat").input_ids
    assert loaded.decode(loaded(TEXT).input_ids) == TEXT


@pytest.mark.parametrize("rule", RULES)
def test_rules_are_named(rule: str) -> None:
    settings = {"ignore_merges": True} if rule == "llama-bpe" else {}
    assert describe_tokenizer(make_tokenizer(RULES[rule], **settings), NUM_TOKENS).rule == rule


def test_tokens_around_a_text_are_told() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{SPECIAL[1]} $A", special_tokens=[(SPECIAL[1], 1)]
    )
    assert describe_tokenizer(tokenizer, NUM_TOKENS).adds == {"bos": True, "eos": False}


# -- what cannot be written ----------------------------------------------------------------------


def with_normalizer() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_tokenizer(pre_tokenizers.Whitespace()), "no known name"),
        (lambda: make_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=True)), "no known name"),
        (lambda: make_tokenizer(NO_REGEX), "no known name"),
        (
            lambda: make_tokenizer(
                pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("x"), "isolated"), NO_REGEX])
            ),
            "no known name",
        ),
        (
            lambda: make_tokenizer(pre_tokenizers.Sequence([pre_tokenizers.Digits(), BYTE_LEVEL])),
            "no known name",
        ),
        (lambda: make_tokenizer(ignore_merges=True), "ignore_merges"),
        (lambda: make_tokenizer(RULES["llama-bpe"]), "ignore_merges"),
        (lambda: make_tokenizer(dropout=0.5), "not a byte-level BPE"),
        (lambda: make_tokenizer(byte_fallback=True), "not a byte-level BPE"),
        (with_normalizer, "changes the text first"),
    ],
)
def test_other_tokenizers_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        describe_tokenizer(make(), NUM_TOKENS)


def test_tokenizers_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match="more tokens than the model embeds"):
        describe_tokenizer(make_tokenizer(), 100)
    words = load_model(str(write_tiny_model(tmp_path / "tiny"))).tokenizer
    with pytest.raises(InvalidParameterError, match="not a byte-level BPE"):
        describe_tokenizer(words, NUM_TOKENS)


@pytest.mark.parametrize(
    ("name", "kinds", "changes", "message"),
    [
        ("opt", [(4, 32)], {}, "written for llama, qwen2, qwen3 models, got opt"),
        ("gemma3", [(4, 32)], {}, "got gemma3_text"),
        ("llama", [(2, 32)], {}, "has 2 bits: a GGUF file holds such codes in 4 or 8 only"),
        ("llama", [(4, 16)], {}, "groups of 16 inputs"),
        ("llama", [(4, 32)], {"attention_bias": True}, "attention_bias False, got True"),
        ("llama", [(4, 32)], {"hidden_act": "gelu"}, "hidden_act 'silu', got 'gelu'"),
        (
            "llama",
            [(4, 32)],
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "plain rotary positions, got 'linear'",
        ),
    ],
)
def test_models_and_layers_that_are_refused(
    tmp_path: Path, name: str, kinds: Any, changes: dict[str, Any], message: str
) -> None:
    own = {"word_embed_proj_dim": 64, "ffn_dim": 96} if name == "opt" else {}
    model = make_model(name, **{**WIDTHS, **own, **changes})
    layers = quantize_randomly(model, kinds)
    with pytest.raises(InvalidParameterError, match=message):
        write_gguf(tmp_path / "x.gguf", model, layers, make_tokenizer())
    assert not (tmp_path / "x.gguf").exists()


def test_layers_of_another_model(tmp_path: Path) -> None:
    name = "model.layers.7.mlp.up_proj"
    layers = {name: random_layer(name, (96, 64), bits=4, group_size=32, seed=0)}
    with pytest.raises(InvalidParameterError, match="which the model does not have"):
        write_gguf(tmp_path / "x.gguf", make_model("llama", **WIDTHS), layers, make_tokenizer())


# -- llama.cpp -----------------------------------------------------------------------------------

_GENERATE = """
import sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=64, n_threads=1, verbose=False, logits_all=True)
ids = model.tokenize(sys.argv[2].encode(), add_bos=False)
print(*ids)
made = []
for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
    made.append(token)
    if len(made) == 8:
        break
print(*made)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python is not installed (extra: interop)",
)
def test_llama_cpp_generates_our_tokens(write: Callable[..., Any]) -> None:
    """Greedy tokens of a random model, in a process of its own: it rounds activations to 8 bits."""
    path, _, _ = write(kinds=[(8, 32)])
    output = subprocess.run(
        [sys.executable, "-c", _GENERATE, str(path), "the red hat"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    loaded = load_model(str(path))
    ids = make_tokenizer()("the red hat").input_ids
    assert [int(number) for number in output[-2].split()] == ids
    made = loaded.model.generate(
        torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0
    )[0, len(ids) :]
    assert [int(number) for number in output[-1].split()][: len(made)] == made.tolist()
