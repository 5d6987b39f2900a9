"""Finished blocks of a quantization on disk, so that a run that was cut short goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sordino.core.errors import InvalidParameterError
from sordino.ledger.durable import replace_file
from sordino.quantization.certificate import LayerCertificate
from sordino.quantization.layers import QuantizedLayer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["FinishedBlock", "FinishedLayer", "LayerStore"]


@dataclass(frozen=True, slots=True, eq=False)
class FinishedLayer:
    """A layer's codes, and what is known of their loss (None without calibration).

    If `has_scaled_inputs`, the certificate speaks of the folded weights, and of inputs divided by
    the scales that were folded.
    """

    layer: QuantizedLayer
    certificate: LayerCertificate | None
    has_scaled_inputs: bool = False
    geometry: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FinishedBlock:
    """The layers of a block, and the input scales by the module that each was folded into."""

    layers: list[FinishedLayer]
    input_scales: dict[str, torch.Tensor]


class LayerStore:
    """Finished blocks on disk.

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
            if any(any(folder.glob(kind)) for kind in ("block-*", "grams-*", "*.json*")):
                raise InvalidParameterError(self._describe_other())
            replace_file(marker, digest.encode())
        elif marker.read_text(encoding="utf-8") != digest:
            raise InvalidParameterError(self._describe_other())

    def load(self, number: int) -> FinishedBlock | None:
        """Returns a block; None if it was not finished."""
        path = self._path("block", number)
        if not path.exists():
            return None
        finished = []
        with safe_open(path, framework="pt") as file:
            content = json.loads(file.metadata()["block"])
            for text in content["layers"]:
                name, found = text["name"], text["certificate"]
                layer = QuantizedLayer(
                    name=name,
                    codes=file.get_tensor(f"{name}.codes"),
                    scales=file.get_tensor(f"{name}.scales"),
                    bits=text["bits"],
                    group_size=text["group_size"],
                )
                finished.append(
                    FinishedLayer(
                        layer,
                        found and LayerCertificate(**found),
                        text["has_scaled_inputs"],
                        text["geometry"],
                    )
                )
            names = content["input_scales"]
            input_scales = {name: file.get_tensor(f"{name}.input_scales") for name in names}
        return FinishedBlock(finished, input_scales)

    def save(self, number: int, block: FinishedBlock) -> None:
        """Puts a finished block on disk, in one step."""
        tensors, texts = {}, []
        for item in block.layers:
            layer = item.layer
            tensors[f"{layer.name}.codes"] = layer.codes.contiguous()
            tensors[f"{layer.name}.scales"] = layer.scales.contiguous()
            texts.append(
                {
                    "name": layer.name,
                    "bits": layer.bits,
                    "group_size": layer.group_size,
                    "certificate": item.certificate and asdict(item.certificate),
                    "has_scaled_inputs": item.has_scaled_inputs,
                    "geometry": item.geometry,
                }
            )
        for name, scales in block.input_scales.items():
            tensors[f"{name}.input_scales"] = scales
        # Names are listed, for a safetensors file does not keep their order.
        content = {"layers": texts, "input_scales": list(block.input_scales)}
        self._write(self._path("block", number), tensors, {"block": json.dumps(content)})

    def load_grams(self, number: int) -> dict[str, NDArray[np.float64]] | None:
        """Returns the Gram matrices that were released for a block; None if none were."""
        path = self._path("grams", number)
        if not path.exists():
            return None
        return {name: gram.numpy() for name, gram in load_file(path).items()}

    def save_grams(self, number: int, grams: Mapping[str, NDArray[np.float64]]) -> None:
        """Puts released Gram matrices on disk before anything is made from them."""
        tensors = {n: torch.from_numpy(np.ascontiguousarray(g)) for n, g in grams.items()}
        self._write(self._path("grams", number), tensors, {})

    def load_bits(self) -> dict[str, int] | None:
        """Returns the bits of each layer by name; None if they were not decided yet."""
        path = self.folder / "bits.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def save_bits(self, bits: Mapping[str, int]) -> None:
        """Puts the bits of each layer on disk."""
        replace_file(self.folder / "bits.json", json.dumps(dict(bits)).encode())

    def remove(self) -> None:
        """Removes the folder."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.folder)

    def _write(self, path: Path, tensors: dict[str, torch.Tensor], texts: dict[str, str]) -> None:
        """Writes a file that appears whole or not at all."""
        temporary = self.folder / "unfinished.safetensors"
        save_file(tensors, temporary, metadata=texts)
        temporary.replace(path)

    def _path(self, kind: str, number: int) -> Path:
        """Returns the file of a block."""
        return self.folder / f"{kind}-{number:04d}.safetensors"

    def _describe_other(self) -> str:
        """Returns why the folder cannot be used."""
        return (
            f"{self.folder} holds blocks of a quantization with other settings, another model or "
            "other calibration texts. Repeat that command to finish it, or remove the folder."
        )
