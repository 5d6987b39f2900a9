"""`sordino compare` from files to a page: every method, matched budgets, resume."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import sordino
from helpers_runs import Shell, run_cli, sentiment_rows, write_jsonl
from sordino.core.errors import LedgerError
from sordino.ledger.journal import Journal
from sordino.ledger.ledger import Ledger
from sordino.reports import study as module
from sordino.reports.comparison import METHODS, read_comparison
from sordino.reports.page import render_page

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sordino.reports.comparison import Comparison

OPTIONS: dict[str, Any] = {
    "epsilon": 4.0,
    "batch_size": 24,  # all records: the accounting then has a closed form and takes no time
    "num_steps_first_order": 3,
    "num_steps_zeroth_order": 2,
    "num_steps_pac_first_order": 2,
    "directions_per_step": 64,
    "lora_rank": 2,
    "dtype": "float32",
    "device": "cpu",
    "validation_is_public": True,
}


def _files(folder: Path, model: Path) -> dict[str, Any]:
    """Writes the records; returns everything that a comparison needs."""
    return {
        "model": str(model),
        "train": write_jsonl(folder / "pool.jsonl", sentiment_rows(24)),
        "validation": write_jsonl(folder / "public.jsonl", sentiment_rows(10, start=100)),
        "output": folder / "comparison",
    }


def _words(settings: dict[str, Any]) -> list[object]:
    """Returns settings as a command line has them."""
    words: list[object] = []
    for name, value in settings.items():
        words.append("--" + name.replace("_", "-"))
        words += [] if value is True else [value]
    return words


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Any]:
    """A finished comparison of all methods."""
    settings = _files(tmp_path_factory.mktemp("compare"), tiny_model) | OPTIONS
    sordino.compare(**settings)
    return settings


@pytest.fixture(scope="module")
def comparison(files: dict[str, Any]) -> Comparison:
    return read_comparison(files["output"] / "comparison.json")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Names of the runs that were started from here on, and whether they were resumed."""
    calls = []
    tune = module.tune

    def watched(**settings: Any) -> Any:
        calls.append((settings["output"].name, settings["resume"]))
        return tune(**settings)

    monkeypatch.setattr(module, "tune", watched)
    return calls


def test_every_method_has_a_run_that_verifies(
    files: dict[str, Any], comparison: Comparison
) -> None:
    """Six folders, each with the guarantee of its name; the table is made from them."""
    assert [row.method for row in comparison.rows] == list(METHODS)
    for row in comparison.rows:
        run = files["output"] / row.run
        certificate = json.loads((run / "certificate.json").read_bytes())
        assert certificate["guarantee"] == METHODS[row.method].guarantee
        assert certificate["pool"]["epsilon_upper"] == row.pool.epsilon_upper
        assert certificate["subset"]["posterior_upper"] == row.subset.posterior_upper
        scores = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [entry["num_steps"] for entry in scores] == [0, row.num_steps]
        assert [e["accuracy"] for e in scores] == [row.score_before, row.score_after]
        assert row.seconds is not None
        assert row.seconds > 0
    assert sordino.verify(files["output"] / "runs" / "pac-first-order").is_valid
    assert len({row.score_before for row in comparison.rows}) == 1
    assert comparison.unfinished == []


def test_budgets_are_matched(files: dict[str, Any], comparison: Comparison) -> None:
    """A PAC bound on a guess is that of the DP method of the same estimator, or just below."""
    for name, method in METHODS.items():
        row = comparison.find(name)
        assert row is not None
        if method.guarantee == "dp":
            assert row.pool.epsilon_upper == pytest.approx(4.0, rel=1e-2)
            assert row.pool.epsilon_upper <= 4.0
        if method.matched_with is None:
            assert row.matched_success is None
            continue
        partner = comparison.find(method.matched_with)
        assert partner is not None
        assert row.matched_success == partner.pool.success_upper
        assert row.subset.posterior_upper == pytest.approx(row.matched_success, abs=1e-9)
        assert row.subset.posterior_upper <= row.matched_success
        opening = Ledger.open(files["output"] / row.run / "ledger.jsonl").events[0]
        assert opening["mutual_information_budget_nats"] == row.subset.mutual_information_nats_upper
    zero = comparison.find("pac-first-order-zero")
    assert zero is not None
    assert (zero.subset.mutual_information_nats_upper, zero.subset.posterior_upper) == (0.0, 0.5)


def test_cost_is_counted(comparison: Comparison) -> None:
    """Steps times 3, or 2 a direction, times the share of the pool."""
    assert [row.forward_equivalents for row in comparison.rows] == [9, 9, 4, 6, 4, 6]


def test_the_page_is_drawn_from_the_record(files: dict[str, Any], comparison: Comparison) -> None:
    """The same record gives the same page."""
    page = (files["output"] / "comparison.html").read_text(encoding="utf-8")
    assert page == render_page(comparison)


def test_the_shell_shows_the_table(
    files: dict[str, Any],
    comparison: Comparison,
    capsys: pytest.CaptureFixture[str],
    started: list[tuple[str, bool]],
) -> None:
    """Finished runs are shown without being run again: for people, and for machines."""
    line = ["compare", *_words(files), "--resume"]
    before = (files["output"] / "comparison.json").read_bytes()
    shell = run_cli(capsys, *line)
    assert shell.code == 0, shell.err
    for method in METHODS:
        assert method in shell.out
    assert "average over" in shell.out
    assert "It is not protection of membership in the pool." in shell.out
    assert f"Page: {files['output'] / 'comparison.html'}" in shell.out
    shell = run_cli(capsys, *line, "--json")
    assert shell.code == 0, shell.err
    assert shell.out.encode() == before == (files["output"] / "comparison.json").read_bytes()
    assert started == []


