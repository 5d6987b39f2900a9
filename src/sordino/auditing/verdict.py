"""The verdict on one line of a certificate, by a rule that is written down before measuring.

1. Contradicted: a measurement's lower bound is above the claimed value.
2. No power: otherwise, if no attack that ran proves more than the claimed value on the positive
   control, a run that is known to break the claim (overfitted without privacy, repeated canaries)
   and was attacked and measured in the same way. A claim that even the control cannot contradict
   is not supported by surviving the attacks.
3. Consistent: otherwise. The attacks would have seen such a leak and did not; a smaller or
   different one remains possible.

A line without a formal guarantee claims nothing and is neither confirmed nor contradicted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from sordino.auditing._counts import require_significance
from sordino.core.checks import require_in_range, require_non_negative, require_one_of
from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "EPSILON",
    "GAUSSIAN_MU",
    "POSTERIOR",
    "QUANTITIES",
    "Claim",
    "Measurement",
    "Outcome",
    "Verdict",
    "judge",
]

EPSILON = "epsilon"  # (epsilon, delta)-DP of any shape, in nats
GAUSSIAN_MU = "gaussian_mu"  # mu-Gaussian-DP
POSTERIOR = "posterior"  # success probability of a guess
QUANTITIES = (EPSILON, GAUSSIAN_MU, POSTERIOR)


class Outcome(StrEnum):
    """What the audit says about one line."""

    CONTRADICTED = "contradicted"
    NO_POWER = "no power"
    CONSISTENT = "consistent"
    NOTHING_CLAIMED = "nothing claimed"


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of a certificate: the stated upper bound, or None for "no formal guarantee".

    Raises:
        InvalidParameterError: If a value is NaN, infinite or out of its quantity's range.
    """

    quantity: str
    value: float | None
    delta: float = 0.0  # of an epsilon; 0 for the other quantities

    def __post_init__(self) -> None:
        _require_quantity(self.quantity, self.delta)
        if self.value is not None:
            _require_value("value", self.quantity, self.value)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one attack proves: a lower bound that is too high with probability `significance`.

    Raises:
        InvalidParameterError: If a value is NaN, infinite or out of its quantity's range.
    """

    attack: str
    quantity: str
    lower: float
    significance: float
    delta: float = 0.0

    def __post_init__(self) -> None:
        _require_quantity(self.quantity, self.delta)
        _require_value("lower", self.quantity, self.lower)
        require_significance(self.significance)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome for one line with the measurements that decided it."""

    outcome: Outcome
    claim: Claim
    strongest: Measurement | None  # None where nothing was measured because nothing is claimed
    strongest_on_control: Measurement | None
    significance: float  # a true claim is called contradicted with at most this probability

    def line(self) -> str:
        """Returns the verdict in one sentence."""
        if self.strongest is None:
            return "Nothing claimed: the certificate states no formal guarantee on this line."
        quantity = self.claim.quantity
        proved = (
            f"{self.strongest.attack} proves {quantity} >= {_down(self.strongest.lower)} at "
            f"{100.0 * (1.0 - self.significance):.4g}% confidence"
        )
        if self.claim.value is None:
            return f"Nothing claimed: {proved}."
        claimed = f"{quantity} <= {self.claim.value:g}"
        if self.outcome is Outcome.CONTRADICTED:
            return f"Contradicted: claimed {claimed}, but {proved}."
        if self.outcome is Outcome.CONSISTENT:
            return f"Consistent with {claimed}: {proved}; the positive control was caught."
        control = self.strongest_on_control
        reason = (
            "no positive control was run"
            if control is None
            else f"on the positive control the best attack proves only {_down(control.lower)}"
        )
        return f"No power to test {claimed}: {reason}."


