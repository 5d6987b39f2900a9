"""What is refused as a weight, a Gram matrix or magnitudes."""

from __future__ import annotations

import pytest
import torch

from sordino.core.errors import InvalidParameterError
from sordino.quantization._arguments import require_gram, require_magnitudes, require_weight


def test_refuses_what_is_not_a_layer() -> None:
    with pytest.raises(InvalidParameterError, match="finite"):
        require_weight(torch.tensor([[float("nan")]]), 1)
    with pytest.raises(InvalidParameterError, match="divide the 4 inputs"):
        require_weight(torch.ones(2, 4), 3)
    with pytest.raises(InvalidParameterError, match="matrix of floats"):
        require_weight(torch.ones(2, 4, dtype=torch.int8), 2)
    with pytest.raises(InvalidParameterError, match="gram"):
        require_gram(torch.eye(3), torch.ones(2, 4))
    with pytest.raises(InvalidParameterError, match="gram"):
        require_gram(torch.full((4, 4), float("inf")), torch.ones(2, 4))
    for bad in (torch.tensor([1.0, float("nan")]), torch.tensor([-1.0, 1.0]), torch.ones(3)):
        with pytest.raises(InvalidParameterError, match="magnitudes"):
            require_magnitudes("magnitudes", bad, 2)


def test_half_precision_weights_are_read_in_float32() -> None:
    assert require_weight(torch.ones(2, 4, dtype=torch.bfloat16), 2).dtype == torch.float32
    assert require_weight(torch.ones(2, 4).double(), 2).dtype == torch.float64
