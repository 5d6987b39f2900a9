"""Batches: each example once, within the budget, padded on the right."""

from __future__ import annotations

import pytest
import torch

from sordino.core.errors import InvalidParameterError
from sordino.data import Example, plan_batches
from sordino.data.collate import collate

LENGTHS = [5, 1, 9, 3, 30, 5, 5, 2, 9, 1]


@pytest.mark.parametrize("token_budget", [1, 7, 10, 18, 40, 1000])
@pytest.mark.parametrize("max_records", [1, 2, 3, 100])
def test_plan_keeps_its_limits(token_budget: int, max_records: int) -> None:
    plan = plan_batches(LENGTHS, token_budget=token_budget, max_records=max_records)
    assert sorted(index for batch in plan for index in batch) == list(range(len(LENGTHS)))
    for batch in plan:
        assert 1 <= len(batch) <= max_records
        padded = len(batch) * max(LENGTHS[index] for index in batch)
        assert padded <= token_budget or len(batch) == 1


def test_plan_is_the_same_each_time_and_starts_with_the_longest() -> None:
    plan = plan_batches(LENGTHS, token_budget=20, max_records=4)
    assert plan == plan_batches(tuple(LENGTHS), token_budget=20, max_records=4)
    assert plan == [[4], [2, 8], [0, 5, 6], [3, 7, 1, 9]]


def test_plan_wastes_little_on_padding() -> None:
    """Lengths as in real text: under a tenth of the tokens are padding."""
    lengths = [5 + (i * i) % 61 for i in range(1000)]
    plan = plan_batches(lengths, token_budget=1024, max_records=64)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in plan)
    assert sum(lengths) > 0.9 * padded


def test_plan_of_nothing() -> None:
    assert plan_batches([], token_budget=20, max_records=4) == []


@pytest.mark.parametrize(
    ("lengths", "token_budget", "max_records"),
    [([1], 0, 1), ([1], 1, 0), ([0], 1, 1), ([-3], 1, 1), ([1], 2.5, 1), ([1.5], 2, 1)],
)
def test_plan_refuses(lengths: list[int], token_budget: int, max_records: int) -> None:
    with pytest.raises(InvalidParameterError, match="whole number at least 1"):
        plan_batches(lengths, token_budget=token_budget, max_records=max_records)


def test_collate_pads_on_the_right() -> None:
    batch = collate([Example([5, 0, 7], target=1), Example([0], target=0)], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 0, 7], [0, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]  # a real 0 is not padding
    assert batch.last_positions.tolist() == [2, 0]
    assert batch.targets.tolist() == [1, 0]
    assert batch.completion_mask is None
    tensors = (batch.input_ids, batch.attention_mask, batch.last_positions, batch.targets)
    assert {tensor.dtype for tensor in tensors} == {torch.int64}


def test_collate_marks_the_completion() -> None:
    examples = [Example([1, 2, 3, 4], num_prompt_tokens=2), Example([1, 2], num_prompt_tokens=1)]
    batch = collate(examples, pad_id=9)
    assert batch.completion_mask.tolist() == [
        [False, False, True, True],
        [False, True, False, False],
    ]
    assert batch.completion_mask.dtype == torch.bool
    assert batch.targets is None


def test_batch_moves_as_a_whole() -> None:
    batch = collate([Example([1], target=0)], pad_id=0).to("meta")
    assert batch.input_ids.device.type == batch.targets.device.type == "meta"
    assert batch.completion_mask is None


@pytest.mark.parametrize(
    "examples",
    [[], [Example([])], [Example([1]), Example([])], [Example([1], target=1), Example([1])]],
)
def test_collate_refuses(examples: list[Example]) -> None:
    with pytest.raises(InvalidParameterError, match="examples must"):
        collate(examples, pad_id=0)


def test_padding_id_must_be_a_token() -> None:
    with pytest.raises(InvalidParameterError, match="pad_id"):
        collate([Example([1])], pad_id=None)
