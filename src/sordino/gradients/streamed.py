"""Full fine-tuning without a second copy: layers are perturbed while the forward pass uses them."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad

from sordino.core.errors import InvalidParameterError
from sordino.gradients.direction_sets import IndependentDirections
from sordino.gradients.parameters import AbstractParameterSpace, _require_float32, _step_scale

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sordino.ledger.transcript import StepSymbols

_ELEMENTS_AT_ONCE = 2**20  # multiple of every direction stream's alignment


class StreamedParameterSpace(AbstractParameterSpace):
    """A large trainable set: its parameters are the float32 master, never perturbed in place.

    While a perturbation is on, each module's own tensors are replaced, for the duration of that
    module's forward pass, by master + scale * direction in the compute dtype; the direction is
    regenerated, never stored. Memory above the master is one layer.

    Args:
        model: The module whose forward pass is run.
        tensors: Trainable parameters by name, float32.
        directions: Public directions over the same names.
        compute_dtype: The dtype that layers compute in.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tensors: Mapping[str, torch.nn.Parameter],
        directions: IndependentDirections,
        compute_dtype: torch.dtype,
    ) -> None:
        if not isinstance(directions, IndependentDirections):
            raise InvalidParameterError(
                "full fine-tuning takes direction_kind rademacher or gaussian: Hadamard "
                "directions are for adapters."
            )
        self.directions = directions
        self.tensors = dict(tensors)
        _require_float32(self.tensors)
        self._compute_dtype = compute_dtype
        self._active: tuple[int, int, float] | None = None  # (step, direction, scale)
        self._tangent: tuple[int, int] | None = None  # (step, direction)
        self._names = {id(p): name for name, p in self.tensors.items()}
        self._stack = ExitStack()
        for module in model.modules():
            own = list(module.parameters(recurse=False))
            if any(id(p) in self._names for p in own):
                self._install(module, own)

    @contextmanager
    def perturbed(self, step: int, index: int, scale: float) -> Iterator[None]:
        """Context in which the model computes at master + scale * direction."""
        self._active = (step, index, scale)
        try:
            yield
        finally:
            self._active = None

    @contextmanager
    def differentiated(self, step: int, index: int) -> Iterator[None]:
        """Context in which the model computes with dual numbers, made layer by layer."""
        self._tangent = (step, index)
        try:
            with forward_ad.dual_level():
                yield
        finally:
            self._tangent = None

    def apply(
        self, step: int, symbols: StepSymbols, learning_rate: float, weight_decay: float
    ) -> bool:
        """Moves the master, a block of a tensor at a time; see the interface."""
        scale = _step_scale(self.directions, symbols.unit, learning_rate)
        has_moved = False
        for name, parameter in self.tensors.items():
            flat = parameter.detach().view(-1)
            for start in range(0, flat.numel(), _ELEMENTS_AT_ONCE):
                block = flat[start : start + _ELEMENTS_AT_ONCE]
                whole = torch.zeros(block.numel(), dtype=torch.float64, device=block.device)
                for k, weight in enumerate(symbols.integers.tolist()):
                    if weight:
                        whole += weight * self._integers(step, k, name, block, start).double()
                moved = block * (1.0 - learning_rate * weight_decay) if weight_decay else block
                moved = moved - (whole * scale).float()
                has_moved = has_moved or not torch.equal(moved, block)
                block.copy_(moved)
        return has_moved

    def reset(self, state: Mapping[str, torch.Tensor]) -> None:
        """Sets the master to a `state`."""
        for name, parameter in self.tensors.items():
            parameter.data.copy_(state[name])

    def rows(self, parameter: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Returns rows of a matrix as the perturbed model would use them."""
        rows = parameter.detach()[indices]
        name = self._names.get(id(parameter))
        if self._active is not None and name is not None:
            step, index, scale = self._active
            whole = self._integers(step, index, name, parameter.detach().view(-1), 0)
            move = whole.view_as(parameter)[indices].to(rows.dtype)
            rows = rows + move * (scale * self.directions.unit)
        rows = rows.to(self._compute_dtype)
        return rows if name is None else self._with_tangent(rows, name, parameter, indices)

    def state(self) -> dict[str, torch.Tensor]:
        """Returns the master tensors by name."""
        return {name: p.detach().cpu() for name, p in self.tensors.items()}

    def close(self) -> None:
        """Removes the hooks from the model."""
        self._stack.close()

    def _integers(
        self, step: int, index: int, name: str, like: torch.Tensor, start: int
    ) -> torch.Tensor:
        """Returns elements of one direction for one tensor, on the tensor's device."""
        block = self.directions.stream.integers(step, index, name, like.numel(), start)
        return torch.from_numpy(block).to(like.device)

    def _install(self, module: torch.nn.Module, own: list[torch.nn.Parameter]) -> None:
        """Makes one module compute with effective tensors."""
        masters: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        replaced: list[tuple[str, torch.nn.Parameter]] = []
        attributes = dict(module.named_parameters(recurse=False))
        is_embedding = type(module) is torch.nn.Embedding  # a subclass may scale or shift

        def before(_module: torch.nn.Module, _args: Any) -> None:
            if self._tangent is not None and not is_embedding:
                for attribute, parameter in attributes.items():
                    dual = self._dual(parameter)
                    replaced.append((attribute, parameter))
                    delattr(module, attribute)
                    setattr(module, attribute, dual)
                return
            if is_embedding or (self._active is None and self._compute_dtype == torch.float32):
                return
            masters.extend((p, p.data) for p in own)
            for parameter in own:
                parameter.data = self._effective(parameter)

        def after(_module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            for parameter, master in masters:
                parameter.data = master
            masters.clear()
            for attribute, parameter in replaced:
                delattr(module, attribute)
                module.register_parameter(attribute, parameter)
            replaced.clear()
            if is_embedding and output is not None:  # None: the forward pass raised
                return self._embed(own[0], args[0], output)
            return output

        # always_call: the master comes back even when the forward pass raises
        self._stack.callback(module.register_forward_pre_hook(before).remove)
        self._stack.callback(module.register_forward_hook(after, always_call=True).remove)

    def _effective(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Returns master + scale * direction in the compute dtype."""
        name = self._names.get(id(parameter))
        if self._active is None or name is None:
            return parameter.data.to(self._compute_dtype)
        step, index, scale = self._active
        master = parameter.data.reshape(-1)
        result = torch.empty(master.numel(), dtype=self._compute_dtype, device=master.device)
        for start in range(0, master.numel(), _ELEMENTS_AT_ONCE):
            block = master[start : start + _ELEMENTS_AT_ONCE]
            move = self._integers(step, index, name, block, start).to(torch.float32)
            torch.add(block, move, alpha=scale * self.directions.unit, out=move)
            result[start : start + _ELEMENTS_AT_ONCE] = move
        return result.view_as(parameter)

    def _dual(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Returns (master, direction) in the compute dtype; a frozen tensor has no direction."""
        value = parameter.detach().to(self._compute_dtype)
        name = self._names.get(id(parameter))
        if self._tangent is None or name is None:
            return value
        step, index = self._tangent
        master = parameter.detach().reshape(-1)
        tangent = torch.empty(master.numel(), dtype=self._compute_dtype, device=master.device)
        for start in range(0, master.numel(), _ELEMENTS_AT_ONCE):
            block = master[start : start + _ELEMENTS_AT_ONCE]
            whole = self._integers(step, index, name, block, start).to(torch.float32)
            tangent[start : start + _ELEMENTS_AT_ONCE] = whole * self.directions.unit
        return forward_ad.make_dual(value, tangent.view_as(parameter))

    def _with_tangent(
        self, rows: torch.Tensor, name: str, parameter: torch.Tensor, indices: torch.Tensor
    ) -> torch.Tensor:
        """Returns rows of a parameter as dual numbers while derivatives are on."""
        if self._tangent is None:
            return rows
        step, index = self._tangent
        whole = self._integers(step, index, name, parameter.detach().view(-1), 0)
        move = whole.view_as(parameter)[indices].to(torch.float32) * self.directions.unit
        return forward_ad.make_dual(rows, move.to(rows.dtype))

    def _embed(
        self, weight: torch.nn.Parameter, tokens: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        """Returns embedded tokens under the perturbation, without perturbing the whole table."""
        name = self._names.get(id(weight))
        if self._active is not None and name is not None:
            step, index, scale = self._active
            whole = self._integers(step, index, name, weight.detach().view(-1), 0)
            move = whole.view_as(weight)[tokens].to(output.dtype)
            output = output + move * (scale * self.directions.unit)
        output = output.to(self._compute_dtype)
        return output if name is None else self._with_tangent(output, name, weight, tokens)
