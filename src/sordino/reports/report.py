"""`sordino report`: audit, certificate, quantization and access rights of a model on one page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typing_extensions import Doc

from sordino.core.errors import InvalidParameterError, LedgerError
from sordino.ledger.artefacts import require_artefacts, require_own_artefacts
from sordino.ledger.certificate import compute_certificate
from sordino.ledger.certificate_words import describe_certificate
from sordino.ledger.durable import PRIVATE_FILE_MODE, PRIVATE_FOLDER_MODE, named, replace_file
from sordino.ledger.ledger import Ledger
from sordino.models import compute_subject_fingerprint
from sordino.quantization.provenance import RECORD, read_record, require_claim
from sordino.reports.access_record import ENDPOINT, EvaluationFolder, read_access_record
from sordino.reports.audit_page import PageSource, render_audit_page
from sordino.reports.audit_record import CONTRADICTED, find_contradicting, read_audit
from sordino.reports.audit_words import NOT_PUBLISHED, is_on_canaries
from sordino.reports.holder_report import read_holder_report
from sordino.reports.quantization_section import is_publishable
from sordino.training.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sordino.reports.audit_record import Audit, GameVerdict
    from sordino.reports.holder_report import HolderReport

_PUBLIC_FILE_MODE = 0o644
_NOTHING_CLAIMED = "nothing claimed"


@dataclass(frozen=True, slots=True)
class AuditFolder:
    """Where the audit of a model lies: beside it, never in it, for it is private.

    Args:
        subject: The audited folder or file.
        chosen: The folder, where it is another one than usual.
    """

    subject: Path
    chosen: Path | None = None

    @property
    def path(self) -> Path:
        """The folder; usually the subject's name with ".audit" at the end."""
        if self.chosen is not None:
            return self.chosen
        subject = named(self.subject)
        return subject.with_name(subject.name + ".audit")

    @property
    def record(self) -> Path:
        """What was measured."""
        return self.path / "audit.json"

    @property
    def page(self) -> Path:
        """The data holder's page."""
        return self.path / "report.html"

    @property
    def public_page(self) -> Path:
        """The page that may leave the building: in a run's own folder, which its card links."""
        if (self.subject / "ledger.jsonl").is_file():
            return self.subject / "audit.html"
        return self.path / "public" / "audit.html"


@dataclass(frozen=True, slots=True)
class ReportResult:
    """A page.

    Args:
        page: The file.
        record: The same numbers as JSON; None where nothing was measured.
        audit: What was measured, as far as the page shows it; None where nothing was.
        is_public: Whether all that is for the data holder only was left out.
    """

    page: Path
    record: Path | None
    audit: Audit | None
    is_public: bool


