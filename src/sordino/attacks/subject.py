"""What is audited: a tuned model and, where there is one, the base that it was tuned from."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.core.errors import InvalidDataError, InvalidParameterError, ModelUnavailableError
from sordino.data.canaries import read_canaries
from sordino.gradients.objectives import LanguageModel
from sordino.ledger.artefacts import require_artefacts, require_own_artefacts
from sordino.ledger.ledger import Ledger
from sordino.models import adapter_off, load_adapter, load_model, read_adapter_base
from sordino.quantization.provenance import RECORD, SOURCE_LEDGER, read_record, recompute_privacy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import torch

    from sordino.data.canaries import PlannedCanaries
    from sordino.models import LoadedModel


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Subject:
    """A model under attack.

    Args:
        name: The user's words for it, without the folders of this machine.
        source: What was opened, as the user gave it.
        kind: "run" (a folder of `sordino tune`), "quantized run", "adapter" (a PEFT folder) or
            "model".
        tuned: The model as it would be published.
        tokenizer: Its tokenizer.
        context_length: Longest input in tokens.
        fingerprint: SHA-256 of the files attacked.
        base_source: Where the base was loaded from; None without a base.
        base_fingerprint: SHA-256 of the base's files; None without a base.
        ledger: What a Sordino run recorded; None for models made elsewhere.
        is_voided: Whether quantization voided what the run claimed.
    """

    name: str
    source: str
    kind: str
    tuned: LanguageModel
    tokenizer: Any
    context_length: int
    fingerprint: str
    base_source: str | None
    base_fingerprint: str | None
    ledger: Ledger | None
    open_base: Callable[[], AbstractContextManager[LanguageModel]] | None
    is_voided: bool = False

    @property
    def has_base(self) -> bool:
        """Whether scores against the base can be computed."""
        return self.open_base is not None

    def base(self) -> AbstractContextManager[LanguageModel]:
        """Returns a context whose language model computes as the base does.

        With an adapter it is the same model with the adapter switched off: inside the context
        `tuned` computes as the base too.

        Raises:
            InvalidParameterError: If there is no base.
        """
        if self.open_base is None:
            raise InvalidParameterError(
                f"{self.name} is a whole model without a known base: name the model that it was "
                "tuned from, with --model BASE."
            )
        return self.open_base()


def open_subject(
    source: str,
    *,
    base: str | None = None,
    base_bits: int | None = None,
    base_format: str | None = None,
    dtype: torch.dtype,
    device: str = "cpu",
) -> Subject:
    """Returns the model to attack.

    Args:
        source: A folder of `sordino tune` or `sordino quantize`, a PEFT adapter's folder, or
            anything that `load_model` reads: a model folder, a GGUF file, a hub id, "embedded".
        base: The model it was tuned from; None takes what an adapter's folder names, and no base
            for whole models.
        base_bits: Bits of a weight of the base, or of a whole model; None takes what a run's ledger
            says, and plain weights for others.
        base_format: "codes" or "nf4", how those bits are held; None takes what a run's ledger says,
            and "codes" for others.
        dtype: Compute type.
        device: Where to compute.

    Raises:
        InvalidParameterError: If the base is not the one the run started from, or does not have
            the same vocabulary.
        ModelUnavailableError: If a model cannot be read.
        LedgerError: If the ledger of a run, or of the run behind a quantized folder, is damaged, or
            names other weights than lie there.
    """
    folder = Path(source)
    ledger, kind, is_voided = _find_ledger(folder)
    if (folder / "adapter_config.json").is_file():
        held = find_base_format(ledger, base_bits, base_format)
        return _open_adapter(folder, base, held, ledger, dtype=dtype, device=device)
    held = find_base_format(None, base_bits, base_format)
    loaded = load_model(source, dtype=dtype, device=device, **held)
    reference = None
    if base is not None:
        own = find_base_format(ledger, None, None)
        reference = load_model(base, dtype=dtype, device=device, **own)
    if reference is not None:
        _require_started_from(ledger, reference)
        if reference.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
            raise InvalidParameterError(
                f"model {base} has another vocabulary than {source}, so their probabilities "
                "cannot be compared. Give the model that it was tuned from."
            )
    other = None if reference is None else _language_model(reference, reference.model)
    return Subject(
        name=folder.name if folder.exists() else source,
        source=source,
        kind=kind,
        tuned=_language_model(loaded, loaded.model),
        tokenizer=loaded.tokenizer,
        context_length=loaded.context_length,
        fingerprint=loaded.fingerprint,
        base_source=base,
        base_fingerprint=None if reference is None else reference.fingerprint,
        ledger=ledger,
        open_base=None if other is None else lambda: nullcontext(other),
        is_voided=is_voided,
    )


def find_base_format(
    ledger: Ledger | None, base_bits: int | None, base_format: str | None
) -> dict[str, Any]:
    """Returns base_bits and base_format for `load_model`: what was asked for, else the ledger's."""
    opening = ledger.events[0] if ledger is not None else {}
    own_bits, own_format = opening.get("base_bits"), opening.get("base_format", "codes")
    bits = own_bits if base_bits is None else base_bits
    if base_format is None:  # other bits than the run's are another base, and not in its format
        base_format = own_format if bits == own_bits else "codes"
    return {"base_bits": bits, "base_format": base_format}


