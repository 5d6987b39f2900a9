"""Direction sets: projecting, adding up and listing are the same directions, exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sordino.core.directions import DIRECTION_KINDS, DirectionStream
from sordino.core.errors import InvalidParameterError
from sordino.gradients.direction_sets import (
    ALL_DIRECTION_KINDS,
    AbstractDirectionSet,
    CoordinateDirections,
    HadamardDirections,
    IndependentDirections,
    make_direction_set,
)

SIZES = {"a.lora_B.weight": 24, "b.lora_B.weight": 7, "c.lora_B.weight": 50}
TOTAL = 81
STEP = 3


def all_directions(directions: AbstractDirectionSet) -> np.ndarray:
    """Returns every direction of the step as a row of whole numbers."""
    rows = [directions.direction(STEP, k) for k in range(directions.num_directions)]
    return np.stack(rows).astype(object)


@pytest.fixture(params=ALL_DIRECTION_KINDS)
def directions(request: pytest.FixtureRequest) -> AbstractDirectionSet:
    """40 directions: more than one block of 32."""
    return make_direction_set(request.param, 5, SIZES, 40)


def test_a_direction_covers_all_tensors(directions: AbstractDirectionSet) -> None:
    """Flat, whole numbers, of the right length, the same each time and another at each step."""
    first = directions.direction(STEP, 0)
    assert first.dtype.kind == "i"
    assert first.shape == (TOTAL,)
    assert np.array_equal(first, directions.direction(STEP, 0))
    assert not np.array_equal(first, directions.direction(STEP + 1, 0))
    assert not np.array_equal(first, directions.direction(STEP, 1))


def test_combine_is_the_exact_sum(directions: AbstractDirectionSet) -> None:
    """sum_k w_k z_k in Python's whole numbers, whatever the weights and their order."""
    rows = all_directions(directions)
    rng = np.random.default_rng(0)
    for weights in (
        rng.choice([-1, 1], 40),
        rng.choice([-1, 0, 1], 40),
        rng.integers(-(2**30), 2**30, 40),
        np.zeros(40, dtype=np.int64),
    ):
        total = directions.combine(STEP, weights.astype(np.int32))
        assert total.dtype == np.float64
        for order in (np.arange(40), rng.permutation(40)):
            exact = sum(int(weights[k]) * rows[k] for k in order)
            assert [int(x) for x in total] == exact.tolist()


def test_project_is_the_inner_product(directions: AbstractDirectionSet) -> None:
    """Gradients times directions times unit, for every record and direction."""
    gradients = torch.randn(5, TOTAL, generator=torch.Generator().manual_seed(1))
    rows = torch.from_numpy(all_directions(directions).astype(np.float64))
    expected = gradients.double() @ rows.T * directions.unit
    found = directions.project(STEP, gradients)
    assert found.dtype == torch.float32
    assert found.shape == (5, 40)
    assert torch.allclose(found.double(), expected, rtol=0, atol=1e-5 * expected.abs().max())


def test_project_and_combine_are_adjoint(directions: AbstractDirectionSet) -> None:
    """<g, sum_k w_k z_k> = sum_k w_k <g, z_k>: both see the same directions."""
    gradient = torch.randn(1, TOTAL, generator=torch.Generator().manual_seed(2))
    weights = np.random.default_rng(3).choice([-1, 1], 40).astype(np.int32)
    moved = directions.combine(STEP, weights) @ gradient[0].double().numpy() * directions.unit
    projected = directions.project(STEP, gradient)[0].double().numpy() @ weights
    assert moved == pytest.approx(projected, rel=1e-4)


def test_no_direction_is_longer_than_stated(directions: AbstractDirectionSet) -> None:
    """`max_norm` bounds every direction: clipped gradients have bounded contributions."""
    for k in range(40):
        norm = np.linalg.norm(directions.direction(STEP, k).astype(float)) * directions.unit
        assert norm <= directions.max_norm * (1 + 1e-12)


def test_projections_are_bounded_for_the_worst_gradient(directions: AbstractDirectionSet) -> None:
    """A gradient along a direction itself attains at most norm * max_norm."""
    for k in (0, 31, 32, 39):
        direction = torch.from_numpy(directions.direction(STEP, k)).float()[None]
        gradient = direction / torch.linalg.vector_norm(direction)
        assert directions.project(STEP, gradient).abs().max() <= directions.max_norm * (1 + 1e-6)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_independent_directions_are_the_public_stream(kind: str) -> None:
    """Tensor by tensor, in the order of the names given: what any replay regenerates."""
    stream = DirectionStream(5, kind)
    directions = IndependentDirections(stream, SIZES, 3)
    expected = np.concatenate([stream.integers(STEP, 2, n, s) for n, s in SIZES.items()])
    assert np.array_equal(directions.direction(STEP, 2), expected)
    assert directions.unit == stream.unit


