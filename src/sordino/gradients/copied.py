"""Full fine-tuning by gradients: a float32 master, and the copy of the model that computes."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from sordino.core.errors import InvalidParameterError
from sordino.gradients.parameters import AbstractParameterSpace, _require_float32, _step_scale

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sordino.gradients.kronecker import KroneckerDirections
    from sordino.ledger.transcript import StepSymbols


class ComputingCopy:
    """The model that computes beside a float32 master: a copy in another dtype, or the master.

    A backward pass needs a layer's weight again long after the forward pass, so weights in another
    compute dtype are held as a copy of the model.

    Args:
        model: The module that holds the tensors.
        tensors: Trainable parameters by name, float32: the master.
        dtype: The dtype that layers compute in.
    """

    def __init__(
        self, model: Any, tensors: Mapping[str, torch.nn.Parameter], dtype: torch.dtype
    ) -> None:
        self._tensors = tensors
        self.model = model
        self.computing = dict(tensors)  # by the same names, as `self.model` uses them
        self._is_master = dtype == torch.float32
        if not self._is_master:
            twins: dict[int, Any] = {}
            self.model = copy.deepcopy(model, twins)
            self.computing = {name: twins[id(p)] for name, p in tensors.items()}
            for parameter in self.model.parameters():  # not buffers: angles need all their bits
                parameter.data = parameter.data.to(dtype)

    def refresh(self) -> None:
        """Makes the copy follow the master."""
        if not self._is_master:
            for name, parameter in self.computing.items():
                parameter.data.copy_(self._tensors[name].data)


class CopiedParameterSpace(AbstractParameterSpace):
    """A large trainable set that is never perturbed: its own parameters are the float32 master.

    Args:
        model: The module that holds the tensors; None for a replay without a model.
        tensors: Trainable parameters by name, float32.
        directions: Public directions over the same names.
        compute_dtype: The dtype that layers compute in.
    """

    def __init__(
        self,
        model: Any,
        tensors: Mapping[str, torch.nn.Parameter],
        directions: KroneckerDirections,
        compute_dtype: torch.dtype,
    ) -> None:
        self.directions: KroneckerDirections = directions
        self.tensors = dict(tensors)
        _require_float32(self.tensors)
        copied = None if model is None else ComputingCopy(model, self.tensors, compute_dtype)
        self.model = None if copied is None else copied.model
        self.computing = self.tensors if copied is None else copied.computing
        self._copied = copied

    @contextmanager
    def perturbed(self, step: int, index: int, scale: float) -> Iterator[None]:  # noqa: ARG002
        """Refuses: a perturbation would be one more copy of all weights."""
        raise InvalidParameterError(
            "full fine-tuning along kronecker directions is for --estimator first-order: use "
            "--direction-kind rademacher."
        )
        yield

    @contextmanager
    def differentiated(self, step: int, index: int) -> Iterator[None]:  # noqa: ARG002
        """Refuses: forward mode is for one direction a step, which need not be structured."""
        raise InvalidParameterError(
            "forward mode over all weights takes --direction-kind rademacher or gaussian."
        )
        yield

    def apply(
        self, step: int, symbols: StepSymbols, learning_rate: float, weight_decay: float
    ) -> bool:
        """Moves the master, some rows of a tensor at a time; see the interface."""
        scale = _step_scale(self.directions, symbols.unit, learning_rate)
        has_moved = False
        for name, parameter in self.tensors.items():
            flat = parameter.detach().view(-1)
            start = 0
            blocks = self.directions.combine_tensor(step, symbols.integers, name, flat.device)
            for _, whole in blocks:
                block = flat[start : start + whole.numel()]
                moved = block * (1.0 - learning_rate * weight_decay) if weight_decay else block
                moved = moved - (whole.reshape(-1) * scale).float()
                has_moved = has_moved or not torch.equal(moved, block)
                block.copy_(moved)
                start += whole.numel()
        self._refresh()
        return has_moved

    def reset(self, state: Mapping[str, torch.Tensor]) -> None:
        """Sets the master to a `state`."""
        for name, parameter in self.tensors.items():
            parameter.data.copy_(state[name])
        self._refresh()

    def rows(self, parameter: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Returns the rows as they are."""
        return parameter[indices]

    def state(self) -> dict[str, torch.Tensor]:
        """Returns the master tensors by name."""
        return {name: p.detach().cpu() for name, p in self.tensors.items()}

    def _refresh(self) -> None:
        """Makes the computing copy follow the master."""
        if self._copied is not None:
            self._copied.refresh()
