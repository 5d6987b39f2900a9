"""What must be read with the numbers of an audit."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sordino.attacks.subject import Subject
    from sordino.reports.audit_measure import Measured


def list_notes(
    subject: Subject, measured: Measured, *, has_control: bool, num_references: int
) -> tuple[str, ...]:
    """Returns what must be read with the numbers."""
    notes = [
        (
            "Everything measured here is a lower bound on what this model gives away, found by "
            "these attacks. None of it is a guarantee."
        ),
    ]
    if measured.membership is not None:
        notes.append(
            "Membership attacks compare two files. If the files differ in anything but membership "
            "(time, source, style), the attacks may see that difference instead; intervals treat "
            "records as independent and describe this model, not the method that made it."
        )
        if measured.membership.num_removed:
            notes.append(
                f"{measured.membership.num_removed} records were left out: they come twice, or on "
                "both sides."
            )
    if num_references:
        notes.append(
            f"lira and rmia compare with {num_references} reference model(s). Were these tuned on "
            "any of the records or canaries, their numbers are wrong."
        )
    if measured.canaries is not None:
        notes.append(
            "The bound on epsilon rests on canaries, which entered the pool by secret fair coins, "
            "and on a number of guesses that was fixed beforehand."
        )
    notes += _subset_notes(measured)
    if not has_control:
        notes.append("No positive control was run, so no claim can be found consistent.")
    elif measured.membership is not None and not _is_caught(measured):
        notes.append(
            "On the positive control no membership attack was better than a guess: attacks on "
            "records had no power."
        )
    if subject.is_voided:
        notes.append(
            "Quantization voided what the run claimed: no claim is left that could be contradicted."
        )
    if not subject.has_base:
        notes.append("Without a base model, scores that compare with it were left out.")
    return tuple(notes)


def _subset_notes(measured: Measured) -> list[str]:
    """Returns what must be read with the subset game."""
    if measured.subset is None:
        return []
    notes = [
        (
            "Subset game: that --members is this run's pool, in its order, is not checked. For "
            "another file the game says nothing."
        )
    ]
    if measured.subset.is_drawn_after:
        notes.append(
            "Subset game: this run never read a secret subset, so one was drawn after it. That "
            "protects the subset perfectly and says nothing about membership in the pool; a "
            "contradiction of this line can only be chance."
        )
    return notes


def _is_caught(measured: Measured) -> bool:
    """Returns whether some membership attack beats a guess on the positive control."""
    attacks = () if measured.membership is None else measured.membership.control
    return any(attack.auc_lower > 0.5 for attack in attacks)
