"""`sordino audit`: leaks are found, honest claims stand, false ones fail loudly."""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import sordino
import sordino.reports.audit as module
from helpers_runs import SMALL, completion_rows, run_cli, sentiment_rows, write_jsonl
from sordino.attacks.score_store import score_texts
from sordino.attacks.texts import ScoredText
from sordino.core.errors import InvalidDataError, InvalidParameterError, LedgerError
from sordino.ledger.certificate import compute_certificate
from sordino.reports.audit_record import read_audit

if TYPE_CHECKING:
    from collections.abc import Callable

LEAKING: dict[str, Any] = {
    "guarantee": "none",
    "estimator": "first-order",
    "optimizer": "adamw",
    "num_steps": 80,
    "learning_rate": 2e-2,
    "lora_rank": 8,
    "lora_factors": "both",
    "lora_targets": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "batch_size": 48,
    "dtype": "float32",
    "canaries": 80,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Members and non-members of two kinds."""
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "members.jsonl", completion_rows(30))
    write_jsonl(folder / "nonmembers.jsonl", completion_rows(30, start=30))
    write_jsonl(folder / "labelled.jsonl", sentiment_rows(40))
    write_jsonl(folder / "others.jsonl", sentiment_rows(40, start=40))
    return folder


@pytest.fixture(scope="module")
def leaking(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned its records and canaries by heart."""
    output = tmp_path_factory.mktemp("leaking") / "run"
    sordino.tune(model=str(tiny_model), train=data / "members.jsonl", output=output, **LEAKING)
    return output


def sides(data: Path) -> dict[str, Path]:
    return {"members": data / "members.jsonl", "nonmembers": data / "nonmembers.jsonl"}


def claiming(epsilon: float, relation: str = "ADD_OR_REMOVE_ONE") -> Callable[..., Any]:
    """Returns a stand-in for `compute_certificate` that states an epsilon."""

    def compute(ledger: Any) -> Any:
        true = compute_certificate(ledger)
        pool = replace(
            true.pool,
            epsilon_upper=epsilon,
            delta=1e-5,
            neighboring_relation=relation,
            privacy_unit="record",
            success_upper=0.9,
        )
        return replace(true, pool=pool)

    return compute


def test_leak_is_found(leaking: Path, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """Without a claim there is nothing to contradict, and the numbers say what leaks."""
    result = sordino.audit(
        str(leaking), model=str(tiny_model), control=False, output=tmp_path, **sides(data)
    )
    audit = result.audit
    assert audit.canaries is not None
    assert audit.canaries.epsilon_lower > 0.5  # 0.97 to 1.93 in 12 runs: coins differ
    assert audit.canaries.num_canaries == 80
    assert audit.membership is not None
    assert audit.membership.attacks[0].auc_lower > 0.5
    assert {verdict.outcome for verdict in audit.verdicts} == {"nothing claimed"}
    assert not audit.is_contradicted
    assert read_audit(result.record) == audit


def test_false_claim_is_contradicted(
    leaking: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2, and the first line says so."""
    monkeypatch.setattr(module, "compute_certificate", claiming(0.5))
    shell = run_cli(
        capsys, "audit", leaking, "--model", tiny_model, "--no-control", "--output", tmp_path
    )
    assert shell.code == 2
    assert shell.out.splitlines()[0].startswith("CONTRADICTED (pool game")
    assert "claimed epsilon <= 0.5" in shell.out.splitlines()[0]


def test_a_contradiction_is_not_forgotten(
    leaking: Path, tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second audit keeps the first record and says what it found."""
    arguments: dict[str, Any] = {"model": str(tiny_model), "control": False, "output": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(module, "compute_certificate", claiming(0.1))
        assert sordino.audit(str(leaking), **arguments).audit.is_contradicted
    again = sordino.audit(str(leaking), **arguments).audit
    assert not again.is_contradicted
    assert (
        "earlier audit of the same model contradicted a claim: see audit.1.json" in again.notes[0]
    )
    assert read_audit(tmp_path / "audit.1.json").is_contradicted
    assert len(sordino.audit(str(leaking), **arguments).audit.notes) == len(again.notes)
    assert (tmp_path / "audit.2.json").exists()


def test_a_claim_beyond_one_run_says_so(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight candidates prove nothing at 95%: the verdict names the limit."""
    output = tmp_path / "run"
    sordino.tune(model=str(tiny_model), train=data / "labelled.jsonl", output=output, **SMALL)
    audit = sordino.audit(
        str(output),
        model=str(tiny_model),
        members=data / "labelled.jsonl",
        nonmembers=data / "others.jsonl",
        control=False,
    ).audit
    assert audit.verdicts[0].outcome == "no power"
    assert "with 8 candidates one run proves at most 0.500" in audit.verdicts[0].line


def test_words_of_a_model_made_elsewhere(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """Template and words can be given; a run's ledger knows its own."""
    arguments: dict[str, Any] = {
        "members": data / "labelled.jsonl",
        "nonmembers": data / "others.jsonl",
        "control": False,
        "verbalizer": ["0=dull", "1=warm"],
    }
    usual = sordino.audit(
        str(tiny_model), output=tmp_path / "a", **(arguments | {"verbalizer": None})
    ).audit
    other = sordino.audit(
        str(tiny_model), output=tmp_path / "b", template="{text} is", **arguments
    ).audit
    assert usual.membership != other.membership
    output = tmp_path / "run"
    sordino.tune(model=str(tiny_model), train=data / "labelled.jsonl", output=output, **SMALL)
    with pytest.raises(InvalidParameterError, match="the ledger of this run"):
        sordino.audit(str(output), model=str(tiny_model), **arguments)


def test_other_relations_are_not_tested(
    leaking: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim about replacement is not held against coins that add or leave out."""
    monkeypatch.setattr(module, "compute_certificate", claiming(0.5, "REPLACE_ONE"))
    result = sordino.audit(str(leaking), model=str(tiny_model), control=False, output=tmp_path)
    pool = result.audit.verdicts[1]
    assert pool.outcome == "no power"
    assert "REPLACE_ONE" in pool.line
    assert pool.measured_lower is None


def test_honest_claim_is_consistent_with_a_caught_control(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control leaks more than the claim, the run does not: consistent; both games are there.

    Failure rate of a correct run: 1e-6, the audit's own level.
    """
    # a model of a few thousand numbers learns nothing by heart at the usual rate
    monkeypatch.setattr("sordino.reports.audit_control._LEARNING_RATE", 2e-2)
    monkeypatch.setattr("sordino.reports.audit_control._BATCH", 64)
    output = tmp_path / "run"
    sordino.tune(
        model=str(tiny_model),
        train=data / "members.jsonl",
        output=output,
        guarantee="dp",
        epsilon=0.3,
        delta=1e-9,  # the bound of one run cannot reach a level far below 2 x canaries x delta
        estimator="first-order",
        num_steps=4,
        batch_size=40,
        dtype="float32",
        canaries=80,
    )
    result = sordino.audit(
        str(output),
        model=str(tiny_model),
        control_epochs=50,
        significance=1e-6,
        **sides(data),
    )
    subset, pool = result.audit.verdicts
    assert subset.outcome == "nothing claimed"
    assert pool.outcome == "consistent", pool.line
    assert pool.control_lower is not None
    assert pool.control_lower > 0.3
    assert result.output == output.with_name("run.audit")
    assert stat.S_IMODE(result.output.stat().st_mode) == 0o700
    assert {stat.S_IMODE(f.stat().st_mode) for f in result.output.glob("*.json*")} == {0o600}
    pages = [sordino.report(output), sordino.report(output, publish=True)]
    assert [page.page for page in pages] == [
        result.output / "report.html",
        output / "audit.html",
    ]
    assert read_audit(output / "audit.json").membership is None
    assert sordino.verify(str(output)).is_valid  # with what is published beside it


def test_zero_information_run_plays_the_subset_game(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    """The subset is drawn once, after the run; without a control a claim is never confirmed."""
    output = tmp_path / "run"
    sordino.tune(model=str(tiny_model), train=data / "labelled.jsonl", output=output, **SMALL)
    arguments: dict[str, Any] = {
        "model": str(tiny_model),
        "members": data / "labelled.jsonl",
        "nonmembers": data / "others.jsonl",
        "control": False,
    }
    first = sordino.audit(str(output), **arguments).audit
    second = sordino.audit(str(output), **arguments).audit
    assert first.subset is not None
    assert first.subset == second.subset
    assert first.subset.is_drawn_after
    assert first.subset.num_subsets == SMALL["num_subsets"]
    assert first.verdicts[0].outcome in {"no power", "contradicted"}
    assert first.verdicts[1].outcome == "nothing claimed"


def test_interrupted_scoring_goes_on(
    leaking: Path,
    tiny_model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was scored before a kill is not scored again, and the numbers are the same."""
    import sordino.attacks.score_store as store

    monkeypatch.setattr(store, "_TEXTS_AT_ONCE", 8)
    whole = sordino.audit(
        str(leaking), model=str(tiny_model), control=False, output=tmp_path / "a", **sides(data)
    )
    scored: list[int] = []
    compute = store._score

    def failing(subject: Any, texts: Any, *others: Any) -> Any:
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(len(texts))
        return compute(subject, texts, *others)

    monkeypatch.setattr(store, "_score", failing)
    with pytest.raises(KeyboardInterrupt):
        sordino.audit(
            str(leaking), model=str(tiny_model), control=False, output=tmp_path / "b", **sides(data)
        )
    path = tmp_path / "b" / "scores-members.PRIVATE.jsonl"
    path.write_bytes(path.read_bytes() + b'{"index": 2, "sco')  # as a torn write leaves it
    counted: list[int] = []
    monkeypatch.setattr(
        store, "_score", lambda s, texts, *o: counted.append(len(texts)) or compute(s, texts, *o)
    )
    rest = sordino.audit(
        str(leaking), model=str(tiny_model), control=False, output=tmp_path / "b", **sides(data)
    )
    assert sum(counted) == 30 + 30 + 80 - 24
    assert rest.audit.membership is not None
    assert whole.audit.membership is not None
    for a, b in zip(rest.audit.membership.attacks, whole.audit.membership.attacks, strict=True):
        assert (a.name, a.auc) == (b.name, pytest.approx(b.auc, abs=1e-2))


def test_models_made_elsewhere(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """A model folder is attacked without certificate and without base; nothing is written in it."""
    before = sorted(tiny_model.iterdir())
    result = sordino.audit(
        str(tiny_model), control=False, output=tmp_path / "audit", dtype="float32", **sides(data)
    )
    assert result.audit.verdicts == ()
    assert result.audit.membership is not None
    names = {attack.name for attack in result.audit.membership.attacks}
    assert names == {"loss", "zlib", "min-k", "min-k++"}
    low, high = (
        (attack.auc_lower, attack.auc_upper)
        for attack in result.audit.membership.attacks
        if attack.name == "loss"
    ).__next__()
    assert low <= 0.5 <= high
    assert sorted(tiny_model.iterdir()) == before


def test_expensive_scores_and_what_the_model_writes(
    leaking: Path, tiny_model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gradients, copies, a user's own strings and the exploration, in one call of the shell."""
    (tmp_path / "list.txt").write_text("lovely plot\nstale camera\n", encoding="utf-8")
    arguments: list[object] = ["audit", leaking, "--model", tiny_model, "--no-control"]
    for side, path in sides(data).items():
        arguments += [f"--{side}", path]
    for name in ("single-step-ratio", "gradient-norm", "neighbourhood", "loss"):
        arguments += ["--attacks", name]
    arguments += ["--secrets", tmp_path / "list.txt", "--num-samples", "8", "--num-findings", "4"]
    shell = run_cli(capsys, *arguments, "--output", tmp_path / "audit")
    assert shell.code == 0, shell.err
    audit = read_audit(tmp_path / "audit" / "audit.json")
    assert audit.membership is not None
    assert {a.name for a in audit.membership.attacks} == {
        "single-step-ratio",
        "gradient-norm",
        "neighbourhood",
        "loss",
    }
    assert audit.settings["deciding attack"] == "single-step-ratio"
    assert [(row.kind, row.game, row.num_secrets) for row in audit.pii] == [
        ("own", "extraction", 2)
    ]
    assert audit.findings
    leaked = json.loads((tmp_path / "audit" / "leaked_lines.PRIVATE.json").read_bytes())
    assert len(leaked["extraction"]) == audit.pii[0].num_found
    assert "Strings (own, extraction)" in shell.out
    assert "What tuning taught" in shell.out


def test_texts_on_both_sides_are_left_out(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """Copies that differ in case and spaces count as the same text."""
    rows = [json.loads(x) for x in (data / "nonmembers.jsonl").read_text().splitlines()]
    first = json.loads((data / "members.jsonl").read_text().splitlines()[0])
    copied = {"prompt": first["prompt"].upper() + "  ", "completion": first["completion"]}
    path = write_jsonl(tmp_path / "others.jsonl", [copied, *rows, rows[0]])
    result = sordino.audit(
        str(tiny_model),
        members=data / "members.jsonl",
        nonmembers=path,
        control=False,
        output=tmp_path / "audit",
    )
    assert result.audit.membership is not None
    assert result.audit.membership.num_removed == 2
    assert result.audit.membership.num_nonmembers == 30


def test_texts_alone(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """A file with the column prompt alone is scored token by token."""
    paths = {}
    for side, path in sides(data).items():
        rows = [{"prompt": json.loads(x)["prompt"]} for x in path.read_text().splitlines()]
        paths[side] = write_jsonl(tmp_path / f"{side}.jsonl", rows)
    result = sordino.audit(str(tiny_model), control=False, output=tmp_path / "audit", **paths)
    assert result.audit.membership is not None


def test_both_sides_are_of_one_kind(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """Completions against labelled texts would compare two tasks."""
    with pytest.raises(InvalidDataError, match="prompt and completion are required"):
        sordino.audit(
            str(tiny_model),
            members=data / "members.jsonl",
            nonmembers=data / "others.jsonl",
            control=False,
            output=tmp_path / "audit",
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "nothing to attack"),
        ({"members": Path("x.jsonl")}, "belong together"),
        ({"attacks": ["loss", "luck"]}, "luck"),
        ({"attacks": ["reference-difference"]}, "--model BASE"),
        ({"significance": 0.7}, "significance"),
    ],
)
def test_bad_settings(
    tiny_model: Path, data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Each says what was required."""
    given = sides(data) if {"attacks", "significance"} & set(changes) else {}
    with pytest.raises(InvalidParameterError, match=message):
        sordino.audit(str(tiny_model), control=False, output=tmp_path / "a", **(given | changes))


def test_two_audits_of_one_folder(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """The second one stops before it writes; when the first has ended, nothing is in the way."""
    settings: dict[str, Any] = {"control": False, "output": tmp_path / "audit", **sides(data)}
    code = (
        "import sys\nfrom pathlib import Path\nfrom sordino.reports.audit import _held\n"
        "with _held(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "audit")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(LedgerError, match=r"another audit is at work in .*--output"):
            sordino.audit(str(tiny_model), **settings)
        assert [path.name for path in (tmp_path / "audit").iterdir()] == ["lock"]
        process.kill()  # a crash leaves the file, and no lock
    assert sordino.audit(str(tiny_model), **settings).record.exists()
    assert not (tmp_path / "audit" / "lock").exists()


def test_infinite_score_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A score that is not a number stops the audit and names the record's place."""
    import sordino.attacks.score_store as store

    monkeypatch.setattr(store, "_score", lambda *_: [{"loss": float("nan")}])
    monkeypatch.setattr(store, "_begin_digest", lambda *_: hashlib.sha256())
    subject: Any = None
    with pytest.raises(InvalidDataError, match="text 1 is nan"):
        score_texts(subject, [ScoredText([1, 2], 1, "a")], tmp_path / "scores.jsonl")
