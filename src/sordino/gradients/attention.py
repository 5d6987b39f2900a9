"""Causal attention whose backward pass suits short sequences on processors.

PyTorch's fused kernel is fast forward; its backward pass on a processor takes several times as long
as the plain matrix products for the tens of tokens of a record. The forward pass here is the fused
kernel, unchanged; the backward pass recomputes the weights, a few heads at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_LONGEST = 640  # beyond, the fused kernel wins: it skips the future
_ENTRIES_AT_ONCE = 2**19  # of the weights of a few heads, which then stay in the processor's cache


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
        length, scale = query.shape[-2], ctx.scale
        future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
        to_query, to_key, to_value = (x.new_empty(x.shape) for x in (query, key, value))
        parts = [
            x.reshape(-1, *x.shape[-2:]).split(max(1, _ENTRIES_AT_ONCE // length**2))
            for x in (query, key, value, *gradients)
        ]
        outputs = [
            x.view(-1, *x.shape[-2:]).split(len(parts[0][0])) for x in (to_query, to_key, to_value)
        ]
        for q, k, v, gradient, out_q, out_k, out_v in zip(*parts, *outputs, strict=True):
            scores = (q @ k.mT).float().mul_(scale)
            weights = torch.softmax(scores.masked_fill_(future, -torch.inf), dim=-1)
            to_weights = (gradient @ v.mT).float()
            offset = (weights * to_weights).sum(dim=-1, keepdim=True)
            to_scores = to_weights.sub_(offset).mul_(weights).mul_(scale).to(q.dtype)
            torch.bmm(weights.to(gradient.dtype).mT, gradient, out=out_v)
            torch.bmm(to_scores, k, out=out_q)
            torch.bmm(to_scores.mT, q, out=out_k)
        return to_query, to_key, to_value, None
