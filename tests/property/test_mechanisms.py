"""Laws of candidates and mechanisms: exact sums, exact shares, and no budget overspent."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers_enumeration import SeededEntropy, history_sums
from sordino.mechanisms.binary_channel import (
    BUDGET_SCHEDULES,
    CHANNELS,
    BinaryChannelMechanism,
)
from sordino.mechanisms.candidates import (
    CandidateSubsets,
    SubsetSums,
    fixed_point_unit,
    to_fixed_point,
)
from sordino.mechanisms.unanimity import UnanimityMechanism

MANY = settings(max_examples=150, deadline=None)
FEW = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32)
bounds = st.floats(-250, 250).map(lambda x: 10.0**x)
budgets = st.floats(math.log(1e-12), math.log(0.6)).map(lambda x: min(max(math.exp(x), 1e-12), 0.6))


@MANY
@given(seed=seeds, half=st.integers(1, 40), num_records=st.integers(0, 60), pairs=st.booleans())
def test_each_record_is_in_half_of_the_subsets(
    seed: int, half: int, num_records: int, pairs: bool
) -> None:
    """Exactly M/2 for every record, and complements where they are asked for."""
    construction = "complementary-pairs" if pairs else "random-halves"
    candidates = CandidateSubsets(num_subsets=2 * half, construction=construction, seed=seed)
    member = candidates.membership(num_records)
    assert (member.sum(axis=1) == half).all()
    if pairs:
        assert np.array_equal(member[:, 1::2], ~member[:, 0::2])


@MANY
@given(seed=seeds, M=st.integers(2, 60), data=st.data())
def test_each_record_is_in_k_of_the_subsets(seed: int, M: int, data: st.DataObject) -> None:
    """Exactly k of M for the rate construction."""
    k = data.draw(st.integers(1, M - 1))
    candidates = CandidateSubsets(
        num_subsets=M, construction="rate", subsets_per_record=k, seed=seed
    )
    assert (candidates.membership(20).sum(axis=1) == k).all()


@MANY
@given(seed=seeds, bound=bounds, num_records=st.integers(1, 50), num_parts=st.integers(1, 7))
def test_sums_are_exact_in_any_order_and_partition(
    seed: int, bound: float, num_records: int, num_parts: int
) -> None:
    """Every partition into batches, in every order, gives the exact sum of rounded numbers."""
    rng = np.random.default_rng(seed)
    member = CandidateSubsets(num_subsets=4, seed=seed).membership(num_records)
    contributions = (rng.standard_cauchy((num_records, 2)) * 0.3).clip(-1, 1) * bound
    total = SubsetSums(member, 2, bound)
    for part in np.array_split(rng.permutation(num_records), num_parts):
        total.add(part, contributions[part])
    integers = to_fixed_point(contributions, bound, fixed_point_unit(bound, num_records))
    for j in range(4):
        exact = [sum(Fraction(x) for x in integers[member[:, j], k]) for k in range(2)]
        assert [Fraction(x) for x in total.sums[j]] == exact


@MANY
@given(seed=seeds, bound=bounds, num_records=st.integers(1, 50))
def test_rounding_changes_a_sign_only_near_zero(seed: int, bound: float, num_records: int) -> None:
    """The fixed point errs by at most half a unit a record: far below any real mean."""
    contributions = np.random.default_rng(seed).uniform(-bound, bound, (num_records, 1))
    unit = fixed_point_unit(bound, num_records)
    error = np.abs(to_fixed_point(contributions, bound, unit) * unit - contributions)
    assert error.max() <= unit / 2
    assert unit * num_records <= bound * num_records**2 * 2.0**-48


@FEW
@example(seed=0, budget=1e-12, steps=6, K=3, channel="gaussian", schedule="adaptive")
@example(seed=0, budget=0.6, steps=6, K=3, channel="binary-symmetric", schedule="uniform")
@given(
    seed=seeds,
    budget=budgets,
    steps=st.integers(1, 6),
    K=st.integers(1, 3),
    channel=st.sampled_from(CHANNELS),
    schedule=st.sampled_from(BUDGET_SCHEDULES),
)
def test_no_path_charges_more_than_the_budget(
    *, seed: int, budget: float, steps: int, K: int, channel: str, schedule: str
) -> None:
    """Exactly added, the charges stay within B, and within B/T each where that is promised.

    Defect 3: a solver with an absolute tolerance overspends at B = 1e-4 and below.
    """
    mechanism = BinaryChannelMechanism(
        CandidateSubsets(num_subsets=6),
        SeededEntropy(seed),
        budget_nats=budget,
        num_steps=steps,
        channel=channel,
        budget_schedule=schedule,
    )
    history: list[list[int]] = []
    spent = Fraction(0)
    for step in range(steps):
        release = mechanism.release(history_sums(seed, history, 6, K), 1.0, step)
        charge = Fraction(release.mutual_information_nats)
        assert charge >= 0
        assert charge <= (Fraction(budget) - spent) / (steps - step) or schedule == "uniform"
        assert charge <= Fraction(budget) / steps or schedule == "adaptive"
        spent += charge
        assert spent <= Fraction(budget)
        assert mechanism._spent == spent
        history.append(release.integers.tolist())


@FEW
@given(
    seed=seeds,
    budget=budgets,
    steps=st.integers(1, 6),
    channel=st.sampled_from(CHANNELS),
    schedule=st.sampled_from(BUDGET_SCHEDULES),
)
def test_contested_steps_use_the_budget(
    seed: int, budget: float, steps: int, channel: str, schedule: str
) -> None:
    """Where every sign is contested, what is charged is the budget: no utility is given away.

    Doubles near 1/2 are too coarse for the last digits of a tiny budget, hence the two margins.
    """
    mechanism = BinaryChannelMechanism(
        CandidateSubsets(num_subsets=6),
        SeededEntropy(seed),
        budget_nats=budget / 10,
        num_steps=steps,
        channel=channel,
        budget_schedule=schedule,
    )
    rng = np.random.default_rng(seed)
    for step in range(steps):
        signs = rng.permutation([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])[:, None]
        mechanism.release(signs, 1.0, step)
    share = float(mechanism._spent / Fraction(budget / 10))
    assert 1 - 1e-9 - 1e-14 * math.sqrt(steps / (budget / 10)) <= share <= 1


@FEW
@given(seed=seeds, budget=budgets, stop=st.integers(0, 5), channel=st.sampled_from(CHANNELS))
def test_a_restored_mechanism_goes_on_identically(
    seed: int, budget: float, stop: int, channel: str
) -> None:
    """Stopped anywhere and restored through JSON, the rest of the run is bit for bit the same."""

    def make(source: SeededEntropy) -> BinaryChannelMechanism:
        return BinaryChannelMechanism(
            CandidateSubsets(num_subsets=6),
            source,
            budget_nats=budget,
            num_steps=5,
            channel=channel,
        )

    def go_on(mechanism: BinaryChannelMechanism, first: int, last: int) -> list[object]:
        releases = [
            mechanism.release(history_sums(seed, [[step]], 6, 2), 1.0, step)
            for step in range(first, last)
        ]
        return [(r.integers.tolist(), r.mutual_information_nats) for r in releases]

    mechanism = make(SeededEntropy(seed))
    go_on(mechanism, 0, stop)
    restored = make(SeededEntropy(seed + 1))
    restored.restore(json.loads(json.dumps(mechanism.private_state(), allow_nan=False)))
    mechanism._entropy, restored._entropy = SeededEntropy(1), SeededEntropy(1)
    assert go_on(restored, stop, 5) == go_on(mechanism, stop, 5)
    assert restored.private_state() == mechanism.private_state()


@MANY
@given(
    seed=seeds,
    K=st.integers(1, 6),
    flip=st.floats(0.0, 0.49),
    on_disagreement=st.sampled_from(["coin", "skip"]),
)
def test_unanimity_releases_what_it_says(
    seed: int, K: int, flip: float, on_disagreement: str
) -> None:
    """Symbols are unanimous signs, their flips, coins or zeros, each where it belongs."""
    mechanism = UnanimityMechanism(
        CandidateSubsets(num_subsets=6),
        SeededEntropy(seed),
        on_disagreement=on_disagreement,
        unanimity_flip=flip,
    )
    sums = history_sums(seed, [], 6, K)
    release = mechanism.release(sums, 1.0, 0)
    positive = sums >= 0
    for k in range(K):
        agree = positive[:, k].all() or not positive[:, k].any()
        assert release.unanimous[k] == agree
        symbol = int(release.integers[k])
        if agree and flip == 0:
            assert symbol == (1 if positive[0, k] else -1)
        elif agree or on_disagreement == "coin":
            assert symbol in (-1, 1)
        else:
            assert symbol == 0
    assert release.mutual_information_nats == 0.0
