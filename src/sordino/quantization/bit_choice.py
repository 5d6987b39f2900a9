"""How many bits each layer of a model gets under a byte budget.

What a choice costs is measured before anything is quantized: the exact loss of rounding the layer
to nearest on the grid that would be shipped, on the inputs of the unquantized model, as a share of
the layer's output energy tr(W H W^T). The certificate's prediction is not used for it: it does not
know the limits of the codes, and with scales that clip (2 bits above all) it is too small.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sordino.core.checks import require_integer, require_one_of
from sordino.core.errors import InvalidParameterError
from sordino.quantization.allocation import (
    allocate,
    allocate_boosted,
    allocate_random,
    kurtosis,
    sensitivity,
)
from sordino.quantization.awq import output_loss
from sordino.quantization.blocked_gptq import damped_geometry
from sordino.quantization.layers import packed_bytes
from sordino.quantization.methods import METHODS
from sordino.quantization.scales import dequantize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from sordino.quantization.calibration import CalibrationRun
    from sordino.quantization.methods import QuantizationSettings

__all__ = [
    "ALLOCATIONS",
    "BitBudget",
    "LayerLosses",
    "choose_bits",
    "measure_losses",
    "needs_inputs",
    "num_bytes",
]

ALLOCATIONS = ("certificate", "kurtosis", "sensitivity", "random")


@dataclass(frozen=True, kw_only=True, slots=True)
class BitBudget:
    """A byte budget for the quantized layers, and the rule that spends it; all public.

    Args:
        budget_bytes: Codes and scales of all quantized layers together.
        allocation: One of `ALLOCATIONS`.
        choices: Bits that a layer can get, rising.
        seed: Of a random allocation.

    Raises:
        InvalidParameterError: If a value is out of range.
    """

    budget_bytes: int
    allocation: str
    choices: tuple[int, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        require_integer("budget_bytes", self.budget_bytes, 1, 2**53)
        require_one_of("allocation", self.allocation, ALLOCATIONS)
        require_integer("allocation_seed", self.seed, 0)

    def describe(self, bits: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, Any]:
        """Returns the allocation for the record."""
        counts = {str(choice): list(bits.values()).count(choice) for choice in self.choices}
        return asdict(self) | {"num_bytes": sum(sizes.values()), "layers_by_bits": counts}


@dataclass(frozen=True, slots=True, eq=False)
class LayerLosses:
    """What one layer loses under each choice, and what its outputs are worth."""

    losses: tuple[float, ...]  # tr(E H E^T) with codes that are rounded to nearest
    energy: float  # tr(W H W^T)

    @property
    def shares(self) -> list[float]:
        """Losses as shares of the energy; a layer without outputs loses nothing."""
        return [loss / self.energy if self.energy > 0.0 else 0.0 for loss in self.losses]


def needs_inputs(allocation: str) -> bool:
    """Returns whether a rule needs calibration texts."""
    return allocation in {"certificate", "sensitivity"}


def num_bytes(shape: Sequence[int], bits: int, settings: QuantizationSettings) -> int:
    """Returns the bytes of a layer's codes and scales."""
    return packed_bytes(shape, bits, settings.group_size)


def choose_bits(
    weights: Mapping[str, torch.Tensor],
    settings: QuantizationSettings,
    budget: BitBudget,
    losses: Mapping[str, LayerLosses] | None = None,
    num_tokens: int = 1,
) -> dict[str, int]:
    """Returns the bits of each layer; codes and scales fit the budget.

    Args:
        weights: (out_features, in_features) of each layer, in the order of the model.
        settings: Group size and scales; their bits are not used.
        budget: What may be spent, and how.
        losses: From `measure_losses`, for the rules that need inputs. Layers that are not in it are
            left out: no text reaches them.
        num_tokens: Calibration tokens behind the losses.

    Raises:
        InvalidParameterError: If even the fewest bits do not fit, or losses are missing.
        PrecisionError: If the solver does not prove an optimum.
    """
    if needs_inputs(budget.allocation) and losses is None:
        raise InvalidParameterError(
            f"allocation {budget.allocation} needs calibration texts: --calibration FILE. "
            "--allocation kurtosis looks at the weights alone."
        )
    names = [name for name in weights if losses is None or name in losses]
    sizes = np.array(
        [[num_bytes(weights[n].shape, bits, settings) for bits in budget.choices] for n in names]
    )
    kept = {name: weights[name] for name in names}
    chosen = _RULES[budget.allocation](_Case(kept, sizes, budget, losses or {}, num_tokens))
    return {name: budget.choices[index] for name, index in zip(names, chosen, strict=True)}


