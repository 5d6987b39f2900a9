"""One audit at work: the attacks on the audited model and on its control, and the record."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from sordino.ledger.certificate_words import describe_certificate
from sordino.reports.audit_control import run_control
from sordino.reports.audit_control_plan import measure_control, plan_control
from sordino.reports.audit_games import judge_pool, judge_subset
from sordino.reports.audit_measure import measure, score_material
from sordino.reports.audit_record import Audit

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from sordino.attacks.canaries import PlannedCanaries
    from sordino.attacks.subject import Subject
    from sordino.ledger.certificate import Certificate
    from sordino.reports.audit_measure import Material, Measured, Rules
    from sordino.reports.audit_record import GameVerdict
    from sordino.reports.audit_subset import SubsetGame
    from sordino.reports.audit_text import WrittenText


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bench:
    """One audit: what is attacked, by which rules, where, and with what.

    Args:
        subject: The audited model.
        material: What is scored.
        rules: Fixed beforehand.
        output: Folder of the audit, held by this process.
        dtype: Compute type.
        device: Where to compute.
        tokens_per_batch: Tokens of a forward pass, padding included.
    """

    subject: Subject
    material: Material
    rules: Rules
    output: Path
    dtype: torch.dtype
    device: str
    tokens_per_batch: int

    def attack(self, planned: PlannedCanaries | None, game: SubsetGame | None) -> Measured:
        """Returns what the attacks find on the audited model."""
        scores = score_material(
            self.subject,
            self.material,
            self.rules,
            self.output,
            title="audit",
            tokens_per_batch=self.tokens_per_batch,
        )
        nobody = np.zeros(0, dtype=np.bool_)
        return measure(
            scores,
            self.material,
            self.rules,
            is_included=nobody if planned is None else planned.is_included,
            game=game,
        )

    def attack_control(
        self, game: SubsetGame | None, *, epochs: int
    ) -> tuple[dict[str, Any], Measured]:
        """Returns how the positive control was made, and what the same attacks find on it."""
        plan = plan_control(self.material, game, epochs=epochs, seed=self.rules.seed)
        folder = plan.folder_in(self.output, self.subject)
        copy = run_control(
            plan,
            self.subject,
            folder,
            task=self.material.task,
            seed=self.rules.seed,
            dtype=self.dtype,
            device=self.device,
            tokens_per_batch=self.tokens_per_batch,
        )
        found = measure_control(
            copy,
            plan,
            self.material,
            self.rules,
            game=game,
            folder=folder,
            tokens_per_batch=self.tokens_per_batch,
        )
        return plan.describe(), found

    def record(
        self,
        certificate: Certificate | None,
        measured: Measured,
        written: WrittenText,
        *,
        control: dict[str, Any] | None,
        num_samples: int,
        notes: tuple[str, ...],
        seconds: float,
    ) -> Audit:
        """Returns the record.

        Args:
            certificate: What is claimed; None for models made elsewhere.
            measured: What the attacks found, on the positive control too.
            written: What the model writes.
            control: How the control was made; None without one.
            num_samples: Texts written to look for sensitive strings.
            notes: What must be read with the numbers.
            seconds: How long it took.
        """
        subject, rules = self.subject, self.rules
        return Audit(
            sordino_version=version("sordino"),
            made_on=datetime.now(UTC).date().isoformat(),
            subject={
                "name": subject.name,
                "kind": subject.kind,
                "sha256": subject.fingerprint,
                "base_sha256": subject.base_fingerprint,
            },
            certificate_in_words=tuple(describe_certificate(certificate)) if certificate else (),
            verdicts=_judge(certificate, measured, rules),
            membership=measured.membership,
            canaries=measured.canaries,
            subset=measured.subset,
            pii=written.pii,
            findings=written.findings,
            control=control,
            cost={"seconds": round(seconds, 1)},
            settings={
                "attacks": list(rules.names),
                "deciding attack": rules.deciding,
                **({"reference models": rules.references.names} if rules.references else {}),
                "significance": rules.significance,
                "texts written": num_samples,
                "seed": rules.seed,
                "compute dtype": str(self.dtype).removeprefix("torch."),
            },
            notes=notes,
        )


def _judge(
    certificate: Certificate | None, measured: Measured, rules: Rules
) -> tuple[GameVerdict, ...]:
    """Returns the verdict on each line of the certificate, if there is one."""
    if certificate is None:
        return ()
    return (
        judge_subset(certificate, measured.subset, rules.significance),
        judge_pool(certificate, measured.canaries, rules.significance),
    )
