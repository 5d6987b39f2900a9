"""Groups of weights that carry quality, membership, both or neither, and the bits that each gets.

One parameter's effect on an attack cannot be measured: with 164 members and 164 others the
standard error of an area is about .03. The unit is therefore a group of layers, and its effect is
measured on the same records before and after the group alone is put on a coarse grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri
from scipy.stats import spearmanr

from sordino.auditing.areas import auc_difference
from sordino.core.checks import require_in_range, require_non_negative
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.quantization.allocation import allocate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Estimate",
    "GroupScore",
    "Role",
    "allocate_by_role",
    "bytes_by_role",
    "functional_score",
    "rank_correlation",
    "sensitive_score",
]


class Role(StrEnum):
    """What a group of weights carries, as far as the measurement can tell."""

    NEITHER = "neither"
    FUNCTIONAL = "functional"
    SENSITIVE = "sensitive"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured change and its two-sided confidence interval."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupScore:
    """One group of layers.

    Args:
        name: Of the group.
        layers: Names of its layers.
        functional: Rise of the loss on public text when the group alone is coarse, nats a token.
        sensitive: Fall of the membership attack's area under the ROC curve.
        proxy: Fisher information of its weights on members less that on public text; None where it
            was not computed.
    """

    name: str
    layers: tuple[str, ...]
    functional: Estimate
    sensitive: Estimate
    proxy: float | None = None

    def role(self, tolerance: float) -> Role:
        """Returns what the group carries.

        Functional: the loss rises by more than `tolerance` nats a token, all of the interval.
        Sensitive: the attack becomes weaker, all of the interval.
        """
        is_functional = self.functional.lower > require_non_negative("tolerance", tolerance)
        is_sensitive = self.sensitive.lower > 0.0
        if is_functional:
            return Role.BOTH if is_sensitive else Role.FUNCTIONAL
        return Role.SENSITIVE if is_sensitive else Role.NEITHER


def functional_score(
    losses: ArrayLike, coarse_losses: ArrayLike, num_tokens: ArrayLike, significance: float = 0.05
) -> Estimate:
    """Returns the rise of the mean loss of a token, of the same texts.

    Args:
        losses: Each text's mean loss of a token, nats, shape (num_texts,), at least two.
        coarse_losses: The same under the model whose group is coarse.
        num_tokens: Tokens scored of each text.
        significance: One minus the confidence; in (0, 1).

    Returns:
        The estimate; its interval is that of a ratio of means over independent texts.

    Raises:
        InvalidDataError: If a value is not finite, or the three are not of the same texts.
    """
    before, after, weights = (
        np.asarray(values, dtype=np.float64) for values in (losses, coarse_losses, num_tokens)
    )
    if before.ndim != 1 or before.size < 2 or not before.shape == after.shape == weights.shape:
        raise InvalidDataError(
            "losses, coarse_losses and num_tokens must be of the same texts, at least two, got "
            f"{before.shape}, {after.shape} and {weights.shape}."
        )
    if not (np.isfinite(before) & np.isfinite(after) & (weights > 0.0)).all():
        raise InvalidDataError("losses must be finite, and every text must have scored tokens.")
    level = require_in_range("significance", significance, 1e-9, 1.0 - 1e-9)
    rises = after - before
    value = float(np.average(rises, weights=weights))
    residuals = weights / weights.mean() * (rises - value)
    width = float(-ndtri(level / 2.0)) * float(residuals.std(ddof=1)) / before.size**0.5
    return Estimate(value, value - width, value + width)


def sensitive_score(
    scores: tuple[ArrayLike, ArrayLike],
    coarse_scores: tuple[ArrayLike, ArrayLike],
    significance: float = 0.05,
) -> Estimate:
    """Returns the fall of the area, paired on the same members and non-members.

    Args:
        scores: Of members and of non-members, under the whole model.
        coarse_scores: The same under the model whose group is coarse.
        significance: One minus the confidence; in (0, 1).

    Raises:
        InvalidDataError: If a score is not finite, or the two are not of the same records.
    """
    found = auc_difference(scores, coarse_scores, significance)
    return Estimate(found.difference, found.lower, found.upper)


def rank_correlation(groups: Sequence[GroupScore]) -> float | None:
    """Returns Spearman's correlation of the proxy with the sensitive scores; None without one."""
    proxies = [group.proxy for group in groups if group.proxy is not None]
    values = [group.sensitive.value for group in groups if group.proxy is not None]
    if len(proxies) < 3 or np.ptp(proxies) == 0.0 or np.ptp(values) == 0.0:
        return None
    return float(spearmanr(proxies, values).statistic)


