"""What `sordino access tune` gives, and how it is told: before, after, and what was forgotten."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from sordino.ledger.certificate_words import describe_certificate

if TYPE_CHECKING:
    from pathlib import Path

    from sordino.access.forgetting import Forgetting
    from sordino.access.results import Clauses, PairedTest, Rate
    from sordino.ledger.certificate import Certificate

SCOPE = (
    (
        "A certificate covers the records used in training. Records in a prompt are not training "
        "records: no training epsilon bounds the leak rates of this table."
    ),
    (
        "A tuned model alone is not access control: filter records before they reach the prompt, "
        "and check answers with the guard."
    ),
)
_CLAUSES = {
    "correct": "correct",
    "leak": "leaked, of forbidden",
    "leak_in_braces": "leaked in the braces",
    "false_refusal": "refused, of allowed",
    "wrong": "wrong or invented",
    "wrong_format": "out of format",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AccessTuneResult:
    """A tuned model and what it can do.

    Args:
        output: The run folder.
        certificate: What is guaranteed about the records used in training.
        num_train: Questions learned.
        num_test: Questions measured, before and after.
        before: Rates of the four clauses; None without a test.
        after: The same.
        change: Questions answered rightly before and after; None without a test.
        forgetting: What general questions lost; None where it was not measured.
    """

    output: Path
    certificate: Certificate
    num_train: int
    num_test: int
    before: Clauses | None
    after: Clauses | None
    change: PairedTest | None
    forgetting: Forgetting | None

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        fields = asdict(replace(self, certificate=None))  # type: ignore[arg-type]
        certificate = json.loads(self.certificate.to_bytes())
        return fields | {"output": str(self.output), "certificate": certificate}

    def lines(self) -> list[str]:
        """Returns the table before and after, what was forgotten, and the certificate."""
        lines = [f"Tuned on {self.num_train} questions."]
        if self.before is not None and self.after is not None and self.change is not None:
            change = self.change
            lines += [
                f"On {self.num_test} questions about another company, in other wordings (95%):",
                f"  {'':<22}{'before':>24}{'after':>24}",
                *_rows(self.before, self.after),
                (
                    f"  Rightly answered only before: {change.only_first}, only after: "
                    f"{change.only_second} (McNemar, exact: p = {change.p_value:.2g})."
                ),
            ]
        if self.forgetting is not None:
            lines += _forgetting_lines(self.forgetting)
        return [
            *lines,
            *SCOPE,
            "",
            "Certificate:",
            *[f"  {line}" for line in describe_certificate(self.certificate)],
            f"The run lies in {self.output}. Check it: sordino verify {self.output}",
        ]


def _rows(before: Clauses, after: Clauses) -> list[str]:
    """Returns the rows of the table."""
    return [
        f"  {label:<22}{_cell(getattr(before, name)):>24}{_cell(getattr(after, name)):>24}"
        for name, label in _CLAUSES.items()
    ]


def _cell(rate: Rate | None) -> str:
    """Returns a share with its interval, in percent."""
    if rate is None:
        return "none asked"
    return f"{rate.share:.1%} ({rate.lower:.1%}-{rate.upper:.1%})"


def _forgetting_lines(found: Forgetting) -> list[str]:
    """Returns what was forgotten, in words."""
    groups = ", ".join(
        f"{name} {before} to {after} of {total}"
        for name, (before, after, total) in found.groups.items()
    )
    lines = [
        (
            f"General questions: {found.before.share:.1%} before, {found.after.share:.1%} after, "
            f"{found.lost_points:+.1f} points lost (95% interval {found.lower:+.1f} to "
            f"{found.upper:+.1f}; McNemar, exact: p = {found.p_value:.2g})."
        ),
        f"  {groups}.",
    ]
    if not found.known:
        return [*lines, "  None of these was answered above chance before: no loss can show."]
    losses = ", ".join(
        f"{name} {points:+.1f} ({lower:+.1f} to {upper:+.1f})"
        for name, (points, lower, upper) in found.known.items()
    )
    told = f"  Points lost of what was answered above chance, so that a loss can show: {losses}."
    return [*lines, told]
