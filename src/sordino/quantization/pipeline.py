"""All linear layers of a model, block by block, each block on the outputs of quantized ones."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sordino.core.errors import InvalidParameterError
from sordino.ledger.durable import replace_file
from sordino.quantization.blocked_gptq import damped_geometry
from sordino.quantization.calibration import find_blocks
from sordino.quantization.certificate import LayerCertificate, certify_problem
from sordino.quantization.layers import QuantizedLayer
from sordino.quantization.methods import METHODS
from sordino.quantization.scales import code_limits, spread_scales

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from sordino.quantization.blocked_gptq import InputGeometry
    from sordino.quantization.calibration import CalibrationRun
    from sordino.quantization.methods import QuantizationSettings

    ReleaseGram = Callable[[Iterator[NDArray[np.float64]]], NDArray[np.float64]]

__all__ = ["FinishedLayer", "LayerStore", "quantize_blocks", "select_layers"]

NOT_REACHED = "no calibration text reaches it"


@dataclass(frozen=True, slots=True, eq=False)
class FinishedLayer:
    """A layer's codes, and what is known of their loss (None without calibration)."""

    layer: QuantizedLayer
    certificate: LayerCertificate | None


class LayerStore:
    """Finished blocks on disk, so that a run that was cut short goes on behind them.

    Args:
        folder: Made if it does not exist.
        settings: All that codes depend on.

    Raises:
        InvalidParameterError: If the folder holds blocks that were made with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        marker = folder / "settings.sha256"
        folder.mkdir(parents=True, exist_ok=True)
        if not marker.exists():
            if any(folder.glob("block-*")):
                raise InvalidParameterError(self._describe_other())
            replace_file(marker, digest.encode())
        elif marker.read_text(encoding="utf-8") != digest:
            raise InvalidParameterError(self._describe_other())

    def load(self, number: int) -> list[FinishedLayer] | None:
        """Returns the layers of a block; None if it was not finished."""
        path = self._path(number)
        if not path.exists():
            return None
        finished = []
        with safe_open(path, framework="pt") as file:
            for text in json.loads(file.metadata()["layers"]):
                name = text["name"]
                layer = QuantizedLayer(
                    name=name,
                    codes=file.get_tensor(f"{name}.codes"),
                    scales=file.get_tensor(f"{name}.scales"),
                    bits=text["bits"],
                    group_size=text["group_size"],
                )
                found = text["certificate"]
                finished.append(FinishedLayer(layer, found and LayerCertificate(**found)))
        return finished

    def save(self, number: int, finished: list[FinishedLayer]) -> None:
        """Puts a finished block on disk, in one step."""
        tensors, texts = {}, []
        for item in finished:
            layer = item.layer
            tensors[f"{layer.name}.codes"] = layer.codes.contiguous()
            tensors[f"{layer.name}.scales"] = layer.scales.contiguous()
            certificate = item.certificate and asdict(item.certificate)
            texts.append(
                {
                    "name": layer.name,
                    "bits": layer.bits,
                    "group_size": layer.group_size,
                    "certificate": certificate,
                }
            )
        temporary = self.folder / "unfinished.safetensors"
        save_file(tensors, temporary, metadata={"layers": json.dumps(texts)})
        temporary.replace(self._path(number))

    def remove(self) -> None:
        """Removes the folder."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.folder)

    def _path(self, number: int) -> Path:
        """Returns the file of a block."""
        return self.folder / f"block-{number:04d}.safetensors"

    def _describe_other(self) -> str:
        """Returns why the folder cannot be used."""
        return (
            f"{self.folder} holds blocks of a quantization with other settings, another model or "
            "other calibration texts. Repeat that command to finish it, or remove the folder."
        )


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
    release_gram: ReleaseGram | None = None,
) -> tuple[dict[str, FinishedLayer], dict[str, str]]:
    """Returns all quantized layers, and why others stay; the model then holds their values.

    Args:
        layers: From `select_layers`; their weights are replaced by what codes and scales stand for.
        run: Calibration sequences; None without calibration.
        settings: How to round.
        store: Keeps finished blocks.
        advance: Called with the number of finished blocks.
        bits: Of layers that differ from the settings, by name.
        release_gram: Makes the Gram matrix of an input from those of its sequences, for private
            calibration; None takes their sum, as it is.
    """
    finished: dict[str, FinishedLayer] = {}
    kept: dict[str, str] = {}
    for number, block in enumerate(layers):
        done = store.load(number)
        if done is None:
            own = {
                name: replace(settings, bits=(bits or {}).get(name, settings.bits))
                for name in block
            }
            done = list(_quantize_block(number, block, run, own, release_gram))
            store.save(number, done)
        for item in done:
            finished[item.layer.name] = item
            _replace_weight(block[item.layer.name], item.layer.dequantize())
        kept |= {name: NOT_REACHED for name in block if name not in finished}
        if run is not None and number + 1 < len(layers):
            run.advance(number)
        advance(number + 1)
    return finished, kept


def matrix_of(module: nn.Module) -> torch.Tensor:
    """Returns a layer's weight as (out_features, in_features)."""
    weight: torch.Tensor = module.weight.detach()
    return weight.t() if _is_conv1d(module) else weight


def _quantize_block(
    number: int,
    block: dict[str, nn.Module],
    run: CalibrationRun | None,
    settings: dict[str, QuantizationSettings],
    release_gram: ReleaseGram | None,
) -> Iterator[FinishedLayer]:
    """Yields the layers of one block, each by its own settings."""
    if run is None:
        for name, module in block.items():
            yield _quantize_layer(name, module, None, settings[name])
        return
    groups = run.shared_inputs(number, block)
    leaders = {names[0]: block[names[0]] for names in groups}
    if release_gram is None:
        grams = run.input_grams(number, leaders)
    else:
        grams = {
            name: release_gram(run.sequence_grams(number, (name, module)))
            for name, module in leaders.items()
        }
    for names in groups:
        # Popped, so that one input's matrices are freed before the next one is factored.
        gram = grams.pop(names[0])
        shared = settings[names[0]]
        geometry = damped_geometry(gram, shared.applied_order, shared.damping)
        for name in names:
            yield _quantize_layer(name, block[name], geometry, settings[name])


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
