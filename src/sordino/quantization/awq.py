"""Activation-aware weight quantization: columns with large inputs get a finer share of the grid.

Column j is multiplied by s_j before rounding, and the input divided by it; s = mean|x|^a, with a
from a grid, chosen by the exact output loss under the Gram matrix. Then each group's range is
shrunk where that pays. Neither step touches the function of the layer: scales have to be folded
into what comes before it (`sordino.quantization.folding`), or the result is not this function.

On a model: `awq_input_scales` for every fold, on the weights and Gram matrices as they are; fold
them all; then `clipped_scales` of every folded weight under its `scale_gram`, and round with any
method. `awq` does all of it for layers that share an input. Where no fold is possible, magnitudes
that are all one leave AWQ's clipping alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sordino.core.errors import InvalidParameterError
from sordino.quantization._arguments import require_gram, require_magnitudes, require_weight
from sordino.quantization.folding import scale_gram
from sordino.quantization.scales import absmax_scales, dequantize, round_weight, search_scales

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "EXPONENTS",
    "AwqResult",
    "awq",
    "awq_input_scales",
    "clipped_scales",
    "output_loss",
]

EXPONENTS = tuple(step / 20 for step in range(20))  # 0, 0.05, ..., 0.95
_MOST_SPREAD = 1e4  # largest over smallest channel scale: a float16 norm weight has to carry it


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AwqResult:
    """Layers that share one input, rounded after their columns were scaled.

    The weight of layer i is codes[i] * scales[i] / input_scales; what is shipped is
    codes[i] * scales[i], with 1 / input_scales folded into the module before.
    """

    input_scales: torch.Tensor  # (columns,), positive
    exponent: float  # a of input_scales = mean|x|^a
    codes: tuple[torch.Tensor, ...]  # int8, (rows, columns)
    scales: tuple[torch.Tensor, ...]  # float16, (rows, groups)
    losses: tuple[float, ...]  # tr((W - Q) H (W - Q)^T) of each layer
    nearest_losses: tuple[float, ...]  # the same without any scaling and clipping


def awq_input_scales(
    weights: Sequence[torch.Tensor],
    gram: torch.Tensor,
    mean_magnitudes: torch.Tensor,
    *,
    bits: int | Sequence[int],
    group_size: int,
) -> tuple[torch.Tensor, float]:
    """Returns the input-channel scales of layers that share an input, and their exponent.

    Guarantee:
        Of the exponents in `EXPONENTS`, the returned one has the smallest output loss, summed
        over the layers, when every scaled weight is rounded to its nearest code on the grid of
        the largest weight. Exponent 0 is plain rounding, so this is never worse than that.

    Args:
        weights: Each (rows, columns), of layers with the same input.
        gram: H = X^T X of that input, (columns, columns).
        mean_magnitudes: mean |x_j| over the calibration tokens, (columns,).
        bits: 2 to 8, of all layers or of each.
        group_size: Neighbouring inputs that share a scale; it divides columns.

    Returns:
        Scales, positive, geometric mean of largest and smallest 1, shape (columns,); the exponent.

    Raises:
        InvalidParameterError: If shapes do not fit or an argument is not finite.

    Source:
        arXiv:2306.00978, Section 3.2. Departures: the loss is exact under the Gram matrix, not
        of a sample; scales further apart than 1e4 are brought closer.
    """
    checked, H = _read(weights, gram, group_size)
    magnitudes = require_magnitudes("mean_magnitudes", mean_magnitudes, H.shape[0])
    widths = [bits] * len(checked) if isinstance(bits, int) else bits
    losses = []
    for exponent in EXPONENTS:
        factors = _channel_scales(magnitudes.to(H), exponent)
        scaled_gram, loss = scale_gram(H, factors), 0.0
        for weight, own_bits in zip(checked, widths, strict=True):
            scaled = weight * factors
            grid = absmax_scales(scaled, own_bits, group_size)
            loss += _nearest_loss(scaled, scaled_gram, grid, own_bits)
        losses.append(loss)
    exponent = EXPONENTS[losses.index(min(losses))]  # of equal ones the smallest
    return _channel_scales(magnitudes.to(H), exponent), exponent


def awq(
    weights: Sequence[torch.Tensor],
    gram: torch.Tensor,
    mean_magnitudes: torch.Tensor,
    *,
    bits: int,
    group_size: int,
) -> AwqResult:
    """Returns codes of layers that share an input: scaled, clipped, rounded to nearest.

    Guarantee:
        No layer's loss is above its loss with the scaled columns and no clipping, and the sum of
        the losses is not above that of plain rounding (`nearest_losses`).

    Args:
        weights: Each (rows, columns), of layers with the same input.
        gram: H = X^T X of that input, (columns, columns).
        mean_magnitudes: mean |x_j| over the calibration tokens, (columns,).
        bits: 2 to 8.
        group_size: Neighbouring inputs that share a scale; it divides columns.

    Raises:
        InvalidParameterError: If shapes do not fit or an argument is not finite.

    Source:
        arXiv:2306.00978. Departure: a group's range is chosen by its own block of the Gram
        matrix, and the ranges of a layer are kept only if the exact loss of the layer falls.
    """
    factors, exponent = awq_input_scales(
        weights, gram, mean_magnitudes, bits=bits, group_size=group_size
    )
    checked, H = _read(weights, gram, group_size)
    scaled_gram = scale_gram(H, factors)
    codes, scales, losses, nearest = [], [], [], []
    for weight in checked:
        scaled = weight * factors
        grid = clipped_scales(scaled, scaled_gram, bits=bits, group_size=group_size)
        codes.append(round_weight(scaled, grid, bits).to(torch.int8))
        scales.append(grid.to(torch.float16))
        losses.append(_nearest_loss(scaled, scaled_gram, grid, bits))
        plain = absmax_scales(weight, bits, group_size)
        nearest.append(_nearest_loss(weight, H, plain, bits))
    return AwqResult(
        input_scales=factors,
        exponent=exponent,
        codes=tuple(codes),
        scales=tuple(scales),
        losses=tuple(losses),
        nearest_losses=tuple(nearest),
    )


def clipped_scales(
    weight: torch.Tensor, gram: torch.Tensor, *, bits: int, group_size: int
) -> torch.Tensor:
    """Returns scales with each group's range shrunk where that pays: AWQ's clipping.

    A group's range is chosen by its own block of the Gram matrix, and the ranges are kept only if
    the exact loss of the whole layer falls; else they are those of the largest weights.

    Args:
        weight: (rows, columns), after folding.
        gram: H of the inputs after folding, (columns, columns).
        bits: 2 to 8.
        group_size: Neighbouring inputs that share a scale; it divides columns.

    Returns:
        Scales that float16 holds, (rows, groups), in the type of the weight.

    Raises:
        InvalidParameterError: If shapes do not fit or an argument is not finite.
    """
    weight = require_weight(weight, group_size)
    H = require_gram(gram, weight)
    widest = absmax_scales(weight, bits, group_size)
    clipped = search_scales(weight, bits, group_size, gram=H)
    is_better = _nearest_loss(weight, H, clipped, bits) < _nearest_loss(weight, H, widest, bits)
    return clipped if is_better else widest


def output_loss(error: torch.Tensor, gram: torch.Tensor) -> float:
    """Returns tr(E H E^T), summed in float64: the squared error of the layer's outputs."""
    return float(((error @ gram) * error).sum(dtype=torch.float64).clamp_min(0.0))


