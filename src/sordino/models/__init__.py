"""Models: loading, freezing, adapters, fingerprints and the embedded model."""

from sordino.models._quiet import quiet
from sordino.models.adapter_off import adapter_off
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
from sordino.models.fingerprint import compute_fingerprint, compute_subject_fingerprint
from sordino.models.load import BASE_FORMATS, LoadedModel, choose_compute_dtype, load_model
from sordino.models.nf4 import (
    dequantize_nf4,
    is_nf4,
    make_plain_linear,
    pack_base_nf4,
    require_nf4_bits,
)
from sordino.models.packed_linear import PackedLinear, is_packed, pack_base, unpack_base
from sordino.models.rounding import round_to_nearest

__all__ = [
    "BASE_FORMATS",
    "LoadedModel",
    "PackedLinear",
    "adapter_off",
    "add_lora",
    "choose_compute_dtype",
    "compute_fingerprint",
    "compute_subject_fingerprint",
    "dequantize_nf4",
    "embedded_model_path",
    "initial_adapter_tensor",
    "is_nf4",
    "is_packed",
    "load_adapter",
    "load_model",
    "make_plain_linear",
    "pack_base",
    "pack_base_nf4",
    "quiet",
    "read_adapter_base",
    "require_nf4_bits",
    "round_to_nearest",
    "save_adapter",
    "save_full",
    "trainable_tensors",
    "unpack_base",
]
