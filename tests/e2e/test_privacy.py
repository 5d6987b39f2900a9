"""What leaves the building: nothing that was computed on private data, except the releases."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import sordino
from helpers_runs import (
    SMALL,
    Shell,
    completion_rows,
    files_below,
    run_cli,
    sentiment_rows,
    write_jsonl,
)
from sordino.gradients.estimators import ZerothOrderEstimator
from sordino.gradients.projected import FirstOrderEstimator
from sordino.ledger.transcript import read_transcript
from sordino.mechanisms.binary_channel import BinaryChannelMechanism
from sordino.mechanisms.candidates import CandidateSubsets
from sordino.training import loop
from sordino.training.leave_one_out import LeaveOneOut

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNS: dict[str, dict[str, Any]] = {
    "zpl": {},
    "zpl-several": {"directions_per_step": 4, "unanimity_flip": 0.1},
    "mi": {"mutual_information": 0.1},
    "mi-gaussian": {"mutual_information": 0.1, "channel": "gaussian", "directions_per_step": 2},
    "first-order": {"estimator": "first-order", "directions_per_step": 8},
    "full": {"adapter": "full", "learning_rate": 0.001, "mutual_information": 0.1},
}
RELEASE = {"kind", "step", "num_releases", "mutual_information_nats", "symbols_sha256"}
METRICS = {"num_steps", "loss", "accuracy", "score"}
CLOSE = {"kind", "selected_step", "selection", "transcript_sha256", "artefacts_sha256"}
OPEN = {
    "kind",
    "sordino_version",
    "guarantee",
    "mutual_information_budget_nats",
    "mutual_information_nats",
    "mechanism",
    "estimator",
    "clip",
    "perturbation",
    "num_records",
    "canaries",
    "num_steps",
    "directions_per_step",
    "derivative",
    "optimizer",
    "dp",
    "direction_kind",
    "sampling",
    "learning_rate",
    "learning_rate_schedule",
    "weight_decay",
    "seed",
    "shared_weight",
    "task",
    "validation",
    "adapter",
    "base_model",
    "base_model_sha256",
    "base_bits",
    "teacher",
    "compute_dtype",
    "entropy_source",
    "transcript_header_sha256",
}


class Watcher:
    """Sees what a run computes on private data."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.numbers: list[float] = []
        self.digests: list[str] = []
        self.secrets: list[int] = []
        for estimator in (ZerothOrderEstimator, FirstOrderEstimator):
            self._watch_contributions(patch, estimator)
        self._watch_state(patch)

    def _watch_contributions(self, patch: pytest.MonkeyPatch, estimator: type) -> None:
        """Keeps every contribution of every record."""
        real = estimator.contributions

        def contributions(this: Any, step: int, batches: Any) -> Iterator[Any]:
            for records, values in real(this, step, batches):
                self.numbers += values.flatten().tolist()
                yield records, values

        patch.setattr(estimator, "contributions", contributions)

    def _watch_state(self, patch: pytest.MonkeyPatch) -> None:
        """Keeps everything that goes to the sealed journal."""
        real = loop.Session.private_state

        def private_state(this: loop.Session) -> dict[str, Any]:
            state = real(this)
            self.digests.append(state["pool_digest"])
            if state["mechanism"]:
                self.secrets.append(state["mechanism"]["secret"])
                self.numbers += [x for x in state["mechanism"]["log_posterior"] if x]
            return state

        patch.setattr(loop.Session, "private_state", private_state)

    def words(self) -> set[str]:
        """Returns every private number as it could have been written, but for short ones."""
        shown = {repr(x) for x in self.numbers} | {f"{x:.6g}" for x in self.numbers}
        return {text for text in shown if len(text) > 6} | set(self.digests)


def run_watched(
    tmp_path: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    **settings: Any,
) -> tuple[Watcher, Shell]:
    """Tunes from the shell, in a folder of its own, with every path given in full."""
    train = write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(24))
    validation = write_jsonl(tmp_path / "public.jsonl", sentiment_rows(6, start=100))
    words: list[object] = ["tune", "--model", model, "--train", train]
    words += ["--output", tmp_path / "run", "--validation", validation, "--validation-is-public"]
    for name, value in (SMALL | {"evaluate_every": 1} | settings).items():
        words += ["--" + name.replace("_", "-"), *([] if value is True else [value])]
    with monkeypatch.context() as patch:
        watcher = Watcher(patch)
        shell = run_cli(capsys, *words)
    assert shell.code == 0, shell.err
    assert len(watcher.numbers) >= 24 * 3
    return watcher, shell


