"""Sums of clipped gradients are those of each unit's own gradient, and no unit adds too much."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helpers_tiny_models import (
    END,
    WORDS,
    adapted_llama,
    brute_force_gradients,
    make_examples,
    make_model,
    named_parameters,
)
from sordino.core.errors import InvalidParameterError, PrecisionError
from sordino.data.tasks import Example
from sordino.gradients import bookkeeping as bookkeeping_module
from sordino.gradients import objectives as objectives_module
from sordino.gradients.bookkeeping import BookKeeping
from sordino.gradients.clipped import CLIPPINGS, ClippedGradients, group_units
from sordino.gradients.factors import Spans
from sordino.gradients.objectives import (
    AbstractObjective,
    ClassificationObjective,
    CompletionObjective,
    GenerationObjective,
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


@pytest.mark.parametrize("units", [None, USERS], ids=["records", "users"])
@pytest.mark.parametrize("factors", ["b", "both"])
@pytest.mark.parametrize("kind", ["classification", "completion"])
def test_adapters(kind: str, factors: str, units: Sequence[int] | None) -> None:
    """LoRA: the gradients of B, or of A and B, by every method and clipping."""
    model, space = adapted_llama(factors)
    examples = make_examples(kind, LENGTHS)
    gradients = brute_force_gradients(model.causal_lm, examples, space.tensors)
    gradients = by_unit(gradients, units or range(6))
    clip_norm = float(gradients.norm(dim=1).median())
    sizes = [p.numel() for p in space.tensors.values()]
    for method in [*METHODS, "auto"]:
        for clipping in CLIPPINGS:
            clipped = ClippedGradients(
                model,
                make_objective(kind),
                space.tensors,
                clip_norm=clip_norm,
                clipping=clipping,
                method=method,
            )
            exact = clip_norm * (1 - clipped.clip_margin)
            expected = expected_sum(gradients, exact, clipping, sizes)
            assert_near(sum_of(clipped, units=units), expected, 2e-5)


def test_auto_takes_what_is_smaller() -> None:
    """An adapter is materialised, a whole model of short records is not."""
    model, space = adapted_llama("both")
    objective = make_objective("classification")
    small = ClippedGradients(model, objective, space.tensors, clip_norm=1.0)
    assert small._is_materialised([1])
    whole = make_clipped(make_model("llama", hidden_size=64), "classification")
    assert not whole._is_materialised([0, 1])


def test_auto_never_forms_whole_gradients_of_large_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With long records the factors of all layers are more numbers than a gradient.

    One record of 512 tokens took a gradient of SmolLM2-135M, 650 MB, and a batch of 16 of them more
    than 10 GB.
    """
    model, space = adapted_llama("both")
    clipped = ClippedGradients(model, make_objective("classification"), space.tensors, clip_norm=1)
    num_params = sum(p.numel() for p in space.tensors.values())
    monkeypatch.setattr("sordino.gradients.clipped._LARGEST_MATERIALISED", num_params)
    assert clipped._is_materialised([1])
    monkeypatch.setattr("sordino.gradients.clipped._LARGEST_MATERIALISED", num_params - 1)
    assert not clipped._is_materialised([1])


