"""Which layer gets how many bits under a byte budget.

`allocate` finds the choice of least total cost, exactly; what the cost is decides what it is good
for. Ours is the loss that the certificate predicts. Beside it stand the rules of KurtBoost and
SensiBoost, which raise the layers whose score jumps out of the sequence of layers, and a random
order: whatever does not beat the last at equal bytes says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from sordino.core.checks import require_integer, require_non_negative
from sordino.core.errors import InvalidParameterError, PrecisionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from sordino.quantization.certificate import LayerCertificate

__all__ = [
    "allocate",
    "allocate_boosted",
    "allocate_random",
    "boost_order",
    "kurtosis",
    "predicted_costs",
    "sensitivity",
]

_TRIMMED = 0.05  # share of the differences left out on either side
_OUTLYING = 3.0  # trimmed standard deviations from the trimmed mean


def allocate(costs: ArrayLike, num_bytes: ArrayLike, budget: int) -> NDArray[np.int64]:
    """Returns each layer's choice: the least total cost whose bytes fit the budget.

    Guarantee:
        The bytes of the choices are at most budget, and no other choices within it cost less by
        more than 1e-6 of the largest difference between two choices of a layer: the tolerance
        of the solver, HiGHS. Assumes: that the solver keeps it.

    Args:
        costs: Finite, (layers, choices).
        num_bytes: Whole numbers of bytes, at least 0, (layers, choices).
        budget: Bytes.

    Returns:
        Index of the choice of each layer, (layers,).

    Raises:
        InvalidParameterError: If shapes do not fit, an entry is not finite, or even the smallest
            choices are larger than the budget.
        PrecisionError: If the solver does not prove an optimum.

    Example:
        >>> allocate([[4.0, 0.0], [3.0, 1.0]], [[1, 2], [1, 2]], budget=3).tolist()
        [1, 0]
    """
    cost, size = _read(costs, num_bytes, budget)
    num_layers, num_choices = cost.shape
    # What every choice of a layer costs anyway is no matter, and would hide small differences.
    excess = cost - cost.min(axis=1, keepdims=True)
    largest = float(excess.max())
    if largest > 0.0:
        excess /= largest
    one_each = csr_array(np.kron(np.eye(num_layers), np.ones((1, num_choices))))
    # Bytes above the least ones, in their largest common unit: whole numbers that the solver's
    # tolerance cannot blur, and no layer's choice fits between two of them.
    extra = size - size.min(axis=1, keepdims=True)
    unit = max(1, int(np.gcd.reduce(extra, axis=None)))
    room = (budget - int(size.min(axis=1).sum())) // unit
    result = milp(
        excess.ravel(),
        constraints=[
            LinearConstraint(one_each, 1.0, 1.0),
            LinearConstraint((extra // unit).ravel()[None, :], -np.inf, room),
        ],
        integrality=np.ones(excess.size),
        bounds=Bounds(0.0, 1.0),
        options={"mip_rel_gap": 1e-9},
    )
    if result.x is None or result.status != 0:
        raise PrecisionError(f"the allocation was not solved: {result.message}")
    chosen = np.asarray(result.x).reshape(cost.shape).argmax(axis=1)
    if _total(size, chosen) > budget:  # the solver's tolerance, which real bytes do not have
        raise PrecisionError(
            "the allocation exceeds the budget by the solver's rounding. Give a budget that is "
            "smaller by 1 in 1,000,000."
        )
    return chosen.astype(np.int64)


def allocate_boosted(
    scores: ArrayLike,
    num_bytes: ArrayLike,
    budget: int,
    *,
    kinds: Sequence[str] | None = None,
    stops: int = 1,
) -> NDArray[np.int64]:
    """Returns the choices of KurtBoost (scores: `kurtosis`) or SensiBoost (`sensitivity`).

    The largest choice that all layers can have is the base. Layers are then raised by `stops`
    choices, in `boost_order`: first those whose score jumps, then the others by score, as long as
    the budget lasts.

    Args:
        scores: One for each layer in the order of the model, (layers,); higher needs more bits.
        num_bytes: Bytes that do not fall from one choice to the next, (layers, choices).
        budget: Bytes.
        kinds: As in `boost_order`.
        stops: Choices by which a layer is raised, at least 1.

    Raises:
        InvalidParameterError: As `allocate`; or if bytes fall along the choices.

    Source:
        arXiv:2503.06518 (outlying layers raised by a few configurations). Departures: the base
        is uniform and not itself optimized; what the outlying layers leave of the budget goes to
        the others, so that bytes compare.
    """
    values = _read_scores(scores, len(np.asarray(num_bytes)))
    return _raise_in_order(boost_order(values, kinds), num_bytes, budget, stops)


def allocate_random(
    num_bytes: ArrayLike, budget: int, *, seed: int, stops: int = 1
) -> NDArray[np.int64]:
    """Returns the choices of `allocate_boosted` with a random order of layers.

    The seed is public: layers are not chosen to hide anything.
    """
    order = np.random.default_rng(seed).permutation(len(np.asarray(num_bytes)))
    return _raise_in_order(order, num_bytes, budget, stops)


def boost_order(scores: ArrayLike, kinds: Sequence[str] | None = None) -> NDArray[np.intp]:
    """Returns the layers in the order in which they get more bits.

    A layer is outlying if its score differs from that of the layer before by more than 3 trimmed
    standard deviations from the trimmed mean of such differences. Outlying layers come first, the
    most deviations first; a jump downwards, back to normal, does not count. The others follow by
    falling score.

    Args:
        scores: One for each layer in the order of the model, (layers,); higher needs more bits.
        kinds: What each layer is ("q_proj", ...): a layer is compared with the one before of its
            kind. None: all are of one kind.

    Raises:
        InvalidParameterError: If a score is not finite, or kinds are not as many.

    Source:
        arXiv:2503.06518 (differences of neighbouring layers, trimmed by 5% on either side, 3
        deviations). Departures: at least one difference on either side is left out, jumps
        downwards do not count, and the first layer is compared with the second.
    """
    values = _read_scores(scores)
    names = np.array([""] * values.size if kinds is None else list(kinds))
    if names.shape != values.shape:
        raise InvalidParameterError(
            f"kinds must be as many as scores, {values.size}, got {names.size}."
        )
    deviations = np.zeros(values.size)
    for kind in np.unique(names):
        members = np.flatnonzero(names == kind)
        deviations[members] = _jumps(values[members])
    is_outlying = deviations > _OUTLYING
    # The last key decides first.
    return np.lexsort((-values, np.where(is_outlying, -deviations, 0.0), ~is_outlying))


def _jumps(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the upward step to each layer, in trimmed deviations of all steps; 0 if downward."""
    if values.size < 2:
        return np.zeros(values.size)
    steps = np.diff(values, prepend=values[1])
    ordered = np.sort(steps[1:])
    # At least one: a single outlier among few layers would hide itself in the deviation.
    cut = max(int(_TRIMMED * ordered.size), 1) if ordered.size > 2 else 0
    trimmed = ordered[cut : ordered.size - cut]
    deviation = float(trimmed.std(ddof=1)) if trimmed.size > 1 else 0.0
    above = np.where(steps > 0.0, np.maximum(steps - trimmed.mean(), 0.0), 0.0)
    # Steps that are otherwise equal up to rounding: any other one jumps infinitely far.
    if deviation <= 1e-12 * float(np.abs(values).max()):
        return np.where(above > 1e-12 * float(np.abs(values).max()), np.inf, 0.0)
    return above / deviation


