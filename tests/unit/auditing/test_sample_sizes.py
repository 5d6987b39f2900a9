"""Sample sizes against trying every size; refusals."""

from __future__ import annotations

import math

import pytest

from sordino.auditing.clopper_pearson import binomial_lower, binomial_upper
from sordino.auditing.sample_sizes import sample_sizes_needed
from sordino.core.errors import InvalidParameterError


@pytest.mark.parametrize(
    ("tpr", "fpr"), [(0.05, 0.001), (0.5, 0.01), (0.3, 0.1), (1.0, 0.5), (0.07, 0.02)]
)
def test_sample_sizes(tpr: float, fpr: float) -> None:
    """The numbers suffice for all larger samples, and one less does not."""
    sizes = sample_sizes_needed(tpr, fpr)
    assert binomial_upper(0, sizes.num_nonmembers) <= fpr * (1 + 1e-9)
    assert binomial_upper(0, sizes.num_nonmembers - 1) > fpr
    tells = [binomial_lower(math.floor(tpr * n + 1e-9), n) > fpr for n in range(1, 400)]
    assert all(tells[sizes.num_members - 1 :])
    assert not tells[sizes.num_members - 2]


@pytest.mark.parametrize(("tpr", "fpr"), [(0.1, 0.1), (0.0, 0.1), (math.nan, 0.1), (0.5, 0.0)])
def test_impossible_sample_sizes_are_refused(tpr: float, fpr: float) -> None:
    with pytest.raises(InvalidParameterError):
        sample_sizes_needed(tpr, fpr)
    with pytest.raises(InvalidParameterError, match="too close"):
        sample_sizes_needed(0.5 + 1e-9, 0.5)
