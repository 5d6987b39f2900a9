"""A plain writer in the place of a format, small calibration texts, and settings."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sordino.models import save_full
from sordino.quantization import formats
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


def use_plain_writer(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, QuantizedLayer]]:
    """Writes models with the weights that codes stand for; returns what writers were given."""
    given: list[dict[str, QuantizedLayer]] = []

    def write(
        folder: Path, model: Any, layers: Mapping[str, QuantizedLayer], tokenizer: Any
    ) -> None:
        given.append(dict(layers))
        save_full(model, tokenizer, folder)

    module = ModuleType("plain_writer")
    module.write = write
    monkeypatch.setitem(sys.modules, "plain_writer", module)
    plain = formats.Format("plain_writer", "write", (2, 4, 8))
    monkeypatch.setitem(formats.FORMATS, "compressed-tensors", plain)
    return given
