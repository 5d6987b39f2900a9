"""The Walsh-Hadamard transform against its definition."""

from __future__ import annotations

import pytest
import torch

from sordino.gradients.hadamard import padded_length, walsh_hadamard


def definition(length: int) -> torch.Tensor:
    """Returns the matrix of (-1)**popcount(r & i), entry by entry."""
    rows = [[(-1.0) ** (r & i).bit_count() for i in range(length)] for r in range(length)]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("bits", range(10))
def test_equals_the_definition(bits: int) -> None:
    """Every length up to 512: below, at and above one group of six stages."""
    length = 2**bits
    generator = torch.Generator().manual_seed(bits)
    values = torch.randint(-1000, 1000, (3, length), generator=generator).double()
    assert torch.equal(walsh_hadamard(values), values @ definition(length))


@pytest.mark.parametrize("bits", [0, 5, 6, 7, 12, 13])
def test_twice_is_the_length(bits: int) -> None:
    """H H = length * identity, exactly for whole numbers in float64."""
    generator = torch.Generator().manual_seed(bits)
    values = torch.randint(-(2**20), 2**20, (2, 2**bits), generator=generator).double()
    assert torch.equal(walsh_hadamard(walsh_hadamard(values)), values * 2**bits)


def test_whole_numbers_stay_exact() -> None:
    """Sums of 2**13 numbers of 2**30 are below 2**53: no rounding at all."""
    values = torch.full((1, 2**13), 2.0**30 - 1, dtype=torch.float64)
    result = walsh_hadamard(values)
    assert result[0, 0] == (2**30 - 1) * 2**13
    assert not result[0, 1:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_type_and_input_are_kept(dtype: torch.dtype) -> None:
    """The result has the input's type, and the input is not written to."""
    values = torch.randn(4, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = values.clone()
    assert walsh_hadamard(values).dtype == dtype
    assert torch.equal(values, before)


def test_rows_are_independent() -> None:
    """A record's transform does not depend on its batch."""
    values = torch.randn(5, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row in range(5):
        alone = walsh_hadamard(values[row : row + 1])
        assert torch.allclose(walsh_hadamard(values)[row], alone[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [3, 6, 100, 129])
def test_other_lengths_are_refused(length: int) -> None:
    """Only powers of two have a transform."""
    with pytest.raises(ValueError, match=f"length must be a power of two, got {length}"):
        walsh_hadamard(torch.zeros(1, length))


def test_padded_length() -> None:
    """The smallest power of two that is large enough."""
    lengths = [1, 2, 3, 4, 5, 8, 9, 1000, 1024, 1025]
    assert [padded_length(n) for n in lengths] == [1, 2, 4, 4, 8, 8, 16, 1024, 1024, 2048]
