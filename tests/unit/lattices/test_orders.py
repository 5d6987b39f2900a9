"""Orders of columns: what they are, what min-pivot achieves, and what it does not."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from helpers_lattices import make_gram
from sordino.core.errors import InvalidParameterError
from sordino.lattices import ORDERS, compute_order, compute_pivots


def pivot_sum(gram: np.ndarray, order: object) -> float:
    """The sum of pivots when columns are rounded in this order."""
    place = np.array(order)
    return float(compute_pivots(gram[np.ix_(place, place)]).sum())


def textbook_min_pivot(gram: np.ndarray) -> list[int]:
    """The smallest diagonal entry goes last; eliminate it; again."""
    schur, left, backwards = gram.copy(), list(range(len(gram))), []
    while left:
        chosen = min(reversed(left), key=lambda i: schur[i, i])
        schur = schur - np.outer(schur[:, chosen], schur[chosen]) / schur[chosen, chosen]
        left.remove(chosen)
        backwards.append(chosen)
    return backwards[::-1]


@pytest.mark.parametrize("columns", [1, 2, 9, 64, 65, 150])
def test_min_pivot_is_the_textbook_order(columns: int) -> None:
    """Blocks of columns make it fast and change nothing."""
    gram = make_gram("inputs", columns, np.random.default_rng(columns))
    assert compute_order(gram, "min-pivot").tolist() == textbook_min_pivot(gram)


def test_natural_and_activation() -> None:
    """First to last; largest diagonal entry first, equal ones in their natural order."""
    gram = np.diag([1.0, 3.0, 2.0, 3.0])
    assert compute_order(gram, "natural").tolist() == [0, 1, 2, 3]
    assert compute_order(gram, "activation").tolist() == [1, 3, 2, 0]
    assert compute_order(gram, "min-pivot").tolist() == [1, 3, 2, 0]
    for order in ORDERS:
        assert compute_order(np.eye(5), order).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(InvalidParameterError, match="order must be one of natural, activation"):
        compute_order(gram, "descending")


def test_min_pivot_with_two_and_three_columns() -> None:
    """Of two columns it is the best order; of three, never above activation order."""
    rng = np.random.default_rng(5)
    for _ in range(300):
        gram = make_gram("inputs", 2, rng)
        best = min(pivot_sum(gram, order) for order in permutations(range(2)))
        assert pivot_sum(gram, compute_order(gram)) <= best * (1 + 1e-12)
        gram = make_gram("inputs", 3, rng)
        activation = pivot_sum(gram, compute_order(gram, "activation"))
        assert pivot_sum(gram, compute_order(gram)) <= activation * (1 + 1e-12)


def test_min_pivot_is_greedy_not_optimal() -> None:
    """Four columns where activation order has a pivot sum 10% below that of min-pivot."""
    gram = np.array(
        [
            [4.0, -1.0, -2.0, 1.0],
            [-1.0, 3.0, -1.0, -3.0],
            [-2.0, -1.0, 3.0, 0.0],
            [1.0, -3.0, 0.0, 4.0],
        ]
    )
    assert pivot_sum(gram, compute_order(gram, "min-pivot")) == pytest.approx(7.4455, abs=1e-4)
    assert pivot_sum(gram, compute_order(gram, "activation")) == pytest.approx(6.6917, abs=1e-4)


def test_min_pivot_gains_on_correlated_inputs() -> None:
    """Sums of pivots below natural and, on average, below activation order."""
    rng = np.random.default_rng(6)
    shares = []
    for _ in range(30):
        gram = make_gram("inputs", 40, rng)
        ours = pivot_sum(gram, compute_order(gram))
        shares.append([ours / pivot_sum(gram, compute_order(gram, name)) for name in ORDERS[:2]])
    mean_natural, mean_activation = np.mean(shares, axis=0)
    assert mean_natural < 0.95
    assert mean_activation < 0.99


def test_a_singular_gram_has_orders_too() -> None:
    """It is damped first: every column gets one place."""
    gram = make_gram("rank-deficient", 12, np.random.default_rng(7))
    for order in ORDERS:
        assert sorted(compute_order(gram, order).tolist()) == list(range(12))
