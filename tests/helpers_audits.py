"""Audits made from invented scores: numbers that no model gave, as large as real ones."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from sordino.access.benchmark import Grading
from sordino.access.results import GradedAnswer
from sordino.auditing.areas import auc_interval
from sordino.auditing.curves import log_log_points, operating_point
from sordino.auditing.exposure import exposure
from sordino.reports.access_record import INDEPENDENCE, NO_CONTROL, SCOPE, AccessRecord
from sordino.reports.audit_page import PageSource
from sordino.reports.audit_record import (
    AttackResult,
    Audit,
    CanaryResult,
    Finding,
    GameVerdict,
    Membership,
    PiiRow,
    Point,
    SubsetResult,
)
from sordino.reports.holder_report import HolderReport

if TYPE_CHECKING:
    from pathlib import Path

SUBSET_SECRET = "which of 128 candidate subsets of the pool was used"  # noqa: S105
POOL_SECRET = "whether a record is in the pool at all"  # noqa: S105
CERTIFICATE = (
    (
        f"Secret 1, {SUBSET_SECRET}: at most 0.0161384 nats leave the building. A guess whether a "
        "given record was in it is right with probability at most 0.5896 (without the release: "
        "0.5), on average over the secret (the posterior of epsilon 0.362 in the worst case)."
    ),
    (
        f"Secret 2, {POOL_SECRET}: epsilon at most 2 nats at delta 1e-05 (Renyi accounting: "
        "2.341), for one record added or removed, worst case. A guess whether it is in the pool is "
        "right with probability at most 0.8808 (without the release: 0.5)."
    ),
    (
        "3200 symbols were released in 100 steps from a pool of 1000 records. The last step's "
        "weights are published."
    ),
    "Assumes: the holder ran this code as it is, once, on this pool",
    (
        "Assumes: noise and sampling came from the operating system's entropy and stayed with the "
        "holder"
    ),
)
STRENGTHS = {
    "loss": 0.21,
    "zlib": 0.18,
    "min-k": 0.24,
    "min-k++": 0.29,
    "reference difference": 0.47,
    "reference ratio": 0.44,
    "EZ": 0.38,
    "WBC": 0.41,
}


@cache
def make_attack(name: str, strength: float, size: int = 1000, seed: int = 0) -> AttackResult:
    """Returns an attack whose scores of members are shifted by `strength` standard deviations."""
    generator = np.random.default_rng([seed, *name.encode()])
    members, nonmembers = generator.normal(strength, 1.0, size), generator.normal(0.0, 1.0, size)
    area = auc_interval(members, nonmembers)
    curve = log_log_points(members, nonmembers)
    points = []
    for limit in (0.01, 0.001):
        point = operating_point(members, nonmembers, limit)
        points.append(
            Point(
                fpr_limit=limit,
                threshold=point.threshold if np.isfinite(point.threshold) else None,
                fpr=point.fpr,
                tpr=point.tpr,
                tpr_lower=point.tpr_lower,
                tpr_upper=point.tpr_upper,
            )
        )
    return AttackResult(
        name=name,
        auc=area.auc,
        auc_lower=area.lower,
        auc_upper=area.upper,
        points=tuple(points),
        curve={
            "false_positive_rates": curve.false_positive_rates.tolist(),
            "true_positive_rates": curve.true_positive_rates.tolist(),
            "tpr_lower": curve.tpr_lower.tolist(),
            "tpr_upper": curve.tpr_upper.tolist(),
        },
    )


def make_verdict(game: str = "pool", outcome: str = "consistent", **changes: Any) -> GameVerdict:
    """Returns a verdict with numbers that fit its outcome."""
    is_pool = game == "pool"
    quantity = "epsilon" if is_pool else "posterior"
    claimed = 2.0 if is_pool else 0.5896
    measured = {"contradicted": 3.127} if is_pool else {"contradicted": 0.8114}
    lower = measured.get(outcome, 0.4189 if is_pool else 0.0089)
    control = {"no power": 1.52} if is_pool else {"no power": 0.31}
    control_lower = control.get(outcome, 4.211 if is_pool else 0.93)
    proved = f"proves {quantity} >= {lower:.3g} at 95% confidence"
    lines = {
        "contradicted": f"Contradicted: claimed {quantity} <= {claimed:g}, but one run {proved}.",
        "no power": f"No power to test {quantity} <= {claimed:g}: on the positive control the best "
        f"attack proves only {control_lower:g}.",
        "consistent": f"Consistent with {quantity} <= {claimed:g}: one run {proved}; the positive "
        "control was caught.",
        "nothing claimed": f"Nothing claimed: one run {proved}.",
    }
    verdict = GameVerdict(
        game=game,
        secret=POOL_SECRET if is_pool else SUBSET_SECRET,
        outcome=outcome,
        line=lines[outcome],
        quantity=quantity,
        claimed=None if outcome == "nothing claimed" else claimed,
        measured_lower=lower,
        control_lower=control_lower,
        significance=0.05,
    )
    return replace(verdict, **changes)


def make_canaries(**changes: Any) -> CanaryResult:
    """Returns 512 canaries of which some are clearly exposed."""
    generator = np.random.default_rng(5)
    included, left_out = generator.normal(0.9, 1.3, 247), generator.normal(0.0, 1.0, 265)
    exposures = tuple(sorted(exposure(included, left_out).tolist()))
    canaries = CanaryResult(
        style="random-tokens",
        num_canaries=512,
        num_included=247,
        num_guesses=64,
        num_correct=45,
        delta=1e-5,
        significance=0.05,
        epsilon_lower=0.4189,
        gaussian_epsilon_lower=0.7723,
        exposures=exposures,
        extrapolated_exposures=tuple(1.1 * each for each in exposures),
        attack=make_attack("reference difference on canaries", 0.9, size=256),
        control_epsilon_lower=4.2117,
    )
    return replace(canaries, **changes)


def make_audit(
    pool_outcome: str = "consistent", subset_outcome: str = "consistent", **changes: Any
) -> Audit:
    """Returns a whole audit with these outcomes."""
    attacks = tuple(make_attack(name, strength) for name, strength in STRENGTHS.items())
    control = tuple(
        make_attack(name, 6.0 * strength, seed=1) for name, strength in STRENGTHS.items()
    )
    audit = Audit(
        sordino_version="0.1.0",
        made_on="2026-03-14",
        subject={
            "name": "clinic-notes",
            "kind": "run",
            "sha256": "ab" * 32,
            "base_sha256": "cd" * 32,
        },
        certificate_in_words=CERTIFICATE,
        verdicts=(
            make_verdict("subset", subset_outcome),
            make_verdict("pool", pool_outcome),
        ),
        membership=Membership(
            num_members=1000,
            num_nonmembers=1000,
            num_removed=37,
            significance=0.05,
            attacks=attacks,
            control=control,
        ),
        canaries=make_canaries(),
        subset=SubsetResult(
            num_subsets=128,
            rank=61,
            share_right=0.5037,
            attack="sum of reference differences",
            posterior_lower=0.0089,
            significance=0.05,
            is_drawn_after=True,
            control_posterior_lower=0.93,
        ),
        pii=make_pii(),
        findings=(
            Finding(text="Patient reports no pain after the second visit.", gain_nats=1.81),
            Finding(text="Call Ms. Invented at 555-0142 before\nnoon.", gain_nats=2.94),
            Finding(text="Referred to the clinic on Imaginary Road.", gain_nats=0.77),
        ),
        control={"made by": "20 epochs without privacy", "canary_repetitions": 10, "seed": 3},
        cost={"seconds": 412.5, "tokens_scored": 1_830_222.0},
        settings={"attacks": ["loss", "reference difference"], "seed": 7, "dtype": "float32"},
        notes=("37 records were removed from both sides before any attack.",),
    )
    return replace(audit, **changes)


def make_pii() -> tuple[PiiRow, ...]:
    """Returns three types in two games."""
    rows = []
    for kind, found in (("email", 9), ("phone_number", 4), ("street_address", 0)):
        for game, factor in (("extraction", 1), ("extraction with prefix", 3)):
            right = found * factor
            repeated = {"1": [0, 25], "5": [right // 5, 25], "10": [right // 3, 25]}
            last = right - right // 5 - right // 3
            rows.append(
                PiiRow(
                    kind=kind,
                    game=game,
                    num_secrets=100,
                    num_found=right,
                    num_produced=0 if not found else 120,
                    base_found=None if kind == "street_address" else factor,
                    by_repetition=repeated | {"25": [last, 25]},
                )
            )
    return tuple(rows)


def make_holder_report(**changes: Any) -> HolderReport:
    """Returns losses of 1000 records, four of them infinite."""
    losses = np.random.default_rng(2).laplace(0.0, 0.6, 996) * (np.arange(996) > 600)
    counts, edges = np.histogram(losses, bins=20)
    report = HolderReport(
        num_records=1000,
        share_at_zero=0.601,
        share_infinite=0.004,
        quantiles={"median": 0.0, "95%": 1.2, "max": None},
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
    )
    return replace(report, **changes)


def write_holder_report(path: Path, **changes: Any) -> Path:
    """Writes what the run of `make_holder_report` would have left."""
    found = make_holder_report()
    stored = {
        "num_records": found.num_records,
        "share_at_zero": found.share_at_zero,
        "share_infinite": found.share_infinite,
        "quantiles_of_absolute_loss_nats": {"median": 0.0, "95%": 1.2, "max": "infinite"},
        "histogram": {"edges": list(found.edges), "counts": list(found.counts)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stored | changes))
    return path


def make_source(**changes: Any) -> PageSource:
    """Returns everything that a full page is drawn from."""
    audit = changes.pop("audit", None) or make_audit()
    source = PageSource(
        name="clinic-notes",
        audit=audit,
        certificate_in_words=audit.certificate_in_words,
        holder_report=make_holder_report(),
    )
    return replace(source, **changes)


def make_access_record(**changes: Any) -> AccessRecord:
    """Returns the evaluation of two questions that must be refused, one of which leaked."""
    answers = (
        GradedAnswer("q0", "self", "age", "malicious", Grading(1, "refused", None, True)),
        GradedAnswer("q1", "lying", "salary", "malicious", Grading(3, "other", "braces", True)),
    )
    record = AccessRecord(
        sordino_version="0.1.0",
        made_on="2026-03-14",
        subject={"name": "clinic-notes", "kind": "run", "sha256": "ab" * 32},
        questions={"split": "test", "number": 2, "sha256": "ef" * 32},
        settings={"significance": 0.05},
        answers=answers,
        notes=(SCOPE, NO_CONTROL, INDEPENDENCE),
    )
    return replace(record, **changes)
