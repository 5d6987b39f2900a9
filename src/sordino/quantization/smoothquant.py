"""SmoothQuant's input scales: outliers are moved from a layer's inputs into its weights.

Only weights are quantized here, and they become harder to quantize: it is offered as the known
baseline, and for those who quantize activations afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sordino.core.checks import require_in_range
from sordino.core.errors import InvalidParameterError
from sordino.quantization._arguments import require_magnitudes, require_weight

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["smoothquant_input_scales"]

_MOST_SPREAD = 1e4  # largest over smallest scale, as for AWQ


def smoothquant_input_scales(
    weights: Sequence[torch.Tensor], max_magnitudes: torch.Tensor, *, alpha: float = 0.5
) -> torch.Tensor:
    """Returns s_j = max|x_j|^alpha / max|w_j|^(1 - alpha) for layers that share an input.

    Columns are to be multiplied by s and the input divided by it (`fold_input_scales`), and the
    scaled weight is then quantized with any method. Columns whose inputs or weights are all zero
    keep their scale: 1.

    Args:
        weights: Each (rows, columns), of layers with the same input.
        max_magnitudes: max |x_j| over the calibration tokens, (columns,).
        alpha: Share of the difficulty that moves into the weights, in [0, 1].

    Raises:
        InvalidParameterError: If shapes do not fit or an argument is not finite.

    Source:
        arXiv:2211.10438, Equation 4. Departure: scales further apart than 1e4 from the median
        are brought closer.
    """
    require_in_range("alpha", alpha, 0.0, 1.0)
    checked = [require_weight(weight, 1) for weight in weights]
    if not checked or len({weight.shape[1] for weight in checked}) > 1:
        raise InvalidParameterError(
            "weights must be those of one or more layers with the same inputs, got shapes "
            f"{[tuple(weight.shape) for weight in checked]}."
        )
    inputs = require_magnitudes("max_magnitudes", max_magnitudes, checked[0].shape[1])
    inputs = inputs.to(checked[0])
    largest = torch.stack([weight.abs().amax(dim=0) for weight in checked]).amax(dim=0)
    is_live = (inputs > 0) & (largest > 0)
    scales = inputs.where(is_live, 1.0) ** alpha / largest.where(is_live, 1.0) ** (1.0 - alpha)
    if not bool(is_live.any()):
        return scales
    middle = scales[is_live].median()
    limited = scales.clamp(middle / _MOST_SPREAD, middle * _MOST_SPREAD)
    return limited.where(is_live, 1.0)
