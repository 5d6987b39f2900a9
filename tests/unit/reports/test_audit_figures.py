"""Drawings: on their axes, with no number that is none, and with their words escaped."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.reports.audit_figures import Curve, draw_bounds, draw_histogram, draw_roc

HOSTILE = "<script>\"&'"


def roc(fpr: list[float], tpr: list[float], style: str = "first") -> str:
    curve = Curve(style, "a", fpr, tpr, [0.5 * t for t in tpr], [min(1.0, 2 * t) for t in tpr])
    return str(draw_roc("x", "title", "words", [curve]))


def points(svg: str, style: str) -> list[tuple[float, float]]:
    """Returns the places of the line of a class."""
    found = next(e for e in ET.fromstring(svg) if e.get("class") == style)  # noqa: S314 - our own
    pairs = (pair.split(",") for pair in str(found.get("points")).split())
    return [(float(x), float(y)) for x, y in pairs]


def test_a_guess_lies_on_the_diagonal() -> None:
    """Both axes are the same: equal rates lie on the line of a guess, powers of ten apart."""
    svg = roc([0.001, 0.01, 0.1, 1.0], [0.001, 0.01, 0.1, 1.0])
    found = points(svg, "curve first")
    ends = points(svg, "chance")
    assert (found[0], found[-1]) == (ends[0], ends[1])
    steps = {round(b[0] - a[0], 0) for a, b in itertools.pairwise(found)}
    assert len(steps) == 1
    assert re.findall(r'"tick"[^>]*>([^<]*)', svg) == ["0.1%", "1%", "10%", "100%"]


def test_rates_of_zero_are_drawn_at_the_lower_end() -> None:
    svg = roc([0.01, 1.0], [0.0, 1.0])
    assert points(svg, "curve first")[0] == points(svg, "chance")[0]


@given(st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=20))
def test_a_curve_stays_in_its_frame(rates: list[float]) -> None:
    """Whatever the rates, every place is finite and inside."""
    svg = roc(sorted(rates), rates)
    for x, y in points(svg, "curve first"):
        assert 0.0 <= x <= 600.0
        assert 0.0 <= y <= 390.0
    assert "nan" not in svg


def test_bars_are_as_high_as_they_count() -> None:
    """And the line of what was expected is on the same axis."""
    svg = str(
        draw_histogram(
            "x",
            "t",
            "d",
            edges=[0, 1, 2, 3],
            counts=[4, 0, 2],
            expected=[2.0, 2.0, 1.0],
            x_title="bits",
            y_title="n",
        )
    )
    heights = [float(h) for h in re.findall(r'class="bar"[^>]* height="([\d.]+)"', svg)]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2)
    bottom = max(y for _, y in points(svg, "frame"))
    assert bottom - points(svg, "expected")[0][1] == pytest.approx(heights[1], abs=0.2)
    assert re.findall(r'"count"[^>]*>([^<]*)', svg) == ["4", "2"]


def test_a_single_record_is_seen_on_a_logarithmic_axis() -> None:
    svg = str(
        draw_histogram(
            "x",
            "t",
            "d",
            edges=[-1.0, 0.0, 1.0],
            counts=[1, 10_000],
            x_title="nats",
            y_title="n",
            is_logarithmic=True,
        )
    )
    heights = [float(h) for h in re.findall(r'class="bar"[^>]* height="([\d.]+)"', svg)]
    assert heights[0] > 10.0


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20, unique=True),
    st.integers(0, 10**9),
)
def test_a_histogram_always_has_ticks(edges: list[float], count: int) -> None:
    """Whatever the range, there are a few round ticks and no place outside."""
    edges = sorted(edges)
    if not edges[-1] - edges[0] > 1e-6 * max(map(abs, edges)):
        return
    svg = str(
        draw_histogram(
            "x",
            "t",
            "d",
            edges=edges,
            counts=[count] * (len(edges) - 1),
            x_title="x",
            y_title="y",
        )
    )
    assert 2 <= len(re.findall('class="tick end"', svg)) <= 8
    assert len(re.findall('class="tick"', svg)) <= 8
    for x, y in points(svg, "frame"):
        assert math.isfinite(x + y)


def test_bounds_are_drawn_to_scale() -> None:
    """A measurement beyond the claim reaches beyond its line."""
    bars = [("claim", "certificate", 2.0, "at most 2"), ("found", "measured", 4.0, "at least 4")]
    svg = str(draw_bounds("x", "t", bars, 4.0))
    widths = [float(w) for w in re.findall(r'class="bound[^>]* width="([\d.]+)"', svg)]
    assert widths[1] == pytest.approx(2 * widths[0])
    assert points(svg, "limit")[0][0] == pytest.approx(118.0 + widths[0])
    assert "certificate at most 2; measured at least 4." in svg


def test_words_are_escaped() -> None:
    curve = Curve("first", HOSTILE, [1.0], [1.0], [1.0], [1.0])
    drawings = [
        draw_roc(HOSTILE, HOSTILE, HOSTILE, [curve]),
        draw_bounds(HOSTILE, HOSTILE, [("claim", HOSTILE, 1.0, HOSTILE)], 1.0),
        draw_histogram(
            HOSTILE, HOSTILE, HOSTILE, edges=[0, 1], counts=[1], x_title=HOSTILE, y_title=HOSTILE
        ),
    ]
    for svg in drawings:
        assert "<script" not in svg
        ET.fromstring(svg)  # noqa: S314 - our own; it is well-formed
