"""The part of a report about quantization: figures, tables, and what is never published."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from helpers_pages import LOADING, Reader
from sordino.core.errors import InvalidDataError, InvalidParameterError, LedgerError
from sordino.quantization.provenance import make_record, recompute_privacy
from sordino.reports.audit_page import PageSource, render_audit_page
from sordino.reports.quantization_section import make_quantization_section
from sordino.reports.report import report

if TYPE_CHECKING:
    from pathlib import Path

CERTIFICATE = {
    "bound": 8.0,
    "predicted": 2.6,
    "exact": 2.0,
    "nearest": 4.0,
    "clipped": 3,
    "applies": True,
    "order": "min-pivot",
    "damping": 0.1,
}
GEOMETRY = {
    "pivot_share": 0.5,
    "headroom": 0.1,
    "exact_share": 0.25,
    "singular_value_shift": 0.01,
    "output_angle": 0.2,
    "cka": None,
    "changed_rate": 0.125,
}
KINDS = ("self_attn.q_proj", "mlp.down_proj")


def make_layers(**changes: Any) -> list[dict[str, Any]]:
    """Returns two layers in each of three blocks, as the record holds them."""
    return [
        {
            "name": f"model.layers.{block}.{kind}",
            "shape": [8, 16],
            "bits": 4,
            "group_size": 16,
            "num_bytes": 80,
            "certificate": CERTIFICATE,
            "has_scaled_inputs": False,
            "geometry": GEOMETRY,
        }
        | changes
        for block in range(3)
        for kind in KINDS
    ]


def make_content(kind: str = "public", **changes: Any) -> dict[str, Any]:
    """Returns the content of `quantization.json`."""
    calibration = {
        "kind": kind,
        "sha256": "e" * 64 if kind == "public" else None,
        "num_sequences": 2,
        "num_tokens": 9,
        "release": None,
    }
    parts = {
        "source": {"name": "m", "ledger_head": None},
        "format": "compressed-tensors",
        "settings": {
            "method": "gptq",
            "order": "min-pivot",
            "scales": "searched",
            "group_size": None,
        },
        "looked_at_members": False,
        "calibration": calibration,
        "privacy": {"guarantee": "none", "is_voided": False, "lines": ["Nothing is claimed: x"]},
        "allocation": None,
        "kept": {"lm_head": "outside the blocks"},
        "layers": make_layers(),
        "artefacts_sha256": {"model.safetensors": hashlib.sha256(b"weights").hexdigest()},
    }
    return json.loads(make_record(**parts | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A quantized model, as far as a report looks at it."""
    path = tmp_path / "q"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"weights")
    write(path, make_content())
    return path


def write(folder: Path, content: dict[str, Any]) -> None:
    """Writes a record whose claim is what its calibration gives."""
    file = folder / "quantization.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    file.write_text(json.dumps(content | {"privacy": recompute_privacy(folder)}), encoding="utf-8")


def test_figures_and_tables_show_every_layer() -> None:
    section = make_quantization_section(make_content())
    for figure, value in zip(section.figures, ("0.5", "0.125", "0.2"), strict=True):
        attention = f"attention: 3 layers, {value} to {value}, mean {value}."
        assert figure.words == [attention, attention.replace("attention", "feed-forward")]
    assert all(figure.drawing.count("<circle") == 6 for figure in section.figures)
    losses, geometry = section.tables
    assert losses.rows[-1][:4] == [("all (6)",), ("12",), ("24",), ("0.500",)]
    assert losses.rows[-1][-2:] == [(f"{18 / (6 * 128):.2%}",), ("6 of 6",)]
    assert [row[0] for row in geometry.rows] == [("q_proj (3)",), ("down_proj (3)",)]
    assert geometry.rows[0][6] == ("-",)  # a metric that no layer has
    assert not section.is_for_holder
    assert any("do not bound perplexity" in words for words in section.paragraphs)


def test_without_calibration_there_is_nothing_to_draw() -> None:
    layers = make_layers(certificate=None, geometry=None)
    section = make_quantization_section(make_content("none", layers=layers))
    assert section.figures == []
    assert section.tables == []
    assert any("no certificate of any layer" in words for words in section.paragraphs)
    assert any("geometry of the layers was not measured" in words for words in section.paragraphs)


def test_the_page_loads_nothing_and_states_the_claim(folder: Path) -> None:
    result = report(folder)
    assert result.page == folder.with_name("q.audit") / "report.html"
    assert result.record is None
    page = Reader(result.page.read_text(encoding="utf-8"))
    assert not any(LOADING & attributes.keys() for _, attributes in page.tags)
    assert "Nothing is claimed: this is not a Sordino run" in page.text
    assert "What quantization did" in page.text
    assert len([a for a in page.named("circle") if "point" in a.get("class", "")]) > 18


def test_other_weights_are_not_what_was_quantized(folder: Path) -> None:
    """Defect: a record's claim was shown for weights that had been swapped."""
    (folder / "model.safetensors").write_bytes(b"others")
    with pytest.raises(LedgerError, match=r"model\.safetensors was changed"):
        report(folder)
    write(folder, make_content(artefacts_sha256={}))
    with pytest.raises(LedgerError, match="names none of them"):
        report(folder)


@pytest.mark.parametrize("changes", [{}, {"looked_at_members": True}])
def test_what_private_texts_lost_is_never_published(folder: Path, changes: dict[str, Any]) -> None:
    """Nor what members were looked at for; the claim that is left is published all the same."""
    write(folder, make_content("private", **changes))
    page = Reader(report(folder, publish=True).page.read_text(encoding="utf-8"))
    assert "What quantization did" not in page.text
    assert "no formal guarantee. Void" in page.text
    private = Reader(report(folder).page.read_text(encoding="utf-8"))
    assert "What quantization did" in private.text
    assert "Data holder only" in private.text
    with pytest.raises(InvalidParameterError, match="public page"):
        PageSource(
            name="q",
            audit=None,
            certificate_in_words=(),
            quantization=make_content("private", **changes),
            is_public=True,
        )


def test_public_texts_may_be_published(folder: Path) -> None:
    page = Reader(report(folder, publish=True).page.read_text(encoding="utf-8"))
    assert "What quantization did" in page.text
    assert "Data holder only" not in page.text


def test_a_claim_that_the_ledgers_do_not_give_is_refused(folder: Path) -> None:
    content = json.loads((folder / "quantization.json").read_text(encoding="utf-8"))
    content["privacy"]["lines"] = ["Secret 2, whether a record is in the pool at all: epsilon 1."]
    (folder / "quantization.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(LedgerError, match="claims what its ledgers do not give"):
        report(folder)
    assert not folder.with_name("q.audit").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": None},
        {"layers": []},
        {"layers": [{}]},
        {"settings": {}},
        {"kept": None, "layers": [{"bits": 4}]},
    ],
)
def test_a_damaged_record_is_told(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidDataError, match="does not hold what"):
        make_quantization_section(make_content() | changes)


def test_names_are_escaped() -> None:
    layers = make_layers()
    layers[0]["name"] = "model.layers.0.<script>alert(1)</script>"
    source = PageSource(
        name="q", audit=None, certificate_in_words=(), quantization=make_content(layers=layers)
    )
    assert "<script" not in render_audit_page(source)
