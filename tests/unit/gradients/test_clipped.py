"""Sums of clipped gradients are those of each unit's own gradient, and no unit adds too much."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helpers_tiny_models import (
    END,
    WORDS,
    brute_force_gradients,
    make_examples,
    make_model,
    named_parameters,
)
from sordino.gradients.bookkeeping import BookKeeping
from sordino.gradients.clipped import CLIPPINGS, ClippedGradients, group_units
from sordino.gradients.objectives import (
    AbstractObjective,
    ClassificationObjective,
    CompletionObjective,
    LanguageModel,
)
from sordino.gradients.uses import UseWatcher

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LENGTHS = [5, 12, 2, 9, 12, 3]
METHODS = ["materialised", "book-keeping"]
USERS = [7, 7, 3, 5, 5, 5]  # users of two, one and three records
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-untied": ("llama", {"tie_word_embeddings": False}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", {}),  # weights the other way round, positions, tied
    "opt": ("opt", {}),  # positions with an offset, biases, tied, projections around the blocks
    "gemma2": ("gemma2", {}),  # tied, its own logits
    "phi": ("phi", {}),
    "qwen3": ("qwen3", {}),
    "gemma3": ("gemma3", {}),
}


def make_objective(kind: str) -> AbstractObjective:
    examples = make_examples(kind, LENGTHS)
    if kind == "classification":
        return ClassificationObjective(examples, WORDS)
    return CompletionObjective(examples)


def make_clipped(model: Any, kind: str, clip_norm: float = 1e6, **changes: Any) -> ClippedGradients:
    objective = changes.pop("objective", None) or make_objective(kind)
    tensors = changes.pop("tensors", None) or named_parameters(model)
    return ClippedGradients(
        LanguageModel(model, END), objective, tensors, clip_norm=clip_norm, **changes
    )


def flat(total: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([values.reshape(-1) for values in total.values()]).double()


def sum_of(
    clipped: ClippedGradients, batch: Sequence[int] = range(6), units: Sequence[int] | None = None
) -> torch.Tensor:
    """Returns what one batch adds, as one float64 vector."""
    total = clipped.zeros()
    clipped.add_batch(total, batch, units)
    return flat(total)


def by_unit(gradients: torch.Tensor, units: Sequence[int]) -> torch.Tensor:
    """Returns each unit's gradient, the users' own by adding up records."""
    return torch.stack(
        [
            gradients[[i for i, u in enumerate(units) if u == unit]].sum(dim=0)
            for unit in dict.fromkeys(units)
        ]
    )


def expected_sum(
    gradients: torch.Tensor, clip_norm: float, clipping: str, sizes: Sequence[int]
) -> torch.Tensor:
    """Returns the sum of clipped gradients, each scaled the plain way."""
    if clipping == "per-layer":
        part = clip_norm / math.sqrt(len(sizes))
        parts = [expected_sum(g, part, "flat", ()) for g in gradients.split(list(sizes), dim=1)]
        return torch.cat(parts)
    norms = gradients.norm(dim=1, keepdim=True)
    if clipping == "automatic":
        return (gradients * (clip_norm / (norms + 0.01))).sum(dim=0)
    return (gradients * (clip_norm / norms.clamp_min(1e-30)).clamp(max=1.0)).sum(dim=0)


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


def per_unit_norms(
    model: Any, kind: str, units: Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns squared norms by book-keeping over all tensors, and their upper bounds."""
    tensors = named_parameters(model)
    watcher, objective = UseWatcher(model, tensors), make_objective(kind)
    books = BookKeeping(watcher, tensors, group_units(range(6), units))
    watcher.run(lambda: objective.losses(LanguageModel(model, END), range(6)), 6, books)
    found = [books.squared_norms(name) for name in tensors]
    pairs = [norms for norms in found if norms is not None]
    return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)  # type: ignore[return-value]


# ------------------------------------------------------------------------ norms and clipped sums


@pytest.mark.parametrize("units", [None, USERS], ids=["records", "users"])
@pytest.mark.parametrize("kind", ["classification", "completion"])
@pytest.mark.parametrize("name", MODELS)
def test_norms_and_sums_are_those_of_each_unit_alone(
    name: str, kind: str, units: Sequence[int] | None
) -> None:
    """Relative error below 1e-5, for padded records of unequal length and for users of several."""
    architecture, changes = MODELS[name]
    model = make_model(architecture, **changes)
    gradients = by_unit(
        brute_force_gradients(model, make_examples(kind, LENGTHS)), units or range(6)
    )
    norms = gradients.norm(dim=1)
    squared, upper = per_unit_norms(model, kind, units)
    assert torch.allclose(squared.sqrt(), norms, rtol=1e-5)
    assert (upper.sqrt() >= norms * (1 - 1e-7)).all()
    assert torch.allclose(upper.sqrt(), norms, rtol=1e-4)
    clip_norm = float(norms.median())  # some are clipped and some are not
    sizes = [p.numel() for p in named_parameters(model).values()]
    for method in METHODS:
        for clipping in CLIPPINGS if name in {"llama-tied", "gpt2", "opt"} else ["flat"]:
            clipped = make_clipped(model, kind, clip_norm, clipping=clipping, method=method)
            exact = clip_norm * (1 - clipped.clip_margin)
            expected = expected_sum(gradients, exact, clipping, sizes)
            # book-keeping scales by upper bounds on norms, a little above the norms
            tolerance = 1e-5 if method == "materialised" else 2e-5
            assert_near(sum_of(clipped, units=units), expected, tolerance)
    unclipped = make_clipped(model, kind, 1e6, method="book-keeping")
    assert_near(sum_of(unclipped, units=units), gradients.sum(dim=0))
