"""report.html: one file, drawn from the record of an audit, a certificate and a holder's report."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.reports.access_section import make_access_section
from sordino.reports.audit_figures import draw_bounds
from sordino.reports.audit_sections import make_sections
from sordino.reports.audit_words import (
    gravest,
    headline,
    make_cards,
    meanings,
    name_words,
    setting_words,
)
from sordino.reports.quantization_section import is_publishable, make_quantization_section

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sordino.reports.access_record import AccessRecord
    from sordino.reports.audit_record import Audit
    from sordino.reports.holder_report import HolderReport

_TEMPLATE = "audit.html.jinja"
_LEFT_OUT = (
    "Left out, because it was computed on records of the pool and handing it out would be a "
    "release that no certificate covers: membership attacks on records, the subset game, "
    "leave-one-out losses, sensitive strings, what tuning taught the model, what quantization with "
    "private texts lost, who is told what, cost, notes, and verdicts that rest on these."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PageSource:
    """Everything that a page is drawn from.

    Args:
        name: The audited model, in words.
        audit: What was measured; None: nothing.
        certificate_in_words: Empty for models made elsewhere.
        holder_report: Leave-one-out losses; for the data holder only.
        claims_once_quantized: What is left of a run's certificate after quantization.
        quantization: The record of a quantized model.
        access: How a model answers access questions; for the data holder only.
        is_public: Whether the page may leave the building.

    Raises:
        InvalidParameterError: If a public page would hold what is for the data holder only.
    """

    name: str
    audit: Audit | None
    certificate_in_words: tuple[str, ...]
    holder_report: HolderReport | None = None
    claims_once_quantized: tuple[str, ...] = ()
    quantization: Mapping[str, Any] | None = None
    access: AccessRecord | None = None
    is_public: bool = False

    def __post_init__(self) -> None:
        audit = self.audit
        private: list[object] = [self.holder_report, self.access]
        if audit is not None:
            private += [audit.membership, audit.subset, audit.pii, audit.findings]
            private += [audit.cost, audit.notes]
        private.append(not is_publishable(self.quantization))
        if self.is_public and any(private):
            raise InvalidParameterError(
                "a public page must not hold what was computed on records of the pool; draw it "
                "from publishable_part(audit) and without a holder's report."
            )


def render_audit_page(source: PageSource) -> str:
    """Returns the page: a pure function of what it is drawn from. It loads and runs nothing.

    Raises:
        InvalidDataError: If the record holds NaN, infinity, or an unknown outcome.
    """
    from jinja2 import Environment, StrictUndefined

    audit = source.audit
    if audit is not None:
        try:
            audit.to_bytes()
        except ValueError as error:
            raise InvalidDataError(f"the record of an audit is not finite: {error}.") from None
    sections = make_sections(audit, source.holder_report)
    if source.quantization is not None:
        sections.append(make_quantization_section(source.quantization))
    if source.access is not None:
        sections.append(make_access_section(source.access))
    cards = make_cards(audit, source.certificate_in_words)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = files("sordino.reports").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(template).render(
        source=source,
        audit=audit,
        cards=cards,
        drawings=[
            draw_bounds(f"bounds-{i}", "Claimed and measured", card.bounds, card.end)
            if card.bounds
            else ""
            for i, card in enumerate(cards, start=1)
        ],
        status=gravest(cards),
        headline=headline(cards),
        meanings=meanings(cards),
        is_private=audit is not None or any(section.is_for_holder for section in sections),
        sections=sections,
        missing=_missing(source),
        left_out=_LEFT_OUT,
        version=version("sordino"),
        setting_words=setting_words,
        name_words=name_words,
    )


def _missing(source: PageSource) -> list[str]:
    """Returns what the page has nothing about, and why not."""
    audit = source.audit
    if audit is None or source.is_public:
        return []
    parts = {
        "membership attacks on records": audit.membership,
        "canaries": audit.canaries,
        "the subset game": audit.subset,
        "a positive control": audit.control,
        "leave-one-out losses": source.holder_report,
        "sensitive strings": audit.pii,
        "what tuning taught the model": audit.findings,
    }
    return [name for name, part in parts.items() if not part]
