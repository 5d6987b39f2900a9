"""`sordino quantize` from files to a folder that loads, verifies, and says what it may claim."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

import sordino
from helpers_quantization import watch_writer
from helpers_runs import (
    SMALL,
    completion_rows,
    files_below,
    run_cli,
    sentiment_rows,
    write_jsonl,
    write_tiny_model,
)
from sordino.core.errors import InvalidParameterError
from sordino.models import load_adapter, load_model, unpack_base
from sordino.quantization.pipeline import matrix_of
from sordino.quantization.source import open_source

if TYPE_CHECKING:
    from pathlib import Path

    from sordino.quantization.layers import QuantizedLayer

DP = {
    "guarantee": "dp",
    "epsilon": 8.0,
    "delta": 1e-3,
    "batch_size": 12,
    "estimator": "first-order",
    "learning_rate": 0.01,
}
MI = {"mutual_information": 0.1, "estimator": "first-order", "directions_per_step": 8}
WIDE = {"hidden_size": 32, "intermediate_size": 64}  # groups of 32 fit


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, QuantizedLayer]]:
    """What the format's writer was given."""
    return watch_writer(monkeypatch)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose layers have groups of 32."""
    return write_tiny_model(tmp_path_factory.mktemp("wide") / "wide", **WIDE)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with completions."""
    return write_jsonl(tmp_path_factory.mktemp("texts") / "texts.jsonl", completion_rows(20))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, wide: Path) -> dict[str, Path]:
    """A run of each kind on the wide model."""
    folder = tmp_path_factory.mktemp("runs")
    train = write_jsonl(folder / "train.jsonl", sentiment_rows(24))
    kinds: dict[str, dict[str, Any]] = {
        "dp": DP,
        "mi": MI,
        "full": DP | {"adapter": "full"},
        "packed": DP | {"base_bits": 4},
    }
    for name, changes in kinds.items():
        settings = SMALL | changes
        if changes["estimator"] == "first-order" and "guarantee" in changes:
            settings.pop("num_subsets")
        sordino.tune(model=str(wide), train=train, output=folder / name, **settings)
    return {name: folder / name for name in kinds}


def base_of(kind: str, wide: Path) -> str | None:
    """Returns what --model must name: a run's ledger knows its base by name only."""
    return None if kind == "full" else str(wide)


