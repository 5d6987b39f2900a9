"""Weights and optimizer of a run on gradients, between two steps; beside the run, never in it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sordino.core.errors import LedgerError
from sordino.ledger.durable import PRIVATE_FILE_MODE, flush_folder

if TYPE_CHECKING:
    from pathlib import Path

    import torch


def write_checkpoint(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replaces the checkpoint; killed halfway, it leaves the old one or the new one."""
    fresh = path.with_suffix(".new")
    fresh.touch(mode=PRIVATE_FILE_MODE)  # before anything is in it
    fresh.chmod(PRIVATE_FILE_MODE)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, fresh)
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.replace(path)
    flush_folder(path.parent)


def read_checkpoint(path: Path) -> dict[str, torch.Tensor] | None:
    """Returns the checkpoint, or None if there is none yet.

    Raises:
        LedgerError: If the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise LedgerError(
            f"{path}: the checkpoint is damaged. Remove it to go on from the start of the run; "
            "what was charged stays charged."
        ) from error
