"""Causal attention with a backward pass, for processors.

Queries are the last rows of what they look at: all of a sequence, or, where sequences begin alike
and stand in one row, what follows the shared beginning.

PyTorch's fused kernel is made for long sequences there: on records of up to about two thousand
tokens, matrix products over some rows and a few heads at a time take less time in both directions.
They skip most of the future and stay in the processor's cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_LONGEST = 2048  # beyond, the fused kernel is as fast
_ROWS = 128  # queries at once; they see the keys up to the last of them
_ENTRIES_AT_ONCE = 2**18  # of the weights of a few heads, which then stay in the processor's cache


class _AttentionMode(TorchFunctionMode):
    """Context in which some calls of PyTorch's attention are computed as below."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs one PyTorch function."""
        options = dict(kwargs or {})
        if func is not scaled_dot_product_attention or not self._takes(args, options):
            return func(*args, **options)
        query, key, value = args
        groups = query.shape[1] // key.shape[1]
        if groups > 1:  # grouped queries: every key head serves several
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        return self._attend(query, key, value, options.get("scale") or query.shape[-1] ** -0.5)

    def _takes(self, args: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
        """Returns whether a call is computed here."""
        raise NotImplementedError

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Returns attention's output, shape (batch_size, num_heads, length, width)."""
        raise NotImplementedError


class CausalAttentionMode(_AttentionMode):
    """Context in which plain causal attention on a processor is computed as below."""

    def _takes(self, args: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
        return _is_plain(args, options)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        output: torch.Tensor = _CausalAttention.apply(query, key, value, scale)
        return output


class SharedAttentionMode(_AttentionMode):
    """Context in which attention over one row of sequences that begin alike skips what it masks.

    Everything else, and all attention on other devices, is left to the mask.

    Args:
        num_shared: Tokens at the beginning, which all sequences share.
        lengths: Tokens of each sequence after them, in the row's order.
    """

    def __init__(self, num_shared: int, lengths: Sequence[int]) -> None:
        super().__init__()
        self._parts = [num_shared, *lengths]

    def _takes(self, args: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
        """Returns whether a call is masked attention of the whole row over itself."""
        if len(args) != 3 or options.get("attn_mask") is None:
            return False
        lengths = {x.shape[-2] for x in args}
        return lengths == {sum(self._parts)} and _is_taken(*args, options)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        queries, keys, values = (x.split(self._parts, dim=2) for x in (query, key, value))
        outputs = [queries[0]]  # nothing, or replaced
        if self._parts[0]:
            outputs = [_CausalAttention.apply(queries[0], keys[0], values[0], scale)]
        for q, k, v in zip(queries[1:], keys[1:], values[1:], strict=True):
            seen = (torch.cat((start, own), dim=2) for start, own in ((keys[0], k), (values[0], v)))
            outputs.append(_CausalAttention.apply(q, *seen, scale))
        return torch.cat(outputs, dim=2)


def _is_plain(args: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
    """Returns whether a call is causal attention of a short sequence over itself."""
    if len(args) != 3 or not options.get("is_causal") or options.get("attn_mask") is not None:
        return False
    query, key, value = args
    return query.shape[-2] == key.shape[-2] <= _LONGEST and _is_taken(query, key, value, options)


def _is_taken(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Mapping[str, Any]
) -> bool:
    """Returns whether shapes and device are what is computed here."""
    is_ours = query.ndim == 4 and query.device.type == "cpu" and query.shape[-1] == value.shape[-1]
    return is_ours and not options.get("dropout_p") and query.shape[1] % key.shape[1] == 0


class _CausalAttention(torch.autograd.Function):
    """softmax(scale q k^T, causal) v for shapes (batch_size, num_heads, length, width).

    Queries may be fewer than keys: they are the last ones.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        scaled, keys, values = (_by_head(x) for x in (query * scale, key, value))
        output = torch.empty_like(scaled)
        for heads, rows, seen in _blocks(*scaled.shape[:2], keys.shape[1]):
            weights = _weights(scaled[heads, rows], keys[heads, seen]).to(output.dtype)
            output[heads, rows] = weights @ values[heads, seen]
        output = output.view(query.shape)
        ctx.save_for_backward(query, key, value, output)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        query, key, value, output = ctx.saved_tensors
        scaled, keys, values, gradient = (
            _by_head(x) for x in (query * ctx.scale, key, value, *gradients)
        )
        # the mean of a row's gradients under its weights, from the output: Dao et al. 2205.14135
        wide = torch.promote_types(keys.dtype, torch.float32)
        offsets = (gradient.to(wide) * _by_head(output)).sum(dim=-1, keepdim=True)
        to_query = torch.empty_like(scaled)
        # keys and values meet in every block of rows
        to_key, to_value = (torch.zeros_like(x, dtype=wide) for x in (keys, values))
        for heads, rows, seen in _blocks(*scaled.shape[:2], keys.shape[1]):
            q, towards, k, v = (
                scaled[heads, rows],
                gradient[heads, rows],
                keys[heads, seen],
                values[heads, seen],
            )
            weights = _weights(q, k)
            to_scores = (towards @ v.mT - offsets[heads, rows]).mul_(weights).to(q.dtype)
            to_value[heads, seen] += weights.to(towards.dtype).mT @ towards
            to_query[heads, rows] = to_scores @ k
            to_key[heads, seen] += to_scores.mT @ q
        return (
            to_query.mul_(ctx.scale).view(query.shape),
            to_key.to(key.dtype).view(key.shape),
            to_value.to(value.dtype).view(value.shape),
            None,
        )


def _by_head(x: torch.Tensor) -> torch.Tensor:
    """Returns shape (batch_size * num_heads, length, width)."""
    return x.reshape(-1, *x.shape[-2:])


def _blocks(
    num_heads: int, num_queries: int, num_keys: int
) -> Iterator[tuple[slice, slice, slice]]:
    """Yields heads, rows and the keys that they see, which are computed together."""
    for start in range(0, num_queries, _ROWS):
        stop = min(num_queries, start + _ROWS)
        seen = num_keys - num_queries + stop
        at_once = max(1, _ENTRIES_AT_ONCE // ((stop - start) * seen))
        for head in range(0, num_heads, at_once):
            yield slice(head, head + at_once), slice(start, stop), slice(seen)


def _weights(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Returns the weights of the last rows over all keys so far, at least float32."""
    scores = queries @ keys.mT
    num_rows = queries.shape[1]
    future = torch.ones(num_rows, num_rows, dtype=torch.bool, device=keys.device).triu(1)
    scores[:, :, -num_rows:].masked_fill_(future, -torch.inf)
    return torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32))
