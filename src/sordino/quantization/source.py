"""The model to quantize, as one plain model: adapters merged, packed layers unpacked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sordino.core.errors import InvalidParameterError
from sordino.ledger.artefacts import require_own_artefacts
from sordino.ledger.ledger import Ledger
from sordino.models import load_adapter, load_model, read_adapter_base, unpack_base

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["QuantizationSource", "open_source"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantizationSource:
    """A plain model in float32, and where it came from.

    Args:
        name: The user's words for it, without the folders of this machine.
        kind: "run" (a folder of `sordino tune`), "adapter" (a PEFT folder) or "model".
        model: Frozen; nothing but plain layers.
        tokenizer: Its tokenizer.
        context_length: Longest input in tokens.
        fingerprint: SHA-256 of the files quantized.
        base_fingerprint: SHA-256 of the base's files; None for whole models.
        open_base: Loads the base again, plain; None for whole models.
        ledger: What a Sordino run recorded; None for models made elsewhere.
    """

    name: str
    kind: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context_length: int
    fingerprint: str
    base_fingerprint: str | None
    open_base: Callable[[], PreTrainedModel] | None
    ledger: Ledger | None


def open_source(source: str, *, base: str | None = None) -> QuantizationSource:
    """Returns the model to quantize.

    Args:
        source: A folder of `sordino tune`, a PEFT adapter's folder, or anything that `load_model`
            reads.
        base: The model that an adapter belongs to; None takes what its folder names.

    Raises:
        InvalidParameterError: If the base is not the one the run started from, or is given with a
            whole model, or was held in NF4 and there is no CUDA device.
        ModelUnavailableError: If a model cannot be read.
        LedgerError: If the ledger of a run folder is damaged, or names other weights.
    """
    folder = Path(source)
    ledger = Ledger.open(folder / "ledger.jsonl") if (folder / "ledger.jsonl").is_file() else None
    if ledger is not None:
        require_own_artefacts(folder, ledger)
    is_adapter = (folder / "adapter_config.json").is_file()
    name = folder.name if folder.exists() else source
    if not is_adapter:
        if base is not None:
            raise InvalidParameterError(
                f"{name} is a whole model, which needs no base. Leave --model out."
            )
        loaded = load_model(source, dtype=torch.float32)
        model, fingerprint, base_fingerprint = loaded.model, loaded.fingerprint, None
        open_base = None
    else:
        opening = ledger.events[0] if ledger is not None else {}
        is_over_nf4 = opening.get("base_format") == "nf4"
        if is_over_nf4 and not torch.cuda.is_available():
            raise InvalidParameterError(
                f"{name} was tuned over NF4 weights, which are rounded on a CUDA device, and there "
                "is none here. Quantize it on a machine that has one."
            )
        load = partial(
            load_model,
            base or opening.get("base_model") or read_adapter_base(folder),
            dtype=torch.float32,
            base_bits=opening.get("base_bits"),
            base_format=opening.get("base_format", "codes"),
            # NF4 weights are known where bitsandbytes rounds them; plain again, they come back
            device="cuda" if is_over_nf4 else "cpu",
        )
        loaded = load()

        def open_base() -> PreTrainedModel:
            return unpack_base(load().model).cpu()

        if ledger is not None and opening.get("base_model_sha256") != loaded.fingerprint:
            raise InvalidParameterError(
                f"model {loaded.source} is not the base that this run started from (another "
                "SHA-256). Give the same files with --model BASE."
            )
        base_fingerprint = loaded.fingerprint
        adapted, fingerprint = load_adapter(unpack_base(loaded.model).cpu(), folder)
        model = adapted.merge_and_unload()
    kind = "run" if ledger is not None else "adapter" if is_adapter else "model"
    return QuantizationSource(
        name=name,
        kind=kind,
        model=unpack_base(model).requires_grad_(requires_grad=False).eval(),
        tokenizer=loaded.tokenizer,
        context_length=loaded.context_length,
        fingerprint=fingerprint,
        base_fingerprint=base_fingerprint,
        open_base=open_base,
        ledger=ledger,
    )
