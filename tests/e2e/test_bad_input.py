"""What cannot be done is said in one line, at once, and leaves nothing behind."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from typing import TYPE_CHECKING, Any

import pytest

import sordino
from helpers_runs import (
    CONTEXT_LENGTH,
    Shell,
    completion_rows,
    environment,
    files_below,
    run_cli,
    sentiment_rows,
    write_jsonl,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORD = "Zanzibarquartz"  # stands for what a record holds; no message may repeat it
OPTIONS = {
    "--num-subsets": "4",
    "--num-steps": "2",
    "--lora-rank": "2",
    "--dtype": "float32",
    "--device": "cpu",
}

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A good pool; every record holds the word that no message may repeat."""
    rows = [row | {"text": f"{row['text']} {WORD}"} for row in sentiment_rows(8)]
    return write_jsonl(tmp_path / "pool.jsonl", rows)


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """Good validation records."""
    return write_jsonl(tmp_path / "public.jsonl", sentiment_rows(4, start=50))


def tune(capsys: Capture, model: object, train: object, output: Path, **options: Any) -> Shell:
    """Runs `sordino tune` with a few options changed; True is a flag."""
    given = {"--" + name.replace("_", "-"): value for name, value in options.items()}
    words: list[object] = ["tune", "--model", model, "--train", train, "--output", output]
    for name, value in (OPTIONS | given).items():
        words += [name] if value is True else [name, value]
    return run_cli(capsys, *words)


def assert_refused(shell: Shell, *words: str) -> None:
    """Fails unless the command said one clear line and exited with 2."""
    assert shell.code == 2, shell
    assert shell.out == ""
    assert shell.err.startswith("Error: ")
    assert shell.err.count("\n") == 1, shell.err
    assert "Traceback" not in shell.err
    assert WORD not in shell.err
    for word in words:
        assert word in shell.err


def assert_nothing_left(folder: Path) -> None:
    """Fails if a run folder or a private folder was made."""
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == []


def write_text(path: Path, text: str) -> Path:
    """Writes a file and returns its path."""
    path.write_text(text, encoding="utf-8")
    return path


def _write_latin_1(path: Path) -> Path:
    """Writes a pool whose second line is not UTF-8."""
    good = write_jsonl(path, sentiment_rows(3)).read_bytes()
    path.write_bytes(good.replace(b"\n", f"\n{WORD} caf\u00e9".encode("latin-1"), 1))
    return path


BAD_POOLS: dict[str, tuple[str, Callable[[Path], Path], tuple[str, ...]]] = {
    "empty file": ("p.jsonl", lambda p: write_text(p, ""), ("no records", "at least 2")),
    "blank lines": ("p.jsonl", lambda p: write_text(p, "\n\n"), ("no records",)),
    "one record": ("p.jsonl", lambda p: write_jsonl(p, sentiment_rows(1)), ("only one record",)),
    "missing column": (
        "p.jsonl",
        lambda p: write_jsonl(p, [{"text": WORD, "stars": 1}] * 3),
        ("line 1", "label", "found: text, stars"),
    ),
    "two kinds": (
        "p.jsonl",
        lambda p: write_jsonl(p, [*sentiment_rows(2), *completion_rows(2)]),
        ("line 3",),
    ),
    "not JSON": ("p.jsonl", lambda p: write_text(p, f"{WORD}\n"), ("line 1", "JSON")),
    "unknown label": (
        "p.jsonl",
        lambda p: write_jsonl(p, [{"text": WORD, "label": i % 3} for i in range(6)]),
        ("0, 1, 2", "--verbalizer LABEL=WORD"),
    ),
    "not UTF-8": ("p.jsonl", _write_latin_1, ("line 2", "UTF-8")),
    "empty text": (
        "p.jsonl",
        lambda p: write_jsonl(p, [*sentiment_rows(2), {"text": " ", "label": 1}]),
        ("line 3", "text is empty"),
    ),
    "unknown suffix": ("p.docx", lambda p: write_text(p, "{}"), (".jsonl", ".docx")),
    "not Parquet": ("p.parquet", lambda p: write_text(p, WORD), ("Parquet",)),
    "ragged CSV": ("p.csv", lambda p: write_text(p, "text,label\na,1\nb\n"), ("line 3", "columns")),
    "no such file": ("p.jsonl", lambda p: p, ("no such file",)),
    "other folder": ("p", lambda p: (p.mkdir(), p)[1], ("save_to_disk",)),
}


