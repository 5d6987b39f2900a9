"""From settings to what a step does: on symbols along public directions, or on gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sordino.core.entropy import OperatingSystemEntropy
from sordino.core.secret_stream import SecretStream
from sordino.data import CompletionTask
from sordino.gradients.clipped import ClippedGradients
from sordino.gradients.copied import ComputingCopy, CopiedParameterSpace
from sordino.gradients.shared_prefix import can_share
from sordino.gradients.unit_contributions import UnitContributions
from sordino.ledger.transcript import TranscriptHeader
from sordino.mechanisms.noise import noise_source
from sordino.mechanisms.poisson import PoissonSampler
from sordino.training.batch_plan import BatchPlan, PoissonPlan
from sordino.training.dp_plan import make_gaussian_mechanism
from sordino.training.gradient_steps import ClippedSum, GradientStepper, PlainSum
from sordino.training.leave_one_out import LeaveOneOut
from sordino.training.replay import make_space
from sordino.training.retain import make_retention
from sordino.training.setup import (
    find_shared_weight,
    make_estimator,
    make_language_model,
    make_mechanism,
    make_membership,
    make_shared,
)
from sordino.training.symbols import SymbolStepper

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from sordino.data import Record
    from sordino.gradients.objectives import LanguageModel
    from sordino.mechanisms.release import AbstractMechanism
    from sordino.models import LoadedModel
    from sordino.training.batch_plan import AbstractPlan
    from sordino.training.config import TuneConfig
    from sordino.training.dp_plan import DpPlan
    from sordino.training.encoding import EncodedRecords, Task, TaskOptions
    from sordino.training.loop import AbstractStepper
    from sordino.training.retain import RetainOptions, Retention
    from sordino.training.workers import Workers


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingredients:
    """What a stepper is made from.

    Args:
        config: Settings.
        dp: The noise of a run with differential privacy; None for others.
        groups: The records of every unit; none at a place that was left empty.
        empty: Places of the pool that were left empty.
        loaded: The base model.
        model: The base model, or the PEFT model around it.
        tensors: Trainable parameters by name.
        adapter: Public description of what is trained.
        task: What the records are.
        task_options: How records become tokens.
        encoded: The private records, encoded.
        num_frozen_blocks: Blocks below the first adapted one.
        tokens_per_batch: Tokens of a batch, padding included.
        has_holder_report: Whether leave-one-out losses were asked for.
        keeps_subset: Whether the secret subset is to outlive the run.
        retained: What holds the model to its base, and the texts for it; None: nothing does.
        workers: The processes that share the work.
        dtype: Compute type.
    """

    config: TuneConfig
    dp: DpPlan | None
    groups: Sequence[Sequence[int]]
    empty: frozenset[int]
    loaded: LoadedModel
    model: Any
    tensors: dict[str, torch.nn.Parameter]
    adapter: dict[str, Any]
    task: Task
    task_options: TaskOptions
    encoded: EncodedRecords
    num_frozen_blocks: int
    tokens_per_batch: int
    has_holder_report: bool
    keeps_subset: bool
    retained: tuple[RetainOptions, Sequence[Record]] | None
    workers: Workers
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A stepper, and what is known with it."""

    stepper: AbstractStepper
    header: TranscriptHeader
    language_model: LanguageModel
    mechanism: dict[str, Any]  # public description
    sampling: str  # public, in words
    shared_weight: float
    retained: dict[str, Any] | None = None  # public description


def make_stepper(given: Ingredients) -> Made:
    """Returns the stepper that the settings ask for."""
    stream = None
    if given.dp is not None and given.workers.is_main:
        stream = SecretStream.from_operating_system()
    plan = _make_plan(given, stream)
    if given.config.derivative == "gradient":
        return _make_gradient_stepper(given, plan, stream)
    return _make_symbol_stepper(given, plan, stream)


def _make_plan(given: Ingredients, stream: SecretStream | None) -> AbstractPlan:
    """Returns who is drawn: in secret for differential privacy, by the public seed elsewhere."""
    lengths = given.encoded.objective.lengths
    if given.dp is None:
        return BatchPlan(
            lengths,
            batch_size=given.config.batch_size,
            tokens_per_batch=given.tokens_per_batch,
            seed=given.config.seed,
            empty=given.empty,
            order=given.config.batch_order,
            shared_length=given.encoded.objective.shared_length if _is_shared(given) else None,
        )
    sampler = None
    if stream is not None:
        sampler = PoissonSampler(
            stream, given.dp.event.sampling_probability, num_units=given.dp.num_units
        )
    return PoissonPlan(
        given.groups,
        lengths,
        sampler=sampler,
        stream=stream,
        expected_units=given.dp.expected_units,
        max_records_per_unit=given.dp.options.max_records_per_unit,
        tokens_per_batch=given.tokens_per_batch,
        workers=given.workers,
    )


