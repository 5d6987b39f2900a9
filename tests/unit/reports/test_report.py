"""`sordino report`: where pages go, what they are about, and what never gets published."""

from __future__ import annotations

import hashlib
import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers_audits import (
    POOL_SECRET,
    make_access_record,
    make_audit,
    make_verdict,
    write_holder_report,
)
from helpers_pages import LOADING, Reader
from sordino.core.errors import (
    InvalidDataError,
    InvalidParameterError,
    LedgerError,
    ModelUnavailableError,
)
from sordino.ledger.certificate import compute_certificate
from sordino.ledger.certificate_words import describe_certificate
from sordino.ledger.ledger import Ledger
from sordino.models import compute_subject_fingerprint
from sordino.reports.access_record import EvaluationFolder
from sordino.reports.audit_record import Audit, read_audit
from sordino.reports.report import AuditFolder, publishable_part, report
from sordino.training.run_folder import RunFolder

OPENING: dict[str, Any] = {
    "kind": "open",
    "sordino_version": "0.1.0",
    "guarantee": "pac",
    "mutual_information_budget_nats": 0.0,
    "mutual_information_nats": 0.0,
    "mechanism": {
        "name": "unanimity",
        "num_subsets": 128,
        "subset_construction": "random-halves",
        "prior": 0.5,
        "on_disagreement": "coin",
        "unanimity_flip": 0.0,
    },
    "num_records": 1000,
    "num_steps": 1,
    "directions_per_step": 3,
    "base_model_sha256": "c" * 64,
}
RELEASE = {
    "kind": "release",
    "step": 0,
    "num_releases": 3,
    "mutual_information_nats": 0.0,
    "symbols_sha256": "d" * 64,
}
CLOSE = {
    "kind": "close",
    "selected_step": 1,
    "selection": "The weights are those after the last step.",
    "transcript_sha256": "a" * 64,
    "artefacts_sha256": {"adapter_model.safetensors": hashlib.sha256(b"weights").hexdigest()},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run, as far as a report looks at it."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    ledger = Ledger.open(folder.ledger)
    for event in (OPENING, RELEASE, CLOSE):
        ledger.append(event)
    folder.certificate.write_bytes(compute_certificate(Ledger.open(folder.ledger)).to_bytes())
    write_adapter(folder.path)
    return folder.path


def write_adapter(folder: Path, weights: bytes = b"weights") -> None:
    """Writes what a fingerprint is taken of."""
    (folder / "adapter_config.json").write_bytes(b"{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)


def words_of(run: Path) -> tuple[str, ...]:
    return tuple(describe_certificate(compute_certificate(Ledger.open(run / "ledger.jsonl"))))


def describe(subject: Path) -> dict[str, Any]:
    """Returns a subject as records name it."""
    return {"name": "notes", "kind": "run", "sha256": compute_subject_fingerprint(subject)}


def write_audit(subject: Path, audit: Audit, chosen: Path | None = None) -> Path:
    """Writes an audit of the files that lie there now."""
    folder = AuditFolder(subject, chosen)
    folder.path.mkdir(exist_ok=True)
    folder.record.write_bytes(replace(audit, subject=describe(subject)).to_bytes())
    return folder.record


def write_access(folder: Path, subject: dict[str, Any]) -> Path:
    """Writes an evaluation of two questions."""
    folder.mkdir()
    EvaluationFolder(folder).numbers.write_bytes(make_access_record(subject=subject).to_bytes())
    return folder


@pytest.fixture
def audited(run: Path) -> Path:
    """The run with an audit and a holder's report."""
    write_audit(run, make_audit(certificate_in_words=words_of(run)))
    write_holder_report(RunFolder(run).holder_report)
    return run


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_page_lies_beside_the_run(audited: Path) -> None:
    """Readable for the holder alone; the run folder, which may leave, stays as it was."""
    before = sorted(path.name for path in audited.iterdir())
    result = report(audited)
    assert result.page == audited.with_name("run.audit") / "report.html"
    assert result.record == audited.with_name("run.audit") / "audit.json"
    assert mode(result.page) == 0o600
    assert sorted(path.name for path in audited.iterdir()) == before
    page = result.page.read_text(encoding="utf-8")
    assert "Consistent" in page
    assert "infinite loss" in page
    for line in words_of(audited):
        assert line in page.replace("&#39;", "'")


def test_another_place_gets_the_numbers_too(audited: Path, tmp_path: Path) -> None:
    result = report(audited, output=tmp_path / "pages" / "mine.html")
    assert result.record == tmp_path / "pages" / "mine.json"
    assert read_audit(result.record) == read_audit(AuditFolder(audited).record)
    assert mode(result.page) == mode(result.record) == 0o600


def test_a_run_without_an_audit_still_has_a_page(run: Path) -> None:
    """It says that nothing was measured."""
    result = report(run)
    assert result.record is None
    assert result.audit is None
    assert "Nothing was measured" in result.page.read_text(encoding="utf-8")
    assert mode(result.page.parent) == 0o700


@pytest.mark.parametrize("name", ["model.gguf", "adapter"])
def test_models_made_elsewhere_have_pages(tmp_path: Path, name: str) -> None:
    """A file, or a folder without a ledger; neither has a certificate."""
    subject = tmp_path / name
    if "." in name:
        subject.write_bytes(b"")
    else:
        subject.mkdir()
        write_adapter(subject)
    audit = make_audit("nothing claimed", "nothing claimed", certificate_in_words=())
    write_audit(subject, audit)
    result = report(subject)
    assert result.page == tmp_path / f"{name}.audit" / "report.html"
    assert "There is none: this model was not made" in result.page.read_text(encoding="utf-8")


def test_what_was_never_audited_is_refused(tmp_path: Path) -> None:
    """The error says what to do."""
    with pytest.raises(InvalidParameterError, match=r"neither a finished run .* sordino audit RUN"):
        report(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_the_audit_of_another_run_is_refused(run: Path) -> None:
    """Defect: a run made again under the verdict of the old one."""
    write_audit(run, make_audit())
    with pytest.raises(LedgerError, match="the audit of another run"):
        report(run)


def test_the_audit_of_other_files_is_refused(tmp_path: Path) -> None:
    """Defect: weights made anew, without a ledger that differs, under the verdict of the old."""
    subject = tmp_path / "adapter"
    subject.mkdir()
    write_adapter(subject)
    write_audit(subject, make_audit("nothing claimed", "nothing claimed", certificate_in_words=()))
    report(subject)
    write_adapter(subject, b"others")
    for publish in (False, True):
        with pytest.raises(LedgerError, match=r"audit\.json is about other files .* Measure them"):
            report(subject, publish=publish)
    (subject / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelUnavailableError, match="adapter_model"):
        report(subject)


def test_a_certificate_is_not_about_other_weights(audited: Path) -> None:
    """Defect: weights swapped in a finished run, under its certificate."""
    write_adapter(audited, b"others")
    for publish in (False, True):
        with pytest.raises(LedgerError, match=r"adapter_model\.safetensors was changed"):
            report(audited, publish=publish)
    (audited / "adapter_model.safetensors").unlink()
    with pytest.raises(LedgerError, match=r"adapter_model\.safetensors is missing"):
        report(audited)


def test_names_of_models_name_no_files_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as "embedded"; what is no file and not that name was misspelled."""
    monkeypatch.chdir(tmp_path)
    audit = make_audit(
        "nothing claimed",
        "nothing claimed",
        certificate_in_words=(),
        subject={"name": "embedded", "kind": "model", "sha256": "ab" * 32},
    )
    Path("embedded.audit").mkdir()
    Path("embedded.audit/audit.json").write_bytes(audit.to_bytes())
    assert report(Path("embedded")).audit == audit
    with pytest.raises(InvalidParameterError, match="typo is neither here nor the name"):
        report(Path("typo"), audit=Path("embedded.audit"))
    with pytest.raises(InvalidParameterError, match="typo is neither here nor the name"):
        report(Path("typo"), access=write_access(Path("rights"), audit.subject))
    assert not Path("typo.audit").exists()


def test_an_audit_may_lie_elsewhere(run: Path, tmp_path: Path) -> None:
    """As `sordino audit --output` left it; the holder's page then lies beside it."""
    place = tmp_path / "there"
    write_audit(run, make_audit(certificate_in_words=words_of(run)), place)
    assert report(run).audit is None
    result = report(run, audit=place)
    assert result.page == place / "report.html"
    assert "Consistent" in result.page.read_text(encoding="utf-8")
    assert report(run, audit=place, publish=True).page == run / "audit.html"
    with pytest.raises(InvalidDataError, match="not the record of an audit"):
        report(run, audit=tmp_path / "nowhere")


def test_access_rights_have_a_section(audited: Path, tmp_path: Path) -> None:
    folder = write_access(tmp_path / "rights", describe(audited))
    page = Reader(report(audited, access=folder).page.read_text(encoding="utf-8"))
    assert "Who may know what" in page.text
    assert "50.0% (1.3 to 98.7; 1 of 2)" in page.text
    assert "no training epsilon bounds these rates" in page.text
    assert not any(LOADING & attributes.keys() for _, attributes in page.tags)


def test_access_rights_are_not_published(audited: Path, tmp_path: Path) -> None:
    """They are computed on records; nothing covers handing them out."""
    folder = write_access(tmp_path / "rights", describe(audited))
    page = report(audited, access=folder, publish=True).page.read_text(encoding="utf-8")
    assert "Who may know what" not in page
    assert "50.0%" not in page
    assert "who is told what" in page  # among what was left out


def test_access_rights_of_other_files_are_refused(audited: Path, tmp_path: Path) -> None:
    folder = write_access(tmp_path / "rights", describe(audited) | {"sha256": "f" * 64})
    with pytest.raises(LedgerError, match="rights is about other files"):
        report(audited, access=folder)


def test_a_server_is_not_known_to_run_these_files(audited: Path, tmp_path: Path) -> None:
    server = {"name": "m", "kind": "endpoint", "address": "http://localhost:1/v1"}
    folder = write_access(tmp_path / "rights", server)
    page = Reader(report(audited, access=folder).page.read_text(encoding="utf-8"))
    assert "Which files it runs is not known here" in page.text


def test_a_changed_certificate_is_refused(audited: Path) -> None:
    path = RunFolder(audited).certificate
    path.write_bytes(path.read_bytes().replace(b"1000", b"9000"))
    with pytest.raises(LedgerError, match="not the certificate of its ledger"):
        report(audited)


def test_an_unfinished_run_is_refused(run: Path) -> None:
    ledger = run / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(LedgerError, match="unfinished"):
        report(run)


def test_a_broken_audit_is_refused(audited: Path) -> None:
    AuditFolder(audited).record.write_text("{}")
    with pytest.raises(InvalidDataError, match="not the record of an audit"):
        report(audited)


@pytest.mark.parametrize("name", ["page.txt", "page", "folder.html"])
def test_the_output_is_a_page(audited: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InvalidParameterError, match=r"must be a file that ends in \.html"):
        report(audited, output=tmp_path / name)


@pytest.mark.parametrize("place", ["report.html", "more/report.html", "../run/report.html"])
def test_a_private_page_never_lies_in_the_run(audited: Path, place: str) -> None:
    """Everything in the run folder may leave the building."""
    with pytest.raises(InvalidParameterError, match="may leave the building"):
        report(audited, output=audited / place)


def test_a_public_page_never_lies_beside_private_numbers(audited: Path) -> None:
    """A folder is what people copy; and its audit.json is not to be overwritten."""
    before = AuditFolder(audited).record.read_bytes()
    for name in ("audit.html", "public.html"):
        with pytest.raises(InvalidParameterError, match="Choose another folder"):
            report(audited, output=AuditFolder(audited).path / name, publish=True)
    assert AuditFolder(audited).record.read_bytes() == before


def test_publishing_leaves_the_pool_out(audited: Path) -> None:
    """The page and the numbers beside it; both may be read by all."""
    result = report(audited, publish=True)
    assert result.is_public
    assert result.record is not None
    assert result.page == audited / "audit.html"  # which the model card links
    assert result.record == audited / "audit.json"
    assert mode(result.page) == mode(result.record) == 0o644
    page, stored = result.page.read_text(encoding="utf-8"), json.loads(result.record.read_bytes())
    assert "Left out, because it was computed on records of the pool" in page
    assert "infinite loss" not in page
    for part in ("membership", "subset", "pii", "findings", "cost", "notes"):
        assert not stored[part]
    assert stored["canaries"]["epsilon_lower"] == 0.4189
    assert read_audit(result.record) == result.audit


def test_published_verdicts_tell_nothing_about_the_pool() -> None:
    """Only what rests on canaries keeps its numbers."""
    audit = make_audit()
    subset, pool = publishable_part(audit).verdicts
    assert pool == audit.verdicts[1]
    assert subset.outcome == "not published"
    assert subset.measured_lower is subset.control_lower is subset.significance is None
    assert "0.0089" not in subset.line
    moved = replace(audit, verdicts=(make_verdict(measured_lower=0.6, line="loss: 0.6"),))
    assert publishable_part(moved).verdicts[0].outcome == "not published"
    assert "0.6" not in publishable_part(moved).verdicts[0].line


def test_a_published_line_may_claim_nothing() -> None:
    """That is known without any measurement."""
    (subset, _) = publishable_part(make_audit("consistent", "nothing claimed")).verdicts
    assert subset.outcome == "nothing claimed"
    assert subset.measured_lower is None
    assert "0.0089" not in subset.line


@pytest.mark.parametrize("outcome", ["consistent", "no power"])
def test_a_control_that_learned_records_is_not_published(outcome: str) -> None:
    """Whether it was caught depends on records; the bound on the canaries does not."""
    audit = make_audit(outcome, control={"records": 500, "canaries": 100, "epochs": 10})
    public = publishable_part(audit)
    (_, pool) = public.verdicts
    assert pool.outcome == "not published"
    assert pool.control_lower is None
    assert "without --members" in pool.line
    assert public.canaries is not None
    assert audit.canaries is not None
    assert public.canaries.control_epsilon_lower is None
    assert public.canaries.epsilon_lower == audit.canaries.epsilon_lower
    alone = make_audit(outcome, control={"records": 0, "canaries": 100, "epochs": 10})
    assert publishable_part(alone).verdicts[1] == alone.verdicts[1]


def test_a_contradiction_is_never_left_out(audited: Path) -> None:
    """Its number is; whoever reads the certificate must learn that it does not hold."""
    audit = make_audit("contradicted", "contradicted", certificate_in_words=words_of(audited))
    write_audit(audited, audit)
    result = report(audited, publish=True)
    assert result.audit is not None
    assert result.audit.is_contradicted
    page = result.page.read_text(encoding="utf-8")
    assert "Contradicted, by a measurement on records of the pool" in page
    assert "3.127" not in page
    assert "0.8114" not in page


def test_a_later_audit_takes_no_contradiction_away(audited: Path) -> None:
    """Defect: another audit, of other attacks or records, and the published page was clean."""
    words = words_of(audited)
    broken = write_audit(audited, make_audit("contradicted", certificate_in_words=words))
    broken.rename(broken.with_name("audit.1.json"))
    write_audit(audited, make_audit("nothing claimed", certificate_in_words=words))
    for publish in (False, True):
        result = report(audited, publish=publish)
        assert result.audit is not None
        assert result.audit.is_contradicted
        page = result.page.read_text(encoding="utf-8")
        assert "By an earlier audit of the same files (audit.1.json)" in page
    assert "0.8114" not in page  # measured on records
    # an earlier audit of other files says nothing about these
    other = make_audit("contradicted", certificate_in_words=words)
    broken.with_name("audit.1.json").write_bytes(other.to_bytes())
    assert not report(audited).audit.is_contradicted


def test_a_page_is_drawn_again(audited: Path) -> None:
    """The same record gives the same bytes, over what lay there."""
    first = report(audited).page.read_bytes()
    assert report(audited).page.read_bytes() == first


def test_this_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "." and ".." are folders too."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert AuditFolder(Path()).path == tmp_path / "outer" / "inner.audit"
    assert AuditFolder(Path("..")).path == tmp_path / "outer.audit"
    assert RunFolder(Path()).private == tmp_path / "outer" / "inner.private"


def test_the_pool_secret_is_the_certificates(run: Path) -> None:
    """The words that the examples use are those of a real certificate."""
    assert words_of(run)[1].startswith(f"Secret 2, {POOL_SECRET}: ")