def report(
    run: Annotated[
        Path,
        Doc("What was made or audited: a folder of `sordino tune` or `sordino quantize`, a model."),
    ],
    *,
    audit: Annotated[
        Path | None, Doc("Folder of `sordino audit --output`; default: RUN.audit.")
    ] = None,
    access: Annotated[
        Path | None, Doc("Folder of `sordino access evaluate`: adds who is told what.")
    ] = None,
    output: Annotated[
        Path | None,
        Doc("Page to write, .html; default: RUN.audit/report.html, public: RUN/audit.html."),
    ] = None,
    publish: Annotated[
        bool,
        Doc(
            "Leave out everything that was computed on records of the pool: only the certificate, "
            "numbers on canaries and settings stay."
        ),
    ] = False,
) -> ReportResult:
    """Draws one page that loads nothing: verdict, certificate in words, what was measured.

    Of a folder of `sordino quantize` it also shows what each layer lost, and its geometry.

    The audit is read from RUN.audit, where `sordino audit` puts it. Without one the page says that
    nothing was measured. What was measured on other files than RUN holds now is refused. The page
    is for the data holder: publish makes one for everybody else.

    Returns:
        Where the page and its numbers lie.

    Raises:
        InvalidParameterError: If there is nothing to report, or the page would lie where it must
            not.
        InvalidDataError: If the audit, the evaluation or the holder's report cannot be read.
        LedgerError: If the run is unfinished or damaged, or a measurement is about another one.
        ModelUnavailableError: If a measurement is there and the model's files are not.

    Example:
        sordino report run
    """
    folder = AuditFolder(Path(run), None if audit is None else Path(audit))
    page = _require_page(folder, None if output is None else Path(output), publish=publish)
    words = _read_certificate(RunFolder(folder.subject))
    measured = None
    if audit is not None or folder.record.is_file():
        measured = read_audit(folder.record)
    rights = None if access is None else read_access_record(EvaluationFolder(Path(access)).numbers)
    quantization = _read_quantization(folder.subject)
    if measured is None and words is None and quantization is None and rights is None:
        raise InvalidParameterError(
            f"{folder.subject} is neither a finished run nor a quantized model, and {folder.path} "
            "holds no audit of it. Attack it first: sordino audit RUN --members FILE "
            "--nonmembers FILE."
        )
    if measured is not None and words not in (None, measured.certificate_in_words):
        raise LedgerError(
            f"{folder.record} is the audit of another run: its certificate is not the one of "
            f"{folder.subject}. Audit it again, with sordino audit."
        )
    _require_same_files(
        folder.subject,
        {
            str(folder.record): None if measured is None else measured.subject,
            str(access): None if rights is None else rights.subject,
        },
    )
    source = PageSource(
        name=measured.subject.get("name", folder.subject.name) if measured else folder.subject.name,
        audit=_shown_part(measured, folder, publish=publish),
        certificate_in_words=words or (measured.certificate_in_words if measured else ()),
        holder_report=None if publish else _read_holder_report(RunFolder(folder.subject)),
        claims_once_quantized=tuple(quantization["privacy"]["lines"]) if quantization else (),
        quantization=quantization if not publish or is_publishable(quantization) else None,
        access=None if publish else rights,
        is_public=publish,
    )
    html = render_audit_page(source).encode()
    mode = _PUBLIC_FILE_MODE if publish else PRIVATE_FILE_MODE
    if page.is_relative_to(folder.path):
        folder.path.mkdir(mode=PRIVATE_FOLDER_MODE, exist_ok=True, parents=True)
    page.parent.mkdir(exist_ok=True, parents=True)
    record = None
    if source.audit is not None:
        record = folder.record if page == folder.page else page.with_suffix(".json")
        if record != folder.record:
            replace_file(record, source.audit.to_bytes(), mode=mode)
    replace_file(page, html, mode=mode)
    return ReportResult(page, record, source.audit, publish)


def _shown_part(audit: Audit | None, folder: AuditFolder, *, publish: bool) -> Audit | None:
    """Returns what a page shows of an audit; what an earlier one of the same files broke stays."""
    if audit is None:
        return None
    broken: dict[str, GameVerdict] = {}
    for path, earlier in find_contradicting(folder.path, audit.subject.get("sha256")):
        for verdict in earlier.verdicts:
            if verdict.outcome == CONTRADICTED:
                told = _publishable_verdict(verdict, earlier) if publish else verdict
                line = f"By an earlier audit of the same files ({path.name}): {told.line}"
                broken[verdict.game] = replace(told, line=line)
    shown = publishable_part(audit) if publish else audit
    verdicts = (
        verdict if verdict.outcome == CONTRADICTED else broken.get(verdict.game, verdict)
        for verdict in shown.verdicts
    )
    return replace(shown, verdicts=tuple(verdicts))


def publishable_part(audit: Audit) -> Audit:
    """Returns the record without anything that was computed on records of the pool.

    A contradiction stays, without its number: whoever reads the certificate must learn of it.
    """
    canaries = audit.canaries
    if canaries is not None and _control_learned_records(audit):
        canaries = replace(canaries, control_epsilon_lower=None)
    return replace(
        audit,
        verdicts=tuple(_publishable_verdict(verdict, audit) for verdict in audit.verdicts),
        membership=None,
        canaries=canaries,
        subset=None,
        pii=(),
        findings=(),
        cost={},
        notes=(),
    )


def _publishable_verdict(verdict: GameVerdict, audit: Audit) -> GameVerdict:
    """Returns a verdict that tells nothing about records of the pool, but for a contradiction."""
    if is_on_canaries(verdict, audit):
        return _without_records(verdict) if _control_learned_records(audit) else verdict
    bare = replace(verdict, measured_lower=None, control_lower=None, significance=None)
    if verdict.outcome == _NOTHING_CLAIMED:
        return replace(bare, line="Nothing claimed: the certificate is silent on this line.")
    if verdict.outcome == CONTRADICTED:
        line = "Contradicted, by a measurement on records of the pool, which is not published."
        return replace(bare, line=line)
    return replace(
        bare,
        outcome=NOT_PUBLISHED,
        line="The outcome was measured on records of the pool and is not published.",
    )


