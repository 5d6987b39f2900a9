"""Steps that release symbols: contributions -> sums -> mechanism -> ledger -> replayable move."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from sordino.core.errors import LedgerError, SordinoError
from sordino.ledger.ledger import canonical_json
from sordino.ledger.transcript import StepSymbols, decode_steps, encode_step
from sordino.mechanisms.candidates import SubsetSums, to_fixed_point
from sordino.training.loop import AbstractStepper, commit_to
from sordino.training.replay import replay

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from sordino.gradients.estimators import AbstractEstimator
    from sordino.gradients.parameters import AbstractParameterSpace
    from sordino.ledger.ledger import Ledger
    from sordino.mechanisms.release import AbstractMechanism, Release
    from sordino.training.batch_plan import AbstractPlan
    from sordino.training.leave_one_out import LeaveOneOut
    from sordino.training.loop import Session


class SymbolStepper(AbstractStepper):
    """Releases a few numbers a step, which move the weights along public directions.

    Args:
        plan: Which records a step looks at.
        estimator: Gives their contributions.
        mechanism: Turns sums into releases.
        space: The weights and their public directions.
        membership: Which record (or unit) is in which candidate subset.
        leave_one_out: The holder's report, if it was asked for.
        keeps_subset: Whether the mechanism's secret is to outlive the run.
    """

    def __init__(
        self,
        *,
        plan: AbstractPlan,
        estimator: AbstractEstimator,
        mechanism: AbstractMechanism,
        space: AbstractParameterSpace,
        membership: NDArray[np.bool_],
        leave_one_out: LeaveOneOut | None,
        keeps_subset: bool = False,
    ) -> None:
        self.plan = plan
        self.estimator = estimator
        self.mechanism = mechanism
        self.space = space
        self.membership = membership
        self.leave_one_out = leave_one_out
        self.keeps_subset = keeps_subset
        self.tensors = space.tensors
        self.steps: list[StepSymbols] = []
        self.has_moved = False

    def describe_failure(self) -> str:
        """Returns why nothing moved."""
        return (
            "no sign was unanimous, or every move was below float32 resolution. Raise "
            "--learning-rate, use --on-disagreement coin, or use more records"
        )

    def holder_report(self) -> dict[str, Any] | None:
        """Returns the leave-one-out loss of every record, if it was asked for."""
        return self.leave_one_out.report() if self.leave_one_out is not None else None

    def kept_subset(self) -> int | None:
        """Returns the mechanism's secret, if it is to be kept."""
        return int(self.mechanism.private_state()["secret"]) if self.keeps_subset else None

    def private_state(self) -> dict[str, Any]:
        """Returns the mechanism's state, the holder's report so far, and whether a secret stays."""
        return {
            "mechanism": self.mechanism.private_state(),
            "leave_one_out": self.leave_one_out.state() if self.leave_one_out else None,
            "keeps_subset": self.keeps_subset,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back a `private_state`."""
        if (state["leave_one_out"] is None) != (self.leave_one_out is None):
            raise LedgerError("--holder-report must be given, or not, as when the run was started.")
        if state["keeps_subset"] != self.keeps_subset:
            raise LedgerError("--keep-subset must be given, or not, as when the run was started.")
        if self.leave_one_out is not None:
            self.leave_one_out.restore(state["leave_one_out"])
        self.mechanism.restore(state["mechanism"])

    @property
    def needs_private_state(self) -> bool:
        """Whether a secret, or the holder's report, would be lost."""
        return bool(self.mechanism.private_state()) or self.leave_one_out is not None

    def read_progress(self, session: Session) -> list[StepSymbols]:
        """Returns the symbols of the charged steps, from the transcript."""
        num_steps = len(session.ledger.of_kind("release"))
        raw = session.folder.transcript.read_bytes()[len(session.header.to_bytes()) :]
        where = str(session.folder.transcript)
        steps = decode_steps(session.header, raw, num_steps, where)
        step = find_uncharged_step(session.ledger, steps)
        if step is not None:
            raise LedgerError(f"{where}: step {step} is not what the ledger charged for.")
        return steps

    def catch_up(self, session: Session, progress: list[StepSymbols] | None) -> int:
        """Replays what was released."""
        self.steps = progress or []
        self.has_moved = replay(self.space, session.header, self.steps)
        return len(self.steps)

    def take(self, session: Session, step: int) -> str:
        """Takes one step."""
        symbols, note = run_one_step(session, self, step)
        self.steps.append(symbols)
        header = session.header
        moved = self.space.apply(step, symbols, header.learning_rates[step], header.weight_decay)
        self.has_moved |= moved
        return note

    def go_back_to(
        self, session: Session, num_steps: int, initial: Mapping[str, torch.Tensor]
    ) -> None:
        """Replays the first `num_steps` steps from the start."""
        self.space.reset(initial)
        replay(self.space, session.header, self.steps[:num_steps])


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


def run_one_step(session: Session, stepper: SymbolStepper, step: int) -> tuple[StepSymbols, str]:
    """Returns what one step released, and a note for the holder's progress line."""
    K, workers = session.header.directions_per_step, session.workers
    batches = stepper.plan.batches(step)
    total = SubsetSums(stepper.membership, K, stepper.estimator.bound)
    kept = np.zeros((stepper.membership.shape[0], K)) if stepper.leave_one_out else None
    for records, contributions in stepper.estimator.contributions(step, workers.share(batches)):
        rows, values = np.asarray(records, dtype=np.int64), contributions.numpy()
        total.add(rows, values)
        if kept is not None:
            kept[rows] = to_fixed_point(values, stepper.estimator.bound, total.unit)
    sums = workers.add_up(total.sums)
    if step == 0 and batches and not sums.any():
        raise SordinoError(
            "the loss does not depend on the trainable tensors: every contribution is exactly 0. "
            "Check --lora-targets, and that --perturbation fits the compute dtype."
        )
    if kept is not None:
        kept = workers.add_up(kept)

    def release_on_main() -> tuple[StepSymbols, str]:
        release = stepper.mechanism.release(sums, total.unit, step)
        symbols = StepSymbols(release.integers, release.unit)
        if stepper.leave_one_out is not None and kept is not None:
            stepper.leave_one_out.add(sums, kept, release.integers)
        _record_release(session, step, release, symbols)
        show = stepper.leave_one_out is not None  # the holder asked to see private figures
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