def _make_gradient_stepper(
    given: Ingredients, plan: AbstractPlan, stream: SecretStream | None
) -> Made:
    """Returns DP-SGD or DP-AdamW, or the same without privacy."""
    config, dp = given.config, given.dp
    model, computing, copied = given.model, given.tensors, None
    if config.adapter == "full":
        copied = ComputingCopy(given.loaded.model, given.tensors, given.dtype)
        model, computing = copied.model, copied.computing
    language_model = make_language_model(
        given.loaded,
        model,
        num_frozen_blocks=0 if _is_shared(given) else given.num_frozen_blocks,
        kept_states="records" if _has_changing_batches(given) else "batches",
    )
    objective = given.encoded.objective
    if dp is not None and isinstance(plan, PoissonPlan):
        gradients: ClippedSum | PlainSum = ClippedSum(
            ClippedGradients(
                language_model,
                objective,
                computing,
                clip_norm=dp.clip_norm,
                clipping=dp.options.clipping,
            ),
            plan.unit_of,
        )
    else:
        gradients = PlainSum(language_model, objective, computing, is_shared=_is_shared(given))
    retention = _make_retention(given)
    stepper = GradientStepper(
        plan=plan,
        gradients=gradients,
        tensors=given.tensors,
        copied=copied,
        optimizer=str(config.optimizer),
        stream=stream,
        noise_std=0.0 if dp is None else dp.noise_std,
        retention=retention,
    )
    name = "gaussian noise on clipped gradients" if dp is not None else "gradients as they are"
    mechanism: dict[str, Any] = {"name": name, "optimizer": config.optimizer}
    if dp is not None:
        mechanism["noise_source"] = noise_source(given.workers.device)
    return Made(
        stepper=stepper,
        header=_make_header(given, "none"),
        language_model=language_model,
        mechanism=mechanism,
        sampling=_sampling_words(given),
        shared_weight=1.0,
        retained=None if retention is None else retention.describe(),
    )


def _make_retention(given: Ingredients) -> Retention | None:
    """Returns what holds the model to its base, if anything was asked to."""
    if given.retained is None:
        return None
    options, records = given.retained
    return make_retention(
        options,
        records,
        loaded=given.loaded,
        adapted=given.model,
        language_model=make_language_model(given.loaded, given.model, num_frozen_blocks=0),
        tensors=given.tensors,
        config=given.config,
        is_summed=given.task_options.objective == "summed-loss",
        tokens_per_batch=given.tokens_per_batch,
    )


def _make_symbol_stepper(
    given: Ingredients, plan: AbstractPlan, stream: SecretStream | None
) -> Made:
    """Returns what releases a few numbers a step."""
    config = given.config
    mechanism = _make_mechanism(given, plan, stream)
    header = _make_header(given, mechanism.encoding)
    space = make_space(header, given.tensors, model=given.loaded.model, compute_dtype=given.dtype)
    is_copied = isinstance(space, CopiedParameterSpace)
    language_model = make_language_model(
        given.loaded,
        space.model if is_copied else given.model,
        num_frozen_blocks=given.num_frozen_blocks,
        # a continued run must give the same signs, so their last bits matter
        kept_states="nothing" if _has_changing_batches(given) else "batches",
        rows=space.rows,
    )
    shared_weight = find_shared_weight(config, given.task)
    shared = make_shared(
        shared_weight, given.task, given.task_options, given.loaded, language_model
    )
    estimator = make_estimator(
        config,
        language_model,
        given.encoded.objective,
        space,
        dtype=given.dtype,
        shared=shared,
    )
    membership = make_membership(config, len(given.groups))
    if given.dp is not None and isinstance(plan, PoissonPlan):
        estimator = UnitContributions(estimator, plan.unit_of, clip_norm=given.dp.clip_norm)
    leave_one_out = None
    if given.has_holder_report:
        leave_one_out = LeaveOneOut(membership, config.unanimity_flip, config.on_disagreement)
    stepper = SymbolStepper(
        plan=plan,
        estimator=estimator,
        mechanism=mechanism,
        space=space,
        membership=membership,
        leave_one_out=leave_one_out,
        keeps_subset=given.keeps_subset,
    )
    return Made(
        stepper=stepper,
        header=header,
        language_model=language_model,
        mechanism=mechanism.describe(),
        sampling=_sampling_words(given),
        shared_weight=shared_weight,
    )


def _has_changing_batches(given: Ingredients) -> bool:
    """Returns whether each step has batches of its own."""
    return given.dp is not None or given.config.batch_size is not None


def _is_shared(given: Ingredients) -> bool:
    """Returns whether the records of a step that begin alike are computed in one row."""
    config = given.config
    is_plain = given.dp is None and config.derivative == "gradient"
    is_completion = isinstance(given.task, CompletionTask)
    in_blocks = config.batch_order == "blocks"
    return is_plain and is_completion and in_blocks and can_share(given.loaded.model)


def _make_mechanism(
    given: Ingredients, plan: AbstractPlan, stream: SecretStream | None
) -> AbstractMechanism:
    """Returns the mechanism; the one that adds Gaussian noise needs the plan of its noise."""
    if given.dp is None:
        return make_mechanism(given.config, OperatingSystemEntropy(), plan.records_per_step)
    return make_gaussian_mechanism(
        stream,
        noise_multiplier=given.dp.event.noise_multiplier,
        clip_norm=given.dp.clip_norm,
        num_units=given.dp.num_units,
        expected_units=given.dp.expected_units,
        num_releases=given.config.directions_per_step,
        noise=given.dp.options.noise,
    )


def _make_header(given: Ingredients, encoding: str) -> TranscriptHeader:
    """Returns everything public that a replay needs."""
    config = given.config
    return TranscriptHeader(
        seed=config.seed,
        encoding=encoding,
        direction_kind=config.direction_kind,
        directions_per_step=config.directions_per_step,
        num_steps=config.num_steps,
        learning_rates=config.learning_rates,
        weight_decay=config.weight_decay,
        adapter=given.adapter,
        tensors={name: tuple(p.shape) for name, p in given.tensors.items()},
    )


def _sampling_words(given: Ingredients) -> str:
    """Returns how the records of a step are chosen."""
    if given.dp is not None:
        q = given.dp.event.sampling_probability
        return f"Poisson, in secret, each unit with probability {q:.6g}"
    size = given.config.batch_size
    if size is None:
        return "all"
    passes = {"shuffled": " in shuffled passes", "blocks": " in shuffled blocks of the file"}
    return f"{size}{passes.get(given.config.batch_order, '')}, by the public seed"