def bytes_by_role(
    roles: Mapping[str, Role], num_bytes: Mapping[str, Sequence[int]], *, others: int = 0
) -> int:
    """Returns the bytes of all layers.

    Args:
        roles: By layer.
        num_bytes: By layer, of each choice of bits.
        others: Choice of the layers without a role; 0 is the coarsest grid.
    """
    num_choices = len(next(iter(num_bytes.values())))
    fixed = _fixed_choices(roles, num_choices)
    return sum(num_bytes[name][fixed.get(name, others)] for name in roles)


def _fixed_choices(roles: Mapping[str, Role], num_choices: int) -> dict[str, int]:
    """Returns the choice of each layer whose role decides it."""
    return {
        name: 0 if role is Role.SENSITIVE else num_choices - 1
        for name, role in roles.items()
        if role is not Role.NEITHER
    }


def allocate_by_role(
    roles: Mapping[str, Role],
    bits: Sequence[int],
    costs: Mapping[str, NDArray[np.float64]],
    num_bytes: Mapping[str, Sequence[int]],
    budget: int,
) -> dict[str, int]:
    """Returns the bits of every layer: differentiated projection.

    Sensitive only: the coarsest grid. Functional, or both: the finest. Neither: the choice of least
    cost that the rest of the budget allows.

    Args:
        roles: By layer.
        bits: The choices, rising.
        costs: By layer, of each choice.
        num_bytes: By layer, of each choice.
        budget: Bytes of all layers together.

    Raises:
        InvalidParameterError: If even the smallest allowed choices are larger than the budget.
    """
    if list(bits) != sorted(set(bits)) or not bits:
        raise InvalidParameterError(f"bits must rise, got {list(bits)}.")
    fixed = _fixed_choices(roles, len(bits))
    free = [name for name in roles if name not in fixed]
    taken = sum(num_bytes[name][choice] for name, choice in fixed.items())
    least = bytes_by_role(roles, num_bytes)
    if least > budget:
        raise InvalidParameterError(
            f"a budget of {budget:,} bytes is too small: {len(fixed)} layers are fixed by what "
            f"they carry, and with all others at {bits[0]} bits that needs {least:,} bytes. Raise "
            "the budget, or the tolerance, so that fewer groups are protected."
        )
    chosen = dict(fixed)
    if free:
        found = allocate(
            np.array([costs[name] for name in free]),
            np.array([num_bytes[name] for name in free]),
            budget - taken,
        )
        chosen |= dict(zip(free, map(int, found), strict=True))
    return {name: bits[chosen[name]] for name in roles}


def describe_groups(groups: Sequence[GroupScore], tolerance: float) -> list[dict[str, Any]]:
    """Returns the groups for a record, those with a role first."""
    order = {role: place for place, role in enumerate(reversed(Role))}
    rows = [
        {
            "name": group.name,
            "layers": list(group.layers),
            "role": str(group.role(tolerance)),
            "functional_nats": [
                group.functional.value,
                group.functional.lower,
                group.functional.upper,
            ],
            "sensitive_auc": [
                group.sensitive.value,
                group.sensitive.lower,
                group.sensitive.upper,
            ],
            "fisher_proxy": group.proxy,
        }
        for group in groups
    ]
    return sorted(rows, key=lambda row: order[Role(row["role"])])
