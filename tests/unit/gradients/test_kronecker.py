"""Kronecker directions: +-1 matrices of rank one, projected from factors and added up in blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sordino.gradients import kronecker as kronecker_module
from sordino.gradients.direction_sets import make_direction_set
from sordino.gradients.hadamard import padded_length
from sordino.gradients.kronecker import KroneckerDirections, _shuffled, matrix_shape

SHAPES = {"matrix": (24, 10), "vector": (7,), "tall": (1100, 3), "cube": (4, 3, 2), "number": ()}
STEP = 3
K = 40


def make(num_directions: int = K, seed: int = 5) -> KroneckerDirections:
    directions = make_direction_set("kronecker", seed, SHAPES, num_directions)
    assert isinstance(directions, KroneckerDirections)
    return directions


def by_tensor(flat: np.ndarray) -> dict[str, np.ndarray]:
    """Returns a flat direction cut into matrices."""
    sizes = [math.prod(shape) for shape in SHAPES.values()]
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    return {n: p.reshape(matrix_shape(s)) for (n, s), p in zip(SHAPES.items(), parts, strict=True)}


def of_tensor(name: str, directions: KroneckerDirections, step: int = STEP) -> np.ndarray:
    """Returns all directions on one tensor, shape (K, rows, columns)."""
    rows = [by_tensor(directions.direction(step, k))[name] for k in range(K)]
    return np.stack(rows).astype(np.float64)


@pytest.mark.parametrize("name", SHAPES)
def test_every_direction_is_a_rank_one_matrix_of_signs(name: str) -> None:
    """+-1 everywhere, and every row is the first row or its opposite."""
    for matrix in of_tensor(name, make()):
        assert set(np.unique(matrix)) <= {-1.0, 1.0}
        assert np.array_equal(
            matrix * matrix[:, :1], np.broadcast_to(matrix[0] * matrix[0, 0], matrix.shape)
        )


@pytest.mark.parametrize("name", ["matrix", "tall"])
def test_directions_of_a_matrix_are_distinct(name: str) -> None:
    """While there are pairs enough, no direction is another one or its opposite."""
    flat = of_tensor(name, make()).reshape(K, -1)
    products = np.abs(flat @ flat.T)
    assert (products[~np.eye(K, dtype=bool)] < flat.shape[1]).all()


def test_directions_are_orthogonal_over_powers_of_two() -> None:
    """Distinct pairs of columns of two Hadamard matrices have inner product 0."""
    directions = make_direction_set("kronecker", 1, {"w": (16, 8)}, 128)
    rows = np.stack([directions.direction(0, k) for k in range(128)]).astype(np.int64)
    assert np.array_equal(rows @ rows.T, 128 * np.eye(128, dtype=np.int64))


def test_vectors_repeat_with_other_signs() -> None:
    """A vector of 7 has 8 columns: 40 directions use each about five times, in both signs."""
    rows = of_tensor("vector", make()).reshape(K, 7)
    assert len(np.unique(np.abs(rows.cumsum(axis=1)), axis=0)) > 1
    assert len({tuple(row * row[0]) for row in rows}) == 8
    assert {row[0] for row in rows[::8]} == {-1.0, 1.0}


def test_steps_seeds_and_tensors_have_directions_of_their_own() -> None:
    """Another step, seed or name gives other signs and other pairs; the same gives the same."""
    first = of_tensor("matrix", make())
    assert np.array_equal(first, of_tensor("matrix", make()))
    assert not np.array_equal(first, of_tensor("matrix", make(), step=STEP + 1))
    assert not np.array_equal(first, of_tensor("matrix", make(seed=6)))
    twins = make_direction_set("kronecker", 5, {"a": (16, 8), "b": (16, 8)}, 1)
    whole = twins.direction(0, 0)
    assert not np.array_equal(whole[:128], whole[128:])


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 7, 12])
def test_places_are_a_permutation(bits: int) -> None:
    """2**bits places are all different, and then they repeat."""
    keys = np.random.default_rng(0).integers(0, 2**63, 6).astype(np.uint64)
    places = _shuffled(2 ** (bits + 1), bits, keys)
    assert np.array_equal(np.sort(places[: 2**bits]), np.arange(2**bits))
    assert np.array_equal(places[: 2**bits], places[2**bits :])


def test_places_are_spread_evenly() -> None:
    """4,096 of 2**21 places: rows and columns are used about equally often (5 sigma)."""
    keys = np.random.default_rng(1).integers(0, 2**63, 6).astype(np.uint64)
    places = _shuffled(4096, 21, keys)
    for bit in range(21):
        share = ((places >> np.uint64(bit)) & np.uint64(1)).mean()
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(4096)
    counts = np.bincount((places >> np.uint64(15)).astype(np.int64), minlength=64)
    assert (np.abs(counts - 64) < 5 * 8).all()


def test_factors_give_the_projection_of_their_product() -> None:
    """sum_n (left_n . u_k)(right_n . v_k) is the inner product with sum_n left_n right_n^T."""
    generator = torch.Generator().manual_seed(0)
    directions = make()
    for name, shape in SHAPES.items():
        rows, columns = matrix_shape(shape)
        left = torch.randn(6, rows, generator=generator)
        right = torch.randn(6, columns, generator=generator)
        found = directions.left(STEP, name, left) * directions.right(STEP, name, right)
        gradient = (left.T @ right).double().numpy()
        expected = (of_tensor(name, directions) * gradient).sum(axis=(1, 2))
        assert np.allclose(found.sum(dim=0), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        whole = directions.project_tensor(STEP, name, torch.from_numpy(gradient).float()[None])
        assert np.allclose(whole[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["matrix", "tall"])
def test_left_factors_at_rows_are_those_of_one_hot_rows(name: str) -> None:
    """An embedding's one-hot factor needs no row of the vocabulary's length; exact."""
    directions, rows = make(), SHAPES[name][0]
    indices = torch.tensor([0, 3, rows - 1, 3])
    one_hot = torch.nn.functional.one_hot(indices, rows).float()
    assert torch.equal(
        directions.left_at(STEP, name, indices), directions.left(STEP, name, one_hot)
    )


def test_rows_beyond_the_small_hadamard_matrix() -> None:
    """Row numbers of 17 bits: both halves of the number count."""
    directions = make_direction_set("kronecker", 2, {"embedding": (70_000, 2)}, 5)
    indices = torch.tensor([0, 511, 512, 65_535, 65_536, 69_999])
    found = directions.left_at(0, "embedding", indices)
    for k in range(5):
        matrix = torch.from_numpy(directions.direction(0, k)).view(70_000, 2).float()
        right = directions.right(0, "embedding", torch.tensor([[1.0, 0.0]]))[0, k]
        assert torch.equal(found[:, k] * right, matrix[indices, 0])


@pytest.mark.parametrize("entries", [1, 16, 64, 1024, 2**13])
def test_combining_in_blocks_is_combining_at_once(
    entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few rows fit into a block, the sum is the same whole numbers."""
    weights = np.random.default_rng(0).integers(-(2**30), 2**30, K).astype(np.int32)
    directions = make()
    expected = directions.combine(STEP, weights)
    monkeypatch.setattr(kronecker_module, "_ENTRIES_AT_ONCE", entries)
    assert np.array_equal(directions.combine(STEP, weights), expected)
    exact = sum(
        int(w) * directions.direction(STEP, k).astype(object) for k, w in enumerate(weights)
    )
    assert [int(x) for x in expected] == exact.tolist()
    for name, shape in SHAPES.items():
        height, width = (padded_length(n) for n in matrix_shape(shape))
        starts = [first for first, _ in directions.combine_tensor(STEP, weights, name)]
        assert starts == list(
            range(0, matrix_shape(shape)[0], min(height, max(1, entries // width)))
        )


def test_projecting_in_parts_is_projecting_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records whose transforms do not fit together are taken one after another."""
    gradients = torch.randn(5, 240, generator=torch.Generator().manual_seed(0))
    expected = make().project_tensor(STEP, "matrix", gradients)
    monkeypatch.setattr(kronecker_module, "_ENTRIES_AT_ONCE", 1)
    found = make().project_tensor(STEP, "matrix", gradients)
    assert torch.allclose(found, expected, rtol=0, atol=1e-4)


def test_length_and_bound() -> None:
    """A direction has as many signs as there are numbers, so its norm is known."""
    directions = make(1)
    size = sum(math.prod(shape) for shape in SHAPES.values())
    assert directions.max_norm == math.sqrt(size)
    assert directions.direction(0, 0).shape == (size,)
    assert directions.unit == 1.0
