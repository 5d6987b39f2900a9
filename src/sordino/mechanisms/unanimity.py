"""PACZero-ZPL: release a sign only if every candidate subset agrees on it, else a coin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sordino.core.checks import require_in_range, require_one_of
from sordino.core.errors import InvalidParameterError
from sordino.mechanisms.release import AbstractMechanism, Release

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sordino.core.entropy import AbstractEntropy
    from sordino.mechanisms.candidates import CandidateSubsets

ON_DISAGREEMENT = ("coin", "skip")


class UnanimityMechanism(AbstractMechanism):
    """Signs that all candidates agree on, and coins.

    Guarantee:
        The release is a function of the whole pool and of coins; the secret subset is never read,
        so its mutual information with everything released is exactly 0. This says nothing about
        membership in the pool: unanimity adds a robustness that mutual information does not
        measure (see `training.leave_one_out`).

    Args:
        candidates: The candidate subsets (for the public description).
        entropy: Secret coins.
        on_disagreement: "coin" (a fair coin; hides which signs were unanimous) or "skip" (moves
            nothing; the pattern of unanimity shows).
        unanimity_flip: Probability in [0, 1/2) of flipping a unanimous sign. Above 0, one
            release's likelihood moves by at most ln(1 / (2 unanimity_flip)) nats when a record's
            place in the pool is emptied or filled.

    Source:
        arXiv:2605.06505v2, zero-leakage variant. `unanimity_flip` is ours.
    """

    def __init__(
        self,
        candidates: CandidateSubsets,
        entropy: AbstractEntropy,
        *,
        on_disagreement: str = "coin",
        unanimity_flip: float = 0.0,
    ) -> None:
        require_one_of("on_disagreement", on_disagreement, ON_DISAGREEMENT)
        require_in_range("unanimity_flip", unanimity_flip, 0.0, 0.5)
        if unanimity_flip == 0.5:
            raise InvalidParameterError("unanimity_flip must be below 0.5: at 0.5 all is coins.")
        self._candidates = candidates
        self._entropy = entropy
        self._on_disagreement = on_disagreement
        self._flip = unanimity_flip
        self.encoding = "bit" if on_disagreement == "coin" else "trit"

    def release(self, sums: NDArray[np.float64], unit: float, step: int) -> Release:  # noqa: ARG002
        """Returns unanimous signs (perhaps flipped), and coins or zeros elsewhere."""
        positive = sums >= 0  # a tie counts as +1
        unanimous = positive.all(axis=0) | ~positive.any(axis=0)
        signs = np.where(positive[0], 1, -1).astype(np.int32)
        # Every draw is made for every release, so that neither time nor calls show which were used.
        num_releases = sums.shape[1]
        coins = np.where(self._entropy.coins(num_releases), 1, -1).astype(np.int32)
        if self._flip > 0:
            flips = np.array([self._entropy.bernoulli(self._flip) for _ in range(num_releases)])
            signs = np.where(flips, -signs, signs)
        other = coins if self._on_disagreement == "coin" else np.zeros_like(coins)
        return Release(
            integers=np.where(unanimous, signs, other),
            unit=1.0,
            mutual_information_nats=0.0,
            unanimous=unanimous,
        )

    def describe(self) -> dict[str, Any]:
        """Returns the public description."""
        return {
            "name": "unanimity",
            "num_subsets": self._candidates.num_subsets,
            "subset_construction": self._candidates.construction,
            "subsets_per_record": self._candidates.subsets_per_record,
            "prior": self._candidates.prior,
            "on_disagreement": self._on_disagreement,
            "unanimity_flip": self._flip,
        }

    def private_state(self) -> dict[str, Any]:
        """Returns nothing: there is no secret and the posterior never moves."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Needs nothing."""
