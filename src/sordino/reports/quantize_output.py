"""The folder that `sordino quantize` leaves: files, ledgers, and the record of every layer."""

from __future__ import annotations

import shutil
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sordino.ledger.durable import locked, replace_file
from sordino.quantization import formats
from sordino.quantization.provenance import (
    CALIBRATION_LEDGER,
    RECORD,
    SOURCE_LEDGER,
    artefact_digests,
    make_record,
)
from sordino.reports.quantize_checks import require_new

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sordino.quantization.pipeline import FinishedLayer, LayerStore
    from sordino.quantization.source import QuantizationSource

__all__ = ["hold_output", "layer_record", "write_output"]


@contextmanager
def hold_output(output: Path) -> Iterator[Path]:
    """Holds an output for this process and gives the folder of its unfinished blocks.

    Two processes in one such folder would draw noise twice on the same private texts, and pay once.
    The lock lies beside the folder, which `write_output` removes.

    Args:
        output: The folder to make.

    Raises:
        LedgerError: If another process holds it; nothing was changed.
        InvalidParameterError: If another process has finished it meanwhile.
    """
    partial = output.with_name(output.name + ".partial")
    lock = partial.with_name(partial.name + ".lock")
    output.parent.mkdir(parents=True, exist_ok=True)
    busy = f"another quantization is at work in {partial}: wait for it, or choose another --output."
    with locked(lock, busy):
        try:
            require_new(output)
            yield partial
        finally:
            lock.unlink(missing_ok=True)


def write_output(
    output: Path,
    opened: QuantizationSource,
    format_name: str,
    finished: Mapping[str, FinishedLayer],
    store: LayerStore,
    *,
    parts: dict[str, Any],
) -> Path:
    """Writes the output folder; it appears whole or not at all. Returns its record.

    Args:
        output: The folder; empty if it exists.
        opened: What was quantized.
        format_name: A key of `FORMATS`.
        finished: The layers, by name.
        store: Where finished blocks are kept, held by `hold_output`; removed at the end.
        parts: What else the record says, as `make_record` takes it.

    Raises:
        OSError: If the disk is full or fails; finished blocks are then kept.
    """
    result = store.folder / "result"
    with suppress(FileNotFoundError):
        shutil.rmtree(result)  # of a crash while writing
    result.mkdir()
    codes = {name: item.layer for name, item in finished.items()}
    formats.write(format_name, result, opened.model, codes, opened.tokenizer)
    head = None
    if opened.ledger is not None:
        head = opened.ledger.head
        shutil.copyfile(opened.ledger.path, result / SOURCE_LEDGER)
    if (store.folder / CALIBRATION_LEDGER).exists():
        shutil.copyfile(store.folder / CALIBRATION_LEDGER, result / CALIBRATION_LEDGER)
    record = make_record(
        sordino_version=version("sordino"),
        source={
            "name": opened.name,
            "kind": opened.kind,
            "sha256": opened.fingerprint,
            "base_sha256": opened.base_fingerprint,
            "ledger_head": head,
        },
        format=format_name,
        **parts,
        layers=[layer_record(item) for item in finished.values()],
        artefacts_sha256=artefact_digests(result),
    )
    replace_file(result / RECORD, record)
    if output.exists():  # empty, as was checked
        output.rmdir()
    result.replace(output)
    store.remove()
    return output / RECORD


def layer_record(item: FinishedLayer) -> dict[str, Any]:
    """Returns one layer as the record holds it."""
    layer = item.layer
    rows, columns = layer.codes.shape
    return {
        "name": layer.name,
        "shape": [rows, columns],
        "bits": layer.bits,
        "group_size": layer.group_size,
        "num_bytes": layer.num_bytes,
        "certificate": None if item.certificate is None else asdict(item.certificate),
        "has_scaled_inputs": item.has_scaled_inputs,
        "geometry": item.geometry,
    }
