"""The part of a report about access rights: how well a model respects who may know what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sordino.reports.access_page import describe_tests, list_facts, make_tables
from sordino.reports.access_record import ENDPOINT
from sordino.reports.sections import Section, Table

if TYPE_CHECKING:
    from sordino.reports.access_record import AccessRecord


def make_access_section(record: AccessRecord) -> Section:
    """Returns what `access.json` holds, in words and tables.

    Args:
        record: From `read_access_record`.
    """
    section = Section("access", "Who may know what")
    number = record.questions["number"]
    section.paragraphs = [
        f"{number} questions, with the records in the prompt, asked on {record.made_on}.",
        *describe_tests(record),
        *record.notes,
    ]
    if record.subject["kind"] == ENDPOINT:
        section.paragraphs.append(
            "A server answered. Which files it runs is not known here, and was not checked."
        )
    section.facts = [(name, str(value)) for name, value in list_facts(record)]
    section.tables = [
        Table(
            f"{found.title}: share (interval; count)",
            list(found.headers),
            [[(cell,) for cell in row] for row in found.rows],
        )
        for found in make_tables(record)
    ]
    return section
