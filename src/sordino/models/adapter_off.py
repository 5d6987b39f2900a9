"""An adapted model as its base, for a while."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def adapter_off(adapted: Any) -> Iterator[None]:
    """Context in which a PEFT model computes as its base; what is trainable stays as it was."""
    flags = [(parameter, parameter.requires_grad) for parameter in adapted.parameters()]
    try:
        with adapted.disable_adapter():
            yield
    finally:
        for parameter, flag in flags:  # PEFT makes adapters trainable when it switches them on
            parameter.requires_grad_(requires_grad=flag)
