"""PACZero-MI: the secret subset's sign through a noisy channel of bounded mutual information."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from sordino.accounting.pac import (
    binary_symmetric_information,
    charge_upper,
    flip_probability,
    gaussian_channel_information,
    gaussian_noise_std,
)
from sordino.core.checks import require_integer, require_one_of, require_positive
from sordino.core.errors import LedgerError, PrecisionError
from sordino.mechanisms.release import AbstractMechanism, Release

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sordino.core.entropy import AbstractEntropy
    from sordino.mechanisms.candidates import CandidateSubsets

CHANNELS = ("binary-symmetric", "gaussian")
BUDGET_SCHEDULES = ("adaptive", "uniform")
_KEPT_FOR_ROUNDING = 1 - Fraction(1, 2**45)  # a step's charge is rounded up once, by 2**-52 at most


class BinaryChannelMechanism(AbstractMechanism):
    """Unanimous signs for free, the secret subset's sign through a channel otherwise.

    Guarantee:
        On every path the charges add up to at most the budget B, so the mutual information between
        the secret subset and everything released is at most B nats (chain rule).
        Assumes: honest caller.

    Args:
        candidates: The candidate subsets; the secret is one of them, uniform.
        entropy: Secret randomness, for the choice of the subset and the channel.
        budget_nats: B, positive and finite.
        num_steps: T, the number of steps that share the budget.
        channel: "binary-symmetric" flips the bit itself; "gaussian" is the paper's: the sign of
            s + noise is released and the posterior moves on the unpublished real number, which is
            conservative.
        budget_schedule: "adaptive" gives each step (B - spent) / (steps left), "uniform" B / T.

    Source:
        arXiv:2605.06505v2, budgeted variant. The binary symmetric channel is ours.
    """

    encoding = "bit"

    def __init__(
        self,
        candidates: CandidateSubsets,
        entropy: AbstractEntropy,
        *,
        budget_nats: float,
        num_steps: int,
        channel: str = "binary-symmetric",
        budget_schedule: str = "adaptive",
    ) -> None:
        require_positive("mutual_information", budget_nats)
        require_integer("num_steps", num_steps, 1)
        require_one_of("channel", channel, CHANNELS)
        require_one_of("budget_schedule", budget_schedule, BUDGET_SCHEDULES)
        self._candidates = candidates
        self._entropy = entropy
        self._budget = Fraction(budget_nats)
        self._num_steps = num_steps
        self._channel = channel
        self._schedule = budget_schedule
        self._spent = Fraction(0)
        self._secret = entropy.index(candidates.num_subsets)
        self._log_posterior = np.full(candidates.num_subsets, -math.log(candidates.num_subsets))

    def __repr__(self) -> str:
        """Returns a name that holds no secret."""
        return f"{type(self).__name__}(<sealed>)"

    def release(self, sums: NDArray[np.float64], unit: float, step: int) -> Release:  # noqa: ARG002
        """Returns K bits, each within its share of the step's budget."""
        positive = sums >= 0  # a tie counts as +1
        num_releases = sums.shape[1]
        share = _round_down(self._step_budget(step) * _KEPT_FOR_ROUNDING / num_releases)
        integers = np.empty(num_releases, dtype=np.int32)
        unanimous = np.zeros(num_releases, dtype=np.bool_)
        charges = Fraction(0)
        for k in range(num_releases):
            bit, nats, unanimous[k] = self._release_one(positive[:, k], share)
            integers[k] = 1 if bit else -1
            charges += Fraction(nats)
        charge = _round_up(charges)
        self._spent += Fraction(charge)
        return Release(
            integers=integers,
            unit=1.0,
            mutual_information_nats=charge,
            unanimous=unanimous,
        )

    def describe(self) -> dict[str, Any]:
        """Returns the public description."""
        return {
            "name": "binary-channel",
            "num_subsets": self._candidates.num_subsets,
            "subset_construction": self._candidates.construction,
            "subsets_per_record": self._candidates.subsets_per_record,
            "prior": self._candidates.prior,
            "channel": self._channel,
            "budget_schedule": self._schedule,
        }

    def private_state(self) -> dict[str, Any]:
        """Returns the secret, the posterior and what is spent; for the sealed journal only."""
        return {
            "secret": self._secret,
            "log_posterior": [
                None if math.isinf(x) else x for x in self._log_posterior.tolist()
            ],  # JSON has no -inf
            "spent": [self._spent.numerator, self._spent.denominator],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues with the same secret and the same posterior."""
        log_posterior = [-math.inf if x is None else float(x) for x in state["log_posterior"]]
        if len(log_posterior) != self._candidates.num_subsets:
            raise LedgerError("the sealed posterior has the wrong number of candidates.")
        self._secret = require_integer("secret", state["secret"], 0, len(log_posterior) - 1)
        self._log_posterior = np.array(log_posterior)
        self._spent = Fraction(*state["spent"])

    def _step_budget(self, step: int) -> Fraction:
        """Returns what this step may cost, exactly."""
        left = self._budget - self._spent
        if self._schedule == "uniform":
            return min(self._budget / self._num_steps, left)
        return left / (self._num_steps - step)

    def _release_one(
        self, positive: NDArray[np.bool_], budget_nats: float
    ) -> tuple[bool, float, bool]:
        """Returns (bit, charge in nats, whether all candidates with mass agreed)."""
        alive = self._log_posterior > -math.inf
        own = bool(positive[self._secret])
        if (positive[alive] == own).all():
            return own, 0.0, True
        minority = self._minority_mass(positive)
        if self._channel == "gaussian":
            return self._send_gaussian(positive, minority, budget_nats, own=own)
        # upwards to what the entropy source can draw, so that it is the channel that is accounted
        flip = math.ldexp(math.ceil(math.ldexp(flip_probability(minority, budget_nats), 53)), -53)
        charge = charge_upper(binary_symmetric_information(minority, flip))
        bit = own != self._entropy.bernoulli(flip)
        log_right, log_wrong = math.log1p(-flip), (math.log(flip) if flip > 0 else -math.inf)
        self._update(np.where(positive == bit, log_right, log_wrong))
        return bit, charge, False

    def _send_gaussian(
        self, positive: NDArray[np.bool_], minority: float, budget_nats: float, *, own: bool
    ) -> tuple[bool, float, bool]:
        """Sends the sign with Gaussian noise; only the sign of the result is released."""
        noise_std = gaussian_noise_std(minority, budget_nats)
        charge = charge_upper(gaussian_channel_information(minority, noise_std))
        sign = 1.0 if own else -1.0
        if noise_std == 0.0:
            self._update(np.where(positive == own, 0.0, -math.inf))
            return own, charge, False
        if math.isinf(noise_std):  # nothing may be said: a coin
            return bool(self._entropy.coins(1)[0]), 0.0, False
        received = sign + noise_std * self._entropy.normal()
        signs = np.where(positive, 1.0, -1.0)
        self._update(received * signs / noise_std**2)  # log-likelihood up to a common constant
        return received >= 0, charge, False

    def _minority_mass(self, positive: NDArray[np.bool_]) -> float:
        """Returns the posterior mass of the rarer sign; accurate however small it is."""
        mass = np.exp(self._log_posterior - self._log_posterior.max())
        yes, no = math.fsum(mass[positive]), math.fsum(mass[~positive])
        minority = min(yes, no) / (yes + no)
        if minority <= 0.0:  # underflow must not turn into a free release
            return float(np.finfo(np.float64).tiny)
        return minority

    def _update(self, log_likelihood: NDArray[np.float64]) -> None:
        """Moves the posterior by Bayes' rule, in log space."""
        log_posterior = self._log_posterior + log_likelihood
        top = log_posterior.max()
        if not math.isfinite(top):
            raise PrecisionError("the posterior vanished; nothing was released.")
        log_posterior -= top
        self._log_posterior = log_posterior - math.log(math.fsum(np.exp(log_posterior)))


def _round_down(value: Fraction) -> float:
    """Returns the largest float not above `value`, at least 0."""
    result = float(value)
    while Fraction(result) > value:
        result = math.nextafter(result, -math.inf)
    return max(result, 0.0)


def _round_up(value: Fraction) -> float:
    """Returns the smallest float not below `value`."""
    result = float(value)
    while Fraction(result) < value:
        result = math.nextafter(result, math.inf)
    return result
