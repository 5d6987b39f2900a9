"""Grams of many kinds, and oracles for rounding in a lattice that share no code with it."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]
    Exact = list[list[Fraction]]

GRAM_KINDS = ("inputs", "ill-conditioned", "rank-deficient", "outliers", "dead", "diagonal")


def make_gram(kind: str, columns: int, rng: np.random.Generator) -> Matrix:
    """A Gram matrix of one of the kinds that layers show."""
    mixing = np.eye(columns) + rng.normal(size=(columns, columns))
    inputs = rng.normal(size=(3 * columns, columns)) @ mixing
    if kind == "rank-deficient":
        inputs = inputs[: columns // 2]
    if kind == "outliers":  # a few columns far larger than the others
        inputs *= np.exp(3.0 * rng.normal(size=columns))
    if kind == "dead":
        inputs[:, rng.integers(columns)] = 0.0
    if kind == "ill-conditioned":
        axes, _ = np.linalg.qr(rng.normal(size=(columns, columns)))
        inputs = np.geomspace(1.0, 1e-4, columns)[:, None] * axes  # condition number 1e8
    if kind == "diagonal":
        return np.diag(rng.uniform(0.1, 3.0, size=columns))
    return inputs.T @ inputs


def clamping_counterexample(columns: int) -> tuple[Matrix, Matrix]:
    """Weights and Gram matrix where limits 0 and 1 make GPTQ far worse than nearest.

    The construction of arXiv:2307.13304 (supplement, finite grid), with c = 0.01.
    """
    c = 0.01
    gram = np.ones((columns, columns)) + np.eye(columns)
    gram[-1, -1] = 1.0
    for along in (gram[0], gram[:, 0]):
        along[1:-1] += 2 * c
        along[-1] += c
    gram[0, 0] += 4 * c + columns * c * c
    return 0.499 + 0.002 * (np.arange(columns) % 2)[None, :], gram


def quadratic_losses(weights: Matrix, gram: Matrix, scales: Matrix, codes: Matrix) -> Matrix:
    """Each row's (w - s z)^T H (w - s z)."""
    errors = weights - scales * codes
    return np.array([error @ gram @ error for error in errors])


def smallest_loss(weights: Matrix, gram: Matrix, scales: Matrix, most: float) -> Matrix:
    """Each row's smallest loss over all codes, given that some codes have a loss of `most`."""
    reach = np.sqrt(most * np.diag(np.linalg.inv(gram)))  # |w_i - s_i z_i| cannot be larger
    best = []
    for row, steps in zip(weights, scales, strict=True):
        ranges = [
            np.arange(np.ceil((w - r) / s), np.floor((w + r) / s) + 1)
            for w, r, s in zip(row, reach, steps, strict=True)
        ]
        errors = row - steps * np.array(list(product(*ranges)))
        best.append(float(np.einsum("ki,ij,kj->k", errors, gram, errors).min()))
    return np.array(best)


def exact_codes(
    weights: Matrix, gram: Matrix, scales: Matrix, limits: tuple[int, int] | None
) -> list[list[int]]:
    """GPTQ in rational arithmetic, by conditional minimization: no factor, no inverse, no ulp.

    Before column i is rounded, the columns from i on stand where the loss is smallest given the
    columns before it, which are rounded already.
    """
    H = [[Fraction(x) for x in row] for row in gram.tolist()]
    found = []
    for row, steps in zip(weights.tolist(), scales.tolist(), strict=True):
        w, s = [Fraction(x) for x in row], [Fraction(x) for x in steps]
        codes: list[int] = []
        for i in range(len(w)):
            errors = [w[j] - s[j] * codes[j] for j in range(i)]
            rest = range(i, len(w))
            right = [sum((H[k][j] * errors[j] for j in range(i)), Fraction(0)) for k in rest]
            shift = _solve([[H[k][j] for j in rest] for k in rest], right)
            code = round((w[i] + shift[0]) / s[i])  # Python rounds ties of fractions to even
            codes.append(code if limits is None else min(max(code, limits[0]), limits[1]))
        found.append(codes)
    return found


def _solve(matrix: Exact, right: list[Fraction]) -> list[Fraction]:
    """Gauss elimination of a positive definite system over the rational numbers."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size = len(rows)
    for k in range(size):
        rows[k] = [x / rows[k][k] for x in rows[k]]
        for i in range(size):
            if i != k:
                rows[i] = [x - rows[i][k] * y for x, y in zip(rows[i], rows[k], strict=True)]
    return [row[-1] for row in rows]
