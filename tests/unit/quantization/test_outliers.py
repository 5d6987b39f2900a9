"""Groups of weights: what a measurement says of them, and the bits that follow."""

from __future__ import annotations

import numpy as np
import pytest

from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.quantization.outliers import (
    Estimate,
    GroupScore,
    Role,
    allocate_by_role,
    bytes_by_role,
    describe_groups,
    functional_score,
    rank_correlation,
    sensitive_score,
)

BITS = (2, 4, 8)


def group(functional: float, sensitive: float, **changes: object) -> GroupScore:
    """Returns a group whose intervals reach .1 around these values."""
    first, second = (Estimate(v, v - 0.1, v + 0.1) for v in (functional, sensitive))
    settings = {"name": "g", "layers": ("g.a",), "functional": first, "sensitive": second}
    return GroupScore(**(settings | changes))


@pytest.mark.parametrize(
    ("functional", "sensitive", "role"),
    [
        (0.05, 0.05, Role.NEITHER),
        (0.14, 0.05, Role.NEITHER),
        (0.16, 0.05, Role.FUNCTIONAL),
        (0.05, 0.11, Role.SENSITIVE),
        (0.5, 0.5, Role.BOTH),
        (0.5, -0.5, Role.FUNCTIONAL),
    ],
)
def test_role_needs_the_whole_interval(functional: float, sensitive: float, role: Role) -> None:
    """A value whose interval reaches the limit is no finding."""
    assert group(functional, sensitive).role(tolerance=0.05) is role


def test_functional_score_weighs_tokens() -> None:
    """The rise of the loss of a token, not of a text; the interval covers it."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 50, 400)
    before = rng.normal(3, 1, 400)
    after = before + rng.normal(0.2, 0.3, 400)
    found = functional_score(before, after, counts)
    assert found.value == pytest.approx(((after - before) * counts).sum() / counts.sum())
    assert found.lower < found.value < found.upper
    same = functional_score(before, before, counts)
    assert (same.value, same.lower, same.upper) == (0.0, 0.0, 0.0)


def test_functional_interval_covers() -> None:
    """95% intervals miss the true rise in about 5% of 400 trials.

    False-failure rate of an interval that misses with probability .06: below 1e-5 (more than 48
    of 400 with probability 2.2e-6).
    """
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(400):
        counts = rng.integers(5, 50, 60)
        before = rng.normal(3, 1, 60)
        found = functional_score(before, before + rng.normal(0.1, 0.3, 60), counts)
        missed += not found.lower <= 0.1 <= found.upper
    assert 0 < missed <= 48


def test_sensitive_score_is_the_fall_of_the_area() -> None:
    """Positive where the coarse model is harder to attack."""
    whole = [3.0, 2.0, 4.0], [0.0, 1.0, 0.5]
    coarse = [0.2, 2.0, 4.0], [0.0, 1.0, 0.5]
    assert sensitive_score(whole, coarse).value == pytest.approx(2 / 9)
    assert sensitive_score(coarse, whole).value == pytest.approx(-2 / 9)


@pytest.mark.parametrize(
    "bad",
    [
        ([1.0], [1.0], [1]),
        ([1.0, 2.0], [1.0], [1, 1]),
        ([1.0, np.nan], [1.0, 1.0], [1, 1]),
        ([1.0, 2.0], [1.0, 1.0], [1, 0]),
    ],
)
def test_losses_must_belong_together(bad: tuple[list[float], ...]) -> None:
    with pytest.raises(InvalidDataError):
        functional_score(*bad)


def test_bits_follow_roles() -> None:
    """Sensitive: coarsest. Functional and both: finest. The budget decides the others."""
    roles = {"s": Role.SENSITIVE, "f": Role.FUNCTIONAL, "b": Role.BOTH}
    roles |= {"n": Role.NEITHER, "m": Role.NEITHER}
    costs = dict.fromkeys(roles, np.array([4.0, 1.0, 0.0])) | {"m": np.array([40.0, 10.0, 0.0])}
    num_bytes = dict.fromkeys(roles, (2, 4, 8))
    chosen = allocate_by_role(roles, BITS, costs, num_bytes, budget=2 + 8 + 8 + 2 + 8)
    assert chosen == {"s": 2, "f": 8, "b": 8, "n": 2, "m": 8}
    with pytest.raises(InvalidParameterError, match=r"3 layers are fixed .* needs 22 bytes"):
        allocate_by_role(roles, BITS, costs, num_bytes, budget=21)
    assert bytes_by_role(roles, num_bytes) == 22
    assert bytes_by_role(roles, num_bytes, others=1) == 26
    with pytest.raises(InvalidParameterError, match="bits must rise"):
        allocate_by_role(roles, (4, 2), costs, num_bytes, budget=100)


def test_rank_correlation_of_the_proxy() -> None:
    groups = [group(0.0, s, proxy=p) for s, p in ((0.1, 1.0), (0.2, 5.0), (0.4, 9.0))]
    assert rank_correlation(groups) == pytest.approx(1.0)
    assert rank_correlation(groups[:2]) is None
    assert rank_correlation([group(0.0, s) for s in (0.1, 0.2, 0.3)]) is None


def test_record_begins_with_what_carries_both() -> None:
    groups = [group(0.0, 0.0), group(1.0, 1.0, name="h"), group(0.0, 1.0, name="s")]
    rows = describe_groups(groups, tolerance=0.05)
    assert [row["role"] for row in rows] == ["both", "sensitive", "neither"]
    assert rows[0]["functional_nats"] == [1.0, 0.9, 1.1]
