"""What is checked of a quantization before hours of work, each with what to do instead."""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING, Any

from sordino.core.checks import require_one_of
from sordino.core.errors import InvalidParameterError
from sordino.quantization import formats
from sordino.quantization.bit_choice import BitBudget, needs_inputs
from sordino.quantization.calibration import read_calibration_texts
from sordino.quantization.methods import METHODS
from sordino.quantization.pipeline import matrix_of

if TYPE_CHECKING:
    from pathlib import Path

    from sordino.quantization.methods import QuantizationSettings
    from sordino.quantization.source import QuantizationSource

__all__ = [
    "read_budget",
    "read_calibration",
    "read_group_size",
    "require_new",
    "require_space",
    "require_together",
]

_SPARE_BYTES = 2**24


def read_budget(
    budget_bytes: int | None, allocation: str | None, seed: int, format_name: str
) -> BitBudget | None:
    """Returns the byte budget; None without one."""
    require_one_of("format", format_name, tuple(formats.FORMATS))
    if budget_bytes is None:
        if allocation is not None:
            raise InvalidParameterError("allocation spends a budget: --budget-bytes N.")
        return None
    return BitBudget(
        budget_bytes=budget_bytes,
        allocation=allocation or "certificate",
        choices=tuple(sorted(formats.FORMATS[format_name].bits)),
        seed=seed,
    )


def require_together(
    texts: list[str] | None,
    settings: QuantizationSettings,
    budget: BitBudget | None,
    *,
    is_public: bool,
    is_dp: bool,
) -> None:
    """Raises if calibration, budget and method do not go together."""
    rule = None if budget is None else budget.allocation
    if rule is not None and needs_inputs(rule) and texts is None:
        raise InvalidParameterError(
            f"allocation {rule} needs calibration texts: --calibration FILE. --allocation "
            "kurtosis looks at the weights alone."
        )
    if not is_dp:
        return
    if texts is None or is_public:
        raise InvalidParameterError(
            "calibration_epsilon is for a file of private texts: --calibration FILE, without "
            "--calibration-is-public."
        )
    if rule is not None and needs_inputs(rule):
        raise InvalidParameterError(
            f"allocation {rule} would look at the private texts a second time, which nothing pays "
            "for. Take --allocation kurtosis or random."
        )
    if settings.method == "smoothquant":
        raise InvalidParameterError(
            "method smoothquant needs the largest inputs, which private Gram matrices do not "
            "tell. Take --method awq, gptq, hqq or nearest."
        )


def read_group_size(group_size: str | int) -> int | None:
    """Returns the number of inputs in a group; None for a row."""
    if str(group_size) == "row":
        return None
    if str(group_size) not in {"32", "64", "128"}:
        raise InvalidParameterError(f"group_size must be 32, 64, 128 or row, got {group_size!r}.")
    return int(group_size)


def read_calibration(
    calibration: str | Path | None, method: str, *, is_public: bool
) -> list[str] | None:
    """Returns the calibration texts; None without any. Nothing is taken that was not named."""
    is_none = calibration is None or str(calibration) == "none"
    if is_none and METHODS[method].needs_calibration:
        raise InvalidParameterError(
            f"method {method} needs calibration texts: name a file with --calibration FILE, and "
            "--calibration-is-public if it holds nothing private. --method nearest needs none."
        )
    if is_none and is_public:
        raise InvalidParameterError("calibration_is_public needs a file: --calibration FILE.")
    return None if is_none else read_calibration_texts(str(calibration))


def require_new(output: Path) -> None:
    """Raises unless the output folder is absent or empty."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InvalidParameterError(
            f"output {output} exists already and nothing in it is overwritten. Choose another "
            "folder."
        )


def require_space(output: Path, opened: QuantizationSource, layers: list[dict[str, Any]]) -> None:
    """Raises unless the disk has room for finished blocks and the output."""
    quantized = sum(matrix_of(m).numel() for block in layers for m in block.values())
    others = sum(p.numel() for p in opened.model.parameters()) - quantized
    # A byte a code until all are done, then at most as much again; scales are in the spare third.
    needed = math.ceil(2.67 * quantized) + 4 * others + _SPARE_BYTES
    parent = next(p for p in output.absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise InvalidParameterError(
            f"no space left for the output: {parent} has {free / 1e6:.0f} MB free and about "
            f"{needed / 1e6:.0f} MB are needed. Nothing was written."
        )
