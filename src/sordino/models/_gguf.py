"""Reads a GGUF file into a plain, unquantized transformers model."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from sordino.models._reading import require_complete, unreadable, with_padding_token

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

# what a GGUF load leaves in the configuration and a plain model must not carry
_LOADING_TRACES = ("quantization_config", "_name_or_path", "_model_name_or_path")


def read_gguf(file: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Returns model and tokenizer of a GGUF file, as if both had been read from safetensors.

    Raises:
        ModelUnavailableError: If the file is damaged or its architecture is unknown.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        with _parsed_once():
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
            packed, info = AutoModelForCausalLM.from_pretrained(
                file.parent, dtype=dtype, output_loading_info=True, **_dequantize(), **where
            )
        model = _rebuild(packed, dtype)
    except Exception as error:  # noqa: BLE001 - readers of other projects raise anything
        raise unreadable(file, error) from None
    require_complete(file, info)
    return model, with_padding_token(tokenizer)


def _dequantize() -> dict[str, Any]:
    """Returns the option that unpacks all weights.

    Without it, transformers 5.23 asks the hub for a kernel that multiplies packed weights. Older
    versions do not have the option and always unpack.
    """
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _rebuild(packed: Any, dtype: torch.dtype) -> Any:
    """Returns a new model of the same class with the same weights and a clean configuration."""
    values = packed.config.to_dict()
    config = type(packed.config).from_dict(
        {name: value for name, value in values.items() if name not in _LOADING_TRACES}
    )
    return type(packed).from_pretrained(
        None, config=config, state_dict=packed.state_dict(), dtype=dtype
    )


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """Lets transformers share one parsed header: half the time for the embedded model.

    transformers 5.23 parses the file for the configuration, the weights and the tokenizer, and
    builds the same table of names for each of several hundred modules. Both are pure functions of
    their arguments; the originals are put back at the end.
    """
    import gguf

    reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map
    shared: dict[str, Any] = {
        "GGUFReader": functools.cache(reader),
        "get_tensor_name_map": functools.cache(name_map),
    }
    try:
        for name, function in shared.items():
            setattr(gguf, name, function)
        yield
    finally:
        setattr(gguf, "GGUFReader", reader)  # noqa: B010 - a type, which mypy will not rebind
        setattr(gguf, "get_tensor_name_map", name_map)  # noqa: B010
