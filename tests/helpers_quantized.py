"""Random quantized layers of a tiny model, of several kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sordino.quantization.layers import QuantizedLayer

if TYPE_CHECKING:
    from collections.abc import Sequence

ROW = 0  # a group size: the whole row


def random_layer(
    name: str, shape: tuple[int, int], *, bits: int, group_size: int, seed: int
) -> QuantizedLayer:
    """Returns codes of the whole range, and scales that use all bits of a float16."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    size = group_size or columns
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, generator=generator)
    scales = (0.2 + torch.rand(rows, columns // size, generator=generator)) / 2**bits
    return QuantizedLayer(
        name=name,
        codes=codes.to(torch.int8),
        scales=scales.half(),
        bits=bits,
        group_size=size,
    )


def quantize_randomly(model: Any, kinds: Sequence[tuple[int, int]]) -> dict[str, QuantizedLayer]:
    """Returns a random quantized layer for each linear layer but the output's, kinds in turn."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings()
    ]
    return {
        name: random_layer(
            name,
            tuple(model.get_submodule(name).weight.shape),
            bits=kinds[number % len(kinds)][0],
            group_size=kinds[number % len(kinds)][1],
            seed=number,
        )
        for number, name in enumerate(names)
    }


def put_weights(model: Any, layers: dict[str, QuantizedLayer]) -> Any:
    """Gives a plain model the dequantized weights; returns it."""
    for name, layer in layers.items():
        weight = model.get_submodule(name).weight
        weight.data = layer.dequantize(weight.dtype)
    return model
