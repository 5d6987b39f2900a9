"""Losses per record: the short way equals all logits of the model, and padding is never read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from helpers_tiny_models import (
    END,
    VOCABULARY,
    WORDS,
    make_examples,
    make_model,
    naive_loss,
)
from sordino.data.tasks import Example
from sordino.gradients import objectives as module
from sordino.gradients.objectives import (
    ClassificationObjective,
    CompletionObjective,
    GenerationObjective,
    LanguageModel,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sordino.gradients.objectives import AbstractObjective

ARCHITECTURES = ["llama", "gpt2", "opt", "qwen2", "gemma2", "phi"]
LENGTHS = [5, 12, 2, 9, 12, 3]
EVERY = list(range(len(LENGTHS)))
KINDS = ["classification", "completion"]


def make_objective(kind: str, examples: Sequence[Example]) -> AbstractObjective:
    if kind == "classification":
        return ClassificationObjective(examples, WORDS)
    return CompletionObjective(examples)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_loss_from_all_logits(architecture: str, kind: str) -> None:
    """A padded batch gives, for each record, what the model's own full logits give alone."""
    model = make_model(architecture)
    examples = make_examples(kind, LENGTHS)
    objective = make_objective(kind, examples)
    losses = objective.losses(LanguageModel(model, END), EVERY)
    expected = torch.stack([naive_loss(model, example) for example in examples])
    assert losses.dtype == torch.float32
    assert losses.shape == (len(LENGTHS),)
    assert torch.allclose(losses, expected, rtol=2e-5, atol=2e-6)
    assert losses.std() > 0.05  # records do differ, so the comparison says something


def test_summed_losses_weigh_tokens_alike() -> None:
    """A record's sum is its mean times its tokens: short completions count for no more."""
    model = LanguageModel(make_model("llama"), END)
    examples = make_examples("completion", LENGTHS)
    counts = torch.tensor([len(e.input_ids) - e.num_prompt_tokens for e in examples])
    means = CompletionObjective(examples).losses(model, EVERY)
    sums = CompletionObjective(examples, is_summed=True).losses(model, EVERY)
    assert torch.allclose(sums, means * counts, rtol=1e-5)
    assert len(set(counts.tolist())) > 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_does_not_change_a_loss(architecture: str, kind: str) -> None:
    """Company, order and padding token of a batch do not matter; the id may be a real token's."""
    model = make_model(architecture)
    objective = make_objective(kind, make_examples(kind, LENGTHS))
    whole = objective.losses(LanguageModel(model, END), EVERY)
    for pad in (7, VOCABULARY - 1):
        assert torch.equal(objective.losses(LanguageModel(model, pad), EVERY), whole)
    order = [4, 0, 5, 2, 1, 3]
    shuffled = objective.losses(LanguageModel(model, END), order)
    assert torch.allclose(shuffled, whole[order], rtol=2e-5, atol=2e-6)
    for record in EVERY:
        alone = objective.losses(LanguageModel(model, END), [record])
        assert torch.allclose(alone, whole[[record]], rtol=2e-5, atol=2e-6)


def test_an_end_token_at_the_end_is_scored() -> None:
    """Where padding and end of text are one token, a real one still counts."""
    model = make_model("llama")
    ids = [3, 8, 11, END]
    with_end = Example(ids, num_prompt_tokens=2)
    longer = Example([3, 8, 11, 4, 9, 30, 2], num_prompt_tokens=2)
    objective = CompletionObjective([with_end, longer])
    losses = objective.losses(LanguageModel(model, END), [0, 1])
    assert torch.allclose(losses[0], naive_loss(model, with_end), rtol=2e-5)
    without_end = naive_loss(model, Example(ids[:-1], num_prompt_tokens=2))
    assert not torch.allclose(losses[0], without_end, rtol=1e-2)


@pytest.mark.parametrize("architecture", ["llama", "opt", "phi"])
def test_unread_logits_are_not_formed(architecture: str) -> None:
    """Classification never calls the output layer; completion calls it on scored places only."""
    model = make_model(architecture)
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(
        lambda _module, inputs, _output: seen.append(inputs[0].shape[:-1].numel())
    )
    examples = make_examples("classification", LENGTHS)
    make_objective("classification", examples).losses(LanguageModel(model, END), EVERY)
    assert seen == []
    examples = make_examples("completion", LENGTHS)
    make_objective("completion", examples).losses(LanguageModel(model, END), EVERY)
    assert sum(seen) == sum(len(e.input_ids) - e.num_prompt_tokens for e in examples)


