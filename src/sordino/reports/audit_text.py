"""What the audited model writes: sensitive strings, and what tuning taught it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sordino.attacks.contrast import explore
from sordino.attacks.pii import PiiSettings, count_pii_texts, play_pii_games
from sordino.gradients.generation import Decoding
from sordino.ledger.durable import PRIVATE_FILE_MODE, replace_file
from sordino.ledger.ledger import canonical_json
from sordino.reports.audit_record import Finding, PiiRow
from sordino.training.progress import counting, progress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sordino.attacks.subject import Subject
    from sordino.data.secret_lists import Secret

_LONGEST_TEXT, _LONGEST_FINDING = 64, 48  # tokens; less where the context is short


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenText:
    """What was found in what the model wrote."""

    pii: tuple[PiiRow, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()


def attack_by_writing(
    subject: Subject,
    *,
    secrets: Sequence[Secret] | None,
    leaked: Path,
    num_samples: int,
    num_findings: int,
    tokens_per_batch: int,
    seed: int,
) -> WrittenText:
    """Returns what the games on sensitive strings and the exploration find.

    Args:
        subject: The model, with its base.
        secrets: Sensitive strings; None plays no game.
        leaked: File for the lines of the list that were found, for the data holder.
        num_samples: Texts written without a prefix.
        num_findings: Texts of the exploration; 0 makes none.
        tokens_per_batch: Bounds the memory.
        seed: Public.
    """
    rows: tuple[PiiRow, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: list[str] = []
    if secrets is not None:
        settings = PiiSettings(
            num_samples=num_samples,
            decoding=Decoding(max_new_tokens=min(_LONGEST_TEXT, subject.context_length // 2)),
            tokens_per_batch=tokens_per_batch,
            seed=seed,
        )
        total = count_pii_texts(secrets, settings, has_base=subject.has_base)
        with progress("audit: sensitive strings", total) as show:
            result = play_pii_games(subject, secrets, settings, advance=counting(show))
        rows = tuple(PiiRow(**asdict(finding)) for finding in result.findings)
        notes += result.notes
        lines = {game: list(found) for game, found in result.leaked_lines.items()}
        replace_file(leaked, canonical_json(lines) + b"\n", mode=PRIVATE_FILE_MODE)
        if any(lines.values()):
            notes.append(f"Which lines of the list were found stands in {leaked.name}.")
    if num_findings:
        with progress("audit: exploration", num_findings) as show:
            found = explore(
                subject,
                num_texts=num_findings,
                max_new_tokens=min(_LONGEST_FINDING, subject.context_length // 2),
                seed=seed,
                advance=show,
            )
        findings = tuple(Finding(text=f.text, gain_nats=f.gain_nats) for f in found)
        notes.append(
            "What tuning taught: texts that the tuned model writes more readily than its base. "
            "That a text stands there does not prove that it was in the data."
        )
    return WrittenText(pii=rows, findings=findings, notes=tuple(notes))
