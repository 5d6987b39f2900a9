"""What a writer of files is given, and settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sordino.quantization import compressed_tensors
from sordino.quantization.methods import QuantizationSettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pytest

    from sordino.quantization.layers import QuantizedLayer

DEFAULTS = {
    "bits": 4,
    "group_size": 8,
    "method": "gptq",
    "order": "min-pivot",
    "lattice_reduction": "none",
    "scales": "absmax",
    "damping": 0.01,
}


def make_settings(**changes: Any) -> QuantizationSettings:
    """Returns settings that fit the tiny models."""
    return QuantizationSettings(**(DEFAULTS | changes))


def watch_writer(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, QuantizedLayer]]:
    """Returns what writers of compressed-tensors folders will have been given."""
    given: list[dict[str, QuantizedLayer]] = []
    write = compressed_tensors.write_compressed_tensors

    def watched(
        folder: Path, model: Any, layers: Mapping[str, QuantizedLayer], tokenizer: Any
    ) -> None:
        given.append(dict(layers))
        write(folder, model, layers, tokenizer)

    monkeypatch.setattr(compressed_tensors, "write_compressed_tensors", watched)
    return given
