"""Candidate subsets: each record in exactly its share of them, and sums that are exact."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.stats import binom

from sordino.core.errors import InvalidParameterError, PrecisionError
from sordino.mechanisms.candidates import (
    CandidateSubsets,
    SubsetSums,
    fixed_point_unit,
    to_fixed_point,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

RATE = {"construction": "rate", "subsets_per_record": 5}
PAIRS = {"construction": "complementary-pairs"}
ALL = [{}, PAIRS, RATE]
IDS = ["halves", "pairs", "rate"]


@pytest.mark.parametrize("num_subsets", [2, 4, 6, 126, 128])
@pytest.mark.parametrize("kind", [{}, PAIRS], ids=["halves", "pairs"])
def test_each_record_is_in_exactly_half(kind: dict[str, Any], num_subsets: int) -> None:
    """M/2 of the M subsets hold a record: that is what makes the prior 1/2."""
    candidates = CandidateSubsets(num_subsets=num_subsets, **kind)
    member = candidates.membership(1500)
    assert member.shape == (1500, num_subsets)
    assert (member.sum(axis=1) == num_subsets // 2).all()
    assert candidates.prior == 0.5


@pytest.mark.parametrize(("k", "num_subsets"), [(1, 7), (2, 8), (5, 8), (6, 7), (127, 128)])
def test_rate_puts_each_record_in_exactly_k(k: int, num_subsets: int) -> None:
    """k of M, odd M too; the prior is that of the better of "yes" and "no"."""
    candidates = CandidateSubsets(
        num_subsets=num_subsets, construction="rate", subsets_per_record=k
    )
    assert (candidates.membership(1100).sum(axis=1) == k).all()
    assert candidates.prior == max(k, num_subsets - k) / num_subsets


def test_pairs_are_complements() -> None:
    """Subset 2i + 1 holds exactly the records that subset 2i does not."""
    member = CandidateSubsets(num_subsets=10, **PAIRS).membership(700)
    assert np.array_equal(member[:, 1::2], ~member[:, 0::2])


@pytest.mark.parametrize("kind", ALL, ids=IDS)
def test_membership_follows_from_the_seed_and_the_record_s_number(kind: dict[str, Any]) -> None:
    """More records behind do not change a record's subsets, across blocks of 1,024 too."""
    candidates = CandidateSubsets(num_subsets=10, seed=3, **kind)
    whole = candidates.membership(2500)
    for size in (0, 1, 1023, 1024, 1025, 2048, 2499):
        assert np.array_equal(candidates.membership(size), whole[:size])
    again = CandidateSubsets(num_subsets=10, seed=3, **kind).membership(2500)
    other = CandidateSubsets(num_subsets=10, seed=4, **kind).membership(2500)
    assert np.array_equal(again, whole)
    assert not np.array_equal(other, whole)
    assert not np.array_equal(whole[:1024], whole[1024:2048])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ({}, "ecc9051168fcd74386e3049f82d0156c6806d82a649f63c3df9c344873313fa0"),
        (PAIRS, "1dc2581e89f354ed0aacaf699568dfcd9816eb54d31d01252496dc052c82a537"),
        (RATE, "81d7d9e15dd99c91972e7c9c7171d53de6d8b3ce511d1f08505ebf3ee5894c14"),
    ],
    ids=IDS,
)
def test_membership_is_pinned(kind: dict[str, Any], expected: str) -> None:
    """The subsets of an old run can be drawn again: it is a public format."""
    member = CandidateSubsets(num_subsets=126, seed=20260524, **kind).membership(2051)
    assert hashlib.sha256(np.packbits(member).tobytes()).hexdigest() == expected


@pytest.mark.parametrize("kind", ALL, ids=IDS)
def test_subsets_are_fair_and_independent_of_the_record(kind: dict[str, Any]) -> None:
    """Column sizes, and agreements of two neighbours, are binomial; 18 tests at 5e-8 each."""
    num_records, num_subsets = 20_000, 8
    candidates = CandidateSubsets(num_subsets=num_subsets, seed=5, **kind)
    member = candidates.membership(num_records)
    share = 5 / 8 if kind is RATE else 0.5
    low, high = binom.ppf([2.5e-8, 1 - 2.5e-8], num_records, share)
    for size in member.sum(axis=0):
        assert low <= size <= high
    same = share**2 + (1 - share) ** 2
    low, high = binom.ppf([2.5e-8, 1 - 2.5e-8], num_records // 2, same)
    for agreements in (member[0::2] == member[1::2]).sum(axis=0):
        assert low <= agreements <= high


@pytest.mark.parametrize("num_subsets", [3, 5, 127])
@pytest.mark.parametrize("kind", [{}, PAIRS], ids=["halves", "pairs"])
def test_an_odd_number_has_no_half(kind: dict[str, Any], num_subsets: int) -> None:
    """Odd M is refused, with the remedy."""
    with pytest.raises(InvalidParameterError, match=r"num_subsets must be even.*next even number"):
        CandidateSubsets(num_subsets=num_subsets, **kind)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_subsets": 1}, "num_subsets must be a whole number at least 2"),
        ({"num_subsets": 0}, "num_subsets must be a whole number at least 2"),
        ({"num_subsets": 8.0}, "num_subsets must be a whole number"),
        ({"num_subsets": math.nan}, "num_subsets must be a whole number"),
        ({"num_subsets": 8, "construction": "poisson"}, "subset_construction must be one of"),
        ({"num_subsets": 8, "construction": "rate"}, "needs subsets_per_record"),
        ({"num_subsets": 8, "subsets_per_record": 3}, "is for subset_construction 'rate'"),
        ({"num_subsets": 8, **PAIRS, "subsets_per_record": 3}, "'rate'; the others use"),
        ({"num_subsets": 8, **RATE, "subsets_per_record": 0}, "subsets_per_record must be"),
        ({"num_subsets": 8, **RATE, "subsets_per_record": 8}, "subsets_per_record must be"),
        ({"num_subsets": 8, **RATE, "subsets_per_record": 2.0}, "subsets_per_record must be"),
    ],
)
def test_what_is_no_construction_is_refused(arguments: dict[str, Any], message: str) -> None:
    """A record in all or in none of the subsets would leave no secret about it."""
    with pytest.raises(InvalidParameterError, match=message):
        CandidateSubsets(**arguments)


