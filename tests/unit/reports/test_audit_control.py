"""The positive control's plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from sordino.data import Record
from sordino.reports.audit_control import ControlPlan, random_half


def make_plan(count: int = 6, epochs: int = 3) -> ControlPlan:
    records = [Record(f"text {i}", "1", (), i + 1) for i in range(count)]
    return ControlPlan(
        records=records,
        places=np.arange(count),
        is_trained=random_half(count, seed=0),
        candidate=None,
        canaries=[Record("canary", "0", (), 1)],
        is_canary_trained=np.array([True]),
        epochs=epochs,
    )


def test_half_is_learned_and_the_canaries_that_are_in() -> None:
    """What is learned is what the mask says, canaries last."""
    plan = make_plan()
    assert len(plan.trained) == 4
    assert plan.trained[-1].prompt == "canary"
    assert plan.describe()["records"] == 3
    assert sorted(random_half(7, seed=1).tolist()) == [False] * 3 + [True] * 4


def test_a_finished_control_is_used_only_for_the_same_plan() -> None:
    """Other records, another base or other epochs have a place of their own."""
    subject: Any = SimpleNamespace(base_fingerprint="a", fingerprint="b")
    other: Any = SimpleNamespace(base_fingerprint="c", fingerprint="b")
    plan, folder = make_plan(), Path("audit")
    flipped = replace(plan, is_trained=~plan.is_trained)
    places = {
        plan.folder_in(folder, subject),
        flipped.folder_in(folder, subject),
        make_plan(epochs=4).folder_in(folder, subject),
        plan.folder_in(folder, other),
    }
    assert len(places) == 4
    assert make_plan().folder_in(folder, subject) in places
