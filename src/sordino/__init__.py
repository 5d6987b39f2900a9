"""Sordino: tune language models on private text, and say exactly what leaves the building."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sordino.accounting.inference_risk import risk
    from sordino.data.people import people
    from sordino.reports.audit import audit
    from sordino.reports.audit_protocol import audit_protocol
    from sordino.reports.compare import compare
    from sordino.reports.invert import invert
    from sordino.reports.quantize import quantize
    from sordino.reports.report import report
    from sordino.training.demo import demo
    from sordino.training.distill import distill
    from sordino.training.tune import tune
    from sordino.training.verify import verify

__all__ = [
    "audit",
    "audit_protocol",
    "compare",
    "demo",
    "distill",
    "invert",
    "people",
    "quantize",
    "report",
    "risk",
    "tune",
    "verify",
]

HOMES = {  # the module of each public function
    "audit": "sordino.reports.audit",
    "audit_protocol": "sordino.reports.audit_protocol",
    "compare": "sordino.reports.compare",
    "demo": "sordino.training.demo",
    "distill": "sordino.training.distill",
    "invert": "sordino.reports.invert",
    "people": "sordino.data.people",
    "quantize": "sordino.reports.quantize",
    "report": "sordino.reports.report",
    "risk": "sordino.accounting.inference_risk",
    "tune": "sordino.training.tune",
    "verify": "sordino.training.verify",
}


def __getattr__(name: str) -> Any:
    """Loads a public function when it is first used, so that importing stays cheap."""
    if name not in HOMES:
        raise AttributeError(f"module 'sordino' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
