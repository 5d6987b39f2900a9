"""Steps of gradient descent: DP-SGD and DP-AdamW, and the same without privacy.

Per-unit clipped gradients are added up, noise is added once, and an ordinary optimizer moves the
weights. The noisy gradients are as large as the weights, so they are not published: a run has no
transcript to replay, and a crash costs the steps since the last checkpoint. They stay charged.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sordino.core.errors import InvalidParameterError, LedgerError, SordinoError
from sordino.gradients.attention import CausalAttentionMode
from sordino.gradients.objectives import require_differentiable
from sordino.mechanisms.noise import add_noise
from sordino.training.checkpoint import read_checkpoint, write_checkpoint
from sordino.training.loop import AbstractStepper, commit_to

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sordino.core.secret_stream import SecretStream
    from sordino.gradients.clipped import ClippedGradients
    from sordino.gradients.copied import ComputingCopy
    from sordino.gradients.objectives import AbstractObjective, LanguageModel
    from sordino.training.batch_plan import AbstractPlan
    from sordino.training.loop import Session
    from sordino.training.retain import Retention

OPTIMIZERS = ("adamw", "sgd")
_BETAS, _SMALL = (0.9, 0.999), 1e-8  # torch's own, written down: they decide what a run gives
_NUM_CHECKPOINTS = 20
_SMALL_CHECKPOINT = 2**24  # bytes; below it, every step is kept


class LostStepsWarning(UserWarning):
    """Steps were charged, and a crash lost what they did."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run got before this process took it up."""

    num_charged: int
    checkpoint: dict[str, torch.Tensor] | None
    is_closed: bool


class AbstractGradientSum(ABC):
    """Adds up the gradients of a batch, into totals by name."""

    @abstractmethod
    def add_batch(self, total: dict[str, torch.Tensor], batch: Sequence[int]) -> None:
        """Adds what the records of one batch give, float32."""


class ClippedSum(AbstractGradientSum):
    """Gradients of units, clipped one by one: what differential privacy needs."""

    def __init__(self, gradients: ClippedGradients, unit_of: Sequence[int]) -> None:
        self._gradients = gradients
        self._unit_of = unit_of

    def add_batch(self, total: dict[str, torch.Tensor], batch: Sequence[int]) -> None:
        """Adds clipped gradients."""
        self._gradients.add_batch(total, batch, [int(self._unit_of[i]) for i in batch])


class PlainSum(AbstractGradientSum):
    """Gradients as they are: no privacy.

    Args:
        model: The language model.
        objective: Differentiable losses per record.
        tensors: Trainable parameters of `model` by name, as it computes with them.
        is_shared: Whether what records begin with alike is computed once.
    """

    def __init__(
        self,
        model: LanguageModel,
        objective: AbstractObjective,
        tensors: Mapping[str, torch.nn.Parameter],
        *,
        is_shared: bool = False,
    ) -> None:
        require_differentiable(objective)
        self._is_shared = is_shared
        self._model = model
        self._objective = objective
        self._tensors = tensors

    def add_batch(self, total: dict[str, torch.Tensor], batch: Sequence[int]) -> None:
        """Adds the gradient of the batch's losses."""
        tensors = self._tensors
        self._objective.prepare(self._model, batch)
        for parameter in tensors.values():
            parameter.requires_grad_(requires_grad=True)
        with CausalAttentionMode():
            if self._is_shared and len(batch) > 1:
                loss = self._objective.shared_loss(self._model, batch)
            else:
                loss = self._objective.losses(self._model, batch).sum()
        found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
        for parameter in tensors.values():
            parameter.requires_grad_(requires_grad=False)
        for name, gradient in zip(tensors, found, strict=True):
            if gradient is not None:
                total[name] += gradient