@pytest.mark.parametrize("name", RUNS)
def test_run_folder_holds_no_private_number(
    name: str,
    tmp_path: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No file and no printed line has a record, a contribution, the posterior or a digest."""
    watcher, shell = run_watched(tmp_path, tiny_model, capsys, monkeypatch, **RUNS[name])
    files = files_below(tmp_path / "run")
    said = {"standard output": shell.out.encode(), "standard error": shell.err.encode()}
    private = watcher.words() | {row["text"] for row in sentiment_rows(24)}
    for where, content in (files | said).items():
        for word in private:
            assert word.encode() not in content, (where, word)
    places = {str(tmp_path), str(tiny_model), str(Path.cwd()), str(Path.home()), "pool.jsonl"}
    for where, content in files.items():
        for place in places:
            assert place.encode() not in content, (where, place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool.jsonl", "public.jsonl", "run"]
    if "mutual_information" in RUNS[name]:
        assert len(set(watcher.secrets)) == 1


@pytest.mark.parametrize("name", RUNS)
def test_run_folder_holds_only_what_is_listed(
    name: str,
    tmp_path: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ledger, scores and settings have exactly the public fields; a new one needs a decision."""
    run_watched(tmp_path, tiny_model, capsys, monkeypatch, **RUNS[name])
    run = tmp_path / "run"
    lines = [json.loads(line)["event"] for line in (run / "ledger.jsonl").read_text().splitlines()]
    allowed = {"open": OPEN, "release": RELEASE, "close": CLOSE}
    for event in lines:
        assert set(event) == allowed[event["kind"]]
    for line in (run / "metrics.jsonl").read_text().splitlines():
        assert set(json.loads(line)) == METRICS
    assert set(lines[0]["mechanism"]) <= {
        "name",
        "num_subsets",
        "subset_construction",
        "subsets_per_record",
        "prior",
        "on_disagreement",
        "unanimity_flip",
        "channel",
        "budget_schedule",
    }


def test_plain_progress_shows_nothing_private(
    tmp_path: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without --holder-report, progress counts steps and seconds and nothing else."""
    _, shell = run_watched(tmp_path, tiny_model, capsys, monkeypatch)
    for line in shell.err.splitlines():
        assert line.startswith("tune: ")
        assert line.endswith(" s left")
        assert line.count(",") == 1
    assert "unanimous" not in shell.err


def test_scores_are_those_of_public_records(
    tmp_path: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """metrics.jsonl follows from the released symbols and the validation file alone."""
    run_watched(tmp_path, tiny_model, capsys, monkeypatch, guarantee="none")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["num_steps"] for entry in entries] == [0, 1, 2, 3]

    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = PeftModel.from_pretrained(base, tmp_path / "run").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    words = tokenizer.convert_tokens_to_ids(["terrible", "great"])
    right = 0
    for row in sentiment_rows(6, start=100):
        ids = tokenizer(f"{row['text']} It was", return_tensors="pt")["input_ids"]
        right += int(model(ids).logits[0, -1, words].argmax() == row["label"])
    assert entries[-1]["accuracy"] == right / 6


def test_no_scores_without_public_records(tmp_path: Path, tiny_model: Path) -> None:
    """Without validation records there is no metrics.jsonl at all."""
    train = write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(8))
    sordino.tune(model=str(tiny_model), train=train, output=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_holder_report(
    tmp_path: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The report lies beside the run folder and is private by name and mode."""
    settings = {"holder_report": True, "directions_per_step": 4}
    _, shell = run_watched(tmp_path, tiny_model, capsys, monkeypatch, **settings)
    private = tmp_path / "run.private"
    (report,) = private.iterdir()
    assert "PRIVATE" in report.name
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    content = json.loads(report.read_text())
    assert content["num_records"] == 24
    assert "unanimous" in shell.err  # the holder asked to see private figures
    assert not any("PRIVATE" in name or "report" in name for name in files_below(tmp_path / "run"))
    assert sordino.verify(tmp_path / "run", model=str(tiny_model)).is_valid


def test_holder_report_looks_at_what_was_released(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report adds up the very sums, contributions and symbols of the run."""
    seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    real = LeaveOneOut.add

    def add(self: LeaveOneOut, *step: np.ndarray) -> None:
        seen.append(tuple(part.copy() for part in step))
        real(self, *step)

    monkeypatch.setattr(LeaveOneOut, "add", add)
    train = write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(24))
    sordino.tune(
        model=str(tiny_model),
        train=train,
        output=tmp_path / "run",
        holder_report=True,
        directions_per_step=4,
        **SMALL,
    )
    member = CandidateSubsets(num_subsets=8, seed=0).membership(24).astype(np.float64)
    _, steps = read_transcript(tmp_path / "run" / "transcript.bin")
    assert len(seen) == len(steps) == 3
    for (sums, contributions, released), symbols in zip(seen, steps, strict=True):
        assert np.array_equal(sums, member.T @ contributions)
        assert np.array_equal(released, symbols.integers)
    content = json.loads((tmp_path / "run.private" / "holder_report.PRIVATE.json").read_text())
    assert len(content["loss_nats"]) == 24


def test_secret_comes_from_the_operating_system(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal seeds give equal candidates, yet secrets and coins differ from run to run."""
    secrets = []
    real = BinaryChannelMechanism.release

    def release(self: BinaryChannelMechanism, *step: Any) -> Any:
        secrets.append(self.private_state()["secret"])
        return real(self, *step)

    monkeypatch.setattr(BinaryChannelMechanism, "release", release)
    train = write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(8))
    settings = SMALL | {"num_subsets": 64, "num_steps": 1, "mutual_information": 0.01}
    for number in range(4):
        output = tmp_path / str(number)
        sordino.tune(model=str(tiny_model), train=train, output=output, **settings)
    assert len(secrets) == 4
    assert len(set(secrets)) > 1  # all equal with probability 64**-3 = 4e-6


def test_coins_differ_from_run_to_run(tmp_path: Path, tiny_model: Path) -> None:
    """Two runs with one seed toss different coins."""
    train = write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(24))
    settings = SMALL | {"estimator": "first-order", "directions_per_step": 64, "lora_rank": 4}
    found = []
    for number in range(2):
        output = tmp_path / str(number)
        sordino.tune(model=str(tiny_model), train=train, output=output, **settings)
        found.append((output / "transcript.bin").read_bytes())
    assert found[0] != found[1]  # about 90 contested signs: equal with probability 1e-27


def test_completions_leave_no_text(tmp_path: Path, tiny_model: Path) -> None:
    """Prompts and completions are in no file of a run."""
    rows = completion_rows(12)
    train = write_jsonl(tmp_path / "pool.jsonl", rows)
    sordino.tune(model=str(tiny_model), train=train, output=tmp_path / "run", **SMALL)
    for content in files_below(tmp_path / "run").values():
        for row in rows:
            assert row["prompt"].encode() not in content
            assert row["completion"][0].encode() not in content


def test_private_folder_is_closed_under_any_umask(tmp_path: Path, tiny_model: Path) -> None:
    """A permissive umask does not open the sealed files."""
    train = write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(8))
    modes: dict[str, int] = {}

    def look(self: loop.Session) -> dict[str, Any]:
        for path in self.folder.private.rglob("*"):
            modes[path.name] = stat.S_IMODE(path.stat().st_mode)
        modes["folder"] = stat.S_IMODE(self.folder.private.stat().st_mode)
        return real(self)

    real = loop.Session.private_state
    before = os.umask(0)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop.Session, "private_state", look)
            sordino.tune(
                model=str(tiny_model),
                train=train,
                output=tmp_path / "run",
                mutual_information=0.1,
                **SMALL,
            )
    finally:
        os.umask(before)
    assert modes["folder"] == 0o700
    assert modes["journal.sealed"] == 0o600
