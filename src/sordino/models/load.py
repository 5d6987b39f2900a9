"""Loads a causal language model and its tokenizer, frozen and ready, or says why it cannot.

A source is, in this order: the word "embedded"; a path (it starts with ".", "/" or "~", ends in
".gguf", contains a backslash, or exists); or a model hub id. Only safetensors and GGUF weights are
read, no code from a model repository is ever run, and a local source never touches the network.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sordino.core.checks import require_one_of
from sordino.core.errors import InvalidParameterError, ModelUnavailableError
from sordino.models._compressed_tensors import is_compressed_tensors, read_compressed_tensors
from sordino.models._gguf import read_gguf
from sordino.models._hub import fetch_snapshot
from sordino.models._quiet import quiet
from sordino.models._reading import (
    first_line,
    require_complete,
    unreadable,
    with_padding_token,
)
from sordino.models.embedded import embedded_model_path
from sordino.models.fingerprint import compute_fingerprint, only_gguf, weight_files
from sordino.models.nf4 import pack_base_nf4, require_nf4
from sordino.models.packed_linear import pack_base
from sordino.models.rounding import require_base_bits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"
BASE_FORMATS = ("codes", "nf4")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NO_STATED_LIMIT = 2**20  # for architectures without a longest input


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A frozen model in evaluation mode, its tokenizer, and where both came from.

    Args:
        model: Every parameter has requires_grad False and every dropout rate is 0.
        tokenizer: Has a padding token; it may equal the end token, so mask by attention mask.
        source: What the user asked for.
        fingerprint: SHA-256 of the files read, see `compute_fingerprint`.
        base_bits: Bits of a weight in packed linear layers, the most that one of them has; None
            where all weights are plain.
        base_format: How those layers hold them: "codes" (ours) or "nf4" (of bitsandbytes).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    fingerprint: str
    base_bits: int | None = None
    base_format: str = "codes"

    @property
    def context_length(self) -> int:
        """The longest input in tokens; 1,048,576 where neither model nor tokenizer states one."""
        stated = getattr(self.model.config, "max_position_embeddings", None)
        limit = stated if isinstance(stated, int) else self.tokenizer.model_max_length
        return int(limit) if 0 < limit < _NO_STATED_LIMIT else _NO_STATED_LIMIT


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    base_bits: int | None = None,
    base_format: str = "codes",
) -> LoadedModel:
    """Returns the model named by `source`, frozen, in evaluation mode, without dropout.

    A GGUF file is dequantized into the plain model class of its architecture, so that it can be
    saved as safetensors and loaded again. A folder in the `pack-quantized` format of
    compressed-tensors keeps its codes: its layers become packed ones, which compute in `dtype`.

    Args:
        source: "embedded", a model folder, a .gguf file, or a hub id. A folder called "embedded"
            is written "./embedded", or given as a `Path`, which never is a name.
        dtype: float32, bfloat16 or float16; the parameters' type.
        device: "cpu", "cuda", "cuda:<n>" or "mps".
        base_bits: 4 or 8 rounds the linear layers to packed codes, see `pack_base`; they compute in
            `dtype`. None leaves them as they are, packed ones too. The fingerprint is that of the
            files either way.
        base_format: "codes", or "nf4" for layers of bitsandbytes, with base_bits 4 on a CUDA
            device, see `pack_base_nf4`.

    Raises:
        InvalidParameterError: If dtype or device is not one this machine has, base_bits or
            base_format is another one or does not go with the device, the model has no layer to
            pack, or base_bits is given for a model whose layers are packed already.
        ModelUnavailableError: If the source cannot be found, fetched or read completely.
        MissingExtraError: If the embedded model, or bitsandbytes, is asked for and not installed.
    """
    if isinstance(source, Path):
        source = str(source) if source.is_absolute() else f"./{source}"
    if dtype not in _DTYPES.values():
        raise InvalidParameterError(f"dtype must be one of {', '.join(_DTYPES)}; got {dtype}.")
    _require_device(device)
    if base_bits is not None:
        require_base_bits(base_bits)
    if require_one_of("base_format", base_format, BASE_FORMATS) == "nf4":
        require_nf4(base_bits, device)
    path = _resolve_source(source)
    stored_bits = None
    with torch.random.fork_rng(devices=[]), quiet():  # the caller's random stream is not consumed
        if path.is_file():
            model, tokenizer = read_gguf(path, dtype)
        else:
            model, tokenizer, stored_bits = _read_folder(path, dtype)
        if base_bits is not None and stored_bits is not None:
            raise InvalidParameterError(
                f"base_bits must be left out for {source}: its linear layers are stored in "
                f"{stored_bits} bits or fewer already, and rounding them twice would lose more."
            )
        _require_matching_vocabulary(path, model, tokenizer)
        _freeze(model)
        if base_bits is not None and base_format == "nf4":
            pack_base_nf4(model, dtype)
        elif base_bits is not None:
            pack_base(model, bits=base_bits)
        model.to(device)
    bits = base_bits if stored_bits is None else stored_bits
    return LoadedModel(model, tokenizer, source, compute_fingerprint(path), bits, base_format)


def choose_compute_dtype(name: str, device: str) -> torch.dtype:
    """Returns the compute type called `name`; "auto" takes bfloat16 where the hardware has it.

    "auto" is bfloat16 on CUDA devices that support it and on processors that multiply it natively
    (AVX512-BF16, AMX-BF16, Arm BF16), else float32. Where PyTorch cannot tell, it is float32.

    Raises:
        InvalidParameterError: If the name or the device is unknown.
    """
    require_one_of("dtype", name, ("auto", *_DTYPES))
    _require_device(device)
    if name != "auto":
        return _DTYPES[name]
    if device.startswith("cuda"):
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bfloat16 = device == "cpu" and _has_bfloat16(_processor_capabilities())
    return torch.bfloat16 if has_bfloat16 else torch.float32


def _processor_capabilities() -> Mapping[str, Any]:
    """Returns what PyTorch knows about the processor; empty if it has no such function."""
    function = getattr(torch.cpu, "get_capabilities", None)
    return function() if function is not None else {}


def _has_bfloat16(capabilities: Mapping[str, Any]) -> bool:
    """Returns whether the processor multiplies bfloat16 natively."""
    names = ("avx512_bf16", "amx_bf16", "bf16")
    return any(capabilities.get(name) is True for name in names)


def _require_device(device: str) -> None:
    """Raises unless this machine has `device`; names the devices that there are."""
    available = ["cpu"]
    if torch.cuda.is_available():
        available += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        available.append("mps")
    if device not in available:
        raise InvalidParameterError(
            f"device must be one that this machine has ({', '.join(available)}); got {device!r}."
        )


def _resolve_source(source: str) -> Path:
    """Returns the GGUF file or the model folder that `source` names; fetches hub models."""
    if source == EMBEDDED:
        return embedded_model_path()
    if not source.strip():
        raise InvalidParameterError(
            'model must be "embedded", a folder, a .gguf file or a hub id; got an empty string.'
        )
    path = Path(os.path.expanduser(source))  # noqa: PTH111 - Path.expanduser raises for "~nobody"
    if path.exists():
        return _require_model_path(path)
    if source.startswith((".", "/", "~")) or source.endswith(".gguf") or "\\" in source:
        raise ModelUnavailableError(
            f"Model {source!r}: there is no such file or folder. Check the path; the current "
            f"folder is {Path.cwd()}."
        )
    return _require_model_path(fetch_snapshot(source))


def _require_model_path(path: Path) -> Path:
    """Returns `path` if it is a GGUF file or a folder with config.json and safetensors weights."""
    if (path.parent if path.is_file() else path).joinpath("adapter_config.json").exists():
        raise ModelUnavailableError(
            f"Model {path}: an adapter lies there (adapter_config.json), and adapters are not "
            "models. Give the base model that the adapter was trained on, in a folder of its own."
        )
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelUnavailableError(
                f"Model {path}: a single file must be a .gguf file. For safetensors weights give "
                "the folder that holds them and config.json."
            )
        return path
    if not (path / "config.json").is_file():
        if (only := only_gguf(path)) is not None:
            return only
        ggufs = sorted(file.name for file in path.glob("*.gguf"))
        remedy = f"Give the file itself: {path / ggufs[0]}." if ggufs else "Check the path."
        raise ModelUnavailableError(
            f"Model {path}: the folder has no config.json, so it is not a model folder. {remedy}"
        )
    weight_files(path)
    return path


def _read_folder(folder: Path, dtype: torch.dtype) -> tuple[Any, Any, int | None]:
    """Returns model, tokenizer and the most bits of a packed layer (None: there are none)."""
    settings = _quantization_config(folder)
    if settings is not None and not is_compressed_tensors(settings):
        raise ModelUnavailableError(
            f"Model {folder}: config.json says that its weights are stored quantized, in the "
            f"format {str(settings.get('quant_method'))[:80]!r}. Give the unquantized model, a "
            ".gguf file, or a folder in compressed-tensors' pack-quantized format."
        )
    try:
        if settings is None:
            model, bits = _read_plain(folder, dtype), None
        else:
            model, bits = read_compressed_tensors(folder, settings, dtype)
    except ModelUnavailableError:
        raise
    except Exception as error:  # noqa: BLE001 - readers of other projects raise anything
        raise unreadable(folder, error) from None
    return model, _read_tokenizer(folder), bits


def _read_plain(folder: Path, dtype: torch.dtype) -> Any:
    """Returns the model of a folder whose weights are plain numbers."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,  # never pickle
        trust_remote_code=False,
        output_loading_info=True,
    )
    require_complete(folder, info)
    return model


