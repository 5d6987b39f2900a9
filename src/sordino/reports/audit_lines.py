"""An audit in words: verdicts first, then what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sordino.reports.audit_words import down, up

if TYPE_CHECKING:
    from sordino.reports.audit_record import (
        AttackResult,
        Audit,
        CanaryResult,
        PiiRow,
        SubsetResult,
        UserMembership,
    )

_LABELS = {
    "contradicted": "CONTRADICTED",
    "no power": "NO POWER",
    "consistent": "CONSISTENT",
    "nothing claimed": "NOTHING CLAIMED",
}
_MOST_ATTACKS = 5
_MOST_FINDINGS = 10


def describe_audit(audit: Audit) -> list[str]:
    """Returns the audit for people, contradicted claims first."""
    verdicts = sorted(audit.verdicts, key=lambda verdict: verdict.outcome != "contradicted")
    lines = [
        f"{_LABELS[verdict.outcome]} ({verdict.game} game: {verdict.secret}). {verdict.line}"
        for verdict in verdicts
    ]
    if not verdicts:
        lines.append("NOTHING CLAIMED: this model comes without a certificate.")
    if audit.subset is not None:
        lines.append(_subset_words(audit.subset))
    if audit.canaries is not None:
        lines.append(_canary_words(audit.canaries))
    if audit.membership is not None:
        found = audit.membership
        lines.append(
            f"Membership of {found.num_members} members against {found.num_nonmembers} others, "
            "strongest first:"
        )
        lines.extend(f"  {describe_attack(attack)}" for attack in found.attacks[:_MOST_ATTACKS])
        lines.extend(
            f"  positive control: {describe_attack(attack)}" for attack in found.control[:1]
        )
        if found.users is not None:
            lines.extend(_user_lines(found.users))
    lines.extend(_pii_words(row) for row in audit.pii)
    if audit.findings:
        lines.append("What tuning taught, in nats a token more than the base:")
        lines.extend(
            f"  {finding.gain_nats:.2f}  {' '.join(finding.text.split())}"
            for finding in audit.findings[:_MOST_FINDINGS]
        )
    lines.extend(f"Note: {note}" for note in audit.notes)
    return lines


def describe_attack(attack: AttackResult) -> str:
    """Returns one attack's numbers in a line."""
    rates = ", ".join(
        f"TPR at {point.fpr_limit:.3g} FPR {point.tpr:.3f} "
        f"({down(point.tpr_lower)} to {up(point.tpr_upper)}; realised FPR {point.fpr:.3g})"
        for point in attack.points
    )
    return (
        f"{attack.name}: AUC {attack.auc:.3f} ({down(attack.auc_lower)} to "
        f"{up(attack.auc_upper)}), {rates}"
    )


def _user_lines(found: UserMembership) -> list[str]:
    """Returns the attacks on users."""
    return [
        (
            f"Membership of {found.num_members} users ({found.unit}) against "
            f"{found.num_nonmembers} others, by the mean over a user's texts, strongest first:"
        ),
        *(f"  {describe_attack(attack)}" for attack in found.attacks[:_MOST_ATTACKS]),
        *(f"  positive control: {describe_attack(attack)}" for attack in found.control[:1]),
    ]


def _subset_words(found: SubsetResult) -> str:
    """Returns the subset game in a line."""
    return (
        f"Subset game: the true candidate is number {found.rank} of {found.num_subsets} in the "
        f"attacker's order ({found.attack}); the first one gets {found.share_right:.1%} of the "
        "records right."
    )


def _canary_words(found: CanaryResult) -> str:
    """Returns the pool game in a line."""
    half = len(found.exposures) // 2
    median = found.exposures[half]
    return (
        f"Pool game: {found.num_correct} of {found.num_guesses} guesses about "
        f"{found.num_canaries} canaries are right: epsilon >= {down(found.epsilon_lower)} at "
        f"delta {found.delta:.3g} and {1 - found.significance:.0%} confidence (only if the "
        f"mechanism is Gaussian-shaped: >= {down(found.gaussian_epsilon_lower)}). Median exposure "
        f"{median:.2f} bits, 1 by chance."
    )


def _pii_words(row: PiiRow) -> str:
    """Returns one game on one kind of string in a line."""
    base = "" if row.base_found is None else f", by the base {row.base_found}"
    return f"Strings ({row.kind}, {row.game}): {row.num_found} of {row.num_secrets} found{base}."
