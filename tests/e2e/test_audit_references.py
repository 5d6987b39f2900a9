"""`sordino audit` with reference models and with users, on runs made by `sordino tune`."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING, Any

import pytest

import sordino
from helpers_runs import completion_rows, run_cli, write_jsonl
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.reports.audit_record import read_audit
from sordino.reports.report import publishable_part

if TYPE_CHECKING:
    from pathlib import Path

TUNED: dict[str, Any] = {
    "guarantee": "none",
    "estimator": "first-order",
    "optimizer": "adamw",
    "num_steps": 40,
    "learning_rate": 2e-2,
    "lora_rank": 4,
    "lora_factors": "both",
    "dtype": "float32",
}
SIZE = 30


def rows(start: int) -> list[dict[str, Any]]:
    """Returns records of ten authors, three each."""
    found = completion_rows(SIZE, start=start)
    return [row | {"author": f"{start}-{i % 10}"} for i, row in enumerate(found)]


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files, a run tuned on one of them, and two tuned on others."""
    place = tmp_path_factory.mktemp("references")
    names = ("members", "nonmembers", "first", "second")
    for number, name in enumerate(names):
        write_jsonl(place / f"{name}.jsonl", rows(SIZE * number))
    for name in ("members", "first", "second"):
        sordino.tune(
            model=str(tiny_model),
            train=place / f"{name}.jsonl",
            output=place / f"run-{name}",
            **TUNED,
        )
    return place


def arguments(folder: Path, tiny_model: Path, output: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_model),
        "members": folder / "members.jsonl",
        "nonmembers": folder / "nonmembers.jsonl",
        "output": output,
        "dtype": "float32",
    }


def references(folder: Path, *names: str) -> list[str]:
    return [str(folder / f"run-{name}") for name in names]


def test_both_attacks_and_their_control(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """They stand beside the loss family, on the control too; score files are private."""
    result = sordino.audit(
        str(folder / "run-members"),
        reference_models=references(folder, "first", "second"),
        control_epochs=2,
        **arguments(folder, tiny_model, tmp_path / "a"),
    )
    found = result.audit.membership
    assert found is not None
    for attacks in (found.attacks, found.control):
        assert {"lira", "rmia", "loss"} < {attack.name for attack in attacks}
    by_name = {attack.name: attack for attack in found.attacks}
    assert min(by_name[name].auc for name in ("lira", "rmia")) > 0.6  # the run is reproducible
    assert result.audit.settings["reference models"] == ["run-first", "run-second"]
    assert any("2 reference model(s)" in note for note in result.audit.notes)
    files = [p for p in (tmp_path / "a").rglob("scores-*") if p.name.count("-") == 2]
    assert len(files) == 2 * 2 + 2  # both sides, and the control's records
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert all(".PRIVATE." in path.name for path in files)
    assert read_audit(result.record) == result.audit


def test_scored_once(
    folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated audit takes every reference's scores from their files."""
    import sordino.attacks.score_store as store

    given = arguments(folder, tiny_model, tmp_path / "a") | {
        "attacks": ["rmia"],
        "reference_models": references(folder, "first"),
        "control": False,
    }
    first = sordino.audit(str(folder / "run-members"), **given)
    monkeypatch.setattr(store, "_score", None)
    again = sordino.audit(str(folder / "run-members"), **given)
    assert first.audit.membership == again.audit.membership
    assert [a.name for a in again.audit.membership.attacks] == ["rmia"]  # type: ignore[union-attr]


def test_references_may_decide_about_canaries(
    folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Canaries are scored by the references too, and the first score named decides.

    How well is left to the coins of 40 canaries; that all fall alike has probability 2^-39.
    """
    run = tmp_path / "run"
    sordino.tune(
        model=str(tiny_model),
        train=folder / "members.jsonl",
        output=run,
        **(TUNED | {"canaries": 40}),
    )
    audit = sordino.audit(
        str(run),
        attacks=["lira", "rmia"],
        reference_models=references(folder, "first", "second"),
        control=False,
        **arguments(folder, tiny_model, tmp_path / "a"),
    ).audit
    assert audit.canaries is not None
    assert audit.canaries.attack.name == "lira"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": ["rmia"]}, "--reference-models"),
        ({"attacks": ["lira"], "reference_models": ["first"]}, "at least two models"),
        ({"attacks": ["loss"], "reference_models": ["first"]}, "names neither"),
        ({"reference_models": ["members"]}, "is the attacked model itself"),
        ({"reference_models": ["first", "first"]}, "is the same as run-first"),
    ],
)
def test_refusals(
    folder: Path, tiny_model: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    given = arguments(folder, tiny_model, tmp_path / "a") | {"control": False} | changes
    given["reference_models"] = references(folder, *given.get("reference_models", ()))
    with pytest.raises(InvalidParameterError, match=message):
        sordino.audit(str(folder / "run-members"), **given)


def test_users(
    folder: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the record, on the page and in words, with the control; never on the public page."""
    output = tmp_path / "run-members.audit"
    given = arguments(folder, tiny_model, output)
    result = sordino.audit(str(folder / "run-members"), unit="author", control_epochs=4, **given)
    membership = result.audit.membership
    assert membership is not None
    assert membership.users is not None
    users = membership.users
    assert (users.unit, users.num_members, users.num_nonmembers) == ("author", 10, 10)
    assert {a.name for a in users.attacks} == {a.name for a in membership.attacks}
    assert users.attacks[0].auc > 0.8
    assert {a.name for a in users.control} == {a.name for a in users.attacks}
    assert read_audit(result.record) == result.audit
    assert json.loads(result.record.read_text())["membership"]["users"]["unit"] == "author"
    assert publishable_part(result.audit).membership is None
    shell = run_cli(
        capsys,
        "audit",
        folder / "run-members",
        "--unit",
        "author",
        "--no-control",
        *(word for k, v in given.items() for word in ("--" + k, v)),
    )
    assert shell.code == 0
    assert "Membership of 10 users (author) against 10 others" in shell.out


def test_users_on_the_page(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A table of their own."""
    from sordino.reports.audit_page import PageSource, render_audit_page

    audit = sordino.audit(
        str(folder / "run-members"),
        unit="author",
        control=False,
        **arguments(folder, tiny_model, tmp_path / "a"),
    ).audit
    page = render_audit_page(PageSource(name="x", audit=audit, certificate_in_words=()))
    assert "Attacks on users" in page


def test_without_the_column(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The message names the file, the line and the column."""
    given = arguments(folder, tiny_model, tmp_path / "a") | {"control": False}
    with pytest.raises(InvalidDataError, match=r"members.jsonl, line 1.*person"):
        sordino.audit(str(folder / "run-members"), unit="person", **given)
    with pytest.raises(InvalidParameterError, match="--unit is for attacks on records"):
        sordino.audit(str(folder / "run-members"), unit="author", num_findings=1)


def test_one_user_only(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    alone = [row | {"author": "ann"} for row in rows(0)]
    given = arguments(folder, tiny_model, tmp_path / "a") | {"control": False}
    given["members"] = write_jsonl(tmp_path / "alone.jsonl", alone)
    with pytest.raises(InvalidDataError, match="--unit author: at least 2 users"):
        sordino.audit(str(folder / "run-members"), unit="author", **given)