@pytest.mark.parametrize("entries", [1, 64])
@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_small_parts_give_the_same(
    name: str, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers are taken some units at a time, and a tied head may be used in many pieces."""
    architecture, changes = MODELS[name]
    model = make_model(architecture, **changes)
    gradients = brute_force_gradients(model, make_examples("completion", LENGTHS))
    monkeypatch.setattr(bookkeeping_module, "_ENTRIES_AT_ONCE", entries)
    monkeypatch.setattr(objectives_module, "LOGIT_ROWS_AT_ONCE", 3)
    for units in (None, USERS):
        expected = by_unit(gradients, units or range(6))
        squared, _ = per_unit_norms(model, "completion", units)
        assert torch.allclose(squared.sqrt(), expected.norm(dim=1), rtol=1e-5)
        clipped = make_clipped(model, "completion", method="book-keeping")
        assert_near(sum_of(clipped, units=units), expected.sum(dim=0))


def test_one_forward_pass_and_nothing_is_left() -> None:
    """One pass a batch; no .grad, no requires_grad and no factor is left, also after an error."""
    model = make_model("gpt2")
    sizes: list[int] = []
    model.transformer.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    for method in METHODS:
        clipped = make_clipped(model, "completion", method=method)
        sum_of(clipped, [4, 1, 2])
        with pytest.raises(IndexError):
            sum_of(clipped, [0, 99])
        assert clipped._watcher._pass is None
    assert sizes == [3, 3]
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_clipping_by_layer_keeps_no_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The factors of a layer are gone when those of the next one come."""
    kept: dict[str, int] = {}
    add_factors = BookKeeping.add_factors

    def counting(self: BookKeeping, name: str, number: int, factors: Any) -> None:
        add_factors(self, name, number, factors)
        kept[clipping] = max(kept.get(clipping, 0), len(self.matrices))

    monkeypatch.setattr(BookKeeping, "add_factors", counting)
    model = make_model("llama", tie_word_embeddings=False)
    for clipping in ("flat", "per-layer"):
        sum_of(make_clipped(model, "completion", clipping=clipping, method="book-keeping"))
    assert kept["per-layer"] == 0
    assert kept["flat"] == 16  # 2 blocks of 7 layers, the embedding and the head


# --------------------------------------------------------------------- what a unit adds is bounded


def in_bfloat16(model: Any) -> Any:
    """Returns a model whose layers compute in bfloat16."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "opt"])
def test_what_a_unit_adds_has_at_most_the_clip_norm(
    name: str, method: str, clipping: str, dtype: str
) -> None:
    """Measured in float64 on what was added, rounding included; and not far below."""
    architecture, changes = MODELS[name]
    model = make_model(architecture, **changes)
    model = in_bfloat16(model) if dtype == "bfloat16" else model
    for kind in ("classification", "completion"):
        for clip_norm in (0.01, 0.3):
            clipped = make_clipped(model, kind, clip_norm, clipping=clipping, method=method)
            for batch in ([0], [2], [1, 3], [0, 1, 2, 3, 4, 5]):  # one user of so many records
                norm = float(sum_of(clipped, batch, [0] * len(batch)).norm())
                assert norm <= clip_norm
                if clipping == "flat":
                    assert norm >= 0.97 * clip_norm


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("units", [None, USERS], ids=["records", "users"])
def test_neighbors_differ_by_at_most_the_clip_norm(
    units: Sequence[int] | None, clipping: str, dtype: str
) -> None:
    """Each unit left out in turn: one joint bound over all tensors, not one per tensor.

    Also when the sum is large: units are not rounded together with others.
    """
    model = make_model("llama", tie_word_embeddings=True)
    model = in_bfloat16(model) if dtype == "bfloat16" else model
    owners, clip_norm = list(units or range(6)), 0.2
    clipped = make_clipped(model, "completion", clip_norm, clipping=clipping, method="book-keeping")
    whole = sum_of(clipped, units=owners)
    for unit in dict.fromkeys(owners):
        rest = [i for i in range(6) if owners[i] != unit]
        own = [i for i in range(6) if owners[i] == unit]
        difference = whole - sum_of(clipped, rest, [owners[i] for i in rest])
        alone = sum_of(clipped, own, [unit] * len(own))
        if dtype == "float32":  # in bfloat16 the layers themselves round by the batch's shape
            assert float(difference.norm()) <= clip_norm * (1 + 1e-6)
            assert_near(difference, alone, 1e-4)
        else:
            assert float(difference.norm()) <= clip_norm * 1.1
            assert_near(difference, alone, 0.1)


def test_batches_add_up() -> None:
    """Several batches into one total equal one batch, whatever the padding; nothing is averaged."""
    model = make_model("llama", tie_word_embeddings=True)
    for method in METHODS:
        clipped = make_clipped(model, "completion", 0.5, method=method)
        whole = sum_of(clipped, range(6), USERS)
        total = clipped.zeros()
        reports = [
            clipped.add_batch(total, [2], [3]),
            clipped.add_batch(total, [], []),
            clipped.add_batch(total, [3, 4, 5, 1, 0], [5, 5, 5, 7, 7]),
        ]
        assert [report.num_units for report in reports] == [1, 0, 2]
        assert_near(flat(total), whole)
        alone = sum(sum_of(clipped, [record]) for record in range(6))
        assert_near(sum_of(clipped), alone)  # type: ignore[arg-type]


def test_padding_is_not_part_of_a_norm() -> None:
    """A record of two tokens beside one of twelve has the norm that it has alone."""
    model = make_model("gpt2")
    expected = brute_force_gradients(model, make_examples("completion", LENGTHS)).norm(dim=1)
    squared, _ = per_unit_norms(model, "completion")
    assert torch.allclose(squared.sqrt(), expected, rtol=1e-5)
    clipped = make_clipped(model, "completion", 1e-3)
    together = sum_of(clipped, [2, 1]) - sum_of(clipped, [1])
    assert_near(together, sum_of(clipped, [2]), 1e-3)


def test_repeated_tokens_share_a_row() -> None:
    """Rows of an embedding are summed by token before they are squared; also the padding token."""
    model = make_model("llama", tie_word_embeddings=False)
    examples = [
        Example([7] * 9, num_prompt_tokens=4),
        Example([END, 7, END, 7], num_prompt_tokens=1),
    ]
    expected = brute_force_gradients(model, examples)
    clipped = make_clipped(model, "", 0.05, objective=CompletionObjective(examples))
    exact = 0.05 * (1 - clipped.clip_margin)
    found = sum_of(clipped, range(2))
    assert_near(found, expected_sum(expected, exact, "flat", ()), 2e-5)


def test_bfloat16_is_near_float32() -> None:
    """Factors in bfloat16, sums in float32: close to the exact clipped sum."""
    model = make_model("llama", tie_word_embeddings=True)
    expected = sum_of(make_clipped(model, "completion", 0.5))
    clipped = make_clipped(in_bfloat16(model), "completion", 0.5, method="book-keeping")
    assert clipped.clip_margin < 2**-7
    assert_near(sum_of(clipped), expected, 0.05)


class Louder(AbstractObjective):
    """Losses times a number, for large gradients."""

    def __init__(self, factor: float) -> None:
        self._plain = make_objective("completion")
        self.lengths = LENGTHS
        self._factor = factor

    def losses(self, model: LanguageModel, records: Sequence[int]) -> torch.Tensor:
        return self._plain.losses(model, records) * self._factor


def test_norms_do_not_overflow_in_half_precision() -> None:
    """Squared norms far beyond 65,504 in float16, and beyond float32's digits in bfloat16."""
    model = make_model("llama")
    expected = brute_force_gradients(model, make_examples("completion", LENGTHS))
    expected = expected_sum(expected, 0.5, "flat", ())
    for dtype, factor in ((torch.float16, 1e3), (torch.bfloat16, 1e9)):
        other = copy.deepcopy(model)
        for parameter in other.parameters():
            parameter.data = parameter.data.to(dtype)
        for method in METHODS:
            clipped = make_clipped(other, "", 0.5, objective=Louder(factor), method=method)
            assert_near(sum_of(clipped), expected, 0.1)


# ----------------------------------------------------------------------- failures are loud


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_that_is_no_number_stops_the_run(
    method: str, clipping: str, value: float
) -> None:
    """Refused, and the sum so far cannot be used either."""
    model = make_model("llama")
    clipped = make_clipped(model, "completion", 1.0, clipping=clipping, method=method)
    total = clipped.zeros()
    clipped.add_batch(total, [0, 1])
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = value
    with pytest.raises(PrecisionError, match="nothing was released"):
        clipped.add_batch(total, [2, 3])
    assert all(bool(values.isnan().all()) for values in total.values())


def test_a_gradient_beyond_float32_is_refused_not_dropped() -> None:
    """A squared norm that overflows must not become a factor of zero."""
    for method in METHODS:
        clipped = make_clipped(make_model("llama"), "", 1.0, objective=Louder(1e35), method=method)
        with pytest.raises(PrecisionError, match="nothing was released"):
            clipped.add_batch(clipped.zeros(), [0, 1])


def test_an_adapter_that_cannot_move_is_reported() -> None:
    """With A and B both zero no gradient ever comes: the report says so; zero stays zero."""
    model, space = adapted_llama("both")
    for method in METHODS:
        clipped = ClippedGradients(
            model, make_objective("completion"), space.tensors, clip_norm=1.0, method=method
        )
        assert not clipped.add_batch(clipped.zeros(), [0, 1]).is_all_zero
    for parameter in space.tensors.values():
        parameter.data.zero_()
    for method in METHODS:
        for clipping in CLIPPINGS:
            clipped = ClippedGradients(
                model,
                make_objective("completion"),
                space.tensors,
                clip_norm=1.0,
                clipping=clipping,
                method=method,
            )
            total = clipped.zeros()
            assert clipped.add_batch(total, [0, 1]).is_all_zero
            assert not flat(total).any()


def test_tensors_that_the_losses_do_not_use_are_reported() -> None:
    """Trainable, covered, and never called: the sum is zero, and that is told."""
    model = make_model("llama")
    model.unused = torch.nn.Linear(3, 3).requires_grad_(requires_grad=False)
    tensors = dict(model.unused.named_parameters(prefix="unused"))
    for method in METHODS:
        clipped = make_clipped(model, "completion", tensors=tensors, method=method)
        assert clipped.add_batch(clipped.zeros(), [0, 1]).is_all_zero


def test_tensors_that_are_not_covered_are_refused_by_name() -> None:
    """At the start, before any pass; or when an architecture multiplies by itself."""
    model = make_model("llama")
    model.gate = torch.nn.Parameter(torch.ones(4), requires_grad=False)
    with pytest.raises(InvalidParameterError, match="gate is in a LlamaForCausalLM"):
        make_clipped(model, "completion")
    with pytest.raises(InvalidParameterError, match=r"query_key_value\.weight is used by \.T in"):
        sum_of(make_clipped(make_model("falcon"), "completion"), [0, 1])
    model = make_model("llama")
    model.config.num_experts = 8
    make_clipped(model, "completion")
    model.experts = torch.nn.Linear(2, 2)
    with pytest.raises(InvalidParameterError, match=r"experts\.\w+ is trainable"):
        make_clipped(model, "completion")


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 1e-13, 1e13])
def test_clip_norms_that_do_not_bound_are_refused(bad: float) -> None:
    with pytest.raises(InvalidParameterError, match="clip_norm must be in"):
        make_clipped(make_model("llama"), "completion", bad)


