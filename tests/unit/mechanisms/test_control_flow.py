"""What a mechanism asks for does not depend on the data: neighbours make the same calls.

The channel of a positive budget is not among them: its ledger shows contested steps, as documented.
Local protocols have their own test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers_enumeration import SeededEntropy
from helpers_streams import seeded_stream
from sordino.core.entropy import AbstractEntropy
from sordino.core.secret_stream import SecretStream
from sordino.mechanisms.candidates import CandidateSubsets
from sordino.mechanisms.gaussian import GaussianMechanism
from sordino.mechanisms.unanimity import UnanimityMechanism

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_SUBSETS, NUM_RELEASES, UNIT = 8, 16, 2.0**-20


class RecordingEntropy(AbstractEntropy):
    """Writes down every call, and answers from a seed."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._source = SeededEntropy(4)

    def coins(self, count: int) -> NDArray[np.bool_]:
        self.calls.append(("coins", count))
        return self._source.coins(count)

    def bernoulli(self, probability: float) -> bool:
        self.calls.append(("bernoulli", probability))
        return self._source.bernoulli(probability)

    def index(self, count: int) -> int:
        self.calls.append(("index", count))
        return self._source.index(count)

    def normal(self) -> float:
        self.calls.append(("normal",))
        return self._source.normal()


def neighbours() -> list[NDArray[np.float64]]:
    """Returns sums that are unanimous, contested, unanimous the other way, and tied."""
    unanimous = np.full((NUM_SUBSETS, NUM_RELEASES), 3.0)
    contested = unanimous.copy()
    contested[::2] = -3.0
    return [unanimous, contested, -unanimous, np.zeros_like(unanimous)]


@pytest.mark.parametrize("on_disagreement", ["coin", "skip"])
@pytest.mark.parametrize("flip", [0.0, 0.3])
def test_unanimity(on_disagreement: str, flip: float) -> None:
    """Coins and flips are drawn for every release, used or not."""
    calls = []
    for sums in neighbours():
        entropy = RecordingEntropy()
        mechanism = UnanimityMechanism(
            CandidateSubsets(num_subsets=NUM_SUBSETS),
            entropy,
            on_disagreement=on_disagreement,
            unanimity_flip=flip,
        )
        mechanism.release(sums, UNIT, 0)
        calls.append(entropy.calls)
    assert calls[0]
    assert all(other == calls[0] for other in calls)


@pytest.mark.parametrize("grid", [False, True])
def test_gaussian(grid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same stream, the same words are read whatever the sums are."""
    fill = SecretStream._SecretStream__fill  # every read goes through it
    calls: list[int] = []
    monkeypatch.setattr(
        SecretStream,
        "_SecretStream__fill",
        lambda self, count: calls.append(count) or fill(self, count),
    )
    seen = []
    for sums in neighbours():
        calls.clear()
        mechanism = GaussianMechanism(
            seeded_stream(9),
            clip_norm=1.0,
            noise_multiplier=1.0,
            num_releases=NUM_RELEASES,
            expected_batch_size=8.0,
            contribution_unit=UNIT,
            grid=grid,
        )
        mechanism.release(np.rint(sums[:1] * 2.0**18), UNIT, 0)
        seen.append(list(calls))
    assert seen[0]
    assert all(other == seen[0] for other in seen)


def test_a_mechanism_that_saves_coins_is_seen() -> None:
    """Negative control: drawing only where they are needed shows in the calls."""
    calls = []
    for sums in neighbours():
        entropy = RecordingEntropy()
        positive = sums >= 0
        is_contested = positive.any(axis=0) & ~positive.all(axis=0)
        entropy.coins(int(is_contested.sum()))
        calls.append(entropy.calls)
    assert calls[0] != calls[1]
