"""`sordino tune`: a private fine-tuning run, from files to a checked folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from typing_extensions import Doc

from sordino.core.checks import require_integer, require_one_of, require_positive
from sordino.core.entropy import OperatingSystemEntropy
from sordino.core.errors import InvalidParameterError
from sordino.ledger.ledger import canonical_json
from sordino.ledger.transcript import TranscriptHeader
from sordino.mechanisms.candidates import CandidateSubsets
from sordino.models import choose_compute_dtype
from sordino.training import config as settings
from sordino.training.evaluate import evaluate_objective
from sordino.training.finish import finish_run
from sordino.training.leave_one_out import LeaveOneOut
from sordino.training.loop import Session, open_run, run_steps
from sordino.training.numerics import PROBE_TEXTS, warn_if_perturbation_does_not_fit
from sordino.training.replay import initial_tensors, make_space
from sordino.training.run_folder import RunFolder
from sordino.training.setup import (
    PERTURBATIONS,
    AdapterOptions,
    BatchPlan,
    TaskOptions,
    choose_task,
    digest_examples,
    encode_records,
    load_for_tuning,
    make_estimator,
    make_language_model,
    make_mechanism,
    make_membership,
    prepare_full,
    prepare_tensors,
    read_training_records,
    read_validation_records,
)
from sordino.training.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from sordino.data import Record
    from sordino.ledger.certificate import Certificate
    from sordino.models import LoadedModel

_LARGEST_PROBED = 2**24  # trainable numbers; the exact derivative needs a gradient of that size


@dataclass(frozen=True, slots=True)
class TuneResult:
    """A finished run."""

    output: Path
    certificate: Certificate


def tune(  # noqa: PLR0914 - the one place where all settings meet
    *,
    model: Annotated[str, Doc("Folder, GGUF file, hub id, or 'embedded' (SmolLM2-135M).")],
    train: Annotated[Path, Doc("Private records: JSONL, CSV, TSV, Parquet or a datasets folder.")],
    output: Annotated[Path, Doc("Run folder to make.")],
    validation: Annotated[Path | None, Doc("Public records to score during the run.")] = None,
    validation_is_public: Annotated[
        bool, Doc("Declare that the validation records are public.")
    ] = False,
    guarantee: Annotated[
        Literal["pac", "none"], Doc("pac: PAC privacy; none: no privacy (MeZO).")
    ] = "pac",
    mutual_information: Annotated[
        float, Doc("Budget in nats; 0: nothing about the secret subset leaves.")
    ] = 0.0,
    channel: Annotated[
        Literal["binary-symmetric", "gaussian"], Doc("Noisy channel of a positive budget.")
    ] = "binary-symmetric",
    budget_schedule: Annotated[
        Literal["adaptive", "uniform"], Doc("How a positive budget is shared by the steps.")
    ] = "adaptive",
    on_disagreement: Annotated[
        Literal["coin", "skip"], Doc("At budget 0, without unanimity: a fair coin, or no move.")
    ] = "coin",
    unanimity_flip: Annotated[
        float, Doc("At budget 0: probability of flipping a unanimous sign, below 0.5.")
    ] = 0.0,
    num_subsets: Annotated[int, Doc("M, the number of candidate subsets; even.")] = 128,
    subset_construction: Annotated[
        Literal["random-halves", "complementary-pairs", "rate"], Doc("How candidates are made.")
    ] = "random-halves",
    subsets_per_record: Annotated[
        int | None, Doc("k of the rate k/M, for --subset-construction rate.")
    ] = None,
    estimator: Annotated[
        Literal["zeroth-order", "first-order"],
        Doc("zeroth-order: forward passes only; first-order: many signs from one backward pass."),
    ] = "zeroth-order",
    num_steps: Annotated[int | None, Doc("T; default by estimator.")] = None,
    learning_rate: Annotated[float | None, Doc("Default by estimator.")] = None,
    learning_rate_schedule: Annotated[
        Literal["linear", "constant", "cosine"], Doc("Public decay of the learning rate.")
    ] = "linear",
    weight_decay: Annotated[float, Doc("Decoupled weight decay.")] = 0.0,
    clip: Annotated[
        float | None,
        Doc("Bound on a record's derivative (zeroth order) or gradient norm (first order)."),
    ] = None,
    perturbation: Annotated[
        float | None, Doc("Step of the finite difference; default by compute dtype.")
    ] = None,
    directions_per_step: Annotated[
        int | None, Doc("K, released signs a step; default by estimator.")
    ] = None,
    direction_kind: Annotated[
        Literal["rademacher", "gaussian", "hadamard"] | None,
        Doc("Public directions; default by estimator."),
    ] = None,
    batch_size: Annotated[
        int | None, Doc("Records a step, chosen by the public seed; default: all.")
    ] = None,
    adapter: Annotated[Literal["lora", "full"], Doc("Train an adapter or all weights.")] = "lora",
    lora_rank: Annotated[int, Doc("Rank of the adapter.")] = 8,
    lora_alpha: Annotated[float, Doc("Scale of the adapter: alpha / rank.")] = 16.0,
    lora_targets: Annotated[
        list[str] | None, Doc("Linear layers to adapt; default: query and value.")
    ] = None,
    lora_first_layer: Annotated[
        int, Doc("First block to adapt; later blocks only cost less to differentiate.")
    ] = 0,
    lora_factors: Annotated[
        Literal["b", "both"], Doc("Train B alone (A stays public and random), or both.")
    ] = "b",
    objective: Annotated[
        Literal["loss", "token-f1"], Doc("token-f1: F1 of a generation, zeroth order only.")
    ] = "loss",
    template: Annotated[str, Doc("Prompt of a classification.")] = "{text} It was",
    verbalizer: Annotated[
        list[str] | None, Doc("LABEL=WORD, once a label; default for two sentiment labels.")
    ] = None,
    max_length: Annotated[int | None, Doc("Longest record in tokens; default: the model's.")] = None,
    truncate: Annotated[bool, Doc("Cut the beginning of records that are too long.")] = False,
    max_new_tokens: Annotated[int, Doc("Longest generation of --objective token-f1.")] = 16,
    seed: Annotated[int, Doc("Public seed of directions, candidates and adapter.")] = 0,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Doc("Compute type.")
    ] = "auto",
    device: Annotated[str, Doc("auto, cpu, cuda or cuda:N.")] = "auto",
    tokens_per_batch: Annotated[int, Doc("Tokens a forward pass, padding included.")] = 2048,
    evaluate_every: Annotated[int | None, Doc("Steps between scores on --validation.")] = None,
    select: Annotated[
        Literal["last", "best"], Doc("Which step's weights: the last, or the best on --validation.")
    ] = "last",
    holder_report: Annotated[
        bool, Doc("Write the leave-one-out loss of every record, for the data holder only.")
    ] = False,
    resume: Annotated[bool, Doc("Continue an interrupted run; repeat its other settings.")] = False,
) -> TuneResult:
    """Tunes a language model on private records and states what leaves the building.

    The run folder holds the adapter (or the weights), the transcript that replays to it, the
    hash-chained ledger, the certificate and a model card. Check it with `sordino verify`.

    Returns:
        The folder and its certificate.

    Raises:
        InvalidParameterError: If a setting is out of range or contradicts another one.
        InvalidDataError: If the records cannot be used; nothing is written.
        ModelUnavailableError: If the base model cannot be loaded.
        LedgerError: If an interrupted run cannot be continued.
        SordinoError: If nothing moved.

    Source:
        arXiv:2605.06505v2 (PACZero).

    Example:
        sordino tune --model embedded --train notes.jsonl --output run --estimator first-order
    """
    recipe = settings.find_recipe(estimator, adapter)
    config = settings.TuneConfig(
        guarantee=guarantee,
        mutual_information=mutual_information,
        channel=channel,
        budget_schedule=budget_schedule,
        on_disagreement=on_disagreement,
        unanimity_flip=unanimity_flip,
        candidates=CandidateSubsets(
            num_subsets=num_subsets,
            construction=subset_construction,
            subsets_per_record=subsets_per_record,
            seed=seed,
        ),
        estimator=estimator,
        num_steps=recipe.num_steps if num_steps is None else num_steps,
        learning_rate=recipe.learning_rate if learning_rate is None else learning_rate,
        learning_rate_schedule=learning_rate_schedule,
        weight_decay=weight_decay,
        clip=recipe.clip if clip is None else clip,
        perturbation=perturbation,
        directions_per_step=(
            recipe.directions_per_step if directions_per_step is None else directions_per_step
        ),
        direction_kind=recipe.direction_kind if direction_kind is None else direction_kind,
        batch_size=batch_size,
        adapter=adapter,
        seed=seed,
    )
    task_options = TaskOptions(
        objective=require_one_of("objective", objective, settings.OBJECTIVES),
        template=template,
        verbalizers=verbalizer,
        max_length=max_length,
        truncate=truncate,
        max_new_tokens=max_new_tokens,
    )
    require_integer("tokens_per_batch", tokens_per_batch, 1)
    _check_flags(config, validation=validation, select=select, holder_report=holder_report)
    folder = RunFolder(Path(output))
    if not resume:
        folder.require_new()
    pool = read_training_records(Path(train))
    public = (
        read_validation_records(Path(validation), pool, is_public=validation_is_public)
        if validation is not None
        else None
    )
    workers = Workers.start(device)
    compute_dtype = choose_compute_dtype(dtype, workers.device)
    loaded = load_for_tuning(model, config, compute_dtype, workers.device)
    adapter_options = AdapterOptions(
        rank=require_integer("lora_rank", lora_rank, 1),
        alpha=require_positive("lora_alpha", lora_alpha),
        targets=lora_targets,
        layers=_adapted_layers(loaded, lora_first_layer),
        factors=lora_factors,
    )
    return _run(
        config,
        folder,
        pool,
        public,
        loaded,
        workers,
        task_options=task_options,
        adapter_options=adapter_options,
        compute_dtype=compute_dtype,
        tokens_per_batch=tokens_per_batch,
        evaluate_every=evaluate_every,
        select=select,
        holder_report=holder_report,
        resume=resume,
    )


def _check_flags(
    config: settings.TuneConfig, *, validation: Path | None, select: str, holder_report: bool
) -> None:
    """Raises if a flag asks for what the other settings cannot give."""
    require_one_of("select", select, settings.SELECTIONS)
    if select == "best" and validation is None:
        raise InvalidParameterError(
            "--select best chooses a checkpoint by scores on records that must be public: give "
            "--validation FILE --validation-is-public."
        )
    if holder_report and (config.guarantee != "pac" or config.mutual_information > 0):
        raise InvalidParameterError(
            "--holder-report is for --guarantee pac at mutual information 0: with a positive "
            "budget the transcript's likelihood depends on the secret subset."
        )


def _adapted_layers(loaded: LoadedModel, first: int) -> list[int] | None:
    """Returns the numbers of the blocks to adapt; None for all."""
    if first == 0:
        return None
    num_layers = loaded.model.config.num_hidden_layers
    require_integer("lora_first_layer", first, 0, num_layers - 1)
    return list(range(first, num_layers))


def _run(
    config: settings.TuneConfig,
    folder: RunFolder,
    pool: list[Record],
    public: list[Record] | None,
    loaded: LoadedModel,
    workers: Workers,
    *,
    task_options: TaskOptions,
    adapter_options: AdapterOptions,
    compute_dtype: torch.dtype,
    tokens_per_batch: int,
    evaluate_every: int | None,
    select: str,
    holder_report: bool,
    resume: bool,
) -> TuneResult:
    """Connects the parts of a run and takes it to its end."""
    task = choose_task(task_options, pool)
    encoded = encode_records(task, pool, loaded, task_options)
    held_out = encode_records(task, public, loaded, task_options) if public else None
    model, tensors, adapter = prepare_tensors(loaded, config, adapter_options)
    plan = BatchPlan(
        encoded.objective.lengths,
        batch_size=config.batch_size,
        tokens_per_batch=tokens_per_batch,
        seed=config.seed,
    )
    entropy = OperatingSystemEntropy()
    mechanism = make_mechanism(config, entropy, plan.records_per_step)
    header = TranscriptHeader(
        seed=config.seed,
        encoding=mechanism.encoding,
        direction_kind=config.direction_kind,
        directions_per_step=config.directions_per_step,
        num_steps=config.num_steps,
        learning_rates=config.learning_rates,
        weight_decay=config.weight_decay,
        adapter=adapter,
        tensors={name: tuple(p.shape) for name, p in tensors.items()},
    )
    space = make_space(header, tensors, model=loaded.model, compute_dtype=compute_dtype)
    language_model = make_language_model(loaded, model, space)
    estimator = make_estimator(
        config, language_model, encoded.objective, space, tensors, compute_dtype
    )
    membership = make_membership(config, len(pool))
    evaluate: Callable[[], dict[str, float]] | None = None
    if held_out is not None:
        evaluate = lambda: evaluate_objective(  # noqa: E731
            held_out.objective, language_model, tokens_per_batch=tokens_per_batch
        )
    session = Session(
        folder=folder,
        header=header,
        opening=_opening_event(
            config, header, loaded, mechanism.describe(), encoded.description,
            num_records=len(pool), compute_dtype=compute_dtype, lora=asdict(adapter_options),
        ),
        plan=plan,
        estimator=estimator,
        mechanism=mechanism,
        space=space,
        membership=membership,
        workers=workers,
        leave_one_out=(
            LeaveOneOut(membership, config.unanimity_flip, config.on_disagreement)
            if holder_report
            else None
        ),
        evaluate=evaluate,
        evaluate_every=evaluate_every or max(config.num_steps // 10, 1),
        pool_digest=digest_examples(encoded.examples),
    )

    def initial_state() -> dict[str, torch.Tensor]:
        if config.adapter == "lora":
            return {name: p.data for name, p in initial_tensors(header).items()}
        base = load_for_tuning(loaded.source, config, compute_dtype, "cpu").model
        return {name: p.data for name, p in prepare_full(base).items()}

    _probe_numerics(config, loaded, task, task_options, language_model, session)

    def start() -> list[Any]:
        open_run(session, resume=resume)
        return session.steps

    folder.require_space(sum(p.numel() * p.element_size() for p in tensors.values()))
    with folder.locked(enabled=workers.is_main):
        session.steps = workers.from_main(start)
        run_steps(session)
        certificate = workers.from_main(
            lambda: finish_run(
                session,
                model,
                loaded.tokenizer,
                initial_state=initial_state,
                base_model=_public_name(loaded.source),
                select=select,
            )
        )
    return TuneResult(folder.path, certificate)


def _probe_numerics(
    config: settings.TuneConfig,
    loaded: LoadedModel,
    task: Any,
    options: TaskOptions,
    language_model: Any,
    session: Session,
) -> None:
    """Warns if the finite difference does not fit the compute type; looks at public text only."""
    is_small = sum(p.numel() for p in session.space.tensors.values()) <= _LARGEST_PROBED
    if config.estimator != "zeroth-order" or options.objective != "loss" or not is_small:
        return
    from sordino.data import ClassificationTask, Record

    if isinstance(task, ClassificationTask):
        labels = sorted(task.verbalizers)
        probes = [
            Record(text, labels[i % len(labels)], (), i + 1) for i, text in enumerate(PROBE_TEXTS)
        ]
    else:
        halves = [text.rsplit(" ", 3) for text in PROBE_TEXTS]
        probes = [Record(h[0], None, (" ".join(h[1:]),), i + 1) for i, h in enumerate(halves)]
    objective = encode_records(task, probes, loaded, options).objective
    warn_if_perturbation_does_not_fit(
        language_model,
        objective,
        session.space,
        session.estimator.perturbation,
    )


def _public_name(source: str) -> str:
    """Returns the user's words for the model, without the folders of this machine."""
    return Path(source).name if Path(source).exists() else source


