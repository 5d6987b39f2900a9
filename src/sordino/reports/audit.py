"""`sordino audit`: attack a model, and hold what the attacks prove against what was claimed."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typing_extensions import Doc

from sordino.attacks.extra_scores import EXTRA_SCORES
from sordino.attacks.reference_models import REFERENCE_SCORES, ReferenceModels
from sordino.attacks.scores import SCORES
from sordino.attacks.subject import (
    find_canaries,
    open_subject,
    require_made_from,
    require_own_canaries,
    require_whole_folder,
)
from sordino.core.checks import require_in_range, require_integer
from sordino.core.errors import InvalidParameterError
from sordino.data import RecordFile, default_verbalizers, labels_of, parse_verbalizers
from sordino.data.secret_lists import read_secrets
from sordino.data.tasks import DEFAULT_TEMPLATE
from sordino.ledger.certificate import compute_certificate
from sordino.ledger.durable import PRIVATE_FILE_MODE, PRIVATE_FOLDER_MODE, locked, replace_file
from sordino.models import choose_compute_dtype
from sordino.reports.audit_bench import Bench
from sordino.reports.audit_measure import Material, choose_rules, require_known
from sordino.reports.audit_notes import list_notes
from sordino.reports.audit_record import find_contradicting
from sordino.reports.audit_subset import find_subset_game
from sordino.reports.audit_text import attack_by_writing
from sordino.reports.report import AuditFolder
from sordino.training import options  # noqa: TC001 - read when the command line is made
from sordino.training.run_folder import RunFolder
from sordino.training.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sordino.attacks.subject import Subject
    from sordino.data import Records
    from sordino.ledger.certificate import Certificate
    from sordino.reports.audit_record import Audit

DEFAULT_DELTA = 1e-5
_FEWEST_GUESSES = 100


@dataclass(frozen=True, slots=True)
class AuditResult:
    """A finished audit and where it lies."""

    output: Path
    audit: Audit

    @property
    def record(self) -> Path:
        """The numbers, for machines and for `sordino report`."""
        return self.output / "audit.json"


def audit(
    run: Annotated[
        str, Doc("Run folder, PEFT adapter, model folder, GGUF file, hub id, or 'embedded'.")
    ],
    *,
    members: Annotated[
        Path | None, Doc("Records it was tuned on: the training file, or a sample of it.")
    ] = None,
    nonmembers: Annotated[
        Path | None, Doc("Records of the same kind that it was not tuned on.")
    ] = None,
    model: Annotated[
        str | None, Doc("Model that it was tuned from; default: what an adapter names.")
    ] = None,
    canaries: Annotated[bool, Doc("Attack the canaries that the run planned, if any.")] = True,
    quantized_from: Annotated[
        Path | None,
        Doc("Of a quantized run: the run folder it was made from, for its canaries and subset."),
    ] = None,
    attacks: Annotated[
        list[str] | None,
        Doc(
            f"One of {', '.join(SCORES)} (default: all, in one pass), or, with passes of their "
            f"own, {', '.join(EXTRA_SCORES)}, and with --reference-models "
            f"{', '.join(REFERENCE_SCORES)}; may be repeated. The first one named decides."
        ),
    ] = None,
    reference_models: Annotated[
        list[str] | None,
        Doc(
            "Model that was tuned on neither file and no canary, from the same base: adds the "
            f"attacks {' (two or more models) and '.join(REFERENCE_SCORES)}; may be repeated."
        ),
    ] = None,
    unit: Annotated[
        str | None,
        Doc("Column that names whose record it is: attacks on users too, by all of their texts."),
    ] = None,
    secrets: Annotated[
        Path | None,
        Doc("Sensitive strings to look for in what the model writes: JSONL, CSV, TSV or TXT."),
    ] = None,
    num_samples: Annotated[int, Doc("With --secrets: texts written without a prefix.")] = 256,
    num_findings: Annotated[
        int, Doc("Texts that show what tuning taught, for the data holder to read.")
    ] = 0,
    num_guesses: Annotated[
        int | None, Doc("Canaries guessed; default: a tenth, at least 100. Fix it beforehand.")
    ] = None,
    delta: Annotated[
        float | None, Doc(f"Of the bound on epsilon; default: the claim's, or {DEFAULT_DELTA:g}.")
    ] = None,
    significance: Annotated[float, Doc("One minus the confidence of every statement.")] = 0.05,
    control: Annotated[
        bool, Doc("Tune a positive control, which must be caught; it takes the most time.")
    ] = True,
    control_epochs: Annotated[int, Doc("How often the control sees each record.")] = 20,
    template: Annotated[
        str, Doc("Prompt of a classification; of a Sordino run, the ledger's is taken.")
    ] = DEFAULT_TEMPLATE,
    verbalizer: options.Verbalizer = None,
    output: Annotated[Path | None, Doc("Folder of the audit; default: RUN.audit.")] = None,
    seed: Annotated[int, Doc("Public seed of the control and of what the model writes.")] = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    tokens_per_batch: options.TokensPerBatch = 2048,
) -> AuditResult:
    """Attacks a tuned model, and holds what the attacks prove against what was claimed.

    Two games, one verdict each: which candidate subset was used (by an attacker who knows the
    pool), and whether a record is in the pool at all (canaries, which enter by a secret coin). The
    positive control shows whether the attacks would have seen a leak. Interrupted, it goes on where
    it stopped. The folder is for the data holder: its numbers are computed on the records.

    Returns:
        The folder and the record; exit code 2 if a claim is contradicted.

    Raises:
        InvalidParameterError: If a setting is out of range, or there is nothing to attack.
        InvalidDataError: If records cannot be used.
        ModelUnavailableError: If a model cannot be read.

    Example:
        sordino audit run --model embedded --members notes.jsonl --nonmembers others.jsonl
    """
    began = time.monotonic()
    require_in_range("significance", significance, 1e-9, 0.5)
    require_integer("control_epochs", control_epochs, 1)
    require_integer("num_samples", num_samples, 1)
    require_integer("num_findings", num_findings, 0)
    require_known(attacks)
    folder = RunFolder(quantized_from or Path(run))
    require_whole_folder(Path(run))
    planned = find_canaries(folder.canaries, folder.ledger) if canaries else None
    sides = _open_sides(members, nonmembers, unit)
    strings = None if secrets is None else read_secrets(secrets)
    if members is None and planned is None and strings is None and not num_findings:
        raise InvalidParameterError(
            "there is nothing to attack: give --members and --nonmembers, --secrets or "
            "--num-findings, or audit a run that was tuned with --canaries (of a quantized run: "
            "name that run with --quantized-from)."
        )
    place = Workers.start(device).device
    compute_dtype = choose_compute_dtype(dtype, place)
    subject = open_subject(run, base=model, dtype=compute_dtype, device=place)
    if quantized_from is not None:
        require_made_from(subject, folder.ledger)
    if planned is not None:
        require_own_canaries(subject, planned, folder.canaries)
    certificate = None
    if subject.ledger is not None and not subject.is_voided:
        certificate = compute_certificate(subject.ledger)
    material = Material(
        members=sides[0],
        nonmembers=sides[1],
        canaries=() if planned is None else planned.records,
        style="" if planned is None else planned.style,
        task=_find_task(subject, sides[0], template, verbalizer),
        unit=unit,
    )
    rules = choose_rules(
        subject,
        attacks,
        num_guesses=_num_guesses(num_guesses, len(material.canaries)),
        delta=_delta(delta, certificate),
        significance=significance,
        seed=seed,
        references=ReferenceModels(
            sources=tuple(reference_models or ()), dtype=compute_dtype, device=place
        ),
        has_population=bool(sides[1]),
    )
    output = Path(output) if output is not None else AuditFolder(Path(run)).path
    with _held(output):
        bench = Bench(
            subject=subject,
            material=material,
            rules=rules,
            output=output,
            dtype=compute_dtype,
            device=place,
            tokens_per_batch=tokens_per_batch,
        )
        game = find_subset_game(
            subject.ledger,
            len(material.members) + len(material.canaries),
            kept=folder.subset,
            folder=output,
        )
        measured = bench.attack(planned, game)
        written = attack_by_writing(
            subject,
            secrets=strings,
            leaked=output / "leaked_lines.PRIVATE.json",
            num_samples=num_samples,
            num_findings=num_findings,
            tokens_per_batch=tokens_per_batch,
            seed=seed,
        )
        how = None
        if control and (material.members or material.canaries):
            how, on_control = bench.attack_control(game, epochs=control_epochs)
            measured = measured.with_control(on_control)
        record = bench.record(
            certificate,
            measured,
            written,
            control=how,
            num_samples=num_samples if strings is not None else 0,
            notes=(
                *_keep_earlier(output, subject),
                *list_notes(
                    subject,
                    measured,
                    has_control=how is not None,
                    num_references=len(rules.references.sources) if rules.references else 0,
                ),
                *written.notes,
            ),
            seconds=time.monotonic() - began,
        )
        replace_file(output / "audit.json", record.to_bytes(), mode=PRIVATE_FILE_MODE)
    return AuditResult(output, record)


@contextmanager
def _held(output: Path) -> Iterator[None]:
    """Makes the audit's folder and holds it: two audits at once would mix up their files."""
    output.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
    lock = output / "lock"
    busy = f"another audit is at work in {output}. Wait for it, or choose another --output."
    with locked(lock, busy):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _open_sides(
    members: Path | None, nonmembers: Path | None, unit: str | None
) -> tuple[Records, Records]:
    """Returns the records of both sides, of one kind; texts alone are prompts."""
    if members is None and nonmembers is None:
        if unit is not None:
            raise InvalidParameterError(
                "--unit is for attacks on records: give --members and --nonmembers."
            )
        return [], []
    if members is None or nonmembers is None:
        raise InvalidParameterError(
            "--members and --nonmembers belong together: one side alone tells nothing."
        )
    inside = RecordFile(members, unit_column=unit)
    return inside, RecordFile(nonmembers, kind=inside.kind, unit_column=unit)


