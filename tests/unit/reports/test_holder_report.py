"""The leave-one-out loss for the holder: read as the run wrote it, or refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers_audits import make_holder_report, write_holder_report
from sordino.core.errors import InvalidDataError
from sordino.reports.holder_report import read_holder_report
from sordino.training.leave_one_out import LeaveOneOut

if TYPE_CHECKING:
    from pathlib import Path


def test_it_reads_what_a_run_writes(tmp_path: Path) -> None:
    """The writer's own format, with an infinite loss."""
    membership = np.array([[True, False], [True, True], [False, True]])
    tally = LeaveOneOut(membership, unanimity_flip=0.0, on_disagreement="coin")
    contributions = np.array([[5.0], [1.0], [-2.0]])
    sums = membership.T.astype(float) @ contributions
    tally.add(sums, contributions, np.array([1], dtype=np.int32))
    path = tmp_path / "holder_report.PRIVATE.json"
    path.write_text(json.dumps(tally.report()))
    found = read_holder_report(path)
    assert found.num_records == 3
    assert sum(found.counts) + found.num_infinite == 3
    assert set(found.quantiles) == {"median", "95%", "max"}


def test_infinite_quantiles_are_kept_apart(tmp_path: Path) -> None:
    found = read_holder_report(write_holder_report(tmp_path / "report.json"))
    assert found == make_holder_report()
    assert (found.num_infinite, found.quantiles["max"]) == (4, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_records": 0},
        {"num_records": None},
        {"share_at_zero": float("nan")},
        {"share_infinite": 1.5},
        {"quantiles_of_absolute_loss_nats": {"median": float("nan")}},
        {"quantiles_of_absolute_loss_nats": {"median": None}},
        {"quantiles_of_absolute_loss_nats": []},
        {"histogram": {"edges": [0.0, 1.0], "counts": [1, 2]}},
        {"histogram": {"edges": [1.0, 0.0], "counts": [1]}},
        {"histogram": {"edges": [0.0, float("inf")], "counts": [1]}},
        {"histogram": {"edges": [0.0, 1.0], "counts": [-1]}},
        {"histogram": None},
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    """One line with what to do; no NaN gets in."""
    path = write_holder_report(tmp_path / "report.json", **changes)
    with pytest.raises(InvalidDataError, match=r"not a holder's report .* --holder-report"):
        read_holder_report(path)


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(InvalidDataError, match=r"not a holder's report"):
        read_holder_report(tmp_path / "report.json")
