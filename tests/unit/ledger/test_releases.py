"""The ledger of releases: charge first, never above the budget, nothing unknown."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from helpers_accounting import event_of
from sordino.accounting.composition import compose_epsilon
from sordino.accounting.randomized_quantization import RandomizedQuantizationEvent
from sordino.core.errors import BudgetExceededError, InvalidParameterError, LedgerError
from sordino.ledger import releases
from sordino.ledger.durable import locked
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


GAUSSIAN = BUDGET | {"target_epsilon": 5.0, "neighboring_relation": "ADD_OR_REMOVE_ONE"}


def test_two_handles_see_each_others_charges(tmp_path: Path) -> None:
    """Defect: both charged 3.1 of a budget of 5, and one of them was on disk."""
    path = tmp_path / "ledger.jsonl"
    first, second = (ReleaseLedger.open(path, **GAUSSIAN) for _ in range(2))
    spent = first.charge(event_of(1.5, 1.0, 1))
    assert spent == pytest.approx(3.098, abs=0.001)
    assert second.epsilon_spent == spent
    both = second.charge(event_of(1.5, 1.0, 1))
    assert both == compose_epsilon([event_of(1.5, 1.0, 2)], 1e-6) > spent
    assert first.events == second.events == (event_of(1.5, 1.0, 1),) * 2
    raw = path.read_bytes()
    for ledger in (first, second):
        with pytest.raises(BudgetExceededError, match="Nothing was released"):
            ledger.charge(event_of(1.5, 1.0, 1))
        assert ledger.epsilon_spent == both
    assert path.read_bytes() == raw
    assert len(Ledger.open(path).events) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.jsonl"]  # no lock is left


_CHARGING = """
import sys
from sordino.accounting.randomized_quantization import RandomizedQuantizationEvent
from sordino.ledger.releases import ReleaseLedger
ledger = ReleaseLedger.open(sys.argv[1], **{budget!r})
print("ready", flush=True)
sys.stdin.readline()
for _ in range({count}):
    ledger.charge({event!r})
"""


def test_two_processes_lose_no_charge(tmp_path: Path) -> None:
    """All charges of both, made at the same time, are in one whole chain."""
    path = tmp_path / "ledger.jsonl"
    budget = BUDGET | {"target_epsilon": 100.0}
    program = _CHARGING.format(budget=budget, count=15, event=quantized(1))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        process.communicate()
        assert process.returncode == 0
    ledger = ReleaseLedger.open(path, **budget)
    assert ledger.events == (quantized(1),) * 30
    assert ledger.epsilon_spent == compose_epsilon([quantized(30)], 1e-6)


def test_a_busy_ledger_is_waited_for_and_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the first handle that would make the file; one that only reads needs no lock."""
    path = tmp_path / "ledger.jsonl"
    lock = tmp_path / "ledger.jsonl.lock"
    held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(lock, "busy"):
            held.set()
            may_end.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(60)
        with monkeypatch.context() as patch:
            patch.setattr(releases, "_PATIENCE", 0.05)
            with pytest.raises(LedgerError, match=r"0\.05 seconds .* Wait until it is done"):
                open_ledger(path)
            assert not path.exists()
        threading.Timer(0.2, may_end.set).start()
        ledger = open_ledger(path)  # waits
    finally:
        may_end.set()
        holder.join()
    raw = path.read_bytes()
    with locked(lock, "busy"):
        assert open_ledger(path).epsilon_spent == 0.0
        monkeypatch.setattr(releases, "_PATIENCE", 0.0)
        with pytest.raises(LedgerError, match="has held this ledger"):
            ledger.charge(quantized(1))
    assert path.read_bytes() == raw
    ledger.charge(quantized(1))


def test_lines_that_a_handle_saw_may_not_go(tmp_path: Path) -> None:
    """Cut off, removed, or replaced by a ledger of the same budget: nothing is released."""
    path = tmp_path / "ledger.jsonl"
    ledger = open_ledger(path)
    empty = path.read_bytes()
    ledger.charge(quantized(5))
    whole = path.read_bytes()
    open_ledger(tmp_path / "other.jsonl").charge(quantized(6))
    for content in (empty, b"", None, (tmp_path / "other.jsonl").read_bytes()):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(LedgerError, match="no longer holds the 2 lines"):
            ledger.charge(quantized(5))
        with pytest.raises(LedgerError, match="no longer holds the 2 lines"):
            _ = ledger.epsilon_spent
        assert (path.read_bytes() if path.exists() else None) == content
    path.write_bytes(empty)  # what the docstring warns of: whoever opens it anew cannot tell
    assert open_ledger(path).epsilon_spent == 0.0
    path.write_bytes(whole)
    ledger.charge(quantized(5))


def test_a_charge_whose_flush_failed_still_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is in the file, so it is spent, for this handle too."""
    ledger = open_ledger(tmp_path / "ledger.jsonl")

    def fail(path: Path, offset: int, content: bytes) -> None:
        path.write_bytes(path.read_bytes()[:offset] + content)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("sordino.ledger.ledger.write_at", fail)
        with pytest.raises(OSError, match="Input/output"):
            ledger.charge(quantized(5))
    assert ledger.epsilon_spent == compose_epsilon([quantized(5)], 1e-6)
    ledger.charge(quantized(5))
    assert ledger.events == (quantized(5), quantized(5))


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