def sensitivity(loss: float, num_tokens: int, num_rows: int) -> float:
    """Returns SensiBoost's score: the mean squared error of a layer's outputs.

    Args:
        loss: tr((W - Q) H (W - Q)^T) at the base's bits, H = X^T X over num_tokens tokens.
        num_tokens: Rows of X.
        num_rows: Outputs of the layer.

    Raises:
        InvalidParameterError: If the loss is negative or not finite, or a count is below 1.

    Source:
        arXiv:2503.06518 (sensitivity score).
    """
    require_non_negative("loss", loss)
    require_integer("num_tokens", num_tokens, 1)
    require_integer("num_rows", num_rows, 1)
    return loss / (num_tokens * num_rows)


def kurtosis(weight: ArrayLike) -> float:
    """Returns the kurtosis of all weights of a layer: 3 for a normal distribution.

    A layer of equal weights has none; it gets 1, the least that there is.

    Raises:
        InvalidParameterError: If a weight is not finite, or there is none.
    """
    values = np.asarray(weight, dtype=np.float64).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        raise InvalidParameterError("weights must be finite, and at least one.")
    centered = values - values.mean()
    largest = np.abs(centered).max()
    if not largest > 1e-12 * np.abs(values).max():
        return 1.0
    centered /= largest
    return float(np.mean(centered**4) / np.mean(centered**2) ** 2)


