"""Membership scores from gradients: a forward and a backward pass for each text.

A text that was learned has little left to teach: its gradient is short, and a step along it hardly
lowers its loss. Both scores look at a named set of parameters, leave the model as it was, also
after an error, and are larger for more likely members.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from sordino.attacks.scores import SMALLEST_NLL
from sordino.attacks.token_statistics import word_logits
from sordino.core.checks import require_positive
from sordino.core.errors import InvalidParameterError, PrecisionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sordino.attacks.texts import ScoredText
    from sordino.gradients.objectives import LanguageModel

_SECTION = 2**20  # numbers whose squares are added up at once in float64


def gradient_norm(
    language_model: LanguageModel, parameters: Mapping[str, torch.nn.Parameter], text: ScoredText
) -> float:
    """Returns minus the Euclidean norm of the gradient of the text's NLL.

    One norm over all named parameters together, not a mean of norms of tensors.

    Args:
        language_model: The tuned model, without a frozen prefix.
        parameters: Parameters of the model, by name; such as the adapter's.
        text: One text.

    Raises:
        InvalidParameterError: If no named parameter reaches the loss.
        PrecisionError: If the gradient is NaN or infinite.
    """
    gradients = text_gradients(language_model, parameters, text)
    squares = math.fsum(
        float(part.cpu().double().square().sum())
        for gradient in gradients.values()
        for part in gradient.reshape(-1).split(_SECTION)
    )
    return -_require_finite("norm of the gradient", math.sqrt(squares))


def text_gradients(
    language_model: LanguageModel, parameters: Mapping[str, torch.nn.Parameter], text: ScoredText
) -> dict[str, torch.Tensor]:
    """Returns the gradient of the text's NLL by name; parameters that do not reach it are left out.

    Args:
        language_model: The model, without a frozen prefix.
        parameters: Parameters of the model, by any names.
        text: One text.

    Raises:
        InvalidParameterError: If no named parameter reaches the loss.
        PrecisionError: If the loss is NaN or infinite.
    """
    with _only_trainable(language_model, parameters):
        return _gradients(_nll(language_model, text), parameters)


def single_step_ratio(
    language_model: LanguageModel,
    parameters: Mapping[str, torch.nn.Parameter],
    text: ScoredText,
    *,
    learning_rate: float,
) -> float:
    """Returns NLL(theta - learning_rate * gradient) / NLL(theta).

    Larger = more likely a member: near 1 the step could not help, near 0 it could. Losses count as
    at least 1e-6 nats. The weights come back from a snapshot, bit for bit: adding the step again
    would not restore them.

    Args:
        language_model: The tuned model, without a frozen prefix.
        parameters: Parameters of the model that move, by name.
        text: One text.
        learning_rate: Length of the step in gradients; positive. Choose it so small that the step
            lowers the loss of texts that were never seen: beyond, the ratio rises for them too.

    Raises:
        InvalidParameterError: If no named parameter reaches the loss, or the rate is not positive.
        PrecisionError: If a loss or the gradient is NaN or infinite, or the step is lost in the
            weights' rounding.
    """
    require_positive("learning_rate", learning_rate)
    with _only_trainable(language_model, parameters):
        before = _nll(language_model, text)
        gradients = _gradients(before, parameters)
    with torch.no_grad(), _restored(parameters):
        has_moved = False
        for name, gradient in gradients.items():
            weights = parameters[name].data
            moved = weights - learning_rate * gradient
            has_moved = has_moved or not torch.equal(moved, weights)
            weights.copy_(moved)
        is_flat = not any(gradient.any() for gradient in gradients.values())
        if not (has_moved or is_flat):
            raise PrecisionError(
                f"learning_rate {learning_rate:g} is too small to move weights of type "
                f"{next(iter(parameters.values())).dtype}. Use a larger one, or float32."
            )
        after = _nll(language_model, text)
    first = max(float(before.detach()), SMALLEST_NLL)
    return max(_require_finite("loss", float(after)), SMALLEST_NLL) / first


def _nll(model: LanguageModel, text: ScoredText) -> torch.Tensor:
    """Returns the mean negative log-likelihood of a text's scored tokens."""
    ids = torch.tensor([text.input_ids], device=model.device)
    positions = torch.arange(text.first_scored, ids.shape[1], device=model.device)
    sequences = torch.zeros_like(positions)
    targets = ids[0, positions]
    if text.word_ids is None:
        return -model.token_log_likelihoods(ids, sequences, positions - 1, targets).mean()
    words = torch.tensor(text.word_ids, device=model.device)
    states = model.states_at(ids, sequences, positions - 1)
    log_p = torch.log_softmax(word_logits(model, states, sequences, words), dim=1)
    columns = (targets[:, None] == words).int().argmax(dim=1)
    return -log_p.gather(1, columns[:, None]).mean()


def _gradients(
    nll: torch.Tensor, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """Returns the gradient by every parameter that the loss depends on; that of others is zero."""
    _require_finite("loss", float(nll.detach()))
    if not nll.requires_grad:
        raise InvalidParameterError("parameters must reach the loss, got none that does.")
    found = torch.autograd.grad(nll, list(parameters.values()), allow_unused=True)
    return {
        name: gradient
        for name, gradient in zip(parameters, found, strict=True)
        if gradient is not None
    }


@contextmanager
def _only_trainable(
    model: LanguageModel, parameters: Mapping[str, torch.nn.Parameter]
) -> Iterator[None]:
    """Makes the named parameters trainable, and nothing else, for a while."""
    if model.prefix is not None:
        raise InvalidParameterError(
            "gradient scores need a model without a frozen prefix: no gradient passes below it."
        )
    own = list(model.causal_lm.parameters())
    if not parameters or not {id(p) for p in parameters.values()} <= {id(p) for p in own}:
        raise InvalidParameterError(
            "parameters must name at least one parameter, and only those of the model."
        )
    before = [parameter.requires_grad for parameter in own]
    try:
        for parameter in own:
            parameter.requires_grad_(requires_grad=False)
        for parameter in parameters.values():
            parameter.requires_grad_(requires_grad=True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in zip(own, before, strict=True):
            parameter.requires_grad_(requires_grad=flag)


@contextmanager
def _restored(parameters: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
    """Puts the parameters back to what they are now, bit for bit, also after an error."""
    snapshot = {name: parameter.data.clone() for name, parameter in parameters.items()}
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data.copy_(snapshot[name])


def _require_finite(name: str, value: float) -> float:
    """Returns a finite number, else raises."""
    if not math.isfinite(value):
        raise PrecisionError(f"{name} must be finite, got {value!r}. Score in float32.")
    return value
