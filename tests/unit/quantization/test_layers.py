"""`QuantizedLayer`: what belongs together, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sordino.core.errors import InvalidParameterError
from sordino.quantization.layers import QuantizedLayer

GOOD: dict[str, Any] = {
    "name": "model.proj",
    "codes": torch.tensor([[-8, 7, 0, 3], [1, 2, -3, 4]], dtype=torch.int8),
    "scales": torch.tensor([[0.5, 2.0], [1.0, 0.25]], dtype=torch.float16),
    "bits": 4,
    "group_size": 2,
}


def test_weight_is_code_times_scale_of_its_group() -> None:
    layer = QuantizedLayer(**GOOD)
    expected = [[-4.0, 3.5, 0.0, 6.0], [1.0, 2.0, -0.75, 1.0]]
    assert layer.dequantize().tolist() == expected
    assert layer.num_bytes == 4 + 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 3}, "bits must be 2, 4 or 8"),
        ({"bits": 2}, r"codes of model.proj must lie in \[-2, 1\]"),
        ({"group_size": 3}, "group_size must divide the 4 inputs"),
        ({"group_size": 4}, r"scales must have shape \(2, 1\)"),
        ({"codes": GOOD["codes"].int()}, "codes must be int8"),
        ({"scales": GOOD["scales"].float()}, "scales float16"),
        ({"scales": GOOD["scales"] * 0}, "must be positive and finite"),
        ({"scales": GOOD["scales"] * float("nan")}, "must be positive and finite"),
    ],
)
def test_what_does_not_belong_together_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidParameterError, match=words):
        QuantizedLayer(**(GOOD | change))
