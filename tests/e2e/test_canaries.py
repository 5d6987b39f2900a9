"""Canaries in real runs: the list stays with the holder, and nothing else follows the coins."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import sordino
from helpers_runs import (
    BAD,
    CONTEXT_LENGTH,
    GOOD,
    NOUNS,
    SMALL,
    completion_rows,
    files_below,
    run_cli,
    sentiment_rows,
    write_jsonl,
)
from helpers_tiny_models import naive_loss
from sordino.attacks.canaries import canary_guess_bound, exposure, read_canaries
from sordino.attacks.subject import open_subject
from sordino.core.errors import (
    InvalidDataError,
    InvalidParameterError,
    LedgerError,
    SordinoError,
)
from sordino.data import CompletionTask
from sordino.gradients.clipped import ClippedGradients
from sordino.gradients.estimators import ZerothOrderEstimator
from sordino.ledger.journal import Commit, Journal
from sordino.ledger.ledger import Ledger
from sordino.ledger.transcript import read_transcript
from sordino.training import canaries as planting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sordino.gradients.objectives import LanguageModel

pytestmark = pytest.mark.usefixtures("calibrated_once")

DRIVER = Path(__file__).with_name("crash_driver.py")
NUM_CANARIES = 8
PAC = SMALL | {"canaries": NUM_CANARIES}
NAMES = PAC | {"canary_style": "rare-name"}
OVERFITTED = {
    "canaries": 60,
    "guarantee": "none",
    "estimator": "first-order",
    "optimizer": "adamw",
    "num_steps": 40,
    "learning_rate": 0.05,
    "lora_factors": "both",
    "lora_targets": ["q_proj", "v_proj", "up_proj", "down_proj"],
    "dtype": "float32",
    "device": "cpu",
}
USERS = {
    "canaries": NUM_CANARIES,
    "guarantee": "dp",
    "estimator": "first-order",
    "epsilon": 8.0,
    "delta": 1e-3,
    "batch_size": 6,
    "unit": "user",
    "num_steps": 3,
    "learning_rate": 0.01,
    "lora_rank": 2,
    "dtype": "float32",
    "device": "cpu",
}


@pytest.fixture
def files(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    rows = [row | {"user": i * i % 7} for i, row in enumerate(sentiment_rows(24))]
    return {
        "model": str(tiny_model),
        "train": write_jsonl(tmp_path / "pool.jsonl", rows),
        "output": tmp_path / "run",
    }


def list_of(run: Path) -> Path:
    return run.with_name(run.name + ".private") / "canaries.PRIVATE.json"


def opening_of(run: Path) -> dict[str, Any]:
    return Ledger.open(run / "ledger.jsonl").events[0]


def throw(patch: pytest.MonkeyPatch, *is_included: bool) -> None:
    """Makes the coins fall as wanted, the same for all if there is one."""
    wanted = np.array(is_included * NUM_CANARIES)[:NUM_CANARIES]
    patch.setattr(planting, "draw_inclusion", lambda _count, _entropy: wanted)


def interrupt(patch: pytest.MonkeyPatch, num_commits: int) -> None:
    """Presses ctrl-C after so many commits."""
    commit, done = Journal.commit, []

    def count(self: Journal, commit_: Commit, ledger: Ledger) -> None:
        commit(self, commit_, ledger)
        done.append(commit_)
        if len(done) == num_commits:
            raise KeyboardInterrupt

    patch.setattr(Journal, "commit", count)


def start_and_interrupt(files: dict[str, Any], num_commits: int, settings: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, num_commits)
        with pytest.raises(KeyboardInterrupt):
            sordino.tune(**files, **settings)


@pytest.mark.parametrize("style", ["random-tokens", "rare-name", "new-token"])
@pytest.mark.parametrize("guarantee", ["pac", "dp"])
def test_list_stays_with_the_holder(
    guarantee: str, style: str, files: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """No public file and no printed word has a canary; the private file is private."""
    run = files["output"]
    words: list[object] = ["tune"]
    settings = (USERS if guarantee == "dp" else PAC) | {"canary_style": style}
    for name, value in (files | settings).items():
        words += ["--" + name.replace("_", "-"), value]
    shell = run_cli(capsys, *words)
    assert shell.code == 0, shell.err
    path = list_of(run)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    planned = read_canaries(path)
    assert (len(planned.records), planned.style, planned.seed) == (NUM_CANARIES, style, 0)
    public = files_below(run) | {"out": shell.out.encode(), "err": shell.err.encode()}
    for where, content in public.items():
        assert b"PRIVATE" not in content, where
        for record in planned.records:
            assert record.prompt.encode() not in content, where
    assert sordino.verify(run, model=files["model"]).is_valid
    assert opening_of(run)["canaries"] == {
        "num_planned": NUM_CANARIES,
        "style": style,
        "name": planned.name,
    }
    assert f"| canaries | {NUM_CANARIES} planned, {style} |" in public["README.md"].decode()
    assert "are places for canaries, invented for an audit" in " ".join(shell.out.split())


@pytest.mark.parametrize("style", ["random-tokens", "rare-name", "new-token"])
def test_canaries_do_not_follow_the_pool(
    style: str, files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defect: one record full of rare words changed many canaries, and the sensitivity with them.

    Neighbors by one record added and by one replaced get the same list, byte for byte.
    """
    throw(monkeypatch, True, False)
    monkeypatch.setattr(planting.secrets, "token_hex", lambda num_bytes: "ab" * num_bytes)
    rows = [row | {"user": i} for i, row in enumerate(sentiment_rows(24))]
    hungry = {"text": " ".join((*NOUNS, *GOOD, *BAD)), "label": 1, "user": 99}
    pools = {"some": rows, "added": [*rows, hungry], "replaced": [*rows[:-1], hungry]}
    lists = set()
    for name, pool in pools.items():
        output = tmp_path / name
        train = write_jsonl(tmp_path / f"{name}.jsonl", pool)
        changes = {"train": train, "output": output, "canary_style": style, "num_steps": 1}
        sordino.tune(**files | USERS | changes)
        lists.add(list_of(output).read_bytes())
    assert len(lists) == 1


def test_published_numbers_do_not_follow_the_coins(files: dict[str, Any]) -> None:
    """Defect: the pool's size, the noise or the sampling betray how many canaries are in."""
    for name, settings in {"pac": PAC | {"batch_size": 20}, "dp": USERS}.items():
        seen = []
        for kept in (True, False):
            output = files["output"].with_name(f"{name}-{kept}")
            with pytest.MonkeyPatch.context() as patch:
                throw(patch, kept)
                # the list's name is random in every run, and drawn apart from the coins
                patch.setattr(planting.secrets, "token_hex", lambda num_bytes: "ab" * num_bytes)
                sordino.tune(**files | {"output": output}, **settings)
            assert read_canaries(list_of(output)).is_included.tolist() == [kept] * NUM_CANARIES
            header, _ = read_transcript(output / "transcript.bin")
            card = (output / "README.md").read_text()
            seen.append((opening_of(output), header.to_bytes(), card))
        assert seen[0] == seen[1]
        assert seen[0][0]["num_records"] == (24 if name == "pac" else 4) + NUM_CANARIES
    dp = seen[0][0]["dp"]
    assert (dp["num_units"], dp["sampling_probability"]) == (12, 0.5)


def test_nothing_is_computed_on_a_canary_that_is_not_in(
    files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The places of the included canaries are looked at, those left empty never."""
    looked_at = set()
    real = ZerothOrderEstimator.contributions

    def contributions(this: Any, step: int, batches: Any) -> Iterator[Any]:
        looked_at.update(i for batch in batches for i in batch)
        yield from real(this, step, batches)

    monkeypatch.setattr(ZerothOrderEstimator, "contributions", contributions)
    throw(monkeypatch, True, False, False, True)
    sordino.tune(**files, **PAC, holder_report=True)
    assert looked_at == {*range(24), 24, 27, 28, 31}
    report = json.loads(
        (list_of(files["output"]).parent / "holder_report.PRIVATE.json").read_text()
    )
    assert report["num_records"] == 24 + NUM_CANARIES  # one entry a place
    assert [report["loss_nats"][i] for i in (25, 26, 29, 30)] == [0.0] * 4
    assert list_of(files["output"]).exists()


def test_canaries_teach(files: dict[str, Any]) -> None:
    """Without privacy, the same run with all canaries and with none ends at other weights."""
    weights = []
    for kept in (True, False):
        output = files["output"].with_name(str(kept))
        with pytest.MonkeyPatch.context() as patch:
            throw(patch, kept)
            settings = PAC | {"guarantee": "none"}
            sordino.tune(**files | {"output": output}, **settings)
        weights.append((output / "adapter_model.safetensors").read_bytes())
        assert sordino.verify(output, model=files["model"]).is_valid
    assert weights[0] != weights[1]


def test_an_overfitted_run_is_caught(
    files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From list to bound: without privacy the guesses are right. Coins are fixed, so no chance."""
    files["train"] = write_jsonl(files["train"].with_name("notes.jsonl"), completion_rows(12))
    is_included = np.random.default_rng(5).integers(0, 2, size=60).astype(np.bool_)
    monkeypatch.setattr(planting, "draw_inclusion", lambda _count, _entropy: is_included)
    sordino.tune(**files, **OVERFITTED)
    planned = read_canaries(list_of(files["output"]))
    subject = open_subject(str(files["output"]), base=files["model"], dtype=torch.float32)
    examples = CompletionTask().encode(planned.records, subject.tokenizer, CONTEXT_LENGTH)

    def losses(model: LanguageModel) -> np.ndarray:
        return np.array([float(naive_loss(model.causal_lm, example)) for example in examples])

    with torch.no_grad():
        tuned = losses(subject.tuned)
        with subject.base() as base:
            scores = losses(base) - tuned
    bound = canary_guess_bound(scores, planned.is_included, 20, 1e-4)
    assert bound.num_correct >= 18
    assert bound.epsilon_lower > 0.8
    exposures = exposure(scores[is_included], scores[~is_included])
    assert np.median(exposures) > 3.0


@pytest.mark.parametrize("objective", ["loss", "token-f1"])
def test_completions(objective: str, files: dict[str, Any], tmp_path: Path) -> None:
    """In a completion, the completion holds the secret."""
    files["train"] = write_jsonl(tmp_path / "notes.jsonl", completion_rows(12))
    settings = PAC | {"objective": objective, "max_new_tokens": 4, "on_disagreement": "coin"}
    sordino.tune(**files, **settings)
    planned = read_canaries(list_of(files["output"]))
    assert len({record.prompt for record in planned.records}) == 1
    assert len({record.references for record in planned.records}) == NUM_CANARIES
    assert sordino.verify(files["output"], model=files["model"]).is_valid


def test_without_canaries_nothing_changes(files: dict[str, Any]) -> None:
    """No list, and the ledger says that there were none."""
    sordino.tune(**files, **SMALL)
    assert opening_of(files["output"])["canaries"] is None
    assert not list_of(files["output"]).parent.exists()
    assert "canaries" not in (files["output"] / "README.md").read_text()


@pytest.mark.filterwarnings("ignore::sordino.training.gradient_steps.LostStepsWarning")
@pytest.mark.parametrize("settings", [NAMES, USERS], ids=["pac", "dp"])
def test_resumed_run_never_draws_again(
    settings: dict[str, Any], files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of the start is the list of the end; a finished run may be resumed too."""
    start_and_interrupt(files, 2, settings)
    before = list_of(files["output"]).read_bytes()

    def refuse(*_arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(planting, "draw_inclusion", refuse)
    monkeypatch.setattr(planting, "plan_canaries", refuse)
    sordino.tune(**files, **settings, resume=True)
    assert list_of(files["output"]).read_bytes() == before
    assert sordino.verify(files["output"], model=files["model"]).is_valid
    finished = files_below(files["output"].parent)
    sordino.tune(**files, **settings, resume=True)
    assert files_below(files["output"].parent) == finished


def test_resume_fails_closed(files: dict[str, Any]) -> None:
    """A list that is gone, damaged, readable by others or of other settings stops the run."""
    start_and_interrupt(files, 2, NAMES)
    path = list_of(files["output"])
    content = path.read_bytes()
    planned = read_canaries(path)
    names = [record.prompt for record in planned.records]

    def refused(message: str, **changes: Any) -> None:
        before = files_below(files["output"].parent)
        with pytest.raises(LedgerError, match=message) as error:
            sordino.tune(**files, **NAMES | changes, resume=True)
        assert files_below(files["output"].parent) == before
        assert not any(name in str(error.value) for name in names)

    refused("Different: canaries", canaries=NUM_CANARIES + 1)
    refused("Different: canaries", canary_style="random-tokens")
    refused("Different: canaries", seed=5)
    refused(r"Different: canaries, num_records", canaries=0)
    path.chmod(0o640)
    refused("others could read")
    path.chmod(0o600)
    path.write_bytes(content.replace(b'"is_included":true', b'"is_included":false', 1)[:-1])
    refused("not a readable list of canaries")
    path.write_bytes(content[:-9])
    refused("not a readable list of canaries")
    flipped = replace(planned, is_included=~planned.is_included)
    path.write_bytes(flipped.to_bytes())
    refused("training records are not those that this run was started with")
    path.unlink()
    refused("is gone, or the run was started without --canaries")
    path.write_bytes(content)
    path.chmod(0o600)
    sordino.tune(**files, **NAMES, resume=True)
    assert path.read_bytes() == content


def test_canaries_cannot_be_added_later(files: dict[str, Any]) -> None:
    """A run that was started without them goes on without them."""
    start_and_interrupt(files, 2, SMALL)
    with pytest.raises(LedgerError, match="started without --canaries"):
        sordino.tune(**files, **PAC, resume=True)
    assert not list_of(files["output"]).exists()


def test_failed_start_leaves_nothing(
    files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that charged nothing, or could be discarded, takes its list away."""

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "commit", full)
        with pytest.raises(OSError, match="No space"):
            sordino.tune(**files, **PAC)
    assert sorted(p.name for p in files["output"].parent.iterdir()) == ["pool.jsonl"]
    with monkeypatch.context() as patch:
        patch.setattr(ClippedGradients, "add_batch", lambda *_arguments: None)
        with pytest.raises(SordinoError, match="every gradient is exactly 0"):
            sordino.tune(**files, **USERS)
    assert sorted(p.name for p in files["output"].parent.iterdir()) == ["pool.jsonl"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"canaries": -1}, InvalidParameterError, "canaries must be a whole number"),
        ({"canaries": 2.5}, InvalidParameterError, "canaries must be a whole number"),
        ({"canary_style": "loud"}, InvalidParameterError, "canary_style"),
        ({"max_length": 20, "truncate": True}, InvalidParameterError, "do not fit this task"),
        (
            {"canary_style": "new-token", "canaries": 99},
            InvalidParameterError,
            "words of one token",
        ),
    ],
)
def test_what_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str, files: dict[str, Any]
) -> None:
    """Nothing is written when canaries cannot be planned; a canary is never cut."""
    template = "{text} It was very very very very very very very very very very very very very"
    with pytest.raises(error, match=message):
        sordino.tune(**files, **PAC | {"template": template} | changes)
    assert sorted(p.name for p in files["output"].parent.iterdir()) == ["pool.jsonl"]


