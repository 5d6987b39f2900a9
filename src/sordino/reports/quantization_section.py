"""The part of a report about quantization: what layers lost, and what became of their geometry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sordino.core.errors import InvalidDataError
from sordino.reports.audit_figures import Point, draw_points
from sordino.reports.quantize_lines import (
    GEOMETRY_HEADERS,
    HEADERS,
    describe_layers,
    geometry_rows,
    table_rows,
)
from sordino.reports.sections import Figure, Section, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_STYLES = {"attention": "first", "feed-forward": "second", "other": "third"}


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One figure: a number a layer."""

    title: str
    unit: str
    value_of: Callable[[Mapping[str, Any]], float | None]


def is_publishable(record: Mapping[str, Any] | None) -> bool:
    """Returns whether nothing in a record was computed on private texts without noise."""
    if record is None:
        return True
    return record["calibration"]["kind"] != "private" and not record.get("looked_at_members", False)


def make_quantization_section(record: Mapping[str, Any]) -> Section:
    """Returns what `quantization.json` holds, in words, tables and figures.

    Args:
        record: From `read_record`.

    Raises:
        InvalidDataError: If it does not hold what `sordino quantize` writes.
    """
    try:
        return _make_section(record)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise InvalidDataError(
            "quantization.json does not hold what `sordino quantize` writes "
            f"({type(error).__name__}). Look with sordino verify."
        ) from None


def _make_section(record: Mapping[str, Any]) -> Section:
    """Returns the section of a record that is what it should be."""
    layers, settings = record["layers"], record["settings"]
    section = Section(
        "quantization", "What quantization did", is_for_holder=not is_publishable(record)
    )
    section.paragraphs = describe_layers(layers, record["kept"])
    order = f"order {settings['order']}, " if settings["method"] == "gptq" else ""
    bits = sorted({layer["bits"] for layer in layers})
    section.facts = [
        ("Method", f"{settings['method']}, {order}{settings['scales']} scales"),
        ("Bits of a weight", " and ".join(map(str, bits))),
        ("Neighbouring inputs that share a scale", str(settings["group_size"] or "a row")),
        ("Calibration texts", record["calibration"]["kind"]),
        ("Format", record["format"]),
    ]
    figures = [
        _figure(f"quantization-{number}", drawn, layers)
        for number, drawn in enumerate(_DRAWN, start=1)
    ]
    section.figures = [figure for figure in figures if figure is not None]
    losses, geometry = [row.cells() for row in table_rows(layers)], geometry_rows(layers)
    if losses:
        section.tables.append(_table("Losses by kind of layer", HEADERS, losses))
    if geometry:
        section.tables.append(_table("Geometry by kind of layer", GEOMETRY_HEADERS, geometry))
    else:
        section.paragraphs.append(
            "The geometry of the layers was not measured: `sordino quantize --geometry` does so, "
            "for adapters whose base is at hand."
        )
    return section


def _table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Returns a table of plain cells."""
    return Table(caption, list(headers), [[(cell,) for cell in row] for row in rows])


def _figure(identifier: str, drawn: _Drawn, layers: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Returns one number a layer over the blocks; None where no layer has it."""
    points: list[Point] = []
    by_kind: dict[str, list[float]] = {}
    for layer in layers:
        value = drawn.value_of(layer)
        if value is not None:
            kind = _kind(layer["name"])
            points.append(Point(_STYLES[kind], "", _block(layer["name"]), value, value, value))
            by_kind.setdefault(kind, []).append(value)
    if not points:
        return None
    words = [
        f"{kind}: {len(found)} layers, {min(found):.3g} to {max(found):.3g}, mean "
        f"{sum(found) / len(found):.3g}."
        for kind, found in by_kind.items()
    ]
    drawing = draw_points(
        identifier, drawn.title, " ".join(words), points, x_title="block", y_title=drawn.unit
    )
    legend = [(f"point {_STYLES[kind]}", kind) for kind in _STYLES if kind in by_kind]
    return Figure(drawn.title, drawing, legend, words)


def _kind(name: str) -> str:
    """Returns what part of a block a layer belongs to."""
    if "attn" in name or "attention" in name:
        return "attention"
    return "feed-forward" if "mlp" in name or ".fc" in name else "other"


def _block(name: str) -> float:
    """Returns the number of a layer's block."""
    return float(next((part for part in name.split(".") if part.isdigit()), "0"))


def _share_of_nearest(layer: Mapping[str, Any]) -> float | None:
    """Returns a layer's loss over that of nearest rounding."""
    certificate = layer["certificate"]
    if certificate is None or not certificate["nearest"] > 0.0:
        return None
    return float(certificate["exact"] / certificate["nearest"])


def _of_geometry(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    """Returns what reads one number of a layer's geometry."""

    def read(layer: Mapping[str, Any]) -> float | None:
        return None if layer["geometry"] is None else layer["geometry"][name]

    return read


_DRAWN = (
    _Drawn(
        "Loss of each layer over that of rounding to nearest", "loss / nearest", _share_of_nearest
    ),
    _Drawn(
        "Share of codes that fine-tuning changed: what the grid can hold of it",
        "codes changed",
        _of_geometry("changed_rate"),
    ),
    _Drawn(
        "Largest angle that rounding turned the top output directions by",
        "angle, radians",
        _of_geometry("output_angle"),
    ),
)
