"""Records that begin alike, in one row: the same losses and gradients as one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from sordino.data.tasks import Example
from sordino.gradients.attention import CausalAttentionMode
from sordino.gradients.objectives import LanguageModel
from sordino.gradients.penalized import PenalizedCompletionObjective
from sordino.gradients.shared_prefix import can_share, count_shared, make_row, row_length

if TYPE_CHECKING:
    from collections.abc import Sequence

SHAPE = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def make_model(implementation: str = "sdpa") -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, **HEADS, attn_implementation=implementation)
    return LlamaForCausalLM(config).double().eval()


def make_examples(shared: int, own: Sequence[tuple[int, int]], seed: int = 0) -> list[Example]:
    """Returns completions: so many shared tokens, then own prompt and completion tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> list[int]:
        return torch.randint(1, 50, (count,), generator=generator).tolist()

    start = draw(shared)
    return [
        Example([*start, *draw(prompt), *draw(end)], num_prompt_tokens=shared + prompt)
        for prompt, end in own
    ]


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 200),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 140)), min_size=1, max_size=4),
    st.booleans(),
)
def test_losses_and_gradients_are_those_of_the_records(
    shared: int, own: list[tuple[int, int]], is_summed: bool
) -> None:
    """With blocks of rows that are full and not, and records of many lengths."""
    model = make_model()
    examples = make_examples(shared, own)
    objective = PenalizedCompletionObjective(examples, is_summed=is_summed)
    language_model = LanguageModel(model, pad_token_id=0)
    records = list(range(len(examples)))
    one_by_one = sum(objective.losses(language_model, [i]).sum() for i in records)
    with CausalAttentionMode():  # as a run does
        in_a_row = objective.shared_loss(language_model, records)
    assert in_a_row.item() == pytest.approx(one_by_one.item(), rel=1e-5)
    expected, found = gradients(model, one_by_one), gradients(model, in_a_row)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert objective.shared_length(records) == make_row(examples).input_ids.shape[1]


def test_the_mask_alone_gives_the_same_states() -> None:
    """On other devices attention is left to the mask: here, with the eager implementation's."""
    row = make_row(make_examples(9, [(2, 3), (1, 4)]))
    model = make_model()
    expected = row.states(model.get_decoder())
    output = model.get_decoder()(
        input_ids=row.input_ids,
        position_ids=row.position_ids,
        attention_mask=row.mask,
        use_cache=False,
    )
    assert torch.allclose(expected, output.last_hidden_state[0, row.places])


def test_what_is_shared_ends_before_a_prompt_does() -> None:
    """The last token of a prompt predicts a record's own completion."""
    same = make_examples(6, [(1, 2)]) * 2
    assert count_shared(same) == 6  # of 7 tokens of the prompt
    assert row_length(same) == 6 + 2 * 3
    assert count_shared([Example([4, 5], num_prompt_tokens=1)] * 2) == 0
    with pytest.raises(TypeError, match="only completions"):
        count_shared([Example([1, 2], target=0)])


def test_a_penalty_shares_nothing() -> None:
    """The penalized loss looks at the records as they are."""
    examples = make_examples(9, [(2, 3), (1, 4)])
    examples = [
        Example(e.input_ids, num_prompt_tokens=e.num_prompt_tokens, forbidden=(3,))
        for e in examples
    ]
    objective = PenalizedCompletionObjective(examples, 0.5)
    language_model = LanguageModel(make_model(), pad_token_id=0)
    expected = objective.losses(language_model, [0, 1]).sum()
    assert objective.shared_loss(language_model, [0, 1]).item() == pytest.approx(expected.item())
    assert objective.shared_length([0, 1]) == 2 * max(len(e.input_ids) for e in examples)


def test_only_models_that_take_the_mask_share() -> None:
    """Windows, positions that are learned, and other attention functions do not."""
    assert can_share(make_model())
    assert not can_share(make_model("eager"))
    window = MistralConfig(**SHAPE, **HEADS, sliding_window=4, attn_implementation="sdpa")
    assert not can_share(MistralForCausalLM(window))
    learned = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50, attn_implementation="sdpa")
    assert not can_share(GPT2LMHeadModel(learned))
