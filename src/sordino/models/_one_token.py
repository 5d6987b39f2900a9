"""Products of packed 4-bit weights with a few single tokens, without unpacking the weight.

PyTorch's own operator for processors keeps the codes in cache lines of its own and multiplies in
bfloat16. At one token a row it reads a quarter of the bytes that a bfloat16 weight has; at many
tokens unpacking once is faster, so those never come here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.autograd import forward_ad

from sordino.models._packed_codes import unpack

if TYPE_CHECKING:
    from sordino.models._packed_codes import Layout

_GROUP_SIZES = (256, 128, 64, 32)  # those the operator knows
_ROW_BLOCK = 16  # it takes whole blocks of output rows
_MOST_ROWS = 16  # from about 24 tokens on, unpacking the whole weight is faster
_FAST_PROCESSORS = ("AVX2", "AVX512")  # elsewhere the operator was not measured


@dataclass(frozen=True, slots=True, eq=False)
class OneTokenWeight:
    """A weight as the operator wants it.

    Args:
        tiles: Codes in the operator's order.
        scales_and_offsets: bfloat16, shape (in_features / group_size, out_features, 2).
        group_size: Inputs that share a scale.
    """

    tiles: torch.Tensor
    scales_and_offsets: torch.Tensor
    group_size: int

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Returns x W' + bias for x of shape (rows, 1, in_features)."""
        result = torch.ops.aten._weight_int4pack_mm_for_cpu(  # noqa: SLF001 - no public name
            x.reshape(-1, x.shape[-1]), self.tiles, self.group_size, self.scales_and_offsets
        )
        result = result.view(*x.shape[:-1], -1)
        return result if bias is None else result + bias


def is_one_token(x: torch.Tensor) -> bool:
    """Returns whether an input is what the operator is for: few rows of one token each.

    Function transforms and forward-mode derivatives have no rule for the operator.
    """
    return (
        x.ndim == 3
        and x.shape[1] == 1
        and 0 < len(x) <= _MOST_ROWS
        and x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)  # noqa: SLF001 - no public name
        and forward_ad.unpack_dual(x).tangent is None
    )


def make_one_token_weight(
    layout: Layout, qweight: torch.Tensor, scales: torch.Tensor
) -> OneTokenWeight | None:
    """Returns the weight for the operator, half a byte a weight; None where it does not apply.

    It applies to symmetric 4-bit codes in groups that are multiples of 32: an offset would lose
    more by being rounded to bfloat16 than a scale does.
    """
    size = next((size for size in _GROUP_SIZES if layout.group_size % size == 0), None)
    if (
        layout.bits != 4
        or layout.compute_dtype != torch.bfloat16
        or size is None
        or layout.in_features % layout.group_size
        or len(qweight) % _ROW_BLOCK
        or qweight.device.type != "cpu"
        or torch.backends.cpu.get_cpu_capability() not in _FAST_PROCESSORS
    ):
        return None
    repeated = scales.float().repeat_interleave(layout.group_size // size, dim=1)
    pairs = torch.stack([repeated, torch.zeros_like(repeated)], dim=-1)
    tiles = torch.ops.aten._convert_weight_to_int4pack_for_cpu(  # noqa: SLF001 - no public name
        unpack(qweight, layout).int(), 1
    )
    return OneTokenWeight(tiles, pairs.transpose(0, 1).contiguous().bfloat16(), size)
