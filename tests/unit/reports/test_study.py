"""The runs of a comparison: settings by name, matched budgets, nothing mixed in one table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import sordino
from helpers_comparisons import make_comparison, make_row
from sordino.core.errors import InvalidParameterError, LedgerError
from sordino.reports import study as module
from sordino.reports.comparison import METHODS
from sordino.training.dp_plan import DpOptions

if TYPE_CHECKING:
    from pathlib import Path


def _study(comparison: Any, tmp_path: Path, **changes: Any) -> Any:
    """Returns a study that has not run anything."""
    return module.Study(
        **{
            "result": module.ComparisonResult(tmp_path, comparison),
            "options": DpOptions(epsilon=2.0, delta=1e-5),
            "batch_size": 1000,  # all: the accounting has a closed form
            "directions_per_step": None,
            "steps": {"first-order": 3, "zeroth-order": 5, "pac-first-order": 2},
            "fixed": {},
            "workers": None,
        }
        | changes
    )


def test_each_method_gets_its_settings(tmp_path: Path) -> None:
    """Guarantee, estimator, steps and optimizer follow the name; scores before and after only."""
    study = _study(make_comparison(), tmp_path, directions_per_step=16)
    found = {name: study._settings(name, study._matched_success(name)) for name in METHODS}
    first = {"estimator": "first-order", "num_steps": 3, "evaluate_every": 3}
    zeroth = {"estimator": "zeroth-order", "num_steps": 5, "evaluate_every": 5}
    signs = {"estimator": "first-order", "num_steps": 2, "evaluate_every": 2}
    signs |= {"directions_per_step": 16, "guarantee": "pac"}
    dp = {"guarantee": "dp", "epsilon": 2.0, "delta": 1e-5, "batch_size": 1000}
    dp["allow_large_delta"] = False
    open_ = {"guarantee": "none", "batch_size": 1000, "optimizer": "adamw"}
    assert found["non-private"] == first | open_
    assert found["dp-first-order"] == first | dp | {"optimizer": "adamw"}
    assert found["dp-zeroth-order"] == zeroth | dp | {"optimizer": None}
    assert found["pac-first-order-zero"] == signs | {"mutual_information": 0.0}
    budget = found["pac-first-order"].pop("mutual_information")
    assert found["pac-first-order"] == signs
    assert 0 < found["pac-zeroth-order"].pop("mutual_information") != budget
    assert found["pac-zeroth-order"] == zeroth | {"guarantee": "pac"}


def test_the_budget_allows_no_more_than_the_dp_method(tmp_path: Path) -> None:
    """The budget leads back to the matched success, or just below."""
    study = _study(make_comparison(), tmp_path)
    for name in ("pac-first-order", "pac-zeroth-order"):
        success = study._matched_success(name)
        budget = study._settings(name, success)["mutual_information"]
        reached = sordino.risk(mutual_information=budget).posterior
        assert success - 1e-9 <= reached <= success


def test_without_the_dp_run_its_settings_say_what_it_would_allow(tmp_path: Path) -> None:
    """Each estimator is matched with the steps of its own dp method."""
    from sordino.accounting.inference_risk import posterior_from_gaussian_mu

    study = _study(make_comparison(rows=(make_row("non-private"),)), tmp_path)
    first, zeroth = map(study._matched_success, ("pac-first-order", "pac-zeroth-order"))
    assert 0.5 < first < 1
    # all records in every step: both are one Gaussian of the same mu, whatever the steps
    assert first == pytest.approx(zeroth, abs=2e-3)
    assert study._matched_success("pac-first-order-zero") is None
    assert study._matched_success("dp-first-order") is None
    smaller = _study(
        make_comparison(rows=()),
        tmp_path,
        options=DpOptions(epsilon=0.5, delta=1e-5),
    )._matched_success("pac-first-order")
    assert smaller < first
    assert first < posterior_from_gaussian_mu(1.0)  # epsilon 2 at delta 1e-5 is mu below 1


def test_nothing_compares_with_a_guess_that_is_always_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epsilon so large has no PAC budget."""
    monkeypatch.setattr(module, "compute_tradeoff", lambda event: _Sure())
    study = _study(make_comparison(rows=()), tmp_path)
    with pytest.raises(InvalidParameterError, match="Use a smaller --epsilon"):
        study._matched_success("pac-zeroth-order")


class _Sure:
    """A bound that excludes nothing."""

    def success(self, prior: float) -> float:
        return 1.0


def test_default_steps_are_those_of_tune(tmp_path: Path) -> None:
    """Without a number of steps, the recipe's."""
    steps = dict.fromkeys(("first-order", "zeroth-order", "pac-first-order"))
    study = _study(make_comparison(), tmp_path, steps=steps)
    assert {name: study._num_steps(name) for name in METHODS} == {
        "non-private": 64,
        "dp-first-order": 64,
        "dp-zeroth-order": 1000,
        "pac-first-order": 4,
        "pac-zeroth-order": 1000,
        "pac-first-order-zero": 4,
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"base_model_sha256": "00" * 32}, "base_model_sha256"),
        ({"validation": {"sha256": "00" * 32}}, "validation_sha256"),
        ({"num_records": 999}, "num_records"),
    ],
)
def test_runs_on_other_things_are_not_put_in_one_table(change: dict[str, Any], named: str) -> None:
    """Another model, validation file or pool size is refused."""
    comparison = make_comparison()
    opening = {
        "base_model": comparison.base_model,
        "base_model_sha256": comparison.base_model_sha256,
        "validation": {"sha256": comparison.validation_sha256},
        "num_records": comparison.num_records,
    }
    row = make_row("non-private", score_after=0.1)
    assert module.add_row(comparison, row, opening).find("non-private") == row
    with pytest.raises(LedgerError, match=f"differs in {named}"):
        module.add_row(comparison, row, opening | change)
