"""Calibration: which tokens count, and inputs equal to those of a plain forward pass."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from helpers_quantization import make_settings
from helpers_tiny_models import make_model
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.quantization.calibration import (
    CalibrationRun,
    InputSums,
    encode_calibration,
    find_blocks,
    read_calibration_texts,
)
from sordino.quantization.pipeline import select_layers

if TYPE_CHECKING:
    from pathlib import Path

SEQUENCES = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [3, 3, 3, 0, 2], [7, 1, 30, 31]]


def plain_grams(model: Any, layers: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns X^T X of every layer by one unpadded pass of the whole model a sequence."""
    grams = dict.fromkeys(layers, 0.0)

    def hook(name: str) -> Any:
        def add(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).double()
            grams[name] = grams[name] + (x.T @ x).numpy()

        return add

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    for ids in SEQUENCES:
        model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return grams


@pytest.mark.parametrize("tokens_per_batch", [8, 64])
@pytest.mark.parametrize(
    "name", ["llama", "qwen3", "gemma2", "gemma3", "gpt2", "opt", "phi", "bert"]
)
def test_grams_are_those_of_a_plain_pass(name: str, tokens_per_batch: int) -> None:
    """In every block, after the blocks before it were changed; padding counts for nothing.

    BERT looks to the right as well, where the padding is.
    """
    model = make_model(name)
    layers, _ = select_layers(model, make_settings(group_size=None))
    run = CalibrationRun(model, SEQUENCES, pad_id=0, tokens_per_batch=tokens_per_batch)
    assert run.num_tokens == sum(map(len, SEQUENCES))
    for number, block in enumerate(layers):
        expected = plain_grams(model, block)
        groups = run.shared_inputs(number, block)
        assert sorted(n for names in groups for n in names) == sorted(block)
        sums = run.input_sums(number, {names[0]: block[names[0]] for names in groups})
        grams = {name: found.gram for name, found in sums.items()}
        for names in groups:
            for member in names:
                np.testing.assert_allclose(grams[names[0]], expected[member], rtol=1e-4, atol=1e-4)
            own = list(run.sequence_grams(number, (names[0], block[names[0]])))
            assert len(own) == len(SEQUENCES)
            np.testing.assert_allclose(sum(own), grams[names[0]], rtol=1e-4, atol=1e-4)
        for module in block.values():
            module.weight.data.mul_(0.9)
        if number + 1 < len(layers):
            run.advance(number)


def test_magnitudes_are_those_of_the_tokens() -> None:
    """Mean and largest |x| of each column, no padding; from a Gram root mean squares."""
    model = make_model("llama")
    layers, _ = select_layers(model, make_settings(group_size=None))
    run = CalibrationRun(model, SEQUENCES, pad_id=0, tokens_per_batch=8)
    name = "model.layers.0.mlp.down_proj"
    rows: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: rows.append(args[0].reshape(-1, args[0].shape[-1]).double())
    )
    for ids in SEQUENCES:
        model(input_ids=torch.tensor([ids]))
    handle.remove()
    found = run.input_sums(0, {name: layers[0][name]})[name]
    tokens = torch.cat(rows)
    torch.testing.assert_close(found.mean_magnitudes, tokens.abs().mean(0), rtol=1e-4, atol=1e-6)
    assert found.max_magnitudes is not None
    torch.testing.assert_close(found.max_magnitudes, tokens.abs().amax(0), rtol=1e-4, atol=1e-6)
    released = InputSums.of_gram(found.gram)
    assert released.max_magnitudes is None
    torch.testing.assert_close(
        released.mean_magnitudes, tokens.square().sum(0).sqrt(), rtol=1e-4, atol=1e-6
    )


def test_layers_that_read_one_input_are_found() -> None:
    """Query, key and value share one, gate and up another."""
    model = make_model("llama")
    layers, _ = select_layers(model, make_settings(group_size=None))
    run = CalibrationRun(model, SEQUENCES, pad_id=0)
    groups = [{n.rsplit(".", 1)[-1] for n in g} for g in run.shared_inputs(0, layers[0])]
    assert {"q_proj", "k_proj", "v_proj"} in groups
    assert {"gate_proj", "up_proj"} in groups
    assert len(groups) == 4


def test_recording_leaves_the_model_as_it_was() -> None:
    model = make_model("llama")
    ids = torch.tensor([[1, 2, 3]])
    before = model(input_ids=ids).logits
    CalibrationRun(model, SEQUENCES, pad_id=0)
    assert torch.equal(model(input_ids=ids).logits, before)
    _, blocks = find_blocks(model)
    assert all("forward" not in vars(block) for block in blocks)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="no list of blocks"):
        find_blocks(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_texts_are_read_from_every_kind_of_record(tmp_path: Path) -> None:
    rows = [
        {"text": "alone"},
        {"text": "labelled", "label": 1},
        {"prompt": "a prompt", "completion": ["first", "second"]},
        {"prompt": "line\n", "completion": "next"},
        {"prompt": "nothing else"},
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert read_calibration_texts(path) == [
        "alone",
        "labelled",
        "a prompt first",
        "line\nnext",
        "nothing else",
    ]
    lines = tmp_path / "texts.txt"
    lines.write_text("one\n\ntwo\n", encoding="utf-8")
    assert read_calibration_texts(lines) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"text": "good"}\n{"text": ""}\n', "line 2: a calibration text needs"),
        ("a.jsonl", '{"body": "secret words"}\n', "line 1: a calibration text needs"),
        ("a.jsonl", '{"prompt": "x", "completion": []}\n', "line 1: a calibration text needs"),
        ("a.jsonl", "", "has no records"),
        ("a.txt", "\n \n", "at least one line"),
        ("a.doc", "x", "told by the suffix"),
    ],
)
def test_unusable_files_are_refused_without_quoting_them(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidDataError, match=words) as caught:
        read_calibration_texts(path)
    assert "secret" not in str(caught.value)


def test_a_missing_or_foreign_text_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataError, match="no such file"):
        read_calibration_texts(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InvalidDataError, match="not UTF-8"):
        read_calibration_texts(tmp_path / "latin.txt")


def test_sequences_are_whole_texts_cut_at_the_end(tiny_model: Path) -> None:
    """One sequence a text, in order; texts of a single token are passed over."""
    from sordino.models import load_model

    tokenizer = load_model(str(tiny_model)).tokenizer
    texts = ["the film is great .", "film", "and very great"]
    encoded = encode_calibration(texts, tokenizer, num_sequences=2, max_length=3)
    assert [len(ids) for ids in encoded] == [3, 3]
    assert encoded[1] == tokenizer("and very great")["input_ids"]
    with pytest.raises(InvalidDataError, match="at least two tokens"):
        encode_calibration(["film"], tokenizer, num_sequences=2, max_length=3)
    with pytest.raises(InvalidParameterError, match="calibration_sequences"):
        encode_calibration(texts, tokenizer, num_sequences=0, max_length=3)
