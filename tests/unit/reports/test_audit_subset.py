"""The subset game's set-up: whose secret is taken, and when there is no game."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sordino.core.errors import InvalidDataError
from sordino.data import Record
from sordino.mechanisms.candidates import CandidateSubsets
from sordino.reports import audit_control_plan
from sordino.reports.audit_control_plan import measure_control, plan_control
from sordino.reports.audit_measure import Material, Rules, Scores, measure
from sordino.reports.audit_subset import DRAWN, SubsetGame, find_subset_game

if TYPE_CHECKING:
    from pathlib import Path

NUM_RECORDS, NUM_SUBSETS, SEED = 12, 8, 3
HEAD = "a" * 64


def make_ledger(
    *, budget: float = 0.1, guarantee: str = "pac", head: str = HEAD, **mechanism: Any
) -> Any:
    """Returns what the game reads of a ledger."""
    described = {
        "num_subsets": NUM_SUBSETS,
        "subset_construction": "random-halves",
        "subsets_per_record": None,
        "prior": 0.5,
    }
    opening = {
        "guarantee": guarantee,
        "mutual_information_budget_nats": budget,
        "mechanism": described | mechanism,
        "num_records": NUM_RECORDS,
        "seed": SEED,
    }
    return SimpleNamespace(events=[opening], head=head)


def keep(path: Path, content: Any) -> Path:
    """Writes a kept file."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def find(folder: Path, ledger: Any, num_records: int = NUM_RECORDS) -> SubsetGame | None:
    return find_subset_game(ledger, num_records, kept=folder / "kept.json", folder=folder)


@pytest.mark.parametrize("secret", [0, NUM_SUBSETS - 1])
def test_kept_secret_is_taken(secret: int, tmp_path: Path) -> None:
    """The candidates are those of the public seed; nothing is drawn."""
    keep(tmp_path / "kept.json", {"subset": secret, "ledger": HEAD, "what": "for the audit"})
    game = find(tmp_path, make_ledger())
    assert game is not None
    assert (game.true_candidate, game.prior, game.is_drawn_after) == (secret, 0.5, False)
    candidates = CandidateSubsets(num_subsets=NUM_SUBSETS, seed=SEED)
    assert np.array_equal(game.membership, candidates.membership(NUM_RECORDS))
    assert not (tmp_path / DRAWN).exists()


def test_rate_needs_its_k(tmp_path: Path) -> None:
    """A ledger that says how many subsets hold a record gives the candidates; others do not."""
    keep(tmp_path / "kept.json", {"subset": 1, "ledger": HEAD})
    rate = {"subset_construction": "rate", "prior": 0.75}
    game = find(tmp_path, make_ledger(**rate, subsets_per_record=2))
    assert game is not None
    assert (game.membership.sum(axis=1) == 2).all()
    assert game.prior == 0.75
    assert find(tmp_path, make_ledger(**rate)) is None
    older = make_ledger(**rate)
    del older.events[0]["mechanism"]["subsets_per_record"]
    assert find(tmp_path, older) is None


def test_older_ledgers_of_halves_are_read(tmp_path: Path) -> None:
    """Before the key was there, a record was in half of the subsets, as it is without it."""
    keep(tmp_path / "kept.json", {"subset": 1, "ledger": HEAD})
    older = make_ledger()
    del older.events[0]["mechanism"]["subsets_per_record"]
    game = find(tmp_path, older)
    assert game is not None
    assert (game.membership.sum(axis=1) == NUM_SUBSETS // 2).all()


@pytest.mark.parametrize("name", ["kept.json", DRAWN])
def test_secret_of_another_run_is_refused(name: str, tmp_path: Path) -> None:
    """Both files name the ledger's head; the message does not tell the secret."""
    keep(tmp_path / name, {"subset": 5, "ledger": "b" * 64})
    ledger = make_ledger(budget=0.0 if name == DRAWN else 0.1)
    with pytest.raises(InvalidDataError, match="another run") as error:
        find(tmp_path, ledger)
    assert "5" not in str(error.value).replace(str(tmp_path), "")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "5",
        {"ledger": HEAD},
        {"subset": 5},
        {"subset": NUM_SUBSETS, "ledger": HEAD},
        {"subset": -1, "ledger": HEAD},
        {"subset": True, "ledger": HEAD},
        {"subset": 1.0, "ledger": HEAD},
        {"subset": None, "ledger": HEAD},
    ],
)
def test_damaged_files_are_refused(content: Any, tmp_path: Path) -> None:
    """A file without a head or without a candidate's number is no secret."""
    keep(tmp_path / "kept.json", content)
    with pytest.raises(InvalidDataError, match="one of 8 candidate subsets"):
        find(tmp_path, make_ledger())


