"""All linear layers of a model, block by block, each block on the outputs of quantized ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from sordino.core.errors import InvalidParameterError
from sordino.quantization.blocked_gptq import damped_geometry
from sordino.quantization.calibration import CalibrationRun, InputSums, find_blocks
from sordino.quantization.certificate import certify_problem
from sordino.quantization.folding import scale_gram
from sordino.quantization.geometry import measure_layer
from sordino.quantization.input_scales import apply_input_scales, choose_input_scales
from sordino.quantization.layers import QuantizedLayer
from sordino.quantization.methods import METHODS
from sordino.quantization.scales import code_limits, spread_scales
from sordino.quantization.store import FinishedBlock, FinishedLayer, LayerStore

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from sordino.quantization.blocked_gptq import InputGeometry
    from sordino.quantization.input_scales import PlacedFold
    from sordino.quantization.methods import QuantizationSettings

__all__ = [
    "FinishedLayer",
    "LayerStore",
    "PrivateCalibration",
    "drop_weights",
    "matrix_of",
    "quantize_blocks",
    "select_layers",
]

NOT_REACHED = "no calibration text reaches it"


@dataclass(frozen=True, slots=True, eq=False)
class PrivateCalibration:
    """How the inputs of a block are learned from private texts.

    Args:
        release: Makes the Gram matrix of an input from those of its sequences, privately.
        probe: Public tokens in front of the same model: which layers share an input, and which
            are reached, is read off them and never off the private texts.
    """

    release: Callable[[Iterator[NDArray[np.float64]]], NDArray[np.float64]]
    probe: CalibrationRun


def select_layers(
    model: nn.Module, settings: QuantizationSettings
) -> tuple[list[dict[str, nn.Module]], dict[str, str]]:
    """Returns the linear layers of each block by name, and why others stay as they are.

    Raises:
        InvalidParameterError: If there is no layer to quantize, or the group size does not divide
            the inputs of one: a model with half of its layers left out is not what was asked for.
    """
    prefix, blocks = find_blocks(model)
    chosen: list[dict[str, nn.Module]] = [{} for _ in blocks]
    kept: dict[str, str] = {}
    for name, module in model.named_modules():
        if not _is_linear_like(module):
            continue
        inside = name.removeprefix(f"{prefix}.") if name.startswith(f"{prefix}.") else None
        if inside is None:
            kept[name] = "outside the blocks"
        elif _is_conv1d(module) or type(module) is torch.nn.Linear:
            chosen[int(inside.split(".", 1)[0])][name] = module
        else:
            kept[name] = f"a {type(module).__name__} may use its weight in a way of its own"
    widths = {name: matrix_of(m).shape[1] for layers in chosen for name, m in layers.items()}
    if not widths:
        raise InvalidParameterError(
            "the model has no linear layer that can be quantized "
            f"({'; '.join(sorted(set(kept.values())))})."
        )
    _require_dividing(widths, settings)
    return chosen, kept


def quantize_blocks(
    layers: list[dict[str, nn.Module]],
    run: CalibrationRun | None,
    settings: QuantizationSettings,
    store: LayerStore,
    *,
    advance: Callable[[int], None],
    bits: Mapping[str, int] | None = None,
    folds: Sequence[Sequence[PlacedFold]] | None = None,
    private: PrivateCalibration | None = None,
    base: Mapping[str, nn.Module] | None = None,
) -> tuple[dict[str, FinishedLayer], dict[str, str]]:
    """Returns all quantized layers, and why others stay; the model then holds their values.

    Args:
        layers: From `select_layers`; their weights are replaced by what codes and scales stand for.
        run: Calibration sequences; None without calibration.
        settings: How to round.
        store: Keeps finished blocks.
        advance: Called with the number of finished blocks.
        bits: Of layers that differ from the settings, by name.
        folds: From `place_folds`, for methods that scale inputs; norms and biases change too.
        private: Releases the Gram matrices of private calibration texts; None takes their sums,
            as they are.
        base: Layers before fine-tuning, by name: the geometry of each layer is measured. Only with
            calibration, and for methods that scale no inputs.
    """
    finished: dict[str, FinishedLayer] = {}
    kept: dict[str, str] = {}
    chosen = {
        name: replace(settings, bits=(bits or {}).get(name, settings.bits))
        for block in layers
        for name in block
    }
    for number, block in enumerate(layers):
        own_folds = folds[number] if folds else []
        done = store.load(number)
        if done is None:
            inputs = None
            if run is not None:
                inputs = _read_inputs(number, block, run, store, private)
            done = _quantize_block(block, inputs, chosen, own_folds, base)
            store.save(number, done)
        else:
            apply_input_scales(own_folds, done.input_scales)
        for item in done.layers:
            finished[item.layer.name] = item
            _replace_weight(block[item.layer.name], item.layer.dequantize())
        kept |= {name: NOT_REACHED for name in block if name not in finished}
        if number + 1 < len(layers):
            for sequences in (run, private and private.probe):
                if sequences is not None:
                    sequences.advance(number)
        advance(number + 1)
    return finished, kept


def matrix_of(module: nn.Module) -> torch.Tensor:
    """Returns a layer's weight as (out_features, in_features)."""
    weight: torch.Tensor = module.weight.detach()
    return weight.t() if _is_conv1d(module) else weight


def drop_weights(layers: list[dict[str, nn.Module]], names: Container[str]) -> None:
    """Frees the memory of weights that codes and scales stand for; their shapes stay.

    Args:
        layers: From `select_layers`.
        names: Of the quantized ones among them. They can no longer compute.
    """
    for block in layers:
        for name, module in block.items():
            if name in names:
                module.weight.data = torch.zeros((), dtype=module.weight.dtype).expand(
                    module.weight.shape
                )


