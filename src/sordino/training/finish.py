"""The end of a run: artefacts, closing event, certificate, model card, and no secrets left."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.core.errors import SordinoError
from sordino.ledger.artefacts import digest_file
from sordino.ledger.certificate import compute_certificate
from sordino.ledger.durable import PRIVATE_FILE_MODE, flush_folder, replace_file
from sordino.models import save_adapter, save_full
from sordino.training.card import render_card
from sordino.training.loop import commit_to, read_metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from sordino.ledger.certificate import Certificate
    from sordino.training.loop import Session
    from sordino.training.run_folder import RunFolder

# files that are checked in another way, and what may be published beside a run after it
NOT_ARTEFACTS = {
    "ledger.jsonl",
    "transcript.bin",
    "certificate.json",
    "README.md",
    "audit.html",
    "audit.json",
}
_WHAT_SUBSET = (
    "For the subset game of `sordino audit`: whoever reads this file knows the secret subset; "
    "delete it afterwards."
)


def finish_run(
    session: Session,
    model: Any,
    tokenizer: Any,
    *,
    initial_state: Callable[[], dict[str, torch.Tensor]],
    base_model: str,
    select: str,
) -> Certificate:
    """Writes everything that leaves the building; repeatable after a crash.

    Args:
        session: A run whose steps are all done.
        model: The tuned model, to be saved as an adapter or in full.
        tokenizer: Saved beside a fully tuned model.
        initial_state: Returns the trainable tensors before the first step.
        base_model: The user's words for the base model.
        select: "last", or "best" by the public validation score.

    Raises:
        SordinoError: If no trainable tensor moved.
    """
    folder = session.folder
    if not session.ledger.of_kind("close"):
        chosen = _choose_step(session, select)
        _require_moved(session)
        if chosen < session.header.num_steps:
            session.stepper.go_back_to(session, chosen, initial_state())
        if session.header.adapter["kind"] == "lora":
            save_adapter(model, folder.path, base_model=base_model)
        else:
            save_full(model, tokenizer, folder.path)
        _flush_files(folder.path)
        closing = {
            "kind": "close",
            "selected_step": chosen,
            "selection": _selection_words(chosen, session.header.num_steps, select),
            "transcript_sha256": digest_file(folder.transcript),
            "artefacts_sha256": artefact_digests(folder),
        }
        commit_to(session, closing, folder.transcript.stat().st_size, b"")
    if folder.journal.path.exists():  # else all is written, and this process knows no secret
        _write_private_files(session)
    certificate = compute_certificate(session.ledger)
    replace_file(folder.certificate, certificate.to_bytes())
    replace_file(folder.card, render_card(session.ledger, certificate).encode())
    folder.forget_secrets()
    return certificate


def _write_private_files(session: Session) -> None:
    """Writes what was asked to outlive the journal, beside the run folder."""
    folder = session.folder
    report = session.stepper.holder_report()
    if report is not None:
        content = json.dumps(report, indent=1, allow_nan=False).encode()
        replace_file(folder.holder_report, content, mode=PRIVATE_FILE_MODE)
    subset = session.stepper.kept_subset()
    if subset is not None:
        kept = {"subset": subset, "ledger": session.ledger.head, "what": _WHAT_SUBSET}
        replace_file(folder.subset, json.dumps(kept).encode(), mode=PRIVATE_FILE_MODE)


def artefact_digests(folder: RunFolder) -> dict[str, str]:
    """Returns the hash of every public file that the ledger does not cover otherwise."""
    files = {
        path.relative_to(folder.path).as_posix(): path
        for path in folder.path.rglob("*")
        if not path.is_dir()
    }
    return {name: digest_file(files[name]) for name in sorted(files) if name not in NOT_ARTEFACTS}


def _choose_step(session: Session, select: str) -> int:
    """Returns after how many steps the weights are taken."""
    last = session.header.num_steps
    if select == "last":
        return last
    entries = [e for e in read_metrics(session.folder, last) if e["num_steps"] > 0]
    best = max(entries, key=lambda e: (e["score"], -e["num_steps"]))
    return int(best["num_steps"])


def _selection_words(chosen: int, num_steps: int, select: str) -> str:
    """Returns how the weights were chosen, for the certificate."""
    if select == "last":
        return "The weights are those after the last step."
    return (
        f"The weights are those after step {chosen} of {num_steps}, chosen by the score on "
        "validation records that the holder declared public."
    )


def _require_moved(session: Session) -> None:
    """Raises if training changed nothing."""
    if not session.stepper.has_moved:
        raise SordinoError(
            f"no trainable tensor changed in {session.header.num_steps} steps: "
            f"{session.stepper.describe_failure()}. What was charged stays charged."
        )


def _flush_files(folder: Path) -> None:
    """Returns once every file of a folder is on disk: the closing event names their hashes."""
    for path in filter(Path.is_file, folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    flush_folder(folder)
