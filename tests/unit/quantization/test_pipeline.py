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
from sordino.quantization.input_scales import place_folds
from sordino.quantization.methods import METHODS
from sordino.quantization.pipeline import (
    NOT_REACHED,
    LayerStore,
    PrivateCalibration,
    matrix_of,
    quantize_blocks,
    select_layers,
)

if TYPE_CHECKING:
    from pathlib import Path

    from sordino.quantization.pipeline import FinishedLayer

SEQUENCES = [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10], [3, 3, 3, 0, 2], [7, 1, 30, 31, 4, 4]]


def run_pipeline(
    name: str,
    folder: Path,
    *,
    calibrated: bool = True,
    layer_bits: dict[str, int] | None = None,
    **changes: Any,
) -> tuple[Any, dict[str, FinishedLayer], dict[str, str]]:
    """Returns a quantized tiny model, its layers and what stayed."""
    model = make_model(name)
    settings = make_settings(**changes)
    layers, kept = select_layers(model, settings)
    run = CalibrationRun(model, SEQUENCES, pad_id=0) if calibrated else None
    store = LayerStore(folder, {"model": name, **changes})
    is_folded = METHODS[settings.method].choose_input_scales is not None
    finished, unreached = quantize_blocks(
        layers,
        run,
        settings,
        store,
        advance=lambda _: None,
        bits=layer_bits,
        folds=place_folds(model, layers) if is_folded else None,
    )
    return model, finished, kept | unreached


@pytest.mark.parametrize("method", ["nearest", "gptq", "hqq"])
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
        assert certificate.order == ("min-pivot" if method == "gptq" else "natural")
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
        private=PrivateCalibration(release, CalibrationRun(model, [[1, 2]], pad_id=0)),
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


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_input_scales_are_folded_and_change_nothing_else(
    name: str, method: str, tmp_path: Path
) -> None:
    """At 8 bits the folded model computes what the plain one does; norms took the scales."""
    before = make_model(name)
    model, finished, _ = run_pipeline(name, tmp_path / "p", method=method, bits=8)
    ids = torch.tensor([SEQUENCES[0]])
    expected, found = before(input_ids=ids).logits, model(input_ids=ids).logits
    assert float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())
    assert any(item.has_scaled_inputs for item in finished.values())
    for path, item in finished.items():
        assert torch.equal(matrix_of(model.get_submodule(path)), item.layer.dequantize())
        assert item.certificate is not None
        assert item.certificate.damping > 0.0
    first = "transformer.h.0.ln_1" if name == "gpt2" else "model.layers.0.input_layernorm"
    assert not torch.equal(model.get_submodule(first).weight, before.get_submodule(first).weight)


def effective(plain: Any, model: Any, path: str) -> torch.Tensor:
    """Returns a folded layer's weight in the inputs and outputs of the plain model."""
    own = matrix_of(model.get_submodule(path)).clone()
    block, kind = path.rsplit(".", 2)[0], path.rsplit(".", 1)[-1]
    norms = {"q_proj": "input", "k_proj": "input", "v_proj": "input"}
    norms |= {"gate_proj": "post_attention", "up_proj": "post_attention"}
    if kind in norms:
        norm = f"{block}.{norms[kind]}_layernorm"
        own *= model.get_submodule(norm).weight / plain.get_submodule(norm).weight
    return own


@pytest.mark.parametrize("bits", [4, 2])
def test_awq_beats_nearest_on_the_plain_inputs(bits: int, tmp_path: Path) -> None:
    """Summed over the layers whose scales went into norms: the guard holds on whole models."""
    errors = {}
    for method in ("awq", "nearest"):
        model, _, _ = run_pipeline("llama", tmp_path / method, method=method, bits=bits)
        plain = make_model("llama")
        layers, _ = select_layers(plain, make_settings())
        kinds = {"q_proj", "k_proj", "v_proj", "gate_proj"}  # up's rows were divided too
        block = {p: m for p, m in layers[0].items() if p.rsplit(".", 1)[-1] in kinds}
        sums = CalibrationRun(plain, SEQUENCES, pad_id=0).input_sums(0, block)
        total = 0.0
        for path, module in block.items():
            error = (matrix_of(module) - effective(plain, model, path)).double()
            total += float(((error @ torch.from_numpy(sums[path].gram)) * error).sum())
        errors[method] = total
    assert errors["awq"] <= errors["nearest"]


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_a_folded_run_cut_short_goes_on_to_the_same_model(method: str, tmp_path: Path) -> None:
    """Norms of finished blocks are folded again, so the second block sees the same inputs."""
    whole, expected, _ = run_pipeline("llama", tmp_path / "p", method=method)
    (tmp_path / "p" / "block-0001.safetensors").unlink()
    resumed, finished, _ = run_pipeline("llama", tmp_path / "p", method=method)
    for name, item in finished.items():
        assert torch.equal(item.layer.codes, expected[name].layer.codes)
        assert item.certificate == expected[name].certificate
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_layers_of_one_input_may_have_different_bits(tmp_path: Path) -> None:
    """One scale vector for all of them, chosen with the bits of each."""
    bits = {"model.layers.0.self_attn.q_proj": 8, "model.layers.0.self_attn.k_proj": 2}
    _, finished, _ = run_pipeline("llama", tmp_path / "p", method="awq", layer_bits=bits)
    for name, item in finished.items():
        assert item.layer.bits == bits.get(name, 4)


def test_a_model_whose_folds_nobody_checked_is_refused_by_name() -> None:
    model = make_model("opt")
    layers, _ = select_layers(model, make_settings())
    with pytest.raises(InvalidParameterError, match="got 'opt'"):
        place_folds(model, layers)
