"""The page: one file that loads nothing, with a table and a text for those who see no figure."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from helpers_comparisons import make_comparison, make_row
from sordino.core.errors import InvalidDataError
from sordino.reports.comparison import METHODS, Comparison
from sordino.reports.page import render_page

HOSTILE = """"'></script><script>alert(1)</script><img src=x onerror=alert(1)>%{x}{{ 7 * 7 }}"""
LOADING = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}


class Reader(HTMLParser):
    """Collects tags, attributes, and the text outside and inside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text, self.code = "", {"script": "", "style": ""}
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in self.code else self._inside

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.code[self._inside] += data
        else:
            self.text += data

    def named(self, tag: str) -> list[dict[str, Any]]:
        """Returns the attributes of all tags of one name."""
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page() -> Reader:
    return Reader(render_page(make_comparison()))


def test_it_loads_nothing(page: Reader) -> None:
    """No tag has an address, styles name none, and the policy forbids what a script might try."""
    assert [attributes for _, attributes in page.tags if LOADING & set(attributes)] == []
    tags = {name for name, _ in page.tags}
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & tags
    assert not re.search(r"url\(|@import", page.code["style"])
    policy = next(meta["content"] for meta in page.named("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_the_table_needs_no_script(page: Reader) -> None:
    """All headers and cells are text of the page."""
    comparison, text = make_comparison(), " ".join(page.text.split())
    for words in [*comparison.headers, *comparison.notes]:
        assert words in text
    for row in comparison.rows:
        for words in comparison.cells(row):
            assert words in text
    assert len(page.named("tr")) == 1 + len(METHODS)
    assert [cell["scope"] for cell in page.named("th")] == ["col"] * 5 + ["row"] * len(METHODS)


def test_a_phone_shows_the_headers_beside_each_cell(page: Reader) -> None:
    """Every cell carries its header, so that none stands without average or worst case."""
    headers = make_comparison().headers[1:]
    labels = [cell["data-label"] for cell in page.named("td")]
    assert labels == headers * len(METHODS)
    assert [meta["content"] for meta in page.named("meta") if meta.get("name") == "viewport"]


def test_the_figure_has_a_text(page: Reader) -> None:
    """Whoever sees no figure reads every point, and a screen reader is led there."""
    drawing = next(a for a in page.named("div") if a.get("class") == "drawing")
    assert drawing["role"] == "img"
    assert drawing["aria-labelledby"] in [a.get("id") for a in page.named("figcaption")]
    assert "1, non-private: accuracy 90.0% at a cost of 24." in page.text
    assert "6, pac-first-order-zero: accuracy 85.0% at a cost of 144." in page.text
    assert "Before tuning: 50.0%" in page.text


def test_the_figure_names_what_is_protected(page: Reader) -> None:
    """Touching a point tells both columns."""
    script = page.code["script"].rsplit("Plotly.newPlot", 1)[1]
    assert script.count("Subset: ") == script.count("Pool: ") == len(METHODS)
    assert '"type":"log"' in script
    words = " ".join(script.replace("\\u003cbr\\u003e", " ").split())
    assert "average over the secret" in words
    assert "worst case" in words


def test_points_at_one_place_stay_visible() -> None:
    """Runs with equal score and cost share a label; each keeps a marker of its own size."""
    rows = [make_row(m, score_after=0.7, forward_equivalents=12.0) for m in METHODS]
    script = render_page(make_comparison(rows=tuple(rows))).rsplit("Plotly.newPlot", 1)[1]
    assert '"text":["1, 2, 3, 4, 5, 6"]' in script
    sizes = [
        json.loads(marker)["size"]
        for marker in re.findall(r'"marker":(\{[^{]*\{[^}]*\}[^}]*\})', script)
    ]
    assert sizes == [24, 20, 16, 12, 8, 4]


@pytest.mark.parametrize("field", ["base_model", "base_model_sha256", "sordino_version"])
def test_what_comes_from_the_record_is_escaped(field: str) -> None:
    """A name that looks like a tag or a template stays a name."""
    _require_harmless(replace(make_comparison(), **{field: HOSTILE}))


@pytest.mark.parametrize("place", ["template", "seed"])
def test_settings_are_escaped(place: str) -> None:
    """So do settings."""
    _require_harmless(make_comparison(settings={place: HOSTILE}))


def test_names_of_runs_are_escaped() -> None:
    """So do folders."""
    _require_harmless(make_comparison(rows=(make_row("non-private", run=HOSTILE),)))


def _require_harmless(comparison: Comparison) -> None:
    """Fails if the page has a tag that it has not without the hostile words."""
    usual, found = Reader(render_page(make_comparison())), Reader(render_page(comparison))
    assert found.named("img") == []
    assert len(found.named("script")) == len(usual.named("script"))
    assert "alert" not in found.code["script"].rsplit("Plotly.newPlot", 1)[1]
    assert HOSTILE in found.text


def test_equal_records_give_equal_pages() -> None:
    """Nothing else goes in: no time, no machine."""
    first, second = render_page(make_comparison()), render_page(make_comparison())
    assert first == second


def test_a_loss_is_drawn_as_it_is() -> None:
    """Only accuracies are percent."""
    rows = (make_row("non-private", score_before=3.2, score_after=2.5),)
    text = Reader(render_page(make_comparison(score="loss", rows=rows))).text
    assert "1, non-private: loss 2.500 at a cost of 24." in text
    assert "Before tuning: 3.200" in text


def test_a_page_needs_a_run() -> None:
    """An empty comparison has nothing to show."""
    with pytest.raises(InvalidDataError, match="at least one finished run"):
        render_page(make_comparison(rows=()))
