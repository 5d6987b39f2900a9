"""A page as a test reads it."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

LOADING = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text outside styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text, self.style = "", ""
        self._is_style = False
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._is_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._is_style = False

    def handle_data(self, data: str) -> None:
        if self._is_style:
            self.style += data
        else:
            self.text += data + " "

    def named(self, tag: str) -> list[dict[str, Any]]:
        """Returns the attributes of all tags of one name."""
        return [attributes for name, attributes in self.tags if name == tag]
