"""The table of rounding methods: how one layer becomes codes and scales.

A method is a function from a layer's weights, the geometry of its input and the settings to codes
and scales. A new one is one more entry of `METHODS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sordino.core.checks import require_in_range, require_integer, require_one_of
from sordino.core.errors import InvalidParameterError
from sordino.lattices.bounds import squared_lengths
from sordino.lattices.orders import ORDERS
from sordino.lattices.reduction import nearest_plane_reduced
from sordino.quantization.awq import awq_input_scales, clipped_scales
from sordino.quantization.blocked_gptq import gptq_codes_blocked
from sordino.quantization.hqq import hqq
from sordino.quantization.layers import QUANTIZED_BITS
from sordino.quantization.scales import (
    SCALES,
    choose_scales,
    code_limits,
    round_weight,
    spread_scales,
)
from sordino.quantization.smoothquant import smoothquant_input_scales

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from sordino.quantization.blocked_gptq import InputGeometry
    from sordino.quantization.calibration import InputSums

__all__ = ["METHODS", "Method", "QuantizationSettings"]

LATTICE_REDUCTIONS = ("none", "lll")


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationSettings:
    """How every layer is quantized; all public.

    Args:
        bits: 2, 4 or 8.
        group_size: Neighbouring inputs that share a scale; None for a whole row.
        method: A key of `METHODS`.
        order: Order of columns, one of `ORDERS`; methods without one ignore it.
        lattice_reduction: `none`, or `lll`, which needs one scale a row.
        scales: `absmax` or `searched`, see `choose_scales`; awq and hqq choose their own.
        damping: lam as a share of the mean diagonal of the Gram matrix.

    Raises:
        InvalidParameterError: If a value is out of range or two do not go together.
    """

    bits: int
    group_size: int | None
    method: str
    order: str
    lattice_reduction: str
    scales: str
    damping: float

    def __post_init__(self) -> None:
        if self.bits not in QUANTIZED_BITS:
            raise InvalidParameterError(f"bits must be 2, 4 or 8, got {self.bits!r}.")
        if self.group_size is not None:
            require_integer("group_size", self.group_size, 2)
        require_one_of("method", self.method, tuple(METHODS))
        require_one_of("order", self.order, ORDERS)
        require_one_of("scales", self.scales, SCALES)
        require_in_range("damping", self.damping, 1e-6, 1e3)
        require_one_of("lattice_reduction", self.lattice_reduction, LATTICE_REDUCTIONS)
        if self.lattice_reduction == "none":
            return
        if self.method != "gptq":
            raise InvalidParameterError(
                f"lattice_reduction works on top of method gptq, got method {self.method}."
            )
        if self.group_size is not None:
            raise InvalidParameterError(
                "lattice_reduction needs one scale a row, since it adds integer multiples of "
                f"columns to each other; got groups of {self.group_size}. Use --group-size row, or "
                "--order min-pivot, which is legal with groups."
            )

    @property
    def applied_order(self) -> str:
        """The order in which codes are made: natural where a method rounds weight by weight."""
        return self.order if METHODS[self.method].has_order else "natural"

    def group_size_of(self, columns: int) -> int:
        """Returns the group size of a layer with so many inputs."""
        return columns if self.group_size is None else self.group_size


@dataclass(frozen=True, slots=True)
class Method:
    """A way to round one layer.

    Args:
        round: Returns int8 codes (rows, columns) and float16 scales (rows, groups) of weights
            (rows, columns) in float32. The geometry is None without calibration.
        needs_calibration: Whether there must be a geometry.
        has_order: Whether it rounds column after column, in the geometry's order.
        choose_input_scales: Returns scales of the columns of layers that share an input, which
            are folded into the module before; None for methods that scale no inputs.
    """

    round: Callable[
        [torch.Tensor, InputGeometry | None, QuantizationSettings],
        tuple[torch.Tensor, torch.Tensor],
    ]
    needs_calibration: bool
    has_order: bool
    choose_input_scales: (
        Callable[
            [list[torch.Tensor], InputSums, list[QuantizationSettings]],
            torch.Tensor,
        ]
        | None
    ) = None


def _round_nearest(
    weights: torch.Tensor,
    geometry: InputGeometry | None,  # noqa: ARG001 - weights are rounded one by one
    settings: QuantizationSettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds every weight by itself."""
    scales, _ = _scales_of(weights, settings)
    # No tie rule is needed: nothing is compared with another way to compute these quotients.
    return _nearest_codes(weights, scales, settings.bits), scales


