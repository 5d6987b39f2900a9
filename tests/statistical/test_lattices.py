"""The predicted loss is the mean loss of weights that are uniform modulo the lattice."""

from __future__ import annotations

import math

import numpy as np

from helpers_lattices import make_gram, quadratic_losses
from sordino.lattices import compute_pivots, loss_bound_upper, loss_estimate, nearest_plane

FALSE_FAILURE_RATE = 1e-6


def test_a_third_of_the_bound_on_average() -> None:
    """Hoeffding: the mean of losses in [0, bound] misses the estimate by 2.6% of the bound or less.

    Weights s u with u uniform in [0, 1)^n are uniform modulo the lattice, so residuals are
    independent and uniform. Negative control: rounding every weight loses far more.
    """
    num_rows, columns = 10_000, 12
    rng = np.random.default_rng(20240611)
    gram = make_gram("inputs", columns, rng)
    scales = rng.uniform(0.2, 2.0, size=columns)
    weights = scales * rng.uniform(size=(num_rows, columns))
    pivots = compute_pivots(gram)
    bound, estimate = loss_bound_upper(scales, pivots)[0], loss_estimate(scales, pivots)[0]
    margin = bound * math.sqrt(math.log(2.0 / FALSE_FAILURE_RATE) / (2.0 * num_rows))
    losses = quadratic_losses(weights, gram, scales, nearest_plane(weights, gram, scales))
    assert abs(losses.mean() - estimate) <= margin
    rounded = quadratic_losses(weights, gram, scales, np.rint(weights / scales))
    assert abs(rounded.mean() - estimate) > margin
