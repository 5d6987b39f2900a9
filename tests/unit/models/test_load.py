"""Loading: what comes back is frozen and complete, and what cannot be loaded says why."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

from sordino.core.errors import (
    InvalidParameterError,
    ModelUnavailableError,
)
from sordino.models import (
    choose_compute_dtype,
    compute_fingerprint,
    load_model,
    save_full,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

IDS = torch.tensor([[2, 3, 4, 9, 11, 2, 30]])


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


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


def test_a_path_is_a_folder_and_never_a_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if it is called as the embedded model or as one of a hub."""
    expected = load_model(str(folder)).fingerprint
    assert load_model(folder).fingerprint == expected
    (tmp_path / "embedded").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    assert load_model(Path("embedded")).fingerprint == expected
    with pytest.raises(ModelUnavailableError, match="no such file or folder"):
        load_model(Path("somebody/model"))


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


def test_single_file_that_is_not_gguf(folder: Path) -> None:
    with pytest.raises(ModelUnavailableError, match=r"must be a \.gguf file"):
        load_model(str(folder / "model.safetensors"))


def test_adapter_is_not_a_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelUnavailableError, match="adapters are not models"):
        load_model(str(folder))


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