def _opening_event(
    config: settings.TuneConfig,
    header: TranscriptHeader,
    loaded: LoadedModel,
    mechanism: dict[str, Any],
    task: dict[str, Any],
    *,
    num_records: int,
    compute_dtype: torch.dtype,
    lora: dict[str, Any],
) -> dict[str, Any]:
    """Returns the ledger's first event: every public setting, nothing computed on the data."""
    sampling = "all" if config.batch_size is None else f"{config.batch_size}, by the public seed"
    event = {
        "kind": "open",
        "sordino_version": version("sordino"),
        "guarantee": config.guarantee,
        "mutual_information_budget_nats": config.mutual_information,
        "mutual_information_nats": 0.0,
        "mechanism": mechanism,
        "estimator": config.estimator,
        "clip": config.clip,
        "perturbation": (
            (config.perturbation or PERTURBATIONS[compute_dtype])
            if config.estimator == "zeroth-order"
            else None
        ),
        "num_records": num_records,
        "num_steps": config.num_steps,
        "directions_per_step": config.directions_per_step,
        "sampling": sampling,
        "learning_rate": config.learning_rate,
        "learning_rate_schedule": config.learning_rate_schedule,
        "weight_decay": config.weight_decay,
        "seed": config.seed,
        "task": task,
        "adapter": {"kind": config.adapter, **(lora if config.adapter == "lora" else {})},
        "base_model": _public_name(loaded.source),
        "base_model_sha256": loaded.fingerprint,
        "compute_dtype": str(compute_dtype).removeprefix("torch."),
        "noise_source": "operating system",
        "transcript_header_sha256": hashlib.sha256(header.to_bytes()).hexdigest(),
    }
    return json.loads(canonical_json(event))  # as it will be read back
