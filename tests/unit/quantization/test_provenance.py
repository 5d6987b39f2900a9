"""What calibration leaves of a claim: unknown kinds are refused, private texts void it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sordino.accounting.composition import gram_noise_multiplier
from sordino.core.errors import InvalidParameterError, LedgerError
from sordino.quantization.provenance import (
    CalibrationSource,
    GramRelease,
    describe_privacy,
    make_record,
    read_record,
    recompute_privacy,
)

if TYPE_CHECKING:
    from pathlib import Path

HASH = "0" * 64
NUMBERS = {"epsilon": 2.0, "delta": 1e-6, "clip_norm": 3.0, "num_grams": 8}
RELEASE = GramRelease(noise_multiplier=gram_noise_multiplier(2.0, 1e-6, 8), **NUMBERS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "harmless", "sha256": HASH}, "must be one of none, public, private, dp"),
        ({"kind": "none", "sha256": HASH}, "must not name"),
        ({"kind": "public"}, "must name"),
        ({"kind": "private", "sha256": HASH}, "must not name"),
        ({"kind": "dp"}, "must state its noise"),
        ({"kind": "dp", "release": RELEASE}, "no counts"),
        ({"kind": "private", "release": RELEASE}, "no other kind"),
    ],
)
def test_unclear_sources_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidParameterError, match=words):
        CalibrationSource(**arguments)


def test_a_model_made_elsewhere_claims_nothing() -> None:
    """With private texts it says on top that they are not protected."""
    for source in (CalibrationSource(kind="none"), CalibrationSource(kind="public", sha256=HASH)):
        privacy = describe_privacy(None, source)
        assert privacy["guarantee"] == "none"
        assert not privacy["is_voided"]
    privacy = describe_privacy(None, CalibrationSource(kind="private"))
    assert privacy["is_voided"]
    assert "no formal guarantee" in privacy["lines"][0]


def test_records_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "quantization.json"
    for content in (b"", b"[]", b'{"format_version": 99}', b"\xff"):
        path.write_bytes(content)
        with pytest.raises(LedgerError):
            read_record(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        make_record(loss=float("nan"))


def test_a_ledger_that_is_missing_or_unasked_for_is_seen(tmp_path: Path) -> None:
    source = {"kind": "none", "sha256": None, "num_sequences": 0, "num_tokens": 0}

    def write(head: str | None) -> None:
        record = make_record(source={"ledger_head": head}, calibration=source)
        (tmp_path / "quantization.json").write_bytes(record)

    write(HASH)
    with pytest.raises(LedgerError, match="missing"):
        recompute_privacy(tmp_path)
    (tmp_path / "source_ledger.jsonl").write_text("", encoding="utf-8")
    write(None)
    with pytest.raises(LedgerError, match="no run is recorded"):
        recompute_privacy(tmp_path)
    (tmp_path / "source_ledger.jsonl").unlink()
    assert json.loads(make_record())["format_version"] == 1
    assert recompute_privacy(tmp_path)["guarantee"] == "none"


def test_noise_that_is_too_small_for_its_epsilon_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="was allowed"):
        GramRelease(noise_multiplier=0.9 * RELEASE.noise_multiplier, **NUMBERS)
    for name, value in {"clip_norm": float("nan"), "delta": 0.0, "epsilon": float("nan")}.items():
        with pytest.raises(InvalidParameterError):
            GramRelease(noise_multiplier=RELEASE.noise_multiplier, **NUMBERS | {name: value})


def test_a_private_release_gets_a_line_of_its_own() -> None:
    source = CalibrationSource(kind="dp", num_sequences=None, num_tokens=None, release=RELEASE)
    privacy = describe_privacy(None, source)
    assert (privacy["guarantee"], privacy["is_voided"]) == ("none", False)
    words = " ".join(privacy["lines"])
    assert "Nothing is claimed" in words
    assert f"({RELEASE.epsilon_upper!r}, 1e-06)-differential privacy" in words
    assert RELEASE.epsilon_upper <= 2.0
    assert "8 Gram matrices" in words