def _read_tokenizer(folder: Path) -> Any:
    """Returns the tokenizer of a folder, with a padding token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # noqa: BLE001 - readers of other projects raise anything
        raise ModelUnavailableError(
            f"Model {folder}: its tokenizer cannot be read ({first_line(error)}). The folder must "
            "hold tokenizer.json; save it with tokenizer.save_pretrained."
        ) from None
    return with_padding_token(tokenizer)


def _quantization_config(folder: Path) -> dict[str, Any] | None:
    """Returns how config.json says that weights are stored; None if plain.

    Unreadable JSON is told later.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return None
    settings = config.get("quantization_config") if isinstance(config, dict) else None
    if not settings:
        return None
    return settings if isinstance(settings, dict) else {"quant_method": settings}


def _require_matching_vocabulary(path: Path, model: Any, tokenizer: Any) -> None:
    """Raises if the tokenizer can produce a token for which the model has no embedding."""
    num_embeddings = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > num_embeddings:
        raise ModelUnavailableError(
            f"Model {path}: the tokenizer has {len(tokenizer)} tokens and the model embeds only "
            f"{num_embeddings}. They do not belong together."
        )


def _freeze(model: torch.nn.Module) -> None:
    """Switches gradients and every kind of dropout off, also for a later model.train()."""
    model.requires_grad_(requires_grad=False)
    model.eval()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):  # noqa: SLF001
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):  # Llama: self.attention_dropout
                setattr(module, name, 0.0)
