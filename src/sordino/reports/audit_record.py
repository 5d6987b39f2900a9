"""An audit as a record: what was claimed, what was measured, and the verdicts.

Every figure and table of the report is drawn from this record, so it can be drawn again later.
Nothing in it is about a single record of the pool, except what the data holder asked to be listed
(`Audit.findings`), but its numbers are computed on the pool: they are measurements for the holder,
and handing them out is a release that no certificate covers. Numbers on canaries say nothing about
anybody.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sordino.core.errors import InvalidDataError
from sordino.ledger.ledger import canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT_VERSION = 1
CONTRADICTED = "contradicted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A true-positive rate at a limit on the false-positive rate."""

    fpr_limit: float
    threshold: float | None  # called a member: score >= threshold; None where nobody is called
    fpr: float  # realised, at most the limit
    tpr: float
    tpr_lower: float
    tpr_upper: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackResult:
    """How well one score tells members from others; intervals at `Membership.significance`."""

    name: str
    auc: float
    auc_lower: float
    auc_upper: float
    points: tuple[Point, ...]  # at false-positive rates of 1% and 0.1%
    curve: dict[str, list[float]]  # fields of `LogLogPoints`


@dataclass(frozen=True, kw_only=True, slots=True)
class UserMembership:
    """The membership attacks on users, whose score is the mean over their texts.

    Args:
        unit: The column that says whose text it is.
        num_members: Users among the members.
        num_nonmembers: Users among the others.
        num_removed: Users on both sides, who count as members.
        significance: Of the intervals.
        attacks: What each score tells.
        control: The same on the positive control.
    """

    unit: str
    num_members: int
    num_nonmembers: int
    num_removed: int
    significance: float
    attacks: tuple[AttackResult, ...]
    control: tuple[AttackResult, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """The membership attacks on records, and the same attacks on the positive control."""

    num_members: int
    num_nonmembers: int
    num_removed: int  # records left out because both sides hold them, or one side twice
    significance: float
    attacks: tuple[AttackResult, ...]
    control: tuple[AttackResult, ...] = ()
    users: UserMembership | None = None  # where the files say whose records they are


@dataclass(frozen=True, kw_only=True, slots=True)
class CanaryResult:
    """What guesses about canaries prove, and how exposed those in the pool are.

    Args:
        style: How they were made.
        num_canaries: Planned; each entered the pool by its own fair coin.
        num_included: Of these, those that did.
        num_guesses: Fixed before looking.
        num_correct: Right guesses.
        delta: Of the bound.
        significance: Of the bounds.
        epsilon_lower: Nats, of a DP guarantee of any shape.
        gaussian_epsilon_lower: Nats, contradicts Gaussian-shaped claims only.
        exposures: Bits, of the included canaries against those left out; rising.
        extrapolated_exposures: The same beyond the ranks, an estimate; empty if not fitted.
        attack: Fields of the membership attack on canaries.
        control_epsilon_lower: The same bound on the positive control; None without one.
    """

    style: str
    num_canaries: int
    num_included: int
    num_guesses: int
    num_correct: int
    delta: float
    significance: float
    epsilon_lower: float
    gaussian_epsilon_lower: float
    exposures: tuple[float, ...]
    extrapolated_exposures: tuple[float, ...]
    attack: AttackResult
    control_epsilon_lower: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SubsetResult:
    """The subset game: which candidate subset was used, by an attacker who knows the pool.

    Args:
        num_subsets: Candidates.
        rank: Of the true one in the attacker's order, from 1; ties count against the attacker.
        share_right: Of the records, those guessed right by the attacker's first candidate.
        attack: Score that ordered the candidates.
        posterior_lower: Lower bound on the success of a guess that the rank proves.
        significance: Of that bound.
        is_drawn_after: Whether the subset was drawn after the run (it was never read by it).
        control_posterior_lower: The same on the positive control; None without one.
    """

    num_subsets: int
    rank: int
    share_right: float
    attack: str
    posterior_lower: float
    significance: float
    is_drawn_after: bool
    control_posterior_lower: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class GameVerdict:
    """The verdict on one line of the certificate.

    Args:
        game: "subset" or "pool".
        secret: What the line protects, in the certificate's words.
        outcome: "consistent", "contradicted", "no power" or "nothing claimed".
        line: The verdict in one sentence.
        quantity: What is claimed: "epsilon" or "posterior"; None where nothing is.
        claimed: The stated upper bound; None for no formal guarantee.
        measured_lower: The strongest measurement; None where none could be made.
        control_lower: The strongest measurement on the positive control.
        significance: A true claim is called contradicted with at most this probability.
    """

    game: str
    secret: str
    outcome: str
    line: str
    quantity: str | None = None
    claimed: float | None = None
    measured_lower: float | None = None
    control_lower: float | None = None
    significance: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PiiRow:
    """What the models give away about one type of sensitive string.

    Precision and recall count unique strings; `base_` is the same attack on the base model.
    """

    kind: str  # "email", "phone", ...
    game: str  # "extraction", "extraction with prefix", "inference" or "reconstruction"
    num_secrets: int
    num_found: int
    num_produced: int  # unique strings of that type that were produced, or guesses made
    base_found: int | None
    by_repetition: dict[str, list[int]] = field(default_factory=dict)  # times -> [found, secrets]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One text that the tuned model prefers over its base, for the data holder."""

    text: str
    gain_nats: float  # log p_tuned - log p_base, a token


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """A finished audit."""

    format_version: int = FORMAT_VERSION
    sordino_version: str
    made_on: str  # ISO date, UTC
    subject: dict[str, Any]  # name, kind, sha256, base_sha256
    certificate_in_words: tuple[str, ...]  # empty for models made elsewhere
    verdicts: tuple[GameVerdict, ...]
    membership: Membership | None = None
    canaries: CanaryResult | None = None
    subset: SubsetResult | None = None
    pii: tuple[PiiRow, ...] = ()
    findings: tuple[Finding, ...] = ()
    control: dict[str, Any] | None = None  # how the positive control was made; None: none ran
    cost: dict[str, float] = field(default_factory=dict)  # seconds, tokens
    settings: dict[str, Any] = field(default_factory=dict)  # what was asked for, seeds included
    notes: tuple[str, ...] = ()  # what must be read with the numbers

    @property
    def is_contradicted(self) -> bool:
        """Whether a measurement contradicts a claim."""
        return any(verdict.outcome == CONTRADICTED for verdict in self.verdicts)

    def to_bytes(self) -> bytes:
        """Returns the record as JSON."""
        return canonical_json(asdict(self)) + b"\n"


def read_audit(path: Path) -> Audit:
    """Returns a stored audit.

    Raises:
        InvalidDataError: If the file is not an audit of this format.
    """
    try:
        stored = json.loads(path.read_bytes())
        if stored["format_version"] != FORMAT_VERSION:
            raise InvalidDataError(
                f"{path}: an audit of format {stored['format_version']}; this version reads "
                f"{FORMAT_VERSION}. Run the audit again."
            )
        return _from_json(stored)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidDataError(
            f"{path}: not the record of an audit ({error}). Run `sordino audit` again."
        ) from None


def find_contradicting(folder: Path, sha256: str | None) -> list[tuple[Path, Audit]]:
    """Returns the earlier audits in a folder that contradicted a claim of the same files.

    Raises:
        InvalidDataError: If one of them cannot be read.
    """
    earlier = [(path, read_audit(path)) for path in sorted(folder.glob("audit.*.json"))]
    return [
        (path, audit)
        for path, audit in earlier
        if audit.is_contradicted and audit.subject.get("sha256") == sha256
    ]


def _from_json(stored: Mapping[str, Any]) -> Audit:
    """Returns the record that JSON was made from."""
    values = dict(stored)
    values["certificate_in_words"] = tuple(values["certificate_in_words"])
    values["notes"] = tuple(values["notes"])
    for name, kind in (("verdicts", GameVerdict), ("pii", PiiRow), ("findings", Finding)):
        values[name] = tuple(kind(**entry) for entry in values[name])
    if values["membership"] is not None:
        membership = _with_attacks(values["membership"])
        if membership.get("users") is not None:
            membership["users"] = UserMembership(**_with_attacks(membership["users"]))
        values["membership"] = Membership(**membership)
    if values["canaries"] is not None:
        canaries = dict(values["canaries"])
        for name in ("exposures", "extrapolated_exposures"):
            canaries[name] = tuple(canaries[name])
        values["canaries"] = CanaryResult(**canaries | {"attack": _attack(canaries["attack"])})
    if values["subset"] is not None:
        values["subset"] = SubsetResult(**values["subset"])
    return Audit(**values)


def _with_attacks(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a membership result, its attacks as what they were made from."""
    return dict(stored) | {n: tuple(map(_attack, stored[n])) for n in ("attacks", "control")}


def _attack(stored: Mapping[str, Any]) -> AttackResult:
    """Returns one attack's result."""
    points = tuple(Point(**point) for point in stored["points"])
    return AttackResult(**dict(stored) | {"points": points})