@pytest.mark.parametrize("name", BAD_POOLS)
def test_unusable_records(name: str, tmp_path: Path, tiny_model: Path, capsys: Capture) -> None:
    """A pool that cannot be used is refused by file and line, without a word of it."""
    file, write, words = BAD_POOLS[name]
    train = write(tmp_path / "in" / file) if (tmp_path / "in").mkdir() is None else None
    output = tmp_path / "out" / "run"
    assert_refused(tune(capsys, tiny_model, train, output), *words)
    assert not output.parent.exists()


BAD_OPTIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "odd M": ({"num_subsets": 7}, ("num_subsets must be even", "got 7")),
    "no subsets": ({"num_subsets": 0}, ("num_subsets", "at least 2")),
    "negative budget": ({"mutual_information": -0.1}, ("mutual_information", "got -0.1")),
    "budget that is no number": ({"mutual_information": "nan"}, ("mutual_information", "nan")),
    "infinite budget": ({"mutual_information": "inf"}, ("mutual_information", "inf")),
    "vacuous budget": ({"mutual_information": 0.6931471805599454}, ("vacuous", "0.6931")),
    "large budget": ({"mutual_information": 5}, ("vacuous", "Use less")),
    "budget without guarantee": (
        {"mutual_information": 0.1, "guarantee": "none"},
        ("--guarantee pac", "no budget"),
    ),
    "flip with a budget": (
        {"mutual_information": 0.1, "unanimity_flip": 0.1},
        ("unanimity_flip", "mutual_information 0"),
    ),
    "skip with a budget": (
        {"mutual_information": 0.1, "on_disagreement": "skip"},
        ("on_disagreement", "mutual_information 0"),
    ),
    "flip of one half": ({"unanimity_flip": 0.5}, ("unanimity_flip",)),
    "flip that is no number": ({"unanimity_flip": "nan"}, ("unanimity_flip",)),
    "rate without k": ({"subset_construction": "rate"}, ("subsets_per_record",)),
    "k without rate": ({"subsets_per_record": 1}, ("subsets_per_record", "rate")),
    "no steps": ({"num_steps": 0}, ("num_steps", "got 0")),
    "learning rate": ({"learning_rate": "nan"}, ("learning_rate", "nan")),
    "clip": ({"clip": "inf"}, ("clip", "inf")),
    "perturbation": ({"perturbation": 0}, ("perturbation",)),
    "weight decay": ({"weight_decay": -1}, ("weight_decay",)),
    "seed": ({"seed": -1}, ("seed",)),
    "large seed": ({"seed": 2**63}, ("seed",)),
    "batch larger than the pool": ({"batch_size": 9}, ("batch_size", "[1, 8]")),
    "no batch": ({"batch_size": 0}, ("batch_size",)),
    "rank": ({"lora_rank": 0}, ("lora_rank",)),
    "alpha": ({"lora_alpha": "nan"}, ("lora_alpha",)),
    "unknown target": ({"lora_targets": "c_attn"}, ("c_attn", "q_proj")),
    "block beyond the last": ({"lora_first_layer": 2}, ("lora_first_layer", "[0, 1]")),
    "too many Hadamard directions": (
        {"direction_kind": "hadamard", "directions_per_step": 10**6},
        ("directions_per_step",),
    ),
    "first order in full": (
        {"estimator": "first-order", "adapter": "full", "direction_kind": "rademacher"},
        ("--direction-kind kronecker", "rademacher"),
    ),
    "Hadamard in full": (
        {"adapter": "full", "direction_kind": "hadamard", "dtype": "bfloat16"},
        ("--dtype float32", "rademacher"),
    ),
    "sums of labels": ({"objective": "summed-loss"}, ("prompt and completion",)),
    "F1 of labels": ({"objective": "token-f1"}, ("prompt and completion",)),
    "context": ({"max_length": 10**6}, ("max_length", str(CONTEXT_LENGTH))),
    "tokens": ({"tokens_per_batch": 0}, ("tokens_per_batch",)),
    "evaluations": ({"evaluate_every": 0}, ("evaluate_every",)),
    "template": ({"template": "It was"}, ("template", "{text}")),
    "verbalizer": ({"verbalizer": "great"}, ("verbalizer", "LABEL=WORD")),
    "words that begin alike": ({"verbalizer": "0=xyzzy"}, ("verbalizers",)),
    "best of nothing": ({"select": "best"}, ("--validation", "public")),
    "report with a budget": (
        {"holder_report": True, "mutual_information": 0.1},
        ("--holder-report", "mutual information 0"),
    ),
    "report without guarantee": (
        {"holder_report": True, "guarantee": "none"},
        ("--holder-report",),
    ),
    "kept subset without a budget": (
        {"keep_subset": True},
        ("--keep-subset", "never reads a subset", "`sordino audit` draws one"),
    ),
    "kept subset without guarantee": (
        {"keep_subset": True, "guarantee": "none"},
        ("--keep-subset", "--guarantee pac"),
    ),
    "kept subset with noise": (
        {"keep_subset": True, "guarantee": "dp", "epsilon": 8, "delta": 1e-3},
        ("--keep-subset", "--guarantee pac"),
    ),
    "no such GPU": ({"device": "cuda"}, ("device", "cpu", "cuda")),
    "no such GPU number": ({"device": "cuda:7"}, ("device", "cuda:7")),
    "no such device": ({"device": "abacus"}, ("device", "abacus")),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_unusable_options(
    name: str, tmp_path: Path, tiny_model: Path, pool: Path, capsys: Capture
) -> None:
    """A setting out of range, or one that contradicts another, names itself and the remedy."""
    if "GPU" in name and sys.modules["torch"].cuda.is_available():
        pytest.skip("this machine has one")
    options, words = BAD_OPTIONS[name]
    assert_refused(tune(capsys, tiny_model, pool, tmp_path / "out" / "run", **options), *words)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(
    "option", ["--guarantee", "--channel", "--estimator", "--adapter", "--select", "--dtype"]
)
def test_unknown_choices(option: str, tmp_path: Path, capsys: Capture) -> None:
    """A word that is not one of the choices is refused before anything is read."""
    name = option.removeprefix("--")
    shell = tune(capsys, "nowhere", "nothing.jsonl", tmp_path / "run", **{name: "perfect"})
    assert shell.code == 2
    assert "perfect" in shell.err
    assert "Traceback" not in shell.err
    assert_nothing_left(tmp_path)


