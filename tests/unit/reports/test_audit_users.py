"""Attacks on users: means over their texts, users on both sides, intervals of whole users."""

from __future__ import annotations

import numpy as np
import pytest

import sordino.reports.audit_users as module
from sordino.auditing.curves import auc
from sordino.core.errors import InvalidDataError
from sordino.data import Record
from sordino.reports.audit_users import (
    area_under_curve,
    half_of_users,
    measure_users,
    require_users,
    users_of,
)

TEXTS = 12
REPETITIONS = 50


def measure(members: np.ndarray, others: np.ndarray, own: list[str], rest: list[str]):  # noqa: ANN201
    return measure_users(
        {"loss": members}, {"loss": others}, own, rest, unit="author", significance=0.05, seed=0
    )


def test_a_user_is_the_mean_of_their_texts() -> None:
    """Texts come in any order, and users may have different numbers of them."""
    found = measure(
        np.array([3.0, 0.0, 1.0, 2.0]),
        np.array([0.0, 0.9, 1.1, -1.0]),
        ["ann", "bob", "bob", "ann"],
        ["cy", "dee", "dee", "eve"],
    )
    assert (found.num_members, found.num_nonmembers, found.num_removed) == (2, 3, 0)
    assert found.unit == "author"
    # ann 2.5, bob 0.5; cy 0, dee 1, eve -1
    assert found.attacks[0].auc == pytest.approx(5 / 6)
    assert found.attacks[0].name == "loss"


def test_who_is_on_both_sides_is_a_member() -> None:
    """Their other texts do not count, whatever their score."""
    arguments = (["ann", "bob"], ["ann", "cy", "dee"])
    for score in (-100.0, 100.0):
        found = measure(np.array([2.0, 1.0]), np.array([score, 0.0, 0.5]), *arguments)
        assert (found.num_members, found.num_nonmembers, found.num_removed) == (2, 2, 1)
        assert found.attacks[0].auc == 1.0


def test_the_interval_is_never_a_point() -> None:
    """Perfectly told apart: every resample agrees, which is no certainty with three users."""
    found = measure(np.array([5.0, 6, 7]), np.array([1.0, 2, 3]), list("abc"), list("def"))
    assert found.attacks[0].auc == 1.0
    assert found.attacks[0].auc_lower < 0.9


def test_the_interval_holds_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users whose texts are alike: 95% intervals cover in at least 35 of 50 repetitions.

    With a true coverage of 93%, fewer have a probability of 2e-7 (binomial; the seed is fixed). An
    interval that took the texts for independent covers far less, which the same numbers show.
    """
    monkeypatch.setattr(module, "_NUM_RESAMPLES", 200)
    rng = np.random.default_rng(7)
    users = [f"{i}" for i in range(40) for _ in range(TEXTS)]
    covered = covered_by_texts = 0
    truth = 0.6381  # P[N(0.5, 1) > N(0, 1)] of user means: Phi(0.5 / sqrt(2 (1 + 0.01 / 12)))
    for _ in range(REPETITIONS):
        sides = [
            np.repeat(rng.normal(shift, 1.0, 40), TEXTS) + rng.normal(0, 0.1, 40 * TEXTS)
            for shift in (0.5, 0.0)
        ]
        found = measure(*sides, users, [f"other {u}" for u in users]).attacks[0]
        covered += found.auc_lower <= truth <= found.auc_upper
        each = [f"{i}" for i in range(sides[0].size)]
        texts = measure(*sides, each, [f"other {u}" for u in each]).attacks[0]
        covered_by_texts += texts.auc_lower <= truth <= texts.auc_upper
    assert covered >= 35
    assert covered_by_texts < 35


def test_too_few_users() -> None:
    found = measure(np.array([1.0, 2.0]), np.array([0.0, 1.0]), ["ann", "ann"], ["bob", "cy"])
    assert found is None
    with pytest.raises(InvalidDataError, match="--unit author: at least 2 users"):
        require_users(found, "author")


def test_half_of_the_users() -> None:
    """Nobody is cut in two, and the half is the seed's."""
    users = [f"{i % 7}" for i in range(50)]
    chosen = half_of_users(users, seed=3)
    assert np.array_equal(chosen, half_of_users(users, seed=3))
    inside = {u for u, used in zip(users, chosen, strict=True) if used}
    outside = {u for u, used in zip(users, chosen, strict=True) if not used}
    assert (len(inside), len(outside), inside & outside) == (4, 3, set())


def test_users_of_the_kept_records() -> None:
    records = [Record("a", None, (), i, unit=u) for i, u in enumerate("xyz")]
    assert users_of(records, np.array([True, False, True])) == ["x", "z"]


def test_fast_area_is_the_area() -> None:
    """With ties."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        members, others = rng.integers(0, 9, 14).astype(float), rng.integers(0, 7, 9).astype(float)
        assert area_under_curve(members, others) == pytest.approx(auc(members, others), abs=1e-12)


def test_users_are_not_texts() -> None:
    """Averaging over texts is what makes users easier to find than records."""
    rng = np.random.default_rng(1)
    users = [f"{i}" for i in range(60) for _ in range(TEXTS)]
    inside, outside = rng.normal(0.5, 1, len(users)), rng.normal(0.0, 1, len(users))
    found = measure(inside, outside, users, [f"other {u}" for u in users])
    assert found.attacks[0].auc > auc(inside, outside) + 0.1
