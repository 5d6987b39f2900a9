"""The table of file formats that a quantized model is written in."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from sordino.core.checks import require_one_of
from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sordino.quantization.layers import QuantizedLayer

__all__ = ["FORMATS", "Format", "require_writable", "write"]


@dataclass(frozen=True, slots=True)
class Format:
    """A file format.

    Args:
        module: Where its writer is, imported when it is used.
        function: The writer: (path, model, layers, tokenizer).
        file_name: What it writes into the output folder; None where it fills the folder.
        grids: Pairs of bits and group size (None: a row) that it can hold; None: all.
    """

    module: str
    function: str
    file_name: str | None = None
    grids: tuple[tuple[int, int | None], ...] | None = None


FORMATS = {
    "compressed-tensors": Format(
        "sordino.quantization.compressed_tensors", "write_compressed_tensors"
    ),
    "gguf": Format(
        "sordino.quantization.gguf", "write_gguf", "model.gguf", grids=((4, 32), (8, 32))
    ),
}


def require_writable(name: str, *, bits: int, group_size: int | None) -> None:
    """Raises unless a format can hold codes of this kind: known before hours of work."""
    require_one_of("format", name, tuple(FORMATS))
    grids = FORMATS[name].grids
    if grids is not None and (bits, group_size) not in grids:
        raise InvalidParameterError(
            f"format {name} holds "
            + " or ".join(f"--bits {b} --group-size {g}" for b, g in grids)
            + f", got --bits {bits} --group-size {group_size or 'row'}."
        )


def write(
    name: str,
    folder: Path,
    model: PreTrainedModel,
    layers: Mapping[str, QuantizedLayer],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Writes a quantized model into a folder that exists."""
    found = FORMATS[name]
    path = folder if found.file_name is None else folder / found.file_name
    getattr(import_module(found.module), found.function)(path, model, layers, tokenizer)
