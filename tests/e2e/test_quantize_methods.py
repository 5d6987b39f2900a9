"""`sordino quantize`: every method, bytes under a budget, private calibration, geometry."""

from __future__ import annotations

import json
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
    write_tiny_model,
)
from sordino.core.errors import InvalidDataError, InvalidParameterError, LedgerError
from sordino.ledger.durable import locked
from sordino.ledger.ledger import Ledger
from sordino.models import load_model
from sordino.quantization.pipeline import matrix_of
from sordino.quantization.provenance import recompute_privacy
from sordino.quantization.store import LayerStore
from sordino.reports import quantize as command
from sordino.training.run_folder import RunFolder

if TYPE_CHECKING:
    from pathlib import Path

WIDE = {"hidden_size": 32, "intermediate_size": 64}  # groups of 32 fit
PRIVATE = {"calibration_epsilon": 4.0, "calibration_delta": 1e-3, "calibration_clip": 50.0}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose layers have groups of 32."""
    return write_tiny_model(tmp_path_factory.mktemp("wide") / "wide", **WIDE)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with completions."""
    return write_jsonl(tmp_path_factory.mktemp("texts") / "texts.jsonl", completion_rows(20))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, wide: Path) -> Path:
    """A run with differential privacy."""
    folder = tmp_path_factory.mktemp("run")
    train = write_jsonl(folder / "train.jsonl", sentiment_rows(24))
    changes = {"guarantee": "dp", "epsilon": 8.0, "delta": 1e-3, "batch_size": 12}
    settings = SMALL | changes | {"estimator": "first-order", "learning_rate": 0.01}
    settings.pop("num_subsets")
    sordino.tune(model=str(wide), train=train, output=folder / "run", **settings)
    return folder / "run"


def read(folder: Path) -> dict[str, Any]:
    """Returns a quantized folder's record."""
    return json.loads((folder / "quantization.json").read_text(encoding="utf-8"))


def quantize(source: Path, output: Path, **changes: Any) -> Any:
    return sordino.quantize(str(source), output=output, **{"group_size": "32"} | changes)


