"""The certificate: a claim in numbers and words, computed from the ledger alone.

Two lines, never one: which candidate subset was used (what a mutual-information bound protects) and
whether a record is in the pool at all (what it does not). A line without a theorem says "no formal
guarantee".
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sordino.accounting.inference_risk import (
    epsilon_from_posterior,
    posterior_from_mutual_information,
)
from sordino.core.errors import LedgerError
from sordino.ledger.ledger import canonical_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from sordino.ledger.ledger import Ledger

    _MakeSubsetLine = Callable[[dict[str, Any]], "SubsetLine"]
    _MakePoolLine = Callable[[dict[str, Any]], "PoolLine"]

FORMAT_VERSION = 2
NO_GUARANTEE = "no formal guarantee"
_SECRETS = {
    "ADD_OR_REMOVE_ONE": "whether a {} is in the pool at all",
    "REPLACE_ONE": "which of two {}s, one of which is in the pool, that is",
}
_POOL_SECRET = _SECRETS["ADD_OR_REMOVE_ONE"].format("record")
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
    neighboring_relation: str | None = None
    epsilon_upper: float | None = None
    delta: float | None = None
    privacy_unit: str | None = None
    max_records_per_unit: int | None = None
    epsilon_renyi: float | None = None  # a cross-check by another method, not a better bound
    epsilon_edgeworth: tuple[float, float] | None = None  # a third opinion, where asked for
    success_upper: float | None = None  # of the best guess at prior 1/2
    noise: str | None = None


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
    subset_line, pool_line = _LINES[opening["guarantee"]]
    budget = opening["mutual_information_budget_nats"]
    if budget is not None and ledger.mutual_information_spent > budget:
        raise LedgerError(f"{ledger.path}: the charges exceed the declared budget.")
    return Certificate(
        format_version=FORMAT_VERSION,
        sordino_version=opening["sordino_version"],
        guarantee=opening["guarantee"],
        subset=subset_line(opening),
        pool=pool_line(opening),
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
    if opening.get("guarantee") not in _LINES:
        raise LedgerError(f"{ledger.path}: unknown guarantee {opening.get('guarantee')!r}.")
    if (opening["guarantee"] == "dp") != isinstance(opening.get("dp"), dict):
        raise LedgerError(
            f"{ledger.path}: guarantee {opening['guarantee']!r}, but there is "
            f"{'no plan' if opening['guarantee'] == 'dp' else 'a plan'} of the noise."
        )
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


def _open_subset_line(_opening: dict[str, Any], guarantee: str = NO_GUARANTEE) -> SubsetLine:
    """Returns the line of a run without candidate subsets."""
    return SubsetLine(
        secret="which records were used",  # noqa: S106
        guarantee=guarantee,
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
    mechanism = opening["mechanism"]
    flip = mechanism.get("unanimity_flip", 0.0)
    if not (
        mechanism["name"] == "unanimity" and flip > 0 and mechanism["on_disagreement"] == "coin"
    ):
        return PoolLine(secret=_POOL_SECRET, guarantee=NO_GUARANTEE)
    num_releases = opening["num_steps"] * opening["directions_per_step"]
    epsilon = num_releases * -math.log(2.0 * flip) * _ROUND_UP
    return PoolLine(
        secret=_POOL_SECRET,
        guarantee="pure differential privacy, basic composition",
        neighboring_relation="REPLACE_SPECIAL",
        epsilon_upper=epsilon,
        delta=0.0,
    )


def _dp_pool_line(opening: dict[str, Any]) -> PoolLine:
    """Returns the line that differential privacy proves."""
    from sordino.accounting.dp import SampledGaussian, compute_epsilon, compute_tradeoff
    from sordino.accounting.nearly_normal import delta_with_distance

    dp = opening["dp"]
    event = SampledGaussian(
        noise_multiplier=dp["noise_multiplier"],
        sampling_probability=dp["sampling_probability"],
        num_steps=opening["num_steps"],
        neighboring_relation=dp["neighboring_relation"],
    )
    report = compute_epsilon(
        event, dp["delta_of_normal_noise"], with_edgeworth=dp["with_edgeworth"]
    )
    # discrete noise is not normal noise: each step may differ by so much, on either side
    distance = opening["mechanism"].get("distance_to_normal_upper", 0.0)
    delta = delta_with_distance(
        epsilon=report.epsilon_upper,
        delta_of_normal_noise=report.delta,
        num_steps=opening["num_steps"],
        distance=distance,
    )
    unit = dp["privacy_unit"]
    return PoolLine(
        secret=_SECRETS[event.neighboring_relation].format(unit),
        guarantee="approximate differential privacy, by privacy loss distributions",
        neighboring_relation=event.neighboring_relation,
        epsilon_upper=report.epsilon_upper,
        delta=max(dp["delta"], delta),
        privacy_unit=unit,
        max_records_per_unit=None if unit == "record" else dp["max_records_per_unit"],
        epsilon_renyi=report.epsilon_rdp,
        epsilon_edgeworth=report.epsilon_edgeworth,
        success_upper=min(
            1.0, compute_tradeoff(event).success(0.5) + opening["num_steps"] * distance
        ),
        noise=dp["noise"],
    )


def _assumptions(opening: dict[str, Any]) -> tuple[str, ...]:
    """Returns what the claim rests on, beyond the mechanism."""
    if opening["guarantee"] == "none":
        return ()
    if opening["guarantee"] == "dp":
        return (
            *_dp_assumptions(opening["dp"], opening["mechanism"].get("noise_source")),
            *_teacher_assumptions(opening.get("teacher")),
            *_canary_assumptions(opening),
        )
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
    return (*lines, *_canary_assumptions(opening))


def _dp_assumptions(dp: dict[str, Any], noise_source: str | None) -> tuple[str, ...]:
    """Returns what a claim of differential privacy rests on, beyond the mechanism."""
    arithmetic = (
        "the noise is drawn on whole numbers, so that rounding betrays nothing; contributions are "
        "rounded to them before they are added"
        if dp["noise"] == "discrete"
        else "exact arithmetic: attacks on the rounding of floating-point noise are not covered"
    )
    entropy = (
        "noise and sampling came from the operating system's entropy and stayed with the holder"
    )
    if noise_source is not None and "generator keyed by" in noise_source:
        entropy = (
            "sampling and the keys of the noise came from the operating system's entropy and "
            f"stayed with the holder; the noise itself came from a {noise_source}, which is not a "
            "cryptographic one"
        )
    return (
        "the holder ran this code as it is, once, on this pool",
        entropy,
        (
            "the base model, the number of units, the sampling probability and all settings are "
            "public and were not chosen by looking at the pool"
        ),
        arithmetic,
    )


def _teacher_assumptions(teacher: dict[str, Any] | None) -> tuple[str, ...]:
    """Returns what is assumed of a teacher: its probabilities are used and nothing is charged."""
    if teacher is None:
        return ()
    line = (
        f"the teacher model was not made from these records ({teacher['name']}, SHA-256 "
        f"{teacher['sha256']}): what it learned from them would pass to the student uncounted"
    )
    return (line,)


def _canary_assumptions(opening: dict[str, Any]) -> tuple[str, ...]:
    """Returns what the pool holds besides the holder's records, if canaries were planned."""
    canaries = opening.get("canaries")
    if canaries is None:
        return ()
    line = (
        f"{canaries['num_planned']} of the {opening['num_records']} in the pool are places for "
        "canaries, invented for an audit; which of them a coin left empty stayed with the holder"
    )
    return (line,)


def _dp_subset_line(opening: dict[str, Any]) -> SubsetLine:
    """Returns the subset's line of a run with differential privacy, which has no such secret."""
    return _open_subset_line(opening, "protected one by one, as secret 2 says")


_LINES: dict[str, tuple[_MakeSubsetLine, _MakePoolLine]] = {
    "pac": (_subset_line, _pool_line),
    "dp": (_dp_subset_line, _dp_pool_line),
    "none": (_open_subset_line, _pool_line),
}
