"""Planning a comparison: what is refused before anything runs, and what cannot be mixed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

import sordino
from helpers_runs import sentiment_rows, write_jsonl
from sordino.core.errors import InvalidDataError, InvalidParameterError, LedgerError
from sordino.reports import study

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    return {
        "model": "nowhere",
        "train": write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(24)),
        "validation": write_jsonl(tmp_path / "public.jsonl", sentiment_rows(6, start=100)),
        "validation_is_public": True,
        "output": tmp_path / "comparison",
        "device": "cpu",
    }


@pytest.fixture
def never_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a run is started."""

    def refuse(**settings: Any) -> None:
        pytest.fail("a run was started")

    monkeypatch.setattr(study, "tune", refuse)


@pytest.mark.usefixtures("never_tune")
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"epsilon": -1.0}, "epsilon must be positive"),
        ({"epsilon": math.nan}, "epsilon must be positive"),
        ({"epsilon": math.inf}, "epsilon must be positive"),
        ({"delta": 0.1}, "delta"),
        ({"delta": math.nan}, "delta"),
        ({"delta": 0.0}, "delta"),
        ({"methods": ["magic"]}, "methods must be one of non-private, dp-first-order"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 25}, "batch_size"),
        ({"directions_per_step": 1}, "directions_per_step"),
        ({"num_steps_first_order": 0}, "num_steps_first_order"),
        ({"num_steps_zeroth_order": 0}, "num_steps_zeroth_order"),
        ({"num_steps_pac_first_order": -1}, "num_steps_pac_first_order"),
        ({"validation_is_public": False}, "confirm with --validation-is-public"),
    ],
)
def test_wrong_settings_are_refused_before_the_first_run(
    files: dict[str, Any], changes: dict[str, Any], match: str
) -> None:
    """One line that names the setting; nothing is written."""
    with pytest.raises(InvalidParameterError, match=match):
        sordino.compare(**files | changes)
    assert not files["output"].exists()


@pytest.mark.usefixtures("never_tune")
def test_validation_records_in_the_pool_are_refused(files: dict[str, Any]) -> None:
    """Their scores would be a release."""
    with pytest.raises(InvalidDataError, match="are in the training pool too"):
        sordino.compare(**files | {"validation": files["train"]})
    assert not files["output"].exists()


@pytest.mark.usefixtures("never_tune")
def test_nothing_is_overwritten(files: dict[str, Any]) -> None:
    """A folder with something in it needs --resume."""
    files["output"].mkdir()
    (files["output"] / "thesis.txt").touch()
    with pytest.raises(InvalidParameterError, match="exists already"):
        sordino.compare(**files)
    assert [path.name for path in files["output"].iterdir()] == ["thesis.txt"]


@pytest.mark.usefixtures("never_tune")
@pytest.mark.parametrize(
    ("changes", "different"),
    [
        ({"epsilon": 3.0}, "epsilon"),
        ({"seed": 1, "lora_rank": 4}, "lora_rank, seed"),
        ({"num_steps_first_order": 2}, "num_steps_first_order"),
        ({"train": "more"}, "num_records"),
    ],
)
def test_other_settings_cannot_be_mixed_in(
    files: dict[str, Any], changes: dict[str, Any], different: str, tmp_path: Path
) -> None:
    """A table holds runs of one kind of settings only."""
    if "train" in changes:
        changes = {"train": write_jsonl(tmp_path / "more.jsonl", sentiment_rows(26))}
        changes["batch_size"] = 24
    options = {"methods": ["non-private"], "batch_size": 24}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "tune", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            sordino.compare(**files, **options)
    with pytest.raises(LedgerError, match=f"Different: {different}."):
        sordino.compare(**files | options | changes, resume=True)


def _interrupt(**_settings: Any) -> None:
    raise KeyboardInterrupt
