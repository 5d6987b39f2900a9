"""One privacy level in three languages, and how it is put into words."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from sordino.accounting._attribute_guess import AttributeRisk, display_up


@dataclass(frozen=True, kw_only=True, slots=True)
class Risk:
    """One privacy level in the three languages; made by `risk`.

    Attributes:
        given: The language it was stated in: "mutual_information", "epsilon" or "posterior".
        mutual_information_nats: Stated, or the PAC budget that allows the same posterior.
        posterior: Upper bound on the success of a guess (see `posterior_from_epsilon`).
        epsilon_matched: Stated (if delta is 0), or logit(posterior) - logit(prior).
        delta: Of the stated (epsilon, delta), else 0.
        prior: Success of the best guess before the release.
        is_vacuous: Whether the bound does not exclude a guess that is always right.
        attribute: Bounds on guesses of an attribute; None if not asked for.
    """

    given: str
    mutual_information_nats: float
    posterior: float
    epsilon_matched: float
    delta: float
    prior: float
    is_vacuous: bool
    attribute: AttributeRisk | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON; an infinite epsilon is None."""
        matched = self.epsilon_matched if math.isfinite(self.epsilon_matched) else None
        return asdict(self) | {"epsilon_matched": matched}

    def lines(self) -> list[str]:
        """Returns the level in words, with what is average case and what is worst case."""
        nats = f"{self.mutual_information_nats:.3g} nats"
        epsilon = f"{self.epsilon_matched:.3g}" if self.epsilon_matched < math.inf else "infinite"
        success = display_up(self.posterior)
        is_pac, is_pure = self.given == "mutual_information", self.delta == 0.0
        words = [
            f"A guess is right with probability at most {success} (before: {self.prior:g}).",
            f"Mutual information about the secret: at most {nats} (stated)."
            if is_pac
            else f"Matched mutual information: {nats} (a PAC budget with the same probability).",
            f"Epsilon: {epsilon} at delta 0 (stated)."
            if self.given == "epsilon" and is_pure
            else f"Matched epsilon: {epsilon} (pure DP with the same probability).",
        ]
        if not is_pure:
            words.append(f"Stated as DP with delta {self.delta:g}: the probability is an average.")
        words += [
            "Mutual information (PAC) bounds an average, over the secret and its candidates.",
            "Epsilon (DP) bounds a worst case: any data set and record, all others known.",
            "Matched means an equal probability; a PAC budget implies no epsilon.",
        ]
        if self.prior < 0.5:
            words.append(
                "A prior below 0.5 is for a guess among several candidates, not for yes or no."
            )
        if self.is_vacuous:
            words.append("Vacuous: the bound does not exclude a guess that is always right.")
        return words + (self.attribute.lines() if self.attribute is not None else [])
