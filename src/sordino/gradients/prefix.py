"""The blocks below the first adapted one never change: compute them once per batch and keep that.

With the first 15 of 30 blocks frozen, a step costs half of the forward pass, and the backward pass
stops there too. What is kept are hidden states of private records, in memory only.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_LARGEST_CACHE_BYTES = 2**30
_PROBE = ((5, 9, 7, 3, 8), (4, 6, 2, 9, 1))  # any tokens do


class FrozenPrefix:
    """Hidden states that enter the first adapted block, kept per batch.

    Made by `FrozenPrefix.find`, which checks on a probe that the shortened model gives the same
    bits as the whole one.
    """

    def __init__(self, causal_lm: Any, num_frozen: int, *, keeps_states: bool) -> None:
        self._keeps_states = keeps_states
        self._decoder = causal_lm.get_decoder()
        self._num_frozen = num_frozen
        self._kept: dict[bytes, torch.Tensor] = {}

    @classmethod
    def find(
        cls, causal_lm: Any, num_frozen: int, *, keeps_states: bool = True
    ) -> FrozenPrefix | None:
        """Returns a prefix of `num_frozen` blocks, or None where the architecture has none.

        Args:
            causal_lm: A transformers causal LM whose first blocks hold nothing trainable.
            num_frozen: Number of blocks below the first adapted one.
            keeps_states: Whether batches come again; if not, only the backward pass is shortened.
        """
        decoder = causal_lm.get_decoder()
        has_blocks = isinstance(getattr(decoder, "layers", None), torch.nn.ModuleList)
        # blocks of several kinds are told apart by their number, which a shorter list would change
        kinds = set(getattr(causal_lm.config, "layer_types", None) or ())
        if num_frozen < 1 or not has_blocks or not hasattr(decoder, "norm") or len(kinds) > 1:
            return None
        prefix = cls(causal_lm, num_frozen, keeps_states=keeps_states)
        device = next(causal_lm.parameters()).device
        probe = torch.tensor(_PROBE, device=device) % causal_lm.config.vocab_size
        with torch.no_grad():
            whole = decoder(input_ids=probe, use_cache=False).last_hidden_state
            if not torch.equal(whole, prefix.last_hidden_state(probe)):
                return None  # the architecture treats embeddings or blocks in a way of its own
        prefix._kept.clear()
        return prefix

    def last_hidden_state(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns the final hidden states, shape (batch_size, length, width)."""
        key = input_ids.cpu().numpy().tobytes() + bytes(str(tuple(input_ids.shape)), "ascii")
        states = self._kept.get(key)
        if states is None:
            with torch.no_grad(), self._only(slice(None, self._num_frozen), is_last=False):
                states = self._decoder(input_ids=input_ids, use_cache=False).last_hidden_state
            if (
                self._keeps_states
                and sum(kept.nbytes for kept in (states, *self._kept.values()))
                <= _LARGEST_CACHE_BYTES
            ):
                self._kept[key] = states
        with self._only(slice(self._num_frozen, None), is_last=True):
            return self._decoder(inputs_embeds=states, use_cache=False).last_hidden_state

    @contextmanager
    def _only(self, blocks: slice, *, is_last: bool) -> Iterator[None]:
        """Context in which the decoder has only some of its blocks."""
        decoder, config = self._decoder, self._decoder.config
        layers, norm, count = decoder.layers, decoder.norm, config.num_hidden_layers
        decoder.layers = layers[blocks]
        config.num_hidden_layers = len(decoder.layers)
        if not is_last:
            decoder.norm = torch.nn.Identity()
        try:
            yield
        finally:
            decoder.layers, decoder.norm, config.num_hidden_layers = layers, norm, count