@pytest.mark.parametrize("method", ["awq", "smoothquant", "hqq"])
def test_the_loaded_model_is_the_one_that_was_rounded(
    method: str, tmp_path: Path, wide: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folded norms too, bit for bit: the file's model computes what the one in memory does."""
    models: list[Any] = []
    plain = command.open_source

    def keep(*arguments: Any, **named: Any) -> Any:
        opened = plain(*arguments, **named)
        models.append(opened.model)
        return opened

    monkeypatch.setattr(command, "open_source", keep)
    monkeypatch.setattr(command, "drop_weights", lambda *_: None)  # they are looked at below
    result = quantize(wide, tmp_path / "q", method=method, calibration=str(texts))
    loaded = load_model(str(tmp_path / "q")).model
    for name, parameter in models[0].named_parameters():
        if name.removesuffix(".weight") not in result.layers:
            assert torch.equal(loaded.get_parameter(name), parameter), name
    for name, item in result.layers.items():
        assert torch.equal(matrix_of(models[0].get_submodule(name)), item.layer.dequantize())
    ids = torch.tensor([[2, 3, 4, 5, 6, 7]])
    expected = models[0](input_ids=ids).logits
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    record = read(tmp_path / "q")
    assert record["layers"][0]["has_scaled_inputs"] == (method != "hqq")
    assert sordino.verify(tmp_path / "q").is_valid


def test_awq_loses_less_than_nearest(tmp_path: Path, wide: Path, texts: Path) -> None:
    """Summed over layers, each under the inputs of its own quantized predecessors."""
    losses = {}
    for method in ("awq", "gptq", "nearest"):
        found = quantize(
            wide, tmp_path / method, method=method, calibration=str(texts), scales="absmax", bits=2
        )
        losses[method] = sum(item.certificate.exact for item in found.layers.values())
    assert losses["awq"] < losses["nearest"]
    assert losses["gptq"] < losses["nearest"]


@pytest.mark.parametrize("allocation", ["certificate", "kurtosis", "sensitivity", "random"])
@pytest.mark.parametrize("format_name", ["compressed-tensors", "gguf"])
def test_a_byte_budget_is_kept_and_the_file_loads(
    *,
    allocation: str,
    format_name: str,
    tmp_path: Path,
    wide: Path,
    texts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mixed bits, of those that the format holds; the record says which."""
    if format_name == "gguf":  # the tiny model's tokenizer has no place in such a file
        monkeypatch.setattr(command.formats, "write", lambda *_: None)
    uniform = quantize(wide, tmp_path / "u", method="nearest", bits=4, format=format_name)
    small = sum(item.layer.num_bytes for item in uniform.layers.values())
    budget = int(1.3 * small)
    result = quantize(
        wide,
        tmp_path / "q",
        calibration=str(texts),
        calibration_is_public=True,
        budget_bytes=budget,
        allocation=allocation,
        format=format_name,
    )
    found = {item.layer.bits for item in result.layers.values()}
    assert found <= ({4, 8} if format_name == "gguf" else {2, 4, 8})
    assert len(found) > 1
    record = read(tmp_path / "q")["allocation"]
    assert record["allocation"] == allocation
    assert 0.9 * budget < record["num_bytes"] <= budget
    assert sum(record["layers_by_bits"].values()) == 14
    if format_name == "compressed-tensors":
        loaded = load_model(str(tmp_path / "q")).model
        for name, item in result.layers.items():
            assert torch.equal(loaded.get_submodule(name).dequantize(), item.layer.dequantize())


def test_private_texts_behind_noise_leave_the_claim(
    tmp_path: Path, wide: Path, run: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's lines stay, the texts get one, and both together are stated; verify recomputes."""
    output = tmp_path / "q"
    arguments = [
        "--model", wide, "--group-size", "32", "--calibration", texts,
        "--calibration-epsilon", "4", "--calibration-delta", "0.001", "--calibration-clip", "50",
    ]  # fmt: skip
    shell = run_cli(capsys, "quantize", run, *arguments, "--output", output)
    assert shell.code == 0, shell.err
    record = read(output)
    privacy, calibration = record["privacy"], record["calibration"]
    own = json.loads((run / "certificate.json").read_text(encoding="utf-8"))
    assert (privacy["guarantee"], privacy["is_voided"]) == ("dp", False)
    assert calibration["kind"] == "dp"
    assert calibration["release"]["num_grams"] == 8  # four inputs in each of two blocks
    assert {calibration[name] for name in ("sha256", "num_sequences", "num_tokens")} == {None}
    line = next(line for line in privacy["lines"] if line.startswith("The calibration texts"))
    spent = float(line.split("(")[1].split(",")[0])
    assert 3.9 < spent <= 4.0
    together = float(privacy["lines"][-1].rsplit("(", 1)[1].split(",")[0])
    total = spent + own["pool"]["epsilon_upper"]
    assert total <= together <= 1.001 * total
    assert "basic composition" in privacy["lines"][-1]
    assert any(line.startswith("Secret 2") and "epsilon" in line for line in privacy["lines"])
    assert sordino.verify(output).is_valid
    path = output / "quantization.json"
    for changes in ({"noise_multiplier": 99.0}, {"epsilon": 99.0}, {"num_grams": 1}):
        release = calibration["release"] | changes
        changed = record | {"calibration": calibration | {"release": release}}
        path.write_text(json.dumps(changed), encoding="utf-8")
        assert not sordino.verify(output).is_valid, changes
    path.write_text(json.dumps(record), encoding="utf-8")
    (output / "calibration_ledger.jsonl").unlink()
    with pytest.raises(LedgerError, match="missing"):
        recompute_privacy(output)


class _StoppedError(Exception):
    """A crash."""


@pytest.mark.parametrize("moment", ["save_grams", "save"])
def test_a_crash_never_charges_or_releases_twice(
    moment: str, tmp_path: Path, wide: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Charged before the first release; what was released is read back, not drawn again."""
    plain = getattr(LayerStore, moment)

    def crash(self: LayerStore, *arguments: Any) -> None:
        plain(self, *arguments)
        raise _StoppedError

    settings = PRIVATE | {"calibration": str(texts)}
    with monkeypatch.context() as patched:
        patched.setattr(LayerStore, moment, crash)
        with pytest.raises(_StoppedError):
            quantize(wide, tmp_path / "q", **settings)
    partial = tmp_path / "q.partial"
    ledger = (partial / "calibration_ledger.jsonl").read_bytes()
    assert [e["kind"] for e in Ledger.open(partial / "calibration_ledger.jsonl").events] == [
        "open-releases",
        "dp-release",
    ]
    grams = load_file(partial / "grams-0000.safetensors")
    assert len(grams) == 4
    released: list[int] = []
    make = command.release_grams

    def count(*arguments: Any) -> Any:
        private = make(*arguments)
        release = private.release

        def note(sequences: Any) -> Any:
            released.append(1)
            return release(sequences)

        object.__setattr__(private, "release", note)
        return private

    monkeypatch.setattr(command, "release_grams", count)
    quantize(wide, tmp_path / "q", **settings)
    assert len(released) == 4  # the second block's
    assert (tmp_path / "q" / "calibration_ledger.jsonl").read_bytes() == ledger
    assert sordino.verify(tmp_path / "q").is_valid


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_second_quantization_of_one_output_is_refused(
    *,
    is_begun: bool,
    tmp_path: Path,
    wide: Path,
    texts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Defect: both drew noise on the same private texts for one charge. Nothing is changed."""
    settings = PRIVATE | {"calibration": str(texts)}

    def refused() -> None:
        before = files_below(tmp_path)
        with pytest.raises(LedgerError, match=r"at work in .*: wait for it, or choose another"):
            quantize(wide, tmp_path / "q", **settings)
        assert files_below(tmp_path) == before

    def start_another(*arguments: Any) -> None:
        plain(*arguments)
        refused()
        raise _StoppedError

    if is_begun:  # at work: the first block's matrices were released
        plain = LayerStore.save_grams
        with monkeypatch.context() as patched:
            patched.setattr(LayerStore, "save_grams", start_another)
            with pytest.raises(_StoppedError):
                quantize(wide, tmp_path / "q", **settings)
        assert not (tmp_path / "q.partial.lock").exists()
        assert (tmp_path / "q.partial" / "grams-0000.safetensors").exists()
    with locked(tmp_path / "q.partial.lock", "busy"):
        refused()
        arguments = ["--method", "nearest", "--group-size", "32", "--output", tmp_path / "q"]
        shell = run_cli(capsys, "quantize", wide, *arguments)
        assert shell.code == 2
        assert "another quantization is at work in" in shell.err
    quantize(wide, tmp_path / "q", **settings)
    assert [p.name for p in tmp_path.iterdir()] == ["q"]


def test_an_output_that_another_process_finished_meanwhile_is_kept(
    tmp_path: Path, wide: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was new before the model was read; now no noise is drawn, and nothing is charged."""
    settings = PRIVATE | {"calibration": str(texts)}
    plain = command.plan_release

    def finish_first(*arguments: Any, **named: Any) -> Any:
        monkeypatch.undo()
        quantize(wide, tmp_path / "q", **settings)
        return plain(*arguments, **named)

    monkeypatch.setattr(command, "plan_release", finish_first)
    with pytest.raises(InvalidParameterError, match="exists already"):
        quantize(wide, tmp_path / "q", **settings)
    assert [p.name for p in tmp_path.iterdir()] == ["q"]
    assert sordino.verify(tmp_path / "q").is_valid


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"calibration_clip": None}, "needs --calibration-delta .* and --calibration-clip"),
        ({"calibration_delta": None}, "needs --calibration-delta"),
        ({"calibration_is_public": True}, "file of private texts"),
        ({"method": "smoothquant"}, "needs the largest inputs"),
        ({"budget_bytes": 9000}, "a second time"),
        ({"calibration_epsilon": float("nan")}, "epsilon"),
        ({"calibration_clip": -1.0}, "clip_norm"),
    ],
)
def test_private_calibration_refuses(
    changes: dict[str, Any], words: str, tmp_path: Path, wide: Path, texts: Path
) -> None:
    settings = PRIVATE | {"calibration": str(texts)} | changes
    with pytest.raises(InvalidParameterError, match=words):
        quantize(wide, tmp_path / "q", **settings)
    assert list(tmp_path.iterdir()) == []


def test_every_private_text_counts_and_awq_works_on_grams_alone(
    tmp_path: Path, wide: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is left out by --calibration-sequences: one more at the top would push out another."""
    counts: list[int] = []
    make = command.release_grams

    def count(*arguments: Any) -> Any:
        private = make(*arguments)
        release = private.release

        def note(sequences: Any) -> Any:
            found = list(sequences)
            counts.append(len(found))
            return release(iter(found))

        object.__setattr__(private, "release", note)
        return private

    monkeypatch.setattr(command, "release_grams", count)
    settings = PRIVATE | {"calibration": str(texts), "calibration_sequences": 3, "method": "awq"}
    quantize(wide, tmp_path / "q", **settings)
    assert set(counts) == {20}


def test_a_private_file_leaves_no_hash(tmp_path: Path, wide: Path, texts: Path) -> None:
    """Whoever guesses the file could confirm the guess with it."""
    quantize(wide, tmp_path / "q", calibration=str(texts))
    record = read(tmp_path / "q")
    assert record["calibration"]["kind"] == "private"
    assert record["calibration"]["sha256"] is None


def test_geometry_of_a_run(
    tmp_path: Path, wide: Path, run: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One entry a layer, and a table by kind; whole models and scaled inputs are refused."""
    arguments = ["--model", wide, "--group-size", "32", "--calibration", texts, "--geometry"]
    shell = run_cli(capsys, "quantize", run, *arguments, "--output", tmp_path / "q")
    assert shell.code == 0, shell.err
    assert "changed" in shell.out
    for layer in read(tmp_path / "q")["layers"]:
        geometry = layer["geometry"]
        assert 0.0 <= geometry["changed_rate"] <= 1.0
        assert 0.0 < geometry["pivot_share"] <= 1.0
    shell = run_cli(capsys, "report", tmp_path / "q")
    assert shell.code == 0, shell.err
    assert "What quantization did" in (tmp_path / "q.audit" / "report.html").read_text("utf-8")
    assert sordino.verify(tmp_path / "q").is_valid  # the page lies beside the folder
    with pytest.raises(InvalidParameterError, match="geometry compares"):
        quantize(wide, tmp_path / "r", calibration=str(texts), geometry=True)
    with pytest.raises(InvalidParameterError, match="scales their columns"):
        quantize(
            run,
            tmp_path / "r",
            model=str(wide),
            calibration=str(texts),
            geometry=True,
            method="awq",
        )


@pytest.mark.parametrize("is_public", [True, False])
def test_an_audit_holds_a_quantized_run_against_what_is_left_of_its_claim(
    *, is_public: bool, tmp_path: Path, wide: Path, run: Path, texts: Path
) -> None:
    """Post-processing leaves the claim, private calibration texts void it; task as in the run."""
    quantize(
        run,
        tmp_path / "q",
        model=str(wide),
        calibration=str(texts),
        calibration_is_public=is_public,
    )
    sides = {
        "members": run.parent / "train.jsonl",
        "nonmembers": write_jsonl(tmp_path / "others.jsonl", sentiment_rows(60)[24:]),
    }
    found = sordino.audit(str(tmp_path / "q"), model=str(wide), control=False, **sides).audit
    assert found.subject["kind"] == "quantized run"
    assert found.subject["base_sha256"] is not None
    outcomes = {verdict.game: verdict.outcome for verdict in found.verdicts}
    claims = [line for line in found.certificate_in_words if "epsilon at most" in line]
    notes = [note for note in found.notes if "voided what the run claimed" in note]
    assert (len(claims), len(notes)) == ((1, 0) if is_public else (0, 1))
    assert (outcomes.get("pool", "nothing claimed") != "nothing claimed") == is_public
    page = sordino.report(tmp_path / "q").page.read_text("utf-8")
    assert "What quantization did" in page
    assert ("post-processing, which costs no privacy" in page) == is_public
    assert ("no formal guarantee. Void" in page) == (not is_public)
    # scores of records must not come to lie in the folder that is handed out
    part = tmp_path / "q" / "model.safetensors"
    with pytest.raises(InvalidParameterError, match=r"is a part of .*Name the folder"):
        sordino.audit(str(part), model=str(wide), control=False, **sides)
    other = write_tiny_model(tmp_path / "other", **WIDE | {"initializer_range": 0.2})
    with pytest.raises(InvalidParameterError, match="not the base that this run started from"):
        sordino.audit(str(tmp_path / "q"), model=str(other), control=False, **sides)


def test_canaries_of_the_run_are_attacked_after_quantization(
    tmp_path: Path, wide: Path, run: Path, texts: Path
) -> None:
    """The quantized folder has no private files: the run that it was made from is named."""
    tuned = tmp_path / "tuned"
    sordino.tune(
        model=str(wide), train=run.parent / "train.jsonl", output=tuned, canaries=20, **SMALL
    )
    quantize(
        tuned, tmp_path / "q", model=str(wide), calibration=str(texts), calibration_is_public=True
    )
    quantized = str(tmp_path / "q")
    with pytest.raises(InvalidParameterError, match="name that run with --quantized-from"):
        sordino.audit(quantized, model=str(wide), control=False)
    found = sordino.audit(quantized, quantized_from=tuned, model=str(wide), control=False).audit
    assert found.canaries is not None
    assert found.canaries.num_canaries == 20
    other = tmp_path / "other"
    sordino.tune(
        model=str(wide), train=run.parent / "train.jsonl", output=other, canaries=20, **SMALL
    )
    with pytest.raises(InvalidParameterError, match="its ledger is another one"):
        sordino.audit(quantized, quantized_from=other, model=str(wide), control=False)
    with pytest.raises(InvalidParameterError, match="is of the kind 'run'"):
        sordino.audit(str(tuned), quantized_from=tuned, model=str(wide), control=False)
    # a list under another run's name
    RunFolder(tuned).canaries.write_bytes(RunFolder(other).canaries.read_bytes())
    for source in ({"run": str(tuned)}, {"run": quantized, "quantized_from": tuned}):
        with pytest.raises(InvalidDataError, match="not the list of canaries of this run"):
            sordino.audit(model=str(wide), control=False, **source)
    RunFolder(tuned).canaries.unlink()
    for source in ({"run": str(tuned)}, {"run": quantized, "quantized_from": tuned}):
        with pytest.raises(InvalidDataError, match="is missing: the run planned 20 canaries"):
            sordino.audit(model=str(wide), control=False, **source)
