"""`--keep-subset`: the secret outlives the run in one private file, for the audit only."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import sordino
import sordino.reports.audit as audit_module
from helpers_runs import SMALL, Shell, files_below, run_cli, sentiment_rows, write_jsonl
from sordino.core.entropy import OperatingSystemEntropy
from sordino.core.errors import InvalidDataError
from sordino.ledger.ledger import Ledger
from sordino.mechanisms.binary_channel import BinaryChannelMechanism
from sordino.mechanisms.candidates import CandidateSubsets
from sordino.reports.audit_subset import SubsetGame, find_subset_game
from sordino.training.run_folder import RunFolder

NUM_RECORDS = 24
MANY = 20_000
SECRET = 17_342  # of `MANY`: a number that no size, offset or place of these runs can be
KEPT = SMALL | {"mutual_information": 0.1, "keep_subset": True}

if TYPE_CHECKING:
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool and other records."""
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "pool.jsonl", sentiment_rows(NUM_RECORDS))
    write_jsonl(folder / "others.jsonl", sentiment_rows(NUM_RECORDS, start=NUM_RECORDS))
    return folder


@dataclass(frozen=True, slots=True)
class Seen:
    """The secret with which each step of a run is released, and the games that audits play."""

    secrets: list[int] = field(default_factory=list)
    games: list[SubsetGame | None] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What runs and audits in this process do with their secrets."""
    found = Seen()
    real = BinaryChannelMechanism.release

    def release(self: BinaryChannelMechanism, *step: Any) -> Any:
        found.secrets.append(self.private_state()["secret"])
        return real(self, *step)

    def find(*arguments: Any, **options: Any) -> SubsetGame | None:
        found.games.append(find_subset_game(*arguments, **options))
        return found.games[-1]

    monkeypatch.setattr(BinaryChannelMechanism, "release", release)
    monkeypatch.setattr(audit_module, "find_subset_game", find)
    return found


def tell(files: dict[str, bytes], shell: Shell) -> dict[str, bytes]:
    """Returns all that was written and said, by its place."""
    return files | {"output": shell.out.encode(), "errors": shell.err.encode()}


def test_secret_is_in_one_private_file(
    data: Path,
    tiny_model: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither another file nor a printed line of run and audit has it, under any umask.

    Failure rate of a correct run: the place of the true subset, one of 20,000, may be its number.
    """
    real = OperatingSystemEntropy.index
    monkeypatch.setattr(
        OperatingSystemEntropy,
        "index",
        lambda self, count: SECRET if count == MANY else real(self, count),
    )
    run = tmp_path / "run"
    words: list[object] = ["tune", "--model", tiny_model, "--train", data / "pool.jsonl"]
    words += ["--output", run]
    for name, value in (KEPT | {"num_subsets": MANY}).items():
        words += ["--" + name.replace("_", "-"), *([] if value is True else [value])]
    before = os.umask(0)
    try:
        tuned = run_cli(capsys, *words)
    finally:
        os.umask(before)
    assert tuned.code == 0, tuned.err
    kept = RunFolder(run).subset
    assert [path.name for path in kept.parent.iterdir()] == ["subset.PRIVATE.json"]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    content = json.loads(kept.read_bytes())
    assert content.pop("what").startswith("For the subset game of `sordino audit`")
    assert content == {"subset": SECRET, "ledger": Ledger.open(run / "ledger.jsonl").head}
    assert sordino.verify(run, model=str(tiny_model)).is_valid

    audited = run_cli(
        capsys,
        *("audit", run, "--model", tiny_model, "--no-control"),
        *("--members", data / "pool.jsonl", "--nonmembers", data / "others.jsonl"),
    )
    assert audited.code == 0, audited.err
    everything = tell(files_below(tmp_path), tuned) | tell({}, audited)
    everything |= {"tuned: " + name: text for name, text in tell({}, tuned).items()}
    told = [name for name, text in everything.items() if re.search(rb"\b17342\b", text)]
    assert told == ["run.private/subset.PRIVATE.json"]


@pytest.mark.parametrize("construction", ["random-halves", "complementary-pairs", "rate"])
def test_audit_plays_with_the_subset_that_was_used(
    construction: str, data: Path, tiny_model: Path, tmp_path: Path, seen: Seen
) -> None:
    """The secret of the game is the one of the releases, among the candidates of the run."""
    run = tmp_path / "run"
    per_record = 3 if construction == "rate" else None
    sordino.tune(
        model=str(tiny_model),
        train=data / "pool.jsonl",
        output=run,
        subset_construction=construction,
        subsets_per_record=per_record,
        **KEPT,
    )
    arguments: dict[str, Any] = {
        "model": str(tiny_model),
        "members": data / "pool.jsonl",
        "nonmembers": data / "others.jsonl",
        "control": False,
    }
    found = sordino.audit(str(run), **arguments).audit
    assert found.subset is not None
    assert not found.subset.is_drawn_after
    assert found.subset.num_subsets == SMALL["num_subsets"]
    (game,) = seen.games
    assert game is not None
    assert {game.true_candidate} == set(seen.secrets)
    candidates = CandidateSubsets(
        num_subsets=SMALL["num_subsets"], construction=construction, subsets_per_record=per_record
    )
    assert np.array_equal(game.membership, candidates.membership(NUM_RECORDS))
    assert game.prior == candidates.prior
    assert not list(tmp_path.rglob("drawn_subset*"))

    RunFolder(run).subset.unlink()
    without = sordino.audit(str(run), **arguments, output=tmp_path / "without").audit
    assert without.subset is None


def test_subset_of_another_run_is_refused(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A file that was copied from another run is not taken for this one's.

    Two runs with one seed may release the same bits, and then have the same ledger: the seeds
    differ, so that the ledgers always do.
    """
    for seed, name in enumerate(("a", "b")):
        sordino.tune(
            model=str(tiny_model),
            train=data / "pool.jsonl",
            output=tmp_path / name,
            seed=seed,
            **KEPT,
        )
    RunFolder(tmp_path / "a").subset.replace(RunFolder(tmp_path / "b").subset)
    with pytest.raises(InvalidDataError, match="another run"):
        sordino.audit(
            str(tmp_path / "b"),
            model=str(tiny_model),
            members=data / "pool.jsonl",
            nonmembers=data / "others.jsonl",
            control=False,
        )
