"""Models: loading, freezing, adapters, fingerprints and the embedded model."""

from sordino.models.adapters import (
    add_lora,
    initial_adapter_tensor,
    save_adapter,
    save_full,
    trainable_tensors,
)
from sordino.models.embedded import embedded_model_path
from sordino.models.fingerprint import compute_fingerprint
from sordino.models.load import LoadedModel, choose_compute_dtype, load_model

__all__ = [
    "LoadedModel",
    "add_lora",
    "choose_compute_dtype",
    "compute_fingerprint",
    "embedded_model_path",
    "initial_adapter_tensor",
    "load_model",
    "save_adapter",
    "save_full",
    "trainable_tensors",
]