def predicted_costs(
    certificates: Sequence[Sequence[LayerCertificate | None]],
    energies: Sequence[float] | None = None,
) -> NDArray[np.float64]:
    """Returns costs (layers, choices): the loss that each certificate predicts.

    The prediction knows the grid and the inputs, and not the limits of the codes: with scales
    that clip, at 2 bits above all, it is too small. `exact` in its place costs a rounding for
    each choice.

    Args:
        certificates: Of each layer under each choice; None is the layer kept as it is, cost 0.
        energies: tr(W H W^T) of each layer, positive: losses are then shares of the layer's own
            output. Without them a layer with large outputs outweighs all others.

    Raises:
        InvalidParameterError: If rows have different lengths, or an energy is not positive.
    """
    if len({len(row) for row in certificates}) != 1:
        raise InvalidParameterError("every layer must have the same number of choices.")
    costs = np.array(
        [[0.0 if entry is None else entry.predicted for entry in row] for row in certificates]
    )
    if energies is None:
        return costs
    shares = np.asarray(energies, dtype=np.float64)
    if shares.shape != (len(costs),) or not (np.isfinite(shares) & (shares > 0.0)).all():
        raise InvalidParameterError("energies must be positive and finite, one for each layer.")
    return costs / shares[:, None]


def _raise_in_order(
    order: NDArray[np.intp], num_bytes: ArrayLike, budget: int, stops: int
) -> NDArray[np.int64]:
    """Returns the largest uniform choice, raised layer after layer while the budget lasts."""
    require_integer("stops", stops, 1)
    sizes = np.asarray(num_bytes)
    _, size = _read(np.zeros(sizes.shape), sizes, budget)
    if (np.diff(size, axis=1) < 0).any():
        raise InvalidParameterError("bytes must not fall from one choice to the next.")
    num_choices = size.shape[1]
    base = int(np.flatnonzero(size.sum(axis=0) <= budget)[-1])
    chosen = np.full(len(size), base, dtype=np.int64)
    # One round would leave much of a large budget; later rounds raise the same layers again.
    for _ in range(num_choices):
        for layer in order:
            for target in range(
                min(int(chosen[layer]) + stops, num_choices - 1), chosen[layer], -1
            ):
                added = int(size[layer, target] - size[layer, chosen[layer]])
                if _total(size, chosen) + added <= budget:
                    chosen[layer] = target
                    break
    return chosen


def _total(size: NDArray[np.int64], chosen: NDArray[np.int64]) -> int:
    """Returns the bytes of a choice."""
    return int(np.take_along_axis(size, chosen[:, None].astype(np.intp), axis=1).sum())


def _read(
    costs: ArrayLike, num_bytes: ArrayLike, budget: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns checked costs and bytes; raises if nothing fits into the budget."""
    cost, size = np.asarray(costs, dtype=np.float64), np.asarray(num_bytes)
    require_integer("budget", budget, 0, 2**53)
    if cost.ndim != 2 or cost.size == 0 or size.shape != cost.shape:
        raise InvalidParameterError(
            "costs and bytes must have one shape, (layers, choices), got "
            f"{cost.shape} and {size.shape}."
        )
    if not np.isfinite(cost).all():
        raise InvalidParameterError("costs must be finite.")
    if size.dtype.kind not in "iu" or size.min() < 0:
        raise InvalidParameterError("bytes must be whole numbers of at least 0.")
    size = size.astype(np.int64)
    least = int(size.min(axis=1).sum())
    if least > budget:
        raise InvalidParameterError(
            f"a budget of {budget:,} bytes is too small: the smallest choices of the "
            f"{len(size)} layers need {least:,} bytes. Raise the budget, or allow fewer bits or "
            "larger groups."
        )
    return cost, size


def _read_scores(scores: ArrayLike, num_layers: int | None = None) -> NDArray[np.float64]:
    """Returns finite scores, one for each layer."""
    values = np.asarray(scores, dtype=np.float64)
    is_fit = values.ndim == 1 and values.size > 0 and num_layers in {None, values.size}
    if not is_fit or not np.isfinite(values).all():
        raise InvalidParameterError("scores must be finite, one for each layer.")
    return values
