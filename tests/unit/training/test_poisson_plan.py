"""Secret draws of units: whole units, bounded, the same for all workers, and never the seed's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sordino.core.errors import InvalidParameterError
from sordino.core.secret_stream import SecretStream
from sordino.mechanisms.poisson import PoissonSampler
from sordino.training.batch_plan import MAX_RECORDS_PER_BATCH, PoissonPlan
from sordino.training.workers import Workers

GROUPS = [[0, 3, 5], [1], [2, 4, 6, 7, 8, 9], [10, 11]]
LENGTHS = [5, 9, 3, 7, 4, 2, 8, 6, 5, 5, 30, 2]


def make_plan(probability: float, **changes: Any) -> PoissonPlan:
    """Returns a plan over four people with twelve records."""
    stream = SecretStream.from_operating_system()
    groups = changes.pop("groups", GROUPS)
    return PoissonPlan(
        groups,
        LENGTHS,
        sampler=PoissonSampler(stream, probability, num_units=len(groups)),
        stream=stream,
        expected_units=2,
        workers=Workers.start("cpu"),
        **{"max_records_per_unit": 4, "tokens_per_batch": 24} | changes,
    )


def test_units_stay_together() -> None:
    """A unit's records are side by side in one batch: it is clipped as a whole."""
    plan = make_plan(1.0, max_records_per_unit=99)
    batches = plan.batches(0)
    assert sorted(i for batch in batches for i in batch) == list(range(12))
    for batch in batches:
        units = plan.unit_of[batch]
        changes = np.count_nonzero(np.diff(units))
        assert changes == len(set(units.tolist())) - 1
    homes = [unit for batch in batches for unit in set(plan.unit_of[batch].tolist())]
    assert sorted(homes) == [0, 1, 2, 3]


def test_batches_respect_the_token_budget() -> None:
    """Padding included; only a single unit may be larger."""
    for batch in make_plan(1.0).batches(0):
        tokens = len(batch) * max(LENGTHS[i] for i in batch)
        assert tokens <= 24 or len(set(make_plan(1.0).unit_of[batch].tolist())) == 1


def test_a_unit_with_too_many_records_is_cut_in_secret() -> None:
    """Person 2 has six records; four of them take part, and not always the same."""
    plan = make_plan(1.0)
    seen = set()
    for step in range(40):
        chosen = {i for batch in plan.batches(step) for i in batch} & set(GROUPS[2])
        assert len(chosen) == 4
        seen.add(frozenset(chosen))
    assert len(seen) > 3  # 15 choices; three or fewer in 40 draws: probability below 1e-25


@pytest.mark.parametrize("groups", [[[0, 3], [], [1], []], [[0], [], [1], []]])
def test_empty_places_are_drawn_and_give_nothing(groups: list[list[int]]) -> None:
    """A canary that a coin left out is a unit without records, in every draw."""
    plan = make_plan(1.0, groups=groups)
    drawn = sorted(i for batch in plan.batches(0) for i in batch)
    assert drawn == sorted(i for group in groups for i in group)
    assert plan.records_per_step == 2
    plan = make_plan(1.0, groups=[[], []])
    assert plan.batches(0) == []


def test_records_are_units_of_their_own() -> None:
    """Without a column every record is drawn for itself; batches hold similar lengths."""
    plan = make_plan(0.5, groups=[[i] for i in range(12)])
    sizes = [sum(map(len, plan.batches(step))) for step in range(60)]
    assert plan.records_per_step == 2  # the public number, not the size of any draw
    assert len(set(sizes)) > 3  # false failure: below 1e-20
    assert plan.unit_of.tolist() == list(range(12))


def test_nobody_drawn() -> None:
    """An empty draw gives no batches, and no error."""
    plan = make_plan(1e-9)
    assert plan.batches(0) == []


def test_batches_are_not_too_many_records() -> None:
    """A batch of many short units ends in time."""
    groups = [[2 * i, 2 * i + 1] for i in range(6)] * 20
    plan = make_plan(1.0, groups=groups, tokens_per_batch=10**6)
    assert max(map(len, plan.batches(0))) <= MAX_RECORDS_PER_BATCH


@pytest.mark.parametrize("most", [0, -1, 2.5])
def test_bound_on_records_of_a_unit(most: Any) -> None:
    """The bound is a whole number, at least 1."""
    with pytest.raises(InvalidParameterError, match="max_records_per_unit"):
        make_plan(1.0, max_records_per_unit=most)