def _read_inputs(
    number: int,
    block: dict[str, nn.Module],
    run: CalibrationRun,
    store: LayerStore,
    private: PrivateCalibration | None,
) -> dict[tuple[str, ...], InputSums]:
    """Returns what is known of each input of a block, by the layers that share it."""
    if private is None:
        groups = run.shared_inputs(number, block)
        sums = run.input_sums(number, {names[0]: block[names[0]] for names in groups})
        return {tuple(names): sums[names[0]] for names in groups}
    groups = private.probe.shared_inputs(number, block)  # which layers are reached is public
    grams = store.load_grams(number)
    if grams is None:
        grams = {
            names[0]: private.release(run.sequence_grams(number, (names[0], block[names[0]])))
            for names in groups
        }
        # On disk before anything depends on them: a resumed run never releases them again.
        store.save_grams(number, grams)
    return {tuple(names): InputSums.of_gram(grams[names[0]]) for names in groups}


def _quantize_block(
    block: dict[str, nn.Module],
    inputs: dict[tuple[str, ...], InputSums] | None,
    settings: dict[str, QuantizationSettings],
    folds: Sequence[PlacedFold],
    base: Mapping[str, nn.Module] | None,
) -> FinishedBlock:
    """Returns the layers of one block, each by its own settings; folds are applied to the model."""
    if inputs is None:
        done = [_quantize_layer(name, block[name], None, settings[name]) for name in block]
        return FinishedBlock(done, {})
    input_scales = choose_input_scales(folds, inputs, settings)
    by_layers = {frozenset(f.fold.layers): input_scales.get(f.fold.previous) for f in folds}
    apply_input_scales(folds, input_scales)
    done = []
    for names in list(inputs):
        # Popped, so that one input's matrices are freed before the next one is factored.
        gram = inputs.pop(names).gram
        scales = by_layers.get(frozenset(names))
        if scales is not None:
            gram = _scaled(gram, scales)
        shared = settings[names[0]]
        geometry = damped_geometry(gram, shared.applied_order, shared.damping)
        for name in names:
            item = _quantize_layer(name, block[name], geometry, settings[name])
            if base is not None:
                own = _measure(base[name], block[name], item.layer, geometry)
                item = replace(item, geometry=own)
            done.append(replace(item, has_scaled_inputs=scales is not None))
    return FinishedBlock(done, input_scales)


def _measure(
    base: nn.Module, tuned: nn.Module, layer: QuantizedLayer, geometry: InputGeometry
) -> dict[str, Any]:
    """Returns what fine-tuning and rounding did to the geometry of a layer."""
    before, after = (matrix_of(module).double().numpy() for module in (base, tuned))
    return measure_layer(before, after, layer, geometry.gram, order=geometry.order).to_json()


def _scaled(gram: NDArray[np.float64], scales: torch.Tensor) -> NDArray[np.float64]:
    """Returns the Gram matrix of inputs divided by scales, exactly symmetric."""
    scaled = scale_gram(torch.from_numpy(gram), scales)
    return (0.5 * (scaled + scaled.T)).numpy()


def _quantize_layer(
    name: str, module: nn.Module, geometry: InputGeometry | None, settings: QuantizationSettings
) -> FinishedLayer:
    """Returns one layer's codes and certificate."""
    weights = matrix_of(module).float().contiguous()
    try:
        codes, scales = METHODS[settings.method].round(weights, geometry, settings)
    except InvalidParameterError as error:
        raise InvalidParameterError(f"{name}: {error}") from error
    group_size = settings.group_size_of(weights.shape[1])
    layer = QuantizedLayer(
        name=name, codes=codes, scales=scales, bits=settings.bits, group_size=group_size
    )
    if geometry is None:
        return FinishedLayer(layer, None)
    low, high = code_limits(settings.bits)
    certificate = certify_problem(
        geometry.problem(weights.numpy(), spread_scales(scales, group_size), low, high),
        geometry.columns,
        geometry.factor,
        codes.numpy(),
        order=geometry.order,
        damping=geometry.damping,
    )
    return FinishedLayer(layer, certificate)


def _replace_weight(module: nn.Module, matrix: torch.Tensor) -> None:
    """Puts a matrix (out_features, in_features) into a layer."""
    with torch.no_grad():
        matrix_of(module).copy_(matrix)


def _is_conv1d(module: nn.Module) -> bool:
    """Returns whether a layer stores its weight as (in, out), as GPT-2's do."""
    from transformers.pytorch_utils import Conv1D

    return type(module) is Conv1D


def _is_linear_like(module: nn.Module) -> bool:
    """Returns whether a module is a linear layer, of its own kind or not."""
    return isinstance(module, torch.nn.Linear) or _is_conv1d(module)


def _require_dividing(widths: dict[str, int], settings: QuantizationSettings) -> None:
    """Raises unless the group size divides the inputs of every layer; names those it does not."""
    group_size = settings.group_size
    if group_size is None:
        return
    wrong = {name: width for name, width in widths.items() if width % group_size}
    if not wrong:
        return
    name, width = next(iter(wrong.items()))
    fitting = [str(g) for g in (128, 64, 32) if not any(w % g for w in widths.values())]
    raise InvalidParameterError(
        f"group_size {group_size} does not divide the inputs of {len(wrong)} of {len(widths)} "
        f"layers (the first: {name} with {width}). Take --group-size "
        f"{' or '.join([*fitting, 'row'])}."
    )
