"""The table of file formats that a quantized model is written in."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from sordino.core.checks import require_one_of
from sordino.core.errors import InvalidParameterError
from sordino.quantization.layers import QUANTIZED_BITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
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
        bits: What it can hold.
        group_multiple: Group sizes are multiples of this.
        file_name: What it writes into the output folder; None where it fills the folder.
    """

    module: str
    function: str
    bits: tuple[int, ...]
    group_multiple: int = 1
    file_name: str | None = None


FORMATS = {
    "compressed-tensors": Format(
        "sordino.quantization.compressed_tensors", "write_compressed_tensors", QUANTIZED_BITS
    ),
    "gguf": Format("sordino.quantization.gguf", "write_gguf", (4, 8), 32, "model.gguf"),
}


def require_writable(name: str, *, bits: int, group_sizes: Iterable[int]) -> None:
    """Raises unless a format can hold codes of this kind: known before hours of work.

    Args:
        name: A key of `FORMATS`.
        bits: Of all layers.
        group_sizes: Of the layers.

    Raises:
        InvalidParameterError: If it cannot.
    """
    require_one_of("format", name, tuple(FORMATS))
    found = FORMATS[name]
    wrong = next((size for size in group_sizes if size % found.group_multiple), None)
    if bits in found.bits and wrong is None:
        return
    got = f"--bits {bits}" if wrong is None else f"a group of {wrong}"
    raise InvalidParameterError(
        f"format {name} holds {' or '.join(map(str, found.bits))} bits in groups of a multiple of "
        f"{found.group_multiple}, got {got}."
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
