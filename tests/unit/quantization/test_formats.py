"""Formats: what a file can hold is known before any work."""

from __future__ import annotations

import pytest

from sordino.core.errors import InvalidParameterError
from sordino.quantization.formats import FORMATS, require_writable


def test_each_format_holds_what_it_says() -> None:
    for name, found in FORMATS.items():
        for bits in found.bits:
            require_writable(name, bits=bits, group_sizes=[32, 64, 128, 576])


@pytest.mark.parametrize(
    ("name", "bits", "group_sizes", "words"),
    [
        ("gguf", 2, [32], "holds 4 or 8 bits .* got --bits 2"),
        ("gguf", 4, [64, 48], "multiple of 32, got a group of 48"),
        ("compressed-tensors", 3, [32], "holds 2 or 4 or 8 bits"),
        ("pickle", 4, [32], "format must be one of"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, bits: int, group_sizes: list[int], words: str
) -> None:
    with pytest.raises(InvalidParameterError, match=words):
        require_writable(name, bits=bits, group_sizes=group_sizes)
