"""The certificate: a claim in numbers and words, computed from the ledger alone.

Two lines, never one: which candidate subset was used (what a mutual-information bound protects) and
whether a record is in the pool at all (what it does not). A line without a theorem says "no formal
guarantee".
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, Decimal, localcontext
from typing import TYPE_CHECKING, Any

from sordino.accounting.inference_risk import (
    epsilon_from_posterior,
    posterior_from_mutual_information,
)
from sordino.core.errors import LedgerError
from sordino.ledger.ledger import canonical_json

if TYPE_CHECKING:
    from sordino.ledger.ledger import Ledger

FORMAT_VERSION = 1
NO_GUARANTEE = "no formal guarantee"
_VACUOUS_EPSILON = 20.0  # e**20 : 1; said to be vacuous in words, the number stays
_ROUND_UP = 1.0 + 1e-12  # a product of floats, three roundings at most


@dataclass(frozen=True, kw_only=True, slots=True)
class SubsetLine:
    """What is proved about the secret "which candidate subset was used"."""

    secret: str
    guarantee: str
    mutual_information_nats_upper: float | None
    prior: float | None
    posterior_upper: float | None
    matched_epsilon: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolLine:
    """What is proved about "is this record in the pool at all"."""

    secret: str
    guarantee: str
    neighboring_relation: str | None
    epsilon_upper: float | None
    delta: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """A claim about one finished run; equal ledgers give equal certificates, byte for byte."""

    format_version: int
    sordino_version: str
    guarantee: str
    subset: SubsetLine
    pool: PoolLine
    mechanism: dict[str, Any]
    num_steps: int
    num_releases: int
    num_records: int
    mutual_information_charged_nats: float
    assumptions: tuple[str, ...]
    selection: str
    base_model_sha256: str
    transcript_sha256: str
    artefacts_sha256: dict[str, str]
    ledger_entries: int
    ledger_head: str

    def to_bytes(self) -> bytes:
        """Returns the one encoding that `sordino verify` compares, byte for byte."""
        return canonical_json(asdict(self)) + b"\n"


def compute_certificate(ledger: Ledger) -> Certificate:
    """Returns the certificate of a finished run, from its ledger and nothing else.

    Guarantee:
        For `guarantee="pac"`, the mutual information between the secret subset and everything
        released is at most `subset.mutual_information_nats_upper` (the declared budget, not the sum
        of the charges on the path taken: that sum depends on what was released, and only its
        expectation is the mutual information).
        Assumes: honest caller; exact arithmetic in the subset sums (they are integers).

    Args:
        ledger: A complete ledger: one opening event, every release, one closing event.

    Raises:
        LedgerError: If an event is unknown, missing, out of order or over budget.

    Source:
        arXiv:2605.06505v2 (PACZero), composition theorem.
    """
    opening, closing, releases = _split(ledger)
    is_private = opening["guarantee"] == "pac"
    if ledger.mutual_information_spent > opening["mutual_information_budget_nats"]:
        raise LedgerError(f"{ledger.path}: the charges exceed the declared budget.")
    return Certificate(
        format_version=FORMAT_VERSION,
        sordino_version=opening["sordino_version"],
        guarantee=opening["guarantee"],
        subset=_subset_line(opening) if is_private else _open_subset_line(),
        pool=_pool_line(opening),
        mechanism=opening["mechanism"],
        num_steps=len(releases),
        num_releases=sum(event["num_releases"] for event in releases),
        num_records=opening["num_records"],
        mutual_information_charged_nats=float(ledger.mutual_information_spent),
        assumptions=_assumptions(opening),
        selection=closing["selection"],
        base_model_sha256=opening["base_model_sha256"],
        transcript_sha256=closing["transcript_sha256"],
        artefacts_sha256=closing["artefacts_sha256"],
        ledger_entries=len(ledger.events),
        ledger_head=ledger.head,
    )


def describe_certificate(certificate: Certificate) -> list[str]:
    """Returns the certificate in words, one line each, for people."""
    subset, pool = certificate.subset, certificate.pool
    lines = [f"Secret 1, {subset.secret}: {_subset_words(subset)}"]
    lines.append(f"Secret 2, {pool.secret}: {_pool_words(pool)}")
    if certificate.guarantee == "pac":
        lines.append(
            "The first line is about which half of a known pool was used. It is not protection of "
            "membership in the pool; only the second line and a measured audit speak about that."
        )
    lines.append(
        f"{certificate.num_releases} symbols were released in {certificate.num_steps} steps "
        f"from a pool of {certificate.num_records} records. {certificate.selection}"
    )
    lines.extend(f"Assumes: {assumption}" for assumption in certificate.assumptions)
    return lines


def _split(ledger: Ledger) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Returns the opening event, the closing event and the releases, or raises."""
    kinds = [event.get("kind") for event in ledger.events]
    steps = [event.get("step") for event in ledger.of_kind("release")]
    expected = ["open", *["release"] * len(steps), "close"]
    if kinds != expected or steps != list(range(len(steps))):
        raise LedgerError(
            f"{ledger.path}: a finished run has one opening, every release in order, and one "
            "closing event. This one is unfinished (finish it with --resume) or was changed."
        )
    opening, closing = ledger.events[0], ledger.events[-1]
    if opening.get("guarantee") not in ("pac", "none"):
        raise LedgerError(f"{ledger.path}: unknown guarantee {opening.get('guarantee')!r}.")
    if len(steps) != opening["num_steps"]:
        raise LedgerError(
            f"{ledger.path}: {opening['num_steps']} steps declared, {len(steps)} found."
        )
    return opening, closing, ledger.events[1:-1]


