"""The one training loop: what every step does, whatever it releases."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sordino.core.errors import LedgerError
from sordino.ledger.durable import replace_file
from sordino.ledger.journal import Commit
from sordino.ledger.ledger import Ledger, canonical_json
from sordino.training.progress import progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from sordino.ledger.transcript import TranscriptHeader
    from sordino.training.run_folder import RunFolder
    from sordino.training.workers import Workers


class AbstractStepper(ABC):
    """What a step does: from records to a charged release, and from that to moved weights."""

    tensors: dict[str, torch.nn.Parameter]  # the trainable ones: the float32 master
    has_moved: bool

    @abstractmethod
    def describe_failure(self) -> str:
        """Returns why nothing moved, and what to do, for an error message."""

    @abstractmethod
    def holder_report(self) -> dict[str, Any] | None:
        """Returns what only the data holder may see, if it was asked for."""

    @abstractmethod
    def kept_subset(self) -> int | None:
        """Returns the number of the secret subset, if it is to outlive the run; main process."""

    @abstractmethod
    def private_state(self) -> dict[str, Any]:
        """Returns what must survive a crash and must not leave the holder, for the journal."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Takes back a `private_state`; the main process calls it."""

    @property
    @abstractmethod
    def needs_private_state(self) -> bool:
        """Whether a run cannot go on without its `private_state`."""

    @abstractmethod
    def read_progress(self, session: Session) -> Any:
        """Returns what the charged steps released, from the run's files; main process only.

        Raises:
            LedgerError: If the files contradict the ledger.
        """

    @abstractmethod
    def catch_up(self, session: Session, progress: Any) -> int:
        """Brings the weights to where the charged steps left them; every worker calls it.

        Returns:
            The number of charged steps.
        """

    @abstractmethod
    def take(self, session: Session, step: int) -> str:
        """Takes one step; every worker calls it.

        Returns:
            A note for the holder's progress line.
        """

    @abstractmethod
    def go_back_to(
        self, session: Session, num_steps: int, initial: Mapping[str, torch.Tensor]
    ) -> None:
        """Sets the weights to those after `num_steps` steps."""


@dataclass(kw_only=True, slots=True)
class Session:
    """The parts of a run that the loop connects."""

    folder: RunFolder
    header: TranscriptHeader
    opening: dict[str, Any]
    stepper: AbstractStepper
    workers: Workers
    evaluate: Callable[[], dict[str, float]] | None  # on public records
    evaluate_every: int
    pool_digest: str
    ledger: Ledger = field(init=False)

    def private_state(self) -> dict[str, Any]:
        """Returns everything that must survive a crash and must not leave the holder."""
        return {"pool_digest": self.pool_digest, **self.stepper.private_state()}


def open_run(session: Session, *, resume: bool) -> Any:
    """Starts the run's files, or finishes what a crash interrupted and reads what was released.

    Returns:
        What `run_steps` needs on every worker to catch up.

    Raises:
        LedgerError: If the files contradict each other, the settings or the data.
    """
    recovered = session.folder.journal.recover() if resume else None
    if recovered is None:
        recovered = _open_without_journal(session) if resume else None
    if recovered is None:
        session.ledger = Ledger(session.folder.ledger)
        commit_to(session, session.opening, 0, session.header.to_bytes())
        return None
    session.ledger, state = recovered
    _require_same_run(session)
    if state is not None:
        if state["pool_digest"] != session.pool_digest:
            raise LedgerError(
                "the training records are not those that this run was started with; --resume must "
                "use the same file, unchanged."
            )
        session.stepper.restore(state)
    return session.stepper.read_progress(session)


def run_steps(session: Session, progress_so_far: Any) -> None:
    """Runs the steps that are left; every worker calls it.

    Args:
        session: An opened run.
        progress_so_far: What `open_run` returned on the main process.
    """
    header, stepper = session.header, session.stepper
    start = stepper.catch_up(session, progress_so_far)
    _evaluate_if_due(session, start)
    is_main = session.workers.is_main
    with progress("tune", header.num_steps, start=start, enabled=is_main) as advance:
        for step in range(start, header.num_steps):
            note = stepper.take(session, step)
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
    if session.stepper.needs_private_state:
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
