"""Every combination that matters runs from files to a folder that anybody can check."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import sordino
from helpers_runs import (
    SMALL,
    completion_rows,
    files_below,
    run_cli,
    sentiment_rows,
    write_jsonl,
)
from sordino.ledger.ledger import Ledger
from sordino.ledger.transcript import read_transcript
from sordino.training.replay import initial_tensors, make_space, replay

if TYPE_CHECKING:
    from pathlib import Path

    from sordino.training.tune import TuneResult

MI = {"mutual_information": 0.1}
FIRST_ORDER = {"estimator": "first-order", "directions_per_step": 8, "num_steps": 2}
FULL = {"adapter": "full", "learning_rate": 1e-3}

COMBINATIONS: dict[str, dict[str, Any]] = {
    "zpl-coin": {},
    "zpl-skip": {"on_disagreement": "skip", "directions_per_step": 8},
    "zpl-flip": {"unanimity_flip": 0.2},
    "zpl-skip-flip": {"on_disagreement": "skip", "unanimity_flip": 0.2},
    "mi-binary-symmetric": MI,
    "mi-binary-symmetric-uniform": MI | {"budget_schedule": "uniform"},
    "mi-gaussian": MI | {"channel": "gaussian"},
    "mi-gaussian-uniform": MI | {"channel": "gaussian", "budget_schedule": "uniform"},
    "mi-several-directions": MI | {"directions_per_step": 5},
    "none": {"guarantee": "none"},
    "none-several-directions": {"guarantee": "none", "directions_per_step": 3},
    "several-directions": {"directions_per_step": 9},
    "gaussian-directions": {"direction_kind": "gaussian", "directions_per_step": 2},
    "hadamard-directions": {"direction_kind": "hadamard", "directions_per_step": 16},
    "coordinates": {
        "direction_kind": "coordinates",
        "directions_per_step": 40,
        "estimator": "first-order",
        "learning_rate": 1.0,
    },
    "lora-both-factors": {"lora_factors": "both"},
    "lora-targets": {"lora_targets": ["o_proj", "down_proj"], "lora_rank": 3, "lora_alpha": 5.0},
    "lora-last-block": {"lora_first_layer": 1},
    "complementary-pairs": {"subset_construction": "complementary-pairs"},
    "rate": {"subset_construction": "rate", "subsets_per_record": 3, "num_subsets": 9},
    "rate-mi": MI | {"subset_construction": "rate", "subsets_per_record": 2},
    "batch-size": {"batch_size": 7},
    "batch-size-none": {"batch_size": 7, "guarantee": "none"},
    "small-batches": {"tokens_per_batch": 1},
    "weight-decay": {"weight_decay": 0.3, "lora_factors": "both"},
    "constant-schedule": {"learning_rate_schedule": "constant"},
    "cosine-schedule": {"learning_rate_schedule": "cosine"},
    "seed": {"seed": 2**63 - 1},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16-mi": MI | {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "first-order": FIRST_ORDER,
    "first-order-skip": FIRST_ORDER | {"on_disagreement": "skip", "direction_kind": "rademacher"},
    "first-order-gaussian": FIRST_ORDER | {"direction_kind": "gaussian"},
    "first-order-kronecker": FIRST_ORDER | {"direction_kind": "kronecker"},
    "zeroth-order-kronecker": {"direction_kind": "kronecker", "directions_per_step": 2},
    "first-order-mi": FIRST_ORDER | MI,
    "first-order-none": FIRST_ORDER | {"guarantee": "none"},
    "first-order-both-factors": FIRST_ORDER | {"lora_factors": "both"},
    "first-order-bfloat16": FIRST_ORDER | {"dtype": "bfloat16"},
    "first-order-batch-size": FIRST_ORDER | {"batch_size": 5},
    "full": FULL,
    "full-bfloat16": FULL | {"dtype": "bfloat16"},
    "full-mi": FULL | MI,
    "full-gaussian-several": FULL | {"direction_kind": "gaussian", "directions_per_step": 2},
    "full-none-weight-decay": FULL | {"guarantee": "none", "weight_decay": 0.1},
}


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A pool of 24 labelled snippets, with signs that agree and signs that do not."""
    return write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(24))


def tune_small(model: Path, train: Path, output: Path, **settings: Any) -> TuneResult:
    """Returns a run of three steps with the given changes."""
    return sordino.tune(model=str(model), train=train, output=output, **(SMALL | settings))


def assert_verifies(run: Path, model: Path) -> None:
    """Fails with every difference that `sordino verify` finds."""
    result = sordino.verify(run, model=str(model))
    assert [(c.what, c.difference) for c in result.checks if c.difference] == []
    assert result.is_valid