def read(folder: Path) -> dict[str, Any]:
    """Returns a quantized folder's record."""
    return json.loads((folder / "quantization.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("method", ["nearest", "gptq", "hqq"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_loaded_weights_are_what_the_codes_stand_for(
    tmp_path: Path,
    texts: Path,
    given: list[dict[str, QuantizedLayer]],
    method: str,
    tied: bool,
) -> None:
    """Bit for bit, on a model whose output layer is tied or not; all else is the base's."""
    source = write_tiny_model(tmp_path / "m", tie_word_embeddings=tied, **WIDE)
    result = sordino.quantize(
        str(source), output=tmp_path / "q", method=method, group_size="32", calibration=str(texts)
    )
    loaded = unpack_base(load_model(str(tmp_path / "q")).model)
    base = load_model(str(source)).model
    assert len(given[0]) == 14
    for name, layer in given[0].items():
        assert torch.equal(matrix_of(loaded.get_submodule(name)), layer.dequantize())
    for name, parameter in base.named_parameters():
        if name.removesuffix(".weight") not in given[0]:
            assert torch.equal(loaded.get_parameter(name), parameter)
    certificates = [item.certificate for item in result.layers.values()]
    assert all(c is not None and c.exact <= c.nearest * (1 + 1e-9) for c in certificates)
    assert not (tmp_path / "q.partial").exists()


def test_the_command_prints_a_table_and_the_folder_verifies(
    tmp_path: Path,
    wide: Path,
    texts: Path,
    given: list[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Sums, the worst layers, what the bound does not say; `verify` agrees, until bytes change."""
    arguments = ["--group-size", "32", "--calibration", texts, "--calibration-is-public"]
    shell = run_cli(capsys, "quantize", wide, *arguments, "--output", tmp_path / "q")
    assert shell.code == 0, shell.err
    for words in ("all (14)", "worst: ", "do not bound perplexity", "Nothing is claimed"):
        assert words in shell.out
    record = read(tmp_path / "q")
    assert record["calibration"]["kind"] == "public"
    assert record["calibration"]["num_sequences"] == 20
    assert len(record["calibration"]["sha256"]) == 64
    assert {"bound", "predicted", "exact", "nearest", "clipped", "applies"} < set(
        record["layers"][0]["certificate"]
    )
    assert run_cli(capsys, "verify", tmp_path / "q").code == 0
    as_json = run_cli(
        capsys, "quantize", wide, *arguments, "--output", tmp_path / "again", "--json"
    )
    assert json.loads(as_json.out) == record  # the same codes, losses and bytes again
    with (tmp_path / "q" / "config.json").open("a", encoding="utf-8") as file:
        file.write(" ")
    shell = run_cli(capsys, "verify", tmp_path / "q")
    assert shell.code == 1
    assert "config.json" in shell.out


@pytest.mark.parametrize("kind", ["dp", "mi", "full", "packed"])
def test_a_run_keeps_its_claim_with_public_texts_and_with_none(
    *,
    tmp_path: Path,
    runs: dict[str, Path],
    wide: Path,
    texts: Path,
    kind: str,
    given: list[Any],
) -> None:
    """Post-processing: the run's own lines stand in the record, and are recomputed by `verify`."""
    certificate = json.loads((runs[kind] / "certificate.json").read_text(encoding="utf-8"))
    for name, changes in {
        "public": {"calibration": str(texts), "calibration_is_public": True},
        "none": {"method": "nearest", "calibration": "none"},
    }.items():
        output = tmp_path / name
        result = sordino.quantize(
            str(runs[kind]),
            output=output,
            group_size="32",
            model=base_of(kind, wide),
            **changes,
        )
        assert result.privacy["guarantee"] == certificate["guarantee"]
        assert not result.privacy["is_voided"]
        assert any("post-processing" in line for line in result.privacy["lines"])
        assert any(line.startswith("Secret 2") for line in result.privacy["lines"])
        assert sordino.verify(output).is_valid
        assert read(output)["calibration"]["kind"] == name
    assert not any("lora" in name for name in given[0])


@pytest.mark.parametrize("kind", ["dp", "mi"])
def test_private_texts_void_both_lines(
    *,
    tmp_path: Path,
    runs: dict[str, Path],
    wide: Path,
    texts: Path,
    kind: str,
    given: list[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Unless declared public, texts are private: the record claims nothing and says why."""
    output = tmp_path / "q"
    arguments = ["--model", wide, "--group-size", "32", "--calibration", texts]
    shell = run_cli(capsys, "quantize", runs[kind], *arguments, "--output", output)
    assert shell.code == 0, shell.err
    privacy = read(output)["privacy"]
    assert privacy["guarantee"] == "none"
    assert privacy["is_voided"]
    for secret in ("Secret 1", "Secret 2", "The calibration texts"):
        line = next(line for line in privacy["lines"] if line.startswith(secret))
        assert "no formal guarantee. Void" in line
        assert line in shell.out
    assert not any("epsilon" in line or "nats" in line for line in privacy["lines"])
    assert sordino.verify(output).is_valid


def test_a_voided_claim_cannot_be_brought_back(
    tmp_path: Path,
    runs: dict[str, Path],
    wide: Path,
    texts: Path,
    given: list[Any],
) -> None:
    """Editing lines, the kind alone, or the ledger is seen; an unknown kind is refused."""
    output = tmp_path / "q"
    sordino.quantize(
        str(runs["dp"]),
        output=output,
        group_size="32",
        calibration=str(texts),
        model=str(wide),
    )
    record = read(output)
    path = output / "quantization.json"

    def is_valid(**changes: Any) -> bool:
        path.write_text(json.dumps(record | changes), encoding="utf-8")
        return sordino.verify(output).is_valid

    assert is_valid()
    assert not is_valid(privacy=record["privacy"] | {"is_voided": False})
    assert not is_valid(privacy=record["privacy"] | {"guarantee": "dp"})
    assert not is_valid(calibration=record["calibration"] | {"kind": "public"})
    assert not is_valid(calibration=record["calibration"] | {"kind": "harmless"})
    assert not is_valid(calibration={})
    assert not is_valid(source=record["source"] | {"ledger_head": None})
    assert not is_valid(format_version=2)
    assert not is_valid(artefacts_sha256={})
    ledger = output / "source_ledger.jsonl"
    content = ledger.read_bytes()
    ledger.write_bytes(content.replace(b'"epsilon"', b'"epsilom"', 1))
    if ledger.read_bytes() != content:
        assert not is_valid()
    ledger.unlink()
    assert not is_valid()


@pytest.mark.parametrize("kind", ["dp", "packed"])
def test_an_adapter_is_merged_first(
    tmp_path: Path,
    runs: dict[str, Path],
    wide: Path,
    kind: str,
    given: list[dict[str, QuantizedLayer]],
) -> None:
    """Every code stands within half a step of base plus adapter, packed base or not."""
    sordino.quantize(
        str(runs[kind]),
        output=tmp_path / "q",
        bits=8,
        group_size="32",
        method="nearest",
        scales="absmax",
        model=str(wide),
    )
    base = load_model(str(wide), base_bits=4 if kind == "packed" else None)
    adapted, _ = load_adapter(base.model, runs[kind])
    num_moved = 0
    for name, layer in given[0].items():
        module = adapted.get_base_model().get_submodule(name)
        is_adapted = "LoraLayer" in {parent.__name__ for parent in type(module).__mro__}
        frozen = module.base_layer if is_adapted else module
        tuned = frozen.dequantize() if kind == "packed" else frozen.weight.detach()
        if is_adapted:
            moved = module.get_delta_weight("default")
            num_moved += int(moved.abs().max() > 0)
            tuned = tuned + moved
        half_steps = 0.5 * layer.scales.float().repeat_interleave(32, dim=1)
        assert ((layer.dequantize() - tuned).abs() <= half_steps * 1.001).all()
    assert num_moved == 4  # query and value in two blocks
    ids = torch.tensor([[2, 3, 4, 5, 6, 7]])
    merged = open_source(str(runs[kind]), base=str(wide)).model(input_ids=ids).logits
    assert torch.allclose(adapted(input_ids=ids).logits, merged, atol=1e-4)


def test_an_adapter_on_another_base_is_refused(
    tmp_path: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_tiny_model(tmp_path / "other", **WIDE | {"initializer_range": 0.2})
    shell = run_cli(
        capsys, "quantize", runs["dp"], "--model", other, "--method", "nearest",
        "--group-size", "32", "--output", tmp_path / "q",
    )  # fmt: skip
    assert shell.code == 2
    assert "not the base that this run started from" in shell.err


REFUSED: dict[str, tuple[list[str], str]] = {
    "gptq without texts": ([], "needs calibration texts: name a file"),
    "gptq with none": (["--calibration", "none"], "needs calibration texts"),
    "public nothing": (["--method", "nearest", "--calibration-is-public"], "needs a file"),
    "no such file": (["--calibration", "absent.jsonl"], "no such file"),
    "bits": (["--bits", "3", "--method", "nearest"], "bits must be 2, 4 or 8"),
    "group size": (["--group-size", "16", "--method", "nearest"], "must be 32, 64, 128 or row"),
    "too wide": (["--group-size", "64", "--method", "nearest"], "does not divide"),
    "method": (["--method", "magic"], "method must be one of"),
    "reduction": (["--lattice-reduction", "lll"], "one scale a row"),
    "gguf": (["--format", "gguf", "--method", "nearest", "--bits", "2"], "holds 4 or 8 bits"),
    "allocation": (["--allocation", "kurtosis", "--method", "nearest"], "spends a budget"),
    "budget without texts": (
        ["--budget-bytes", "9000", "--method", "nearest", "--group-size", "32"],
        "allocation certificate needs calibration texts",
    ),
    "awq without texts": (["--method", "awq"], "needs calibration texts"),
    "dp of nothing": (
        ["--method", "nearest", "--calibration-epsilon", "1"],
        "for a file of private texts",
    ),
    "base": (["--model", "embedded", "--method", "nearest", "--group-size", "32"], "no base"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_does_not_go_together_is_refused_before_any_work(
    tmp_path: Path, wide: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = REFUSED[name]
    output = tmp_path / "q"
    shell = run_cli(capsys, "quantize", wide, *arguments, "--output", output)
    assert shell.code == 2
    assert words in shell.err
    assert shell.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_a_full_disk_is_told(
    tmp_path: Path,
    wide: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "kept").touch()
    arguments = ["quantize", wide, "--method", "nearest", "--group-size", "32", "--output"]
    shell = run_cli(capsys, *arguments, tmp_path / "q")
    assert (shell.code, "exists already" in shell.err) == (2, True)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    shell = run_cli(capsys, *arguments, tmp_path / "new")
    assert (shell.code, "no space left" in shell.err) == (2, True)
    assert not (tmp_path / "new.partial").exists()


_KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from sordino.quantization import pipeline
import sordino
plain = pipeline.LayerStore.save
def save(self, number, finished):
    plain(self, number, finished)
    os._exit(99)  # no cleaning up, as when the power goes
pipeline.LayerStore.save = save
sordino.quantize({source!r}, output={output!r}, group_size="32", calibration={texts!r})
"""


def test_a_killed_run_goes_on_to_the_same_folder(
    tmp_path: Path, wide: Path, texts: Path, given: list[dict[str, QuantizedLayer]]
) -> None:
    """Killed after the first block, the same command ends in the same bytes; others refuse."""
    settings = {"group_size": "32", "calibration": str(texts)}
    sordino.quantize(str(wide), output=tmp_path / "whole", **settings)
    program = _KILLED.format(
        tests=str(tmp_path), source=str(wide), output=str(tmp_path / "cut"), texts=str(texts)
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode == 99, done.stderr
    assert not (tmp_path / "cut").exists()
    partial = files_below(tmp_path / "cut.partial")
    assert sorted(partial) == ["block-0000.safetensors", "settings.sha256"]
    with pytest.raises(InvalidParameterError, match="other settings"):
        sordino.quantize(str(wide), output=tmp_path / "cut", bits=2, **settings)
    sordino.quantize(str(wide), output=tmp_path / "cut", **settings)
    assert files_below(tmp_path / "cut") == files_below(tmp_path / "whole")
    for name, layer in given[0].items():
        assert torch.equal(given[-1][name].codes, layer.codes)
    assert not (tmp_path / "cut.partial").exists()
