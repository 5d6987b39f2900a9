"""Batches: which records go together, and their tokens as padded tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from sordino.core.checks import require_integer
from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from sordino.data.tasks import Example


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples as tensors, padded on the right. B examples, T tokens of the longest.

    Causal attention never looks to the right, so real positions are right without a mask; what
    stands at padded positions must not be read. The padding id may equal a real token.

    Args:
        input_ids: int64 (B, T).
        attention_mask: int64 (B, T), 1 for real tokens, 0 for padding.
        last_positions: int64 (B,), position of the last real token.
        targets: Classification: int64 (B,); else None.
        completion_mask: Completion: bool (B, T), True for scored tokens; else None. The logits that
            predict the token at position t stand at t - 1.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    last_positions: torch.Tensor
    targets: torch.Tensor | None
    completion_mask: torch.Tensor | None

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch with all tensors on `device`."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            moved[field.name] = None if tensor is None else tensor.to(device)
        return Batch(**moved)


def plan_batches(lengths: Sequence[int], *, token_budget: int, max_records: int) -> list[list[int]]:
    """Returns which examples go into which batch: each index once, similar lengths together.

    A pure function of its arguments. The longest come first, so that memory that is too small shows
    at once. A batch holds at most `max_records`, and at most `token_budget` tokens with padding,
    unless a single example is longer than that: it gets a batch of its own. A batch that is half
    full takes no example that would be more than an eighth padding.

    Example:
        >>> plan_batches([3, 9, 4, 2], token_budget=8, max_records=8)
        [[1], [2], [0, 3]]
    """
    require_integer("token_budget", token_budget, 1)
    require_integer("max_records", max_records, 1)
    batches: list[list[int]] = []
    room = longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = require_integer("length", lengths[index], 1)
        is_half_full = batches and 2 * len(batches[-1]) * longest >= token_budget
        if room == 0 or (is_half_full and 8 * length < 7 * longest):
            room, longest = min(max_records, max(1, token_budget // length)), length
            batches.append([])
        batches[-1].append(index)
        room -= 1
    return batches


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Returns the examples as one batch, in their order.

    Args:
        examples: At least one; all of the same task.
        pad_id: Any token the model embeds; it never reaches a real position.
    """
    import torch

    lengths = [len(example.input_ids) for example in examples]
    if not lengths or min(lengths) < 1:
        raise InvalidParameterError("examples must be at least one, each with at least one token.")
    require_integer("pad_id", pad_id, 0)
    longest = max(lengths)
    rows = [ids + [pad_id] * (longest - len(ids)) for ids in (e.input_ids for e in examples)]
    length = torch.tensor(lengths)
    positions = torch.arange(longest)
    is_real = positions < length[:, None]  # (B, T)
    targets = _column([example.target for example in examples])
    starts = _column([example.num_prompt_tokens for example in examples])
    return Batch(
        input_ids=torch.tensor(rows),
        attention_mask=is_real.long(),
        last_positions=length - 1,
        targets=targets,
        completion_mask=None if starts is None else is_real & (positions >= starts[:, None]),
    )


def _column(values: Sequence[int | None]) -> torch.Tensor | None:
    """Returns the values as a tensor, None if they all are None; a mixture is an error."""
    import torch

    present = [value for value in values if value is not None]
    if len(present) not in (0, len(values)):
        raise InvalidParameterError("examples must all be of the same task.")
    return torch.tensor(present) if present else None
