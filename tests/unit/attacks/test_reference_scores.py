"""Scores against other models, copies and users: values by hand, and one-sided where they must."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from sordino.attacks.reference_scores import (
    lira_offline,
    neighbourhood,
    perturb_tokens,
    rmia_offline,
    self_prompt_calibration,
    user_interval,
    user_score,
)
from sordino.auditing.areas import auc
from sordino.core.errors import InvalidDataError, InvalidParameterError, PrecisionError


def test_lira_by_hand_with_pooled_variance() -> None:
    """Two out models: means 1 and 6, variances 2 and 8, pooled 5."""
    found = lira_offline([4.0, 3.0], [[0.0, 4.0], [2.0, 8.0]])
    z = np.array([3.0, -3.0]) / math.sqrt(5.0)
    assert found == pytest.approx(-norm.logsf(z))
    assert -np.expm1(-found) == pytest.approx(norm.cdf(z))  # Phi, the usual form


def test_lira_has_own_variances_from_16_models() -> None:
    generator = np.random.default_rng(0)
    out = generator.normal(size=(16, 2)) * [1.0, 10.0]
    for count, variance in ((16, out.var(axis=0, ddof=1)),
                            (15, np.full(2, out[:15].var(axis=0, ddof=1).mean()))):  # fmt: skip
        z = (np.array([3.0, 3.0]) - out[:count].mean(axis=0)) / np.sqrt(variance)
        assert lira_offline([3.0, 3.0], out[:count]) == pytest.approx(-norm.logsf(z))


def test_lira_is_one_sided() -> None:
    """A record that the target knows worse than the out models is no member; two-sided is wrong."""
    out = [[-1.0] * 3, [1.0] * 3]
    low, middle, high = lira_offline([-5.0, 0.0, 5.0], out)
    assert low < middle < high
    assert low == pytest.approx(0.0, abs=1e-3)


def test_lira_does_not_saturate() -> None:
    """Phi is 1.0 in floating point beyond 8.3 deviations, where members differ still."""
    found = lira_offline([10.0, 40.0, 1000.0], [[-1.0] * 3, [1.0] * 3])
    assert np.isfinite(found).all()
    assert (np.diff(found) > 0.0).all()


@given(st.lists(st.floats(-50.0, 50.0), min_size=2, max_size=8, unique=True))
def test_lira_keeps_the_order(values: list[float]) -> None:
    """With the same out models the score rises with the statistic."""
    ordered = np.sort(values)
    found = lira_offline(ordered, np.array([[-20.0], [20.0]]) * np.ones(ordered.size))
    assert (np.diff(found) >= 0.0).all()


def test_lira_refuses() -> None:
    for target, out in (([1.0], [[1.0]]), ([1.0], [[1.0, 2.0]] * 3), ([1.0], [1.0, 2.0])):
        with pytest.raises(InvalidDataError):
            lira_offline(target, out)
    with pytest.raises(InvalidDataError, match="differ"):
        lira_offline([1.0], [[2.0], [2.0]])
    for bad in (math.nan, math.inf):
        with pytest.raises(PrecisionError, match="finite"):
            lira_offline([bad], [[1.0], [2.0]])


def naive_rmia(target: Any, out: Any, others: Any, others_out: Any, **settings: float) -> Any:
    """Returns the share by the formula, term by term."""
    a, gamma = settings["a"], settings["gamma"]
    shares = []
    for i, nll in enumerate(target):
        mean = np.mean([np.exp(-row[i]) for row in out])
        own = np.exp(-nll) / (((1 + a) * mean + 1 - a) / 2)
        wins = 0
        for j, other in enumerate(others):
            mean = np.mean([np.exp(-row[j]) for row in others_out])
            wins += own / (np.exp(-other) / (((1 + a) * mean + 1 - a) / 2)) >= gamma
        shares.append(wins / len(others))
    return np.array(shares)


def test_rmia_by_hand() -> None:
    """P_out = 1/4 and a = 0: P = 5/8; ratio 4/5 against 1/5, 4/5 and 8/5: two of three."""
    quarter = math.log(4.0)
    others = [math.log(8.0), math.log(2.0), 0.0]
    found = rmia_offline([math.log(2.0)], [[quarter]], others, [[quarter] * 3], a=0.0)
    assert found == pytest.approx([2 / 3])
    strict = rmia_offline([math.log(2.0)], [[quarter]], others, [[quarter] * 3], a=0.0, gamma=2.0)
    assert strict == pytest.approx([1 / 3])


@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("gamma", [1.0, 1.5])
def test_rmia_is_the_formula(a: float, gamma: float) -> None:
    generator = np.random.default_rng(1)
    target, out = generator.gamma(3.0, size=7), generator.gamma(3.0, size=(4, 7))
    others, others_out = generator.gamma(3.0, size=30), generator.gamma(3.0, size=(4, 30))
    found = rmia_offline(target, out, others, others_out, a=a, gamma=gamma)
    assert found == pytest.approx(naive_rmia(target, out, others, others_out, a=a, gamma=gamma))


def test_rmia_in_log_space() -> None:
    """Losses of thousands of nats do not underflow; with a = 1 only ratios matter."""
    found = rmia_offline([2000.0, 3000.0], [[2500.0, 2500.0]], [2500.0], [[2500.0]], a=1.0)
    assert found.tolist() == [1.0, 0.0]


def test_rmia_refuses() -> None:
    good: tuple[Any, ...] = ([1.0], [[1.0]], [1.0], [[1.0]])
    for changes in ({"a": 1.1}, {"a": math.nan}, {"gamma": 0.9}, {"gamma": math.inf}):
        with pytest.raises(InvalidParameterError):
            rmia_offline(*good, **changes)
    with pytest.raises(InvalidDataError, match="shape"):
        rmia_offline([1.0], [[1.0, 2.0]], [1.0], [[1.0]])
    with pytest.raises(PrecisionError, match="finite"):
        rmia_offline([1.0], [[1.0]], [math.nan], [[1.0]])


def test_differences_by_hand() -> None:
    assert neighbourhood(2.0, [3.0, 4.0]) == 1.5
    assert self_prompt_calibration(2.0, 2.5) == 0.5
    assert user_score([-1.0, -2.0], [-2.0, -5.0]) == 2.0
    for call in (
        lambda: neighbourhood(math.nan, [1.0]),
        lambda: neighbourhood(1.0, [math.inf]),
        lambda: self_prompt_calibration(1.0, math.nan),
        lambda: user_score([math.nan], [1.0]),
    ):
        with pytest.raises(PrecisionError, match="finite"):
            call()
    for refused in (
        lambda: neighbourhood(1.0, []),
        lambda: user_score([], []),
        lambda: user_score([1.0], [1.0, 2.0]),
    ):
        with pytest.raises(InvalidDataError):
            refused()


@given(
    ids=st.lists(st.integers(0, 9), min_size=2, max_size=30),
    share=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_perturbed_copies(ids: list[int], share: float, seed: int, data: st.DataObject) -> None:
    """So many scored tokens differ as were asked for, all from the vocabulary; the rest stays."""
    first = data.draw(st.integers(0, len(ids) - 1))
    vocabulary = data.draw(st.lists(st.integers(0, 9), min_size=2, unique=True))
    copies = perturb_tokens(ids, vocabulary, 3, share, seed, first_scored=first)
    expected = max(1, math.floor(share * (len(ids) - first) * (1.0 + 1e-15)))
    for copy in copies:
        changed = [i for i, (old, new) in enumerate(zip(ids, copy, strict=True)) if old != new]
        assert len(changed) == expected
        assert all(i >= first and copy[i] in vocabulary for i in changed)
    assert copies == perturb_tokens(ids, vocabulary, 3, share, seed, first_scored=first)


def test_perturbations_are_uniform() -> None:
    """Each other token equally often: 4 of 4, each within 5.3 deviations (false failure 1e-6)."""
    copies = perturb_tokens([0, 2], [0, 1, 2, 3, 4], 8000, 1.0, seed=3)
    counts = np.bincount([copy[1] for copy in copies], minlength=5)
    assert counts[2] == 0
    assert (np.abs(counts[[0, 1, 3, 4]] - 2000) < 5.3 * math.sqrt(8000 * 3 / 16)).all()
    assert all(copy[0] == 0 for copy in copies)


def test_perturbation_refuses() -> None:
    for vocabulary, copies, share, seed in (
        ([1, 1], 1, 0.5, 0),
        ([1, 2], 0, 0.5, 0),
        ([1, 2], 1, 0.0, 0),
        ([1, 2], 1, math.nan, 0),
        ([1, 2], 1, 0.5, -1),
    ):
        with pytest.raises(InvalidParameterError):
            perturb_tokens([1, 2], vocabulary, copies, share, seed)
    with pytest.raises(InvalidParameterError, match="first_scored"):
        perturb_tokens([1], [1, 2], 1, 0.5, 0)


def test_users_are_drawn_and_not_rows() -> None:
    """A thousand equal rows of a user say no more than one: the interval stays as wide."""
    generator = np.random.default_rng(5)
    members, nonmembers = generator.normal(0.5, 1.0, 12), generator.normal(0.0, 1.0, 12)
    once = [[value] for value in members], [[value] for value in nonmembers]
    often = [[value] * 1000 for value in members], [[value] * 1000 for value in nonmembers]
    narrow = user_interval(*once, auc, seed=1, num_resamples=400)
    assert narrow == pytest.approx(user_interval(*often, auc, seed=1, num_resamples=400))
    lower, upper = narrow
    assert upper - lower > 0.2
    assert lower <= auc(members, nonmembers) <= upper
    wider = user_interval(*once, auc, seed=1, num_resamples=400, significance=0.01)
    assert wider[0] <= lower <= upper <= wider[1]


def test_user_interval_refuses() -> None:
    two = [[1.0], [2.0]]
    with pytest.raises(InvalidDataError, match="2 users"):
        user_interval([[1.0]], two, auc, seed=0)
    with pytest.raises(InvalidDataError, match="at least one number"):
        user_interval(two, [[1.0], []], auc, seed=0)
    with pytest.raises(PrecisionError, match="finite"):
        user_interval(two, [[1.0], [math.nan]], auc, seed=0)
    with pytest.raises(PrecisionError, match="statistic"):
        user_interval(two, two, lambda *_: math.nan, seed=0)
    for changes in ({"num_resamples": 5}, {"significance": 0.0}, {"significance": math.nan}):
        with pytest.raises(InvalidParameterError):
            user_interval(two, two, auc, seed=0, **changes)