def _find_task(
    subject: Subject, members: Records, template: str, verbalizer: list[str] | None
) -> dict[str, Any] | None:
    """Returns how records become tokens: as the run's ledger says, or as was asked for."""
    if subject.ledger is not None:
        if template != DEFAULT_TEMPLATE or verbalizer:
            raise InvalidParameterError(
                "--template and --verbalizer are for models made elsewhere: the ledger of this run "
                "says how its records were read."
            )
        task: dict[str, Any] = subject.ledger.events[0]["task"]
        return task
    if template == DEFAULT_TEMPLATE and not verbalizer:
        return None
    labels = labels_of(members)
    if not labels:
        raise InvalidParameterError("--template and --verbalizer are for records with a label.")
    words = parse_verbalizers(verbalizer) if verbalizer else default_verbalizers(labels)
    return {"kind": "classification", "template": template, "verbalizers": words}


def _keep_earlier(output: Path, subject: Subject) -> tuple[str, ...]:
    """Moves an earlier record out of the way; returns what must be said about earlier ones."""
    record = output / "audit.json"
    if record.exists():
        number = 1 + len(list(output.glob("audit.*.json")))
        record.rename(output / f"audit.{number}.json")
    return tuple(
        f"An earlier audit of the same model contradicted a claim: see {path.name}. Repeating an "
        "audit until it passes proves nothing."
        for path, _ in find_contradicting(output, subject.fingerprint)
    )


def _num_guesses(asked: int | None, num_canaries: int) -> int:
    """Returns how many canaries are guessed: a tenth, at least 100, at most all."""
    if asked is not None:
        return require_integer("num_guesses", asked, 1, max(num_canaries, 1))
    return min(num_canaries, max(_FEWEST_GUESSES, num_canaries // 10))


def _delta(asked: float | None, certificate: Certificate | None) -> float:
    """Returns the delta of the bound on epsilon: what was asked for, or the claim's."""
    if asked is not None:
        return require_in_range("delta", asked, 0.0, 1.0)
    if certificate is None or certificate.pool.delta is None:
        return DEFAULT_DELTA
    return certificate.pool.delta
