"""Geometry metrics: known values, invariances, and matrices that have hardly any geometry."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from helpers_lattices import GRAM_KINDS, make_gram
from sordino.core.errors import InvalidParameterError
from sordino.quantization.certificate import certify_layer
from sordino.quantization.geometry import (
    LayerGeometry,
    collision_rate,
    linear_cka,
    logit_divergence,
    measure_layer,
    principal_angles,
    singular_value_shift,
    stable_rank,
)
from sordino.quantization.gptq import quantize_rows
from sordino.quantization.layers import QuantizedLayer

ROWS, COLUMNS, GROUP = 6, 8, 4


def quantize(weight: np.ndarray, bits: int = 4) -> QuantizedLayer:
    """Rounds to nearest on the grid of the largest weight."""
    groups = torch.tensor(weight).view(len(weight), -1, GROUP)
    high = 2 ** (bits - 1) - 1
    largest = groups.abs().amax(dim=2)
    scales = (largest.where(largest > 0, 1.0) / high).half()
    codes = (groups / scales.double().unsqueeze(2)).round().clamp(-high - 1, high)
    return QuantizedLayer(
        name="layer",
        codes=codes.view(weight.shape).to(torch.int8),
        scales=scales,
        bits=bits,
        group_size=GROUP,
    )


def random_case(seed: int, kind: str = "inputs") -> tuple:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(ROWS, COLUMNS))
    tuned = base + 0.02 * rng.normal(size=(ROWS, COLUMNS))
    return base, tuned, quantize(tuned), make_gram(kind, COLUMNS, rng)


@pytest.mark.parametrize("kind", GRAM_KINDS)
@pytest.mark.parametrize("order", ["natural", "activation", "min-pivot"])
def test_layer_by_hand(kind: str, order: str) -> None:
    """Against formulas that share no factorization: determinants, inputs, loops."""
    base, tuned, quantized, gram = random_case(1, kind)
    found = measure_layer(base, tuned, quantized, gram, order=order, num_directions=3)
    if kind in {"rank-deficient", "dead"}:
        gram = gram + 0.01 * np.mean(np.diag(gram)) * np.eye(COLUMNS)
    scales = np.repeat(quantized.scales.double().numpy(), GROUP, axis=1)
    shipped = scales * quantized.codes.numpy()
    error = tuned - shipped
    assert found.exact == pytest.approx(np.trace(error @ gram @ error.T), rel=1e-9)
    assert found.relative_loss == pytest.approx(
        found.exact / np.trace(tuned @ gram @ tuned.T), rel=1e-9
    )
    certificate = certify_layer(
        tuned, gram, scales, quantized.codes.numpy(), low=-8, high=7, order=order
    )
    assert found.bound == pytest.approx(certificate.bound, rel=1e-9)
    assert found.exact == pytest.approx(certificate.exact, rel=1e-9)
    expected = 2 * np.log(scales).sum() + ROWS * np.linalg.slogdet(gram)[1]
    assert found.log_volume == pytest.approx(expected, rel=1e-6)
    assert 0 < found.pivot_share <= 1 + 1e-12
    assert 0 <= found.headroom < 1
    assert found.exact_share == pytest.approx(found.exact / found.bound)
    assert found.num_directions == 3
    steps = [np.clip(np.rint(w / scales), -8, 7) for w in (base, tuned)]
    same = sum(
        a == b for a, b in zip(steps[0].ravel().tolist(), steps[1].ravel().tolist(), strict=True)
    )
    assert found.collision_rate == same / (ROWS * COLUMNS)
    assert found.changed_rate == 1 - found.collision_rate
    assert found.shipped_collision_rate == found.collision_rate  # nearest codes were shipped
    assert 0 < found.cka <= 1
    assert json.loads(json.dumps(found.to_json()))["name"] == "layer"
    assert LayerGeometry(**found.to_json()) == found


def test_diagonal_gram_has_no_correlations() -> None:
    base, tuned, quantized, gram = random_case(2, "diagonal")
    assert measure_layer(base, tuned, quantized, gram).pivot_share == pytest.approx(1.0)
    equal = measure_layer(base, tuned, quantized, np.eye(COLUMNS))
    assert equal.headroom == pytest.approx(0.0, abs=1e-12)


def test_base_equals_tuned() -> None:
    """Nothing was changed, whatever the grid; other base codes show in the shipped rate alone."""
    base, _, _, gram = random_case(3)
    found = measure_layer(base, base, quantize(base), gram)
    assert (found.collision_rate, found.changed_rate) == (1.0, 0.0)
    assert found.base_stable_rank == found.tuned_stable_rank
    layer = quantize(base, bits=2)
    scales = np.repeat(layer.scales.double().numpy(), GROUP, axis=1)
    codes = quantize_rows(base, gram, scales, -2, 1)
    shipped = QuantizedLayer(
        name="layer",
        codes=torch.tensor(codes, dtype=torch.int8),
        scales=layer.scales,
        bits=2,
        group_size=GROUP,
    )
    found = measure_layer(base, base, shipped, gram)
    assert found.collision_rate == 1.0
    assert found.shipped_collision_rate < 1.0  # GPTQ alone moves codes
    same = measure_layer(base, base, shipped, gram, base_codes=codes)
    assert same.shipped_collision_rate == 1.0


def test_coarse_grids_hold_less_of_a_change() -> None:
    """The same fine-tuning changes fewer codes the fewer bits there are."""
    rng = np.random.default_rng(4)
    base = rng.normal(size=(64, COLUMNS))
    tuned = base + 0.05 * rng.normal(size=base.shape)
    gram = make_gram("inputs", COLUMNS, rng)
    changed = [
        measure_layer(base, tuned, quantize(tuned, bits), gram).changed_rate for bits in (2, 4, 8)
    ]
    assert changed[0] < changed[1] < changed[2]


def test_layer_of_zeros() -> None:
    """What has no direction has no angle, and no loss relative to nothing."""
    zeros = np.zeros((ROWS, COLUMNS))
    found = measure_layer(zeros, zeros, quantize(zeros), np.eye(COLUMNS))
    assert found.exact == 0.0
    assert found.relative_loss is None
    assert found.singular_value_shift is None
    assert found.input_angle is None
    assert found.output_angle is None
    assert found.cka is None
    assert found.num_directions == 0
    assert found.tuned_stable_rank == 0.0
    assert found.collision_rate == 1.0
    json.dumps(found.to_json())


def test_layer_of_rank_one() -> None:
    """Only as many directions are compared as there are."""
    rng = np.random.default_rng(5)
    tuned = np.outer(rng.normal(size=ROWS), rng.normal(size=COLUMNS))
    found = measure_layer(tuned, tuned, quantize(tuned), np.eye(COLUMNS), num_directions=5)
    assert found.num_directions == 1
    assert found.tuned_stable_rank == pytest.approx(1.0)
    assert 0 < found.input_angle < 0.3
    assert found.quantized_stable_rank > 1.0


def test_stable_rank() -> None:
    assert stable_rank(np.eye(5)) == pytest.approx(5.0)
    assert stable_rank(np.diag([2.0, 1.0])) == pytest.approx(1.25)
    assert stable_rank(1e200 * np.eye(3)) == pytest.approx(3.0)
    with pytest.raises(InvalidParameterError):
        stable_rank([[np.nan]])


def test_singular_value_shift_is_at_most_the_relative_error() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        weight, error = rng.normal(size=(2, ROWS, COLUMNS))
        bound = np.linalg.norm(error) / np.linalg.norm(weight)
        assert 0 <= singular_value_shift(weight, weight + error) <= bound
    left, _ = np.linalg.qr(rng.normal(size=(ROWS, ROWS)))
    assert singular_value_shift(weight, left @ weight) == pytest.approx(0.0, abs=1e-14)
    assert singular_value_shift(np.eye(2), np.zeros((2, 2))) == 1.0


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.4, math.pi / 4, 1.2, math.pi / 2])
def test_principal_angle_of_a_rotation(angle: float) -> None:
    """A rotation between a top direction and one that is not among them shows its angle."""
    weight = np.diag([5.0, 4.0, 1.0, 0.5])
    turn = np.eye(4)
    turn[np.ix_([1, 2], [1, 2])] = [
        [math.cos(angle), -math.sin(angle)],
        [math.sin(angle), math.cos(angle)],
    ]
    outputs, inputs = principal_angles(weight, weight @ turn.T, 2)
    assert np.allclose(outputs, 0.0, atol=1e-12)
    assert inputs == pytest.approx([0.0, angle], abs=1e-12)
    outputs, inputs = principal_angles(weight, turn @ weight, 2)
    assert outputs == pytest.approx([0.0, angle], abs=1e-12)
    # Within the subspace a rotation is none.
    turn = np.eye(4)
    turn[:2, :2] = [[0.0, -1.0], [1.0, 0.0]]
    assert np.allclose(principal_angles(weight, weight @ turn.T, 2), 0.0, atol=1e-12)


def test_cka_is_that_of_the_outputs() -> None:
    """From inputs, without a Gram matrix; rotations and factors of the outputs do not count."""
    rng = np.random.default_rng(7)
    inputs = rng.normal(size=(50, COLUMNS))
    weight, other = rng.normal(size=(2, ROWS, COLUMNS))
    X, Y = inputs @ weight.T, inputs @ other.T
    kernels = [X @ X.T, Y @ Y.T]
    expected = np.sum(kernels[0] * kernels[1]) / math.prod(np.linalg.norm(K) for K in kernels)
    gram = inputs.T @ inputs
    assert linear_cka(weight, other, gram) == pytest.approx(expected)
    turn, _ = np.linalg.qr(rng.normal(size=(ROWS, ROWS)))
    assert linear_cka(weight, -3.0 * turn @ weight, gram) == pytest.approx(1.0)
    assert linear_cka(weight, np.zeros_like(weight), gram) is None


def test_logit_divergence() -> None:
    """Against a loop; zero for logits that differ by a constant; NaN is refused."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 3, 4, 7, generator=generator).double()
    total = 0.0
    for a, b in zip(first.reshape(-1, 7), second.reshape(-1, 7), strict=True):
        p, q = torch.softmax(a, 0), torch.softmax(b, 0)
        total += float(sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)))
    assert logit_divergence(first, second) == pytest.approx(total / 12)
    assert logit_divergence(first, first + 5.0) == pytest.approx(0.0, abs=1e-12)
    for bad in (torch.full_like(first, float("nan")), second[:, :2]):
        with pytest.raises(InvalidParameterError):
            logit_divergence(first, bad)


def test_refusals() -> None:
    base, tuned, quantized, gram = random_case(8)
    with pytest.raises(InvalidParameterError, match="base"):
        measure_layer(base[:, :4], tuned, quantized, gram)
    with pytest.raises(InvalidParameterError, match="tuned must be finite"):
        measure_layer(base, tuned * np.nan, quantized, gram)
    with pytest.raises(InvalidParameterError, match="gram"):
        measure_layer(base, tuned, quantized, gram[:4, :4])
    with pytest.raises(InvalidParameterError, match="num_directions"):
        measure_layer(base, tuned, quantized, gram, num_directions=0)
    with pytest.raises(InvalidParameterError, match="one shape"):
        collision_rate([1, 2], [1])
