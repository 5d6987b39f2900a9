"""Allocation: the optimum against all choices, and the rules that it is compared with."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from helpers_lattices import make_gram
from sordino.core.errors import InvalidParameterError
from sordino.quantization import certify_layer, quantize_rows
from sordino.quantization.allocation import (
    allocate,
    allocate_boosted,
    allocate_random,
    boost_order,
    kurtosis,
    predicted_costs,
    sensitivity,
)


def total(table: np.ndarray, choices: np.ndarray) -> float:
    return sum(table[layer, choice] for layer, choice in enumerate(choices))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    share=st.floats(0.0, 1.1),
    unit=st.sampled_from([1, 7, 4096]),
    spread=st.sampled_from([0.0, 1.0, 8.0]),
)
def test_optimum_is_that_of_all_choices(
    seed: int, shape: tuple[int, int], share: float, unit: int, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.normal(size=shape) * np.exp(spread * rng.normal(size=shape))
    num_bytes = unit * rng.integers(0, 200, size=shape)
    least, most = int(num_bytes.min(axis=1).sum()), int(num_bytes.max(axis=1).sum())
    budget = least + int(share * (most - least))
    found = allocate(costs, num_bytes, budget)
    assert total(num_bytes, found) <= budget
    every = product(range(shape[1]), repeat=shape[0])
    best = min(total(costs, c) for c in every if total(num_bytes, c) <= budget)
    # The solver stops 1e-6 short of whole numbers, in units of the largest difference.
    assert total(costs, found) <= best + 1e-6 * np.ptp(costs, axis=1).max() + 1e-12


def test_least_bytes_are_named() -> None:
    sizes = np.array([[1000, 2000], [3000, 4000]])
    with pytest.raises(InvalidParameterError, match="need 4,000 bytes"):
        allocate(np.zeros((2, 2)), sizes, 3999)
    assert allocate([[9.0, 0.0], [9.0, 0.0]], sizes, 4000).tolist() == [0, 0]
    with pytest.raises(InvalidParameterError, match="need 4,000 bytes"):
        allocate_random(sizes, 3999, seed=0)


def test_model_of_many_layers_to_the_byte() -> None:
    """210 layers, 4 choices: a budget of exactly two raised layers raises the dearest two."""
    rng = np.random.default_rng(0)
    sizes = np.tile([82_944 + 20_736, 165_888 + 20_736, 331_776 + 20_736, 663_552], (210, 1))
    costs = rng.uniform(1.0, 2.0, size=(210, 1)) * np.array([1.0, 0.5, 0.4, 0.39])
    budget = 210 * int(sizes[0, 0]) + 2 * int(sizes[0, 1] - sizes[0, 0])
    found = allocate(costs, sizes, budget)
    dearest = np.argsort(-costs[:, 0])[:2]
    assert sorted(np.flatnonzero(found)) == sorted(dearest)
    assert allocate(costs, sizes, budget - 1).sum() == 1


@pytest.mark.parametrize(
    ("costs", "sizes", "budget"),
    [
        ([[np.nan]], [[1]], 2),
        ([[np.inf]], [[1]], 2),
        ([[1.0]], [[1, 2]], 2),
        ([1.0], [1], 2),
        ([[1.0]], [[1.5]], 2),
        ([[1.0]], [[-1]], 2),
        ([[1.0]], [[1]], 2.5),
        ([[1.0]], [[1]], -1),
        ([[1.0]], [[1]], float("nan")),
    ],
)
def test_unclear_tables_are_refused(costs: object, sizes: object, budget: object) -> None:
    with pytest.raises(InvalidParameterError):
        allocate(costs, sizes, budget)


def test_boost_order_puts_jumps_first() -> None:
    """A layer that jumps out comes first, though another one's score is higher after a slope."""
    scores = np.linspace(3.0, 9.0, 40)
    scores[10] += 3.0
    order = boost_order(scores)
    assert order[0] == 10
    assert order[1:4].tolist() == [39, 38, 37]  # the rest by score
    assert sorted(order) == list(range(40))
    first = np.full(20, 3.0)
    first[0] = 50.0
    assert boost_order(first)[0] == 0
    assert boost_order([2.0]).tolist() == [0]
    assert boost_order([2.0, 5.0])[0] == 1
    with pytest.raises(InvalidParameterError):
        boost_order([1.0, float("nan")])


def test_layers_are_compared_within_their_kind() -> None:
    """Two kinds on different levels: the one outlying layer is found, level steps are none."""
    rng = np.random.default_rng(3)
    scores = np.where(np.arange(40) % 2 == 0, 3.0, 9.0) + 0.01 * rng.normal(size=40)
    scores[22] = 4.0
    kinds = ["q_proj", "k_proj"] * 20
    assert boost_order(scores, kinds)[0] == 22
    assert boost_order(scores)[0] != 22
    with pytest.raises(InvalidParameterError, match="kinds"):
        boost_order(scores, kinds[:-1])