def test_other_arguments_are_checked() -> None:
    """Objectives without a gradient, unknown words, nothing to train, sums of another shape."""
    model = make_model("llama")
    generation = GenerationObjective(make_examples("classification", LENGTHS), None, 4)
    with pytest.raises(InvalidParameterError, match="has no gradient"):
        make_clipped(model, "", objective=generation)
    with pytest.raises(InvalidParameterError, match="clipping must be one of flat, per-layer"):
        make_clipped(model, "completion", clipping="none")
    with pytest.raises(InvalidParameterError, match="method must be one of auto, materialised"):
        make_clipped(model, "completion", method="ghost")
    with pytest.raises(InvalidParameterError, match="no trainable tensor"):
        ClippedGradients(LanguageModel(model, END), make_objective("completion"), {}, clip_norm=1.0)
    clipped = make_clipped(model, "completion")
    for change in (
        lambda total: total.pop("model.norm.weight"),
        lambda total: total.update(other=torch.zeros(3)),
        lambda total: total.update({"model.norm.weight": torch.zeros(3)}),
        lambda total: total.update({"model.norm.weight": torch.zeros(16).bfloat16()}),
    ):
        total = clipped.zeros()
        change(total)
        with pytest.raises(InvalidParameterError, match=r"norm\.weight|other does not fit"):
            clipped.add_batch(total, [0])


def test_a_unit_is_clipped_once() -> None:
    """A record twice in a batch, or a user in two places, would count twice: refused."""
    assert group_units([4, 2, 9], None) == Spans((0, 1, 2, 3))
    assert group_units([4, 2, 9], [1, 1, 0]) == Spans((0, 2, 3))
    assert len(group_units([], [])) == 0
    with pytest.raises(InvalidParameterError, match="distinct records"):
        group_units([4, 2, 4], None)
    with pytest.raises(InvalidParameterError, match="side by side"):
        group_units([4, 2, 9], [1, 0, 1])
    with pytest.raises(InvalidParameterError, match="3 records need as many units, got 2"):
        group_units([4, 2, 9], [1, 0])
