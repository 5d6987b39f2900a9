"""The resolved, public settings of one run, and every check that needs no data and no model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sordino.core.checks import (
    require_in_range,
    require_integer,
    require_non_negative,
    require_one_of,
    require_positive,
)
from sordino.core.directions import MAX_SEED
from sordino.core.errors import InvalidParameterError
from sordino.gradients.direction_sets import ALL_DIRECTION_KINDS
from sordino.mechanisms.binary_channel import BUDGET_SCHEDULES, CHANNELS
from sordino.mechanisms.candidates import CandidateSubsets
from sordino.mechanisms.unanimity import ON_DISAGREEMENT
from sordino.models import BASE_FORMATS, require_nf4_bits
from sordino.training.batch_plan import BATCH_ORDERS
from sordino.training.gradient_steps import OPTIMIZERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sordino.training.dp_plan import DpOptions

GUARANTEES = ("pac", "dp", "none")
ESTIMATORS = ("zeroth-order", "first-order")
ADAPTERS = ("lora", "full")
OBJECTIVES = ("loss", "summed-loss", "token-f1")
SELECTIONS = ("last", "best")
SCHEDULES: dict[str, Callable[[float], float]] = {  # fraction of the run done -> factor
    "constant": lambda done: 1.0,  # noqa: ARG005
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Defaults that depend on the estimator and on what is trained; each one is only a start."""

    num_steps: int
    learning_rate: float
    clip: float
    directions_per_step: int = 1
    direction_kind: str = "rademacher"


