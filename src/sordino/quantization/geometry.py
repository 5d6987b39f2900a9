"""What quantization does to the geometry of a layer: numbers for a table, one record a layer.

Base is the weight before fine-tuning, tuned the one after it, and quantized what is shipped. None
of these numbers is a bound on perplexity or on leakage; the collision rate shows how much of what
fine-tuning changed a grid can hold at all.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sordino.core.checks import require_integer
from sordino.core.errors import InvalidParameterError
from sordino.lattices.babai import compute_factor
from sordino.lattices.bounds import headroom, loss_bound_upper, squared_lengths
from sordino.lattices.orders import order_columns
from sordino.lattices.problem import clip_codes, read_gram, round_to_codes

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from sordino.quantization.layers import QuantizedLayer

__all__ = [
    "LayerGeometry",
    "collision_rate",
    "linear_cka",
    "logit_divergence",
    "measure_layer",
    "principal_angles",
    "singular_value_shift",
    "stable_rank",
]

_ZERO = 1e-12  # of the largest singular value: below, a direction is rounding


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerGeometry:
    """Metrics of one layer. None: not defined, for example an angle of a matrix of zeros."""

    name: str
    bits: int
    group_size: int
    pivot_share: float  # tr(D) / tr(H), in the order of rounding: 1 without correlations
    headroom: float  # 1 - geometric / arithmetic mean of D
    bound: float  # 1/4 sum s^2 D; holds for nearest plane without clipping, see the certificate
    exact: float  # tr((W - Q) H (W - Q)^T)
    exact_share: float  # exact / bound
    relative_loss: float | None  # exact / tr(W H W^T)
    log_volume: float  # sum over all weights of log(s^2 D): twice the log volume of a grid cell
    singular_value_shift: float | None  # |sigma(Q) - sigma(W)| / |sigma(W)|
    input_angle: float | None  # largest angle between top input directions, radians
    output_angle: float | None  # the same for output directions
    num_directions: int  # k of those subspaces: smaller where a rank is
    base_stable_rank: float
    tuned_stable_rank: float
    quantized_stable_rank: float
    cka: float | None  # of the outputs on the calibration inputs, tuned against quantized
    collision_rate: float  # nearest codes of tuned that equal those of base, same grid
    changed_rate: float  # 1 - collision_rate: what of fine-tuning the grid can hold
    shipped_collision_rate: float  # shipped codes that equal the base's codes

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return asdict(self)


def measure_layer(
    base: ArrayLike,
    tuned: ArrayLike,
    quantized: QuantizedLayer,
    gram: ArrayLike,
    *,
    order: str = "min-pivot",
    num_directions: int = 8,
    base_codes: ArrayLike | None = None,
) -> LayerGeometry:
    """Returns the metrics of one layer.

    Args:
        base: Weight before fine-tuning, (rows, columns).
        tuned: Weight after it, (rows, columns): what was quantized.
        quantized: Codes and scales.
        gram: H = X^T X, (columns, columns), damped by 1% of its mean diagonal if it is singular.
            Center it by the mean input first if the CKA is to be of centered outputs.
        order: Order of columns in the rounding.
        num_directions: Dimension k of the subspaces that are compared.
        base_codes: Codes of the base by the same method on the same grid; nearest codes if None.
            GPTQ's codes differ from nearest ones without any fine-tuning.

    Raises:
        InvalidParameterError: If shapes do not fit or an entry is not finite.
    """
    require_integer("num_directions", num_directions, 1)
    shape = tuple(quantized.codes.shape)
    before, after = _read_weight("base", base, shape), _read_weight("tuned", tuned, shape)
    checked = read_gram(gram)
    H = checked.matrix
    if len(H) != shape[1]:
        raise InvalidParameterError(f"gram must have {shape[1]} columns, got {len(H)}.")
    scales = np.repeat(quantized.scales.double().cpu().numpy(), quantized.group_size, axis=1)
    codes = quantized.codes.cpu().numpy().astype(np.int64)
    shipped = scales * codes
    columns = order_columns(H, order)
    D = np.square(compute_factor(H[np.ix_(columns, columns)]).diagonal())
    bound = float(loss_bound_upper(scales[:, columns], D).sum())
    exact = float(squared_lengths(after - shipped, H).sum())
    energy = float(squared_lengths(after, H).sum())
    limits = (quantized.low, quantized.high)
    base_nearest = clip_codes(round_to_codes(before / scales), *limits)
    tuned_nearest = clip_codes(round_to_codes(after / scales), *limits)
    collisions = collision_rate(tuned_nearest, base_nearest)
    output_angles, input_angles = principal_angles(after, shipped, num_directions)
    return LayerGeometry(
        name=quantized.name,
        bits=quantized.bits,
        group_size=quantized.group_size,
        pivot_share=float(D.sum() / H.trace()),
        headroom=headroom(D),
        bound=bound,
        exact=exact,
        exact_share=exact / bound,
        relative_loss=exact / energy if energy > 0.0 else None,
        log_volume=float(2.0 * np.log(scales).sum() + len(scales) * np.log(D).sum()),
        singular_value_shift=singular_value_shift(after, shipped),
        input_angle=float(input_angles.max()) if input_angles.size else None,
        output_angle=float(output_angles.max()) if output_angles.size else None,
        num_directions=int(input_angles.size),
        base_stable_rank=stable_rank(before),
        tuned_stable_rank=stable_rank(after),
        quantized_stable_rank=stable_rank(shipped),
        cka=linear_cka(after, shipped, checked.given),
        collision_rate=collisions,
        changed_rate=1.0 - collisions,
        shipped_collision_rate=collision_rate(
            codes, base_nearest if base_codes is None else base_codes
        ),
    )


def stable_rank(weight: ArrayLike) -> float:
    """Returns |W|_F^2 / |W|_2^2, between 1 and the rank; 0 for a matrix of zeros."""
    matrix = _read_weight("weight", weight)
    largest = float(np.abs(matrix).max())
    if largest == 0.0:
        return 0.0
    singular = np.linalg.svd(matrix / largest, compute_uv=False)
    return float(np.square(singular).sum() / singular[0] ** 2)


def singular_value_shift(weight: ArrayLike, other: ArrayLike) -> float | None:
    """Returns |sigma(other) - sigma(weight)|_2 / |sigma(weight)|_2; None if weight is zero.

    At most |other - weight|_F / |weight|_F.
    """
    first = _read_weight("weight", weight)
    second = _read_weight("other", other, first.shape)
    singular = np.linalg.svd(first, compute_uv=False)
    norm = float(np.linalg.norm(singular))
    if norm == 0.0:
        return None
    return float(np.linalg.norm(np.linalg.svd(second, compute_uv=False) - singular) / norm)


def principal_angles(
    weight: ArrayLike, other: ArrayLike, num_directions: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the angles between the top singular subspaces of two matrices, in radians.

    Args:
        weight: (rows, columns).
        other: (rows, columns).
        num_directions: Dimension of the subspaces; no larger than either rank.

    Returns:
        Angles on the output side (left singular vectors) and on the input side, each rising, in
        [0, pi/2]. Empty if a matrix is zero.
    """
    first = _read_weight("weight", weight)
    second = _read_weight("other", other, first.shape)
    left, right, rank = _singular_vectors(first)
    other_left, other_right, other_rank = _singular_vectors(second)
    k = min(num_directions, rank, other_rank)
    if k == 0:
        return np.empty(0), np.empty(0)
    return _angles(left[:, :k], other_left[:, :k]), _angles(right[:, :k], other_right[:, :k])