def test_logits_are_formed_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunk size is for memory only."""
    model = LanguageModel(make_model("llama"), END)
    objective = make_objective("completion", make_examples("completion", LENGTHS))
    whole = objective.losses(model, EVERY)
    monkeypatch.setattr(module, "LOGIT_ROWS_AT_ONCE", 3)
    assert torch.allclose(objective.losses(model, EVERY), whole, rtol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "changes", "is_plain"),
    [
        ("llama", {}, True),
        ("gpt2", {}, True),
        ("gemma2", {}, False),
        ("gemma2", {"final_logit_softcapping": None}, True),
    ],
)
def test_changed_logits_are_noticed(
    architecture: str, changes: dict[str, Any], is_plain: bool
) -> None:
    """A model that caps its logits goes through its own forward pass."""
    model = LanguageModel(make_model(architecture, **changes), END)
    assert model.has_plain_head is is_plain
    examples = make_examples("classification", LENGTHS)
    losses = make_objective("classification", examples).losses(model, EVERY)
    expected = torch.stack([naive_loss(model.causal_lm, e) for e in examples])
    assert torch.allclose(losses, expected, rtol=2e-5, atol=2e-6)


def test_lengths_are_those_of_the_records() -> None:
    """The batch plan needs them before any forward pass."""
    for kind in KINDS:
        assert make_objective(kind, make_examples(kind, LENGTHS)).lengths == LENGTHS


@pytest.mark.parametrize("kind", KINDS)
def test_losses_have_gradients(kind: str) -> None:
    """Both losses are differentiable, record by record."""
    model = make_model("llama")
    weight = model.model.layers[0].mlp.up_proj.weight.requires_grad_(requires_grad=True)
    objective = make_objective(kind, make_examples(kind, LENGTHS))
    assert objective.is_differentiable
    for record in (0, 1):
        losses = objective.losses(LanguageModel(model, END), EVERY)
        (found,) = torch.autograd.grad(losses[record], weight)
        example = make_examples(kind, LENGTHS)[record]
        (expected,) = torch.autograd.grad(naive_loss(model, example), weight)
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6)


class Words:
    """A tokenizer that writes tokens as words."""

    def batch_decode(self, rows: torch.Tensor, *, skip_special_tokens: bool) -> list[str]:
        """Returns one text a row; the end token is left out."""
        assert skip_special_tokens
        return [" ".join(f"w{t}" for t in row.tolist() if t != END) for row in rows]


def generated(model: Any, example: Example, num_new: int) -> str:
    """Returns the greedy continuation of one record alone, token by token."""
    ids = list(example.input_ids)
    for _ in range(num_new):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == END:
            break
    new = torch.tensor([ids[len(example.input_ids) :]])
    return Words().batch_decode(new, skip_special_tokens=True)[0]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "qwen2"])
def test_generation_is_that_of_the_record_alone(architecture: str) -> None:
    """1 - F1 of a left-padded batch: 0 with one's own continuation as reference, 1 with another."""
    model = make_model(architecture)
    alone = [Example(e.input_ids) for e in make_examples("classification", LENGTHS)]
    texts = [generated(model, example, 4) for example in alone]
    right = [Example(e.input_ids, references=("x", t)) for e, t in zip(alone, texts, strict=True)]
    wrong = [Example(e.input_ids, references=("x y",)) for e in alone]
    language_model = LanguageModel(model, END)
    objective = GenerationObjective(right, Words(), 4)
    assert not objective.is_differentiable
    assert objective.lengths == [length + 4 for length in LENGTHS]
    assert torch.equal(objective.losses(language_model, EVERY), torch.zeros(len(LENGTHS)))
    of_wrong = GenerationObjective(wrong, Words(), 4).losses(language_model, [2, 0])
    assert torch.equal(of_wrong, torch.ones(2))
