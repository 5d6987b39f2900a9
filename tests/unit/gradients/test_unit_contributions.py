"""What a unit contributes under differential privacy: summed over its records, then clipped."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.core.errors import InvalidParameterError, PrecisionError
from sordino.gradients.estimators import AbstractEstimator
from sordino.gradients.unit_contributions import UnitContributions
from sordino.mechanisms.candidates import SubsetSums

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

UNIT_OF = np.array([0, 0, 1, 2, 2, 2])


class Fixed(AbstractEstimator):
    """Gives known contributions."""

    bound = 1e9

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values

    def contributions(
        self, step: int, batches: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        for batch in batches:
            yield batch, self._values[list(batch)]


def contributions(values: torch.Tensor, clip_norm: float) -> torch.Tensor:
    """Returns the contributions of three units with two, one and three records."""
    estimator = UnitContributions(Fixed(values), UNIT_OF, clip_norm=clip_norm)
    found = list(estimator.contributions(0, [[0, 1, 2], [3, 4, 5]]))
    assert [unit for units, _ in found for unit in units] == [0, 1, 2]
    return torch.cat([values for _, values in found])


def test_records_of_a_unit_are_added_before_they_are_clipped() -> None:
    """Defect: records clipped one by one, so that a user with many counts many times."""
    values = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.1, 0.2], [9.0, 0], [-9.0, 0], [0, 0.5]])
    found = contributions(values.double(), clip_norm=1.0)
    expected = torch.tensor([[0.6, 0.8], [0.1, 0.2], [0.0, 0.5]], dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=1e-7)  # inputs are float32 numbers


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(-1e30, 1e30, allow_nan=False), min_size=12, max_size=12),
    clip_norm=st.floats(1e-6, 1e6),
)
def test_no_unit_exceeds_the_bound(values: list[float], clip_norm: float) -> None:
    """The norm of a unit's numbers is at most the bound, in exact terms."""
    found = contributions(torch.tensor(values, dtype=torch.float64).reshape(6, 2), clip_norm)
    for row in found.tolist():
        assert math.hypot(*row) <= clip_norm


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_a_number_is_refused_when_summed(bad: float) -> None:
    """What is not a number stays one until the sum refuses it."""
    values = torch.zeros(6, 2, dtype=torch.float64)
    values[4, 1] = bad
    found = contributions(values, clip_norm=1.0)
    assert found[2].isnan().all()
    with pytest.raises(PrecisionError):
        SubsetSums(np.ones((3, 1), dtype=np.bool_), 2, 1.0).add(np.arange(3), found.numpy())


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf])
def test_bound_must_be_positive(clip_norm: float) -> None:
    """A bound that bounds nothing is refused."""
    with pytest.raises(InvalidParameterError, match="clip"):
        UnitContributions(Fixed(torch.zeros(6, 2)), UNIT_OF, clip_norm=clip_norm)