def _round_gptq(
    weights: torch.Tensor, geometry: InputGeometry | None, settings: QuantizationSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds column after column, each row guarded; with a reduced lattice where that helps."""
    if geometry is None:
        raise InvalidParameterError("method gptq needs calibration inputs, got none.")
    scales, group_size = _scales_of(weights, settings)
    low, high = code_limits(settings.bits)
    rows, steps = weights.double().numpy(), spread_scales(scales, group_size)
    codes = gptq_codes_blocked(rows, geometry, steps, low, high)
    if settings.lattice_reduction == "lll":
        codes = _improve_by_reduction(rows, geometry, steps, codes, (low, high))
    return torch.from_numpy(codes.astype(np.int8)), scales


def _improve_by_reduction(
    weights: NDArray[np.float64],
    geometry: InputGeometry,
    scales: NDArray[np.float64],
    codes: NDArray[np.int64],
    limits: tuple[int, int],
) -> NDArray[np.int64]:
    """Returns codes from a reduced basis in the rows whose exact loss, clipped, is smaller."""
    order = geometry.columns
    reduced = np.empty_like(codes)
    reduced[:, order], _ = nearest_plane_reduced(
        weights[:, order], geometry.gram[np.ix_(order, order)], scales[:, order], *limits
    )
    losses, plain = (squared_lengths(weights - scales * z, geometry.gram) for z in (reduced, codes))
    return np.where((losses < plain)[:, None], reduced, codes)


def _nearest_codes(weights: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns int8 codes, each quotient computed in float64."""
    return round_weight(weights.double(), scales.double(), bits).to(torch.int8)


def _scales_of(weights: torch.Tensor, settings: QuantizationSettings) -> tuple[torch.Tensor, int]:
    """Returns the layer's scales and its group size."""
    group_size = settings.group_size_of(weights.shape[1])
    scales = choose_scales(
        weights, bits=settings.bits, group_size=group_size, scales=settings.scales
    )
    return scales, group_size


def _round_awq(
    weights: torch.Tensor, geometry: InputGeometry | None, settings: QuantizationSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds folded weights to nearest, each group's range shrunk where the layer's loss falls."""
    if geometry is None:
        raise InvalidParameterError("method awq needs calibration inputs, got none.")
    rows, gram = weights.double(), torch.from_numpy(geometry.gram)
    group_size = settings.group_size_of(weights.shape[1])
    scales = clipped_scales(rows, gram, bits=settings.bits, group_size=group_size)
    return _nearest_codes(weights, scales, settings.bits), scales.half()


def _round_hqq(
    weights: torch.Tensor,
    geometry: InputGeometry | None,  # noqa: ARG001 - the grid is fitted to the weights alone
    settings: QuantizationSettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds to nearest on a grid that is fitted in the lp norm."""
    group_size = settings.group_size_of(weights.shape[1])
    return hqq(weights, bits=settings.bits, group_size=group_size)


def _choose_awq(
    weights: list[torch.Tensor], inputs: InputSums, settings: list[QuantizationSettings]
) -> torch.Tensor:
    """Returns AWQ's input scales."""
    scales, _ = awq_input_scales(
        weights,
        torch.from_numpy(inputs.gram),
        inputs.mean_magnitudes,
        bits=[own.bits for own in settings],
        group_size=settings[0].group_size_of(weights[0].shape[1]),
    )
    return scales


def _choose_smoothquant(
    weights: list[torch.Tensor],
    inputs: InputSums,
    settings: list[QuantizationSettings],  # noqa: ARG001 - weights and inputs decide
) -> torch.Tensor:
    """Returns SmoothQuant's input scales."""
    if inputs.max_magnitudes is None:
        raise InvalidParameterError(
            "method smoothquant needs the largest inputs, which a private Gram matrix does not "
            "tell. Take --method awq, gptq, hqq or nearest."
        )
    return smoothquant_input_scales(weights, inputs.max_magnitudes)


METHODS = {
    "nearest": Method(_round_nearest, needs_calibration=False, has_order=False),
    "gptq": Method(_round_gptq, needs_calibration=True, has_order=True),
    "awq": Method(
        _round_awq, needs_calibration=True, has_order=False, choose_input_scales=_choose_awq
    ),
    "smoothquant": Method(
        _round_nearest,
        needs_calibration=True,
        has_order=False,
        choose_input_scales=_choose_smoothquant,
    ),
    "hqq": Method(_round_hqq, needs_calibration=False, has_order=False),
}
