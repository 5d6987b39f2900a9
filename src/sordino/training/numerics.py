"""Does the perturbation fit the compute type? Measured on public sentences, before it matters."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from sordino.gradients.objectives import AbstractObjective, LanguageModel
    from sordino.gradients.parameters import AbstractParameterSpace

LOWEST_CORRELATION = 0.9


class PerturbationWarning(UserWarning):
    """The finite difference is mostly rounding noise."""


def warn_if_perturbation_does_not_fit(
    model: LanguageModel,
    objective: AbstractObjective,
    space: AbstractParameterSpace,
    perturbation: float,
) -> float:
    """Returns the correlation of finite differences with exact directional derivatives; warns.

    Args:
        model: The language model.
        objective: A differentiable objective over public records only.
        space: Trainable tensors at the start of the run.
        perturbation: Step of the central difference.
    """
    records = range(len(objective.lengths))
    with torch.no_grad():
        with space.perturbed(0, 0, perturbation):
            upper = objective.losses(model, records)
        with space.perturbed(0, 0, -perturbation):
            lower = objective.losses(model, records)
    differences = ((upper - lower) / (2.0 * perturbation)).double().cpu().numpy()
    exact = _exact_derivatives(model, objective, space)
    spread = differences.std() * exact.std()
    correlation = float(np.corrcoef(differences, exact)[0, 1]) if spread > 0 else 0.0
    if not correlation >= LOWEST_CORRELATION:  # NaN warns too
        warnings.warn(
            f"the perturbation {perturbation:g} does not fit the compute dtype: over "
            f"{len(exact)} public sentences its finite differences correlate {correlation:.2f} "
            "with the exact derivatives (0.9 or more is wanted). Try a larger --perturbation, or "
            "--dtype float32.",
            PerturbationWarning,
            stacklevel=2,
        )
    return correlation


def _exact_derivatives(
    model: LanguageModel, objective: AbstractObjective, space: AbstractParameterSpace
) -> np.ndarray:
    """Returns each record's exact derivative along the first direction, by backpropagation."""
    direction = torch.from_numpy(space.directions.direction(0, 0)).double() * space.directions.unit
    parameters = list(space.tensors.values())
    for parameter in parameters:
        parameter.requires_grad_(requires_grad=True)
    try:
        result = []
        for record in range(len(objective.lengths)):
            loss = objective.losses(model, [record]).sum()
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            flat = [
                torch.zeros(p.numel()) if g is None else g.reshape(-1).cpu()
                for g, p in zip(gradients, parameters, strict=True)
            ]
            result.append(float(torch.cat(flat).double() @ direction))
    finally:
        for parameter in parameters:
            parameter.requires_grad_(requires_grad=False)
    return np.array(result)