def _control_learned_records(audit: Audit) -> bool:
    """Returns whether the positive control depends on records of the pool."""
    return audit.control is not None and audit.control.get("records", 0) > 0


def _without_records(verdict: GameVerdict) -> GameVerdict:
    """Returns a verdict on canaries without what a control that learned records adds to it."""
    bare = replace(verdict, control_lower=None)
    if verdict.outcome in {_NOTHING_CLAIMED, CONTRADICTED}:
        return bare
    return replace(
        bare,
        outcome=NOT_PUBLISHED,
        line="The canaries do not contradict the claim. Whether the attacks had power was measured "
        "on a control that learned records of the pool, and is not published: audit the canaries "
        "alone, without --members, to publish it.",
    )


def _require_page(folder: AuditFolder, output: Path | None, *, publish: bool) -> Path:
    """Returns where the page goes; neither it nor its numbers may do harm there."""
    if output is None:
        return folder.public_page if publish else folder.page
    if output.suffix.lower() not in {".html", ".htm"} or output.is_dir():
        raise InvalidParameterError(f"output must be a file that ends in .html, got {output}.")
    place, subject = output.resolve(), folder.subject.resolve()
    if not publish and place.is_relative_to(subject):
        raise InvalidParameterError(
            f"output {output} lies in {folder.subject}, and everything in there may leave the "
            "building. Choose another place, or publish only what may be published: --publish."
        )
    if publish and place.parent == folder.path.resolve():
        raise InvalidParameterError(
            f"output {output} lies beside the data holder's own numbers. Choose another folder "
            "for what is published."
        )
    return output


def _read_certificate(folder: RunFolder) -> tuple[str, ...] | None:
    """Returns the certificate in words; None for what is not a run.

    Raises:
        LedgerError: If the run is unfinished, or its certificate or weights are not those of its
            ledger.
    """
    if not folder.ledger.is_file():
        return None
    ledger = Ledger.open(folder.ledger)
    certificate = compute_certificate(ledger)
    require_own_artefacts(folder.path, ledger)
    stored = folder.certificate.read_bytes() if folder.certificate.is_file() else b""
    if stored != certificate.to_bytes():
        raise LedgerError(
            f"{folder.certificate} is not the certificate of its ledger. Look with sordino verify "
            f"{folder.path}."
        )
    return tuple(describe_certificate(certificate))


def _require_same_files(subject: Path, measured: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Raises unless what was measured is what lies there now.

    Names of models, such as "embedded", name no files here: the name must then be the one that was
    measured. A server's files are not known.

    Args:
        subject: The folder or file.
        measured: What each record says that it looked at; None where there is no record.
    """
    recorded = {place: what for place, what in measured.items() if what is not None}
    if not subject.exists():
        for place, what in recorded.items():
            if what.get("name") != str(subject):
                raise InvalidParameterError(
                    f"{subject} is neither here nor the name of the model that {place} is about, "
                    f"{what.get('name')!r}. Check the path."
                )
        return
    digests = {
        place: what.get("sha256")
        for place, what in recorded.items()
        if what.get("kind") != ENDPOINT
    }
    if not digests:
        return
    found = compute_subject_fingerprint(subject)
    for place, sha256 in digests.items():
        if sha256 != found:
            raise LedgerError(
                f"{place} is about other files than those of {subject} (another SHA-256): they "
                "were made anew or changed since. Measure them again."
            )


def _read_quantization(folder: Path) -> dict[str, Any] | None:
    """Returns the record of a quantized model; None for what is not one.

    Raises:
        LedgerError: If it is damaged, or claims what its ledgers do not give.
    """
    if not (folder / RECORD).is_file():
        return None
    record = read_record(folder)
    require_claim(folder, record)
    require_artefacts(folder, record)
    return record


def _read_holder_report(folder: RunFolder) -> HolderReport | None:
    """Returns the leave-one-out losses of a run; None where it kept none."""
    path = folder.holder_report
    return read_holder_report(path) if path.is_file() else None
