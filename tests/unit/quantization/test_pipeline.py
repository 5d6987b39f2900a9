"""Whole models: what is quantized, what stays, and blocks that are taken up again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from helpers_quantization import make_settings
from helpers_tiny_models import make_model
from sordino.core.errors import InvalidParameterError
from sordino.quantization.calibration import CalibrationRun
from sordino.quantization.pipeline import (
    NOT_REACHED,
    LayerStore,
    matrix_of,
    quantize_blocks,
    select_layers,
)

if TYPE_CHECKING:
    from pathlib import Path

    from sordino.quantization.pipeline import FinishedLayer

SEQUENCES = [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10], [3, 3, 3, 0, 2], [7, 1, 30, 31, 4, 4]]


def run_pipeline(
    name: str, folder: Path, *, calibrated: bool = True, **changes: Any
) -> tuple[Any, dict[str, FinishedLayer], dict[str, str]]:
    """Returns a quantized tiny model, its layers and what stayed."""
    model = make_model(name)
    settings = make_settings(**changes)
    layers, kept = select_layers(model, settings)
    run = CalibrationRun(model, SEQUENCES, pad_id=0) if calibrated else None
    store = LayerStore(folder, {"model": name, **changes})
    finished, unreached = quantize_blocks(layers, run, settings, store, advance=lambda _: None)
    return model, finished, kept | unreached


@pytest.mark.parametrize("method", ["nearest", "gptq"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_the_model_holds_what_the_codes_stand_for(name: str, method: str, tmp_path: Path) -> None:
    """Layers of both orientations; embeddings and output layer are not touched."""
    before = make_model(name)
    model, finished, kept = run_pipeline(name, tmp_path / "p", method=method)
    for path, item in finished.items():
        assert torch.equal(matrix_of(model.get_submodule(path)), item.layer.dequantize())
        certificate = item.certificate
        assert certificate is not None
        assert certificate.exact <= certificate.nearest * (1 + 1e-9)
        assert certificate.order == ("natural" if method == "nearest" else "min-pivot")
        assert certificate.damping > 0.0
    assert set(kept.values()) == {"outside the blocks"}
    assert "lm_head" in kept
    changed = {
        n
        for (n, a), b in zip(model.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {f"{path}.weight" for path in finished}


def test_gptq_beats_nearest_in_every_layer(tmp_path: Path) -> None:
    _, finished, _ = run_pipeline("llama", tmp_path / "p")
    assert len(finished) == 14
    for item in finished.values():
        assert item.certificate is not None
        assert item.certificate.exact < item.certificate.nearest


def test_layers_may_differ_in_bits(tmp_path: Path) -> None:
    """Bits by name go before those of the settings, with and without calibration."""
    for method in ("nearest", "gptq"):
        model = make_model("llama")
        settings = make_settings(method=method)
        layers, _ = select_layers(model, settings)
        names = [name for block in layers for name in block]
        bits = {names[0]: 2, names[-1]: 8}
        run = CalibrationRun(model, SEQUENCES, pad_id=0) if method == "gptq" else None
        store = LayerStore(tmp_path / method, {})
        finished, _ = quantize_blocks(
            layers, run, settings, store, advance=lambda _: None, bits=bits
        )
        found = {name: item.layer.bits for name, item in finished.items()}
        assert found == dict.fromkeys(names, 4) | bits


def test_nearest_without_calibration_has_no_certificate(tmp_path: Path) -> None:
    """The codes are those that it makes with calibration."""
    _, finished, _ = run_pipeline("llama", tmp_path / "a", method="nearest", calibrated=False)
    _, other, _ = run_pipeline("llama", tmp_path / "b", method="nearest")
    for name, item in finished.items():
        assert item.certificate is None
        assert torch.equal(item.layer.codes, other[name].layer.codes)


class _StoppedError(Exception):
    """A crash after a block."""


def test_a_run_cut_short_goes_on_to_the_same_codes(tmp_path: Path) -> None:
    """The second block of the resumed run sees what it would have seen."""
    _, expected, _ = run_pipeline("llama", tmp_path / "whole")
    model, settings = make_model("llama"), make_settings()
    layers, _ = select_layers(model, settings)
    store = LayerStore(tmp_path / "cut", {"model": "llama"})

    def stop(_: int) -> None:
        raise _StoppedError

    with pytest.raises(_StoppedError):
        quantize_blocks(
            layers, CalibrationRun(model, SEQUENCES, pad_id=0), settings, store, advance=stop
        )
    assert store.load(0) is not None
    assert store.load(1) is None
    written = (tmp_path / "cut" / "block-0000.safetensors").stat().st_mtime_ns
    resumed, finished, _ = run_pipeline("llama", tmp_path / "cut")
    assert (tmp_path / "cut" / "block-0000.safetensors").stat().st_mtime_ns == written
    assert list(finished) == list(expected)
    for name, item in finished.items():
        assert torch.equal(item.layer.codes, expected[name].layer.codes)
        assert torch.equal(item.layer.scales, expected[name].layer.scales)
        assert item.certificate == expected[name].certificate
        assert torch.equal(matrix_of(resumed.get_submodule(name)), item.layer.dequantize())


def test_blocks_of_other_settings_are_never_taken(tmp_path: Path) -> None:
    LayerStore(tmp_path / "p", {"bits": 4})
    LayerStore(tmp_path / "p", {"bits": 4})
    with pytest.raises(InvalidParameterError, match="other settings"):
        LayerStore(tmp_path / "p", {"bits": 2})
    (tmp_path / "p" / "settings.sha256").unlink()
    (tmp_path / "p" / "block-0000.safetensors").touch()
    with pytest.raises(InvalidParameterError, match="other settings"):
        LayerStore(tmp_path / "p", {"bits": 4})


def test_group_sizes_that_do_not_fit_are_refused_with_those_that_do() -> None:
    model = make_model("llama", hidden_size=64, intermediate_size=96)
    with pytest.raises(
        InvalidParameterError, match=r"2 of 14 layers .*down_proj with 96.* 32 or row"
    ):
        select_layers(model, make_settings(group_size=64))


def test_a_released_gram_takes_the_place_of_the_sum(tmp_path: Path) -> None:
    """What makes private Gram matrices gets one matrix a sequence; their sum changes no code."""
    _, expected, _ = run_pipeline("llama", tmp_path / "plain")
    model, settings = make_model("llama"), make_settings()
    layers, _ = select_layers(model, settings)
    counts: list[int] = []

    def release(grams: Any) -> np.ndarray:
        found = list(grams)
        counts.append(len(found))
        return np.sum(found, axis=0)

    finished, _ = quantize_blocks(
        layers,
        CalibrationRun(model, SEQUENCES, pad_id=0),
        settings,
        LayerStore(tmp_path / "released", {}),
        advance=lambda _: None,
        release_gram=release,
    )
    assert counts == [len(SEQUENCES)] * 8  # four inputs in each of two blocks
    for name, item in finished.items():
        assert torch.equal(item.layer.codes, expected[name].layer.codes)


def test_layers_of_an_own_kind_stay() -> None:
    """A model of nothing else is refused, and says which kind it is."""
    with pytest.raises(InvalidParameterError, match="a FalconLinear may use its weight"):
        select_layers(make_model("falcon"), make_settings(group_size=None))


def test_a_layer_that_no_text_reaches_stays(tmp_path: Path) -> None:
    model, settings = make_model("llama"), make_settings()
    model.model.layers[0].add_module("unused", torch.nn.Linear(16, 8))
    layers, _ = select_layers(model, settings)
    finished, kept = quantize_blocks(
        layers,
        CalibrationRun(model, SEQUENCES, pad_id=0),
        settings,
        LayerStore(tmp_path / "p", {}),
        advance=lambda _: None,
    )
    assert kept == {"model.layers.0.unused": NOT_REACHED}
    assert "model.layers.0.unused" not in finished
