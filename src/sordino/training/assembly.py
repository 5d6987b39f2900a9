"""A run, put together: files, model and settings in, a finished folder out."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.core.checks import require_integer
from sordino.core.errors import InvalidParameterError, SordinoError
from sordino.data import group_by_unit
from sordino.ledger.ledger import canonical_json
from sordino.training.canaries import plant_canaries
from sordino.training.dp_plan import make_dp_plan
from sordino.training.encoding import choose_task, digest_examples, encode_records
from sordino.training.evaluate import evaluate_objective
from sordino.training.finish import finish_run
from sordino.training.loop import Session, open_run, run_steps
from sordino.training.numerics import warn_if_perturbation_does_not_fit
from sordino.training.probes import mixed_probes
from sordino.training.replay import initial_tensors
from sordino.training.setup import find_perturbation, load_for_tuning, prepare_full, prepare_tensors
from sordino.training.steppers import Ingredients, Made, make_stepper
from sordino.training.symbols import SymbolStepper
from sordino.training.teacher import load_teacher

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from sordino.data import Record
    from sordino.data.canaries import PlannedCanaries
    from sordino.gradients.objectives import AbstractObjective, LanguageModel
    from sordino.gradients.parameters import AbstractParameterSpace
    from sordino.ledger.certificate import Certificate
    from sordino.models import LoadedModel
    from sordino.training.canaries import CanaryOptions
    from sordino.training.config import TuneConfig
    from sordino.training.dp_plan import DpPlan
    from sordino.training.encoding import Task, TaskOptions
    from sordino.training.retain import RetainOptions
    from sordino.training.run_folder import RunFolder
    from sordino.training.setup import AdapterOptions
    from sordino.training.workers import Workers

_LARGEST_PROBED = 2**24  # trainable numbers; the exact derivative needs a gradient of that size


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest:
    """What the user asked for, checked as far as that goes without data and model."""

    config: TuneConfig
    folder: RunFolder
    source: str
    task: TaskOptions
    adapter: AdapterOptions
    tokens_per_batch: int
    evaluate_every: int | None
    select: str
    holder_report: bool
    resume: bool
    keep_subset: bool = False
    canaries: CanaryOptions | None = None
    retain: RetainOptions | None = None

    def check_flags(self, *, has_validation: bool) -> None:
        """Raises if a flag asks for what the other settings cannot give."""
        if self.evaluate_every is not None:
            require_integer("evaluate_every", self.evaluate_every, 1)
        if self.select == "best" and not has_validation:
            raise InvalidParameterError(
                "--select best chooses a checkpoint by scores on records that must be public: give "
                "--validation FILE --validation-is-public."
            )
        if self.task.objective == "token-f1" and self.config.estimator == "first-order":
            raise InvalidParameterError(
                "objective token-f1 has no gradient: use --estimator zeroth-order."
            )
        if self.select == "best" and self.config.derivative == "gradient":
            raise InvalidParameterError(
                "--select best replays a transcript, which a run on gradients does not have: use "
                "--select last."
            )
        is_adapted = self.config.derivative == "gradient" and self.config.adapter == "lora"
        if self.retain is not None and not is_adapted:
            raise InvalidParameterError(
                "--retain adds a gradient, and compares with the model without its adapter: use it "
                "with --optimizer and --adapter lora."
            )
        is_zero = self.config.guarantee == "pac" and self.config.mutual_information == 0
        if self.holder_report and not is_zero:
            raise InvalidParameterError(
                "--holder-report is for --guarantee pac at mutual information 0: with a positive "
                "budget the transcript's likelihood depends on the secret subset."
            )
        if self.keep_subset and (self.config.guarantee != "pac" or is_zero):
            raise InvalidParameterError(
                "--keep-subset is for --guarantee pac with a positive --mutual-information: this "
                "run never reads a subset. After one at mutual information 0, `sordino audit` "
                "draws one for its subset game."
            )


def run(
    request: RunRequest,
    pool: Sequence[Record],
    public: Sequence[Record] | None,
    workers: Workers,
    dtype: torch.dtype,
) -> Certificate:
    """Takes a run from its records to its certificate; every worker calls it.

    Args:
        request: The checked settings.
        pool: Private records.
        public: Public validation records, or None.
        workers: The processes that share the forward passes.
        dtype: Compute type.
    """
    parts = assemble(request, pool, public, workers, dtype)
    session = parts.session

    def start() -> Any:
        tensors = session.stepper.tensors.values()
        request.folder.require_space(sum(p.numel() * p.element_size() for p in tensors))
        held.enter_context(request.folder.locked())
        if not request.resume:
            request.folder.require_new()  # again: only now can no other process start it
        held.enter_context(request.folder.keeping_canaries(parts.canaries))
        return open_run(session, resume=request.resume)

    def initial_state() -> dict[str, torch.Tensor]:
        if request.config.adapter == "lora":
            return {name: p.data for name, p in initial_tensors(session.header).items()}
        base = load_for_tuning(request.source, request.config, dtype, "cpu").model
        return {name: p.data for name, p in prepare_full(base).items()}

    def finish() -> Certificate:
        return finish_run(
            session,
            parts.model,
            parts.loaded.tokenizer,
            initial_state=initial_state,
            base_model=_public_name(request.source),
            select=request.select,
        )

    with ExitStack() as held:
        progress_so_far = workers.from_main(start)
        try:
            run_steps(session, progress_so_far)
        except SordinoError:
            if workers.is_main and not session.ledger.of_kind("release"):
                request.folder.discard()
            raise
        return workers.from_main(finish)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """An assembled run that has not begun: nothing is on disk yet."""

    session: Session
    canaries: bytes | None  # the private list, to be written before anything is charged
    model: Any  # what is saved: a PEFT model, or the model itself
    loaded: LoadedModel
    language_model: LanguageModel
    objective: AbstractObjective  # over the private pool, empty places included


def assemble(
    request: RunRequest,
    pool: Sequence[Record],
    public: Sequence[Record] | None,
    workers: Workers,
    dtype: torch.dtype,
) -> Parts:
    """Returns the connected parts of a run; see `run` for the arguments."""
    config = request.config
    retained = None if request.retain is None else (request.retain, request.retain.read(pool))
    loaded = load_for_tuning(request.source, config, dtype, workers.device)
    task = choose_task(request.task, pool)
    teacher = None
    if request.task.distillation is not None:
        teacher = load_teacher(request.task.distillation, loaded, dtype, workers.device)
    places = workers.from_main(
        lambda: plant_canaries(
            request.canaries,
            pool,
            public,
            task=task,
            task_options=request.task,
            loaded=loaded,
            folder=request.folder,
            seed=config.seed,
            resume=request.resume,
        )
    )
    encoded = encode_records(task, places.records, loaded, request.task, teacher)
    held_out = encode_records(task, public, loaded, request.task, teacher) if public else None
    model, tensors, adapter = prepare_tensors(loaded, config, request.adapter)
    groups = [
        [i for i in group if i not in places.empty] for group in group_by_unit(places.records)
    ]
    dp = None
    if config.dp is not None:
        dp = make_dp_plan(
            config.dp,
            num_units=len(groups),
            num_steps=config.num_steps,
            expected_units=config.batch_size,
            clip_norm=config.clip,
            num_releases=config.directions_per_step,
        )
    made = make_stepper(
        Ingredients(
            config=config,
            dp=dp,
            groups=groups,
            empty=places.empty,
            loaded=loaded,
            model=model,
            tensors=tensors,
            adapter=adapter,
            task=task,
            task_options=request.task,
            encoded=encoded,
            num_frozen_blocks=_num_frozen_blocks(request),
            tokens_per_batch=request.tokens_per_batch,
            has_holder_report=request.holder_report,
            keeps_subset=request.keep_subset,
            retained=retained,
            workers=workers,
            dtype=dtype,
        )
    )
    language_model = made.language_model

    def evaluate() -> dict[str, float]:
        return evaluate_objective(
            held_out.objective, language_model, tokens_per_batch=request.tokens_per_batch
        )

    session = Session(
        folder=request.folder,
        header=made.header,
        opening=_opening_event(
            request,
            made,
            base_model_sha256=loaded.fingerprint,
            teacher_sha256=None if teacher is None else teacher.fingerprint,
            task=encoded.description,
            num_records=len(places.records) if dp is None else dp.num_units,
            validation=digest_examples(held_out.examples) if held_out is not None else None,
            canaries=places.canaries,
            dtype=dtype,
            dp=dp,
        ),
        stepper=made.stepper,
        workers=workers,
        evaluate=evaluate if held_out is not None else None,
        evaluate_every=_evaluate_every(request),
        pool_digest=digest_examples(
            [e for place, e in enumerate(encoded.examples) if place not in places.empty]
        ),
    )
    perturbation = find_perturbation(config, dtype)
    if (
        perturbation is not None
        and request.task.objective != "token-f1"
        and isinstance(made.stepper, SymbolStepper)
    ):
        _probe_numerics(
            perturbation,
            task,
            request.task,
            language_model,
            loaded=loaded,
            space=made.stepper.space,
        )

    return Parts(
        session=session,
        canaries=None if places.canaries is None else places.canaries.to_bytes(),
        model=model,
        loaded=loaded,
        language_model=language_model,
        objective=encoded.objective,
    )


def _probe_numerics(
    perturbation: float,
    task: Task,
    options: TaskOptions,
    language_model: LanguageModel,
    *,
    loaded: LoadedModel,
    space: AbstractParameterSpace,
) -> None:
    """Warns if the finite difference does not fit the compute type; looks at public text only."""
    if sum(p.numel() for p in space.tensors.values()) > _LARGEST_PROBED:
        return
    objective = encode_records(task, mixed_probes(task), loaded, options).objective
    warn_if_perturbation_does_not_fit(language_model, objective, space, perturbation)


def _num_frozen_blocks(request: RunRequest) -> int:
    """Returns how many blocks give the same states whenever the same records come again."""
    if request.config.adapter != "lora" or request.task.distillation is not None:
        return 0  # what the student writes is new every time: there is nothing to keep
    return request.adapter.first_layer


def _describe_teacher(request: RunRequest, sha256: str | None) -> dict[str, Any] | None:
    """Returns who taught, if anybody did."""
    if request.task.distillation is None:
        return None
    return {"name": _public_name(request.task.distillation.teacher), "sha256": sha256}


def _evaluate_every(request: RunRequest) -> int:
    """Returns the number of steps between two scores on validation records."""
    return request.evaluate_every or max(request.config.num_steps // 10, 1)


def _public_name(source: str) -> str:
    """Returns the user's words for the model, without the folders of this machine."""
    return Path(source).name if Path(source).exists() else source