def test_unknown_label(tmp_path: Path, tiny_model: Path, capsys: Capture) -> None:
    """A label without a word is refused by line; a label that could be text is not repeated."""
    rows = [*sentiment_rows(4), {"text": "the plot", "label": f"{WORD} said: no!"}]
    train = write_jsonl(tmp_path / "pool.jsonl", rows)
    options = {"verbalizer": "0=dull", "lora_targets": "q_proj"}
    words = ["--verbalizer", "1=warm"]
    shell = run_cli(
        capsys,
        *("tune", "--model", tiny_model, "--train", train, "--output", tmp_path / "run", *words),
        *(
            word
            for name, value in options.items()
            for word in (f"--{name}".replace("_", "-"), value)
        ),
    )
    assert_refused(shell, "line 5", "unknown label", "0, 1")
    assert_nothing_left(tmp_path)


def test_too_long_record(tmp_path: Path, tiny_model: Path, capsys: Capture) -> None:
    """A record longer than the context is refused by line; --truncate makes it fit."""
    rows = sentiment_rows(6)
    rows[4]["text"] = f"{WORD} " + " ".join(["film"] * CONTEXT_LENGTH)
    train = write_jsonl(tmp_path / "pool.jsonl", rows)
    shell = tune(capsys, tiny_model, train, tmp_path / "run")
    assert_refused(shell, "line 5", "--truncate", str(CONTEXT_LENGTH))
    assert_nothing_left(tmp_path)
    shell = tune(capsys, tiny_model, train, tmp_path / "run", truncate=True)
    assert shell.code == 0, shell.err
    assert sordino.verify(tmp_path / "run").is_valid


