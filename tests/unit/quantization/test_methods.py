"""The table of methods and its settings: what goes together, and LLL only where it helps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from helpers_lattices import make_gram, quadratic_losses
from helpers_quantization import make_settings
from sordino.core.errors import InvalidParameterError
from sordino.quantization.blocked_gptq import damped_geometry
from sordino.quantization.methods import METHODS
from sordino.quantization.scales import spread_scales


def _rounded(weights: torch.Tensor, gram: np.ndarray, **changes: Any) -> tuple[Any, np.ndarray]:
    """Returns codes and each row's loss."""
    settings = make_settings(**changes)
    geometry = damped_geometry(gram, settings.applied_order)
    codes, scales = METHODS[settings.method].round(weights, geometry, settings)
    steps = spread_scales(scales, settings.group_size_of(weights.shape[1]))
    return codes, quadratic_losses(weights.double().numpy(), geometry.gram, steps, codes.numpy())


@pytest.mark.parametrize("scales", ["absmax", "searched"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_is_never_worse_than_nearest_on_the_same_scales(bits: int, scales: str) -> None:
    rng = np.random.default_rng(bits)
    gram = make_gram("inputs", 32, rng)
    weights = torch.from_numpy(rng.normal(size=(12, 32))).float()
    for order in ("natural", "activation", "min-pivot"):
        changes = {"bits": bits, "scales": scales, "order": order}
        _, losses = _rounded(weights, gram, **changes)
        _, nearest = _rounded(weights, gram, method="nearest", **changes)
        assert (losses <= nearest * (1 + 1e-9)).all()
        assert losses.sum() < nearest.sum()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lattice_reduction_never_loses_and_sometimes_gains(bits: int) -> None:
    """A row takes the reduced basis only where its exact loss, after limits, falls."""
    rng = np.random.default_rng(3)
    gram = make_gram("inputs", 24, rng)
    weights = torch.from_numpy(rng.normal(size=(30, 24))).float()
    changes = {"bits": bits, "group_size": None}
    codes, losses = _rounded(weights, gram, lattice_reduction="lll", **changes)
    _, plain = _rounded(weights, gram, **changes)
    assert (losses <= plain).all()
    assert -(2 ** (bits - 1)) <= int(codes.min()) <= int(codes.max()) < 2 ** (bits - 1)
    if bits == 8:
        assert losses.sum() < plain.sum()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits": 3}, "bits must be 2, 4 or 8"),
        ({"group_size": 1}, "group_size"),
        ({"method": "best"}, "method must be one of nearest, gptq"),
        ({"order": "random"}, "order must be one of"),
        ({"scales": "best"}, "scales must be one of"),
        ({"damping": float("nan")}, "damping"),
        ({"damping": 0.0}, "damping"),
        ({"lattice_reduction": "bkz"}, "lattice_reduction must be one of"),
        ({"lattice_reduction": "lll"}, "one scale a row"),
        ({"lattice_reduction": "lll", "method": "nearest", "group_size": None}, "on top of"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidParameterError, match=words):
        make_settings(**changes)


def test_gptq_without_calibration_is_refused() -> None:
    settings = make_settings()
    with pytest.raises(InvalidParameterError, match="needs calibration"):
        METHODS["gptq"].round(torch.ones(2, 8), None, settings)


def test_nearest_reports_the_natural_order() -> None:
    assert make_settings(method="nearest").applied_order == "natural"
    assert make_settings().applied_order == "min-pivot"
