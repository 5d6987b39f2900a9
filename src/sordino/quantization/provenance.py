"""`quantization.json`: what was quantized, with which texts, and what that leaves of a claim.

Quantizing with public texts, or with none, is post-processing: a run's guarantee stays as it is.
Private texts whose Gram matrices were used as they are void it, whatever training guaranteed: the
codes depend on those texts, and no noise was added. Private texts whose Gram matrices were clipped
and noised ("dp") leave it as it is, and get a line of their own. All lines are recomputed by
`sordino verify` from the ledgers of the run and of the calibration, which lie beside them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sordino.accounting._privacy_curve import round_up
from sordino.accounting.composition import compose_epsilon
from sordino.accounting.dp import SampledGaussian
from sordino.core.checks import require_in_range, require_positive
from sordino.core.errors import InvalidParameterError, LedgerError
from sordino.ledger.artefacts import digest_file
from sordino.ledger.certificate import NO_GUARANTEE, compute_certificate
from sordino.ledger.certificate_words import describe_certificate
from sordino.ledger.ledger import Ledger
from sordino.ledger.releases import ReleaseLedger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sordino.ledger.certificate import Certificate

__all__ = [
    "CALIBRATION_LEDGER",
    "PRIVACY_UNIT",
    "RECORD",
    "SOURCE_LEDGER",
    "CalibrationSource",
    "GramRelease",
    "artefact_digests",
    "describe_privacy",
    "make_record",
    "read_calibration_source",
    "read_record",
    "recompute_privacy",
    "require_claim",
]

RECORD = "quantization.json"
SOURCE_LEDGER = "source_ledger.jsonl"
CALIBRATION_LEDGER = "calibration_ledger.jsonl"
PRIVACY_UNIT = "calibration text"
FORMAT_VERSION = 1
KINDS = ("none", "public", "private", "dp")
WHAT_THE_BOUND_SAYS = (
    "Losses and bounds speak of each layer's output error over the calibration texts. They do not "
    "bound perplexity, nor the error on other texts."
)
_NOTHING_CLAIMED = (
    "Nothing is claimed: this is not a Sordino run, so nothing is known of how it was trained."
)
_NOT_NOISED = (
    "the codes depend on private calibration texts, whose Gram matrices were used without noise"
)
_HOW_TO_NOISE = (
    "To keep the claim, calibrate with public texts (--calibration-is-public), with none, or "
    "through clipped, noised Gram matrices (--calibration-clip and its companions)."
)
_LOOKED = "the bits of each layer were chosen by attacks on the members themselves, without noise"
_HOW_NOT_TO_LOOK = "To keep the claim, choose bits without --protect, by --budget-bytes."


@dataclass(frozen=True, kw_only=True, slots=True)
class GramRelease:
    """How the Gram matrices of private texts were released; all public.

    Args:
        epsilon: What the user allowed for all of them together, in nats; positive.
        delta: In (0, 1).
        clip_norm: Largest Frobenius norm of one text's Gram matrix.
        noise_multiplier: Noise standard deviation / clip norm of each matrix.
        num_grams: Matrices that one text contributes to.

    Raises:
        InvalidParameterError: If a value is out of range, or the noise is too small for epsilon.
    """

    epsilon: float
    delta: float
    clip_norm: float
    noise_multiplier: float
    num_grams: int

    def __post_init__(self) -> None:
        require_positive("clip_norm", self.clip_norm)
        if not self.epsilon_upper <= self.epsilon:
            raise InvalidParameterError(
                f"Gram matrices with this noise spend epsilon {self.epsilon_upper:g}, and "
                f"{self.epsilon:g} was allowed."
            )

    @property
    def event(self) -> SampledGaussian:
        """All matrices together, as one event."""
        return SampledGaussian(
            noise_multiplier=self.noise_multiplier,
            sampling_probability=1.0,
            num_steps=self.num_grams,
            neighboring_relation="ADD_OR_REMOVE_ONE",
        )

    @property
    def epsilon_upper(self) -> float:
        """What they spend, in nats, computed from the noise."""
        require_in_range("delta", self.delta, 1e-300, 0.5)
        return compose_epsilon([self.event], self.delta)

    def open_ledger(self, path: Path) -> ReleaseLedger:
        """Returns the ledger with this budget."""
        return ReleaseLedger.open(
            path,
            target_epsilon=self.epsilon,
            delta=self.delta,
            neighboring_relation=self.event.neighboring_relation,
            privacy_unit=PRIVACY_UNIT,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSource:
    """Where calibration texts came from.

    Args:
        kind: "none", "public" (the user declared it), "private" (used as they are), or "dp"
            (private, seen through noisy Gram matrices).
        sha256: Of a public file. The hash of a private one would let a guess be confirmed.
        num_sequences: Texts used; None where nothing may depend on it.
        num_tokens: Tokens used; None where nothing may depend on it.
        release: Of the kind "dp".

    Raises:
        InvalidParameterError: If the kind is unknown: what it does to a claim is not known either.
    """

    kind: str
    sha256: str | None = None
    num_sequences: int | None = field(default=0)
    num_tokens: int | None = field(default=0)
    release: GramRelease | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidParameterError(
                f"calibration must be one of {', '.join(KINDS)}; got {self.kind!r}."
            )
        if (self.kind == "public") != (self.sha256 is not None):
            raise InvalidParameterError(
                f"calibration {self.kind} must {'' if self.kind == 'public' else 'not '}name the "
                "SHA-256 of a file."
            )
        is_dp = self.kind == "dp"
        counts = {self.num_sequences, self.num_tokens}
        if is_dp != (self.release is not None) or is_dp != (counts == {None}):
            raise InvalidParameterError(
                "calibration dp, and no other kind, must state its noise and no counts."
            )


def read_calibration_source(content: Mapping[str, Any]) -> CalibrationSource:
    """Returns the calibration of a record.

    Raises:
        LedgerError: If it is not known.
    """
    try:
        release = content.get("release")
        found = dict(content) | {"release": None if release is None else GramRelease(**release)}
        return CalibrationSource(**found)
    except (AttributeError, TypeError, InvalidParameterError) as error:
        raise LedgerError(f"{RECORD}: calibration: {error}") from None


def describe_privacy(
    ledger: Ledger | None, calibration: CalibrationSource, *, looked_at_members: bool = False
) -> dict[str, Any]:
    """Returns what may be claimed of the quantized model, for `quantization.json`.

    Guarantee:
        `guarantee` is the run's own, about its training records, only if the calibration texts
        are public, there are none, or only noisy Gram matrices of them were used, and if bits were
        not chosen by looking at the training records; everything else is refused or voids it.

    Args:
        ledger: Of the run that was quantized; None for other models.
        calibration: Where calibration texts came from.
        looked_at_members: Whether bits were chosen by measuring on the training records.

    Returns:
        `guarantee` (the run's, or "none"), `is_voided`, and `lines` in words.

    Raises:
        LedgerError: If the ledger is not that of a finished run.
    """
    if looked_at_members:
        return _describe_voided(ledger, "The members", _LOOKED, _HOW_NOT_TO_LOOK)
    if calibration.kind == "private":
        return _describe_voided(ledger, "The calibration texts", _NOT_NOISED, _HOW_TO_NOISE)
    lines, guarantee, certificate = [_NOTHING_CLAIMED], "none", None
    if ledger is not None:
        certificate = compute_certificate(ledger)
        lines, guarantee = describe_certificate(certificate), certificate.guarantee
    if calibration.release is not None:
        lines += _describe_release(calibration.release, certificate)
    elif ledger is not None:
        reason = (
            "with texts declared public, by no private data"
            if calibration.kind == "public"
            else "without calibration texts"
        )
        lines.append(f"Quantized {reason}: post-processing, which costs no privacy.")
    return {"guarantee": guarantee, "is_voided": False, "lines": lines}


def _describe_release(release: GramRelease, certificate: Certificate | None) -> list[str]:
    """Returns what the records of a private calibration file get, and what those of both get."""
    epsilon, delta = release.epsilon_upper, release.delta
    lines = [
        (
            f"The calibration texts, whether a {PRIVACY_UNIT} is in the file at all: "
            f"({epsilon!r}, {delta!r})-differential privacy under ADD_OR_REMOVE_ONE, one record of "
            f"the file being one unit. {release.num_grams} Gram matrices were released, each "
            f"clipped to {release.clip_norm:g} a text, with Gaussian noise of "
            f"{release.noise_multiplier:.4g} times that; codes are made from these alone."
        ),
        (
            "Assumes of the calibration: noise from the operating system's entropy; exact "
            "arithmetic; settings chosen without looking at the texts; a text's activations do "
            "not depend, through rounding, on which others share its batch; these matrices were "
            "released once (an unfinished folder that was thrown away counts as well)."
        ),
    ]
    if certificate is None:
        return lines
    pool = certificate.pool
    if pool.epsilon_upper is None or pool.delta is None:
        together = "no epsilon can be stated, for the run states none."
    elif pool.neighboring_relation != release.event.neighboring_relation:
        together = (
            f"no epsilon is stated, for the run's is under {pool.neighboring_relation}, another "
            "neighboring relation."
        )
    elif pool.privacy_unit not in {None, "record"}:
        together = (
            f"no epsilon is stated, for the run protects a {pool.privacy_unit}, who may own "
            "several texts."
        )
    else:
        both = round_up(epsilon + pool.epsilon_upper), round_up(delta + pool.delta)
        together = f"({both[0]!r}, {both[1]!r})-differential privacy, by basic composition."
    lines.append(
        "The run's lines hold for records that are not among the calibration texts. For a record "
        f"that is both one training record and one calibration text: {together}"
    )
    return lines


def _describe_voided(ledger: Ledger | None, whose: str, reason: str, remedy: str) -> dict[str, Any]:
    """Returns what is left of a claim after private records were used without noise."""
    void = f"{NO_GUARANTEE}. Void: {reason}."
    lines = [f"{whose}: {void}"]
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
    lines.append(remedy)
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
    calibration = read_calibration_source(record["calibration"])
    _require_charged(folder / CALIBRATION_LEDGER, calibration.release)
    looked = record.get("looked_at_members", False)
    if not isinstance(looked, bool):
        raise LedgerError(f"{RECORD}: looked_at_members must be true or false, got {looked!r}.")
    return describe_privacy(ledger, calibration, looked_at_members=looked)


def require_claim(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a folder may claim.

    Args:
        folder: Of `sordino quantize`.
        record: Its record, from `read_record`.

    Raises:
        LedgerError: As `recompute_privacy`, and if the record claims anything else.
    """
    privacy = recompute_privacy(folder)
    if record.get("privacy") != privacy:
        raise LedgerError(f"{folder / RECORD} claims what its ledgers do not give.")
    return privacy


def _require_charged(path: Path, release: GramRelease | None) -> None:
    """Raises unless the ledger holds exactly this release of Gram matrices, or neither is there."""
    if (release is None) == path.exists():
        what = "missing" if release else "there, but no private calibration is recorded"
        raise LedgerError(f"{path} is {what}.")
    if release is None:
        return
    charged = release.open_ledger(path).events
    if charged != (release.event,):
        raise LedgerError(f"{path} does not hold the release that {RECORD} names.")


def artefact_digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file but the record itself."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != RECORD:
            digests[name] = digest_file(path)
    return digests


def make_record(**parts: Mapping[str, Any] | Any) -> bytes:
    """Returns the bytes of `quantization.json`."""
    content = {"format_version": FORMAT_VERSION, **parts, "note": WHAT_THE_BOUND_SAYS}
    return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"
