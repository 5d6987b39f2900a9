"""Penalized completions: the formula, the plain loss without it, and what a step does."""

from __future__ import annotations

import math

import pytest
import torch

from helpers_tiny_models import END, brute_force_gradients, make_examples, make_model
from sordino.core.errors import InvalidParameterError
from sordino.data.tasks import Example
from sordino.gradients.clipped import ClippedGradients
from sordino.gradients.objectives import CompletionObjective, LanguageModel
from sordino.gradients.penalized import PenalizedCompletionObjective
from sordino.models import add_lora, trainable_tensors

FORBIDDEN = (7, 11, 30)


def _examples() -> list[Example]:
    plain = make_examples("completion", [6, 9, 4])
    return [
        Example(e.input_ids, num_prompt_tokens=e.num_prompt_tokens, forbidden=forbidden)
        for e, forbidden in zip(plain, [FORBIDDEN, (), (3,)], strict=True)
    ]


def _probabilities(model: LanguageModel, example: Example) -> torch.Tensor:
    """Returns each scored place's distribution, (num_tokens, vocabulary)."""
    logits = model.causal_lm(input_ids=torch.tensor([example.input_ids])).logits[0].double()
    assert example.num_prompt_tokens is not None
    return torch.softmax(logits, dim=-1)[example.num_prompt_tokens - 1 : -1]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_formula(name: str) -> None:
    """-log p(token) - weight * log(1 - p(forbidden)), its mean over the completion."""
    model = LanguageModel(make_model(name), END)
    examples = _examples()
    found = PenalizedCompletionObjective(examples, 0.7).losses(model, [0, 1, 2])
    for loss, example in zip(found.tolist(), examples, strict=True):
        p = _probabilities(model, example)
        scored = torch.tensor(example.input_ids[example.num_prompt_tokens :])
        wanted = -p.gather(1, scored[:, None]).log().mean()
        wanted -= 0.7 * (1 - p[:, list(example.forbidden)].sum(dim=1)).log().mean()
        assert loss == pytest.approx(float(wanted), rel=1e-4)


def test_without_weight_or_forbidden_tokens_the_loss_is_plain() -> None:
    """To the last bit, so that other runs do not change."""
    model = LanguageModel(make_model("llama"), END)
    examples = _examples()
    plain = CompletionObjective(examples)
    assert torch.equal(
        PenalizedCompletionObjective(examples).losses(model, [0, 1]), plain.losses(model, [0, 1])
    )
    assert torch.equal(
        PenalizedCompletionObjective(examples, 2.0).losses(model, [1]), plain.losses(model, [1])
    )
    summed = PenalizedCompletionObjective(examples, 2.0, is_summed=True).losses(model, [0, 1])
    means = PenalizedCompletionObjective(examples, 2.0).losses(model, [0, 1])
    counts = torch.tensor([len(e.input_ids) - e.num_prompt_tokens for e in examples[:2]])
    assert torch.allclose(summed, means * counts, rtol=1e-5)


def test_a_step_lowers_the_forbidden_probability() -> None:
    """Further than the same step without the penalty."""
    example = _examples()[0]
    found = {}
    for weight in (0.0, 5.0):
        adapted = add_lora(make_model("llama"), rank=2, alpha=4.0, factors="b", seed=1)
        model = LanguageModel(adapted.get_base_model(), END)
        before = float(_probabilities(model, example)[:, list(FORBIDDEN)].sum().detach())
        parameters = list(trainable_tensors(adapted).values())
        objective = PenalizedCompletionObjective([example], weight)
        gradients = torch.autograd.grad(objective.losses(model, [0]).sum(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.data -= 0.02 * gradient
        after = float(_probabilities(model, example)[:, list(FORBIDDEN)].sum().detach())
        found[weight] = after - before
    assert found[5.0] < 0
    assert found[5.0] < found[0.0]


def test_clipped_gradients_are_those_of_single_records() -> None:
    """A record's penalty reaches no other record's gradient: what differential privacy needs."""
    adapted = add_lora(make_model("llama"), rank=2, alpha=4.0, factors="both", seed=1)
    tensors = trainable_tensors(adapted)
    adapted.requires_grad_(requires_grad=False)
    model = LanguageModel(adapted.get_base_model(), END)
    examples = _examples()
    objective = PenalizedCompletionObjective(examples, 3.0)
    together = ClippedGradients(model, objective, tensors, clip_norm=0.5)
    total = together.zeros()
    together.add_batch(total, [0, 1, 2])
    alone = together.zeros()
    for record in range(3):
        together.add_batch(alone, [record])
    for name, values in total.items():
        torch.testing.assert_close(values, alone[name], rtol=1e-4, atol=1e-6)
    plain = ClippedGradients(model, CompletionObjective(examples), tensors, clip_norm=0.5).zeros()
    assert any(not torch.equal(values, plain[name]) for name, values in total.items())
    assert brute_force_gradients(adapted.get_base_model(), examples[1:2], tensors).any()


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_weight_is_a_number_that_penalizes(weight: float) -> None:
    """Nothing else."""
    with pytest.raises(InvalidParameterError, match="weight"):
        PenalizedCompletionObjective(_examples(), weight)
