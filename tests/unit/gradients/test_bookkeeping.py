"""Norms of what is added, bounded from above, also where a unit's tokens cancel."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sordino.gradients import bookkeeping as bookkeeping_module
from sordino.gradients.bookkeeping import MARGIN_BFLOAT16, MatrixGradients
from sordino.gradients.factors import Factors, Left, Spans


def canceling_factors(
    size: int, offsets: tuple[int, ...], dtype: torch.dtype, rest: float
) -> tuple[Factors, torch.Tensor]:
    """Returns factors whose outer products cancel but for a part, and their exact gradients."""
    generator = torch.Generator().manual_seed(0)
    count = offsets[-1]
    left = torch.randn(1, size, generator=generator) + rest * torch.randn(
        count, size, generator=generator
    )
    right = torch.randn(1, size, generator=generator) + rest * torch.randn(
        count, size, generator=generator
    )
    signs = torch.ones(count, 1)
    for start, stop in pairwise(offsets):
        signs[start : start + (stop - start) // 2] = -1.0
    left, right = (left * signs).to(dtype), right.to(dtype)
    gradients = torch.stack(
        [left[a:b].double().T @ right[a:b].double() for a, b in pairwise(offsets)]
    )
    return Factors(Left(left), right, Spans(offsets)), gradients


@pytest.mark.parametrize("rest", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "offsets"),
    [
        (64, (0, 8, 16)),  # few tokens: one product in float32
        (96, (0, 40, 80)),  # by inner products
        (96, (0, 40, 66)),  # of unequal lengths
        (24, (0, 40, 80)),  # formed
        (24, (0, 30, 80)),
    ],
)
def test_upper_bounds_hold_for_what_is_added(
    size: int, offsets: tuple[int, ...], dtype: torch.dtype, rest: float
) -> None:
    """Even if the tokens of a unit cancel to a hundredth, so that rounding is all that remains."""
    factors, gradients = canceling_factors(size, offsets, dtype, rest)
    found = MatrixGradients(len(gradients))
    found.add(factors, is_only=True)
    norms, upper = gradients.flatten(1).norm(dim=1), found.squared_norms_upper.sqrt()
    assert (upper * (1 + MARGIN_BFLOAT16) >= norms).all()
    if rest == 1.0:
        assert (upper <= 1.1 * norms).all()
    for unit in range(len(gradients)):
        weights = torch.zeros(len(gradients))
        weights[unit] = 0.7
        total = torch.zeros(size, size)
        found.add_weighted(total, weights)
        bound = 0.7 * float(upper[unit])
        margin = MARGIN_BFLOAT16 if dtype == torch.bfloat16 else 2.0**-14
        assert float(total.double().norm()) <= bound * (1 + margin)
        distance = float((total.double() - 0.7 * gradients[unit]).norm())
        assert distance <= 2**-8 * bound


def test_users_of_equal_and_unequal_lengths() -> None:
    """Merged spans of adjacent records are the spans of users."""
    spans = Spans.even(6, 4).merged(Spans((0, 2, 4, 6)))
    assert spans.length == 8
    spans = Spans((0, 3, 4, 9)).merged(Spans((0, 2, 3)))
    assert spans.offsets == (0, 4, 9)
    assert spans.length is None


def test_smaller_gradients_are_formed_and_larger_ones_are_not() -> None:
    """40 tokens: 24 x 24 numbers are fewer than 40 x 48, 96 x 96 are more than 40 x 192."""
    for size, is_formed in ((24, True), (96, False)):
        factors, _ = canceling_factors(size, (0, 40, 80), torch.float32, 1.0)
        found = MatrixGradients(2)
        found.add(factors, is_only=True)
        assert (found._formed is not None) is is_formed
        assert bool(found._kept) is not is_formed


def test_embeddings_of_a_unit_with_no_token() -> None:
    """A unit without rows has norm zero; others are summed by place."""
    right = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 5.0]])
    found = MatrixGradients(3)
    factors = Factors(Left(None, torch.tensor([4, 4, 1])), right, Spans((0, 3, 3, 3)))
    found.add(factors, is_only=True)
    assert found.squared_norms.tolist() == [34.0, 0.0, 0.0]
    total = torch.zeros(6, 2)
    found.add_weighted(total, torch.tensor([2.0, 1.0, 1.0]))
    assert total[4].tolist() == [6.0, 0.0]
    assert total[1].tolist() == [0.0, 10.0]


def test_pieces_of_a_contraction_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide matrix is contracted some rows at a time."""
    factors, gradients = canceling_factors(64, (0, 8, 16), torch.float32, 1.0)
    monkeypatch.setattr(bookkeeping_module, "_ENTRIES_AT_ONCE", 48)
    found = MatrixGradients(2)
    found.add(factors, is_only=False)
    total = torch.zeros(64, 64)
    found.add_weighted(total, torch.tensor([1.0, 0.5]))
    expected = gradients[0] + 0.5 * gradients[1]
    assert torch.allclose(total.double(), expected, rtol=1e-4, atol=1e-4)
