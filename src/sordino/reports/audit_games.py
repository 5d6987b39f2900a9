"""From scores to verdicts: the membership attacks, the subset game and the pool game."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sordino.accounting.inference_risk import posterior_from_mutual_information
from sordino.auditing.areas import auc_interval
from sordino.auditing.curves import log_log_points, operating_point
from sordino.auditing.subset_game import (
    mutual_information_lower_bound,
    order_candidates,
    rank_of,
)
from sordino.auditing.verdict import EPSILON, POSTERIOR, Claim, Measurement, judge
from sordino.reports.audit_record import AttackResult, GameVerdict, Point, SubsetResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from sordino.ledger.certificate import Certificate
    from sordino.reports.audit_record import CanaryResult

    Scores = Mapping[str, NDArray[np.float64]]

FPR_LIMITS = (0.01, 0.001)
_CURVE_POINTS = 60
# a canary's coin puts a record in, or leaves its place empty
_TESTED_RELATIONS = ("ADD_OR_REMOVE_ONE", "REPLACE_SPECIAL")


def attack_results(
    members: Scores, nonmembers: Scores, significance: float
) -> tuple[AttackResult, ...]:
    """Returns what each score tells, the strongest first.

    Args:
        members: Scores of members by name, each of shape (num_members,).
        nonmembers: The same names, each of shape (num_nonmembers,).
        significance: One minus the confidence of each interval.
    """
    results = [
        attack_result(name, members[name], nonmembers[name], significance) for name in members
    ]
    return tuple(sorted(results, key=lambda result: -result.auc))


def attack_result(
    name: str,
    members: NDArray[np.float64],
    nonmembers: NDArray[np.float64],
    significance: float,
) -> AttackResult:
    """Returns what one score tells: area, rates at low false-positive rates, curve."""
    area = auc_interval(members, nonmembers, significance)
    found = [operating_point(members, nonmembers, limit, significance) for limit in FPR_LIMITS]
    curve = log_log_points(members, nonmembers, _CURVE_POINTS, significance)
    return AttackResult(
        name=name,
        auc=area.auc,
        auc_lower=area.lower,
        auc_upper=area.upper,
        points=tuple(
            Point(
                fpr_limit=point.fpr_limit,
                threshold=point.threshold if math.isfinite(point.threshold) else None,
                fpr=point.fpr,
                tpr=point.tpr,
                tpr_lower=point.tpr_lower,
                tpr_upper=point.tpr_upper,
            )
            for point in found
        ),
        curve={
            "false_positive_rates": curve.false_positive_rates.tolist(),
            "true_positive_rates": curve.true_positive_rates.tolist(),
            "tpr_lower": curve.tpr_lower.tolist(),
            "tpr_upper": curve.tpr_upper.tolist(),
        },
    )


def play_subset_game(
    scores: NDArray[np.float64],
    membership: NDArray[np.bool_],
    true_candidate: int,
    *,
    attack: str,
    prior: float,
    significance: float,
    is_drawn_after: bool,
) -> SubsetResult:
    """Returns how well the candidate that was used is found.

    Args:
        scores: One attack's scores of the pool's records, shape (num_records,).
        membership: Which record is in which candidate, shape (num_records, num_subsets).
        true_candidate: The secret.
        attack: Name of the scores.
        prior: Success of a guess about one record before the release.
        significance: One minus the confidence.
        is_drawn_after: Whether the secret was drawn after the run, which never read one.
    """
    num_subsets = membership.shape[1]
    likelihoods = order_candidates(scores, membership)
    rank = rank_of(likelihoods, true_candidate)
    first = int(np.argmax(likelihoods))
    nats = mutual_information_lower_bound(rank, num_subsets, significance)
    return SubsetResult(
        num_subsets=num_subsets,
        rank=rank,
        share_right=float(np.mean(membership[:, first] == membership[:, true_candidate])),
        attack=attack,
        posterior_lower=posterior_lower_bound(nats, prior),
        significance=significance,
        is_drawn_after=is_drawn_after,
    )


def posterior_lower_bound(mutual_information_nats: float, prior: float) -> float:
    """Returns the posterior that a certificate would have to state for so many nats, or less."""
    # the conversion is rounded up by a relative 2e-11 of the budget: taken off twice over
    return posterior_from_mutual_information(mutual_information_nats * (1.0 - 1e-9), prior)


def judge_subset(
    certificate: Certificate, result: SubsetResult | None, significance: float
) -> GameVerdict:
    """Returns the verdict on the certificate's line about the candidate subset."""
    line = certificate.subset
    claim = Claim(POSTERIOR, line.posterior_upper)
    found, control = [], []
    if result is not None:
        found = [_measured(POSTERIOR, result.posterior_lower, significance)]
        if result.control_posterior_lower is not None:
            control = [_measured(POSTERIOR, result.control_posterior_lower, significance)]
    limit = _largest_provable(certificate, significance)
    if claim.value is not None and limit <= claim.value:
        found, control = [], []
        untested = (
            f"with {certificate.mechanism['num_subsets']} candidates one run proves at most "
            f"{limit:.3f} at {100 * (1 - significance):.4g}% confidence"
        )
    else:
        untested = (
            "--members is not the whole pool, or the secret subset was erased with the run (keep "
            "it with sordino tune --keep-subset)"
        )
    return _verdict("subset", line.secret, claim, (found, control), untested)