def test_first_order_has_no_gradient_of_a_generation(
    tmp_path: Path, tiny_model: Path, capsys: Capture
) -> None:
    """Token F1 under the first-order estimator is refused with the estimator that can."""
    train = write_jsonl(tmp_path / "pool.jsonl", completion_rows(6))
    options = {"objective": "token-f1", "estimator": "first-order"}
    shell = tune(capsys, tiny_model, train, tmp_path / "run", **options)
    assert_refused(shell, "token-f1", "--estimator zeroth-order")
    assert_nothing_left(tmp_path)


def test_validation_must_be_declared_public(
    tmp_path: Path, tiny_model: Path, pool: Path, public: Path, capsys: Capture
) -> None:
    """Scores would be published, so their records must be declared public."""
    shell = tune(capsys, tiny_model, pool, tmp_path / "run", validation=public)
    assert_refused(shell, "--validation-is-public")
    assert_nothing_left(tmp_path)


def test_validation_must_not_overlap_the_pool(
    tmp_path: Path, tiny_model: Path, pool: Path, capsys: Capture
) -> None:
    """A record of the pool among the validation records is refused, in other spelling too."""
    text = sentiment_rows(1)[0]["text"].upper() + f"  {WORD}!"
    rows = [*sentiment_rows(2, start=60), {"text": text, "label": 0}]
    validation = write_jsonl(tmp_path / "validation.jsonl", rows)
    options = {"validation": validation, "validation_is_public": True}
    shell = tune(capsys, tiny_model, pool, tmp_path / "run", **options)
    assert_refused(shell, "training pool", "line 3", "unaccounted release")
    assert_nothing_left(tmp_path)


def test_existing_output_is_not_overwritten(
    tmp_path: Path, tiny_model: Path, pool: Path, capsys: Capture
) -> None:
    """A folder with anything in it, or a file, is left as it is."""
    taken = tmp_path / "taken"
    write_text((taken.mkdir() or taken) / "thesis.txt", "years of work")
    for output in (taken, pool):
        before = files_below(tmp_path)
        shell = tune(capsys, tiny_model, pool, output)
        assert_refused(shell, "exists already", "--resume")
        assert files_below(tmp_path) == before
    shutil.rmtree(taken)
    assert_nothing_left(tmp_path)


def test_empty_output_folder_may_be_used(
    tmp_path: Path, tiny_model: Path, pool: Path, capsys: Capture
) -> None:
    """A folder that somebody made for the run is as good as none."""
    (tmp_path / "run").mkdir()
    assert tune(capsys, tiny_model, pool, tmp_path / "run").code == 0