def test_sensitivity_is_the_mean_squared_error_of_outputs() -> None:
    rng = np.random.default_rng(4)
    inputs, error = rng.normal(size=(30, 8)), rng.normal(size=(5, 8))
    loss = float(np.trace(error @ inputs.T @ inputs @ error.T))
    assert sensitivity(loss, 30, 5) == pytest.approx(float(np.mean((inputs @ error.T) ** 2)))
    with pytest.raises(InvalidParameterError, match="loss"):
        sensitivity(float("nan"), 30, 5)


def test_boosted_layers_get_what_the_budget_leaves() -> None:
    sizes = np.tile([10, 20, 40], (6, 1))
    scores = [3.0, 3.1, 9.0, 3.2, 3.1, 3.0]
    assert allocate_boosted(scores, sizes, 60).tolist() == [0] * 6
    assert allocate_boosted(scores, sizes, 70).tolist() == [0, 0, 1, 0, 0, 0]
    assert allocate_boosted(scores, sizes, 90, stops=2).tolist() == [0, 0, 2, 0, 0, 0]
    assert allocate_boosted(scores, sizes, 120).tolist() == [1] * 6  # the base is uniform
    assert allocate_boosted(scores, sizes, 10**6).tolist() == [2] * 6
    with pytest.raises(InvalidParameterError, match="must not fall"):
        allocate_boosted(scores, sizes[:, ::-1], 500)
    with pytest.raises(InvalidParameterError, match="stops"):
        allocate_boosted(scores, sizes, 500, stops=0)
    with pytest.raises(InvalidParameterError, match="scores"):
        allocate_boosted(scores[:5], sizes, 500)


def test_random_choices_use_equal_bytes() -> None:
    """Different seeds differ, the same seed does not, and little of the budget is left."""
    sizes = np.tile([10, 20, 40], (12, 1))
    found = [allocate_random(sizes, 300, seed=seed) for seed in range(6)]
    assert len({tuple(choices) for choices in found}) > 1
    assert all(290 < total(sizes, choices) <= 300 for choices in found)
    assert allocate_random(sizes, 300, seed=4).tolist() == found[4].tolist()


def test_optimum_beats_every_rule() -> None:
    """On costs of the layers, no rule within the budget is below the optimum."""
    rng = np.random.default_rng(1)
    sizes = np.tile([10, 20, 40], (12, 1)) * rng.integers(1, 5, size=(12, 1))
    costs = rng.exponential(size=(12, 1)) * np.array([16.0, 1.0, 0.01])
    budget = int(sizes[:, 1].sum() * 1.1)
    best = total(costs, allocate(costs, sizes, budget))
    for choices in (
        allocate_boosted(costs[:, 0], sizes, budget),
        *(allocate_random(sizes, budget, seed=seed) for seed in range(5)),
    ):
        assert total(sizes, choices) <= budget
        assert best <= total(costs, choices) + 1e-9


def test_kurtosis() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_t(5, size=(30, 40))
    assert kurtosis(weight) == pytest.approx(stats.kurtosis(weight, axis=None, fisher=False))
    assert kurtosis(weight * 1e-160) == pytest.approx(kurtosis(weight))
    assert kurtosis(np.zeros((3, 3))) == 1.0
    assert kurtosis(np.full((3, 3), 0.1)) == 1.0
    with pytest.raises(InvalidParameterError):
        kurtosis([[np.nan]])


def test_costs_come_from_certificates() -> None:
    """More bits cost less, keeping a layer costs nothing, and shares divide by the output."""
    rng = np.random.default_rng(2)
    rows = []
    for _ in range(2):
        weights, gram = rng.normal(size=(4, 8)), make_gram("inputs", 8, rng)
        row = []
        for bits in (2, 4, 8):
            low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            scales = np.abs(weights).max(axis=1, keepdims=True) / high
            codes = quantize_rows(weights, gram, scales, low, high)
            row.append(certify_layer(weights, gram, scales, codes, low=low, high=high))
        rows.append([*row, None])
    costs = predicted_costs(rows)
    assert costs[1, 1] == rows[1][1].predicted
    assert (np.diff(costs, axis=1) < 0).all()
    assert (costs[:, 3] == 0).all()
    assert np.allclose(predicted_costs(rows, [2.0, 4.0]), costs / [[2.0], [4.0]])
    with pytest.raises(InvalidParameterError, match="energies"):
        predicted_costs(rows, [1.0, 0.0])
    with pytest.raises(InvalidParameterError, match="same number"):
        predicted_costs([rows[0], rows[1][:2]])
