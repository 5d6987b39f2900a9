"""Records that begin alike in one row: the beginning that they share is computed once.

Each record's own tokens follow the shared ones in the row, at the positions they have in the
record, and a mask lets them see the shared tokens and their own alone. The states are those of the
records one by one, up to rounding; what each record's gradient is can no longer be told apart.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from sordino.data._tokens import common_prefix
from sordino.gradients.attention import SharedAttentionMode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sordino.data.tasks import Example

_ATTENTION = "full_attention"


@dataclass(frozen=True, slots=True, eq=False)
class SharedRow:
    """Completions that begin alike, as one sequence of L tokens.

    Args:
        input_ids: int64 (1, L).
        position_ids: int64 (1, L), as in the records.
        mask: bool (1, 1, L, L), True where a token may look.
        lengths: Tokens of each record after the shared ones.
        num_shared: Tokens that all records share; all of them before the last token of a prompt.
        records: int64 (num_targets,): number of the record of each completion token, ascending.
        places: int64 (num_targets,): where in the row the logits stand that predict it.
        targets: int64 (num_targets,): the token itself.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    lengths: list[int]
    num_shared: int
    records: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor

    def states(self, decoder: Any) -> torch.Tensor:
        """Returns the final hidden states at `places`, shape (num_targets, width)."""
        device = next(decoder.parameters()).device
        with SharedAttentionMode(self.num_shared, self.lengths):
            output = decoder(
                input_ids=self.input_ids.to(device),
                position_ids=self.position_ids.to(device),
                attention_mask=self.mask.to(device),
                use_cache=False,
            )
        states: torch.Tensor = output.last_hidden_state[0, self.places.to(device)]
        return states


def make_row(examples: Sequence[Example]) -> SharedRow:
    """Returns completions as one row; they share as many tokens as they all begin with.

    Args:
        examples: At least one completion.
    """
    shared = count_shared(examples)
    rows = [example.input_ids for example in examples]
    lengths = [len(row) - shared for row in rows]
    first = rows[0]
    tokens = first[:shared] + [token for row in rows for token in row[shared:]]
    positions = list(range(shared))
    owner = torch.full((len(tokens),), -1)
    records, places, targets = [], [], []
    starts = accumulate(lengths, initial=shared)
    for number, (example, length, start) in enumerate(zip(examples, lengths, starts, strict=False)):
        positions += range(shared, shared + length)
        owner[start : start + length] = number
        for position in range(_num_prompt_tokens(example), len(example.input_ids)):
            records.append(number)
            places.append(start + position - 1 - shared)
            targets.append(example.input_ids[position])
    sees_shared = (owner == -1)[None, :]
    mask = (sees_shared | (owner[:, None] == owner[None, :])).tril()
    return SharedRow(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        mask=mask[None, None],
        lengths=lengths,
        num_shared=shared,
        records=torch.tensor(records),
        places=torch.tensor(places),
        targets=torch.tensor(targets),
    )


def count_shared(examples: Sequence[Example]) -> int:
    """Returns how many tokens all begin with, before the last token of any prompt."""
    rows = [example.input_ids for example in examples]
    most = min(_num_prompt_tokens(example) for example in examples) - 1
    # in the order of dictionaries the first and the last differ most
    return max(min(most, common_prefix(min(rows), max(rows))), 0)


def row_length(examples: Sequence[Example]) -> int:
    """Returns the number of tokens of `make_row`."""
    shared = count_shared(examples)
    return shared + sum(len(example.input_ids) - shared for example in examples)


def can_share(causal_lm: Any) -> bool:
    """Returns whether a model takes a mask of ours: only full attention, with told positions."""
    config = causal_lm.config
    kinds = getattr(config, "layer_types", None)
    is_full = all(kind == _ATTENTION for kind in kinds or ())
    has_window = kinds is None and getattr(config, "sliding_window", None) is not None
    taken = inspect.signature(causal_lm.get_decoder().forward).parameters
    is_told = {"position_ids", "attention_mask"} <= taken.keys()
    return (
        is_full
        and is_told
        and not has_window
        and getattr(config, "_attn_implementation", None) == "sdpa"
        and hasattr(config, "rope_parameters")  # positions are told to attention, nowhere else
    )


def _num_prompt_tokens(example: Example) -> int:
    """Returns where the completion begins."""
    if example.num_prompt_tokens is None:
        raise TypeError("only completions can share a row.")
    return example.num_prompt_tokens
