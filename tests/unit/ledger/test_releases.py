"""The ledger of releases: charge first, never above the budget, nothing unknown."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from helpers_accounting import event_of
from sordino.accounting.composition import compose_epsilon
from sordino.accounting.randomized_quantization import RandomizedQuantizationEvent
from sordino.core.errors import BudgetExceededError, InvalidParameterError, LedgerError
from sordino.ledger.ledger import Ledger
from sordino.ledger.releases import ReleaseLedger

if TYPE_CHECKING:
    from pathlib import Path

BUDGET = {
    "target_epsilon": 2.0,
    "delta": 1e-6,
    "neighboring_relation": "REPLACE_ONE",
    "privacy_unit": "device",
}


def quantized(num_coordinates: int, **changes: float) -> RandomizedQuantizationEvent:
    settings = {"clip": 1.0, "margin": 20.0, "num_levels": 8, "keep_probability": 0.2}
    return RandomizedQuantizationEvent(num_coordinates=num_coordinates, **(settings | changes))


def open_ledger(path: Path, **changes: Any) -> ReleaseLedger:
    return ReleaseLedger.open(path, **(BUDGET | changes))


def test_charges_add_up_and_survive(tmp_path: Path) -> None:
    """On disk before the call returns; a second process goes on where the first stopped."""
    path = tmp_path / "ledger.jsonl"
    ledger = open_ledger(path)
    assert ledger.epsilon_spent == 0.0
    first = ledger.charge(quantized(5))
    assert first == compose_epsilon([quantized(5)], 1e-6)
    again = open_ledger(path)
    assert again.epsilon_spent == first
    second = again.charge(quantized(5))
    assert second == compose_epsilon([quantized(10)], 1e-6) > first
    line = json.loads(path.read_bytes().splitlines()[1])["event"]
    assert line["mechanism"] == "randomized-quantization"
    assert line["parameters"]["num_coordinates"] == 5
    assert line["epsilon_spent"] == first


def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    """Also a mechanism that hides nothing, at any budget."""
    path = tmp_path / "ledger.jsonl"
    ledger = open_ledger(path, target_epsilon=1e9)
    with pytest.raises(BudgetExceededError, match="hides nothing"):
        ledger.charge(quantized(1, keep_probability=1.0, margin=0.5))
    small = open_ledger(tmp_path / "small.jsonl")
    before = (tmp_path / "small.jsonl").read_bytes()
    with pytest.raises(BudgetExceededError, match="Nothing was released"):
        small.charge(quantized(100_000))
    assert (tmp_path / "small.jsonl").read_bytes() == before
    assert small.epsilon_spent == 0.0
    small.charge(quantized(1))


def test_gaussians_are_charged_under_their_relation(tmp_path: Path) -> None:
    """A ledger is about one relation, and a pure one has no room for a Gaussian."""
    ledger = open_ledger(tmp_path / "a.jsonl", neighboring_relation="ADD_OR_REMOVE_ONE")
    assert ledger.charge(event_of(10.0, 1.0, 2)) == compose_epsilon([event_of(10.0, 1.0, 2)], 1e-6)
    with pytest.raises(InvalidParameterError, match="another ledger"):
        ledger.charge(quantized(1))
    pure = open_ledger(tmp_path / "b.jsonl", delta=0.0)
    pure.charge(quantized(1))
    with pytest.raises(BudgetExceededError):
        pure.charge(event_of(100.0, 1.0, 1, "REPLACE_ONE"))


def test_unknown_events_are_refused(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "ledger.jsonl")
    for event in ({"epsilon": 0.1}, None, object()):
        with pytest.raises(InvalidParameterError, match="must be one of"):
            ledger.charge(event)  # type: ignore[arg-type]
    assert len((tmp_path / "ledger.jsonl").read_bytes().splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"target_epsilon": 3.0},
        {"delta": 1e-5},
        {"neighboring_relation": "ADD_OR_REMOVE_ONE"},
        {"privacy_unit": "person"},
    ],
)
def test_a_budget_is_not_changed(tmp_path: Path, change: dict[str, Any]) -> None:
    open_ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(LedgerError, match="A budget is not changed"):
        open_ledger(tmp_path / "ledger.jsonl", **change)


@pytest.mark.parametrize(
    "change",
    [
        {"mechanism": "something-new"},
        {"mechanism": "gaussian"},
        {"kind": "release"},
        {"more": 1},
        {"epsilon_spent": 0.0},
        {"epsilon_spent": None},
        {"parameters": None},
        {"parameters": {"num_coordinates": 0}},
        {"parameters": {"num_levels": 1}},
        {"parameters": {"clip": "1"}},
        {"parameters": {"unheard_of": 1}},
    ],
)
def test_lines_that_are_not_understood_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """Well chained, and still wrong: an unknown parameter may change what is spent."""
    source = tmp_path / "source.jsonl"
    open_ledger(source).charge(quantized(5))
    opening, release = Ledger.open(source).events
    if isinstance(change.get("parameters"), dict):
        change = {"parameters": release["parameters"] | change["parameters"]}
    forged = Ledger.open(tmp_path / "forged.jsonl")
    forged.append(opening)
    forged.append(release | change)
    with pytest.raises(LedgerError):
        open_ledger(tmp_path / "forged.jsonl")


@pytest.mark.parametrize(
    "change",
    [
        {"target_epsilon": 0.0},
        {"target_epsilon": math.nan},
        {"target_epsilon": math.inf},
        {"delta": math.nan},
        {"delta": 1.0},
        {"delta": -1e-9},
        {"neighboring_relation": "SOME"},
        {"privacy_unit": ""},
    ],
)
def test_bad_budgets_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError):
        open_ledger(tmp_path / "ledger.jsonl", **change)
    assert not (tmp_path / "ledger.jsonl").exists()
