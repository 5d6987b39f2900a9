"""Gaussian noise for whole tensors: formed and added in float64, rounded once.

Normal numbers come from a `SecretStream`, never from torch's global generator. The transform is
Box and Muller's on 53-bit uniforms, so a number is never beyond 8.58 standard deviations; the mass
that is cut off is below 2**-53. Sums with this noise are rounded, and rounding is not part of the
proof for exact arithmetic: claims that must survive attacks on floating-point numbers need
`sordino.mechanisms.discrete_gaussian`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from sordino.core.checks import require_integer, require_positive
from sordino.core.errors import InvalidParameterError, PrecisionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sordino.core.secret_stream import SecretStream

LARGEST_NORMAL = math.sqrt(2 * 53 * math.log(2))  # of a radius from a uniform of at least 2**-53

_PAIRS = 1 << 15  # a block and its intermediate results stay in the processor's cache
_ON_DEVICE_BLOCK = 1 << 24


def noise_source(device: torch.device | str) -> str:
    """Returns where noise on this device comes from, as a certificate says it."""
    if torch.device(device).type == "cpu":
        return "operating system, ChaCha20, float64"
    return f"{torch.device(device).type.upper()} generator keyed by the operating system"


def standard_normals(
    stream: SecretStream, count: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Returns independent standard normal numbers, shape (count,), float64, on the device.

    Raises:
        InvalidParameterError: If the count is negative.
        EntropyError: If the stream cannot be read.
    """
    require_integer("count", count, 0)
    normals = torch.empty(count, dtype=torch.float64, device=device)
    start = 0
    for block in _normal_blocks(stream, count, normals.device):
        normals[start : start + block.numel()] = block
        start += block.numel()
    return normals


@torch.no_grad()
def add_noise(tensor: torch.Tensor, stream: SecretStream, noise_std: float) -> None:
    """Adds Gaussian noise of the given standard deviation in place, to every number of a tensor.

    Noise is formed and added in float64; the sum is rounded once, to float32. All checks come
    before the first number is changed.

    Args:
        tensor: Any shape, float32, contiguous.
        stream: Secret randomness.
        noise_std: Standard deviation, in the tensor's units.

    Raises:
        InvalidParameterError: If `noise_std` is NaN, infinite, zero or negative, or the tensor is
            not float32 or not contiguous.
        PrecisionError: If the tensor holds NaN or infinity, or float32 cannot hold the sum.
        EntropyError: If the stream cannot be read; the tensor is then half done and must not be
            released.
    """
    noise_std = require_positive("noise_std", noise_std)
    if tensor.dtype != torch.float32 or not tensor.is_contiguous():
        raise InvalidParameterError(
            f"noise is added to contiguous float32 tensors, got {tensor.dtype}"
            f"{'' if tensor.is_contiguous() else ', not contiguous'}; convert it first."
        )
    flat = tensor.view(-1)
    if flat.numel() == 0:
        return
    low, high = (float(end) for end in torch.aminmax(flat))  # NaN if one number is NaN
    largest = max(abs(low), abs(high)) + LARGEST_NORMAL * noise_std
    if not (math.isfinite(low) and math.isfinite(high)) or largest > torch.finfo(torch.float32).max:
        raise PrecisionError(
            "a sum to be released is NaN, infinite or, with its noise, beyond float32; nothing was "
            "released. Lower the learning rate, the clip norm or the noise."
        )
    start = 0
    for block in _normal_blocks(stream, flat.numel(), flat.device):
        part = flat[start : start + block.numel()]
        part.copy_(block.mul_(noise_std).add_(part))
        start += block.numel()


def _normal_blocks(
    stream: SecretStream, count: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """Yields standard normal numbers in blocks, `count` in all, that the caller may overwrite."""
    if device.type != "cpu":
        yield from _device_blocks(stream, count, device)
        return
    buffers = torch.empty(2, min(_PAIRS, -(-count // 2)), dtype=torch.float64)
    normals = torch.empty(2 * buffers.shape[1], dtype=torch.float64)
    for start in range(0, count, 2 * _PAIRS):
        size = min(2 * _PAIRS, count - start)
        num_pairs = -(-size // 2)
        radius, angle = buffers[0, :num_pairs], buffers[1, :num_pairs]
        words = stream.words(2 * num_pairs)
        words >>= np.uint64(11)
        uniforms = words.reshape(2, num_pairs)
        np.copyto(radius.numpy(), uniforms[0])
        np.copyto(angle.numpy(), uniforms[1])
        radius.add_(1.0).mul_(2.0**-53).log_().mul_(-2.0).sqrt_()  # from uniforms in (0, 1]
        angle.mul_(2.0**-53 * 2.0 * math.pi)
        block = normals[: 2 * num_pairs]
        torch.cos(angle, out=block[:num_pairs]).mul_(radius)
        torch.sin(angle, out=block[num_pairs:]).mul_(radius)
        yield block[:size]


def _device_blocks(
    stream: SecretStream, count: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """Yields normal numbers of the device's own generator under a fresh 64-bit key."""
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(stream.read(8), "little"))
    for start in range(0, count, _ON_DEVICE_BLOCK):
        size = min(_ON_DEVICE_BLOCK, count - start)
        yield torch.randn(size, generator=generator, dtype=torch.float64, device=device)
