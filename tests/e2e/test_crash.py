"""A run that is killed at any moment goes on: charged once, told once, with the same secret."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import sordino
from helpers_runs import (
    SMALL,
    files_below,
    run_cli,
    sentiment_rows,
    write_jsonl,
    write_tiny_model,
)
from sordino.core.errors import LedgerError
from sordino.ledger.journal import Journal
from sordino.ledger.ledger import Ledger
from sordino.ledger.transcript import TranscriptHeader
from sordino.training.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sordino.ledger.journal import Commit

DRIVER = Path(__file__).with_name("crash_driver.py")
KILLED = 99
# backward passes, since they are fewer; eight directions fill whole bytes, three share them
MI = {"mutual_information": 0.1, "estimator": "first-order", "directions_per_step": 8}
KEPT = MI | {"keep_subset": True}
ZPL = {"directions_per_step": 3, "holder_report": True}
DP = {
    "guarantee": "dp",
    "epsilon": 8.0,
    "delta": 1e-3,
    "batch_size": 12,
    "estimator": "first-order",
    "learning_rate": 0.01,
}
SCORED = {"validation_is_public": True, "evaluate_every": 2}
SWEEPS = {
    f"{name}-{kind}": (settings, kind)
    for name, settings, kinds in (
        ("mi", MI, ("before", "torn", "change")),
        ("kept", KEPT, ("torn", "change")),
        ("zpl", ZPL | SCORED, ("torn", "change")),
        ("dp", DP, ("torn", "change")),
    )
    for kind in kinds
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Any]:
    """Model, private pool and public records, as settings of `tune`."""
    root = tmp_path_factory.mktemp("crash")
    return {
        "model": str(tiny_model),
        "train": str(write_jsonl(root / "pool.jsonl", sentiment_rows(24))),
        "validation": str(write_jsonl(root / "public.jsonl", sentiment_rows(4, start=90))),
    }


def drive(folder: Path, plan: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what the driver reports about each entry of a plan."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, str(DRIVER), str(folder / "plan.json"), str(folder / "answer.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "answer.json").read_text())


def read_state(run: Path) -> dict[str, Any] | None:
    """Returns the mechanism's part of a sealed journal; None if there is no whole journal."""
    path = run.with_name(run.name + ".private") / "journal.sealed"
    if not path.exists():
        return None
    return json.loads(path.read_bytes())["body"]["state"].get("mechanism", {})


def assert_went_on(root: Path, settings: dict[str, Any], model: Path) -> None:
    """Fails unless the resumed run is whole, within budget, and continues what was on disk."""
    run, crashed = root / "run", root / "crashed" / "run"
    result = sordino.verify(run, model=str(model))
    assert [(c.what, c.difference) for c in result.checks if c.difference] == []
    ledger = Ledger.open(run / "ledger.jsonl")
    steps = [event["step"] for event in ledger.of_kind("release")]
    assert steps == list(range(settings["num_steps"]))
    assert ledger.mutual_information_spent <= Fraction(settings.get("mutual_information", 0.0))
    left = {path.name for path in root.iterdir()}
    if settings.get("holder_report"):
        report = root / "run.private" / "holder_report.PRIVATE.json"
        assert [p.name for p in (root / "run.private").iterdir()] == [report.name]
        assert stat.S_IMODE(report.stat().st_mode) == 0o600
        assert len(json.loads(report.read_text())["loss_nats"]) == 24
    elif settings.get("keep_subset"):
        assert_subset_kept(run, read_state(crashed))
    else:
        assert "run.private" not in left
    assert left <= {"run", "run.private", "crashed", "log", "restored.json"}
    if (crashed / "ledger.jsonl").exists():
        whole_lines = (crashed / "ledger.jsonl").read_bytes().rpartition(b"\n")
        assert (run / "ledger.jsonl").read_bytes().startswith(whole_lines[0] + whole_lines[1])
    _assert_transcript_continues(run / "transcript.bin", crashed / "transcript.bin")


def assert_subset_kept(run: Path, state: dict[str, Any] | None) -> None:
    """Fails unless a finished run left its secret: the one of a journal that a crash left."""
    (path,) = run.with_name("run.private").iterdir()
    assert path == RunFolder(run).subset
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = json.loads(path.read_bytes())
    assert set(kept) == {"subset", "ledger", "what"}
    assert kept["ledger"] == Ledger.open(run / "ledger.jsonl").head
    assert kept["subset"] in range(SMALL["num_subsets"])
    if state is not None:
        assert kept["subset"] == state["secret"]


def _assert_transcript_continues(after: Path, before: Path) -> None:
    """Fails if a released symbol that was on disk is another one now."""
    old = before.read_bytes() if before.exists() else b""
    new = after.read_bytes()
    header, end = TranscriptHeader.from_bytes(new, str(after))
    if len(old) <= end:
        assert new.startswith(old)
        return
    assert new.startswith(old[:-1])
    if header.directions_per_step % 8 == 0:
        assert new.startswith(old)  # no byte is shared with a later step
    else:
        assert new[len(old) - 1] & old[-1] == old[-1]  # later steps only fill unused bits


def assert_secret_survived(root: Path) -> None:
    """Fails unless the resumed run took secret, posterior and spending from the journal."""
    before = read_state(root / "crashed" / "run")
    restored = root / "restored.json"
    if before is not None and restored.exists():
        assert json.loads(restored.read_text()) == before


def _assert_sealed(crashed: Path) -> None:
    """Fails unless private files lie beside the run folder, for nobody else's eyes."""
    private = crashed / "run.private"
    if not private.exists():
        return
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in private.iterdir()}
    assert all(mode == 0o600 for name, mode in modes.items() if name != "lock"), modes
    names = {path.name for path in (crashed / "run").iterdir()}
    assert not any("journal" in name or "PRIVATE" in name for name in names)