def linear_cka(weight: ArrayLike, other: ArrayLike, gram: ArrayLike) -> float | None:
    """Returns the linear CKA of two layers' outputs on the inputs behind gram, in [0, 1].

    |Q H W^T|_F^2 / (|W H W^T|_F |Q H Q^T|_F): outputs are not centered unless gram is. None if
    the outputs of either are zero.

    Source:
        Kornblith et al., arXiv:1905.00414, Equation 3 for a linear kernel, through H = X^T X.
    """
    first = _read_weight("weight", weight)
    second = _read_weight("other", other, first.shape)
    H = read_gram(gram).given
    norm, other_norm = (float(np.linalg.norm(W @ H @ W.T)) for W in (first, second))
    if norm == 0.0 or other_norm == 0.0:
        return None
    shared = float(np.linalg.norm(second @ H @ first.T))
    return min(1.0, (shared / norm) * (shared / other_norm))


def collision_rate(codes: ArrayLike, base_codes: ArrayLike) -> float:
    """Returns the share of codes that equal the base model's codes on the same grid.

    Raises:
        InvalidParameterError: If shapes differ or there are no codes.
    """
    first, second = np.asarray(codes), np.asarray(base_codes)
    if first.shape != second.shape or first.size == 0:
        raise InvalidParameterError(
            f"codes must have one shape, got {first.shape} and {second.shape}."
        )
    return float(np.mean(first == second))


def logit_divergence(logits: torch.Tensor, other: torch.Tensor) -> float:
    """Returns the mean over tokens of KL(softmax(logits) || softmax(other)), in nats.

    Args:
        logits: Of the reference model, (..., vocabulary).
        other: Of the quantized model on the same text, same shape.

    Raises:
        InvalidParameterError: If shapes differ, there are none, or a logit is NaN or infinite.
    """
    if logits.shape != other.shape or logits.ndim == 0 or logits.numel() == 0:
        raise InvalidParameterError(
            f"logits must have one shape, got {tuple(logits.shape)} and {tuple(other.shape)}."
        )
    if not bool(torch.isfinite(logits).all() and torch.isfinite(other).all()):
        raise InvalidParameterError("logits must be finite; leave masked tokens out.")
    log_p = torch.log_softmax(logits.double(), dim=-1)
    log_q = torch.log_softmax(other.double(), dim=-1)
    return max(0.0, float((log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()))


def _singular_vectors(
    matrix: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Returns left and right singular vectors as columns, and the numerical rank."""
    left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    return left, right.T, int(np.sum(singular > _ZERO * singular[0]))


def _angles(basis: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the principal angles between two orthonormal bases, rising.

    The arc cosine loses small angles in float64, so they come from the sine of what is left.
    """
    cosines = np.clip(np.linalg.svd(basis.T @ other, compute_uv=False), 0.0, 1.0)
    sines = np.clip(
        np.linalg.svd(other - basis @ (basis.T @ other), compute_uv=False)[::-1], 0.0, 1.0
    )
    return np.where(cosines**2 > 0.5, np.arcsin(sines), np.arccos(cosines))


def _read_weight(
    name: str, values: ArrayLike, shape: tuple[int, ...] | None = None
) -> NDArray[np.float64]:
    """Returns a finite matrix in float64, of the given shape, else raises."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.size == 0 or (shape is not None and array.shape != shape):
        raise InvalidParameterError(
            f"{name} must be a matrix of shape {shape or '(rows, columns)'}, got {array.shape}."
        )
    if not np.isfinite(array).all():
        raise InvalidParameterError(f"{name} must be finite.")
    return array