def _subset_line(opening: dict[str, Any]) -> SubsetLine:
    """Returns the line that the mutual-information bound proves."""
    budget, prior = opening["mutual_information_budget_nats"], opening["mechanism"]["prior"]
    posterior = posterior_from_mutual_information(budget, prior)
    matched = epsilon_from_posterior(posterior, prior) if posterior < 1.0 else None
    return SubsetLine(
        secret=f"which of {opening['mechanism']['num_subsets']} candidate subsets of the pool "
        "was used",
        guarantee="PAC: mutual information",
        mutual_information_nats_upper=budget,
        prior=prior,
        posterior_upper=posterior,
        matched_epsilon=matched,
    )


def _open_subset_line() -> SubsetLine:
    """Returns the line of a run without a mechanism."""
    return SubsetLine(
        secret="which records were used",  # noqa: S106
        guarantee=NO_GUARANTEE,
        mutual_information_nats_upper=None,
        prior=None,
        posterior_upper=None,
        matched_epsilon=None,
    )


def _pool_line(opening: dict[str, Any]) -> PoolLine:
    """Returns the line about membership in the pool; finite only under noisy unanimity.

    A release flips a unanimous sign with probability eta, and tosses a coin otherwise. Emptying one
    record's place leaves the subsets without it as they were, so it can turn unanimity into
    disagreement or back but never into the opposite unanimity: the likelihood ratio of a bit is at
    most 1 / (2 eta). Proof: docs/proofs/noisy_unanimity.md. Taking a record out of the list is
    another relation: it renumbers the records behind it, and with that their subsets.
    """
    secret = "whether a record is in the pool at all"  # noqa: S105
    mechanism = opening["mechanism"]
    flip = mechanism.get("unanimity_flip", 0.0)
    if not (
        mechanism["name"] == "unanimity" and flip > 0 and mechanism["on_disagreement"] == "coin"
    ):
        return PoolLine(
            secret=secret,
            guarantee=NO_GUARANTEE,
            neighboring_relation=None,
            epsilon_upper=None,
            delta=None,
        )
    num_releases = opening["num_steps"] * opening["directions_per_step"]
    epsilon = num_releases * -math.log(2.0 * flip) * _ROUND_UP
    return PoolLine(
        secret=secret,
        guarantee="pure differential privacy, basic composition",
        neighboring_relation="REPLACE_SPECIAL",
        epsilon_upper=epsilon,
        delta=0.0,
    )


def _assumptions(opening: dict[str, Any]) -> tuple[str, ...]:
    """Returns what the claim rests on, beyond the mechanism."""
    if opening["guarantee"] != "pac":
        return ()
    lines = [
        "the holder ran this code as it is, once, on this pool",
        (
            "coins, noise and the secret subset came from the operating system's entropy and "
            "stayed with the holder"
        ),
        "the base model, the pool's size, the candidate subsets and all settings are public",
    ]
    if opening["mechanism"].get("unanimity_flip", 0.0) > 0:
        lines.append(
            "for secret 2: a record's contribution does not depend, through rounding, on which "
            "other records share its batch"
        )
    return tuple(lines)


def _subset_words(line: SubsetLine) -> str:
    """Returns the subset line's claim in words."""
    if line.mutual_information_nats_upper is None:
        return NO_GUARANTEE + "."
    words = (
        f"at most {_shown(line.mutual_information_nats_upper, 6)} nats leave the building. A guess "
        "whether a given record was in it is right with probability at most "
        f"{_shown(line.posterior_upper, 4)} (without the release: {line.prior:.3g}), on average "
        "over the secret"
    )
    if line.matched_epsilon is None:
        return words + ". This bound is vacuous."
    return words + f" (the posterior of epsilon {line.matched_epsilon:.3g} in the worst case)."


def _pool_words(line: PoolLine) -> str:
    """Returns the pool line's claim in words."""
    if line.epsilon_upper is None:
        return NO_GUARANTEE + "."
    words = (
        f"epsilon at most {_shown(line.epsilon_upper, 4)} nats, delta 0, for one record against "
        "an empty place (the pool's size stays), worst case, basic composition"
    )
    return words + (" (vacuous in practice)." if line.epsilon_upper > _VACUOUS_EPSILON else ".")


def _shown(bound: float | None, digits: int) -> str:
    """Returns a bound to so many significant digits, never below it."""
    if bound is None:
        return NO_GUARANTEE
    with localcontext(prec=digits, rounding=ROUND_CEILING):
        return f"{float(+Decimal(repr(float(bound)))):.{digits}g}"
