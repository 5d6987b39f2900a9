"""The record of a comparison: exact words, counted cost, nothing read that is not whole."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from helpers_comparisons import make_comparison, make_row
from sordino.core.errors import InvalidDataError
from sordino.reports.comparison import (
    METHODS,
    count_forward_equivalents,
    read_comparison,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """comparison.json holds everything."""
    path = tmp_path / "comparison.json"
    path.write_bytes(make_comparison().to_bytes())
    assert read_comparison(path) == make_comparison()


def test_headers_say_average_and_worst_case() -> None:
    """Two columns about protection, each with its own kind of claim; one for the score's run."""
    method, score, cost, subset, pool = make_comparison().headers
    assert (method, cost) == ("Method", "Cost in forward passes over the pool")
    assert score == "Accuracy, before and after; one run"
    assert "candidate subset" in subset
    assert "average over the secret" in subset
    assert "in the pool" in pool
    assert "worst case" in pool


@pytest.mark.parametrize("method", METHODS)
def test_a_number_about_subsets_is_never_one_about_the_pool(method: str) -> None:
    """Each method has a number in the column that its theorem is about, and in no other."""
    row, kind = make_row(method), METHODS[method].guarantee
    _, _, _, subset, pool = make_comparison().cells(row)
    if kind == "dp":
        assert "worst case" in pool
        assert "epsilon 2 at delta 1e-05, one record added or removed" in pool
        assert subset.startswith("no candidate subsets")
    else:
        assert pool == "no formal guarantee"
    if kind == "none":
        assert subset == "no formal guarantee"
    if kind == "pac":
        assert "average over the secret" in subset
        assert "worst case" not in subset
    matched_with = METHODS[method].matched_with
    assert subset.endswith(f"matched with {matched_with}") == (matched_with is not None)


@pytest.mark.parametrize(
    ("derivative", "directions", "share", "cost"),
    [
        ("gradient", 1, 0.125, 24.0),
        ("backpropagation", 1024, 1.0, 192.0),  # all signs from one backward pass
        ("central-difference", 1, 0.125, 16.0),
        ("central-difference", 5, 0.5, 320.0),
    ],
)
def test_cost_in_forward_passes(
    derivative: str, directions: int, share: float, cost: float
) -> None:
    """64 steps: a forward pass 1, with backward 3, a central difference 2 a direction."""
    assert cost == count_forward_equivalents(
        derivative, num_steps=64, directions_per_step=directions, share_per_step=share
    )


def test_an_unknown_derivative_has_no_cost() -> None:
    """Nothing is guessed."""
    with pytest.raises(InvalidDataError, match="forward-mode"):
        count_forward_equivalents(
            "forward-mode", num_steps=1, directions_per_step=1, share_per_step=1.0
        )


def test_notes_say_what_must_be_known() -> None:
    """What is matched with what, that runs add up, how cost is counted, how many runs."""
    comparison = make_comparison()
    notes = " ".join(comparison.notes)
    assert "pac-first-order with dp-first-order (0.5896)" in notes
    assert "pac-zeroth-order with dp-zeroth-order (0.5984)" in notes
    assert "matched with the DP method of the same estimator" in notes
    assert "It is not protection of membership in the pool." in notes
    assert "no formal guarantee covers them together" in notes
    assert "counted, not timed" in notes
    assert "One run of each method, seed 0, on 1000 records" in notes
    assert "standard error of up to 2.5 points" in notes
    assert "Not finished" not in notes
    assert "1.5" not in notes  # seconds of this machine are not claimed
    equal = [replace(row, matched_success=row.matched_success and 0.6) for row in comparison.rows]
    assert "because their steps differ" not in " ".join(
        replace(comparison, rows=tuple(equal)).notes
    )


def test_notes_of_a_part() -> None:
    """Without a PAC run nothing was matched; what is missing is named; a loss has no percent."""
    comparison = make_comparison(score="loss", rows=(make_row("non-private"),))
    notes = " ".join(comparison.notes)
    assert "Matched" not in notes
    assert "standard error" not in notes
    assert "Not finished: dp-first-order, " in notes
    assert comparison.find("dp-first-order") is None
    assert comparison.cells(comparison.rows[0])[1] == "0.500 → 0.900"
    assert "smaller is better" in comparison.headers[1]


def _change(path: list[Any], value: Any) -> bytes:
    """Returns comparison.json with one thing changed; None removes it."""
    content = json.loads(make_comparison().to_bytes())
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "JSONDecodeError"),
        (b"[]", "TypeError"),
        (b'{"format_version": 1}', "KeyError"),
        (_change(["format_version"], 2), "found format 2"),
        (_change(["rows", 0, "method"], "<script>"), "methods out of"),
        (_change(["methods", 0], "magic"), "methods out of"),
        (_change(["score"], "bleu"), "score out of"),
        (_change(["surprise"], 1), "surprise"),
        (_change(["num_records"], None), "num_records"),
        (_change(["rows", 0, "score_after"], float("nan")), "NaN"),
        (_change(["rows", 0, "score_after"], "0.9"), "TypeError"),
        (_change(["rows", 1, "pool", "success_upper"], float("inf")), "NaN or infinite"),
        (_change(["rows", 1, "pool", "success_upper"], None), "TypeError"),
        (_change(["rows", 1, "pool", "neighboring_relation"], "FRIENDS"), "unknown relation"),
        (_change(["rows", 3, "subset", "posterior_upper"], float("nan")), "NaN or infinite"),
        (_change(["rows", 0, "forward_equivalents"], 0.0), "not positive"),
    ],
)
def test_a_broken_record_is_refused(tmp_path: Path, content: bytes, match: str) -> None:
    """Whatever is missing, unknown or not a number is named, with the way out."""
    path = tmp_path / "comparison.json"
    path.write_bytes(content)
    with pytest.raises(InvalidDataError, match=match) as caught:
        read_comparison(path)
    assert "sordino compare" in str(caught.value)


def test_a_missing_record_is_refused(tmp_path: Path) -> None:
    """No file, no comparison."""
    with pytest.raises(InvalidDataError, match="FileNotFoundError"):
        read_comparison(tmp_path / "comparison.json")
