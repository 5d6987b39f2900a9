"""The parts of a report below the verdicts, as data that the page's template knows to show."""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING

from sordino.reports.attack_parts import (
    STYLES,
    attack_table,
    curve_of,
    roc_figures,
    strongest_attacks,
)
from sordino.reports.audit_figures import draw_histogram
from sordino.reports.audit_words import (
    confidence,
    lower,
    name_words,
    percent,
)
from sordino.reports.sections import Figure, Section, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sordino.reports.audit_record import (
        Audit,
        CanaryResult,
        Finding,
        Membership,
        PiiRow,
        SubsetResult,
    )
    from sordino.reports.holder_report import HolderReport

_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_CONTROL = "on the positive control"


def make_sections(audit: Audit | None, holder_report: HolderReport | None) -> list[Section]:
    """Returns what was measured, in the order of the page.

    Raises:
        InvalidDataError: If a curve's parts do not belong together.
    """
    sections = []
    if audit is not None and audit.membership is not None:
        sections.append(_membership(audit.membership))
    if audit is not None and audit.canaries is not None:
        sections.append(_canaries(audit.canaries))
    if audit is not None and audit.subset is not None:
        sections.append(_subset(audit.subset))
    if holder_report is not None:
        sections.append(_leave_one_out(holder_report))
    if audit is not None and audit.pii:
        sections.append(_pii(audit.pii))
    if audit is not None and audit.findings:
        sections.append(_findings(audit.findings))
    return sections


def _findings(findings: Sequence[Finding]) -> Section:
    """Returns the texts that the tuned model prefers over its base, the most preferred first."""
    section = Section("findings", "What tuning taught the model")
    section.paragraphs = [
        (
            "Texts that the tuned model prefers over its base, found by sampling from what they "
            "disagree on. Read them: they may be, or resemble, private records. The gain is "
            "log p(tuned) - log p(base), in nats a token."
        )
    ]
    found = sorted(findings, key=lambda finding: -finding.gain_nats)
    section.quotes = [(_visible(f.text), f"{f.gain_nats:.3g} nats a token") for f in found]
    return section


def _membership(found: Membership) -> Section:
    """Returns the attacks on records."""
    section = Section("membership", "Membership attacks on records")
    section.paragraphs = [
        (
            f"Each attack scores {found.num_members:,} members and {found.num_nonmembers:,} "
            f"non-members; {found.num_removed:,} records were left out because both sides hold "
            "them, or one side twice. A record is called a member where its score reaches a "
            "threshold."
        ),
        (
            f"Brackets hold intervals at {confidence(found.significance)} confidence, for each "
            f"number alone. Whoever picks the best of {len(found.attacks)} attacks after looking "
            "gets a number that is a little too good for the attacker."
        ),
    ]
    shown = strongest_attacks(found.attacks)
    curves = [curve_of(style, a.name, a) for style, a in zip(STYLES, shown, strict=False)]
    caught = max(found.control, key=lambda attack: attack.auc, default=None)
    if caught is not None:
        curves.append(curve_of("control", f"{caught.name} {_CONTROL}", caught))
    section.figures = roc_figures("records", "ROC curves of the best attacks on records", curves)
    section.tables = [attack_table("Attacks on records", found.attacks, found.control)]
    users = found.users
    if users is not None:
        section.paragraphs.append(
            f"The same attacks on users ({users.unit}): the score is the mean over a user's texts, "
            "and the interval of its AUC holds what resampling users gives. "
            f"{users.num_members:,} users are members and {users.num_nonmembers:,} are not; "
            f"{users.num_removed:,} with texts on both sides count as members."
        )
        section.tables.append(attack_table("Attacks on users", users.attacks, users.control))
    return section


