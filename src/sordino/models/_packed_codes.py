"""Integer codes of 2, 4 or 8 bits as bytes, and back to weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812

_CODES_AT_ONCE = 2**18  # float32 values of one part stay in the processor's cache
_CODES_AT_ONCE_ON_DEVICE = 2**26  # each part costs the same few kernel launches


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How the codes of a layer lie in memory, and what they become.

    Args:
        bits: 2, 4 or 8.
        group_size: Neighbouring inputs that share a scale; the last group may be short.
        in_features: Columns of the weight.
        compute_dtype: Type of the unpacked weight.
    """

    bits: int
    group_size: int
    in_features: int
    compute_dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of a row."""
        width = -(-self.in_features // self.group_size) * self.group_size
        return -(-width * self.bits // 8)


def pack(codes: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Returns the bytes of a layer, shape (rows, num_bytes).

    The codes of a row are cut into as many equal parts as a byte holds codes; byte i holds code i
    of each part. So every part is unpacked into neighbouring places.
    """
    parts = 8 // layout.bits
    padded = F.pad(codes.to(torch.uint8), (0, layout.num_bytes * parts - layout.in_features))
    packed = padded[:, : layout.num_bytes].clone()
    for part in range(1, parts):
        start = part * layout.num_bytes
        packed |= padded[:, start : start + layout.num_bytes] << (part * layout.bits)
    return packed


def unpack(qweight: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Returns the codes, shape (rows, in_features), uint8."""
    codes = torch.empty(
        len(qweight),
        qweight.shape[1] * (8 // layout.bits),
        dtype=torch.uint8,
        device=qweight.device,
    )
    _spread(qweight, layout.bits, codes)
    return codes[:, : layout.in_features].clone()


def dequantize(
    layout: Layout, qweight: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor | None
) -> torch.Tensor:
    """Returns the weight in the compute type, some rows at a time."""
    rows, width = len(qweight), scales.shape[1] * layout.group_size
    total = qweight.shape[1] * (8 // layout.bits)
    shape = (rows, layout.in_features)
    result = torch.empty(shape, dtype=layout.compute_dtype, device=qweight.device)
    is_cpu = qweight.device.type == "cpu"
    at_once = max(1, (_CODES_AT_ONCE if is_cpu else _CODES_AT_ONCE_ON_DEVICE) // total)
    for start in range(0, rows, at_once):
        part = slice(start, start + at_once)
        packed = qweight[part]
        values = torch.empty(len(packed), total, device=qweight.device)
        _spread(packed, layout.bits, values)
        if offsets is None:
            values.sub_(2.0 ** (layout.bits - 1))
        groups = values[:, :width].unflatten(1, (-1, layout.group_size))
        groups.mul_(scales[part].float()[:, :, None])
        if offsets is not None:
            groups.add_(offsets[part].float()[:, :, None])
        result[part] = values[:, : layout.in_features]
    return result


def _spread(packed: torch.Tensor, bits: int, values: torch.Tensor) -> None:
    """Writes the codes of each byte to their places in `values`."""
    if bits == 8:
        values.copy_(packed)
        return
    num_bytes, parts, largest = packed.shape[1], 8 // bits, 2**bits - 1
    for part in range(parts):
        codes = packed >> (part * bits) if part else packed
        if part < parts - 1:  # the highest one has nothing above it
            codes = codes & largest
        values[:, part * num_bytes : (part + 1) * num_bytes] = codes
