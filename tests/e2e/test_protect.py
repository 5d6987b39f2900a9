"""`--protect`: groups are measured one by one, and bits follow what they carry."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import sordino
from helpers_runs import (
    BAD,
    GOOD,
    NOUNS,
    SMALL,
    run_cli,
    sentiment_rows,
    write_jsonl,
    write_tiny_model,
)
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.quantization.layers import packed_bytes
from sordino.quantization.outliers import Estimate
from sordino.quantization.pipeline import matrix_of
from sordino.quantization.source import open_source
from sordino.reports import protect, protection
from sordino.reports.protect import ProtectSettings, choose_bits, describe_frontier

if TYPE_CHECKING:
    from pathlib import Path

NUM = 24
GROUP = 8


@pytest.fixture(scope="module")
def files(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that learned its records by heart, others, and public text."""
    folder = tmp_path_factory.mktemp("protect")
    write_jsonl(folder / "members.jsonl", sentiment_rows(NUM))
    write_jsonl(folder / "others.jsonl", sentiment_rows(NUM, start=NUM))
    words = [{"text": row["text"]} for row in sentiment_rows(12, start=2 * NUM)]
    write_jsonl(folder / "public.jsonl", words)
    sordino.tune(
        model=str(tiny_model),
        train=folder / "members.jsonl",
        output=folder / "run",
        guarantee="none",
        estimator="first-order",
        optimizer="adamw",
        num_steps=6,
        learning_rate=0.02,
        lora_rank=4,
        dtype="float32",
        device="cpu",
    )
    return {"folder": folder, "base": str(tiny_model)}


def settings_of(files: dict[str, Any], **changes: Any) -> ProtectSettings:
    folder = files["folder"]
    found: dict[str, Any] = {
        "members": folder / "members.jsonl",
        "nonmembers": folder / "others.jsonl",
        "public": folder / "public.jsonl",
        "budget": None,
        "tolerance": 0.01,
        "base": files["base"],
    }
    return ProtectSettings(**(found | changes))


