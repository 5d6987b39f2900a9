"""The demo: the main job from data to a checked folder, here on a tiny model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import sordino
from helpers_runs import run_cli, write_tiny_model
from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with as many blocks as the demo expects, and enough to train in the last one."""
    return write_tiny_model(
        tmp_path_factory.mktemp("models") / "deep",
        hidden_size=256,
        num_hidden_layers=16,
        max_position_embeddings=256,
        initializer_range=0.05,
    )


def test_demo(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It measures before and after, verifies, and refuses to overwrite itself."""
    monkeypatch.setattr("sordino.training.demo.MODEL", str(model))
    output = tmp_path / "demo"
    words = ["demo", "--output", output, "--num-train", 8, "--num-heldout", 6, "--num-steps", 1]
    shell = run_cli(capsys, *words)
    assert shell.code == 0, shell.err
    assert "Accuracy on 6 held-out snippets" in shell.out
    assert "no formal guarantee" in shell.out
    assert "Verified: chain, certificate and replayed weights agree." in shell.out
    assert sorted(path.name for path in output.iterdir()) == ["heldout.jsonl", "run", "train.jsonl"]
    assert sordino.verify(output / "run", model=str(model)).is_valid
    scores = [json.loads(x) for x in (output / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["num_steps"] for entry in scores] == [0, 1]
    shell = run_cli(capsys, *words)
    assert shell.code == 2
    assert "exists already" in shell.err


def test_demo_as_json(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--json gives the same numbers and the certificate, for machines."""
    monkeypatch.setattr("sordino.training.demo.MODEL", str(model))
    words = ["demo", "--output", tmp_path / "d", "--num-train", 8, "--num-heldout", 6]
    shell = run_cli(capsys, *words, "--num-steps", 1, "--json")
    assert shell.code == 0, shell.err
    answer = json.loads(shell.out)
    assert answer["is_verified"] is True
    assert answer["num_train"] == 8
    assert answer["certificate"]["subset"]["mutual_information_nats_upper"] == 0.0


def test_an_interrupted_demo_goes_on(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As the message on interruption says: the same command with --resume finishes the run."""
    from sordino.ledger.journal import Journal

    monkeypatch.setattr("sordino.training.demo.MODEL", str(model))
    commit, commits = Journal.commit, []

    def interrupt(*arguments: object) -> None:
        commit(*arguments)  # type: ignore[arg-type]
        commits.append(arguments)
        if len(commits) == 2:
            raise KeyboardInterrupt

    words = ["demo", "--output", tmp_path / "d", "--num-train", 8, "--num-heldout", 6]
    words += ["--num-steps", 2]
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "commit", interrupt)
        shell = run_cli(capsys, *words)
    assert shell.code == 130
    assert "--resume" in shell.err
    shell = run_cli(capsys, *words, "--resume")
    assert shell.code == 0, shell.err
    assert "Verified" in shell.out


def test_demo_needs_a_new_folder(tmp_path: Path) -> None:
    """A folder with a run in it is refused before anything is computed."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").touch()
    with pytest.raises(InvalidParameterError, match="exists already"):
        sordino.demo(output=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
