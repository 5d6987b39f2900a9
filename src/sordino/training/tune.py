"""`sordino tune`: a private fine-tuning run, from files to a checked folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typing_extensions import Doc

from sordino.core.checks import require_integer, require_non_negative, require_one_of
from sordino.core.errors import InvalidDataError
from sordino.data import read_records
from sordino.mechanisms.candidates import CandidateSubsets
from sordino.models import choose_compute_dtype
from sordino.training import config as settings
from sordino.training import options
from sordino.training.assembly import RunRequest, run
from sordino.training.canaries import choose_canaries
from sordino.training.dp_plan import choose_dp_options
from sordino.training.encoding import TaskOptions, read_validation_records
from sordino.training.retain import choose_retain_options
from sordino.training.run_folder import RunFolder
from sordino.training.setup import AdapterOptions
from sordino.training.workers import Workers

if TYPE_CHECKING:
    from sordino.ledger.certificate import Certificate


@dataclass(frozen=True, slots=True)
class TuneResult:
    """A finished run."""

    output: Path
    certificate: Certificate


def tune(
    *,
    model: options.Model,
    train: options.Train,
    output: options.Output,
    validation: Annotated[Path | None, Doc("Public records to score during the run.")] = None,
    validation_is_public: options.ValidationIsPublic = False,
    guarantee: Annotated[
        Literal["pac", "dp", "none"],
        Doc("pac: PAC privacy; dp: differential privacy; none: no privacy (MeZO, AdamW)."),
    ] = "pac",
    epsilon: options.Epsilon = None,
    delta: options.Delta = None,
    unit: options.Unit = "record",
    adjacency: options.Adjacency = "add-remove",
    clipping: Annotated[
        Literal["flat", "per-layer", "automatic"],
        Doc("dp, first order: how gradients are bounded."),
    ] = "flat",
    optimizer: Annotated[
        Literal["adamw", "sgd"] | None,
        Doc("First order with dp (default adamw) or none (default: signs' directions)."),
    ] = None,
    noise: Annotated[
        Literal["continuous", "discrete"],
        Doc("dp: discrete survives attacks on floating-point rounding; zeroth order only."),
    ] = "continuous",
    max_records_per_unit: options.MaxRecordsPerUnit = 32,
    allow_large_delta: options.AllowLargeDelta = False,
    edgeworth: options.Edgeworth = False,
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
        Doc(
            "zeroth-order: forward passes only; first-order: many signs from one backward pass, or "
            "one sign from a forward-mode derivative (--directions-per-step 1)."
        ),
    ] = "zeroth-order",
    num_steps: Annotated[int | None, Doc("T; default by estimator.")] = None,
    learning_rate: Annotated[float | None, Doc("Default by estimator.")] = None,
    learning_rate_schedule: options.LearningRateSchedule = "linear",
    warmup_steps: options.WarmupSteps = 0,
    weight_decay: options.WeightDecay = 0.0,
    clip: Annotated[
        float | None,
        Doc("Bound on a record's derivative; on its gradient norm (first order, K > 1, dp)."),
    ] = None,
    perturbation: Annotated[
        float | None, Doc("Step of the finite difference; default by compute dtype.")
    ] = None,
    directions_per_step: Annotated[
        int | None, Doc("K, released signs a step; default by estimator.")
    ] = None,
    direction_kind: Annotated[
        Literal["rademacher", "gaussian", "hadamard", "coordinates", "kronecker"] | None,
        Doc("Public directions; default by estimator."),
    ] = None,
    batch_size: Annotated[
        int | None,
        Doc(
            "Records a step, by the public seed; default: all. With dp: units expected in a step, "
            "drawn in secret; default: an eighth."
        ),
    ] = None,
    batch_order: Annotated[
        Literal["independent", "shuffled", "blocks"],
        Doc(
            "With --batch-size: each step draws anew, or goes on through the shuffled records and "
            "starts over when fewer than a batch are left; blocks: so with batches of successive "
            "records, and with --optimizer what these begin with alike is computed once. Not "
            "with dp."
        ),
    ] = "independent",
    shared_weight: Annotated[
        float | None,
        Doc(
            "First order, classification: what is kept of the gradients' part that moves all "
            "answers alike (found on built-in public sentences); default 0.3, 1: all."
        ),
    ] = None,
    base_bits: Annotated[
        int | None, Doc("4 or 8: hold the frozen linear layers in so many bits a weight.")
    ] = None,
    base_format: Annotated[
        Literal["codes", "nf4"],
        Doc("With --base-bits 4: codes of ours, or nf4 of bitsandbytes (CUDA only)."),
    ] = "codes",
    adapter: options.Adapter = "lora",
    lora_rank: options.LoraRank = 8,
    lora_alpha: options.LoraAlpha = 16.0,
    lora_targets: options.LoraTargets = None,
    lora_first_layer: options.LoraFirstLayer = 0,
    lora_factors: options.LoraFactors = "b",
    objective: Annotated[
        Literal["loss", "summed-loss", "token-f1"],
        Doc(
            "Of completions: loss is the mean over a record's tokens, summed-loss their sum (a "
            "token counts the same in long and short ones); token-f1: F1 of a generation, zeroth "
            "order only."
        ),
    ] = "loss",
    violation_penalty: Annotated[
        float,
        Doc(
            "Completions with a column 'forbidden' (a text or a list): weight of the penalty on "
            "the probability of its tokens; 0: the column is not read."
        ),
    ] = 0.0,
    template: options.Template = "{text} It was",
    verbalizer: options.Verbalizer = None,
    max_length: options.MaxLength = None,
    truncate: options.Truncate = False,
    max_new_tokens: Annotated[int, Doc("Longest generation of --objective token-f1.")] = 16,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    tokens_per_batch: options.TokensPerBatch = 2048,
    evaluate_every: options.EvaluateEvery = None,
    select: Annotated[
        Literal["last", "best"], Doc("Which step's weights: the last, or the best on --validation.")
    ] = "last",
    holder_report: Annotated[
        bool, Doc("Write the leave-one-out loss of every record, for the data holder only.")
    ] = False,
    keep_subset: Annotated[
        bool,
        Doc(
            "Positive budget: leave the secret subset beside the run, for `sordino audit`; whoever "
            "reads it knows the secret."
        ),
    ] = False,
    retain: options.Retain = None,
    retain_is_public: Annotated[
        bool, Doc("Declare that the texts of --retain are public.")
    ] = False,
    retain_weight: options.RetainWeight = 1.0,
    retain_per_step: options.RetainPerStep = 8,
    canaries: Annotated[
        int,
        Doc(
            "Invented records planned for an audit; a secret coin each puts it into the pool. They "
            "count in the pool's published size, in or out."
        ),
    ] = 0,
    canary_style: Annotated[
        Literal["random-tokens", "new-token", "rare-name"], Doc("What canaries say.")
    ] = "random-tokens",
    resume: options.Resume = False,
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
    dp = choose_dp_options(
        guarantee,
        epsilon=epsilon,
        delta=delta,
        unit=unit,
        adjacency=adjacency,
        clipping=clipping,
        noise=noise,
        max_records_per_unit=max_records_per_unit,
        allow_large_delta=allow_large_delta,
        with_edgeworth=edgeworth,
    )
    if dp is not None and estimator == "first-order" and optimizer is None:
        optimizer = "adamw"
    config = settings.make_config(
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
        num_steps=num_steps,
        learning_rate=learning_rate,
        learning_rate_schedule=learning_rate_schedule,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        clip=clip,
        perturbation=perturbation,
        directions_per_step=directions_per_step,
        direction_kind=direction_kind,
        batch_size=batch_size,
        batch_order=batch_order,
        adapter=adapter,
        shared_weight=shared_weight,
        seed=seed,
        dp=dp,
        optimizer=optimizer,
        base_bits=base_bits,
        base_format=base_format,
    )
    request = RunRequest(
        config=config,
        folder=RunFolder(Path(output)),
        source=model,
        task=TaskOptions(
            objective=require_one_of("objective", objective, settings.OBJECTIVES),
            template=template,
            verbalizers=verbalizer,
            max_length=max_length,
            truncate=truncate,
            max_new_tokens=max_new_tokens,
            violation_penalty=require_non_negative("violation_penalty", violation_penalty),
        ),
        adapter=AdapterOptions.checked(
            rank=lora_rank,
            alpha=lora_alpha,
            targets=lora_targets,
            first_layer=lora_first_layer,
            factors=lora_factors,
        ),
        tokens_per_batch=require_integer("tokens_per_batch", tokens_per_batch, 1),
        evaluate_every=evaluate_every,
        select=require_one_of("select", select, settings.SELECTIONS),
        holder_report=holder_report,
        keep_subset=keep_subset,
        canaries=choose_canaries(canaries, canary_style),
        retain=choose_retain_options(
            retain, is_public=retain_is_public, weight=retain_weight, per_step=retain_per_step
        ),
        resume=resume,
    )
    return run_on_files(
        request,
        train=train,
        validation=validation,
        validation_is_public=validation_is_public,
        dtype=dtype,
        device=device,
    )


def run_on_files(
    request: RunRequest,
    *,
    train: Path,
    validation: Path | None,
    validation_is_public: bool,
    dtype: str,
    device: str,
) -> TuneResult:
    """Returns a finished run; the arguments are those of `tune`, and what they were made into."""
    request.check_flags(has_validation=validation is not None)
    workers = Workers.start(device)
    dtype_used = choose_compute_dtype(dtype, workers.device)
    if not request.resume:
        workers.from_main(request.folder.require_new)
    else:
        workers.from_main(request.folder.require_no_other_run)
    kind = None if request.task.distillation is None else "prompt"
    dp = request.config.dp
    pool = read_records(
        Path(train),
        kind=kind,
        unit_column=dp.unit_column if dp is not None else None,
        with_forbidden=request.task.violation_penalty > 0,
    )
    if request.task.violation_penalty > 0 and not any(record.forbidden for record in pool):
        raise InvalidDataError(
            f"{train}: violation_penalty needs the column forbidden in at least one record, found "
            "none. Check the column's name, or leave the penalty out."
        )
    public = None
    if validation is not None:
        public = read_validation_records(
            Path(validation), pool, is_public=validation_is_public, kind=kind
        )
    certificate = run(request, pool, public, workers, dtype_used)
    return TuneResult(request.folder.path, certificate)
