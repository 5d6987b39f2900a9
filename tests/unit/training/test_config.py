"""Settings of a run: defaults by recipe, public schedules, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from sordino.core.errors import InvalidParameterError
from sordino.mechanisms.candidates import CandidateSubsets
from sordino.training.config import RECIPES, SCHEDULES, TuneConfig, find_recipe
from sordino.training.dp_plan import DpOptions
from sordino.training.setup import find_perturbation

GOOD: dict[str, Any] = {
    "guarantee": "pac",
    "mutual_information": 0.0,
    "channel": "binary-symmetric",
    "budget_schedule": "adaptive",
    "on_disagreement": "coin",
    "unanimity_flip": 0.0,
    "candidates": CandidateSubsets(num_subsets=8),
    "estimator": "zeroth-order",
    "num_steps": 4,
    "learning_rate": 0.5,
    "learning_rate_schedule": "linear",
    "weight_decay": 0.0,
    "clip": 1.0,
    "perturbation": None,
    "directions_per_step": 1,
    "direction_kind": "rademacher",
    "batch_size": None,
    "adapter": "lora",
    "shared_weight": None,
    "seed": 0,
}
NOT_NUMBERS = (math.nan, math.inf, -math.inf)


def test_recipes_are_settings_that_pass_the_checks() -> None:
    """Every default is a setting that a run accepts."""
    for (estimator, adapter), recipe in RECIPES.items():
        changes = {field: getattr(recipe, field) for field in recipe.__slots__}
        chosen: dict[str, Any] = {"estimator": estimator, "adapter": adapter}
        if estimator == "gradients":
            chosen |= {"estimator": "first-order", "optimizer": "adamw", "guarantee": "none"}
        config = TuneConfig(**GOOD | changes | chosen)
        asked = chosen["estimator"], adapter
        assert find_recipe(*asked, optimizer=chosen.get("optimizer")) is recipe
        assert len(config.learning_rates) == recipe.num_steps


def test_recipe_of_no_estimator() -> None:
    """There is a recipe for every estimator and adapter, and for nothing else."""
    with pytest.raises(InvalidParameterError, match="estimator must be one of"):
        find_recipe("second-order", "lora")
    with pytest.raises(InvalidParameterError, match="adapter must be one of"):
        find_recipe("first-order", "half")


@pytest.mark.parametrize(
    ("estimator", "kind", "needed"),
    [
        ("first-order", "rademacher", "kronecker"),
        ("first-order", "gaussian", "kronecker"),
        ("first-order", "hadamard", "kronecker"),
        ("zeroth-order", "kronecker", "rademacher or gaussian"),
    ],
)
def test_directions_that_all_weights_cannot_take(estimator: str, kind: str, needed: str) -> None:
    """Factors need directions of rank one, perturbations need streams; adapters take any."""
    changes = {"estimator": estimator, "direction_kind": kind, "directions_per_step": 2}
    with pytest.raises(InvalidParameterError, match=f"takes --direction-kind {needed}, got {kind}"):
        TuneConfig(**GOOD | changes | {"adapter": "full"})
    assert TuneConfig(**GOOD | changes).direction_kind == kind


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_one_exact_direction_a_step_has_the_zeroth_order_defaults(adapter: str) -> None:
    """Forward mode releases what zeroth order does, without its rounding: the clip is the same."""
    assert find_recipe("first-order", adapter, 1) is RECIPES["zeroth-order", adapter]
    assert find_recipe("zeroth-order", adapter, 1) is RECIPES["zeroth-order", adapter]
    assert find_recipe("first-order", "lora", 2) is RECIPES["first-order", "lora"]


@pytest.mark.parametrize(
    ("estimator", "directions", "expected"),
    [
        ("zeroth-order", 1, "central-difference"),
        ("zeroth-order", 8, "central-difference"),
        ("first-order", 1, "forward-mode"),
        ("first-order", 2, "backpropagation"),
    ],
)
def test_derivative_follows_from_estimator_and_directions(
    estimator: str, directions: int, expected: str
) -> None:
    """The ledger names how contributions were computed."""
    config = TuneConfig(**GOOD | {"estimator": estimator, "directions_per_step": directions})
    assert config.derivative == expected


def test_perturbation_fits_what_is_trained_and_the_compute_type() -> None:
    """Defaults as measured in benchmarks/RESULTS.md; the user's wins; exact derivatives have none.

    At bfloat16's step for adapters, full fine-tuning's differences correlate 0.34 with the truth.
    """
    lora, full = TuneConfig(**GOOD), TuneConfig(**GOOD | {"adapter": "full"})
    assert find_perturbation(lora, torch.bfloat16) == 3e-2
    assert find_perturbation(full, torch.bfloat16) == 3e-3
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert find_perturbation(full, dtype) <= find_perturbation(lora, dtype)
        assert find_perturbation(replace(full, perturbation=0.5), dtype) == 0.5
        for directions in (1, 4):
            kind = "rademacher" if directions == 1 else "kronecker"
            changes = {"directions_per_step": directions, "direction_kind": kind}
            exact = replace(full, estimator="first-order", **changes)
            assert find_perturbation(exact, dtype) is None


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 0.5, 0.5, 0.5]),
        ("linear", [0.5, 0.375, 0.25, 0.125]),
        ("cosine", [0.5, 0.4267766952966369, 0.25, 0.07322330470336313]),
    ],
)
def test_learning_rates(schedule: str, expected: list[float]) -> None:
    """A schedule starts at the learning rate and never reaches zero."""
    rates = TuneConfig(**GOOD | {"learning_rate_schedule": schedule}).learning_rates
    assert rates == pytest.approx(expected, rel=1e-15)
    assert min(rates) > 0
    assert set(SCHEDULES) == {"constant", "linear", "cosine"}


def test_warm_up_rises_in_equal_parts_to_the_schedule() -> None:
    """No step has a learning rate of zero, and the first step after the rise has the full one."""
    rates = TuneConfig(**GOOD | {"num_steps": 7, "warmup_steps": 3}).learning_rates
    assert rates == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.375, 0.25, 0.125], rel=1e-15)
    with pytest.raises(InvalidParameterError, match="warmup_steps"):
        TuneConfig(**GOOD | {"num_steps": 3, "warmup_steps": 3})


def test_shuffled_passes_need_a_public_batch() -> None:
    """Differential privacy draws in secret, and without a batch size there is nothing to order."""
    TuneConfig(**GOOD | {"batch_order": "shuffled", "batch_size": 4})
    TuneConfig(**GOOD | {"batch_order": "blocks", "batch_size": 4})
    with pytest.raises(InvalidParameterError, match="--batch-order blocks"):
        TuneConfig(**GOOD | {"batch_order": "blocks"})
    with pytest.raises(InvalidParameterError, match="--batch-order shuffled"):
        TuneConfig(**GOOD | {"batch_order": "shuffled"})
    dp = {"guarantee": "dp", "dp": DpOptions(epsilon=1.0), "batch_size": 4}
    with pytest.raises(InvalidParameterError, match="--batch-order shuffled"):
        TuneConfig(**GOOD | dp | {"batch_order": "shuffled"})


@pytest.mark.parametrize("value", [*NOT_NUMBERS, -1e-300, -0.5])
def test_budget_must_be_a_number_of_nats(value: float) -> None:
    """NaN, infinite and negative budgets are refused."""
    with pytest.raises(InvalidParameterError, match="finite number of nats"):
        TuneConfig(**GOOD | {"mutual_information": value})


@pytest.mark.parametrize("value", [math.log(2), 0.7, 100.0])
def test_vacuous_budgets_are_refused(value: float) -> None:
    """From ln 2 on, at prior 1/2, a budget bounds nothing."""
    with pytest.raises(InvalidParameterError, match=r"vacuous: from ln\(1/prior\) = 0\.6931"):
        TuneConfig(**GOOD | {"mutual_information": value})
    TuneConfig(**GOOD | {"mutual_information": math.nextafter(math.log(2), 0)})


def test_vacuous_starts_at_the_prior() -> None:
    """Where most candidates hold a record, less is vacuous: the prior guess is better."""
    candidates = CandidateSubsets(num_subsets=10, construction="rate", subsets_per_record=9)
    with pytest.raises(InvalidParameterError, match=r"= 0\.1054 nats"):
        TuneConfig(**GOOD | {"mutual_information": 0.106, "candidates": candidates})
    TuneConfig(**GOOD | {"mutual_information": 0.105, "candidates": candidates})


@pytest.mark.parametrize("field", ["learning_rate", "clip", "perturbation"])
@pytest.mark.parametrize("value", [*NOT_NUMBERS, 0.0, -1.0])
def test_positive_settings(field: str, value: float) -> None:
    """What must be positive and finite is refused otherwise."""
    with pytest.raises(InvalidParameterError, match=field):
        TuneConfig(**GOOD | {field: value})


@pytest.mark.parametrize("value", [*NOT_NUMBERS, -0.1])
def test_weight_decay(value: float) -> None:
    """Weight decay is at least 0 and finite."""
    with pytest.raises(InvalidParameterError, match="weight_decay"):
        TuneConfig(**GOOD | {"weight_decay": value})


@pytest.mark.parametrize("value", [*NOT_NUMBERS, -0.1, 0.5, 1.0])
def test_unanimity_flip(value: float) -> None:
    """The flip probability is below one half."""
    with pytest.raises(InvalidParameterError, match="unanimity_flip"):
        TuneConfig(**GOOD | {"unanimity_flip": value})


@pytest.mark.parametrize("field", ["num_steps", "directions_per_step", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_counts(field: str, value: object) -> None:
    """Counts are whole numbers from 1 on."""
    with pytest.raises(InvalidParameterError, match=field):
        TuneConfig(**GOOD | {field: value})


@pytest.mark.parametrize("value", [-1, 2**63, 0.5])
def test_seed(value: object) -> None:
    """The public seed is a whole number in [0, 2**63)."""
    with pytest.raises(InvalidParameterError, match="seed"):
        TuneConfig(**GOOD | {"seed": value})


@pytest.mark.parametrize(
    "field",
    [
        "guarantee",
        "channel",
        "budget_schedule",
        "on_disagreement",
        "estimator",
        "adapter",
        "direction_kind",
        "learning_rate_schedule",
        "batch_order",
    ],
)
def test_choices(field: str) -> None:
    """A word that is not one of the choices is refused by name."""
    name = field.replace("_", ".")  # "direction kind" in the words of the function that checks it
    with pytest.raises(InvalidParameterError, match=f"{name} must be one of"):
        TuneConfig(**GOOD | {field: "perfect"})


@pytest.mark.parametrize("changes", [{"unanimity_flip": 0.1}, {"on_disagreement": "skip"}])
def test_a_budget_settles_disagreement_itself(changes: dict[str, Any]) -> None:
    """What is for budget 0 contradicts a positive budget."""
    with pytest.raises(InvalidParameterError, match="for mutual_information 0"):
        TuneConfig(**GOOD | changes | {"mutual_information": 0.1})


def test_no_guarantee_has_no_budget() -> None:
    """A budget without a guarantee is refused."""
    with pytest.raises(InvalidParameterError, match="with none there is no budget of that kind"):
        TuneConfig(**GOOD | {"guarantee": "none", "mutual_information": 0.1})


def test_settings_cannot_change() -> None:
    """The resolved settings are frozen; a changed copy is checked again."""
    config = TuneConfig(**GOOD)
    with pytest.raises(AttributeError):
        config.clip = 2.0  # type: ignore[misc]
    with pytest.raises(InvalidParameterError, match="clip"):
        replace(config, clip=math.nan)
