"""Private Gram matrices: sensitivity by neighbours, the isometry, projection, fail closed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest

from helpers_streams import BrokenStream, seeded_stream
from sordino.accounting.composition import compose_epsilon, gram_noise_multiplier
from sordino.core.errors import (
    BudgetExceededError,
    EntropyError,
    InvalidDataError,
    InvalidParameterError,
)
from sordino.ledger.releases import ReleaseLedger
from sordino.mechanisms import private_gram as module
from sordino.mechanisms.private_gram import (
    PrivateGrams,
    private_gram,
    project_to_positive_semidefinite,
    sum_by_unit,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray


def some_grams(count: int, size: int, seed: int) -> list[NDArray[np.float64]]:
    """Returns Gram matrices of sequences of different lengths and sizes, also extreme ones."""
    rng = np.random.default_rng(seed)
    activations = [
        rng.standard_normal((int(rng.integers(1, 9)), size)) * 10.0 ** rng.integers(-3, 4)
        for _ in range(count)
    ]
    return [x.T @ x for x in activations]


def clipped_sum(grams: Iterable[NDArray[Any]], size: int, clip_norm: float) -> NDArray[np.float64]:
    """Returns what the noise is added to."""
    sums = PrivateGrams(
        {"layer": size}, clip_norm=clip_norm, noise_multiplier=1.0, entropy=seeded_stream(0)
    )
    for gram in grams:
        sums.add({"layer": gram})
    assert sums._sums is not None
    return sums._sums["layer"]


def embed(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the coordinates in which the noise has one deviation: off-diagonals times sqrt(2)."""
    rows, columns = np.triu_indices(len(matrix))
    return matrix[rows, columns] * np.where(rows == columns, 1.0, math.sqrt(2.0))


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("clip_norm", [1e-3, 1.0, 1e5])
def test_a_unit_moves_the_sum_by_at_most_the_clip_norm(size: int, clip_norm: float) -> None:
    """Every neighbour of several data sets: the embedded distance, which is Frobenius'.

    Some unit comes within rounding of the clip norm, so a smaller sensitivity would be wrong.
    """
    largest = 0.0
    for seed in range(5):
        grams = some_grams(8, size, seed)
        total = clipped_sum(grams, size, clip_norm)
        for left_out in range(len(grams)):
            others = clipped_sum(grams[:left_out] + grams[left_out + 1 :], size, clip_norm)
            moved = total - others
            assert np.linalg.norm(embed(moved)) == pytest.approx(np.linalg.norm(moved), rel=1e-12)
            largest = max(largest, float(np.linalg.norm(embed(moved))))
    assert largest <= clip_norm * (1 + 1e-9)
    assert largest > clip_norm * (1 - 1e-9)


def test_small_matrices_are_not_changed() -> None:
    """Clipping scales down, never up; what is added is exactly symmetric."""
    small, large = np.array([[0.3, 0.1], [0.1, 0.2]]), np.diag([30.0, 40.0])
    assert np.allclose(clipped_sum([small], 2, 1.0), small, rtol=1e-15)
    assert np.allclose(clipped_sum([large], 2, 1.0), np.diag([0.6, 0.8]), rtol=1e-15)
    assert (clipped_sum([np.zeros((2, 2))], 2, 1.0) == 0.0).all()
    huge = np.full((2, 2), 1e200)  # its squares overflow
    assert np.allclose(clipped_sum([huge], 2, 1.0), np.full((2, 2), 0.5), rtol=1e-15)
    rough = np.array([[1.0, 1.0 + 1e-7], [1.0, 2.0]], dtype=np.float64)
    total = clipped_sum([rough], 2, 10.0)
    assert (total == total.T).all()


def test_noise_is_the_embedded_normal_numbers() -> None:
    """The k-th normal number is the k-th coordinate of the embedding, times the deviation."""
    normals = module.standard_normals(seeded_stream(3), 10).numpy()
    noise = module._symmetric_noise(seeded_stream(3), 4, 2.5)
    assert (noise == noise.T).all()
    assert np.allclose(embed(noise), 2.5 * normals, rtol=1e-14)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_projection_is_the_nearest_positive_matrix(size: int) -> None:
    """Positive ones stay; of others the negative part goes, and no positive one is nearer."""
    rng = np.random.default_rng(size)
    positive = some_grams(1, size, size)[0]
    assert np.allclose(project_to_positive_semidefinite(positive), positive, rtol=1e-9, atol=1e-12)
    matrix = rng.standard_normal((size, size))
    matrix = matrix + matrix.T
    nearest = project_to_positive_semidefinite(matrix)
    assert (nearest == nearest.T).all()
    assert np.linalg.eigvalsh(nearest).min() > -1e-12
    distance = np.linalg.norm(nearest - matrix)
    negative = np.minimum(np.linalg.eigvalsh(matrix), 0.0)
    assert distance == pytest.approx(np.linalg.norm(negative), rel=1e-9, abs=1e-12)
    for other in some_grams(20, size, 1):
        assert np.linalg.norm(other - matrix) >= distance * (1 - 1e-12)


