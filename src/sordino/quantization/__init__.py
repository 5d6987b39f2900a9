"""Weights to few bits: codes, what they lose, what of that is proven, and files of them."""

from __future__ import annotations

from sordino.quantization.certificate import LayerCertificate, certify_layer
from sordino.quantization.compressed_tensors import write_compressed_tensors
from sordino.quantization.gguf import write_gguf
from sordino.quantization.gptq import quantize_rows

__all__ = [
    "LayerCertificate",
    "certify_layer",
    "quantize_rows",
    "write_compressed_tensors",
    "write_gguf",
]