def _canaries(found: CanaryResult) -> Section:
    """Returns what was measured on canaries."""
    section = Section("canaries", "Canaries", is_for_holder=False)
    section.paragraphs = [
        (
            f"{found.num_canaries:,} invented texts ({name_words(found.style)}) were planned, and "
            f"each entered the pool by its own fair coin: {found.num_included:,} did. They are "
            "about nobody, so these numbers may be shown to anyone."
        )
    ]
    level = confidence(found.significance)
    section.facts = [
        (
            "Guesses",
            (
                f"{found.num_correct:,} of {found.num_guesses:,} right; how many to make was fixed "
                "before looking"
            ),
        ),
        (
            "One-run lower bound",
            (
                f"epsilon at least {lower(found.epsilon_lower)} nats at delta {found.delta:.3g}, "
                f"{level} confidence; for a DP claim of any shape"
            ),
        ),
        (
            "Lower bound for Gaussian-shaped claims",
            (
                f"epsilon at least {lower(found.gaussian_epsilon_lower)} nats at delta "
                f"{found.delta:.3g}, {level} confidence; it contradicts claims of that shape only"
            ),
        ),
        (
            "One-run lower bound on the positive control",
            "no control ran"
            if found.control_epsilon_lower is None
            else f"epsilon at least {lower(found.control_epsilon_lower)} nats",
        ),
    ]
    if found.exposures:
        section.figures = [_exposure(found)]
    curve = curve_of("first", found.attack.name, found.attack)
    section.figures += roc_figures("canary", "ROC curve of the attack on canaries", [curve])
    section.tables = [attack_table("Attack on canaries", [found.attack])]
    return section


def _exposure(found: CanaryResult) -> Figure:
    """Returns the histogram of exposures with what chance gives."""
    size, most = len(found.exposures), max(found.exposures)
    edges = [float(bit) for bit in range(max(1, math.floor(most) + 1) + 1)]
    counts = _count(found.exposures, edges)
    expected = [size * (2.0**-a - 2.0**-b) for a, b in pairwise(edges)]
    words = [
        (
            f"Exposure is how far above the canaries left out an included one scores, in bits. "
            f"Chance gives e bits or more with probability at most 2^-e: of {size:,}, on average "
            f"at most {size:,} / 2^e."
        )
    ]
    for bits in dict.fromkeys((1, max(1, math.floor(most / 2)), max(1, math.floor(most)))):
        reached = sum(exposure >= bits for exposure in found.exposures)
        words.append(
            f"{bits} {'bit' if bits == 1 else 'bits'} or more: {reached:,} canaries, by chance "
            f"{size * 2.0**-bits:.3g}."
        )
    left_out = found.num_canaries - found.num_included
    words.append(
        f"Largest: {most:.3g} bits. Against {left_out:,} canaries left out, ranks show at most "
        f"{math.log2(left_out + 1):.3g} bits."
    )
    if found.extrapolated_exposures:
        beyond = sorted(found.extrapolated_exposures)
        words.append(
            f"Beyond the ranks, an estimate that rests on a fitted law: median "
            f"{beyond[len(beyond) // 2]:.3g} bits, largest {beyond[-1]:.3g} bits."
        )
    title = "Exposure of the included canaries"
    drawing = draw_histogram(
        "exposure",
        title,
        " ".join(words),
        edges=edges,
        counts=counts,
        expected=expected,
        x_title="Exposure, bits",
        y_title="Canaries",
    )
    legend = [("bar", "canaries in the pool"), ("expected", "what chance gives on average")]
    return Figure(title, drawing, legend, words)


def _subset(found: SubsetResult) -> Section:
    """Returns the subset game."""
    section = Section("subset", "Subset game")
    section.paragraphs = [
        (
            f"The attacker knows the pool and all {found.num_subsets:,} candidate subsets, and "
            f"orders the candidates by {found.attack}."
        )
    ]
    if found.is_drawn_after:
        section.paragraphs.append(
            "The subset was drawn after the run, which never read it: a right guess is luck."
        )
    control = found.control_posterior_lower
    section.facts = [
        (
            "Place of the true subset",
            f"{found.rank:,} of {found.num_subsets:,}; ties count against the attacker",
        ),
        ("Records that the first candidate gets right", percent(found.share_right)),
        (
            "What the place proves",
            (
                f"a guess is right with probability at least {lower(found.posterior_lower)}, "
                f"{confidence(found.significance)} confidence"
            ),
        ),
        (
            "The same on the positive control",
            "no control ran" if control is None else f"at least {lower(control)}",
        ),
    ]
    return section


