"""Differential privacy from files to a checked folder: both estimators, records and users."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sordino
from helpers_runs import SMALL, completion_rows, run_cli, sentiment_rows, write_jsonl
from sordino.accounting.dp import SampledGaussian, compute_epsilon
from sordino.core.errors import (
    BudgetExceededError,
    InvalidDataError,
    InvalidParameterError,
    SordinoError,
)
from sordino.gradients.clipped import ClippedGradients
from sordino.ledger.certificate_words import describe_certificate
from sordino.ledger.ledger import Ledger
from sordino.training import dp_plan, gradient_steps
from sordino.training.batch_plan import PoissonPlan

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("calibrated_once")

COMMON = {name: SMALL[name] for name in ("num_steps", "lora_rank", "dtype", "device")}
DP = COMMON | {"guarantee": "dp", "epsilon": 8.0, "delta": 1e-3, "batch_size": 12}
FIRST = DP | {"estimator": "first-order", "learning_rate": 0.01}
ZEROTH = DP | {"estimator": "zeroth-order", "learning_rate": 0.05}
KINDS: dict[str, dict[str, Any]] = {
    "first-order": FIRST,
    "first-order-sgd": FIRST | {"optimizer": "sgd", "learning_rate": 1.0},
    "first-order-both": FIRST | {"lora_factors": "both"},
    "first-order-full": FIRST | {"adapter": "full", "learning_rate": 0.001},
    "per-layer": FIRST | {"clipping": "per-layer"},
    "automatic": FIRST | {"clipping": "automatic"},
    "replace": FIRST | {"adjacency": "replace"},
    "all-units": FIRST | {"batch_size": 24},
    "zeroth-order": ZEROTH,
    "zeroth-order-many": ZEROTH | {"directions_per_step": 5},
    "zeroth-order-discrete": ZEROTH | {"noise": "discrete", "directions_per_step": 3},
    "four-bit-base": FIRST | {"base_bits": 4},
    "zeroth-order-four-bit-base": ZEROTH | {"base_bits": 4},
    "zeroth-order-full": ZEROTH | {"adapter": "full", "learning_rate": 0.001},
}


def rows_of_users(count: int, num_users: int) -> list[dict[str, Any]]:
    """Returns snippets of a few people, unevenly many of each."""
    return [row | {"user": i * i % num_users} for i, row in enumerate(sentiment_rows(count))]


@pytest.fixture
def files(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_model),
        "train": write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(24)),
        "output": tmp_path / "run",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_each_kind(kind: str, files: dict[str, Any]) -> None:
    """Every combination trains, keeps its target, and verifies."""
    settings = KINDS[kind]
    certificate = sordino.tune(**files, **settings).certificate
    pool, subset = certificate.pool, certificate.subset
    assert 0 < pool.epsilon_upper <= 8.0
    assert pool.epsilon_upper > 7.0  # the noise is not larger than it must be
    assert (pool.delta, pool.privacy_unit) == (1e-3, "record")
    assert 0.5 < pool.success_upper < 1.0
    assert subset.mutual_information_nats_upper is None
    assert certificate.mutual_information_charged_nats == 0.0
    relation = "REPLACE_ONE" if kind == "replace" else "ADD_OR_REMOVE_ONE"
    assert pool.neighboring_relation == relation
    assert sordino.verify(files["output"], model=files["model"]).is_valid
    ledger = Ledger.open(files["output"] / "ledger.jsonl")
    assert [e["kind"] for e in ledger.events] == ["open", *["release"] * 3, "close"]
    assert not (files["output"].parent / "run.private").exists()


def test_the_certificate_is_what_the_accountant_says(files: dict[str, Any]) -> None:
    """The noise in the ledger, the steps and the sampling give the certificate's epsilon."""
    certificate = sordino.tune(**files, **FIRST).certificate
    opening = Ledger.open(files["output"] / "ledger.jsonl").events[0]
    dp = opening["dp"]
    assert (dp["sampling_probability"], dp["expected_units"], dp["num_units"]) == (0.5, 12, 24)
    event = SampledGaussian(
        noise_multiplier=dp["noise_multiplier"],
        sampling_probability=0.5,
        num_steps=3,
        neighboring_relation="ADD_OR_REMOVE_ONE",
    )
    assert compute_epsilon(event, 1e-3).epsilon_upper == certificate.pool.epsilon_upper


def test_more_noise_for_replacement_and_for_a_smaller_epsilon(files: dict[str, Any]) -> None:
    """Replacing one record changes the sum by twice the bound; the noise knows."""
    noise = {}
    for name, changes in {
        "add": {},
        "replace": {"adjacency": "replace"},
        "1": {"epsilon": 1.0},
    }.items():
        output = files["output"].with_name(name)
        sordino.tune(**files | {"output": output}, **FIRST | changes)
        noise[name] = Ledger.open(output / "ledger.jsonl").events[0]["dp"]["noise_multiplier"]
    assert noise["replace"] > 1.1 * noise["add"]
    assert noise["1"] > 2 * noise["add"]


