"""The one training loop: contributions -> sums -> mechanism -> ledger -> move."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sordino.core.errors import LedgerError, SordinoError
from sordino.ledger.durable import replace_file
from sordino.ledger.journal import Commit
from sordino.ledger.ledger import Ledger, canonical_json
from sordino.ledger.transcript import StepSymbols, decode_steps, encode_step
from sordino.mechanisms.candidates import SubsetSums, to_fixed_point
from sordino.training.progress import progress
from sordino.training.replay import replay

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from sordino.gradients.estimators import AbstractEstimator
    from sordino.gradients.parameters import AbstractParameterSpace
    from sordino.ledger.transcript import TranscriptHeader
    from sordino.mechanisms.release import AbstractMechanism, Release
    from sordino.training.leave_one_out import LeaveOneOut
    from sordino.training.run_folder import RunFolder
    from sordino.training.setup import BatchPlan
    from sordino.training.workers import Workers


@dataclass(kw_only=True, slots=True)
class Session:
    """The parts of a run that the loop connects."""

    folder: RunFolder
    header: TranscriptHeader
    opening: dict[str, Any]
    plan: BatchPlan
    estimator: AbstractEstimator
    mechanism: AbstractMechanism
    space: AbstractParameterSpace
    membership: NDArray[np.bool_]
    workers: Workers
    leave_one_out: LeaveOneOut | None
    evaluate: Callable[[], dict[str, float]] | None  # on public records
    evaluate_every: int
    pool_digest: str
    ledger: Ledger = field(init=False)
    steps: list[StepSymbols] = field(default_factory=list)
    has_moved: bool = False

    def private_state(self) -> dict[str, Any]:
        """Returns everything that must survive a crash and must not leave the holder."""
        return {
            "mechanism": self.mechanism.private_state(),
            "pool_digest": self.pool_digest,
            "leave_one_out": self.leave_one_out.state() if self.leave_one_out else None,
        }


def open_run(session: Session, *, resume: bool) -> None:
    """Starts the run's files, or finishes what a crash interrupted and replays what was released.

    Raises:
        LedgerError: If the files contradict each other, the settings or the data.
    """
    recovered = session.folder.journal.recover() if resume else None
    if recovered is None:
        recovered = _open_without_journal(session) if resume else None
    if recovered is None:
        session.ledger = Ledger(session.folder.ledger)
        commit_to(session, session.opening, 0, session.header.to_bytes())
        return
    session.ledger, state = recovered
    _require_same_run(session)
    if state is not None:
        _restore(session, state)
    num_steps = len(session.ledger.of_kind("release"))
    raw = session.folder.transcript.read_bytes()[len(session.header.to_bytes()) :]
    where = str(session.folder.transcript)
    session.steps = decode_steps(session.header, raw, num_steps, where)
    step = find_uncharged_step(session.ledger, session.steps)
    if step is not None:
        raise LedgerError(f"{where}: step {step} is not what the ledger charged for.")


def run_steps(session: Session) -> None:
    """Runs the steps that are left; every worker calls it."""
    header, workers = session.header, session.workers
    session.has_moved = replay(session.space, header, session.steps)
    start = len(session.steps)
    _evaluate_if_due(session, start)
    with progress("tune", header.num_steps, start=start, enabled=workers.is_main) as advance:
        for step in range(start, header.num_steps):
            symbols, note = run_one_step(session, step)
            session.steps.append(symbols)
            learning_rate = header.learning_rates[step]
            session.has_moved |= session.space.apply(
                step, symbols, learning_rate, header.weight_decay
            )
            _evaluate_if_due(session, step + 1)
            advance(step + 1, note)


def commit_to(
    session: Session, event: dict[str, Any], transcript_offset: int, content: bytes
) -> None:
    """Charges an event and releases its transcript bytes, exactly once."""
    line = session.ledger.prepare(event)
    session.folder.journal.commit(
        Commit(
            ledger_offset=session.ledger.size,
            ledger_line=line,
            transcript_offset=transcript_offset,
            transcript_bytes=content,
            state=session.private_state(),
        ),
        session.ledger,
    )


def symbols_digest(symbols: StepSymbols) -> str:
    """Returns the hash of one step's released symbols, as the ledger names it."""
    content = canonical_json([symbols.unit, symbols.integers.tolist()])
    return hashlib.sha256(content).hexdigest()


def find_uncharged_step(ledger: Ledger, steps: list[StepSymbols]) -> int | None:
    """Returns the first step whose symbols are not those that the ledger names, if there is one."""
    for event, symbols in zip(ledger.of_kind("release"), steps, strict=True):
        if event["symbols_sha256"] != symbols_digest(symbols):
            return int(event["step"])
    return None


