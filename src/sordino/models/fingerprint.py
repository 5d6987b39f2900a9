"""Which model a run started from: a hash of the files, not of the numbers in memory.

Numbers in memory depend on the type they were loaded in, files do not.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from sordino.core.errors import ModelUnavailableError
from sordino.ledger.artefacts import digest_file

if TYPE_CHECKING:
    from pathlib import Path

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_CHUNK = 1 << 20


def compute_fingerprint(path: Path) -> str:
    """Returns the SHA-256 of a model's source, 64 hexadecimal digits.

    A GGUF file's fingerprint is the hash of its bytes, as `sha256sum` prints it. A folder's is the
    hash of the lines "<sha256>  <name>" (what `sha256sum` prints) of config.json and
    the safetensors files that are read, sorted by name. Tokenizer files are not part of it.

    Args:
        path: A .gguf file or a model folder. For hub models, the snapshot's folder.

    Raises:
        ModelUnavailableError: If a file cannot be read.
    """
    try:
        if path.is_file():
            return digest_file(path)
        files = sorted([path / "config.json", *weight_files(path)], key=lambda file: file.name)
        lines = [f"{digest_file(file)}  {file.name}\n" for file in files]
    except OSError as error:
        raise ModelUnavailableError(f"Model {path}: {error}.") from None
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def compute_adapter_fingerprint(folder: Path) -> str:
    """Returns the SHA-256 of a PEFT adapter: of its configuration's bytes and then its weights'.

    Raises:
        ModelUnavailableError: If a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for name in ADAPTER_FILES:
            with (folder / name).open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
    except OSError as error:
        raise ModelUnavailableError(f"Adapter {folder}: {error}.") from None
    return digest.hexdigest()


def compute_subject_fingerprint(path: Path) -> str:
    """Returns the SHA-256 by which an audit or an evaluation names what it looked at.

    Args:
        path: A PEFT adapter's folder, a model folder or a .gguf file.

    Raises:
        ModelUnavailableError: If a file cannot be read.
    """
    if (path / ADAPTER_FILES[0]).is_file():
        return compute_adapter_fingerprint(path)
    return compute_fingerprint(only_gguf(path) or path)


def only_gguf(folder: Path) -> Path | None:
    """Returns the one GGUF file of a folder that is no model folder; None for all others."""
    if not folder.is_dir() or (folder / "config.json").is_file():
        return None
    files = list(folder.glob("*.gguf"))
    return files[0] if len(files) == 1 else None


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files that loading the folder reads.

    Raises:
        ModelUnavailableError: If there are none, or one named by the index is missing.
    """
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not (folder / _INDEX).is_file():
        has_pickle = any(folder.glob("*.bin"))
        remedy = (
            "Its .bin files are pickles, which can run code and are never read: convert them with "
            "model.save_pretrained."
            if has_pickle
            else "Copy or download it again."
        )
        raise ModelUnavailableError(
            f"Model {folder}: the folder has no {_SINGLE} and no {_INDEX}. {remedy}"
        )
    files = [folder / name for name in _shard_names(folder)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelUnavailableError(
            f"Model {folder}: {len(missing)} of {len(files)} weight files are missing, the first "
            f"is {missing[0]}. Copy or download it again."
        )
    return files


def _shard_names(folder: Path) -> list[str]:
    """Returns the sorted file names in the index of a model in several files."""
    try:
        names = set(
            json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        names = set()
    if not names or not all(isinstance(name, str) and "/" not in name for name in names):
        raise ModelUnavailableError(f"Model {folder}: {_INDEX} is damaged. Download it again.")
    return sorted(names)
