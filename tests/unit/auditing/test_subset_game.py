"""Ranks of candidate subsets and what they prove."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from sordino.auditing.subset_game import (
    mutual_information_lower_bound,
    order_candidates,
    rank_of,
)
from sordino.core.errors import InvalidDataError, InvalidParameterError


@given(st.integers(2, 10**6), st.data(), st.floats(1e-6, 0.5))
def test_no_smaller_information_explains_the_rank(
    num_subsets: int, data: st.DataObject, significance: float
) -> None:
    """Below the bound a hit has probability below the level: KL(level || share) is larger."""
    rank = data.draw(st.integers(1, num_subsets))
    bound = mutual_information_lower_bound(rank, num_subsets, significance)
    share = rank / num_subsets
    if share >= significance:
        assert bound == 0.0
        return
    exact = significance * math.log(significance / share) + (1 - significance) * math.log(
        (1 - significance) / (1 - share)
    )
    assert bound <= exact + 1e-15
    assert bound >= exact * (1 - 1e-6) - 1e-12


def test_better_ranks_prove_more() -> None:
    """The bound falls with the rank, and is never above ln M."""
    bounds = [mutual_information_lower_bound(rank, 128) for rank in range(1, 129)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[6:] == [0.0] * 122  # 7 / 128 is above 5%
    assert 0.0 < bounds[0] < math.log(128)


def test_false_alarms_without_information() -> None:
    """A random rank proves something with probability at most 5%.

    Failure rate of a correct bound: 1e-6, from the exact binomial law.
    """
    ranks = np.random.default_rng(8).integers(1, 129, size=20_000)
    alarms = sum(mutual_information_lower_bound(int(rank), 128) > 0.0 for rank in ranks)
    assert alarms <= binom.isf(1e-6, ranks.size, 0.05)
    assert alarms > 0.03 * ranks.size  # it is not vacuous: 6 of 128 ranks


def test_leaking_scores_find_the_subset() -> None:
    """Scores shifted by one standard deviation put the true half first; noise does not."""
    random = np.random.default_rng(3)
    membership = random.random((400, 64)) < 0.5
    true = 17
    scores = random.normal(size=400)
    assert rank_of(order_candidates(scores + 1.0 * membership[:, true], membership), true) == 1
    assert rank_of(order_candidates(scores, membership), true) > 3


def test_ties_count_against_the_attacker() -> None:
    """Equal scores tell nothing: the rank is the last."""
    membership = np.array([[True, False], [False, True]])
    assert rank_of(order_candidates([1.0, 1.0], membership), 0) == 2


def test_bad_input() -> None:
    """Shapes, empty candidates and NaN are refused."""
    with pytest.raises(InvalidDataError, match="shape"):
        order_candidates([1.0, 2.0], [[True], [True], [False]])
    with pytest.raises(InvalidDataError, match="empty candidate"):
        order_candidates([1.0, 2.0], [[True, False], [True, True]])
    with pytest.raises(InvalidDataError, match="finite"):
        rank_of([1.0, math.nan], 0)
    with pytest.raises(InvalidParameterError):
        rank_of([1.0, 2.0], 2)
    with pytest.raises(InvalidParameterError):
        mutual_information_lower_bound(0, 128)
    with pytest.raises(InvalidParameterError):
        mutual_information_lower_bound(1, 128, math.nan)
