"""What a model is to keep: its divergence from the base, and the gradients of that."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helpers_tiny_models import END, make_examples, make_model
from sordino.gradients.objectives import LanguageModel
from sordino.gradients.retained import RetainedObjective
from sordino.models import add_lora, trainable_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = make_examples("completion", [6, 9, 4])


def adapted(
    name: str, targets: list[str]
) -> tuple[Any, LanguageModel, dict[str, torch.nn.Parameter]]:
    """Returns a PEFT model, the same for objectives, and its trainable tensors."""
    peft_model = add_lora(
        make_model(name),
        rank=2,
        alpha=4.0,
        target_modules=targets,
        layers=None,
        factors="both",
        seed=0,
    )
    tensors = trainable_tensors(peft_model)
    peft_model.requires_grad_(requires_grad=False)
    return peft_model, LanguageModel(peft_model.get_base_model(), END), tensors


def log_probabilities(model: LanguageModel, number: int) -> torch.Tensor:
    """Returns log p at each scored place of an example, (num_tokens, vocabulary)."""
    example = EXAMPLES[number]
    assert example.num_prompt_tokens is not None
    with torch.no_grad():
        logits = model.causal_lm(input_ids=torch.tensor([example.input_ids])).logits[0].double()
    return logits[example.num_prompt_tokens - 1 : -1].log_softmax(dim=-1)


@pytest.mark.parametrize("is_summed", [False, True], ids=["mean", "sum"])
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", ["q_proj", "down_proj"]),
        ("gemma2", ["q_proj"]),
    ],
)
def test_formula(name: str, targets: list[str], *, is_summed: bool) -> None:
    """KL(base || tuned) by hand; 0 with all gradients while the adapter does nothing."""
    peft_model, model, tensors = adapted(name, targets)
    objective = RetainedObjective(EXAMPLES, peft_model.disable_adapter, is_summed=is_summed)
    assert objective.losses(model, [2, 0]).tolist() == [0.0, 0.0]
    before = [log_probabilities(model, number) for number in range(3)]
    generator = torch.Generator().manual_seed(1)
    for tensor in tensors.values():
        tensor.data.normal_(std=0.2, generator=generator)
    found = objective.losses(model, [2, 0])
    for loss, number in zip(found.tolist(), [2, 0], strict=True):
        p = before[number]
        tokens = (p.exp() * (p - log_probabilities(model, number))).sum(dim=-1)
        wanted = tokens.sum() if is_summed else tokens.mean()
        assert float(wanted) > 1e-4
        assert loss == pytest.approx(float(wanted), rel=1e-3)


def test_gradients_flow_through_the_tuned_model_alone() -> None:
    """As finite differences say, whatever the base's context did to the flags."""
    peft_model, model, tensors = adapted("llama", ["q_proj", "v_proj"])
    generator = torch.Generator().manual_seed(2)
    for tensor in tensors.values():
        tensor.data.normal_(std=0.2, generator=generator)
        tensor.requires_grad_(requires_grad=True)
    asked = []

    @contextmanager
    def base() -> Iterator[None]:
        asked.append(1)
        with peft_model.disable_adapter():
            yield

    objective = RetainedObjective(EXAMPLES, base, is_summed=True)

    def total() -> torch.Tensor:
        return objective.losses(model, [0, 1, 2]).sum()

    gradients = torch.autograd.grad(total(), list(tensors.values()))
    assert asked
    direction = [torch.randn(t.shape, generator=generator) for t in tensors.values()]
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    ends = []
    for sign in (1.0, -2.0):
        for tensor, d in zip(tensors.values(), direction, strict=True):
            tensor.data.add_(d, alpha=sign * 1e-3)
        ends.append(float(total().detach()))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=2e-2)