class GradientStepper(AbstractStepper):
    """Moves the weights along (noisy) gradients with AdamW or SGD.

    Args:
        plan: Which records a step looks at.
        gradients: Adds up their gradients.
        tensors: Trainable parameters by name, float32: the master.
        copied: The model that computes, if it is not the master.
        optimizer: "adamw" or "sgd" (without momentum).
        stream: Secret noise; None without privacy, and on the other workers.
        noise_std: Standard deviation of the noise on each coordinate of the sum; 0: no privacy.
        retention: Adds what holds the model to its base, after the noise; None: nothing does.
    """

    def __init__(
        self,
        *,
        plan: AbstractPlan,
        gradients: AbstractGradientSum,
        tensors: Mapping[str, torch.nn.Parameter],
        copied: ComputingCopy | None,
        optimizer: str,
        stream: SecretStream | None,
        noise_std: float,
        retention: Retention | None = None,
    ) -> None:
        self.plan = plan
        self.tensors = dict(tensors)
        self.has_moved = False
        self._gradients = gradients
        self._copied = copied
        self._stream = stream
        self._noise_std = noise_std
        self._retention = retention
        self._sees_gradients = False  # noise moves weights even if nothing is learned
        self._optimizer = _make_optimizer(optimizer, list(self.tensors.values()))

    def describe_failure(self) -> str:
        """Returns why nothing moved."""
        return "every gradient was 0. Check --lora-targets"

    def holder_report(self) -> None:
        """Returns nothing: leave-one-out losses are for released signs."""

    def kept_subset(self) -> None:
        """Returns nothing: there is no subset."""

    def private_state(self) -> dict[str, Any]:
        """Returns nothing: the secrets of a step end with it."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Needs nothing."""

    @property
    def needs_private_state(self) -> bool:
        """Whether a secret would be lost: there is none."""
        return False

    def read_progress(self, session: Session) -> Progress:
        """Returns the number of charged steps, and the last checkpoint."""
        num_charged = len(session.ledger.of_kind("release"))
        if session.ledger.of_kind("close"):
            return Progress(num_charged, None, is_closed=True)
        kept = read_checkpoint(session.folder.checkpoint)
        if kept is not None and not 0 < int(kept["step"]) <= num_charged:
            raise LedgerError(
                f"{session.folder.checkpoint}: of step {int(kept['step'])}, but "
                f"{num_charged} steps are charged; it is not of this run."
            )
        return Progress(num_charged, kept, is_closed=False)

    def catch_up(self, session: Session, progress: Progress | None) -> int:
        """Takes back the last checkpoint; steps after it are lost and stay charged."""
        if progress is None:
            return 0
        num_charged, kept = progress.num_charged, progress.checkpoint
        if progress.is_closed:  # the artefact is written; only the papers are missing
            return num_charged
        if kept is not None:
            self._take_back(kept)
        lost = num_charged - (0 if kept is None else int(kept["step"]))
        if lost and session.workers.is_main:
            warnings.warn(
                f"the crash lost what {lost} charged steps did; their budget stays spent, and the "
                f"run goes on with step {num_charged + 1} of {session.header.num_steps}.",
                LostStepsWarning,
                stacklevel=2,
            )
        return num_charged

    def take(self, session: Session, step: int) -> str:
        """Takes one step: gradients, charge, noise, move."""
        total = {name: torch.zeros_like(p) for name, p in self.tensors.items()}
        batches = self.plan.batches(step)
        for batch in session.workers.share(batches):
            self._gradients.add_batch(total, batch)
        for values in total.values():
            session.workers.add_up_tensor(values)
        self._sees_gradients |= any(bool(values.any()) for values in total.values())
        if batches and not self._sees_gradients:
            raise SordinoError(
                "the loss does not depend on the trainable tensors: every gradient is exactly 0. "
                "Check --lora-targets."
            )
        session.workers.from_main(lambda: self._charge_and_add_noise(session, step, total))
        for values in total.values():
            session.workers.spread_tensor(values)
        if self._retention is not None:
            self._retention.add_to(
                total, step, session.workers, records_per_step=self.plan.records_per_step
            )
        self._move(session, step, total)
        self._keep(session, step + 1)
        return ""

    def go_back_to(self, *_what: Any) -> None:
        """Refuses: what earlier steps did is not kept."""
        raise InvalidParameterError(
            "--select best replays a transcript, which a run on gradients does not have; use "
            "--select last."
        )

    def _charge_and_add_noise(
        self, session: Session, step: int, total: dict[str, torch.Tensor]
    ) -> None:
        """Charges the step, then adds the noise: once, on the main process."""
        for name, values in total.items():
            if not bool(values.isfinite().all()):
                raise SordinoError(
                    f"the gradient of {name} is NaN or infinite; nothing was released. Lower the "
                    "learning rate, or compute in float32."
                )
        event = {
            "kind": "release",
            "step": step,
            "num_releases": sum(values.numel() for values in total.values()),
            "mutual_information_nats": None,
        }
        commit_to(session, event, len(session.header.to_bytes()), b"")
        if self._noise_std > 0:
            if self._stream is None:
                raise RuntimeError("only the main process adds noise.")
            for values in total.values():
                add_noise(values, self._stream, self._noise_std)

    def _move(self, session: Session, step: int, total: dict[str, torch.Tensor]) -> None:
        """Lets the optimizer move the master, and the computing copy follow."""
        header = session.header
        group = self._optimizer.param_groups[0]
        group["lr"], group["weight_decay"] = header.learning_rates[step], header.weight_decay
        for name, parameter in self.tensors.items():
            parameter.grad = total[name].div_(self.plan.records_per_step)
            self.has_moved = self.has_moved or bool(parameter.grad.any())
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._copied is not None:
            self._copied.refresh()

    def _keep(self, session: Session, num_done: int) -> None:
        """Writes a checkpoint if one is due."""
        num_bytes = sum(3 * 4 * p.numel() for p in self.tensors.values())
        num_steps = session.header.num_steps
        every = 1 if num_bytes <= _SMALL_CHECKPOINT else -(-num_steps // _NUM_CHECKPOINTS)
        if not session.workers.is_main or (num_done % every and num_done != num_steps):
            return
        names = {id(p): name for name, p in self.tensors.items()}
        kept = {f"master.{name}": p.detach() for name, p in self.tensors.items()}
        for parameter, state in self._optimizer.state.items():
            for key, value in state.items():
                kept[f"{key}.{names[id(parameter)]}"] = torch.as_tensor(value)
        kept["step"] = torch.tensor(num_done)
        write_checkpoint(session.folder.checkpoint, kept)

    def _take_back(self, kept: dict[str, torch.Tensor]) -> None:
        """Sets weights and optimizer to a checkpoint."""
        for name, parameter in self.tensors.items():
            parameter.data.copy_(kept[f"master.{name}"])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"{key}.{name}" in kept:
                    value = kept[f"{key}.{name}"]
                    place = "cpu" if key == "step" else parameter.device
                    self._optimizer.state[parameter][key] = value.to(place)
        self.has_moved = True
        if self._copied is not None:
            self._copied.refresh()


def _make_optimizer(name: str, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Returns the optimizer; rate and decay are set step by step."""
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=1.0, betas=_BETAS, eps=_SMALL, weight_decay=0.0)
    return torch.optim.SGD(parameters, lr=1.0)
