"""The trainable tensors: one exact float32 master, perturbed for a while, moved only by releases.

A perturbation never writes to the master, so nothing drifts however long a run is and however low
the compute precision: small sets (adapters) are perturbed in a separate copy, large ones (full
fine-tuning) layer by layer while the forward pass goes through them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.autograd import forward_ad

from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sordino.gradients.direction_sets import AbstractDirectionSet
    from sordino.ledger.transcript import StepSymbols


class AbstractParameterSpace(ABC):
    """Trainable tensors and the public directions along which they move."""

    directions: AbstractDirectionSet
    tensors: dict[str, torch.nn.Parameter]

    @abstractmethod
    def perturbed(self, step: int, index: int, scale: float) -> Iterator[None]:
        """Context in which the model computes at master + scale * direction."""

    @abstractmethod
    def differentiated(self, step: int, index: int) -> Iterator[None]:
        """Context in which the model computes with dual numbers: (master, direction).

        What it returns carries its derivative along the direction (`torch.autograd.forward_ad`);
        the values themselves are those of the master.
        """

    @abstractmethod
    def apply(
        self, step: int, symbols: StepSymbols, learning_rate: float, weight_decay: float
    ) -> bool:
        """Moves the master: theta <- (1 - lr wd) theta - lr / K * sum_k b_k z_k.

        The sum is a whole number, so the result is the same bits on every device and with any
        number of workers: one rounding for the decay, one for the move, one for the difference.

        Returns:
            Whether any trainable number changed.
        """

    @abstractmethod
    def reset(self, state: Mapping[str, torch.Tensor]) -> None:
        """Sets the master to a `state`."""

    @abstractmethod
    def rows(self, parameter: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Returns rows of a matrix as the model would use them now (for a partial read-out)."""

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """Returns the master tensors by name, float32, on the CPU."""


def _step_scale(directions: AbstractDirectionSet, unit: float, learning_rate: float) -> float:
    """Returns what one whole number of the combined direction moves a parameter by."""
    return learning_rate * unit * directions.unit / directions.num_directions


class FlatParameterSpace(AbstractParameterSpace):
    """A small trainable set (an adapter) with a flat float32 master beside the live tensors.

    Args:
        tensors: Trainable parameters by name; they become views of one flat buffer.
        directions: Public directions over the same names, in the same order.
    """

    def __init__(
        self, tensors: Mapping[str, torch.nn.Parameter], directions: AbstractDirectionSet
    ) -> None:
        self.directions = directions
        self.tensors = dict(tensors)
        _require_float32(self.tensors)
        flat = torch.cat([p.detach().reshape(-1) for p in self.tensors.values()])
        self._live = flat.clone()
        self._master = flat
        offset = 0
        for parameter in self.tensors.values():
            size = parameter.numel()
            parameter.data = self._live[offset : offset + size].view_as(parameter)
            offset += size

    @contextmanager
    def perturbed(self, step: int, index: int, scale: float) -> Iterator[None]:
        """Context in which the live tensors are master + scale * direction."""
        direction = torch.from_numpy(self.directions.direction(step, index))
        move = direction.to(self._live.device, torch.float32)
        torch.add(self._master, move, alpha=scale * self.directions.unit, out=self._live)
        try:
            yield
        finally:
            self._live.copy_(self._master)

    @contextmanager
    def differentiated(self, step: int, index: int) -> Iterator[None]:
        """Context in which the live tensors are dual numbers; their values stay what they are."""
        direction = torch.from_numpy(self.directions.direction(step, index))
        tangents = direction.to(self._live.device, torch.float32) * self.directions.unit
        parts = tangents.split([p.numel() for p in self.tensors.values()])
        with torch.no_grad(), forward_ad.dual_level():  # leaving the level drops all tangents
            for parameter, part in zip(self.tensors.values(), parts, strict=True):
                dual = forward_ad.make_dual(parameter.clone(), part.view_as(parameter))
                parameter.copy_(dual)  # in place: the modules hold this very tensor
            yield

    def apply(
        self, step: int, symbols: StepSymbols, learning_rate: float, weight_decay: float
    ) -> bool:
        """Moves the master; see the interface."""
        whole = torch.from_numpy(self.directions.combine(step, symbols.integers))
        move = (whole * _step_scale(self.directions, symbols.unit, learning_rate)).float()
        if weight_decay:
            self._master.mul_(1.0 - learning_rate * weight_decay)
        self._master.sub_(move.to(self._master.device))
        has_moved = not torch.equal(self._live, self._master)
        self._live.copy_(self._master)
        return has_moved

    def reset(self, state: Mapping[str, torch.Tensor]) -> None:
        """Sets the master to a `state`."""
        parts = [state[name].reshape(-1) for name in self.tensors]
        self._master.copy_(torch.cat(parts))
        self._live.copy_(self._master)

    def rows(self, parameter: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Returns the rows as they are."""
        return parameter[indices]

    def state(self) -> dict[str, torch.Tensor]:
        """Returns the master tensors by name."""
        sizes = [p.numel() for p in self.tensors.values()]
        parts = self._master.detach().cpu().split(sizes)
        return {
            name: part.view_as(p).clone()
            for (name, p), part in zip(self.tensors.items(), parts, strict=True)
        }


def _require_float32(tensors: Mapping[str, torch.nn.Parameter]) -> None:
    """Raises unless there is something to train, in float32."""
    if not tensors:
        raise InvalidParameterError(
            "no trainable tensor: nothing would ever move. Check --adapter and --lora-targets."
        )
    for name, parameter in tensors.items():
        if parameter.dtype != torch.float32:
            raise InvalidParameterError(
                f"trainable tensors must be float32 (a move is lost in fewer bits), but {name} "
                f"is {parameter.dtype}."
            )
