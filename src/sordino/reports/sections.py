"""What every part of a report is made of: paragraphs, figures, tables, facts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["Figure", "Section", "Table"]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; a cell is its words and smaller remarks."""

    caption: str
    headers: list[str]
    rows: list[list[tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing, what its lines are, and the same in words."""

    title: str
    drawing: Markup
    legend: list[tuple[str, str]]
    words: list[str]


@dataclass(slots=True)
class Section:
    """One part of the page."""

    name: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    quotes: list[tuple[str, str]] = field(default_factory=list)
    is_for_holder: bool = True