def require_made_from(subject: Subject, ledger: Path) -> None:
    """Raises unless a quantized run was made from the run that has this ledger.

    Canaries of another run would prove nothing, whatever was guessed about them.

    Raises:
        InvalidParameterError: If the subject is no quantized run, or was made from another run.
        LedgerError: If the ledger is damaged.
    """
    if subject.kind != "quantized run" or subject.ledger is None:
        raise InvalidParameterError(
            "quantized_from is for folders that `sordino quantize` made from a run; "
            f"{subject.name} is of the kind {subject.kind!r}. Leave it out."
        )
    if Ledger.open(ledger).head != subject.ledger.head:
        raise InvalidParameterError(
            f"{subject.name} was not made from the run {ledger.parent}: its ledger is another one. "
            "Name the run that was quantized."
        )


def require_whole_folder(source: Path) -> None:
    """Raises for a file inside a quantized folder: the folder is what has a claim.

    Raises:
        InvalidParameterError: If it is one.
    """
    if source.is_file() and (source.parent / RECORD).is_file():
        raise InvalidParameterError(
            f"{source} is a part of {source.parent}, whose {RECORD} says what may be claimed of "
            f"it. Name the folder: {source.parent}."
        )


def find_canaries(path: Path, ledger: Path) -> PlannedCanaries | None:
    """Returns the private list of a run's canaries; None where it planned none.

    Args:
        path: The list.
        ledger: The run's ledger; it need not exist.

    Raises:
        InvalidDataError: If the ledger names canaries and the list is not there.
        LedgerError: If the ledger is damaged.
    """
    if path.exists():
        return read_canaries(path)
    events = Ledger.open(ledger).events if ledger.is_file() else []
    described = events[0].get("canaries") if events else None
    if described is not None:
        raise InvalidDataError(
            f"{path} is missing: the run planned {described.get('num_planned')} canaries, and this "
            "list says which were in. Put it back, or audit with --no-canaries."
        )
    return None


def require_own_canaries(subject: Subject, planned: PlannedCanaries, path: Path) -> None:
    """Raises unless a list of canaries is that of the run behind a model.

    Raises:
        InvalidDataError: If it is another run's, whose coins were others.
    """
    if subject.ledger is None:
        return
    described = subject.ledger.events[0].get("canaries")
    if described != planned.describe():
        raise InvalidDataError(
            f"{path}: not the list of canaries of this run, whose ledger names "
            f"{'none' if described is None else described.get('name', 'one of an older version')}."
            " Put the run's own list there, or audit with --no-canaries."
        )


def _find_ledger(folder: Path) -> tuple[Ledger | None, str, bool]:
    """Returns the ledger of the run behind a model, its kind, and whether its claim is void."""
    if (folder / "ledger.jsonl").is_file():
        ledger = Ledger.open(folder / "ledger.jsonl")
        require_own_artefacts(folder, ledger)
        return ledger, "run", False
    if (folder / RECORD).is_file() and (folder / SOURCE_LEDGER).is_file():
        require_artefacts(folder, read_record(folder))
        privacy = recompute_privacy(folder)  # not what the folder says of itself
        return Ledger.open(folder / SOURCE_LEDGER), "quantized run", bool(privacy["is_voided"])
    return None, "model", False


def _open_adapter(
    folder: Path,
    base: str | None,
    held: dict[str, Any],
    ledger: Ledger | None,
    *,
    dtype: torch.dtype,
    device: str,
) -> Subject:
    """Returns an adapter on its base model, which is the same model with the adapter off."""
    opening = ledger.events[0] if ledger is not None else {}
    named = base or opening.get("base_model") or read_adapter_base(folder)
    try:
        loaded = load_model(named, dtype=dtype, device=device, **held)
    except ModelUnavailableError as error:
        if base is not None:
            raise
        raise ModelUnavailableError(
            f"{folder.name} was tuned from {named!r}, which is not found by this name here: give "
            f"its path as the base model. ({error})"
        ) from None
    _require_started_from(ledger, loaded)
    adapted, fingerprint = load_adapter(loaded.model, folder)
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:  # PEFT keeps float32, and casts all it multiplies twice
            parameter.data = parameter.data.to(dtype)
    tuned = _language_model(loaded, adapted.get_base_model())

    @contextmanager
    def open_base() -> Iterator[LanguageModel]:
        with adapter_off(adapted):
            yield tuned

    return Subject(
        name=folder.name,
        source=str(folder),
        kind="adapter" if ledger is None else "run",
        tuned=tuned,
        tokenizer=loaded.tokenizer,
        context_length=loaded.context_length,
        fingerprint=fingerprint,
        base_source=loaded.source,
        base_fingerprint=loaded.fingerprint,
        ledger=ledger,
        open_base=open_base,
    )


def _language_model(loaded: LoadedModel, model: Any) -> LanguageModel:
    """Returns a frozen model as objectives see it."""
    model.requires_grad_(requires_grad=False)
    model.eval()
    return LanguageModel(model, loaded.tokenizer.pad_token_id)


def _require_started_from(ledger: Ledger | None, base: LoadedModel) -> None:
    """Raises unless a run started from these files."""
    if ledger is not None and ledger.events[0].get("base_model_sha256") != base.fingerprint:
        raise InvalidParameterError(
            f"model {base.source} is not the base that this run started from (another SHA-256). "
            "Give the same files with --model BASE."
        )
