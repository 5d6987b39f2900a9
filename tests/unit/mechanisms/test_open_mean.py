"""The baseline without privacy: the mean itself, in whole numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from helpers_enumeration import history_sums
from helpers_mechanisms import NUM_RELEASES, MechanismContract
from sordino.mechanisms.open_mean import OpenMeanMechanism

if TYPE_CHECKING:
    from sordino.core.entropy import AbstractEntropy


class TestOpenMean(MechanismContract):
    """It draws nothing and keeps nothing."""

    num_subsets = 1
    draws_entropy = False
    shows_entropy = False

    def make(self, entropy: AbstractEntropy) -> OpenMeanMechanism:
        return OpenMeanMechanism(records_per_step=10)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("records", [1, 7, 1000])
def test_the_mean_survives_to_30_bits(scale: float, records: int) -> None:
    """Integer times unit is the mean over the pool, to 2**-30 of the largest entry."""
    sums = history_sums(1, [], 1, NUM_RELEASES) * scale
    release = OpenMeanMechanism(records).release(sums, 0.5, 0)
    mean = sums[0] * 0.5 / records
    assert np.abs(release.integers * release.unit - mean).max() <= 2.0**-30 * np.abs(mean).max()
    assert np.abs(release.integers).max() == 2**30


def test_a_mean_of_zero_moves_nothing() -> None:
    """No division by the largest entry where that is 0."""
    release = OpenMeanMechanism(10).release(np.zeros((1, 3)), 1.0, 0)
    assert release.integers.tolist() == [0, 0, 0]
    assert release.unit == 1.0


def test_it_claims_nothing() -> None:
    """The name is all there is to describe."""
    assert OpenMeanMechanism(10).describe() == {"name": "open-mean"}
    assert OpenMeanMechanism(10).private_state() == {}
