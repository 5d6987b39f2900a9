"""`sordino verify`: recompute what a run claims, from its files alone, and compare the bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from safetensors.torch import load_file
from typing_extensions import Doc

from sordino.core.errors import LedgerError, SordinoError, VerificationError
from sordino.ledger.certificate import compute_certificate
from sordino.ledger.certificate_words import describe_certificate
from sordino.ledger.ledger import Ledger
from sordino.ledger.transcript import StepSymbols, TranscriptHeader, read_transcript
from sordino.models import initial_adapter_tensor, load_model
from sordino.quantization.provenance import (
    RECORD,
    read_record,
    require_claim,
)
from sordino.quantization.provenance import (
    artefact_digests as quantized_digests,
)
from sordino.training.card import render_card
from sordino.training.finish import artefact_digests
from sordino.training.replay import initial_tensors, make_space, replay
from sordino.training.run_folder import RunFolder
from sordino.training.setup import prepare_full
from sordino.training.symbols import find_uncharged_step

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sordino.ledger.certificate import Certificate


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: what was checked, and what differs (empty: nothing)."""

    what: str
    difference: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify`."""

    run: Path
    checks: tuple[Check, ...]
    certificate_in_words: tuple[str, ...]

    @property
    def is_valid(self) -> bool:
        """Whether nothing differs."""
        return not any(check.difference for check in self.checks)


def verify(
    run: Annotated[Path, Doc("Folder made by `sordino tune` or `sordino quantize`.")],
    *,
    model: Annotated[
        str | None, Doc("The base model; needed after full fine-tuning, checked if given.")
    ] = None,
) -> Verification:
    """Checks a run folder: chain, certificate, transcript, weights, model card.

    The transcript is replayed on the base model (an adapter's start follows from the public seed)
    and the weights are compared bit for bit. Nothing private is needed.

    Of a folder of `sordino quantize`: its files, and what its calibration leaves of the claim of
    the run whose ledger lies in it. Codes are not computed again, for that needs the texts.

    Returns:
        Every check with what differs; `is_valid` if nothing does.

    Raises:
        VerificationError: If the folder is not a run at all.

    Example:
        sordino verify run --model embedded
    """
    folder = RunFolder(Path(run))
    if (folder.path / RECORD).is_file() and not folder.ledger.exists():
        return _verify_quantized(folder.path)
    if not folder.ledger.is_file():
        raise VerificationError(f"{folder.path} is not a run folder: it has no ledger.jsonl.")
    checks: list[Check] = []
    ledger = _check(checks, "ledger: hash chain", lambda: Ledger.open(folder.ledger))
    claim = ledger and _check(checks, "ledger: complete, within budget", lambda: _claim(ledger))
    if ledger is None or claim is None:
        return Verification(folder.path, tuple(checks), ())
    certificate, words, card = claim
    _check(
        checks,
        "certificate: recomputed from the ledger",
        lambda: _compare_file(folder.certificate, certificate.to_bytes()),
    )
    _check(
        checks,
        "model card: recomputed from the ledger",
        lambda: _compare_file(folder.card, card.encode()),
    )
    transcript = _check(
        checks,
        "transcript: the one in the ledger",
        lambda: _read_transcript(folder, ledger, certificate),
    )
    _check(checks, "files: as recorded", lambda: _compare_artefacts(folder, certificate))
    if transcript is not None:
        header, steps = transcript
        if header.encoding == "none":
            checks.append(Check("weights: as recorded (noisy gradients leave nothing to replay)"))
        else:
            _check(
                checks,
                "weights: equal to the replayed transcript, bit for bit",
                lambda: _compare_weights(folder, ledger, header, steps, model),
            )
    if model is not None:
        _check(checks, "base model: fingerprint", lambda: _compare_base(ledger, model))
    return Verification(folder.path, tuple(checks), tuple(words))


def _verify_quantized(folder: Path) -> Verification:
    """Returns the checks of a folder of `sordino quantize`."""
    checks: list[Check] = []
    record = _check(checks, "record: readable", lambda: read_record(folder))
    if record is None:
        return Verification(folder, tuple(checks), ())
    privacy = _check(
        checks,
        "claim: recomputed from the calibration's kind and the run's ledger",
        lambda: require_claim(folder, record),
    )
    _check(checks, "files: as recorded", lambda: _compare_quantized(folder, record))
    return Verification(folder, tuple(checks), tuple(privacy["lines"] if privacy else ()))


def _compare_quantized(folder: Path, record: dict[str, Any]) -> None:
    """Raises unless the files of a quantized folder are those recorded."""
    _compare_digests(quantized_digests(folder), record["artefacts_sha256"])


def _check(checks: list[Check], what: str, compute: Callable[[], Any]) -> Any:
    """Returns compute(), or None after noting what differs."""
    try:
        result = compute()
    except SordinoError as error:
        checks.append(Check(what, str(error)))
        return None
    except Exception as error:  # noqa: BLE001 - whatever a changed file breaks, it is a difference
        checks.append(Check(what, f"cannot be checked ({type(error).__name__}: {error})."))
        return None
    checks.append(Check(what))
    return result


def _claim(ledger: Ledger) -> tuple[Certificate, list[str], str]:
    """Returns what a ledger claims: as a certificate, in words, and as a model card."""
    certificate = compute_certificate(ledger)
    return certificate, describe_certificate(certificate), render_card(ledger, certificate)


def _compare_file(path: Path, expected: bytes) -> None:
    """Raises with the first byte at which a file differs from what the ledger gives."""
    found = path.read_bytes()
    if found != expected:
        pairs = enumerate(zip(found, expected, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(found), len(expected)))
        raise LedgerError(f"{path} differs from what the ledger gives, from byte {at} on.")


def _read_transcript(
    folder: RunFolder, ledger: Ledger, certificate: Certificate
) -> tuple[TranscriptHeader, list[StepSymbols]]:
    """Returns header and steps; raises unless they and the whole file are what was charged."""
    header, steps = read_transcript(folder.transcript)
    opening = ledger.events[0]
    if hashlib.sha256(header.to_bytes()).hexdigest() != opening["transcript_header_sha256"]:
        raise LedgerError("its header (public seed and settings) is not the one in the ledger.")
    step = find_uncharged_step(ledger, steps) if header.encoding != "none" else None
    if step is not None:
        raise LedgerError(f"the symbols of step {step} are not those charged.")
    if hashlib.sha256(folder.transcript.read_bytes()).hexdigest() != certificate.transcript_sha256:
        raise LedgerError("the file is not the one in the certificate.")
    return header, steps


def _compare_artefacts(folder: RunFolder, certificate: Certificate) -> None:
    """Raises unless the other files are those of the closing event."""
    _compare_digests(artefact_digests(folder), certificate.artefacts_sha256)


def _compare_digests(found: dict[str, str], recorded: dict[str, str]) -> None:
    """Raises with the names of files whose hashes differ."""
    names = sorted(name for name in {*found, *recorded} if found.get(name) != recorded.get(name))
    if names:
        raise LedgerError(f"changed, missing or added since the run: {', '.join(names)}.")


def _compare_weights(
    folder: RunFolder,
    ledger: Ledger,
    header: TranscriptHeader,
    steps: list[StepSymbols],
    model: str | None,
) -> None:
    """Raises unless the replayed tensors equal the saved ones bit for bit."""
    selected = steps[: ledger.events[-1]["selected_step"]]
    if header.adapter["kind"] == "lora":
        tensors = initial_tensors(header)
        saved = _read_adapter(folder, header)
    else:
        if model is None:
            raise VerificationError("give the base model to replay on: --model BASE.")
        tensors = prepare_full(load_model(model, dtype=torch.float32).model)
        saved_model = load_model(str(folder.path.absolute()), dtype=torch.float32).model
        saved = {name: p.data for name, p in prepare_full(saved_model).items()}
    space = make_space(header, tensors)
    replay(space, header, selected)
    for name, tensor in space.state().items():
        if name not in saved or not _equal_bits(tensor, saved[name]):
            raise LedgerError(f"{name} is not what the transcript gives.")


def _read_adapter(folder: RunFolder, header: TranscriptHeader) -> dict[str, torch.Tensor]:
    """Returns the saved adapter by stable names; checks the public factors that never move."""
    prefix = "base_model.model."
    saved = {
        name.removeprefix(prefix): tensor
        for name, tensor in load_file(folder.path / "adapter_model.safetensors").items()
    }
    for name, tensor in saved.items():
        if name in header.tensors:
            continue
        if not _equal_bits(tensor, initial_adapter_tensor(name, tuple(tensor.shape), header.seed)):
            raise LedgerError(f"{name} does not follow from the public seed.")
    return saved


def _compare_base(ledger: Ledger, model: str) -> None:
    """Raises unless the base model's files are those that the run started from."""
    if load_model(model).fingerprint != ledger.events[0]["base_model_sha256"]:
        raise LedgerError(f"{model} is not the base model that the run started from.")


def _equal_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Returns whether two float32 tensors have the same shape and the same bits."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))
