"""The page of `--protect`: the frontier of bytes, quality and leakage, and what groups carry."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from sordino.reports.audit_figures import Point, draw_points

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup

_TEMPLATE = "protection.html.jinja"


def render_protection_page(record: Mapping[str, Any]) -> str:
    """Returns the page: a pure function of the record. It loads and runs nothing."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("sordino.reports").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    counts: dict[str, int] = {}
    for group in record["groups"]:
        counts[group["role"]] = counts.get(group["role"], 0) + 1
    return environment.from_string(source).render(
        record=record,
        figures=_figures(record["frontier"]),
        counts=counts,
        tries=_num_tries(record["frontier"]),
    )


def _num_tries(frontier: list[dict[str, Any]]) -> str:
    """Returns how many samples the extraction in samples may take."""
    return next((str(p["extracted"]["num_tries"]) for p in frontier if p["extracted"]), "n")


def _figures(frontier: list[dict[str, Any]]) -> list[Markup]:
    """Returns the frontier in two figures: quality against bytes, leakage against bytes."""
    quality, leakage = [], []
    for point in frontier:
        megabytes, style = point["num_bytes"] / 1e6, _style(point["name"])
        label = "" if style == "random" else point["name"]
        value = point["perplexity"]
        quality.append(Point(style, label, megabytes, value, value, value))
        leakage.append(Point(style, label, megabytes, *point["auc"]))
    words = "; ".join(
        f"{p['name']}: {p['num_bytes'] / 1e6:.1f} MB, perplexity {p['perplexity']:.4g}, AUC "
        f"{p['auc'][0]:.3f}"
        for p in frontier
    )
    return [
        draw_points(
            "quality",
            "Perplexity on public text against bytes",
            f"{words}.",
            quality,
            x_title="Megabytes of the linear layers",
            y_title="Perplexity",
        ),
        draw_points(
            "leakage",
            "Area under the ROC curve of the membership attack against bytes",
            f"{words}.",
            leakage,
            x_title="Megabytes of the linear layers",
            y_title="AUC",
        ),
    ]


def _style(name: str) -> str:
    """Returns the class of a plan's points."""
    if name.startswith("random"):
        return "random"
    return "chosen" if name == "differentiated" else "plain"