@pytest.fixture
def member() -> NDArray[np.bool_]:
    """Which of 40 records is in which of 6 subsets."""
    return CandidateSubsets(num_subsets=6).membership(40)


@pytest.mark.parametrize("bound", [1e-300, 1e-3, 1.0, 25.0, math.nextafter(32.0, 64.0), 1e300])
@pytest.mark.parametrize("num_records", [1, 2, 3, 1000, 1024, 1025, 10**7])
def test_the_unit_leaves_room_for_every_sum(bound: float, num_records: int) -> None:
    """A power of two; the largest possible sum stays below 2**53 units, and loses no precision."""
    unit = fixed_point_unit(bound, num_records)
    assert Fraction(unit).numerator == 1 or math.frexp(unit)[0] == 0.5
    largest = Fraction(bound) * (1 + Fraction(1, 10**6)) * num_records / Fraction(unit)
    assert largest < 2**53
    assert largest > num_records * 2**20  # a contribution keeps at least 20 bits


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf, 1e-301, 1e301])
def test_a_bound_must_be_usable(bound: float) -> None:
    """Without a finite positive bound there is no fixed point."""
    with pytest.raises(InvalidParameterError, match="contribution bound must be in"):
        fixed_point_unit(bound, 10)


def test_sums_are_those_of_the_members(member: NDArray[np.bool_]) -> None:
    """Each sum is the exact sum, in rational numbers, of its members' rounded contributions."""
    rng = np.random.default_rng(0)
    contributions = rng.uniform(-3, 3, (40, 2))
    total = SubsetSums(member, 2, 3.0)
    total.add(np.arange(40), contributions)
    rounded = to_fixed_point(contributions, 3.0, total.unit)
    assert np.abs(rounded * total.unit - contributions).max() <= total.unit / 2
    for j in range(6):
        for k in range(2):
            exact = sum(Fraction(rounded[i, k]) for i in range(40) if member[i, j])
            assert Fraction(total.sums[j, k]) == exact


def test_records_may_come_in_any_order_and_any_parts(member: NDArray[np.bool_]) -> None:
    """Batches, workers and order change no bit of a sum."""
    rng = np.random.default_rng(1)
    contributions = rng.standard_cauchy((40, 3)).clip(-25, 25)
    results = []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(40)
        cuts = np.sort(np.random.default_rng(seed).integers(0, 41, size=seed))
        total = SubsetSums(member, 3, 25.0)
        for part in np.split(order, cuts):
            total.add(part, contributions[part])
        results.append(total.sums.tobytes())
    assert len(set(results)) == 1


def test_workers_sums_add_up_exactly(member: NDArray[np.bool_]) -> None:
    """Partial sums of several workers, added in any order, are the sum of one."""
    contributions = np.random.default_rng(2).uniform(-1, 1, (40, 1))
    whole = SubsetSums(member, 1, 1.0)
    whole.add(np.arange(40), contributions)
    parts = []
    for worker in range(3):
        part = SubsetSums(member, 1, 1.0)
        rows = np.arange(worker, 40, 3)
        part.add(rows, contributions[rows])
        parts.append(part.sums)
    empty = SubsetSums(member, 1, 1.0).sums  # a worker without a share takes part (defect 12)
    assert np.array_equal(parts[2] + empty + parts[0] + parts[1], whole.sums)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.00001, -1.00001, 1e300])
def test_an_unbounded_contribution_releases_nothing(member: NDArray[np.bool_], bad: float) -> None:
    """NaN, infinity or more than the bound raises, and the sums stay as they were."""
    contributions = np.full((3, 2), 0.5)
    contributions[1, 1] = bad
    total = SubsetSums(member, 2, 1.0)
    with pytest.raises(PrecisionError, match=r"beyond its bound; nothing was released\. Lower"):
        total.add(np.arange(3), contributions)
    assert not total.sums.any()


def test_the_message_holds_no_contribution(member: NDArray[np.bool_]) -> None:
    """A private value is not printed with the error."""
    with pytest.raises(PrecisionError) as caught:
        SubsetSums(member, 1, 1.0).add(np.arange(1), np.array([[123.456]]))
    assert "123" not in str(caught.value)


@pytest.mark.parametrize("value", [-1.0, 1.0, 1.0 + 1e-7, 0.0, -0.0, 5e-324])
def test_the_bound_itself_is_allowed(value: float) -> None:
    """A clipped contribution lies on the bound, up to float32 rounding."""
    unit = fixed_point_unit(1.0, 100)
    integers = to_fixed_point(np.array([[value]]), 1.0, unit)
    assert integers[0, 0] == np.rint(value / unit)
