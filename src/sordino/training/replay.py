"""From the transcript back to the weights: the base model plus released symbols, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sordino.core.errors import InvalidParameterError, LedgerError
from sordino.gradients.copied import CopiedParameterSpace
from sordino.gradients.direction_sets import IndependentDirections, make_direction_set
from sordino.gradients.kronecker import KroneckerDirections
from sordino.gradients.parameters import FlatParameterSpace
from sordino.gradients.streamed import StreamedParameterSpace
from sordino.models import initial_adapter_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sordino.gradients.parameters import AbstractParameterSpace
    from sordino.ledger.transcript import StepSymbols, TranscriptHeader


def make_space(
    header: TranscriptHeader,
    tensors: Mapping[str, torch.nn.Parameter],
    *,
    model: torch.nn.Module | None = None,
    compute_dtype: torch.dtype = torch.float32,
) -> AbstractParameterSpace:
    """Returns the parameter space that a transcript's header describes, over given tensors.

    Args:
        header: Public settings.
        tensors: Trainable parameters by name.
        model: The model that computes with them; needed for full fine-tuning.
        compute_dtype: The dtype that the layers of a fully tuned model compute in.
    """
    found = {name: tuple(p.shape) for name, p in tensors.items()}
    if found != dict(header.tensors):
        raise LedgerError(
            f"the transcript moves {len(header.tensors)} tensors that are not those of the model "
            f"({len(found)} trainable); this is another base model or another adapter."
        )
    directions = make_direction_set(
        header.direction_kind, header.seed, header.tensors, header.directions_per_step
    )
    if header.adapter["kind"] == "full" and isinstance(directions, KroneckerDirections):
        return CopiedParameterSpace(model, tensors, directions, compute_dtype)
    if header.adapter["kind"] == "full" and isinstance(directions, IndependentDirections):
        return StreamedParameterSpace(
            model or torch.nn.Module(), tensors, directions, compute_dtype
        )
    if header.adapter["kind"] == "full" and compute_dtype != torch.float32:
        raise InvalidParameterError(
            "full fine-tuning along Hadamard directions computes in float32: give --dtype float32, "
            "or --direction-kind rademacher."
        )
    return FlatParameterSpace(tensors, directions)


def initial_tensors(header: TranscriptHeader) -> dict[str, torch.nn.Parameter]:
    """Returns an adapter's tensors before the first step, from the public seed alone."""
    return {
        name: torch.nn.Parameter(
            initial_adapter_tensor(name, shape, header.seed), requires_grad=False
        )
        for name, shape in header.tensors.items()
    }


def replay(
    space: AbstractParameterSpace,
    header: TranscriptHeader,
    steps: Sequence[StepSymbols],
) -> bool:
    """Applies released steps, in order, to a space at the start of the run.

    Returns:
        Whether any trainable number changed.
    """
    moves = [
        space.apply(step, symbols, header.learning_rates[step], header.weight_decay)
        for step, symbols in enumerate(steps)
    ]
    return any(moves)