def _read(
    weights: Sequence[torch.Tensor], gram: torch.Tensor, group_size: int
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Returns the checked weights and the Gram matrix in their type."""
    checked = [require_weight(weight, group_size) for weight in weights]
    if not checked or len({weight.shape[1] for weight in checked}) > 1:
        raise InvalidParameterError(
            "weights must be those of one or more layers with the same inputs, got shapes "
            f"{[tuple(weight.shape) for weight in checked]}."
        )
    return checked, require_gram(gram, checked[0])


def _channel_scales(magnitudes: torch.Tensor, exponent: float) -> torch.Tensor:
    """Returns mean|x|^a, its largest and smallest value mirrored around 1."""
    if exponent == 0.0 or not bool(magnitudes.max() > 0):
        return torch.ones_like(magnitudes)
    # Inputs that are always zero would get the scale 0; they cost nothing, so any scale will do.
    floor = magnitudes.max() / _MOST_SPREAD ** (1.0 / exponent)
    powers = magnitudes.clamp_min(floor).clamp_min(torch.finfo(magnitudes.dtype).tiny) ** exponent
    return powers / (powers.max() * powers.min()).sqrt()


def _nearest_loss(
    weight: torch.Tensor, gram: torch.Tensor, scales: torch.Tensor, bits: int
) -> float:
    """Returns the output loss of rounding every weight on a given grid."""
    return output_loss(weight - dequantize(round_weight(weight, scales, bits), scales), gram)