def run_protect(files: dict[str, Any], output: Path, **changes: Any) -> tuple[Any, Any]:
    source = str(files["folder"] / "run")
    opened = open_source(source, base=files["base"])
    layers = {
        name: module
        for name, module in opened.model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    before = {name: matrix_of(module).clone() for name, module in layers.items()}
    found = choose_bits(
        source, opened, layers, settings_of(files, **changes), group_size=GROUP, folder=output
    )
    for name, module in layers.items():
        assert torch.equal(matrix_of(module), before[name])
        assert not module.weight.requires_grad
    return found, layers


def test_bits_follow_roles_within_the_budget(files: dict[str, Any], tmp_path: Path) -> None:
    """The plan keeps its budget; every other plan stands beside it, in a private file and page."""
    found, layers = run_protect(files, tmp_path / "p")
    record = json.loads(found.record.read_text())
    assert found.bits == record["bits"]
    assert set(found.bits) == set(layers)
    frontier = {point["name"]: point for point in record["frontier"]}
    assert len(frontier) == 1 + 3 + 1 + 5 + 1
    chosen = frontier["differentiated"]["num_bytes"]
    assert chosen <= record["budget_bytes"]
    assert record["budget_bytes"] >= frontier["4 bits"]["num_bytes"]
    assert {frontier[f"random {k}"]["num_bytes"] for k in range(1, 6)} == {chosen}
    whole = frontier["not quantized"]
    assert whole["num_bytes"] == 2 * sum(matrix_of(m).numel() for m in layers.values())
    assert frontier["2 bits"]["perplexity"] > frontier["8 bits"]["perplexity"]
    assert frontier["8 bits"]["perplexity"] == pytest.approx(whole["perplexity"], rel=0.02)
    roles = {name: group["role"] for group in record["groups"] for name in group["layers"]}
    for name, bits in found.bits.items():
        if roles[name] == "sensitive":
            assert bits == 2
        if roles[name] in {"functional", "both"}:
            assert bits == 8
    for path in found.record.parent.iterdir():
        assert "PRIVATE" in path.name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    page = found.page.read_text()
    assert "<script" not in page
    assert page.count('<svg class="drawing') == 2
    assert all(name in page for name in frontier)


def test_ends_of_records_are_extracted_from_a_model_that_learned_them_by_heart(
    tmp_path: Path,
) -> None:
    """Extraction stands beside membership: high for members, low for others, lower at 2 bits."""
    words = [*GOOD, *BAD]
    random = np.random.default_rng(0)
    rows = [
        {"prompt": f"the {NOUNS[i % 10]}", "completion": " ".join(random.choice(words, 16))}
        for i in range(2 * 16)
    ]
    base = str(write_tiny_model(tmp_path / "base", hidden_size=64, intermediate_size=128))
    write_jsonl(tmp_path / "members.jsonl", rows[:16])
    write_jsonl(tmp_path / "others.jsonl", rows[16:])
    (tmp_path / "public.txt").write_text("a fine film\n" * 4)
    sordino.tune(
        model=base,
        train=tmp_path / "members.jsonl",
        output=tmp_path / "run",
        guarantee="none",
        estimator="first-order",
        optimizer="adamw",
        adapter="full",
        num_steps=60,
        learning_rate=0.01,
        dtype="float32",
        device="cpu",
    )
    opened = open_source(str(tmp_path / "run"))
    layers = {
        name: module
        for name, module in opened.model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    limits = ProtectSettings(
        members=tmp_path / "members.jsonl",
        nonmembers=tmp_path / "others.jsonl",
        public=tmp_path / "public.txt",
        budget=None,
        tolerance=0.01,
        base=base,
    )
    found = choose_bits(
        str(tmp_path / "run"), opened, layers, limits, group_size=GROUP, folder=tmp_path / "p"
    )
    frontier = {p["name"]: p for p in json.loads(found.record.read_text())["frontier"]}
    whole, coarse = frontier["not quantized"], frontier["2 bits"]
    assert whole["extracted"]["num_records"] == 8  # the half that judges
    assert whole["extracted"]["greedy"][0] >= 0.75
    assert whole["extracted"]["sampled"][0] >= whole["extracted"]["greedy"][0]
    assert whole["extracted_others"]["greedy"][0] == 0.0
    assert coarse["extracted"]["greedy"][0] < 0.5
    assert "in 100 samples" in found.page.read_text()


def test_roles_that_need_more_than_four_bits_get_it(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a budget of the user's, hours of measuring do not end in a refusal."""
    real = protect.score_groups

    def all_functional(*arguments: Any, **settings: Any) -> list[Any]:
        large = Estimate(2.0, 1.0, 3.0)
        return [replace(group, functional=large) for group in real(*arguments, **settings)]

    monkeypatch.setattr(protect, "score_groups", all_functional)
    found, layers = run_protect(files, tmp_path / "p")
    record = json.loads(found.record.read_text())
    frontier = {point["name"]: point for point in record["frontier"]}
    assert record["budget_bytes"] == frontier["8 bits"]["num_bytes"]
    assert found.bits == dict.fromkeys(layers, 8)
    with pytest.raises(InvalidParameterError, match="fixed by what they carry"):
        run_protect(files, tmp_path / "p", budget=frontier["4 bits"]["num_bytes"])


@pytest.mark.parametrize("is_worse", [True, False])
def test_a_plan_that_is_worse_than_uniform_bits_is_called_so(
    *, is_worse: bool, files: dict[str, Any], tmp_path: Path
) -> None:
    """Whoever asks for protection must not be handed a broken model without a word."""
    found, _ = run_protect(files, tmp_path / "p")
    record = json.loads(found.record.read_text())
    points = {point["name"]: point for point in record["frontier"]}
    usual = points["4 bits"]["perplexity"]
    points["differentiated"]["perplexity"] = usual * (1.5 if is_worse else 0.5)
    found.record.write_text(json.dumps(record))
    lines = describe_frontier(found.record.parent)
    assert any(line.startswith("differentiated: ") for line in lines)
    assert any(line.startswith("Warning: ") for line in lines) == is_worse
    found.record.unlink()
    assert describe_frontier(found.record.parent) == ()


def test_layers_without_a_role_keep_four_bits_by_default(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each alone carries little, all of them together carry the model."""
    real = protect.score_groups

    def one_functional(*arguments: Any, **settings: Any) -> list[Any]:
        none, large = Estimate(0.001, -1.0, 1.0), Estimate(2.0, 1.0, 3.0)
        groups = [
            replace(group, functional=none, sensitive=none)
            for group in real(*arguments, **settings)
        ]
        return [replace(groups[0], functional=large), *groups[1:]]

    monkeypatch.setattr(protect, "score_groups", one_functional)
    found, layers = run_protect(files, tmp_path / "p")
    record = json.loads(found.record.read_text())
    functional = {n for g in record["groups"] if g["role"] == "functional" for n in g["layers"]}
    assert record["budget_bytes"] == sum(
        packed_bytes(matrix_of(module).shape, 8 if name in functional else 4, GROUP)
        for name, module in layers.items()
    )


def test_finished_groups_are_not_measured_again(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut short after two groups, and with a torn last line, it goes on to the same scores."""
    whole, _ = run_protect(files, tmp_path / "whole")
    groups = json.loads(whole.record.read_text())["groups"]
    real, calls = protection.probe, []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(protection, "probe", failing)
    with pytest.raises(KeyboardInterrupt):
        run_protect(files, tmp_path / "cut")
    (path,) = (tmp_path / "cut").glob("groups-*")
    path.write_bytes(path.read_bytes() + b'{"name": "mod')
    calls.clear()
    monkeypatch.setattr(protection, "probe", lambda *a: (calls.append(1), real(*a))[1])
    again, _ = run_protect(files, tmp_path / "cut")
    found = json.loads(again.record.read_text())
    assert found["groups"] == groups
    assert len(calls) == 1 + len(groups) - 2 + len(found["frontier"])
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_the_command_voids_the_claim_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bits of the plan are written, the run's lines are void, and `verify` recomputes that."""
    base = write_tiny_model(tmp_path / "base", hidden_size=32, intermediate_size=64)
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("members", "others")}
    for number, path in enumerate(paths.values()):
        write_jsonl(path, sentiment_rows(NUM, start=number * NUM))
    public = tmp_path / "public.txt"
    public.write_text("A quiet film about a river.\nNobody came to the second show.\n" * 4)
    run, small = tmp_path / "run", tmp_path / "small"
    sordino.tune(model=str(base), train=paths["members"], output=run, **SMALL)
    words: list[object] = ["quantize", run, "--model", base, "--output", small, "--group-size", 32]
    words += ["--method", "nearest"]
    probes = ["--protect", paths["members"], "--nonmembers", paths["others"]]
    assert run_cli(capsys, *words, *probes).code == 2
    assert run_cli(capsys, *words, "--public", public).code == 2
    probes += ["--public", public]
    assert run_cli(capsys, *words, *probes, "--allocation", "random").code == 2
    assert not small.exists()
    shell = run_cli(capsys, *words, *probes)
    assert shell.code == 0, shell.err
    assert "Void: the bits of each layer were chosen by attacks on the members" in shell.out
    assert "differentiated: " in shell.out
    record = json.loads((small / "quantization.json").read_text())
    chosen = json.loads((tmp_path / "small.private" / "protection.PRIVATE.json").read_text())
    assert {layer["name"]: layer["bits"] for layer in record["layers"]} == chosen["bits"]
    assert record["looked_at_members"] is True
    assert sordino.verify(small).is_valid
    record["looked_at_members"] = False
    (small / "quantization.json").write_text(json.dumps(record))
    assert not sordino.verify(small).is_valid


def test_what_cannot_be_protected_is_refused(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match=r"budget_bytes must be at least [\d,]+"):
        run_protect(files, tmp_path / "p", budget=10)
    members = files["folder"] / "members.jsonl"
    with pytest.raises(InvalidDataError, match=r"at least 8 members .* got 0 and 0 different"):
        run_protect(files, tmp_path / "p", nonmembers=members)
    assert not (tmp_path / "p").exists()