def measure_losses(
    layers: list[dict[str, nn.Module]],
    run: CalibrationRun,
    settings: QuantizationSettings,
    choices: Sequence[int],
    *,
    matrix_of: Callable[[nn.Module], torch.Tensor],
    advance: Callable[[int], None],
) -> dict[str, LayerLosses]:
    """Returns the losses of every reached layer; the run is used up, the model is not changed."""
    found: dict[str, LayerLosses] = {}
    for number, block in enumerate(layers):
        groups = run.shared_inputs(number, block)
        sums = run.input_sums(number, {names[0]: block[names[0]] for names in groups})
        for names in groups:
            gram = damped_geometry(sums.pop(names[0]).gram, "natural", settings.damping).gram
            matrix = torch.from_numpy(gram)
            for name in names:
                found[name] = _layer_losses(matrix_of(block[name]), matrix, settings, choices)
        if number + 1 < len(layers):
            run.advance(number)
        advance(number + 1)
    return found


def _layer_losses(
    weight: torch.Tensor,
    gram: torch.Tensor,
    settings: QuantizationSettings,
    choices: Sequence[int],
) -> LayerLosses:
    """Returns the losses of one layer."""
    rows, losses = weight.double(), []
    for bits in choices:
        own = replace(settings, method="nearest", lattice_reduction="none", bits=bits)
        codes, scales = METHODS["nearest"].round(weight.float(), None, own)
        losses.append(output_loss(rows - dequantize(codes.double(), scales.double()), gram))
    return LayerLosses(tuple(losses), output_loss(rows, gram))


@dataclass(frozen=True, slots=True, eq=False)
class _Case:
    """What a rule may look at."""

    weights: dict[str, torch.Tensor]
    sizes: NDArray[np.int64]  # bytes, (layers, choices)
    budget: BitBudget
    losses: Mapping[str, LayerLosses]
    num_tokens: int

    @property
    def kinds(self) -> list[str]:
        """What each layer is: the last part of its name."""
        return [name.rsplit(".", 1)[-1] for name in self.weights]


def _by_certificate(case: _Case) -> NDArray[np.int64]:
    """Returns the choices of least total share of output energy lost."""
    costs = [case.losses[name].shares for name in case.weights]
    return allocate(costs, case.sizes, case.budget.budget_bytes)


def _by_sensitivity(case: _Case) -> NDArray[np.int64]:
    """Returns the choices of SensiBoost: losses at the bits that all layers can have."""
    fitting = np.flatnonzero(case.sizes.sum(axis=0) <= case.budget.budget_bytes)
    base = int(fitting[-1]) if fitting.size else 0  # too small a budget is refused below
    scores = [
        sensitivity(case.losses[name].losses[base], case.num_tokens, len(weight))
        for name, weight in case.weights.items()
    ]
    return allocate_boosted(scores, case.sizes, case.budget.budget_bytes, kinds=case.kinds)


def _by_kurtosis(case: _Case) -> NDArray[np.int64]:
    """Returns the choices of KurtBoost."""
    scores = [kurtosis(weight.double().numpy()) for weight in case.weights.values()]
    return allocate_boosted(scores, case.sizes, case.budget.budget_bytes, kinds=case.kinds)


def _by_chance(case: _Case) -> NDArray[np.int64]:
    """Returns the choices of a public random order."""
    return allocate_random(case.sizes, case.budget.budget_bytes, seed=case.budget.seed)


_RULES: dict[str, Callable[[_Case], NDArray[np.int64]]] = {
    "certificate": _by_certificate,
    "kurtosis": _by_kurtosis,
    "sensitivity": _by_sensitivity,
    "random": _by_chance,
}