def test_public_records_may_not_be_canaries(
    files: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Scores of canaries would be releases; whether the canary is in does not matter."""
    sordino.tune(**files | {"output": tmp_path / "first"}, **PAC)
    text = read_canaries(list_of(tmp_path / "first")).records[3].prompt
    public = write_jsonl(tmp_path / "public.jsonl", [{"text": text.upper(), "label": 1}])
    for kept in (True, False):
        throw(monkeypatch, kept)
        with pytest.raises(InvalidDataError, match="prompt of a canary") as error:
            sordino.tune(**files, **PAC, validation=public, validation_is_public=True)
        assert text not in str(error.value)
    assert not files["output"].exists()


def test_list_of_a_moved_run_is_kept(files: dict[str, Any]) -> None:
    """Neither a new run nor --resume overwrites the list of a run whose folder was moved away."""
    sordino.tune(**files, **PAC)
    content = list_of(files["output"]).read_bytes()
    files["output"].rename(files["output"].with_name("published"))
    for settings in (PAC, SMALL, PAC | {"resume": True}, SMALL | {"resume": True}):
        with pytest.raises(InvalidParameterError, match="finished run whose folder is gone"):
            sordino.tune(**files, **settings)
    assert list_of(files["output"]).read_bytes() == content
    assert not files["output"].exists()


def test_killed_at_every_moment(tmp_path: Path, files: dict[str, Any]) -> None:
    """Once a list is whole on disk, it is the run's list, whatever kills the process."""
    settings = {k: str(files[k]) for k in ("model", "train")} | PAC | {"num_steps": 1}
    plan = [
        {"action": "sweep", "root": str(tmp_path / kind), "settings": settings, "kill": kind}
        for kind in ("before", "torn", "change")
    ]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, str(DRIVER)]
    command += [str(tmp_path / "plan.json"), str(tmp_path / "answer.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    sweeps = json.loads((tmp_path / "answer.json").read_text())
    assert all(len(answers) >= 5 for answers in sweeps.values())
    num_kept = 0
    for root, codes in (pair for answers in sweeps.values() for pair in answers.items()):
        assert codes == {"crashed": 99, "resumed": 0}, (Path(root) / "log").read_text()
        before = list_of(Path(root) / "crashed" / "run")
        after = list_of(Path(root) / "run")
        assert stat.S_IMODE(after.stat().st_mode) == 0o600
        assert [path.name for path in after.parent.iterdir()] == [after.name]
        assert len(read_canaries(after).records) == NUM_CANARIES
        num_kept += before.exists()
        if before.exists():
            assert before.read_bytes() == after.read_bytes(), root
        assert before.exists() or not (before.parent / "journal.sealed").exists()
        assert sordino.verify(Path(root) / "run", model=files["model"]).is_valid
    assert num_kept >= 9
