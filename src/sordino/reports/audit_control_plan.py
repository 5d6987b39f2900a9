"""What the positive control learns, and what the attacks find on it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sordino.data import pick_records
from sordino.reports.audit_control import ControlPlan, random_half
from sordino.reports.audit_measure import (
    FEWEST_SCORED,
    Measured,
    can_be_ordered,
    measure_canaries,
    measure_membership,
    measure_subset,
    score_material,
)
from sordino.reports.audit_users import half_of_users, measure_users, users_of

if TYPE_CHECKING:
    from pathlib import Path

    from sordino.attacks.subject import Subject
    from sordino.reports.audit_measure import Material, Rules
    from sordino.reports.audit_subset import SubsetGame

_CONTROL_SIDE = 150  # records that the control learns, and as many that it does not
_MOST_CONTROL_RECORDS = 1_000


def plan_control(
    material: Material, game: SubsetGame | None, *, epochs: int, seed: int
) -> ControlPlan:
    """Returns what the control learns: half of the records, and the canaries whose coin says so.

    Where the subset game can be played on them, a candidate subset's records take the half's place.
    Of many records a sample is taken, so large that each side has some `_CONTROL_SIDE`: one that
    the attacks can tell apart, and no more, since each is learned over and over.
    """
    count = len(material.members)
    share = 0.5 if game is None else float(game.membership.mean())
    smaller_side = max(min(share, 1.0 - share), _CONTROL_SIDE / _MOST_CONTROL_RECORDS)
    num_chosen = min(count, round(_CONTROL_SIDE / smaller_side))
    order = np.random.default_rng([seed, 2]).permutation(count)
    places = np.sort(order[:num_chosen])
    candidate = None
    records = pick_records(material.members, places.tolist())
    if material.unit is None:
        is_trained = random_half(num_chosen, seed)
    else:
        is_trained = half_of_users([record.unit or "" for record in records], seed)
    if game is not None and can_be_ordered(game.membership[places]):
        candidate = int(np.random.default_rng([seed, 1]).integers(game.membership.shape[1]))
        is_trained = game.membership[places, candidate]
    return ControlPlan(
        records=records,
        places=places,
        is_trained=is_trained,
        candidate=candidate,
        canaries=material.canaries,
        is_canary_trained=np.random.default_rng([seed, 3]).random(len(material.canaries)) < 0.5,
        epochs=epochs,
    )


def measure_control(
    subject: Subject,
    plan: ControlPlan,
    material: Material,
    rules: Rules,
    *,
    game: SubsetGame | None,
    folder: Path,
    tokens_per_batch: int,
) -> Measured:
    """Returns what the same attacks, by the same rules, find on the positive control."""
    trained = replace(
        material, members=plan.records, nonmembers=(), member_population=~plan.is_trained
    )
    scores = score_material(
        subject, trained, rules, folder, title="control", tokens_per_batch=tokens_per_batch
    )
    membership = subset = None
    num_in = int(plan.is_trained.sum())
    if min(num_in, len(plan.records) - num_in) >= FEWEST_SCORED:
        inside, outside = (
            {name: scores.members[name][side] for name in rules.names}
            for side in (plan.is_trained, ~plan.is_trained)
        )
        membership = measure_membership(inside, outside, 0, rules)
        if material.unit is not None:
            users = measure_users(
                inside,
                outside,
                users_of(plan.records, plan.is_trained),
                users_of(plan.records, ~plan.is_trained),
                unit=material.unit,
                significance=rules.significance,
                seed=rules.seed,
            )
            membership = replace(membership, users=users)
    if game is not None and plan.candidate is not None:
        own = replace(game, true_candidate=plan.candidate)
        subset = measure_subset(scores.members[rules.deciding], own, plan.places, rules)
    return Measured(
        membership=membership,
        canaries=measure_canaries(scores.canaries, plan.is_canary_trained, material.style, rules),
        subset=subset,
    )