@pytest.mark.parametrize("settings", [FIRST, ZEROTH | {"directions_per_step": 2}])
def test_users_are_the_unit(
    settings: dict[str, Any], tmp_path: Path, files: dict[str, Any]
) -> None:
    """With a column as the unit, units are counted, sampled and named."""
    rows = rows_of_users(40, 7)
    num_users = len({row["user"] for row in rows})
    files["train"] = write_jsonl(tmp_path / "users.jsonl", rows)
    changes = {"unit": "user", "batch_size": 2, "delta": 1e-3}
    certificate = sordino.tune(**files, **settings | changes).certificate
    dp = Ledger.open(files["output"] / "ledger.jsonl").events[0]["dp"]
    assert dp["num_units"] == num_users
    assert dp["sampling_probability"] == pytest.approx(2 / num_users)
    assert certificate.pool.privacy_unit == "user"
    words = describe_certificate(certificate)
    assert f"from a pool of {num_users} units (user)." in words[-len(certificate.assumptions) - 1]
    assert "whether a user is in the pool" in certificate.pool.secret
    words = (files["output"] / "README.md").read_text()
    assert "for one user (all its records) added or removed" in words
    assert sordino.verify(files["output"], model=files["model"]).is_valid


def test_unit_column_must_be_there(tmp_path: Path, files: dict[str, Any]) -> None:
    """A missing or empty unit is refused: a record that nobody answers for is counted wrong."""
    with pytest.raises(InvalidDataError, match="patient"):
        sordino.tune(**files, **FIRST, unit="patient")
    rows = [row | {"user": None if i == 3 else "ann"} for i, row in enumerate(sentiment_rows(6))]
    files["train"] = write_jsonl(tmp_path / "users.jsonl", rows)
    with pytest.raises(InvalidDataError, match="line 4: the column user is null"):
        sordino.tune(**files, **FIRST, unit="user")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": None}, "give --epsilon"),
        ({"epsilon": float("nan")}, "epsilon must be positive"),
        ({"epsilon": float("inf")}, "epsilon must be positive"),
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"delta": 0.5}, "allow-large-delta"),
        ({"delta": 1 / 240}, "allow-large-delta"),
        ({"delta": float("nan")}, "delta"),
        ({"delta": 0.0}, "delta"),
        ({"batch_size": 25}, "batch_size"),
        ({"adjacency": "swap"}, "adjacency"),
        ({"clipping": "hard"}, "clipping"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"clip": float("inf")}, "clip"),
        ({"noise": "discrete"}, "zeroth-order"),
        ({"mutual_information": 0.1}, "mutual_information"),
        ({"holder_report": True}, "holder-report"),
        ({"select": "best"}, "public"),
        ({"base_bits": 3}, "must be 4 or 8"),
        ({"base_bits": 4, "adapter": "full"}, "base-bits"),
        ({"max_records_per_unit": 0}, "max_records_per_unit"),
        ({"guarantee": "pac"}, "for --guarantee dp"),
    ],
)
def test_settings_that_are_refused(
    changes: dict[str, Any], message: str, files: dict[str, Any]
) -> None:
    """Nothing is written when a setting cannot be kept."""
    with pytest.raises(InvalidParameterError, match=message):
        sordino.tune(**files, **FIRST | changes)
    assert not files["output"].exists()


def test_large_delta_needs_a_word(files: dict[str, Any]) -> None:
    """A delta of 1/(10 N) or more is possible, on purpose only."""
    certificate = sordino.tune(**files, **FIRST | {"delta": 0.01}, allow_large_delta=True)
    assert certificate.certificate.pool.delta == 0.01


@pytest.mark.parametrize(("num_units", "delta"), [(24, 0.003), (1000, 5e-5), (6920, 5e-6)])
def test_default_delta(num_units: int, delta: float) -> None:
    """Defect: 1/N by default. It is 1/(10 N^1.1), rounded down."""
    assert dp_plan._default_delta(num_units) == delta
    assert delta < 1 / (10 * num_units)


def test_default_delta_of_a_run(files: dict[str, Any]) -> None:
    """Without --delta, the certificate names the default."""
    assert sordino.tune(**files, **FIRST | {"delta": None}).certificate.pool.delta == 0.003