def judge(
    claim: Claim, measurements: Sequence[Measurement], control: Sequence[Measurement]
) -> Verdict:
    """Returns the verdict on one line of a certificate.

    Guarantee:
        A true claim is called contradicted with probability at most the sum of the
        measurements' significances (the union bound over attacks, stated in the verdict).
        `Outcome.CONSISTENT` is not a proof of the claim.

    Args:
        claim: The line.
        measurements: One for each attack on the audited run; at least one where something is
            claimed. An epsilon may be measured at the claim's delta or a larger one.
        control: The same attacks on the positive control, at the same delta and significance.
            Empty where none was run: then the outcome is never `Outcome.CONSISTENT`.

    Returns:
        The `Verdict`.

    Raises:
        InvalidParameterError: If quantities, deltas, attacks or levels do not belong together,
            an attack is named twice, or there is no measurement of a claim.

    Source:
        The rule at the top of this module.

    Example:
        >>> claim = Claim("epsilon", 1.0, delta=1e-5)
        >>> found = Measurement("loss", "epsilon", 0.2, significance=0.05, delta=1e-5)
        >>> caught = Measurement("loss", "epsilon", 3.5, significance=0.05, delta=1e-5)
        >>> judge(claim, [found], [caught]).line()
        'Consistent with epsilon <= 1: loss proves epsilon >= 0.2 at 95% confidence; the positive control was caught.'
        >>> judge(claim, [caught], []).outcome.value
        'contradicted'
    """  # noqa: E501 (the sentence is one line)
    by_attack = _require_matching(claim, measurements, "measurements")
    control_by_attack = _require_matching(claim, control, "control")
    if claim.value is not None and not by_attack:
        raise InvalidParameterError("measurements must not be empty where a value is claimed.")
    for attack, measurement in control_by_attack.items():
        ran = by_attack.get(attack)
        if ran is None or (ran.delta, ran.significance) != (
            measurement.delta,
            measurement.significance,
        ):
            raise InvalidParameterError(
                f"control must hold the same attacks at the same delta and significance, got "
                f"{attack} that was not measured in this way on the audited run."
            )
    strongest = max(by_attack.values(), key=_bound, default=None)
    strongest_on_control = max(control_by_attack.values(), key=_bound, default=None)
    return Verdict(
        outcome=_outcome(claim, strongest, strongest_on_control),
        claim=claim,
        strongest=strongest,
        strongest_on_control=strongest_on_control,
        significance=min(math.fsum(found.significance for found in by_attack.values()), 1.0),
    )


def _outcome(
    claim: Claim, strongest: Measurement | None, strongest_on_control: Measurement | None
) -> Outcome:
    """Applies the rule."""
    if claim.value is None or strongest is None:
        return Outcome.NOTHING_CLAIMED
    if strongest.lower > claim.value:
        return Outcome.CONTRADICTED
    if strongest_on_control is None or not strongest_on_control.lower > claim.value:
        return Outcome.NO_POWER
    return Outcome.CONSISTENT


def _require_matching(
    claim: Claim, measurements: Sequence[Measurement], name: str
) -> dict[str, Measurement]:
    """Returns the measurements by attack if each can contradict this claim, else raises."""
    by_attack = {found.attack: found for found in measurements}
    if len(by_attack) != len(measurements):
        raise InvalidParameterError(f"{name} must name every attack once.")
    for found in measurements:
        # (epsilon, delta)-DP implies it for every larger delta, and for no smaller one.
        if found.quantity != claim.quantity or found.delta < claim.delta:
            raise InvalidParameterError(
                f"{name} must measure {claim.quantity} at delta {claim.delta:g} or above, got "
                f"{found.quantity} at delta {found.delta:g} by {found.attack}."
            )
    return by_attack


def _require_quantity(quantity: str, delta: float) -> None:
    """Raises unless the quantity is known and only an epsilon has a delta."""
    require_one_of("quantity", quantity, QUANTITIES)
    require_in_range("delta", delta, 0.0, 1.0)
    if delta > 0.0 and quantity != EPSILON:
        raise InvalidParameterError(f"delta belongs to epsilon, got {delta!r} with {quantity}.")


def _require_value(name: str, quantity: str, value: float) -> None:
    """Raises unless the value is finite and possible for its quantity."""
    if quantity == POSTERIOR:
        require_in_range(name, value, 0.0, 1.0)
    else:
        require_non_negative(name, value)


def _bound(found: Measurement) -> float:
    """Returns what measurements are compared by."""
    return found.lower


def _down(value: float) -> str:
    """Returns a lower bound with three decimals, rounded down."""
    return f"{math.floor(1000.0 * value) / 1000.0:g}"
