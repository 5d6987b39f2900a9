"""Whatever is changed in a run folder, `sordino verify` finds it and says what differs."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

import sordino
from helpers_runs import SMALL, run_cli, sentiment_rows, write_jsonl, write_tiny_model
from sordino.core.errors import LedgerError
from sordino.ledger.certificate import compute_certificate
from sordino.ledger.ledger import GENESIS, Ledger, _hash, canonical_json
from sordino.training.card import render_card
from sordino.training.finish import artefact_digests
from sordino.training.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STRUCTURE = frozenset(b'{}[]":,\n|-#.')
MOST_POSITIONS = 100
# the folder of a run, and which of its files are XORed
WHOLE = ("ledger.jsonl", "transcript.bin", "certificate.json", "README.md")
SAMPLED = ("adapter_model.safetensors", "adapter_config.json", "metrics.jsonl")


@dataclass(frozen=True)
class Run:
    """A finished run that tests change and put back."""

    folder: Path
    model: Path
    other: Path  # another finished run, of the same model and pool


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Run:
    """Two runs with a positive budget and public scores."""
    root = tmp_path_factory.mktemp("tampering")
    train = write_jsonl(root / "pool.jsonl", sentiment_rows(24))
    validation = write_jsonl(root / "public.jsonl", sentiment_rows(6, start=100))
    for name, seed in (("run", 0), ("other", 1)):
        sordino.tune(
            model=str(tiny_model),
            train=train,
            validation=validation,
            validation_is_public=True,
            output=root / name,
            mutual_information=0.1,
            seed=seed,
            **SMALL,
        )
    return Run(root / "run", tiny_model, root / "other")


@pytest.fixture(autouse=True)
def _put_back(run: Run, tmp_path: Path) -> Iterator[None]:
    """Restores the run folder after each test."""
    shutil.copytree(run.folder, tmp_path / "copy")
    yield
    shutil.rmtree(run.folder)
    shutil.copytree(tmp_path / "copy", run.folder)


def find_differences(run: Run, model: Path | None = None) -> dict[str, str]:
    """Returns what `verify` says, by check; a run with a difference must not be valid."""
    result = sordino.verify(run.folder, model=None if model is None else str(model))
    differences = {c.what: c.difference for c in result.checks if c.difference}
    assert result.is_valid == (not differences)
    return differences


def choose_positions(content: bytes) -> list[int]:
    """Returns all positions of a short file; else the ends, all structure, and a sample."""
    if len(content) <= MOST_POSITIONS:
        return list(range(len(content)))
    stride = max(len(content) // MOST_POSITIONS, 1)
    lines = [i for i, byte in enumerate(content) if byte in STRUCTURE]
    some_lines = lines[:: max(len(lines) // MOST_POSITIONS, 1)]
    return sorted({0, 1, len(content) - 2, len(content) - 1, *range(0, len(content), stride)}) + (
        some_lines
    )


def test_untouched_run_is_valid(run: Run) -> None:
    """The run that the other tests change is valid as it is."""
    assert find_differences(run, run.model) == {}
    assert sordino.verify(run.other).is_valid


@pytest.mark.parametrize("mask", [0x01, 0xFF])
@pytest.mark.parametrize("name", WHOLE)
def test_any_changed_byte_is_found(name: str, mask: int, run: Run) -> None:
    """One byte with other bits, wherever it is, and the run is not valid; the text says where."""
    path = run.folder / name
    content = path.read_bytes()
    for position in choose_positions(content):
        changed = bytearray(content)
        changed[position] ^= mask
        path.write_bytes(changed)
        differences = find_differences(run)
        assert differences, f"{name}: byte {position}"
        words = " ".join([*differences, *differences.values()])
        assert name.split(".", maxsplit=1)[0].replace("README", "model card") in words
    path.write_bytes(content)
    assert find_differences(run) == {}


@pytest.mark.parametrize("name", SAMPLED)
def test_changed_artefacts_are_found(name: str, run: Run) -> None:
    """A changed byte in weights, adapter configuration or public scores is found and named."""
    path = run.folder / name
    content = path.read_bytes()
    for position in {0, 7, 8, 9, len(content) // 2, len(content) - 1}:
        changed = bytearray(content)
        changed[position] ^= 0x01
        path.write_bytes(changed)
        differences = find_differences(run)
        assert name in differences["files: as recorded"]


@pytest.mark.parametrize("name", [*WHOLE[1:], *SAMPLED])
def test_missing_files_are_found(name: str, run: Run) -> None:
    """A file that is gone is a difference, not a crash."""
    (run.folder / name).unlink()
    differences = find_differences(run)
    assert name in " ".join([*differences, *differences.values()])


def test_without_ledger_it_is_no_run(run: Run) -> None:
    """A folder without a ledger is refused as such."""
    (run.folder / "ledger.jsonl").unlink()
    with pytest.raises(sordino.core.errors.VerificationError, match=r"no ledger\.jsonl"):
        sordino.verify(run.folder)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "checkpoint/model.safetensors"])
def test_added_files_are_found(name: str, run: Run) -> None:
    """What was not there when the run was closed is named, in folders too."""
    path = run.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"more")
    assert name in find_differences(run)["files: as recorded"]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_cut_ledger_is_found(count: int, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Deleting lines at the end of the ledger is found, though the rest of the chain is whole."""
    path = run.folder / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-count]))
    assert "ledger: complete, within budget" in find_differences(run)
    shell = run_cli(capsys, "verify", run.folder)
    assert shell.code == 1
    assert "DIFFERS" in shell.out


@pytest.mark.parametrize("index", range(4))
def test_dropped_line_is_found(index: int, run: Run) -> None:
    """A line missing in the middle breaks the chain."""
    path = run.folder / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:index] + lines[index + 1 :]))
    assert f"line {index + 1}" in find_differences(run)["ledger: hash chain"]


def test_swapped_lines_are_found(run: Run) -> None:
    """Two releases in the wrong order break the chain."""
    path = run.folder / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1], lines[2] = lines[2], lines[1]
    path.write_bytes(b"".join(lines))
    assert "line 2" in find_differences(run)["ledger: hash chain"]


@pytest.mark.parametrize("names", [["ledger.jsonl"], ["ledger.jsonl", "certificate.json"]])
def test_ledger_of_another_run_is_found(names: list[str], run: Run) -> None:
    """Another run's ledger, even with its certificate, does not fit these weights."""
    for name in names:
        shutil.copy(run.other / name, run.folder / name)
    differences = find_differences(run)
    assert "transcript: the one in the ledger" in differences
    assert "files: as recorded" in differences


@pytest.mark.parametrize("name", ["transcript.bin", "adapter_model.safetensors"])
def test_file_of_another_run_is_found(name: str, run: Run) -> None:
    """Another run's transcript or weights do not fit this ledger."""
    shutil.copy(run.other / name, run.folder / name)
    assert find_differences(run)


def test_no_command_carries_a_claim_over_to_other_weights(run: Run, tmp_path: Path) -> None:
    """Defect: quantized, audited or reported, swapped weights had the guarantee of the run."""
    shutil.copyfile(
        run.other / "adapter_model.safetensors", run.folder / "adapter_model.safetensors"
    )
    words = r"adapter_model\.safetensors was changed"
    with pytest.raises(LedgerError, match=words):
        sordino.quantize(
            str(run.folder), output=tmp_path / "q", model=str(run.model), method="nearest"
        )
    with pytest.raises(LedgerError, match=words):
        sordino.audit(str(run.folder), model=str(run.model), num_findings=1)
    with pytest.raises(LedgerError, match=words):
        sordino.report(run.folder)