# First order: measured on SmolLM2-135M, see docs/decisions/0007-fewer-signs-larger-steps.md.
# Zeroth order: arXiv:2605.06505v2, recipes for LoRA and full fine-tuning.
RECIPES = {
    ("first-order", "lora"): Recipe(
        num_steps=4,
        learning_rate=2.0,
        clip=0.3,
        directions_per_step=1024,
        direction_kind="hadamard",
    ),
    # nothing here is measured yet; one step moves a weight by about 1e-4
    ("first-order", "full"): Recipe(
        num_steps=6,
        learning_rate=0.01,
        clip=1.0,
        directions_per_step=4096,
        direction_kind="kronecker",
    ),
    ("zeroth-order", "lora"): Recipe(num_steps=1000, learning_rate=1e-3, clip=25.0),
    ("zeroth-order", "full"): Recipe(num_steps=1000, learning_rate=1e-4, clip=1000.0),
    # steps of an optimizer on (noisy) gradients; see docs/decisions/0009-rate-of-gradient-steps.md
    ("gradients", "lora"): Recipe(num_steps=64, learning_rate=1e-2, clip=0.3),
    ("gradients", "full"): Recipe(num_steps=64, learning_rate=1e-4, clip=1.0),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig:
    """Everything public that decides what a run does; data and secrets are not part of it."""

    guarantee: str
    estimator: str
    adapter: str
    num_steps: int
    learning_rate: float
    clip: float
    directions_per_step: int
    direction_kind: str
    seed: int
    candidates: CandidateSubsets
    mutual_information: float = 0.0
    channel: str = "binary-symmetric"
    budget_schedule: str = "adaptive"
    on_disagreement: str = "coin"
    unanimity_flip: float = 0.0
    learning_rate_schedule: str = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    perturbation: float | None = None
    batch_size: int | None = None
    batch_order: str = "independent"
    shared_weight: float | None = None
    dp: DpOptions | None = None
    optimizer: str | None = None  # None: moves along public directions
    base_bits: int | None = None  # of the frozen linear layers; None: as they are
    base_format: str = "codes"

    def __post_init__(self) -> None:
        require_one_of("guarantee", self.guarantee, GUARANTEES)
        require_one_of("channel", self.channel, CHANNELS)
        require_one_of("budget_schedule", self.budget_schedule, BUDGET_SCHEDULES)
        require_one_of("on_disagreement", self.on_disagreement, ON_DISAGREEMENT)
        require_one_of("estimator", self.estimator, ESTIMATORS)
        require_one_of("adapter", self.adapter, ADAPTERS)
        require_one_of("direction_kind", self.direction_kind, ALL_DIRECTION_KINDS)
        require_one_of("learning_rate_schedule", self.learning_rate_schedule, tuple(SCHEDULES))
        require_in_range("unanimity_flip", self.unanimity_flip, 0.0, 0.499)
        require_integer("num_steps", self.num_steps, 1)
        require_integer("warmup_steps", self.warmup_steps, 0, self.num_steps - 1)
        require_integer("directions_per_step", self.directions_per_step, 1)
        require_integer("seed", self.seed, 0, MAX_SEED)
        require_positive("learning_rate", self.learning_rate)
        require_positive("clip", self.clip)
        require_non_negative("weight_decay", self.weight_decay)
        if self.shared_weight is not None:
            require_in_range("shared_weight", self.shared_weight, 0.0, 1.0)
        if self.perturbation is not None:
            require_positive("perturbation", self.perturbation)
        if self.batch_size is not None:
            require_integer("batch_size", self.batch_size, 1)
        require_one_of("batch_order", self.batch_order, BATCH_ORDERS)
        is_dp = self.guarantee == "dp"
        if self.batch_order != "independent" and (is_dp or self.batch_size is None):
            raise InvalidParameterError(
                f"--batch-order {self.batch_order} is for --batch-size without --guarantee dp, "
                "whose units are drawn in secret."
            )
        if self.base_bits is not None and self.adapter == "full":
            raise InvalidParameterError(
                "--base-bits holds frozen weights in few bits: use it with --adapter lora."
            )
        if self.optimizer is not None:
            require_one_of("optimizer", self.optimizer, OPTIMIZERS)
        self._check_base_format()
        self._check_guarantee()
        self._check_directions()
        self._check_budget()

    def _check_base_format(self) -> None:
        """Raises if NF4 is asked for where it cannot be had."""
        require_one_of("base_format", self.base_format, BASE_FORMATS)
        if self.base_format != "nf4":
            return
        require_nf4_bits(self.base_bits)
        if self.derivative == "forward-mode":
            raise InvalidParameterError(
                "--base-format nf4 has no forward-mode derivative, which --estimator first-order "
                "with --directions-per-step 1 takes. Use 2 or more directions a step, --estimator "
                "zeroth-order, or --base-format codes."
            )

    def _check_guarantee(self) -> None:
        """Raises if settings of one guarantee are given for another."""
        if (self.guarantee == "dp") != (self.dp is not None):
            raise InvalidParameterError(
                "--epsilon, --delta, --unit, --adjacency and --clipping are for --guarantee dp."
            )
        is_first = self.estimator == "first-order"
        if self.optimizer is not None and not (is_first and self.guarantee != "pac"):
            raise InvalidParameterError(
                "--optimizer is for --estimator first-order with --guarantee dp or none: signs and "
                "zeroth-order steps move the weights themselves."
            )
        if self.guarantee == "dp" and is_first and self.optimizer is None:
            raise InvalidParameterError(
                f"--guarantee dp with --estimator first-order needs an optimizer: one of "
                f"{', '.join(OPTIMIZERS)}."
            )
        if self.dp is not None and is_first and self.dp.noise == "discrete":
            raise InvalidParameterError(
                "--noise discrete is for --estimator zeroth-order, whose contributions are few "
                "enough to be rounded one by one."
            )
        if self.dp is not None and not is_first and self.dp.clipping != "flat":
            raise InvalidParameterError(
                "--clipping per-layer and automatic are for --estimator first-order."
            )

    def _check_directions(self) -> None:
        """Raises if all weights are to be trained along directions that the estimator has not."""
        if self.derivative == "gradient":
            return
        is_kronecker = self.direction_kind == "kronecker"
        if self.adapter == "full" and is_kronecker != (self.derivative == "backpropagation"):
            needed = "rademacher or gaussian" if is_kronecker else "kronecker"
            raise InvalidParameterError(
                f"--adapter full with --estimator {self.estimator} and directions_per_step "
                f"{self.directions_per_step} takes --direction-kind {needed}, got "
                f"{self.direction_kind}."
            )

    def _check_budget(self) -> None:
        """Raises if the mutual-information budget is negative, vacuous or without use."""
        budget = self.mutual_information
        if not (math.isfinite(budget) and budget >= 0):
            raise InvalidParameterError(
                "mutual_information must be a finite number of nats: 0 (nothing about the secret "
                f"subset leaves) or a positive budget; got {budget!r}."
            )
        if self.guarantee != "pac" and budget > 0:
            raise InvalidParameterError(
                "mutual_information is a budget for --guarantee pac; with "
                f"{self.guarantee} there is no budget of that kind."
            )
        vacuous = math.log(1.0 / self.candidates.prior)
        if budget >= vacuous:
            raise InvalidParameterError(
                f"mutual_information {budget:g} is vacuous: from ln(1/prior) = {vacuous:.4f} nats "
                "on, the bound lets an attacker be certain. Use less; 0.11 nats compares with "
                "epsilon 1."
            )
        if budget > 0 and (self.unanimity_flip > 0 or self.on_disagreement != "coin"):
            raise InvalidParameterError(
                "unanimity_flip and on_disagreement are for mutual_information 0; with a positive "
                "budget disagreement is settled by the channel."
            )

    @property
    def derivative(self) -> str:
        """How the estimator differentiates: with one direction, forwards; `clip` bounds that."""
        if self.optimizer is not None:
            return "gradient"
        if self.estimator == "zeroth-order":
            return "central-difference"
        return "forward-mode" if self.directions_per_step == 1 else "backpropagation"

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """One learning rate a step; public. It rises in equal parts, then the schedule begins."""
        factor, rising = SCHEDULES[self.learning_rate_schedule], self.warmup_steps
        rises = [self.learning_rate * (t + 1) / (rising + 1) for t in range(rising)]
        rest = self.num_steps - rising
        return (*rises, *(self.learning_rate * factor(t / rest) for t in range(rest)))


def find_recipe(
    estimator: str,
    adapter: str,
    directions_per_step: int | None = None,
    optimizer: str | None = None,
) -> Recipe:
    """Returns the defaults of an estimator for an adapter kind.

    Args:
        estimator: "zeroth-order" or "first-order".
        adapter: "lora" or "full".
        directions_per_step: What the user asked for, if anything.
        optimizer: What moves the weights along gradients, if anything does.
    """
    require_one_of("estimator", estimator, ESTIMATORS)
    require_one_of("adapter", adapter, ADAPTERS)
    if optimizer is not None:
        return RECIPES["gradients", adapter]
    # one exact derivative a step is the zeroth-order method without its rounding: same defaults
    is_forward_mode = estimator == "first-order" and directions_per_step == 1
    return RECIPES["zeroth-order" if is_forward_mode else estimator, adapter]


def make_config(
    *,
    estimator: str,
    adapter: str,
    directions_per_step: int | None = None,
    optimizer: str | None = None,
    seed: int = 0,
    candidates: CandidateSubsets | None = None,
    **others: Any,
) -> TuneConfig:
    """Returns settings; what the recipe knows is taken from it where None is given.

    Args:
        estimator: "zeroth-order" or "first-order".
        adapter: "lora" or "full".
        directions_per_step: What the user asked for, if anything.
        optimizer: What moves the weights along gradients, if anything does.
        seed: Public seed.
        candidates: None takes 128 random halves; without PAC privacy they have no effect.
        **others: Further fields of `TuneConfig`.
    """
    recipe = asdict(find_recipe(estimator, adapter, directions_per_step, optimizer))
    given = others | {"directions_per_step": directions_per_step}
    fields = recipe | {name: value for name, value in given.items() if value is not None}
    return TuneConfig(
        estimator=estimator,
        adapter=adapter,
        optimizer=optimizer,
        seed=seed,
        candidates=candidates or CandidateSubsets(num_subsets=128, seed=seed),
        **fields,
    )
