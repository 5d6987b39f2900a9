"""Causal attention whose backward pass suits short sequences on processors.

PyTorch's fused kernel is fast forward; its backward pass on a processor takes several times as long
as the plain matrix products for the tens of tokens of a record. The forward pass here is the fused
kernel, unchanged; the backward pass recomputes the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_LONGEST = 1024  # beyond, the weights take more memory than they save time


class CausalAttentionMode(TorchFunctionMode):
    """Context in which plain causal attention on a processor gets the backward pass below."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs one PyTorch function."""
        options = dict(kwargs or {})
        if func is scaled_dot_product_attention and _is_plain(args, options):
            query, key, value = args
            groups = query.shape[1] // key.shape[1]
            if groups > 1:  # grouped queries: every key head serves several
                key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
            scale = options.get("scale") or query.shape[-1] ** -0.5
            return _CausalAttention.apply(query, key, value, scale)
        return func(*args, **options)


def _is_plain(args: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
    """Returns whether a call is causal attention of a short sequence over itself."""
    if len(args) != 3 or not options.get("is_causal") or options.get("attn_mask") is not None:
        return False
    query, key, value = args
    is_self = query.shape[-2] == key.shape[-2] <= _LONGEST and query.shape[-1] == value.shape[-1]
    is_short = query.ndim == 4 and query.device.type == "cpu" and is_self
    return is_short and not options.get("dropout_p") and query.shape[1] % key.shape[1] == 0


class _CausalAttention(torch.autograd.Function):
    """softmax(scale q k^T, causal) v for shapes (batch_size, num_heads, length, width)."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)

    @staticmethod
    def backward(
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        query, key, value = ctx.saved_tensors
        gradient = gradients[0]
        length = query.shape[-2]
        future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
        scores = (query @ key.transpose(-1, -2)).float().mul_(ctx.scale)
        weights = torch.softmax(scores.masked_fill_(future, -torch.inf), dim=-1)
        to_weights = (gradient @ value.transpose(-1, -2)).float()
        offset = (weights * to_weights).sum(dim=-1, keepdim=True)
        to_scores = to_weights.sub_(offset).mul_(weights).mul_(ctx.scale).to(query.dtype)
        to_value = weights.to(gradient.dtype).transpose(-1, -2) @ gradient
        return to_scores @ key, to_scores.transpose(-1, -2) @ query, to_value, None