def test_wrong_base_model_is_found(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """A base model with one other weight is not the one that the run started from."""
    other = write_tiny_model(tmp_path / "tiny")
    assert find_differences(run, other) == {}
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    assert list(find_differences(run, other)) == ["base model: fingerprint"]
    shell = run_cli(capsys, "verify", run.folder, "--model", other)
    assert shell.code == 1
    assert "is not the base model" in shell.out


def rewrite(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Changes the events of a ledger and makes a whole new chain, as a forger would."""
    events = [json.loads(line)["event"] for line in path.read_bytes().splitlines()]
    change(events)
    previous, lines = GENESIS, []
    for index, event in enumerate(events):
        body = {"index": index, "previous": previous, "event": event}
        previous = _hash(body)
        lines.append(canonical_json({**body, "hash": previous}) + b"\n")
    path.write_bytes(b"".join(lines))


FORGERIES: dict[str, Callable[[list[dict[str, Any]]], None]] = {
    "smaller charges": lambda events: [e.update(mutual_information_nats=0.0) for e in events[1:-1]],
    "smaller budget": lambda events: events[0].update(mutual_information_budget_nats=1e-9),
    "no guarantee named": lambda events: events[0].update(guarantee="perfect"),
    "other mechanism": lambda events: events[0].update(mechanism={}),
    "mechanism of a wrong type": lambda events: events[0].update(mechanism="unanimity"),
    "budget of a wrong type": lambda events: events[0].update(mutual_information_budget_nats="0"),
    "no steps": lambda events: events[0].pop("num_steps"),
    "no model": lambda events: events[0].pop("base_model"),
    "no adapter": lambda events: events[0].update(adapter=None),
    "other symbols": lambda events: events[1].update(symbols_sha256="0" * 64),
    "selected step beyond the end": lambda events: events[-1].update(selected_step=10**9),
    "selected step before the start": lambda events: events[-1].update(selected_step=-1),
    "earlier step": lambda events: events[-1].update(selected_step=0),
    "artefacts of a wrong type": lambda events: events[-1].update(artefacts_sha256=[1]),
    "no artefacts": lambda events: events[-1].pop("artefacts_sha256"),
    "two openings": lambda events: events.insert(1, events[0]),
    "two closings": lambda events: events.append(events[-1]),
    "unknown event": lambda events: events.insert(1, {"kind": "gift"}),
    "step twice": lambda events: events.insert(2, events[1]),
    "number instead of a release": lambda events: events[1].update(num_releases="many"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_ledger_is_found(name: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A rewritten ledger with a whole chain contradicts the other files; nothing crashes."""
    rewrite(run.folder / "ledger.jsonl", FORGERIES[name])
    assert find_differences(run)
    assert run_cli(capsys, "verify", run.folder).code == 1


def forge_consistently(run: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Rewrites ledger, certificate and model card so that they agree with each other."""
    rewrite(run / "ledger.jsonl", change)
    ledger = Ledger.open(run / "ledger.jsonl")
    certificate = compute_certificate(ledger)
    (run / "certificate.json").write_bytes(certificate.to_bytes())
    (run / "README.md").write_text(render_card(ledger, certificate))


def test_swapped_weights_are_found_by_replaying(run: Run) -> None:
    """Other weights, with every hash made to fit, are still not what the transcript gives."""
    shutil.copy(run.other / "adapter_model.safetensors", run.folder)

    def change(events: list[dict[str, Any]]) -> None:
        events[-1]["artefacts_sha256"] = artefact_digests(RunFolder(run.folder))

    forge_consistently(run.folder, change)
    differences = find_differences(run, run.model)
    assert list(differences) == ["weights: equal to the replayed transcript, bit for bit"]
    assert "is not what the transcript gives" in str(differences) or "public seed" in str(
        differences
    )


def test_other_step_is_found_by_replaying(run: Run) -> None:
    """A claim that the weights are those of an earlier step is found, though all hashes fit."""
    forge_consistently(run.folder, lambda events: events[-1].update(selected_step=2))
    assert list(find_differences(run)) == ["weights: equal to the replayed transcript, bit for bit"]


def test_swapped_symbols_are_found(run: Run) -> None:
    """A flipped symbol, with the file's hash made to fit, is not the one that was charged."""
    path = run.folder / "transcript.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    forge_consistently(run.folder, lambda events: events[-1].update(transcript_sha256=digest))
    differences = find_differences(run)
    assert list(differences) == ["transcript: the one in the ledger"]
    assert "symbols of step 0 are not those charged" in str(differences)


def test_charges_over_the_budget_are_found(run: Run) -> None:
    """Charges that add up to more than the budget are refused, though the chain is whole."""
    path = run.folder / "ledger.jsonl"
    rewrite(path, lambda events: events[2].update(mutual_information_nats=0.2))
    assert "exceed the declared budget" in find_differences(run)["ledger: complete, within budget"]
