"""A comparison written by hand: numbers that no run gave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sordino.ledger.certificate import NO_GUARANTEE, PoolLine, SubsetLine
from sordino.reports.comparison import METHODS, Comparison, Row

SUCCESS = {"dp-first-order": 0.58958613, "dp-zeroth-order": 0.59830201}


def make_row(method: str, **changes: Any) -> Row:
    """Returns a row as a run of this method would give it."""
    kind, matched_with = METHODS[method].guarantee, METHODS[method].matched_with
    subset = SubsetLine(
        secret="which records were used",  # noqa: S106
        guarantee=NO_GUARANTEE,
        mutual_information_nats_upper=None,
        prior=None,
        posterior_upper=None,
        matched_epsilon=None,
    )
    pool = PoolLine(
        secret="whether a record is in the pool at all",  # noqa: S106
        guarantee=NO_GUARANTEE,
    )
    success = SUCCESS[matched_with] if matched_with else None
    if kind == "pac":
        subset = replace(
            subset,
            guarantee="PAC: mutual information",
            mutual_information_nats_upper=0.0161383541 if success else 0.0,
            prior=0.5,
            posterior_upper=success or 0.5,
        )
    if kind == "dp":
        pool = replace(
            pool,
            guarantee="approximate differential privacy",
            neighboring_relation="ADD_OR_REMOVE_ONE",
            epsilon_upper=1.99912,
            delta=1e-5,
            success_upper=SUCCESS[method],
        )
    number = list(METHODS).index(method)
    row = Row(
        method=method,
        score_before=0.5,
        score_after=0.9 - number / 100,
        num_steps=4,
        share_per_step=0.125,
        forward_equivalents=24.0 * (number + 1),
        seconds=1.5,
        matched_success=success,
        subset=subset,
        pool=pool,
        run=f"runs/{method}",
    )
    return replace(row, **changes)


def make_comparison(**changes: Any) -> Comparison:
    """Returns a whole comparison."""
    comparison = Comparison(
        sordino_version="0.1.0",
        settings={"epsilon": 2.0, "template": "{text} It was", "delta": None, "seed": 0},
        methods=tuple(METHODS),
        score="accuracy",
        num_records=1000,
        num_validation=400,
        base_model="small",
        base_model_sha256="ab" * 32,
        validation_sha256="cd" * 32,
        rows=tuple(make_row(method) for method in METHODS),
    )
    return replace(comparison, **changes)