def _largest_provable(certificate: Certificate, significance: float) -> float:
    """Returns the posterior that the best rank of all proves; 0 without candidates."""
    num_subsets = certificate.mechanism.get("num_subsets")
    if num_subsets is None or certificate.subset.prior is None:
        return 0.0
    nats = mutual_information_lower_bound(1, num_subsets, significance)
    return posterior_lower_bound(nats, certificate.subset.prior)


def judge_pool(
    certificate: Certificate, result: CanaryResult | None, significance: float
) -> GameVerdict:
    """Returns the verdict on the certificate's line about membership in the pool."""
    line = certificate.pool
    claim = Claim(EPSILON, line.epsilon_upper, line.delta or 0.0)
    found, control = [], []
    if result is not None:
        found = [_measured(EPSILON, result.epsilon_lower, significance, result.delta)]
        if result.control_epsilon_lower is not None:
            control = [_measured(EPSILON, result.control_epsilon_lower, significance, result.delta)]
    untested = (
        "no canaries were attacked: plan them before training, with sordino tune --canaries M, and "
        "of a quantized run name the run, with --quantized-from"
    )
    if claim.value is not None and line.neighboring_relation not in _TESTED_RELATIONS:
        found, control = [], []
        untested = (
            f"canaries enter the pool or do not, and the claim is about {line.neighboring_relation}"
        )
    return _verdict("pool", line.secret, claim, (found, control), untested)


def _verdict(
    game: str,
    secret: str,
    claim: Claim,
    measured: tuple[list[Measurement], list[Measurement]],
    untested: str,
) -> GameVerdict:
    """Returns a verdict as it is stored; a claim without a measurement was not tested."""
    found, control = measured
    quantity = claim.quantity if claim.value is not None else None
    if claim.value is not None and not found:
        return GameVerdict(
            game=game,
            secret=secret,
            outcome="no power",
            line=f"No power to test {claim.quantity} <= {claim.value:g}: {untested}.",
            quantity=quantity,
            claimed=claim.value,
        )
    verdict = judge(claim, found, control if found else [])
    return GameVerdict(
        game=game,
        secret=secret,
        outcome=verdict.outcome.value,
        line=verdict.line(),
        quantity=quantity or (claim.quantity if found else None),
        claimed=claim.value,
        measured_lower=None if verdict.strongest is None else verdict.strongest.lower,
        control_lower=(
            None if verdict.strongest_on_control is None else verdict.strongest_on_control.lower
        ),
        significance=verdict.significance if found else None,
    )


def _measured(quantity: str, lower: float, significance: float, delta: float = 0.0) -> Measurement:
    """Returns one measurement; which score made it is fixed beforehand."""
    attack = "the order of the candidates" if quantity == POSTERIOR else "guessing the canaries"
    return Measurement(attack, quantity, lower, significance, delta)
