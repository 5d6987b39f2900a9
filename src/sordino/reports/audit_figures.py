"""Figures of the report as inline SVG: no script, no font, no address; colors come from the page.

A figure is a few kilobytes, prints as it looks and says its content in a title and a description.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTH, _HEIGHT = 600.0, 390.0  # units of the drawing; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 96.0, 572.0, 26.0, 312.0  # room for large type on a phone
_MOST_DECADES = 6
_SMALLEST_RANGE = 1e-290  # below it, floating-point numbers lose their digits
_MOST_LABELS = 12  # more counts above the bars would touch each other


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a ROC figure with its interval.

    Args:
        style: Class that the page's styles know: "first", "second", "third" or "control".
        label: Its name in the legend.
        false_positive_rates: Rising.
        true_positive_rates: At these.
        tpr_lower: Lower ends.
        tpr_upper: Upper ends.
    """

    style: str
    label: str
    false_positive_rates: Sequence[float]
    true_positive_rates: Sequence[float]
    tpr_lower: Sequence[float]
    tpr_upper: Sequence[float]


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a figure of plans, with its interval.

    Args:
        style: Class that the page's styles know.
        label: Stands beside it.
        x: Its place on the horizontal axis.
        y: Its place on the vertical axis.
        lower: Lower end of its interval; y itself without one.
        upper: Upper end.
    """

    style: str
    label: str
    x: float
    y: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class _Axis:
    """Maps values to places between two ends of the drawing; what lies outside is put at an end."""

    low: float
    high: float
    start: float
    end: float
    is_logarithmic: bool = False

    def at(self, value: float) -> float:
        """Returns the place of a value."""
        if self.is_logarithmic:
            share = (
                math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
                if value > 0
                else 0.0
            )
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + min(max(share, 0.0), 1.0) * (self.end - self.start), 1)


def draw_roc(identifier: str, title: str, description: str, curves: Sequence[Curve]) -> Markup:
    """Returns a ROC figure on two logarithmic axes.

    Rates of 0 have no place there and are drawn at the lower end.

    Args:
        identifier: Makes the names of title and description unique on the page.
        title: What it is.
        description: What it shows, in words.
        curves: At least one, each with at least one point.
    """
    smallest = min(rate for curve in curves for rate in curve.false_positive_rates if rate > 0)
    decades = min(max(1, math.ceil(-math.log10(smallest) - 1e-9)), _MOST_DECADES)
    low = 10.0**-decades
    x = _Axis(low, 1.0, _LEFT, _RIGHT, is_logarithmic=True)
    y = _Axis(low, 1.0, _BOTTOM, _TOP, is_logarithmic=True)
    ticks = [(10.0**-k, _percent_of_power(-k)) for k in range(decades, -1, -1)]
    parts = [_axes(x, y, ticks, ticks), _titles("False positive rate", "True positive rate")]
    parts.append(_line("chance", [(x.at(low), y.at(low)), (x.at(1.0), y.at(1.0))]))
    for curve in curves:
        rates = [x.at(rate) for rate in curve.false_positive_rates]
        upper = [(at, y.at(rate)) for at, rate in zip(rates, curve.tpr_upper, strict=True)]
        lower = [(at, y.at(rate)) for at, rate in zip(rates, curve.tpr_lower, strict=True)]
        parts.append(
            Markup('<polygon class="band {}" points="{}"/>').format(
                curve.style, _points([*upper, *reversed(lower)])
            )
        )
    for curve in curves:  # above all bands
        places = zip(curve.false_positive_rates, curve.true_positive_rates, strict=True)
        parts.append(_line(f"curve {curve.style}", [(x.at(a), y.at(b)) for a, b in places]))
    return _figure(identifier, title, description, parts)


def draw_histogram(
    identifier: str,
    title: str,
    description: str,
    *,
    edges: Sequence[float],
    counts: Sequence[int],
    x_title: str,
    y_title: str,
    expected: Sequence[float] | None = None,
    is_logarithmic: bool = False,
) -> Markup:
    """Returns bars with their counts, and a stepped line of what was expected.

    Args:
        identifier: Makes the names of title and description unique on the page.
        title: What it is.
        description: What it shows, in words.
        edges: Of the bars, rising; one more than there are bars.
        counts: Heights.
        x_title: Of the horizontal axis.
        y_title: Of the vertical axis.
        expected: Heights of the line; None draws none.
        is_logarithmic: Whether heights are; a bar of 1 is then still seen.
    """
    highest = max(*counts, *(expected or ()), 1.0)
    if is_logarithmic:
        y_ticks = [10.0**k for k in range(max(1, math.ceil(math.log10(highest))) + 1)]
    else:
        y_ticks = _round_ticks(0.0, highest, only_whole=True)
    x = _Axis(edges[0], edges[-1], _LEFT, _RIGHT)
    y = _Axis(0.6 if is_logarithmic else 0.0, y_ticks[-1], _BOTTOM, _TOP, is_logarithmic)
    x_ticks = [tick for tick in _round_ticks(edges[0], edges[-1]) if edges[0] <= tick <= edges[-1]]
    parts = [
        _axes(x, y, [(t, f"{t:g}") for t in x_ticks], [(t, f"{t:,g}") for t in y_ticks]),
        _titles(x_title, y_title),
    ]
    is_labelled = len(counts) <= _MOST_LABELS
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        if count == 0:
            continue
        start, width = x.at(left) + 1.0, max(x.at(right) - x.at(left) - 2.0, 0.5)
        parts.append(
            Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"/>').format(
                start, y.at(count), round(width, 1), round(_BOTTOM - y.at(count), 1)
            )
        )
        if is_labelled:
            parts.append(_text("count", start + width / 2, y.at(count) - 5, f"{count:,}"))
    if expected is not None:
        steps = [
            (x.at(edge), y.at(height))
            for left, right, height in zip(edges, edges[1:], expected, strict=False)
            for edge in (left, right)
        ]
        parts.append(_line("expected", steps))
    return _figure(identifier, title, description, parts)


def draw_points(
    identifier: str,
    title: str,
    description: str,
    points: Sequence[Point],
    *,
    x_title: str,
    y_title: str,
) -> Markup:
    """Returns points with their intervals and labels, on two plain axes.

    Args:
        identifier: Makes the names of title and description unique on the page.
        title: What it is.
        description: What it shows, in words.
        points: At least one, finite.
        x_title: Of the horizontal axis.
        y_title: Of the vertical axis.
    """
    x_ticks = _round_ticks(min(p.x for p in points), max(p.x for p in points))
    y_ticks = _round_ticks(min(p.lower for p in points), max(p.upper for p in points))
    x = _Axis(x_ticks[0], x_ticks[-1] + (x_ticks[-1] == x_ticks[0]), _LEFT, _RIGHT)
    y = _Axis(y_ticks[0], y_ticks[-1] + (y_ticks[-1] == y_ticks[0]), _BOTTOM, _TOP)
    parts = [
        _axes(x, y, [(v, f"{v:g}") for v in x_ticks], [(v, f"{v:g}") for v in y_ticks]),
        _titles(x_title, y_title),
    ]
    for point in points:
        at = x.at(point.x)
        parts.append(
            _line(f"interval {point.style}", [(at, y.at(point.lower)), (at, y.at(point.upper))])
        )
        parts.append(
            Markup('<circle class="point {}" cx="{}" cy="{}" r="6"/>').format(
                point.style, at, y.at(point.y)
            )
        )
    for point in points:  # above all points
        is_right = x.at(point.x) > (_LEFT + _RIGHT) / 2
        shift = -10 if is_right else 10
        style = "label end" if is_right else "label"
        parts.append(_text(style, x.at(point.x) + shift, y.at(point.y) + 5, point.label))
    return _figure(identifier, title, description, parts)


def draw_bounds(
    identifier: str, title: str, bars: Sequence[tuple[str, str, float, str]], end: float
) -> Markup:
    """Returns bounds on one quantity below each other, with a line where the first one ends.

    Args:
        identifier: Makes the names of title and description unique on the page.
        title: What it is.
        bars: Style, name, value and its words; the value is at least 0.
        end: Value at the right end of the drawing.
    """
    x = _Axis(0.0, end, 118.0, 300.0)  # the words of the longest bar stand right of it
    limit, bottom = x.at(bars[0][2]), 28.0 * len(bars)
    drawn, texts = [], []
    for row, (style, name, value, words) in enumerate(bars):
        top = 4.0 + 28.0 * row
        texts.append(_text("end", 110.0, top + 15.0, name))
        texts.append(_text("value", x.at(value) + 6.0, top + 15.0, words))
        drawn.append(
            Markup('<rect class="bound {}" x="118" y="{}" width="{}" height="20"/>').format(
                style, top, max(round(x.at(value) - 118.0, 1), 1.5)
            )
        )
    lines = [_line("limit", [(limit, 0.0), (limit, bottom)])]
    lines.append(_line("frame", [(118.0, 0.0), (118.0, bottom)]))
    parts = [*drawn, *lines, *texts]
    description = "; ".join(f"{name} {words}" for _, name, _, words in bars) + "."
    return _figure(identifier, title, description, parts, size=(420, int(bottom)), style="bounds")


def _figure(
    identifier: str,
    title: str,
    description: str,
    parts: Sequence[Markup],
    *,
    size: tuple[int, int] = (int(_WIDTH), int(_HEIGHT)),
    style: str = "plot",
) -> Markup:
    """Returns the drawing as one picture with a name and a description."""
    return Markup(
        '<svg class="drawing {}" role="img" viewBox="0 0 {} {}" aria-labelledby="{}-title" '
        'aria-describedby="{}-desc"><title id="{}-title">{}</title><desc id="{}-desc">{}</desc>'
        "{}</svg>"
    ).format(
        style,
        *size,
        identifier,
        identifier,
        identifier,
        title,
        identifier,
        description,
        Markup("\n").join(parts),
    )


def _axes(
    x: _Axis,
    y: _Axis,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
) -> Markup:
    """Returns grid, ticks and frame."""
    parts = []
    for value, label in x_ticks:
        at = x.at(value)
        parts.append(_line("grid", [(at, _TOP), (at, _BOTTOM)]))
        parts.append(_text("tick", at, _BOTTOM + 24, label))
    for value, label in y_ticks:
        at = y.at(value)
        parts.append(_line("grid", [(_LEFT, at), (_RIGHT, at)]))
        parts.append(_text("tick end", _LEFT - 8, at + 5, label))
    parts.append(_line("frame", [(_LEFT, _TOP), (_LEFT, _BOTTOM), (_RIGHT, _BOTTOM)]))
    return Markup("").join(parts)


def _titles(x_title: str, y_title: str) -> Markup:
    """Returns the axes' titles; the vertical one is turned."""
    middle = (_TOP + _BOTTOM) / 2
    turned = Markup('<text class="axis" transform="translate(22 {}) rotate(-90)">{}</text>')
    return _text("axis", (_LEFT + _RIGHT) / 2, _HEIGHT - 18, x_title) + turned.format(
        middle, y_title
    )


def _line(style: str, places: Sequence[tuple[float, float]]) -> Markup:
    """Returns an open line; a single place becomes a dot, by the styles' round ends."""
    if len(places) == 1:
        places = [places[0], places[0]]
    return Markup('<polyline class="{}" points="{}"/>').format(style, _points(places))


def _points(places: Sequence[tuple[float, float]]) -> str:
    """Returns coordinates as SVG wants them."""
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def _text(style: str, x: float, y: float, words: str) -> Markup:
    """Returns a text at a place."""
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(
        style, round(x, 1), round(y, 1), words
    )


def _percent_of_power(exponent: int) -> str:
    """Returns 10 to this power in percent, in full."""
    return f"{100.0 * 10.0**exponent:.10f}".rstrip("0").rstrip(".") + "%"


def _round_ticks(low: float, high: float, *, only_whole: bool = False) -> list[float]:
    """Returns three to eight ticks at round values, from `low` or below to `high` or above."""
    if high - low < _SMALLEST_RANGE:
        return [low, high]
    size = 10.0 ** math.floor(math.log10((high - low) / 4.0))
    step = next(size * factor for factor in (1, 2, 5, 10) if (high - low) / (size * factor) <= 5)
    if only_whole:
        step = max(step, 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]
