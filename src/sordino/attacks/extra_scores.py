"""Scores that cost passes of their own, by name: gradients, and perturbed copies of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sordino.attacks.gradient_scores import gradient_norm, single_step_ratio
from sordino.attacks.reference_scores import neighbourhood, perturb_tokens
from sordino.attacks.texts import ScoredText
from sordino.attacks.token_statistics import compute_token_statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from sordino.attacks.subject import Subject

    Extra = Callable[[ScoredText], float]

EXTRA_SCORES = ("gradient-norm", "single-step-ratio", "neighbourhood")
_LEARNING_RATE = 1e-3  # of the single step
_NUM_COPIES = 8
_SHARE = 0.15


def make_extras(subject: Subject, names: Sequence[str], seed: int) -> dict[str, Extra]:
    """Returns the wanted scores as functions of one text.

    Args:
        subject: The model under attack.
        names: Of `EXTRA_SCORES`; others are left out.
        seed: Public; of the copies.
    """
    parameters = _attacked_parameters(subject)
    vocabulary = np.setdiff1d(
        np.arange(len(subject.tokenizer)), np.array(subject.tokenizer.all_special_ids, dtype=int)
    )

    def of_copies(text: ScoredText) -> float:
        ids = vocabulary if text.word_ids is None else np.array(text.word_ids)
        copies = perturb_tokens(
            text.input_ids, ids, _NUM_COPIES, _SHARE, seed, first_scored=text.first_scored
        )
        texts = [text, *(_like(text, copy) for copy in copies)]
        found = dict(compute_token_statistics(subject.tuned, texts))
        losses = [-float(found[i].log_likelihoods.mean()) for i in range(len(texts))]
        return neighbourhood(losses[0], losses[1:])

    functions: dict[str, Extra] = {
        "gradient-norm": lambda text: gradient_norm(subject.tuned, parameters, text),
        "single-step-ratio": lambda text: single_step_ratio(
            subject.tuned, parameters, text, learning_rate=_LEARNING_RATE
        ),
        "neighbourhood": of_copies,
    }
    return {name: functions[name] for name in EXTRA_SCORES if name in names}


def _like(text: ScoredText, input_ids: list[int]) -> ScoredText:
    """Returns other tokens scored at the same places."""
    return ScoredText(input_ids, text.first_scored, text.text, text.word_ids)


def _attacked_parameters(subject: Subject) -> dict[str, torch.nn.Parameter]:
    """Returns the adapter's tensors; of a whole model those of its last block, or all."""
    named = dict(subject.tuned.causal_lm.named_parameters())
    adapter = {name: p for name, p in named.items() if "lora_" in name}
    if adapter:
        return adapter
    layers = getattr(subject.tuned.causal_lm.get_decoder(), "layers", None)
    if not layers:
        return named
    last = {id(p) for p in layers[-1].parameters()}
    return {name: p for name, p in named.items() if id(p) in last}