def _opening_event(
    request: RunRequest,
    made: Made,
    *,
    base_model_sha256: str,
    teacher_sha256: str | None,
    task: dict[str, Any],
    num_records: int,
    validation: str | None,
    canaries: PlannedCanaries | None,
    dtype: torch.dtype,
    dp: DpPlan | None,
) -> dict[str, Any]:
    """Returns the ledger's first event: every public setting, nothing computed on the data."""
    config = request.config
    lora = asdict(request.adapter) if config.adapter == "lora" else {}
    event = {
        "kind": "open",
        "sordino_version": version("sordino"),
        "guarantee": config.guarantee,
        "mutual_information_budget_nats": None if dp is not None else config.mutual_information,
        "mutual_information_nats": None if dp is not None else 0.0,
        "dp": None if dp is None else dp.describe(),
        "mechanism": made.mechanism,
        "estimator": config.estimator,
        "derivative": config.derivative,
        "optimizer": config.optimizer,
        "clip": config.clip,
        "shared_weight": made.shared_weight,
        "perturbation": find_perturbation(config, dtype),
        "num_records": num_records,
        "canaries": None if canaries is None else canaries.describe(),
        "num_steps": config.num_steps,
        "directions_per_step": config.directions_per_step,
        "direction_kind": config.direction_kind,
        "sampling": made.sampling,
        "learning_rate": config.learning_rate,
        "learning_rate_schedule": config.learning_rate_schedule,
        **({"warmup_steps": config.warmup_steps} if config.warmup_steps else {}),
        "weight_decay": config.weight_decay,
        "seed": config.seed,
        "task": task,
        "validation": validation
        and {
            "sha256": validation,
            "evaluate_every": _evaluate_every(request),
            "select": request.select,
        },
        "adapter": {"kind": config.adapter, **lora},
        **({"retained": made.retained} if made.retained else {}),
        "base_model": _public_name(request.source),
        "base_model_sha256": base_model_sha256,
        "base_bits": config.base_bits,
        **({"base_format": "nf4"} if config.base_format == "nf4" else {}),  # absent: codes
        "teacher": _describe_teacher(request, teacher_sha256),
        "compute_dtype": str(dtype).removeprefix("torch."),
        "entropy_source": "operating system",
        "transcript_header_sha256": hashlib.sha256(made.header.to_bytes()).hexdigest(),
    }
    return json.loads(canonical_json(event))  # as it will be read back