def test_a_direction_does_not_depend_on_how_many_there_are() -> None:
    """For independent kinds, direction k is the same among 3 and among 40."""
    for kind in DIRECTION_KINDS:
        few, many = (make_direction_set(kind, 5, SIZES, n) for n in (3, 40))
        for k in range(3):
            assert np.array_equal(few.direction(STEP, k), many.direction(STEP, k))


def test_coordinates_are_single_numbers() -> None:
    """Every trainable number once where K is their number; others are refused beyond it."""
    directions = CoordinateDirections(9, SIZES, TOTAL)
    rows = all_directions(directions).astype(np.int64)
    assert np.array_equal(np.sort(rows.argmax(axis=1)), np.arange(TOTAL))
    assert rows.sum() == np.abs(rows).sum() == TOTAL
    with pytest.raises(InvalidParameterError, match="directions_per_step must be"):
        CoordinateDirections(9, SIZES, TOTAL + 1)


def test_hadamard_directions_are_orthogonal_signs() -> None:
    """At a full power of two, K directions of +-1 with inner products 0, all different."""
    directions = HadamardDirections(9, {"w": 64}, 64)
    rows = all_directions(directions).astype(np.int64)
    assert set(np.unique(rows)) == {-1, 1}
    assert np.array_equal(rows @ rows.T, 64 * np.eye(64, dtype=np.int64))


@pytest.mark.parametrize("num_directions", [5, 16, 64])
def test_hadamard_directions_are_what_the_formula_says(num_directions: int) -> None:
    """z_k[i] = s[i] H[r_k, i mod L], L the padded number of directions; orthogonal if L divides."""
    directions = HadamardDirections(9, {"v": 100, "w": 156}, num_directions)
    length = 1 << (num_directions - 1).bit_length()
    signs, rows = directions._public(4)
    matrix = np.array([[(-1) ** (r & c).bit_count() for c in range(length)] for r in rows.tolist()])
    expected = np.tile(matrix, 256 // length) * signs.numpy()
    found = np.stack([directions.direction(4, k) for k in range(num_directions)])
    assert np.array_equal(found, expected)
    products = found.astype(np.int64) @ found.T
    assert np.array_equal(products, 256 * np.eye(num_directions, dtype=np.int64))


def test_hadamard_keeps_the_norm_of_a_gradient() -> None:
    """All projections together: sum of squares <= padded length * norm squared.

    The joint sensitivity of K releases is therefore at most clip * sqrt(padded length), not K
    times the bound of one (defect 13).
    """
    directions = HadamardDirections(9, SIZES, 128)  # 81 numbers are padded to 128
    gradient = torch.randn(1, TOTAL, generator=torch.Generator().manual_seed(0))
    energy = (directions.project(STEP, gradient).double() ** 2).sum()
    assert energy == pytest.approx(128 * float((gradient.double() ** 2).sum()), rel=1e-5)


def test_hadamard_rows_and_signs_change_every_step() -> None:
    """Neither the chosen rows nor the signs of two steps are equal."""
    directions = HadamardDirections(9, {"w": 256}, 16)
    signs, rows = directions._public(0)
    other_signs, other_rows = directions._public(1)
    assert len(set(rows.tolist())) == 16
    assert not torch.equal(signs, other_signs)
    assert not torch.equal(rows, other_rows)


@pytest.mark.parametrize("num_directions", [0, -1, 129, 1.0, math.nan])
def test_hadamard_has_no_more_rows_than_its_length(num_directions: int) -> None:
    """81 trainable numbers are padded to 128, so there are 128 directions a step."""
    with pytest.raises(InvalidParameterError, match="directions_per_step must be"):
        HadamardDirections(0, SIZES, num_directions)


def test_hadamard_is_for_small_sets() -> None:
    """A full model is refused with a remedy, before anything of that size is made."""
    with pytest.raises(InvalidParameterError, match="use direction_kind rademacher"):
        HadamardDirections(0, {"w": 2**24 + 1}, 1)
    assert HadamardDirections(0, {"w": 2**24}, 1).num_directions == 1


def test_unknown_kinds_and_counts_are_refused() -> None:
    """A misspelt kind is not a default, and zero directions would release nothing."""
    with pytest.raises(InvalidParameterError, match="direction_kind must be one of"):
        make_direction_set("sparse", 0, SIZES, 1)
    for kind in ALL_DIRECTION_KINDS:
        with pytest.raises(InvalidParameterError, match="directions_per_step must be"):
            make_direction_set(kind, 0, SIZES, 0)
