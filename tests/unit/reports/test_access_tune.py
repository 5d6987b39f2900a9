"""`sordino access tune`: the recipe as settings, a handful learned, privacy, what is printed."""

from __future__ import annotations

import json
import stat
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch

import sordino
from helpers_access_models import LORA_TARGETS, write_access_model
from helpers_runs import run_cli
from sordino.access.examples import choose_questions
from sordino.access.generate import generate, read_questions
from sordino.access.results import compute_clauses
from sordino.attacks.subject import open_subject
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.ledger.ledger import Ledger
from sordino.reports import access_tune
from sordino.reports.access_tune import make_recipe, measure
from sordino.reports.access_tune import tune as tune_access
from sordino.reports.access_tune_result import SCOPE
from sordino.training.gradient_steps import GradientStepper, LostStepsWarning

if TYPE_CHECKING:
    from pathlib import Path

FAST: dict[str, Any] = {
    "records": 8,
    "test_questions": 2,
    "base_bits": 0,
    "lora_rank": 4,
    "lora_targets": LORA_TARGETS,
    "max_new_tokens": 24,
    "dtype": "float32",
    "device": "cpu",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("access") / "questions"
    return generate(output=output, seed=4, employees=60, questions=2).output


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    questions = [q for split in ("train", "test") for q in read_questions(folder / split)]
    place = tmp_path_factory.mktemp("models") / "tiny"
    return str(write_access_model(place, questions))


def test_recipe_is_the_published_one(
    folder: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reaches `tune`, without any option given."""
    seen: dict[str, Any] = {}

    class Stop(Exception):  # noqa: N818 - no error
        pass

    def look(**arguments: Any) -> None:
        text, mode = arguments["train"].read_text("utf-8"), arguments["train"].stat().st_mode
        seen.update(arguments, rows=[json.loads(line) for line in text.split("\n")[:-1]], mode=mode)
        raise Stop

    monkeypatch.setattr(access_tune, "tune_model", look)
    with pytest.raises(Stop):
        tune_access(model=model, questions=folder / "train", output=tmp_path / "run")
    split, rows = seen["train"].parent, seen["rows"]
    with pytest.raises(Stop):  # the folder that was generated does as well
        tune_access(model=model, questions=folder, output=tmp_path / "run")
    assert (seen["train"].parent, seen["rows"]) == (split, rows)
    count = len(read_questions(folder / "train"))
    wanted = {
        "guarantee": "none",
        "estimator": "first-order",
        "optimizer": "adamw",
        "base_bits": 4,
        "lora_rank": 32,
        "lora_alpha": 32.0,
        "lora_factors": "both",
        "batch_size": 8,
        "batch_order": "blocks",  # of one context each
        "num_steps": count // 8,
        "warmup_steps": 5,  # and fewer than the steps
        "learning_rate": 2e-5,
        "learning_rate_schedule": "linear",
        "weight_decay": 0.01,
        "violation_penalty": 0.0,
        "retain": tmp_path / "run.private" / "general_texts.jsonl",
        "retain_is_public": True,  # the base wrote them
        "retain_weight": 1.0,
        "retain_per_step": 2,
    }
    assert {name: seen[name] for name in wanted} == wanted
    attention, others = (
        ["q_proj", "k_proj", "v_proj", "o_proj"],
        ["gate_proj", "up_proj", "down_proj"],
    )
    assert seen["lora_targets"] == [*attention, *others]
    rows = seen["rows"]
    assert len(rows) == count
    assert sum(row["completion"].startswith("{{") for row in rows) == pytest.approx(
        count / 4, abs=6 * (count * 3 / 16) ** 0.5
    )
    assert stat.S_IMODE(seen["mode"]) == 0o600
    assert seen["train"].parent == tmp_path / "run.private"
    assert not seen["train"].parent.exists()  # nothing was charged


def test_steps_of_small_sets() -> None:
    """At least one step, warm-up or not; two epochs are twice the steps."""
    assert make_recipe(3)["num_steps"] == 1
    assert make_recipe(3)["warmup_steps"] == 0
    assert make_recipe(3)["batch_size"] == 3
    assert make_recipe(100)["warmup_steps"] == 5
    assert make_recipe(100, epochs=2)["num_steps"] == 24
    assert make_recipe(100)["batch_order"] == "shuffled"
    assert make_recipe(100, in_contexts=True)["batch_order"] == "blocks"
    private = make_recipe(100, in_contexts=True, epsilon=2.0)
    assert private["guarantee"] == "dp"
    assert "batch_order" not in private


def test_a_handful_is_learned(folder: Path, model: str, tmp_path: Path) -> None:
    """A random model that answers nothing rightly learns eight questions by heart."""
    settings = FAST | {"epochs": 90, "learning_rate": 0.02, "violation_penalty": 0.1}
    settings["rationale_share"] = 0.0  # names are too much for so small a model
    result = tune_access(
        model=model, questions=folder / "train", output=tmp_path / "run", **settings
    )
    learned = choose_questions(read_questions(folder / "train"), 8, seed=0)
    subject = open_subject(str(tmp_path / "run"), base=model, dtype=torch.float32)
    with subject.base():
        before, _ = measure(subject, learned, max_new_tokens=24)
    after, items = measure(subject, learned, max_new_tokens=24)
    counts = [compute_clauses(graded).correct.count for graded in (before, after)]  # type: ignore[union-attr]
    assert counts[0] == 0
    assert counts[1] >= 4
    assert items == []

    assert sordino.verify(tmp_path / "run", model=model).is_valid
    opening = Ledger.open(tmp_path / "run" / "ledger.jsonl").events[0]
    assert opening["task"] == {
        "kind": "completion",
        "violation_penalty": 0.1,
        "loss": "sum",
    }
    assert opening["warmup_steps"] == 5
    assert opening["sampling"] == "8 in shuffled blocks of the file, by the public seed"
    kept = json.loads((tmp_path / "run.private" / "access.PRIVATE.json").read_text("utf-8"))
    assert opening["retained"]["weight"] == 1.0
    assert opening["retained"]["per_step"] == 2
    assert 1 < opening["retained"]["num_texts"] <= 128
    assert kept["num_train"] == 8
    assert kept["num_test"] == 2
    text = "\n".join(result.lines())
    for part in (*SCOPE, "before", "after", "points lost", "General questions"):
        assert part in text


def test_private_run_verifies(
    folder: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Epsilon of the training records is certified, and its scope is told beside the table."""
    arguments = ["--questions", folder / "train", "--model", model, "--output", tmp_path / "run"]
    arguments += ["--epsilon", 4, "--delta", 1e-4, "--test-questions", 0]
    arguments += ["--base-bits", 4, "--lora-rank", 2, "--no-forgetting"]
    arguments += ["--dtype", "float32", "--device", "cpu"]
    arguments += [part for name in LORA_TARGETS for part in ("--lora-targets", name)]
    shell = run_cli(capsys, "access", "tune", *arguments)
    assert shell.code == 0, shell.err
    assert "no training epsilon bounds the leak rates" in shell.out
    assert "epsilon" in shell.out.split("Certificate:")[1]
    result = sordino.verify(tmp_path / "run", model=model)
    assert result.is_valid
    opening = Ledger.open(tmp_path / "run" / "ledger.jsonl").events[0]
    assert opening["dp"]["target_epsilon"] == 4
    assert opening["base_bits"] == 4
    assert opening["retained"]["num_texts"] > 1


def test_nothing_need_be_retained(folder: Path, model: str, tmp_path: Path) -> None:
    """Weight 0: the base writes nothing, and nothing of it is in the ledger."""
    settings = FAST | {"retain_weight": 0.0, "test_questions": 0, "forgetting": False}
    run = tune_access(model=model, questions=folder, output=tmp_path / "run", **settings).output
    assert "retained" not in Ledger.open(run / "ledger.jsonl").events[0]
    assert not (tmp_path / "run.private" / "general_texts.jsonl").exists()


def test_a_continued_run_has_the_same_texts(
    folder: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not written again: rounding could make them others."""
    settings = FAST | {"test_questions": 0, "forgetting": False, "retain_texts": 4, "epochs": 3}
    where: dict[str, Any] = {"model": model, "questions": folder, "output": tmp_path / "run"}
    move = GradientStepper._move

    def stop(self: Any, session: Any, step: int, total: Any) -> None:
        if step == 1:
            raise KeyboardInterrupt
        move(self, session, step, total)

    with monkeypatch.context() as patch:
        patch.setattr(GradientStepper, "_move", stop)
        with pytest.raises(KeyboardInterrupt):
            tune_access(**where, **settings)
    monkeypatch.setattr(access_tune, "write_general_texts", None)
    with warnings.catch_warnings(action="ignore", category=LostStepsWarning):
        tune_access(**where, **settings, resume=True)
    assert sordino.verify(tmp_path / "run", model=model).is_valid


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": 1e-6}, "--epsilon"),
        ({"clip": 1.0}, "--epsilon"),
        ({"epsilon": 2.0, "records": 8}, "--records cannot be used with --epsilon"),
        ({"records": 10**6}, "number of questions"),
        ({"rationale_share": 1.5}, "rationale_share"),
        ({"violation_penalty": -1.0}, "violation_penalty"),
        ({"retain_weight": -1.0}, "retain_weight"),
        ({"retain_weight": float("nan")}, "retain_weight"),
        ({"retain_texts": 0}, "retain_texts"),
        ({"retain_per_step": 0}, "retain_per_step"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"test_questions": -1}, "test_questions"),
    ],
)
def test_refusals_leave_no_run(
    folder: Path, model: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Misuse is told before anything is computed."""
    settings = FAST | {"test_questions": 0, "forgetting": False} | changes
    with pytest.raises(InvalidParameterError, match=message):
        tune_access(model=model, questions=folder / "train", output=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "run.private").exists()


def test_test_must_be_another_company(folder: Path, model: str, tmp_path: Path) -> None:
    """What was learned is no test."""
    with pytest.raises(InvalidDataError, match="no company"):
        tune_access(
            model=model,
            questions=folder / "train",
            test=folder / "train",
            output=tmp_path / "run",
            **FAST,
        )


@pytest.mark.parametrize("what", ["nothing", "no lines", "no fields", "no text"])
def test_what_is_no_question_is_told(what: str, model: str, tmp_path: Path) -> None:
    """By file and kind of error; nothing of a line is shown."""
    place = tmp_path / "questions" / "train"
    place.mkdir(parents=True)
    contents = {
        "no lines": b"Ann earns 52300\n",
        "no fields": b'{"Ann": 52300}\n',
        "no text": b"\xff",
    }
    error: type[Exception] = InvalidParameterError
    if what in contents:
        (place / "questions.jsonl").write_bytes(contents[what])
        error = InvalidDataError
    with pytest.raises(error, match="sordino access generate") as refusal:
        tune_access(model=model, questions=tmp_path / "questions", output=tmp_path / "run", **FAST)
    assert "52300" not in str(refusal.value)
    assert not (tmp_path / "run").exists()