def test_full_disk_is_seen_before_anything_is_written(
    tmp_path: Path,
    tiny_model: Path,
    pool: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without room for the weights the run does not start."""
    usage = namedtuple("usage", "total used free")  # noqa: PYI024 - as shutil has it
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    shell = tune(capsys, tiny_model, pool, tmp_path / "run")
    assert_refused(shell, "no space left", "Nothing was written")
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
@pytest.mark.parametrize("options", [{}, {"mutual_information": "0.1"}], ids=["zpl", "mi"])
def test_disk_that_fills_in_the_middle(  # noqa: PLR0917
    call: str,
    options: dict[str, Any],
    tmp_path: Path,
    tiny_model: Path,
    pool: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At whichever write the disk is full, one line is said, and --resume finishes the run."""
    real = getattr(os, call)

    def fill(descriptor: int, content: bytes = b"", *offset: int) -> int:
        left = next(countdown)
        if left > 0:
            return real(descriptor, *([content, *offset] if offset else []))
        if left == 0 and len(content) > 1:  # at the end, a part still fits
            return real(descriptor, content[: len(content) // 2], *offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    for number in range(0, 8 if call == "pwrite" else 24, 1 if call == "pwrite" else 3):
        countdown = itertools.count(number, -1)
        monkeypatch.setattr(os, call, fill)
        run = tmp_path / str(number) / "run"
        shell = tune(capsys, tiny_model, pool, run, **options)
        monkeypatch.setattr(os, call, real)
        lines = [line for line in shell.err.splitlines() if not line.startswith("tune: ")]
        assert shell.code == 2
        assert len(lines) == 1
        assert lines[0].startswith("Error: No space left on device. ")
        assert "--resume" in lines[0]
        shell = tune(capsys, tiny_model, pool, run, resume=True, **options)
        assert shell.code == 0, shell.err
        assert sordino.verify(run, model=str(tiny_model)).is_valid
        assert sorted(path.name for path in run.parent.iterdir()) == ["run"]


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_weights_that_do_not_fit_on_the_disk(
    adapter: str, tmp_path: Path, tiny_model: Path, pool: Path, capsys: Capture
) -> None:
    """Failing to write the weights themselves is one line too, and --resume writes them."""
    options = {"adapter": adapter, "learning_rate": "0.01", "lora_rank": 64}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))  # no file may be larger
    try:
        shell = tune(capsys, tiny_model, pool, tmp_path / "run", **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lines = [line for line in shell.err.splitlines() if not line.startswith("tune: ")]
    assert shell.code == 2, shell
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert "--resume" in lines[0]
    shell = tune(capsys, tiny_model, pool, tmp_path / "run", resume=True, **options)
    assert shell.code == 0, shell.err
    assert sordino.verify(tmp_path / "run", model=str(tiny_model)).is_valid


def test_folder_that_cannot_be_made(
    tmp_path: Path, tiny_model: Path, pool: Path, capsys: Capture
) -> None:
    """An output below a file is refused in one line."""
    shell = tune(capsys, tiny_model, pool, pool / "run")
    assert_refused(shell, "Not a directory", "Check the path and who may write there")
    assert_nothing_left(tmp_path)


def test_a_penalty_needs_something_to_penalize(
    tmp_path: Path, tiny_model: Path, capsys: Capture
) -> None:
    """Defect: a misspelled column was a run without a penalty, which its ledger named."""
    rows = [row | {"completion": "x", "forbiden": "y"} for row in completion_rows(8)]
    pool = write_jsonl(tmp_path / "p.jsonl", rows)
    settings = {"guarantee": "none", "estimator": "first-order", "optimizer": "adamw"}
    shell = tune(capsys, tiny_model, pool, tmp_path / "run", violation_penalty=1, **settings)
    assert_refused(shell, "p.jsonl", "the column forbidden")
    assert_nothing_left(tmp_path)


def test_missing_model_folder(tmp_path: Path, pool: Path, capsys: Capture) -> None:
    """A path without a model is said at once."""
    shell = tune(capsys, tmp_path / "no" / "model", pool, tmp_path / "run")
    assert_refused(shell, "there is no such file or folder")
    assert_nothing_left(tmp_path)


def test_hub_model_offline(tmp_path: Path, pool: Path, capsys: Capture) -> None:
    """A hub id that is not in the cache fails within seconds where the hub is switched off."""
    began = time.monotonic()
    shell = tune(capsys, "nobody/no-such-model", pool, tmp_path / "run")
    assert_refused(shell, "nobody/no-such-model", "could not be reached", "embedded")
    assert_nothing_left(tmp_path)
    assert time.monotonic() - began < 10


def test_hub_model_without_network(tmp_path: Path, pool: Path) -> None:
    """Where the network refuses connections, it fails within seconds as well."""
    words = ["tune", "--model", "nobody/no-such-model", "--train", pool, "--output", tmp_path / "r"]
    changes = {
        "HF_HUB_OFFLINE": None,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "cache"),
    }
    with environment(**changes):
        done = subprocess.run(
            [sys.executable, "-m", "sordino", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert_refused(Shell(done.returncode, done.stdout, done.stderr), "could not be reached")
    assert not (tmp_path / "r").exists()
    assert not (tmp_path / "r.private").exists()


def test_record_that_breaks_the_numbers(
    tmp_path: Path, tiny_model: Path, pool: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A contribution that is not a number stops the first step, and nothing is left of the run."""
    from sordino.gradients.objectives import ClassificationObjective

    real = ClassificationObjective.losses

    def broken(self: ClassificationObjective, model: Any, records: Any) -> Any:
        losses = real(self, model, records)
        return losses * float("nan") if len(losses) == 8 and len(self.lengths) == 8 else losses

    monkeypatch.setattr(ClassificationObjective, "losses", broken)
    monkeypatch.setattr("sordino.training.assembly._probe_numerics", lambda *a, **k: None)
    for options in ({}, {"mutual_information": "0.1"}):
        shell = tune(capsys, tiny_model, pool, tmp_path / "run", **options)
        assert_refused(shell, "NaN", "nothing was released")
        assert_nothing_left(tmp_path)