def _leave_one_out(found: HolderReport) -> Section:
    """Returns the histogram of leave-one-out losses."""
    section = Section("leave-one-out", "Leave-one-out loss")
    section.paragraphs = [
        (
            "How much the log-likelihood of what was released changes without one record, in nats, "
            "for this run. It is a measurement and not a guarantee, and it is computed on private "
            "data: keep it with the data."
        )
    ]
    words = [
        f"{percent(found.share_at_zero)} of {found.num_records:,} records never decided a release."
    ]
    words.append(
        f"{found.num_infinite:,} records ({percent(found.share_infinite)}) have an infinite loss: "
        "without them, what was released would have been impossible. They are not in the figure."
        if found.num_infinite
        else "No record has an infinite loss."
    )
    words += [
        f"Absolute loss, {name}: {'infinite' if value is None else f'{value:.3g} nats'}."
        for name, value in found.quantiles.items()
    ]
    if sum(found.counts):
        title = "Leave-one-out loss of the records"
        drawing = draw_histogram(
            "leave-one-out-figure",
            title,
            " ".join(words),
            edges=found.edges,
            counts=found.counts,
            x_title="Loss, nats",
            y_title="Records",
            is_logarithmic=True,  # single records matter
        )
        section.figures = [Figure(title, drawing, [("bar", "records")], words)]
    else:
        section.paragraphs += words
    return section


def _pii(rows: Sequence[PiiRow]) -> Section:
    """Returns what the models give away about sensitive strings."""
    section = Section("pii", "Sensitive strings")
    section.paragraphs = [
        (
            "Unique strings, counted once however often they were produced. What the base model "
            "gets right as well did not come from tuning: it was guessed, or is public."
        )
    ]
    times = sorted({key for row in rows for key in row.by_repetition}, key=_as_number)
    headers = ["Type", "Game", "Tuned model", "Base model", "Precision"]
    headers += [f"Seen {key} {'time' if key == '1' else 'times'}" for key in times]
    cells = []
    for row in rows:
        base = "not run" if row.base_found is None else f"{row.base_found:,}"
        precise = f"{percent(row.num_found / row.num_produced)}" if row.num_produced else "none"
        line = [
            (name_words(row.kind),),
            (row.game,),
            (f"{row.num_found:,} of {row.num_secrets:,}", _share(row.num_found, row.num_secrets)),
            (base, "" if row.base_found is None else _share(row.base_found, row.num_secrets)),
            (precise, f"{row.num_produced:,} produced"),
        ]
        for key in times:
            right, all_of_them = row.by_repetition.get(key, [0, 0])
            words = f"{right:,} of {all_of_them:,}" if all_of_them else "none"
            line.append((words, _share(right, all_of_them)))
        cells.append(line)
    caption = "Strings found, by type and game, and by how often the pool holds them"
    section.tables = [Table(caption, headers, cells)]
    return section


def _count(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """Returns how many values are in each bin; a bin holds its lower edge."""
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(max(bisect_right(edges, value) - 1, 0), len(counts) - 1)] += 1
    return counts


def _share(part: int, whole: int) -> str:
    """Returns a share in percent; nothing of nothing."""
    return percent(part / whole) if whole else ""


def _as_number(key: str) -> tuple[float, str]:
    """Returns what repetitions are sorted by: their number, then their name."""
    return (float(key), key) if key.isdigit() else (math.inf, key)


def _visible(text: str) -> str:
    """Returns a text without control characters, which could hide or reorder what it says."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_hiding(c) else c for c in text)


def _is_hiding(character: str) -> bool:
    """Returns whether a character is a control character, or turns the writing direction."""
    is_control = unicodedata.category(character) == "Cc" and character not in "\n\t"
    return is_control or unicodedata.bidirectional(character) in _TURNING