def test_without_noise_it_is_the_sum() -> None:
    """The function is the clipped sum plus noise, and nothing else, on positive sums."""
    grams = some_grams(6, 4, 5)
    with mock.patch.object(module, "_symmetric_noise", return_value=0.0):
        found = private_gram(grams, clip_norm=2.0, noise_multiplier=1.0, entropy=seeded_stream(0))
    assert np.allclose(found, clipped_sum(grams, 4, 2.0), rtol=1e-9, atol=1e-9)


def test_several_layers_are_one_release(tmp_path: Path) -> None:
    """One charge for all layers, at the target that the noise was calibrated for; once only."""
    sizes = {"q": 3, "k": 2, "up": 4}
    noise = gram_noise_multiplier(1.0, 1e-5, len(sizes))
    ledger = ReleaseLedger.open(
        tmp_path / "ledger.jsonl",
        target_epsilon=1.0,
        delta=1e-5,
        neighboring_relation="ADD_OR_REMOVE_ONE",
        privacy_unit="sequence",
    )
    settings = {"clip_norm": 1.0, "noise_multiplier": noise, "ledger": ledger}
    sums = PrivateGrams(sizes, entropy=seeded_stream(1), **settings)
    sums.add({name: np.eye(size) for name, size in sizes.items()})
    released = sums.release()
    assert {name: matrix.shape[0] for name, matrix in released.items()} == sizes
    assert ledger.epsilon_spent == compose_epsilon([sums.event], 1e-5)
    assert 0.99 < ledger.epsilon_spent <= 1.0
    with pytest.raises(InvalidParameterError, match="released"):
        sums.release()
    with pytest.raises(InvalidParameterError, match="released"):
        sums.add({name: np.eye(size) for name, size in sizes.items()})
    again = PrivateGrams(sizes, entropy=BrokenStream(), **settings)
    with pytest.raises(BudgetExceededError):  # and not EntropyError: nothing is drawn
        again.release()
    assert sums.describe()["num_grams"] == 3
    assert sums.describe()["noise_std"] == pytest.approx(noise)


def test_a_bad_unit_adds_nothing() -> None:
    """All its matrices are looked at before the first is added."""
    sums = PrivateGrams(
        {"a": 2, "b": 2}, clip_norm=1.0, noise_multiplier=1.0, entropy=seeded_stream(1)
    )
    good = np.eye(2)
    for bad in (np.full((2, 2), math.nan), np.diag([math.inf, 1.0]), np.array([[1.0, 0], [1, 1]])):
        with pytest.raises(InvalidDataError):
            sums.add({"a": good, "b": bad})
    for names in ({"a": good}, {"a": good, "b": good, "c": good}, {"a": good, "b": np.eye(3)}):
        with pytest.raises(InvalidParameterError):
            sums.add(names)
    assert sums._sums is not None
    assert all((total == 0.0).all() for total in sums._sums.values())


@pytest.mark.parametrize(
    "change",
    [
        {"clip_norm": 0.0},
        {"clip_norm": math.nan},
        {"clip_norm": math.inf},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": -1.0},
        {"sequence_grams": []},
        {"sequence_grams": [1.0]},
        {"sequence_grams": [np.zeros((0, 0))]},
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "sequence_grams": [np.eye(2)],
        "clip_norm": 1.0,
        "noise_multiplier": 1.0,
        "entropy": seeded_stream(2),
    }
    arguments |= change
    with pytest.raises(InvalidParameterError):
        private_gram(arguments.pop("sequence_grams"), **arguments)


def test_without_entropy_nothing_is_released() -> None:
    with pytest.raises(EntropyError):
        private_gram([np.eye(2)], clip_norm=1.0, noise_multiplier=1.0, entropy=BrokenStream())


def test_a_person_is_clipped_once() -> None:
    """Sequences of one unit are added before they are clipped; one that returns is refused."""
    grams = some_grams(5, 3, 9)
    owners = ["ann", "ann", "bob", "cem", "cem"]
    summed = list(sum_by_unit(zip(owners, grams, strict=True)))
    expected = [grams[0] + grams[1], grams[2], grams[3] + grams[4]]
    assert all((a == b).all() for a, b in zip(summed, expected, strict=True))
    assert list(sum_by_unit([])) == []
    with pytest.raises(InvalidDataError, match="behind each other"):
        list(sum_by_unit(zip(["ann", "bob", "ann"], grams[:3], strict=True)))
