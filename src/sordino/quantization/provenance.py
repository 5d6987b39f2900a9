"""`quantization.json`: what was quantized, with which texts, and what that leaves of a claim.

Quantizing with public texts, or with none, is post-processing: a run's guarantee stays as it is.
Private texts whose Gram matrices were used as they are void it, whatever training guaranteed: the
codes depend on those texts, and no noise was added. The lines are recomputed by `sordino verify`
from the run's ledger, which lies beside them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sordino.core.errors import InvalidParameterError, LedgerError
from sordino.ledger.certificate import NO_GUARANTEE, compute_certificate, describe_certificate
from sordino.ledger.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "RECORD",
    "SOURCE_LEDGER",
    "CalibrationSource",
    "artefact_digests",
    "describe_privacy",
    "make_record",
    "read_record",
    "recompute_privacy",
]

RECORD = "quantization.json"
SOURCE_LEDGER = "source_ledger.jsonl"
FORMAT_VERSION = 1
KINDS = ("none", "public", "private")
WHAT_THE_BOUND_SAYS = (
    "Losses and bounds speak of each layer's output error over the calibration texts. They do not "
    "bound perplexity, nor the error on other texts."
)
_NOTHING_CLAIMED = (
    "Nothing is claimed: this is not a Sordino run, so nothing is known of how it was trained."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSource:
    """Where calibration texts came from.

    Args:
        kind: "none", "public" (the user declared it) or "private" (used as they are).
        sha256: Of the file; None without one.
        num_sequences: Texts used.
        num_tokens: Tokens used.

    Raises:
        InvalidParameterError: If the kind is unknown: what it does to a claim is not known either.
    """

    kind: str
    sha256: str | None = None
    num_sequences: int = 0
    num_tokens: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidParameterError(
                f"calibration must be one of {', '.join(KINDS)}; got {self.kind!r}."
            )
        if (self.kind == "none") != (self.sha256 is None):
            raise InvalidParameterError(
                f"calibration {self.kind} must {'not ' if self.kind == 'none' else ''}name the "
                "SHA-256 of a file."
            )


def describe_privacy(ledger: Ledger | None, calibration: CalibrationSource) -> dict[str, Any]:
    """Returns what may be claimed of the quantized model, for `quantization.json`.

    Guarantee:
        `guarantee` is the run's own only if the calibration texts are public or there are none;
        every other kind is refused or voids it.

    Args:
        ledger: Of the run that was quantized; None for other models.
        calibration: Where calibration texts came from.

    Returns:
        `guarantee` (the run's, or "none"), `is_voided`, and `lines` in words.

    Raises:
        LedgerError: If the ledger is not that of a finished run.
    """
    if calibration.kind == "private":
        return _describe_voided(ledger)
    if ledger is None:
        return {"guarantee": "none", "is_voided": False, "lines": [_NOTHING_CLAIMED]}
    certificate = compute_certificate(ledger)
    reason = (
        "with texts declared public, by no private data"
        if calibration.kind == "public"
        else "without calibration texts"
    )
    return {
        "guarantee": certificate.guarantee,
        "is_voided": False,
        "lines": [
            *describe_certificate(certificate),
            f"Quantized {reason}: post-processing, which costs no privacy.",
        ],
    }


def _describe_voided(ledger: Ledger | None) -> dict[str, Any]:
    """Returns what is left of a claim after private texts were used without noise."""
    void = (
        f"{NO_GUARANTEE}. Void: the codes depend on private calibration texts, whose Gram matrices "
        "were used without noise."
    )
    lines = [f"The calibration texts: {void}"]
    if ledger is not None:
        certificate = compute_certificate(ledger)
        lines = [
            f"Secret 1, {certificate.subset.secret}: {void}",
            f"Secret 2, {certificate.pool.secret}: {void}",
            *lines,
            (
                f"The run itself claimed {certificate.guarantee}; its certificate speaks of the "
                "weights before they were quantized, and not of this folder."
            ),
        ]
    lines.append(
        "To keep the claim, calibrate with public texts (--calibration-is-public), or with none."
    )
    return {"guarantee": "none", "is_voided": True, "lines": lines}


def read_record(folder: Path) -> dict[str, Any]:
    """Returns the content of a folder's `quantization.json`.

    Raises:
        LedgerError: If it is not a record of this version.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LedgerError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
        raise LedgerError(f"{path} is not a record of format {FORMAT_VERSION}.")
    return record


def recompute_privacy(folder: Path) -> dict[str, Any]:
    """Returns what a folder may claim, from its calibration record and the ledger beside it.

    Raises:
        LedgerError: If the ledger is missing, damaged or not the one recorded, or the calibration
            is of an unknown kind.
    """
    record = read_record(folder)
    head = record["source"]["ledger_head"]
    path = folder / SOURCE_LEDGER
    if (head is None) == path.exists():
        raise LedgerError(f"{path} is {'missing' if head else 'there, but no run is recorded'}.")
    ledger = None
    if head is not None:
        ledger = Ledger.open(path)
        if ledger.head != head:
            raise LedgerError(f"{path} is not the ledger that {RECORD} names.")
    try:
        calibration = CalibrationSource(**record["calibration"])
    except (TypeError, InvalidParameterError) as error:
        raise LedgerError(f"{folder / RECORD}: {error}") from None
    return describe_privacy(ledger, calibration)


def artefact_digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file but the record itself."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != RECORD:
            with path.open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def make_record(**parts: Mapping[str, Any] | Any) -> bytes:
    """Returns the bytes of `quantization.json`."""
    content = {"format_version": FORMAT_VERSION, **parts, "note": WHAT_THE_BOUND_SAYS}
    return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"
