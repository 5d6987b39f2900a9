"""The blocks below the first adapted one never change: compute them once and keep the result.

With the first 15 of 30 blocks frozen, a step costs half of the forward pass, and the backward pass
stops there too. What is kept are hidden states of private records, in memory only.

States are kept by batch where every step has the same batches: a run that is continued then has the
same bits as one that never stopped. Where batches are drawn anew, they are kept by record; then the
last bits of a record's states depend on the batch in which it came first.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sordino.core.checks import require_one_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_LARGEST_CACHE_BYTES = 2**30
_PROBE = ((5, 9, 7, 3, 8), (4, 6, 2, 9, 1))  # any tokens do
KEPT = ("batches", "records", "nothing")


class FrozenPrefix:
    """Hidden states that enter the first adapted block, kept per batch or per record.

    Made by `FrozenPrefix.find`, which checks on a probe that the shortened model gives the same
    bits as the whole one.
    """

    def __init__(self, causal_lm: Any, num_frozen: int, *, kept: str) -> None:
        self._what = require_one_of("kept", kept, KEPT)
        self._decoder = causal_lm.get_decoder()
        self._num_frozen = num_frozen
        self._kept: dict[bytes, torch.Tensor] = {}
        self._kept_bytes = 0

    @classmethod
    def find(cls, causal_lm: Any, num_frozen: int, *, kept: str = "batches") -> FrozenPrefix | None:
        """Returns a prefix of `num_frozen` blocks, or None where the architecture has none.

        Args:
            causal_lm: A transformers causal LM whose first blocks hold nothing trainable.
            num_frozen: Number of blocks below the first adapted one.
            kept: "batches" where they come again as they are; "records" where they do not, and
                last bits may differ after an interruption; else "nothing".
        """
        decoder = causal_lm.get_decoder()
        has_blocks = isinstance(getattr(decoder, "layers", None), torch.nn.ModuleList)
        # blocks of several kinds are told apart by their number, which a shorter list would change
        kinds = set(getattr(causal_lm.config, "layer_types", None) or ())
        if num_frozen < 1 or not has_blocks or not hasattr(decoder, "norm") or len(kinds) > 1:
            return None
        prefix = cls(causal_lm, num_frozen, kept=kept)
        device = next(causal_lm.parameters()).device
        probe = torch.tensor(_PROBE, device=device) % causal_lm.config.vocab_size
        with torch.no_grad():
            whole = decoder(input_ids=probe, use_cache=False).last_hidden_state
            if not torch.equal(whole, prefix.last_hidden_state(probe)):
                return None  # the architecture treats embeddings or blocks in a way of its own
        prefix._kept.clear()
        prefix._kept_bytes = 0
        return prefix

    def last_hidden_state(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns the final hidden states, shape (batch_size, length, width)."""
        find = self._states_of_records if self._what == "records" else self._states_of_batch
        with torch.no_grad():
            states = find(input_ids)
        with self._only(slice(self._num_frozen, None), is_last=True):
            return self._decoder(inputs_embeds=states, use_cache=False).last_hidden_state

    def _states_of_batch(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns the states of a batch, kept if it came before."""
        key = input_ids.cpu().numpy().tobytes() + bytes(str(tuple(input_ids.shape)), "ascii")
        states = self._kept.get(key)
        if states is None:
            states = self._compute(input_ids)
            self._keep(key, states)
        return states

    def _states_of_records(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns the states of a batch; only records that did not come before are computed."""
        length = input_ids.shape[1]
        keys = [_without_repeated_end(row) for row in input_ids.cpu().numpy()]
        is_absent = [key not in self._kept or len(self._kept[key]) < length for key in keys]
        absent = [row for row, is_new in enumerate(is_absent) if is_new]
        if not absent:
            return torch.stack([self._kept[key][:length] for key in keys])
        computed = self._compute(input_ids[absent])
        for row, states in zip(absent, computed, strict=True):
            self._keep(keys[row], states.clone())  # a view would hold its whole batch
        new = iter(computed)
        return torch.stack(
            [
                next(new) if is_new else self._kept[key][:length]
                for key, is_new in zip(keys, is_absent, strict=True)
            ]
        )

    def _compute(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns what the frozen blocks make of some tokens."""
        with self._only(slice(None, self._num_frozen), is_last=False):
            return self._decoder(input_ids=input_ids, use_cache=False).last_hidden_state

    def _keep(self, key: bytes, states: torch.Tensor) -> None:
        """Keeps states if they may be needed again and there is room."""
        if self._what == "nothing":
            return
        old = self._kept.get(key)
        more = states.nbytes - (0 if old is None else old.nbytes)
        if self._kept_bytes + more <= _LARGEST_CACHE_BYTES:
            self._kept[key] = states
            self._kept_bytes += more

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


def _without_repeated_end(row: NDArray[np.int64]) -> bytes:
    """Returns a padded record as a key that does not depend on how far it was padded.

    Padding repeats one token at the end, which may be a real token too: all but one of the
    repetitions are left out. Equal keys are equal tokens up to the shorter of the two rows.
    """
    differs = np.flatnonzero(row != row[-1])
    end = int(differs[-1]) + 2 if differs.size else 1
    return row[:end].tobytes()