def run_one_step(session: Session, step: int) -> tuple[StepSymbols, str]:
    """Returns what one step released, and a note for the holder's progress line."""
    K, workers = session.header.directions_per_step, session.workers
    batches = session.plan.batches(step)
    total = SubsetSums(session.membership, K, session.estimator.bound)
    kept = np.zeros((session.membership.shape[0], K)) if session.leave_one_out else None
    for records, contributions in session.estimator.contributions(step, workers.share(batches)):
        rows, values = np.asarray(records, dtype=np.int64), contributions.numpy()
        total.add(rows, values)
        if kept is not None:
            kept[rows] = to_fixed_point(values, session.estimator.bound, total.unit)
    sums = workers.add_up(total.sums)
    if step == 0 and not sums.any():
        raise SordinoError(
            "the loss does not depend on the trainable tensors: every contribution is exactly 0. "
            "Check --lora-targets, and that --perturbation fits the compute dtype."
        )
    if kept is not None:
        kept = workers.add_up(kept)

    def release_on_main() -> tuple[StepSymbols, str]:
        release = session.mechanism.release(sums, total.unit, step)
        symbols = StepSymbols(release.integers, release.unit)
        if session.leave_one_out is not None and kept is not None:
            session.leave_one_out.add(sums, kept, release.integers)
        _record_release(session, step, release, symbols)
        show = session.leave_one_out is not None  # the holder asked to see private figures
        return symbols, f"unanimous {release.unanimous.mean():.0%}" if show else ""

    return workers.from_main(release_on_main)


def _record_release(session: Session, step: int, release: Release, symbols: StepSymbols) -> None:
    """Charges one release and writes its symbols to the transcript."""
    event = {
        "kind": "release",
        "step": step,
        "num_releases": int(release.integers.size),
        "mutual_information_nats": release.mutual_information_nats,
        "symbols_sha256": symbols_digest(symbols),
    }
    header_size = len(session.header.to_bytes())
    last_byte = _last_byte(session.folder.transcript) if step else 0
    offset, content = encode_step(session.header, step, symbols, last_byte)
    commit_to(session, event, header_size + offset, content)


def _last_byte(path: Path) -> int:
    """Returns the last byte of a file that is not empty."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)[0]


def _evaluate_if_due(session: Session, num_done: int) -> None:
    """Scores public validation records and appends the result to metrics.jsonl, once a step."""
    is_due = num_done % session.evaluate_every == 0 or num_done == session.header.num_steps
    if session.evaluate is None or not is_due:
        return
    metrics = session.workers.from_main(lambda: read_metrics(session.folder, num_done))
    if any(entry["num_steps"] == num_done for entry in metrics):
        return
    metrics.append({"num_steps": num_done, **session.evaluate()})  # every worker computes it
    lines = b"".join(canonical_json(entry) + b"\n" for entry in metrics)
    session.workers.from_main(lambda: replace_file(session.folder.metrics, lines))


def read_metrics(folder: RunFolder, num_steps: int) -> list[dict[str, Any]]:
    """Returns the public measurements up to `num_steps` steps."""
    try:
        lines = folder.metrics.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    entries = [json.loads(line) for line in lines]
    return [entry for entry in entries if entry["num_steps"] <= num_steps]


def _open_without_journal(session: Session) -> tuple[Ledger, None] | None:
    """Returns the ledger of a run whose sealed journal is gone, if it can go on without one."""
    ledger = Ledger.open(session.folder.ledger)
    if not ledger.events:
        return None  # nothing was ever charged: start
    if ledger.of_kind("close"):
        return ledger, None  # complete; nothing private is needed
    if session.mechanism.private_state() or session.leave_one_out is not None:
        raise LedgerError(
            f"{session.folder.journal.path} is gone, and with it what this run needs to continue "
            "(the secret and the posterior, or the holder's report). What was charged stays "
            "charged; start a new run."
        )
    return ledger, None


def _require_same_run(session: Session) -> None:
    """Raises unless the ledger was opened with the settings of this command."""
    recorded = session.ledger.events[0]
    differing = [
        key
        for key in sorted({*recorded, *session.opening})
        if recorded.get(key) != session.opening.get(key)
    ]
    if differing:
        raise LedgerError(
            f"{session.folder.path} was started with other settings; --resume must repeat them. "
            f"Different: {', '.join(differing)}."
        )
    if not session.folder.transcript.read_bytes().startswith(session.header.to_bytes()):
        raise LedgerError(f"{session.folder.transcript} does not start with this run's header.")


def _restore(session: Session, state: dict[str, Any]) -> None:
    """Restores the private state from the sealed journal."""
    if state["pool_digest"] != session.pool_digest:
        raise LedgerError(
            "the training records are not those that this run was started with; --resume must use "
            "the same file, unchanged."
        )
    if (state["leave_one_out"] is None) != (session.leave_one_out is None):
        raise LedgerError("--holder-report must be given, or not, as when the run was started.")
    if session.leave_one_out is not None:
        session.leave_one_out.restore(state["leave_one_out"])
    session.mechanism.restore(state["mechanism"])
