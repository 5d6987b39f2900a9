"""One process or several: what `accelerate launch` started, behind five small functions.

Workers share the forward passes; the main process alone draws secret randomness and writes files.
Sums travel as whole numbers in float64, so their total does not depend on the number of workers.
"""

from __future__ import annotations

import atexit
import gc
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, TypeVar

import torch

from sordino.core.errors import SordinoError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from accelerate import PartialState
    from numpy.typing import NDArray

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Workers:
    """The processes of this run and the device that this one computes on."""

    state: PartialState
    device: str

    @classmethod
    def start(cls, device: str) -> Workers:
        """Joins the processes that `accelerate launch` started, or stands alone.

        Args:
            device: "auto", "cpu", "cuda" or "cuda:N".
        """
        from accelerate import PartialState

        wants_gpu = device != "cpu" and torch.cuda.is_available()
        state = PartialState(cpu=not wants_gpu)
        if state.num_processes > 1:
            atexit.register(_leave_group)
        if device in ("auto", "cuda") and wants_gpu:
            return cls(state, f"cuda:{state.local_process_index}")
        return cls(state, "cpu" if device == "auto" else device)

    @property
    def is_main(self) -> bool:
        """Whether this process draws entropy and writes files."""
        return bool(self.state.is_main_process)

    def share(self, items: Sequence[_T]) -> list[_T]:
        """Returns this worker's share of `items`; it may be empty and still takes part."""
        return list(items[self.state.process_index :: self.state.num_processes])

    def add_up(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the sum over all workers, exact for whole numbers below 2**53."""
        if self.state.num_processes == 1:
            return sums
        from accelerate.utils import reduce

        total = reduce(torch.from_numpy(sums).to(self.state.device), reduction="sum")
        return total.cpu().numpy()

    def add_up_tensor(self, values: torch.Tensor) -> None:
        """Replaces values by their sum over all workers."""
        if self.state.num_processes > 1:
            torch.distributed.all_reduce(values)

    def spread_tensor(self, values: torch.Tensor) -> None:
        """Replaces values by those of the main process."""
        if self.state.num_processes > 1:
            torch.distributed.broadcast(values, src=0)

    def from_main(self, compute: Callable[[], _T]) -> _T:
        """Returns what `compute` returns on the main process; raises its error on every worker."""
        if self.state.num_processes == 1:
            return compute()
        from accelerate.utils import broadcast_object_list

        box: list[object] = [None, None]
        failure: BaseException | None = None
        if self.is_main:
            try:
                box[0] = compute()
            except Exception as error:  # noqa: BLE001 - told to all workers, then raised
                failure = error
                box[1] = str(error) if isinstance(error, SordinoError) else type(error).__name__
        broadcast_object_list(box)
        if failure is not None:
            raise failure
        if box[1] is not None:
            raise SordinoError(f"the main process stopped: {box[1]}")
        return box[0]  # type: ignore[return-value]


def _leave_group() -> None:
    """Ends the process group, with its threads, before the interpreter does.

    After a collective, a thread of gloo gives back its tensors, which takes the interpreter's
    lock. If the interpreter is ending by then, Python ends the thread instead, and C++ aborts
    the process ("terminate called without an active exception"). The last reference to the group
    joins its threads, so none may be left: modules of torch.distributed that are imported after
    the group was made keep it as the default argument of their functions.
    """
    if not torch.distributed.is_initialized():
        return
    group = torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()
    for item in gc.get_objects():
        # by type, since isinstance asks lazy proxies for their class
        if type(item) is FunctionType and item.__defaults__:
            defaults = item.__defaults__
            if any(value is group for value in defaults):
                item.__defaults__ = tuple(None if value is group else value for value in defaults)