@pytest.mark.filterwarnings("ignore::sordino.training.numerics.PerturbationWarning")
@pytest.mark.parametrize("name", COMBINATIONS)
def test_run_verifies(name: str, tmp_path: Path, tiny_model: Path, pool: Path) -> None:
    """The run is charged within its budget, and replays to its weights bit for bit."""
    settings = SMALL | COMBINATIONS[name]
    result = tune_small(tiny_model, pool, tmp_path / "run", **settings)
    assert_verifies(result.output, tiny_model)
    ledger = Ledger.open(result.output / "ledger.jsonl")
    releases = ledger.of_kind("release")
    assert [event["step"] for event in releases] == list(range(settings["num_steps"]))
    assert all(e["num_releases"] == settings.get("directions_per_step", 1) for e in releases)
    budget = settings.get("mutual_information", 0.0)
    assert ledger.mutual_information_spent <= Fraction(budget)
    assert result.certificate.subset.mutual_information_nats_upper == (
        None if settings.get("guarantee") == "none" else budget
    )
    assert not result.output.with_name("run.private").exists()


def test_positive_budget_is_used(tmp_path: Path, tiny_model: Path, pool: Path) -> None:
    """The first contested sign costs at least an equal share of the budget, and none overspends.

    Fails by chance only if all 30 directions happen to be unanimous over 128 halves.
    """
    run = tune_small(tiny_model, pool, tmp_path / "run", **MI, num_steps=30)
    spent = float(Ledger.open(run.output / "ledger.jsonl").mutual_information_spent)
    assert 0.1 / 30 * (1 - 1e-6) < spent <= 0.1
    assert run.certificate.mutual_information_charged_nats == spent
    assert run.certificate.subset.posterior_upper == pytest.approx(0.7198, abs=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replays_in_another_process(
    dtype: str, tmp_path: Path, tiny_model: Path, pool: Path
) -> None:
    """Each compute type makes its own transcript, and a fresh process replays it bit for bit."""
    run = tune_small(tiny_model, pool, tmp_path / "run", dtype=dtype, guarantee="none").output
    command = [sys.executable, "-m", "sordino", "verify", str(run), "--model", str(tiny_model)]
    answer = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["is_valid"] is True


def test_compute_types_make_different_transcripts(
    tmp_path: Path, tiny_model: Path, pool: Path
) -> None:
    """Without coins two equal runs are equal files; another compute type is another run."""
    runs = [
        tune_small(tiny_model, pool, tmp_path / name, dtype=dtype, guarantee="none").output
        for name, dtype in (("a", "float32"), ("b", "float32"), ("c", "bfloat16"))
    ]
    first, second, third = (files_below(run) for run in runs)
    assert first == second
    assert first["transcript.bin"] != third["transcript.bin"]


@pytest.mark.parametrize(
    "settings",
    [{"guarantee": "none"}, {"guarantee": "none", "lora_factors": "both"}, FIRST_ORDER],
    ids=["b", "both", "first-order"],
)
def test_adapter_is_plain_peft(
    settings: dict[str, Any], tmp_path: Path, tiny_model: Path, pool: Path
) -> None:
    """PeftModel.from_pretrained gives the logits of a model built from the replayed tensors."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = tune_small(tiny_model, pool, tmp_path / "run", **settings).output
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(tiny_model)("this film is lovely", return_tensors="pt")
    with torch.no_grad():
        before = base(tokens["input_ids"]).logits
    loaded = PeftModel.from_pretrained(base, run).eval()
    with torch.no_grad():
        after = loaded(tokens["input_ids"]).logits

    header, steps = read_transcript(run / "transcript.bin")
    space = make_space(header, initial_tensors(header))
    replay(space, header, steps)
    state = space.state()
    own = dict(loaded.named_parameters())
    for name, tensor in state.items():  # overwrite what PEFT read by what the transcript says
        raw = "base_model.model." + name.replace(".weight", ".default.weight")
        assert torch.equal(own[raw], tensor)
        own[raw].data.copy_(tensor)
    with torch.no_grad():
        replayed = loaded(tokens["input_ids"]).logits
    assert torch.equal(after, replayed)
    assert not torch.equal(after, before)
    assert json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        tiny_model.name
    )


def test_full_model_is_plain_transformers(tmp_path: Path, tiny_model: Path, pool: Path) -> None:
    """AutoModelForCausalLM loads a fully tuned run, float32, moved exactly as the ledger says."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = tune_small(tiny_model, pool, tmp_path / "run", **FULL).output
    tuned = AutoModelForCausalLM.from_pretrained(run)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert AutoTokenizer.from_pretrained(run)("great").input_ids
    moved = {
        name
        for (name, new), old in zip(tuned.named_parameters(), base.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    assert moved == {name for name, _ in base.named_parameters()}
    assert {t.dtype for t in load_file(run / "model.safetensors").values()} == {torch.float32}


def test_full_run_needs_the_base_model_to_be_checked(
    tmp_path: Path, tiny_model: Path, pool: Path
) -> None:
    """Without the base model, a fully tuned run is not called verified."""
    run = tune_small(tiny_model, pool, tmp_path / "run", **FULL).output
    result = sordino.verify(run)
    assert not result.is_valid
    assert any("--model" in check.difference for check in result.checks)


def test_tied_embeddings_train_once(tmp_path: Path, stories: Path) -> None:
    """A model whose input and output embeddings are one tensor tunes in full and verifies."""
    train = write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(8))
    run = tune_small(stories, train, tmp_path / "run", **FULL, num_subsets=4, num_steps=2).output
    assert_verifies(run, stories)


def test_completions(tmp_path: Path, tiny_model: Path) -> None:
    """Prompt and completion data tune under either estimator."""
    train = write_jsonl(tmp_path / "pool.jsonl", completion_rows(16))
    for name, settings in {"zeroth": {}, "first": FIRST_ORDER, "mi": MI}.items():
        run = tune_small(tiny_model, train, tmp_path / name, **settings).output
        assert_verifies(run, tiny_model)
        opening = Ledger.open(run / "ledger.jsonl").events[0]
        assert opening["task"] == {"kind": "completion"}


def test_token_f1(tmp_path: Path, tiny_model: Path) -> None:
    """The F1 of a generation, which has no gradient, tunes with zeroth order."""
    train = write_jsonl(tmp_path / "pool.jsonl", completion_rows(12))
    settings = {"objective": "token-f1", "max_new_tokens": 4, "perturbation": 0.5}
    run = tune_small(tiny_model, train, tmp_path / "run", **settings, guarantee="none").output
    assert_verifies(run, tiny_model)
    run = tune_small(tiny_model, train, tmp_path / "zpl", **settings).output
    assert_verifies(run, tiny_model)


def test_question_answering(tmp_path: Path, stories: Path, xquad: Path) -> None:
    """XQuAD, turned into prompts with several references, tunes on token F1."""
    articles = json.loads(xquad.read_text(encoding="utf-8"))["data"]
    rows = [
        {
            "prompt": f"{paragraph['context']}\nQuestion: {question['question']}\nAnswer:",
            # the whole paragraph counts too: so small a model never finds a name
            "completion": [question["answers"][0]["text"], paragraph["context"]],
        }
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    train = write_jsonl(tmp_path / "pool.jsonl", rows[:6])
    settings = {
        "objective": "token-f1",
        "max_new_tokens": 8,
        "max_length": 96,
        "truncate": True,
        "perturbation": 0.03,
        "directions_per_step": 2,
        "num_steps": 2,
        "num_subsets": 4,
    }
    run = tune_small(stories, train, tmp_path / "run", **settings).output
    assert_verifies(run, stories)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes a CSV file with a header line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_dataset(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes a folder of the datasets library."""
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [("pool.csv", write_csv), ("pool.parquet", write_parquet), ("pool", write_dataset)],
)
def test_every_format_gives_the_same_run(
    name: str, write: Any, tmp_path: Path, tiny_model: Path
) -> None:
    """The same records in CSV, Parquet or a datasets folder give the same files as JSON Lines."""
    rows = sentiment_rows(12)
    plain = write_jsonl(tmp_path / "plain.jsonl", rows)
    other = write(tmp_path / name, rows)
    expected = tune_small(tiny_model, plain, tmp_path / "a", guarantee="none").output
    found = tune_small(tiny_model, other, tmp_path / "b", guarantee="none").output
    assert files_below(found) == files_below(expected)
    run = tune_small(tiny_model, other, tmp_path / "c").output
    assert_verifies(run, tiny_model)


def test_own_template_and_words(tmp_path: Path, tiny_model: Path) -> None:
    """Other labels, words and templates are used and named in the ledger."""
    rows = [{"text": r["text"], "label": "yes" if r["label"] else "no"} for r in sentiment_rows(12)]
    train = write_jsonl(tmp_path / "pool.jsonl", rows)
    run = tune_small(
        tiny_model,
        train,
        tmp_path / "run",
        template="{text} this film was very",
        verbalizer=["yes=warm", "no=dull"],
    ).output
    assert_verifies(run, tiny_model)
    task = Ledger.open(run / "ledger.jsonl").events[0]["task"]
    assert task["verbalizers"] == {"yes": "warm", "no": "dull"}
    assert task["template"] == "{text} this film was very"


def test_command_of_the_readme(
    tmp_path: Path, tiny_model: Path, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tune and verify work as typed, defaults of the shell included."""
    run = tmp_path / "deep" / "run"
    shell = run_cli(
        capsys,
        *("tune", "--model", tiny_model, "--train", pool, "--output", run),
        *("--num-steps", 3, "--num-subsets", 8, "--learning-rate", 0.05, "--device", "cpu"),
    )
    assert shell.code == 0, shell.err
    assert "Secret 1" in shell.out
    assert "Secret 2" in shell.out
    shell = run_cli(capsys, "verify", run, "--model", tiny_model)
    assert shell.code == 0, shell.out
    assert sorted(path.name for path in run.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "certificate.json",
        "ledger.jsonl",
        "transcript.bin",
    ]


def test_a_thousand_steps_are_125_bytes(tmp_path: Path, tiny_model: Path) -> None:
    """After its header, the transcript of one-bit releases takes one bit a step."""
    train = write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(4))
    run = tune_small(tiny_model, train, tmp_path / "run", num_steps=50, num_subsets=2).output
    header, steps = read_transcript(run / "transcript.bin")
    size = (run / "transcript.bin").stat().st_size - len(header.to_bytes())
    assert (len(steps), size) == (50, math.ceil(50 / 8))
    assert_verifies(run, tiny_model)
