"""The Walsh-Hadamard transform: thousands of orthogonal +-1 directions for the price of a few.

Whole numbers stay whole numbers: exact in float64, in any order.
"""

from __future__ import annotations

from functools import cache

import torch

_GROUP_BITS = 6  # one matrix product with a 64 x 64 Hadamard matrix does six butterfly stages


def padded_length(length: int) -> int:
    """Returns the smallest power of two that is at least `length`."""
    return 1 << max(length - 1, 0).bit_length()


def walsh_hadamard(values: torch.Tensor) -> torch.Tensor:
    """Returns the unnormalised Walsh-Hadamard transform of each row.

    Args:
        values: Shape (batch_size, length), float32 or float64; length a power of two.

    Returns:
        Shape (batch_size, length): entry (b, r) is sum_i values[b, i] * (-1)**popcount(r & i).
    """
    batch_size, length = values.shape
    bits = length.bit_length() - 1
    if length != 1 << bits:
        raise ValueError(f"length must be a power of two, got {length}.")
    done = 0
    while done < bits:
        stages = min(_GROUP_BITS, bits - done)
        matrix = hadamard_matrix(stages).to(values)
        if done == 0:  # contiguous groups: one plain matrix product
            values = values.reshape(-1, 1 << stages) @ matrix
        else:
            values = torch.matmul(matrix, values.reshape(-1, 1 << stages, 1 << done))
        done += stages
    return values.reshape(batch_size, length)


@cache
def hadamard_matrix(bits: int) -> torch.Tensor:
    """Returns the Hadamard matrix of order 2**bits."""
    matrix = torch.ones(1, 1)
    for _ in range(bits):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix
