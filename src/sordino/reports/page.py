"""comparison.html: one file, drawn from comparison.json and nothing else."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from math import ceil, floor, log10
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from sordino.core.errors import InvalidDataError
from sordino.reports.comparison import METHODS

if TYPE_CHECKING:
    from sordino.reports.comparison import Comparison, Row

_TEMPLATE = "comparison.html.jinja"
_COLORS = {"none": "#595959", "dp": "#0072b2", "pac": "#b34a00"}  # told apart without color vision
_SYMBOLS = {"first-order": "circle", "zeroth-order": "square"}
_HOVER_WIDTH = 48  # characters; fits a phone


def render_page(comparison: Comparison) -> str:
    """Returns the page: a pure function of the record.

    It loads nothing. Its table and the figure's text need no JavaScript.

    Raises:
        InvalidDataError: If no run has finished.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    if not comparison.rows:
        raise InvalidDataError("a page needs at least one finished run.")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("sordino.reports").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        comparison=comparison,
        settings=[
            (name, value) for name, value in comparison.settings.items() if value is not None
        ],
        points=[_point_words(comparison, number, row) for number, row in _numbered(comparison)],
        figure=Markup(_draw(comparison)),  # noqa: S704 - Plotly escapes what its script holds
    )


def _numbered(comparison: Comparison) -> list[tuple[int, Row]]:
    """Returns the rows with their numbers in table and figure."""
    return list(enumerate(comparison.rows, start=1))


def _places(comparison: Comparison) -> list[list[tuple[int, Row]]]:
    """Returns the numbered rows, those at one place of the figure together."""
    places: dict[tuple[float, float], list[tuple[int, Row]]] = {}
    for number, row in _numbered(comparison):
        places.setdefault((row.forward_equivalents, row.score_after), []).append((number, row))
    return list(places.values())


def _point_words(comparison: Comparison, number: int, row: Row) -> str:
    """Returns one point of the figure in words."""
    return (
        f"{number}, {row.method}: {comparison.score} {comparison.show_score(row.score_after)} at a "
        f"cost of {row.forward_equivalents:,.5g}."
    )


def _draw(comparison: Comparison) -> str:
    """Returns the figure with its script, for the page."""
    from plotly import graph_objects
    from plotly.io import to_html

    factor = 100 if comparison.score == "accuracy" else 1
    figure = graph_objects.Figure()
    for index, place in enumerate(_places(comparison)):
        hover = "<br><br>".join(_hover(comparison, number, row) for number, row in place)
        for depth, (_, row) in enumerate(place):
            method = METHODS[row.method]
            figure.add_scatter(
                x=[row.forward_equivalents],
                y=[factor * row.score_after],
                mode="markers+text",
                marker={
                    "size": 24 - 4 * depth,  # the lower of up to six stay visible
                    "color": _COLORS[method.guarantee],
                    "symbol": _SYMBOLS[method.estimator],
                    "line": {"color": "white", "width": 1},
                },
                text=["" if depth else ", ".join(str(number) for number, _ in place)],
                textposition="bottom center" if index % 2 else "top center",
                cliponaxis=False,
                hovertemplate=f"{hover}<extra></extra>",
            )
    before = factor * comparison.rows[0].score_before
    figure.add_hline(y=before, line={"color": "#767676", "dash": "dot"})
    figure.add_annotation(
        text="before tuning", x=1, xref="paper", xanchor="right", y=before, yanchor="bottom"
    )
    figure.for_each_annotation(lambda annotation: annotation.update(showarrow=False))
    figure.update_layout(**_layout(comparison))
    return to_html(
        figure,
        full_html=False,
        include_plotlyjs=True,
        div_id="figure",
        default_height="100%",
        config={"responsive": True, "displayModeBar": False, "displaylogo": False},
    )


def _layout(comparison: Comparison) -> dict[str, Any]:
    """Returns axes and margins; no theme, so that the page stays small."""
    unit = "Accuracy after tuning, %" if comparison.score == "accuracy" else comparison.score_words
    grid = {"gridcolor": "#e0e0e0", "linecolor": "#595959", "automargin": True}
    return {
        "template": None,
        "showlegend": False,
        "plot_bgcolor": "white",
        "margin": {"l": 8, "r": 24, "t": 24, "b": 8},
        "font": {"family": "system-ui, sans-serif", "size": 14, "color": "#1a1a1a"},
        "hoverlabel": {"align": "left", "bgcolor": "white"},
        "xaxis": grid
        | {
            "type": "log",
            "dtick": 1,
            "title": {"text": "Forward passes over the pool"},
            "range": _log_range([row.forward_equivalents for row in comparison.rows]),
        },
        "yaxis": grid | {"title": {"text": unit}},
    }


def _log_range(values: list[float]) -> list[float]:
    """Returns whole powers of ten around the values, as exponents."""
    return [floor(log10(min(values)) - 0.05), ceil(log10(max(values)) + 0.05)]


def _hover(comparison: Comparison, number: int, row: Row) -> str:
    """Returns what a point says when it is touched; Plotly takes a few tags, so all is escaped."""
    lines = [
        f"<b>{escape(_point_words(comparison, number, row))}</b>",
        *_wrapped(f"Subset: {row.subset_words}."),
        *_wrapped(f"Pool: {row.pool_words}."),
    ]
    return "<br>".join(lines).replace("%{", "% {")  # "%{" would be a variable of the template


def _wrapped(text: str) -> list[str]:
    """Returns escaped lines."""
    return [escape(line) for line in wrap(text, _HOVER_WIDTH)]
