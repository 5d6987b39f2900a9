"""Bits under a byte budget: bytes that fit, the least loss, and rules beside it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from helpers_quantization import make_settings
from helpers_tiny_models import make_model
from sordino.core.errors import InvalidParameterError
from sordino.quantization.bit_choice import (
    ALLOCATIONS,
    BitBudget,
    choose_bits,
    measure_losses,
    num_bytes,
)
from sordino.quantization.calibration import CalibrationRun
from sordino.quantization.layers import QuantizedLayer
from sordino.quantization.methods import METHODS
from sordino.quantization.pipeline import matrix_of, select_layers
from sordino.quantization.scales import dequantize

SEQUENCES = [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10], [3, 3, 3, 0, 2]]
CHOICES = (2, 4, 8)
SETTINGS = make_settings(method="gptq", scales="searched")


def make_case() -> tuple[dict[str, torch.Tensor], Any]:
    """Returns the weights of a tiny model and what each loses."""
    model = make_model("llama")
    layers, _ = select_layers(model, SETTINGS)
    before = {name: p.clone() for name, p in model.named_parameters()}
    run = CalibrationRun(model, SEQUENCES, pad_id=0)
    losses = measure_losses(
        layers, run, SETTINGS, CHOICES, matrix_of=matrix_of, advance=lambda _: None
    )
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    return {n: matrix_of(m) for block in layers for n, m in block.items()}, losses


def spent(weights: dict[str, torch.Tensor], bits: dict[str, int]) -> int:
    return sum(num_bytes(weights[name].shape, own, SETTINGS) for name, own in bits.items())


def test_bytes_are_those_of_the_layer() -> None:
    for bits in CHOICES:
        codes = torch.zeros(5, 16, dtype=torch.int8)
        layer = QuantizedLayer(
            name="x", codes=codes, scales=torch.ones(5, 2).half(), bits=bits, group_size=8
        )
        assert num_bytes((5, 16), bits, SETTINGS) == layer.num_bytes


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_every_rule_keeps_the_budget(allocation: str) -> None:
    weights, losses = make_case()
    for share in (0.3, 0.5, 0.8):
        least, most = (spent(weights, dict.fromkeys(weights, b)) for b in (2, 8))
        size = int(least + share * (most - least))
        budget = BitBudget(budget_bytes=size, allocation=allocation, choices=CHOICES)
        bits = choose_bits(weights, SETTINGS, budget, losses, 15)
        assert set(bits) == set(weights)
        assert spent(weights, bits) <= size
        assert spent(weights, bits) > 0.9 * size
    budget = BitBudget(budget_bytes=least - 1, allocation=allocation, choices=CHOICES)
    with pytest.raises(InvalidParameterError, match="too small"):
        choose_bits(weights, SETTINGS, budget, losses, 15)


def test_the_certificate_s_choice_is_the_best_of_all() -> None:
    """Against every allocation of five layers, and no worse than the other rules on all."""
    weights, losses = make_case()
    few = dict(list(weights.items())[:5])
    size = spent(few, dict.fromkeys(few, 4))

    def cost(bits: dict[str, int]) -> float:
        return sum(losses[n].shares[CHOICES.index(b)] for n, b in bits.items())

    budget = BitBudget(budget_bytes=size, allocation="certificate", choices=CHOICES)
    own = {name: losses[name] for name in few}
    found = choose_bits(few, SETTINGS, budget, own)
    tried = (dict(zip(few, bits, strict=True)) for bits in itertools.product(CHOICES, repeat=5))
    best = min(cost(bits) for bits in tried if spent(few, bits) <= size)
    assert cost(found) == pytest.approx(best)
    size = spent(weights, dict.fromkeys(weights, 4))
    costs = {
        rule: cost(
            choose_bits(
                weights,
                SETTINGS,
                BitBudget(budget_bytes=size, allocation=rule, choices=CHOICES),
                losses,
                15,
            )
        )
        for rule in ALLOCATIONS
    }
    assert min(costs.values()) == costs["certificate"]


def test_losses_are_those_of_nearest_codes() -> None:
    """As shares of the outputs, and without a second look at the grid."""
    weights, losses = make_case()
    name = "model.layers.0.self_attn.q_proj"
    settings = make_settings(method="nearest", scales="searched", bits=2)
    codes, scales = METHODS["nearest"].round(weights[name].float(), None, settings)
    error = weights[name].double() - dequantize(codes.double(), scales.double())
    assert losses[name].losses[0] > losses[name].losses[1] > losses[name].losses[2] > 0.0
    assert 0.0 < losses[name].shares[0] < 1.0
    assert float(error.square().sum()) > 0.0


def test_rules_that_look_at_inputs_need_them() -> None:
    weights, _ = make_case()
    for rule in ("certificate", "sensitivity"):
        with pytest.raises(InvalidParameterError, match="needs calibration texts"):
            choose_bits(
                weights,
                SETTINGS,
                BitBudget(budget_bytes=10**6, allocation=rule, choices=CHOICES),
            )
    with pytest.raises(InvalidParameterError, match="allocation must be one of"):
        BitBudget(budget_bytes=1, allocation="best", choices=CHOICES)
