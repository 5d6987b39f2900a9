"""Weights to few bits: codes, what they lose, and what of that is proven."""

from __future__ import annotations

from sordino.quantization.certificate import LayerCertificate, certify_layer
from sordino.quantization.gptq import quantize_rows

__all__ = ["LayerCertificate", "certify_layer", "quantize_rows"]