def choose_settings(files: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run on the given files; scores only where they are asked for."""
    unused = () if "validation_is_public" in changes else ("validation",)
    return {k: v for k, v in files.items() if k not in unused} | SMALL | changes


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Any]) -> dict[str, Any]:
    """Runs of three steps, killed at every moment of a kind and resumed; by sweep and folder."""
    root = tmp_path_factory.mktemp("sweeps")
    plan = [
        {
            "action": "sweep",
            "root": str(root / name),
            "settings": choose_settings(files, changes),
            "kill": kind,
        }
        for name, (changes, kind) in SWEEPS.items()
    ]
    answers = drive(root, plan)
    return {name: answers[str(root / name)] for name in SWEEPS}


@pytest.mark.parametrize("name", SWEEPS)
def test_killed_at_every_write(name: str, swept: dict[str, Any], files: dict[str, Any]) -> None:
    """Killed before or within any durable write, or at any folder change, the run goes on."""
    changes, kind = SWEEPS[name]
    settings = choose_settings(files, changes)
    least = 10 if kind == "change" else 18  # 5 commits of 3 writes, certificate, card, erasure
    assert len(swept[name]) >= least
    for root, codes in swept[name].items():
        assert codes == {"crashed": KILLED, "resumed": 0}, (root, (Path(root) / "log").read_text())
        _assert_sealed(Path(root) / "crashed")
        assert_went_on(Path(root), settings, Path(files["model"]))
        assert_secret_survived(Path(root))
    sealed = [read_state(Path(root) / "crashed" / "run") for root in swept[name]]
    assert sum(state is not None for state in sealed) >= least // 2


@pytest.fixture(scope="module")
def acted(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Any]) -> dict[str, Any]:
    """What the driver says about random kills, kills of resumed runs, and contending processes."""
    root = tmp_path_factory.mktemp("acts")
    mi, zpl = choose_settings(files, MI), choose_settings(files, ZPL)
    moments = [
        {
            "root": str(root / f"moment-{name}-{i}"),
            "settings": settings | {"num_steps": 20},
            "kill": "moment",
            "seconds": 0.6,
        }
        for name, settings in (("mi", mi), ("zpl", zpl))
        for i in range(6)
    ]
    others = [
        {
            "root": str(root / "again-and-again"),
            "action": "repeat",
            "settings": mi | {"num_steps": 12},
            "kill": "after",
            "most": 50,
        },
        {"root": str(root / "contend"), "action": "contend", "settings": mi, "number": 7},
        {"root": str(root / "race"), "action": "race", "settings": mi},
    ]
    answers = drive(root, [*moments, *others])
    return {Path(name).name: (Path(name), answer) for name, answer in answers.items()}


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("name", ["mi", "zpl"])
def test_killed_at_a_random_moment(
    name: str, number: int, acted: dict[str, Any], files: dict[str, Any]
) -> None:
    """SIGKILL at any time leaves a run that goes on, charged once a step."""
    root, codes = acted[f"moment-{name}-{number}"]
    assert codes == {"crashed": -signal.SIGKILL, "resumed": 0}, (root / "log").read_text()
    settings = choose_settings(files, MI if name == "mi" else ZPL) | {"num_steps": 20}
    assert_went_on(root, settings, Path(files["model"]))
    assert_secret_survived(root)


def test_secret_and_spending_survive_many_crashes(
    acted: dict[str, Any], files: dict[str, Any]
) -> None:
    """Killed at every second write, the run keeps one secret, and its spending never shrinks."""
    root, answer = acted["again-and-again"]
    assert answer["codes"][-1] == 0
    assert set(answer["codes"][:-1]) == {KILLED}
    assert len(answer["codes"]) > 5
    states = [json.loads(body)["body"]["state"]["mechanism"] for body in answer["journals"]]
    assert len(states) > 5
    assert len({state["secret"] for state in states}) == 1
    spent = [Fraction(*state["spent"]) for state in states]
    assert spent == sorted(spent)
    assert 0 < spent[-1] <= Fraction(0.1)
    assert len({tuple(state["log_posterior"]) for state in states}) > 2  # and it does move
    settings = choose_settings(files, MI) | {"num_steps": 12}
    assert_went_on(root, settings, Path(files["model"]))


def test_second_process_is_refused(acted: dict[str, Any], files: dict[str, Any]) -> None:
    """While a run is under way, neither a new run nor a resumed one may touch its folder."""
    root, answer = acted["contend"]
    assert answer["is_untouched"]
    assert (answer["again"], answer["resumed"], answer["after the kill"]) == (1, 1, 0)
    assert "exists already" in (root / "again.log").read_text()
    assert "another process is working on" in (root / "resumed.log").read_text()
    assert sordino.verify(root / "run", model=files["model"]).is_valid


def test_late_start_overwrites_nothing(acted: dict[str, Any], files: dict[str, Any]) -> None:
    """A process that found the folder new looks again before it writes: another one was faster."""
    root, answer = acted["race"]
    assert (answer["first"], answer["second"]) == (0, 1)
    assert "exists already" in (root / "late.log").read_text()
    assert sordino.verify(root / "run", model=files["model"]).is_valid


@contextmanager
def interrupted(num_commits: int) -> Iterator[None]:
    """Presses ctrl-C after so many commits of whatever runs inside."""
    commit, done = Journal.commit, []

    def count(self: Journal, commit_: Commit, ledger: Ledger) -> None:
        commit(self, commit_, ledger)
        done.append(commit_)
        if len(done) == num_commits:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "commit", count)
        yield


def start_and_interrupt(
    output: Path, files: dict[str, Any], num_commits: int = 3, **changes: Any
) -> dict[str, Any]:
    """Leaves an unfinished run and returns its settings."""
    settings = choose_settings(files, changes) | {"output": output}
    with interrupted(num_commits), pytest.raises(KeyboardInterrupt):
        sordino.tune(**settings)
    return settings


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 5}, "seed"),
    "steps": ({"num_steps": 4}, "num_steps"),
    "learning rate": ({"learning_rate": 0.06}, "learning_rate"),
    "schedule": ({"learning_rate_schedule": "cosine"}, "learning_rate_schedule"),
    "weight decay": ({"weight_decay": 0.1}, "weight_decay"),
    "clip": ({"clip": 7.0}, "clip"),
    "budget": ({"mutual_information": 0.2}, "mutual_information_budget_nats"),
    "no budget": ({"mutual_information": 0.0}, "mechanism, mutual_information_budget_nats"),
    "no guarantee": ({"mutual_information": 0.0, "guarantee": "none"}, "guarantee"),
    "channel": ({"channel": "gaussian"}, "mechanism"),
    "schedule of the budget": ({"budget_schedule": "uniform"}, "mechanism"),
    "candidates": ({"num_subsets": 10}, "mechanism"),
    "construction": ({"subset_construction": "complementary-pairs"}, "mechanism"),
    "estimator": ({"estimator": "zeroth-order"}, "estimator"),
    "directions": ({"directions_per_step": 9}, "directions_per_step"),
    "kind of directions": ({"direction_kind": "gaussian"}, "direction_kind"),
    "sampling": ({"batch_size": 6}, "sampling"),
    "rank": ({"lora_rank": 3}, "adapter"),
    "factors": ({"lora_factors": "both"}, "adapter"),
    "template": ({"template": "{text} this was"}, "task"),
    "dtype": ({"dtype": "bfloat16"}, "compute_dtype"),
    "scores": ({"validation_is_public": True}, "validation"),
}


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Any]) -> dict[str, Any]:
    """An interrupted run with a budget."""
    return start_and_interrupt(tmp_path_factory.mktemp("unfinished") / "run", files, **MI)


@pytest.mark.parametrize("name", DIFFERENT)
def test_other_settings_are_refused(
    name: str, unfinished: dict[str, Any], files: dict[str, Any]
) -> None:
    """Resuming with another setting names it, and changes nothing on disk."""
    changes, named = DIFFERENT[name]
    settings = unfinished | changes
    if "validation_is_public" in changes:
        settings["validation"] = files["validation"]
    before = files_below(unfinished["output"].parent)
    with pytest.raises(LedgerError, match=rf"Different: .*\b{named}\b") as error:
        sordino.tune(**settings, resume=True)
    assert "--resume must repeat them" in str(error.value)
    assert files_below(unfinished["output"].parent) == before


def test_other_records_are_refused(
    tmp_path: Path, unfinished: dict[str, Any], files: dict[str, Any]
) -> None:
    """Resuming with other records is refused; the message holds none of them."""
    rows = sentiment_rows(24)
    rows[3]["label"] = 1 - rows[3]["label"]
    before = files_below(unfinished["output"].parent)
    other = write_jsonl(tmp_path / "other.jsonl", rows)
    with pytest.raises(LedgerError, match="training records are not those") as error:
        sordino.tune(**unfinished | {"train": other}, resume=True)
    assert rows[3]["text"] not in str(error.value)
    fewer = write_jsonl(tmp_path / "fewer.jsonl", sentiment_rows(23))
    with pytest.raises(LedgerError, match="Different: num_records"):
        sordino.tune(**unfinished | {"train": fewer}, resume=True)
    assert files_below(unfinished["output"].parent) == before


def test_other_base_model_is_refused(tmp_path: Path, unfinished: dict[str, Any]) -> None:
    """Resuming on a base model with other weights is refused."""
    other = write_tiny_model(tmp_path / "tiny")
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(LedgerError, match="Different: base_model_sha256"):
        sordino.tune(**unfinished | {"model": str(other)}, resume=True)


def test_new_run_does_not_touch_an_unfinished_one(unfinished: dict[str, Any]) -> None:
    """Without --resume, an unfinished run is neither continued nor overwritten."""
    before = files_below(unfinished["output"].parent)
    with pytest.raises(sordino.core.errors.InvalidParameterError, match="exists already"):
        sordino.tune(**unfinished)
    assert files_below(unfinished["output"].parent) == before


def test_unfinished_run_does_not_verify(unfinished: dict[str, Any]) -> None:
    """A run without its closing event is not valid, and the text says how to finish it."""
    result = sordino.verify(unfinished["output"])
    assert not result.is_valid
    assert any("--resume" in check.difference for check in result.checks)


def test_speed_settings_may_change(tmp_path: Path, files: dict[str, Any]) -> None:
    """How many tokens a batch holds is no part of the claim and may change."""
    settings = start_and_interrupt(tmp_path / "run", files, **MI)
    sordino.tune(**settings, tokens_per_batch=64, resume=True)
    assert sordino.verify(settings["output"], model=files["model"]).is_valid


def test_other_scores_are_refused(tmp_path: Path, files: dict[str, Any]) -> None:
    """Validation records, their schedule and the selection cannot change in the middle."""
    settings = start_and_interrupt(tmp_path / "run", files, **SCORED, select="best")
    others = write_jsonl(tmp_path / "others.jsonl", sentiment_rows(5, start=200))
    for changes in ({"validation": others}, {"select": "last"}, {"evaluate_every": 1}):
        with pytest.raises(LedgerError, match="Different: validation"):
            sordino.tune(**settings | changes, resume=True)
    sordino.tune(**settings, resume=True)
    assert sordino.verify(settings["output"]).is_valid


@pytest.mark.parametrize("had_report", [False, True])
def test_holder_report_must_be_asked_for_from_the_start(
    had_report: bool, tmp_path: Path, files: dict[str, Any]
) -> None:
    """A report over half of a run is not made, nor is one dropped."""
    settings = start_and_interrupt(tmp_path / "run", files, holder_report=had_report)
    with pytest.raises(LedgerError, match="--holder-report"):
        sordino.tune(**settings | {"holder_report": not had_report}, resume=True)


@pytest.mark.parametrize("was_kept", [False, True])
def test_subset_must_be_kept_from_the_start(
    was_kept: bool, tmp_path: Path, files: dict[str, Any]
) -> None:
    """A run that was to forget its secret forgets it, and one that was to keep it keeps it."""
    settings = start_and_interrupt(tmp_path / "run", files, **MI, keep_subset=was_kept)
    before = files_below(tmp_path)
    with pytest.raises(LedgerError, match="--keep-subset"):
        sordino.tune(**settings | {"keep_subset": not was_kept}, resume=True)
    assert files_below(tmp_path) == before


def test_subset_is_kept_after_closing(tmp_path: Path, files: dict[str, Any]) -> None:
    """Interrupted between the closing event and the file, the resumed run writes it, once."""
    settings = start_and_interrupt(tmp_path / "run", files, num_commits=5, **KEPT)
    assert Ledger.open(tmp_path / "run" / "ledger.jsonl").of_kind("close")
    state = read_state(tmp_path / "run")
    assert not RunFolder(tmp_path / "run").subset.exists()
    sordino.tune(**settings, resume=True)
    assert_subset_kept(tmp_path / "run", state)
    before = files_below(tmp_path)
    sordino.tune(**settings, resume=True)  # another process: it has drawn another secret
    assert files_below(tmp_path) == before


def test_lost_journal(tmp_path: Path, files: dict[str, Any]) -> None:
    """Without its sealed journal a run with a budget stops; one at budget 0 needs none."""
    settings = start_and_interrupt(tmp_path / "mi", files, **MI)
    shutil.rmtree(tmp_path / "mi.private")
    before = files_below(tmp_path / "mi")
    with pytest.raises(LedgerError, match="is gone, and with it"):
        sordino.tune(**settings, resume=True)
    assert files_below(tmp_path / "mi") == before
    settings = start_and_interrupt(tmp_path / "zpl", files)
    shutil.rmtree(tmp_path / "zpl.private")
    sordino.tune(**settings, resume=True)
    assert sordino.verify(tmp_path / "zpl").is_valid


def test_readable_journal_is_refused(tmp_path: Path, files: dict[str, Any]) -> None:
    """A journal that others could read is no secret any more."""
    settings = start_and_interrupt(tmp_path / "run", files, **MI)
    journal = tmp_path / "run.private" / "journal.sealed"
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600
    assert stat.S_IMODE(journal.parent.stat().st_mode) == 0o700
    journal.chmod(0o640)
    with pytest.raises(LedgerError, match="others could read"):
        sordino.tune(**settings, resume=True)


@pytest.mark.parametrize("name", ["ledger.jsonl", "transcript.bin", "journal.sealed"])
@pytest.mark.parametrize("change", ["cut", "longer", "other"])
def test_changed_files_are_refused(
    name: str, change: str, tmp_path: Path, files: dict[str, Any]
) -> None:
    """A ledger, transcript or journal that the others do not explain stops the run."""
    settings = start_and_interrupt(tmp_path / "run", files, num_commits=4, **MI)
    path = tmp_path / ("run.private" if name == "journal.sealed" else "run") / name
    content = path.read_bytes()
    middle = len(content) // 2
    changed = {
        "cut": content[:middle],
        "longer": content + b"\x00",
        "other": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }
    path.write_bytes(changed[change])
    before = files_below(tmp_path)
    with pytest.raises(LedgerError):
        sordino.tune(**settings, resume=True)
    assert files_below(tmp_path) == before


def test_resume_of_a_finished_run_changes_nothing(tmp_path: Path, files: dict[str, Any]) -> None:
    """--resume on a complete run leaves every byte as it is."""
    settings = choose_settings(files, MI | SCORED) | {"output": tmp_path / "run"}
    sordino.tune(**settings)
    before = files_below(tmp_path)
    sordino.tune(**settings, resume=True)
    assert files_below(tmp_path) == before


def test_resume_without_a_run_starts_one(tmp_path: Path, files: dict[str, Any]) -> None:
    """--resume may stand in a script from the first call on."""
    settings = choose_settings(files, MI) | {"output": tmp_path / "run"}
    sordino.tune(**settings, resume=True)
    assert sordino.verify(tmp_path / "run", model=files["model"]).is_valid


def test_sealed_state_without_its_run_folder(tmp_path: Path, files: dict[str, Any]) -> None:
    """A new run does not overwrite the sealed state of a run whose folder was moved away."""
    settings = start_and_interrupt(tmp_path / "run", files, **MI)
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    with pytest.raises(sordino.core.errors.InvalidParameterError, match="sealed state"):
        sordino.tune(**settings)
    shutil.move(tmp_path / "elsewhere", tmp_path / "run")
    sordino.tune(**settings, resume=True)
    assert sordino.verify(tmp_path / "run", model=files["model"]).is_valid


def test_lock_of_a_finished_process(tmp_path: Path) -> None:
    """A lock whose file was removed by the process that held it is not taken for the run's."""
    folder = RunFolder(tmp_path / "run")
    real_flock = fcntl.flock

    def finish_meanwhile(file: Any, how: int) -> None:
        folder.private.joinpath("lock").unlink()
        real_flock(file, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", finish_meanwhile)
        with pytest.raises(LedgerError, match="another process"), folder.locked():
            pass


def test_ctrl_c_from_the_shell(
    tmp_path: Path, files: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A real SIGINT ends the command with code 130 and one line; --resume finishes the run."""
    words = ["tune", "--model", files["model"], "--train", files["train"]]
    words += ["--output", str(tmp_path / "run"), "--num-steps", "40", "--num-subsets", "8"]
    words += ["--dtype", "float32", "--device", "cpu", "--mutual-information", "0.1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sordino", *words], stderr=subprocess.PIPE, text=True
    )
    with process:
        first = process.stderr.readline()  # the first of ten progress lines
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert first.startswith("tune: 4/40")
    assert process.returncode == 130
    errors = [line for line in rest.splitlines() if not line.startswith("tune: ")]
    assert len(errors) == 1
    assert errors[0].startswith("Error: interrupted.")
    assert "--resume" in errors[0]
    shell = run_cli(capsys, *words, "--resume")
    assert shell.code == 0, shell.err
    assert sordino.verify(tmp_path / "run", model=files["model"]).is_valid