def test_sums_are_divided_by_a_public_number(
    files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defect: dividing by the number that was drawn. The divisor is the expected number."""
    moved = {}
    monkeypatch.setattr(gradient_steps, "add_noise", lambda *_arguments: None)
    for drawn in (4, 24):
        batches = [[i] for i in range(drawn)]
        monkeypatch.setattr(PoissonPlan, "batches", lambda *_a, chosen=batches: chosen)
        output = files["output"].with_name(f"drawn-{drawn}")
        changes = {"optimizer": "sgd", "learning_rate": 1.0, "num_steps": 1, "clip": 1e-6}
        sordino.tune(**files | {"output": output}, **FIRST | changes)
        weights = load_file(output / "adapter_model.safetensors")
        moved[drawn] = sum(v.double().norm() ** 2 for k, v in weights.items() if "lora_B" in k)
    # 24 clipped gradients add up to more than 4 do; divided by their number they would not
    assert moved[24] ** 0.5 > 2 * moved[4] ** 0.5
    assert moved[4] ** 0.5 <= 4 * 1e-6 / 12


def test_nobody_drawn_is_noise_alone(
    files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defect: a run that stops, or skips its noise, when nobody was drawn."""
    monkeypatch.setattr(PoissonPlan, "batches", lambda *_arguments: [])
    for kind in ("first-order", "zeroth-order"):
        output = files["output"].with_name(kind)
        sordino.tune(**files | {"output": output}, **KINDS[kind])
        weights = load_file(output / "adapter_model.safetensors")
        assert any(bool(v.any()) for k, v in weights.items() if "lora_B" in k)


def test_noise_is_fresh(files: dict[str, Any]) -> None:
    """Defect: noise from a seed. Two runs with the same seed differ; nothing in them repeats."""
    weights = []
    for name in ("one", "two"):
        output = files["output"].with_name(name)
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - the stream that must not matter
        sordino.tune(**files | {"output": output}, **FIRST)
        weights.append(load_file(output / "adapter_model.safetensors"))
    for name, values in weights[0].items():
        if "lora_B" in name:
            assert not torch.equal(values, weights[1][name])


def test_every_planned_release_and_not_one_more(files: dict[str, Any]) -> None:
    """Defect: steps that nobody counted. A ledger whose releases are spent takes no other."""
    sordino.tune(**files, **FIRST)
    ledger = Ledger.open(files["output"] / "ledger.jsonl")
    with pytest.raises(BudgetExceededError, match="all 3 planned releases"):
        ledger.prepare({"kind": "release", "step": 3, "mutual_information_nats": None})


@pytest.mark.parametrize("field", ["noise_multiplier", "sampling_probability", "delta"])
def test_a_changed_ledger_is_found(field: str, files: dict[str, Any]) -> None:
    """A certificate with better numbers does not survive `verify`."""
    sordino.tune(**files, **FIRST)
    path = files["output"] / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    entry = json.loads(lines[0])
    entry["event"]["dp"][field] *= 0.5
    path.write_text(
        json.dumps(entry, sort_keys=True, separators=(",", ":")) + "\n" + "".join(lines[1:])
    )
    assert not sordino.verify(files["output"]).is_valid


def test_completions_and_public_scores(tmp_path: Path, files: dict[str, Any]) -> None:
    """Language modelling with scores on public records."""
    files["train"] = write_jsonl(tmp_path / "notes.jsonl", completion_rows(24))
    public = write_jsonl(tmp_path / "public.jsonl", completion_rows(4, start=60))
    settings = FIRST | {"validation": public, "validation_is_public": True, "evaluate_every": 1}
    sordino.tune(**files, **settings)
    lines = (files["output"] / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["num_steps"] for line in lines] == [0, 1, 2, 3]


def test_adamw_without_privacy(files: dict[str, Any]) -> None:
    """The baseline: the same loop, without clipping and noise, and without any guarantee."""
    settings = COMMON | {"guarantee": "none", "estimator": "first-order", "optimizer": "adamw"}
    certificate = sordino.tune(**files, **settings, learning_rate=0.01).certificate
    assert certificate.pool.guarantee == certificate.subset.guarantee == "no formal guarantee"
    assert sordino.verify(files["output"], model=files["model"]).is_valid


def test_command_line(files: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The words of the issue, in the shell."""
    shell = run_cli(
        capsys,
        *("tune", "--model", files["model"], "--train", files["train"]),
        *("--output", files["output"], "--guarantee", "dp", "--epsilon", 4, "--delta", 0.001),
        *("--unit", "record", "--adjacency", "replace", "--estimator", "first-order"),
        *("--num-steps", 2, "--batch-size", 6, "--dtype", "float32", "--clipping", "per-layer"),
    )
    assert shell.code == 0, shell.err
    assert "for one record replaced by another, worst case" in shell.out
    assert "numbers were released in 2 steps from a pool of 24 records" in shell.out
    assert "Secret 2, which of two records, one of which is in the pool, that is:" in shell.out
    assert "A guess which of the two is in the pool is right with probability at most" in shell.out


def test_adapter_that_learns_nothing_is_an_error(
    files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defect: noise moves an adapter that no gradient reaches, and nobody notices."""
    monkeypatch.setattr(ClippedGradients, "add_batch", lambda *_arguments: None)
    with pytest.raises(SordinoError, match="every gradient is exactly 0"):
        sordino.tune(**files, **FIRST)
    assert not files["output"].exists()
