"""Gradient scores against gradients computed one by one; the model stays as it was."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helpers_tiny_models import END, WORDS, brute_force_gradients, make_model, named_parameters
from sordino.attacks import gradient_scores
from sordino.attacks.gradient_scores import gradient_norm, single_step_ratio
from sordino.attacks.texts import ScoredText
from sordino.attacks.token_statistics import compute_token_statistics
from sordino.core.errors import InvalidParameterError, PrecisionError
from sordino.data.tasks import Example
from sordino.gradients.objectives import LanguageModel

if TYPE_CHECKING:
    from collections.abc import Mapping

IDS = [3, 8, 0, 21, 9]
TEXT = ScoredText(IDS, 2, "")
LABEL = ScoredText(IDS, 4, "", tuple(WORDS))


def bits(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns copies, as integers so that even NaN compares."""
    return {name: p.data.clone().view(torch.int32) for name, p in parameters.items()}


def assert_untouched(model: Any, before: dict[str, torch.Tensor]) -> None:
    """Raises unless weights, flags and gradients are as before."""
    after = named_parameters(model)
    assert all(torch.equal(p.data.view(torch.int32), before[name]) for name, p in after.items())
    assert not any(p.requires_grad for p in after.values())
    assert all(p.grad is None for p in after.values())


def loss_of(model: Any, text: ScoredText) -> float:
    ((_, found),) = compute_token_statistics(LanguageModel(model, END), [text])
    return found.negative_log_likelihood


@pytest.mark.parametrize(
    ("text", "example"),
    [(TEXT, Example(IDS, num_prompt_tokens=2)), (LABEL, Example(IDS[:4], target=1))],
)
@pytest.mark.parametrize("name", ["llama", "phi", "gemma2"])
def test_norm_is_one_norm_over_the_named_set(name: str, text: ScoredText, example: Example) -> None:
    """Not the mean of the tensors' norms; and only what is named counts."""
    model = make_model(name)
    before = bits(named_parameters(model))
    every = named_parameters(model)
    some = {key: every[key] for key in list(every)[:3]}
    for parameters in (every, some):
        flat = brute_force_gradients(model, [example], parameters)
        found = gradient_norm(LanguageModel(model, END), parameters, text)
        assert found == pytest.approx(-float(flat.norm()), rel=1e-5)
    assert_untouched(model, before)


@pytest.mark.parametrize("text", [TEXT, LABEL])
def test_step_ratio_is_that_of_the_moved_model(text: ScoredText) -> None:
    """Against a second model whose weights are really moved; ours has the same bits as before."""
    model, other = make_model("llama"), make_model("llama")
    parameters = named_parameters(model)
    before = bits(parameters)
    found = single_step_ratio(LanguageModel(model, END), parameters, text, learning_rate=0.005)
    assert_untouched(model, before)
    example = Example(IDS, num_prompt_tokens=2) if text is TEXT else Example(IDS[:4], target=1)
    flat = brute_force_gradients(other, [example])[0]
    start = 0
    for parameter in named_parameters(other).values():
        step = flat[start : start + parameter.numel()].reshape(parameter.shape).float()
        parameter.data.sub_(0.005 * step)
        start += parameter.numel()
    assert found == pytest.approx(loss_of(other, text) / loss_of(model, text), rel=1e-4)
    assert found < 1.0


def test_adding_the_step_back_would_not_restore() -> None:
    """The reason for the snapshot: in floating point (w - s) + s is not w."""
    weights = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    step = 0.3 * torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert not torch.equal((weights - step) + step, weights)


def test_weights_come_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the pass after the step leaves the model bit for bit as it was."""
    model = make_model("llama")
    parameters = named_parameters(model)
    before = bits(parameters)
    original, calls = gradient_scores._nll, []

    def fail_second(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            assert any(
                not torch.equal(p.data.view(torch.int32), before[n]) for n, p in parameters.items()
            )
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(gradient_scores, "_nll", fail_second)
    with pytest.raises(KeyboardInterrupt):
        single_step_ratio(LanguageModel(model, END), parameters, TEXT, learning_rate=0.5)
    assert_untouched(model, before)


def test_exploding_step_raises_and_restores() -> None:
    model = make_model("llama")
    parameters = named_parameters(model)
    before = bits(parameters)
    with pytest.raises(PrecisionError, match="finite"):
        single_step_ratio(LanguageModel(model, END), parameters, TEXT, learning_rate=1e38)
    assert_untouched(model, before)


def test_broken_weights_raise_and_stay() -> None:
    """NaN in, an error out; and even the NaN's bits stay."""
    model = make_model("llama")
    model.lm_head.weight.data[4] = math.nan
    parameters = named_parameters(model)
    before = bits(parameters)
    for call in (
        lambda: gradient_norm(LanguageModel(model, END), parameters, TEXT),
        lambda: single_step_ratio(LanguageModel(model, END), parameters, TEXT, learning_rate=0.1),
    ):
        with pytest.raises(PrecisionError, match="finite"):
            call()
    assert_untouched(model, before)


def test_step_lost_in_rounding_raises() -> None:
    """A ratio of exactly 1 from weights that did not move would look like a member."""
    model = make_model("llama").to(torch.bfloat16)
    parameters = {"norm": model.model.norm.weight}
    with pytest.raises(PrecisionError, match="too small"):
        single_step_ratio(LanguageModel(model, END), parameters, TEXT, learning_rate=1e-30)


def test_frozen_flags_come_back() -> None:
    """What was trainable is so again, and got no gradient."""
    model = make_model("llama")
    model.model.norm.weight.requires_grad_(requires_grad=True)
    parameters = {"head": model.lm_head.weight}
    gradient_norm(LanguageModel(model, END), parameters, TEXT)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["model.norm.weight"]
    assert model.model.norm.weight.grad is None


def test_wrong_parameters_are_refused() -> None:
    model = make_model("llama")
    language_model = LanguageModel(model, END)
    stranger = torch.nn.Parameter(torch.zeros(2))
    for parameters in ({}, {"stranger": stranger}):
        with pytest.raises(InvalidParameterError, match="parameters"):
            gradient_norm(language_model, parameters, TEXT)
    unused = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
    model.register_parameter("unused", unused)
    with pytest.raises(InvalidParameterError, match="reach the loss"):
        gradient_norm(language_model, {"unused": unused}, TEXT)
    with pytest.raises(InvalidParameterError, match="prefix"):
        gradient_norm(
            LanguageModel(model, END, prefix=object()), {"head": model.lm_head.weight}, TEXT
        )
    for rate in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InvalidParameterError, match="learning_rate"):
            single_step_ratio(
                language_model, {"head": model.lm_head.weight}, TEXT, learning_rate=rate
            )