def test_no_game(tmp_path: Path) -> None:
    """Without a kept secret, a PAC ledger or the whole pool there is none."""
    assert find(tmp_path, make_ledger()) is None
    keep(tmp_path / "kept.json", {"subset": 1, "ledger": HEAD})
    assert find(tmp_path, make_ledger(guarantee="none")) is None
    assert find(tmp_path, make_ledger(), NUM_RECORDS - 1) is None
    assert find_subset_game(None, NUM_RECORDS, kept=tmp_path / "kept.json", folder=tmp_path) is None


def test_drawn_secret_stays(tmp_path: Path) -> None:
    """At budget 0 it is drawn once, whatever lies where a kept one would be."""
    keep(tmp_path / "kept.json", "nonsense")
    first, second = (find(tmp_path, make_ledger(budget=0.0)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.is_drawn_after
    assert first.true_candidate == second.true_candidate
    assert (tmp_path / DRAWN).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("is_in", [False, True])
def test_a_candidate_without_a_side_ends_the_game(is_in: bool) -> None:
    """A candidate of no record, or of all, cannot be ordered among the others."""
    membership = np.zeros((4, 3), dtype=np.bool_)
    membership[[0, 1, 2], [0, 1, 1]] = True
    membership[:, 2] = is_in
    game = SubsetGame(membership=membership, true_candidate=0, prior=0.75, is_drawn_after=False)
    rules = Rules(
        names=["loss"], deciding="loss", num_guesses=0, delta=0.0, significance=0.05, seed=0
    )
    record: Any = None
    material = Material(members=[record] * 4, nonmembers=(), canaries=(), style="", task=None)
    scores = Scores(members={"loss": np.arange(4.0)}, nonmembers={}, canaries={})
    nobody = np.zeros(0, dtype=np.bool_)
    assert measure(scores, material, rules, is_included=nobody, game=game).subset is None
    plan = plan_control(material, game, epochs=1, seed=0)
    assert plan.candidate is None
    assert plan.is_trained.sum() == 2  # a random half


def make_material(count: int) -> Material:
    records = [Record(f"text {i}", "1", (), i + 1) for i in range(count)]
    return Material(members=records, nonmembers=(), canaries=(), style="", task=None)


def make_game(count: int, **construction: Any) -> SubsetGame:
    candidates = CandidateSubsets(num_subsets=16, seed=SEED, **construction)
    return SubsetGame(
        membership=candidates.membership(count), true_candidate=0, prior=0.5, is_drawn_after=True
    )


def test_control_of_a_large_pool_plays_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns a candidate's part of a sample, and a score that tells its records finds it."""
    material, game = make_material(1_500), make_game(1_500)
    plan = plan_control(material, game, epochs=1, seed=0)
    assert plan.candidate is not None
    assert plan.places.size == len(plan.records) == 300
    assert (np.diff(plan.places) > 0).all()
    assert [record.line for record in plan.records] == (plan.places + 1).tolist()
    assert np.array_equal(plan.is_trained, game.membership[plan.places, plan.candidate])
    assert 100 < plan.is_trained.sum() < 200
    scores = Scores(
        members={"loss": plan.is_trained + np.linspace(0.0, 1.5, 300)}, nonmembers={}, canaries={}
    )
    monkeypatch.setattr(audit_control_plan, "score_material", lambda *_, **__: scores)
    nothing: Any = None
    rules = Rules(
        names=["loss"], deciding="loss", num_guesses=0, delta=0.0, significance=0.05, seed=0
    )
    found = measure_control(
        nothing, plan, material, rules, game=game, folder=nothing, tokens_per_batch=1
    )
    assert found.subset is not None
    assert found.subset.rank == 1


def test_size_of_the_control() -> None:
    """Small pools are taken whole; where candidates are small, more records are taken."""
    sizes = [
        plan_control(make_material(count), game, epochs=1, seed=0).places.size
        for count, game in (
            (90, None),
            (90, make_game(90)),
            (400, None),
            (2_000, make_game(2_000, construction="rate", subsets_per_record=4)),
            (2_000, make_game(2_000, construction="rate", subsets_per_record=1)),
        )
    ]
    assert sizes == [90, 90, 300, 600, 1_000]
