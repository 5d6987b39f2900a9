"""Models: loading, freezing, adapters, fingerprints and the embedded model."""

from sordino.models._quiet import quiet
from sordino.models.adapters import (
    add_lora,
    initial_adapter_tensor,
    load_adapter,
    read_adapter_base,
    save_adapter,
    save_full,
    trainable_tensors,
)
from sordino.models.embedded import embedded_model_path
from sordino.models.fingerprint import compute_fingerprint
from sordino.models.load import LoadedModel, choose_compute_dtype, load_model
from sordino.models.packed_linear import PackedLinear, pack_base, unpack_base
from sordino.models.rounding import round_to_nearest

__all__ = [
    "LoadedModel",
    "PackedLinear",
    "add_lora",
    "choose_compute_dtype",
    "compute_fingerprint",
    "embedded_model_path",
    "initial_adapter_tensor",
    "load_adapter",
    "load_model",
    "pack_base",
    "quiet",
    "read_adapter_base",
    "round_to_nearest",
    "save_adapter",
    "save_full",
    "trainable_tensors",
    "unpack_base",
]
