"""The folding stage of a block: input scales are chosen for all its layers, and then folded.

All scales of a block are chosen on its weights and inputs as they are, before any of them is
folded. An input whose module before is unknown, or that other layers read too, keeps its scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sordino.quantization.folding import find_folds, fold_input_scales
from sordino.quantization.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from sordino.quantization.calibration import InputSums
    from sordino.quantization.folding import Fold
    from sordino.quantization.methods import QuantizationSettings

__all__ = ["PlacedFold", "apply_input_scales", "choose_input_scales", "place_folds"]


@dataclass(frozen=True, slots=True, eq=False)
class PlacedFold:
    """A fold with its modules."""

    fold: Fold
    previous: nn.Module
    layers: tuple[nn.Module, ...]


def place_folds(model: nn.Module, layers: list[dict[str, nn.Module]]) -> list[list[PlacedFold]]:
    """Returns the folds of each block, those whose layers are all to be quantized.

    Raises:
        InvalidParameterError: If nobody checked where input scales go in a model of this type.
    """
    placed: list[list[PlacedFold]] = [[] for _ in layers]
    for fold in find_folds(model):
        for own, block in zip(placed, layers, strict=True):
            if all(name in block for name in fold.layers):
                modules = tuple(block[name] for name in fold.layers)
                own.append(PlacedFold(fold, model.get_submodule(fold.previous), modules))
    return placed


def choose_input_scales(
    folds: Sequence[PlacedFold],
    inputs: Mapping[tuple[str, ...], InputSums],
    settings: Mapping[str, QuantizationSettings],
) -> dict[str, torch.Tensor]:
    """Returns input scales, float64, by the module that they are to be folded into.

    Args:
        folds: Of one block.
        inputs: By the layers that share an input.
        settings: Of each layer, by name; their method chooses.
    """
    chosen: dict[str, torch.Tensor] = {}
    by_layers = {frozenset(names): found for names, found in inputs.items()}
    for fold in folds:
        names = fold.fold.layers
        found = by_layers.get(frozenset(names))
        choose = METHODS[settings[names[0]].method].choose_input_scales
        if found is None or choose is None:
            continue
        weights = [_matrix(module).double() for module in fold.layers]
        scales = choose(weights, found, [settings[name] for name in names]).double()
        if not bool((scales == 1.0).all()):
            chosen[fold.fold.previous] = scales
    return chosen


def apply_input_scales(
    folds: Sequence[PlacedFold], input_scales: Mapping[str, torch.Tensor]
) -> None:
    """Folds chosen input scales into a block; the same ones give the same bits again."""
    for fold in folds:
        scales = input_scales.get(fold.fold.previous)
        if scales is not None:
            fold_input_scales(fold.previous, fold.layers, scales)


def _matrix(module: nn.Module) -> torch.Tensor:
    """Returns a layer's weight as (out_features, in_features)."""
    weight: torch.Tensor = module.weight.detach()
    return weight if isinstance(module, torch.nn.Linear) else weight.t()