def test_a_changed_certificate_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    """What certificate.json says must follow from its ledger."""
    settings = _files(tmp_path, tiny_model) | OPTIONS | {"methods": ["non-private"]}
    sordino.compare(**settings)
    path = settings["output"] / "runs" / "non-private" / "certificate.json"
    path.write_bytes(path.read_bytes().replace(b"no formal guarantee", b"perfect"))
    with pytest.raises(LedgerError, match="is not the certificate of its ledger"):
        sordino.compare(**settings, resume=True)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Returns a function that lets the n-th commit from now on be the last one."""
    commit = Journal.commit

    def after(count: int) -> None:
        commits: list[object] = []

        def interrupting(*arguments: object) -> None:
            commit(*arguments)  # type: ignore[arg-type]
            commits.append(arguments)
            if len(commits) == count:
                monkeypatch.setattr(Journal, "commit", commit)
                raise KeyboardInterrupt

        monkeypatch.setattr(Journal, "commit", interrupting)

    return after


def test_an_interrupted_comparison_goes_on(
    tmp_path: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    started: list[tuple[str, bool]],
    interrupt: Callable[[int], None],
) -> None:
    """The finished run is not run again, the interrupted one goes on, the last one begins."""
    settings = _files(tmp_path, tiny_model) | OPTIONS
    methods = ["non-private", "dp-zeroth-order", "pac-zeroth-order"]
    line = ["compare", *_words(settings)]
    line += [word for method in methods for word in ("--methods", method)]
    interrupt(7)  # open, 3 steps and close of the first; open and 1 of 2 steps of the second
    shell: Shell = run_cli(capsys, *line)
    assert shell.code == 130
    assert "--resume" in shell.err
    record = settings["output"] / "comparison.json"
    half = read_comparison(record)
    assert half.unfinished == methods[1:]
    assert "Not finished" in (settings["output"] / "comparison.html").read_text(encoding="utf-8")
    assert started == [("non-private", False), ("dp-zeroth-order", False)]
    assert run_cli(capsys, *line).code == 2  # without --resume nothing is touched
    started.clear()
    shell = run_cli(capsys, *line, "--resume")
    assert shell.code == 0, shell.err
    assert started == [("dp-zeroth-order", True), ("pac-zeroth-order", False)]
    whole = read_comparison(record)
    assert whole.unfinished == []
    assert whole.rows[0] == half.rows[0]
    assert [row.seconds is None for row in whole.rows] == [False, True, False]
    ledger = Ledger.open(settings["output"] / "runs" / "dp-zeroth-order" / "ledger.jsonl")
    assert [event["kind"] for event in ledger.events] == ["open", "release", "release", "close"]


def test_an_interrupted_method_can_be_left_out(
    tmp_path: Path,
    tiny_model: Path,
    started: list[tuple[str, bool]],
    interrupt: Callable[[int], None],
) -> None:
    """One that takes too long does not keep the others from the table."""
    settings = _files(tmp_path, tiny_model) | OPTIONS
    interrupt(7)
    with pytest.raises(KeyboardInterrupt):
        sordino.compare(**settings, methods=["non-private", "dp-zeroth-order", "pac-zeroth-order"])
    started.clear()
    result = sordino.compare(**settings, methods=["pac-zeroth-order"], resume=True)
    assert started == [("pac-zeroth-order", False)]
    assert [row.method for row in result.comparison.rows] == ["non-private", "pac-zeroth-order"]
    assert result.comparison.unfinished == []


def test_a_method_can_be_added(
    tmp_path: Path, tiny_model: Path, started: list[tuple[str, bool]]
) -> None:
    """--resume with another method keeps the rows that are there, in the table's order."""
    settings = _files(tmp_path, tiny_model) | OPTIONS
    sordino.compare(**settings, methods=["pac-zeroth-order"])
    result = sordino.compare(**settings, methods=["dp-zeroth-order"], resume=True)
    assert [name for name, _ in started] == ["pac-zeroth-order", "dp-zeroth-order"]
    dp, pac = result.comparison.rows
    assert (dp.method, pac.method) == ("dp-zeroth-order", "pac-zeroth-order")
    assert pac.matched_success == dp.pool.success_upper  # it was computed before that run existed


def test_completions_are_compared_by_loss(tmp_path: Path, tiny_model: Path) -> None:
    """Without labels there is no accuracy."""
    rows = [
        {"prompt": row["text"], "completion": "great ." if row["label"] else "terrible ."}
        for row in sentiment_rows(34)
    ]
    settings = _files(tmp_path, tiny_model) | OPTIONS
    write_jsonl(settings["train"], rows[:24])
    write_jsonl(settings["validation"], rows[24:])
    result = sordino.compare(**settings, methods=["non-private"])
    (row,) = result.comparison.rows
    assert result.comparison.score == "loss"
    assert row.score_before > 0
    assert "Loss in nats" in result.page.read_text(encoding="utf-8")
