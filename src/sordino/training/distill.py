"""`sordino distill`: a student learns from a teacher on what it writes after private prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typing_extensions import Doc

from sordino.core.checks import require_integer
from sordino.core.errors import InvalidParameterError
from sordino.gradients.distillation import DistillationSettings
from sordino.training import options  # noqa: TC001 - read when the command line is made
from sordino.training.assembly import RunRequest
from sordino.training.config import make_config
from sordino.training.dp_plan import choose_dp_options
from sordino.training.encoding import TaskOptions
from sordino.training.run_folder import RunFolder
from sordino.training.setup import AdapterOptions
from sordino.training.teacher import DistillationOptions
from sordino.training.tune import TuneResult, run_on_files


def distill(
    *,
    teacher: Annotated[
        str,
        Doc(
            "Folder, GGUF file, hub id, or 'embedded'. It must not have been made from the private "
            "records, and must have the student's tokenizer."
        ),
    ],
    model: Annotated[str, Doc("The student: folder, GGUF file, hub id, or 'embedded'.")],
    train: Annotated[
        Path, Doc("Private prompts: a file with the column prompt; no other column is read.")
    ],
    output: options.Output,
    validation: Annotated[Path | None, Doc("Public prompts to score during the run.")] = None,
    validation_is_public: Annotated[
        bool, Doc("Declare that the validation prompts are public.")
    ] = False,
    guarantee: Annotated[
        Literal["dp", "none"], Doc("dp: differential privacy; none: no privacy.")
    ] = "dp",
    epsilon: options.Epsilon = None,
    delta: options.Delta = None,
    unit: options.Unit = "record",
    adjacency: options.Adjacency = "add-remove",
    clipping: Annotated[
        Literal["flat", "per-layer", "automatic"], Doc("dp: how gradients are bounded.")
    ] = "flat",
    max_records_per_unit: options.MaxRecordsPerUnit = 32,
    allow_large_delta: options.AllowLargeDelta = False,
    edgeworth: options.Edgeworth = False,
    max_new_tokens: Annotated[int, Doc("Longest continuation that the student writes.")] = 64,
    temperature: Annotated[float, Doc("Of the student's sampling.")] = 1.0,
    divergence: Annotated[
        Literal["reverse-kl", "forward-kl", "jensen-shannon"],
        Doc("Between the teacher's and the student's distribution of each written token."),
    ] = "reverse-kl",
    beta: Annotated[
        float, Doc("jensen-shannon: the teacher's share in the mixture that both compare with.")
    ] = 0.5,
    optimizer: Annotated[Literal["adamw", "sgd"], Doc("What moves the weights.")] = "adamw",
    num_steps: Annotated[int | None, Doc("T; default: 64.")] = None,
    learning_rate: Annotated[
        float | None, Doc("Default: 1e-2 for an adapter, 1e-4 for all weights.")
    ] = None,
    learning_rate_schedule: options.LearningRateSchedule = "linear",
    weight_decay: options.WeightDecay = 0.0,
    clip: Annotated[
        float | None,
        Doc("dp: bound on a unit's gradient norm; default: 0.3 for an adapter, 1 for all weights."),
    ] = None,
    batch_size: Annotated[
        int | None,
        Doc(
            "dp: units expected in a step, drawn in secret; default: an eighth. Without privacy: "
            "records a step, by the public seed; default: all."
        ),
    ] = None,
    adapter: options.Adapter = "lora",
    lora_rank: options.LoraRank = 8,
    lora_alpha: options.LoraAlpha = 16.0,
    lora_targets: options.LoraTargets = None,
    lora_first_layer: options.LoraFirstLayer = 0,
    lora_factors: options.LoraFactors = "b",
    max_length: Annotated[
        int | None,
        Doc("Longest prompt and continuation in tokens; default: what both models can read."),
    ] = None,
    truncate: Annotated[bool, Doc("Cut the beginning of prompts that are too long.")] = False,
    seed: Annotated[int, Doc("Public seed of the adapter.")] = 0,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Doc("Compute type of both models.")
    ] = "auto",
    device: options.Device = "auto",
    tokens_per_batch: options.TokensPerBatch = 2048,
    evaluate_every: options.EvaluateEvery = None,
    resume: options.Resume = False,
) -> TuneResult:
    """Distils a teacher into a student on private prompts, with differential privacy.

    The student writes after every prompt, and learns from the teacher's probabilities for each
    token that it wrote. Privacy comes from the student's steps alone (clipped gradients, noise,
    secret sampling); the teacher is frozen and is assumed not to have been made from the records.

    Returns:
        The run folder, as `tune` makes it, and its certificate.

    Raises:
        InvalidParameterError: If a setting is out of range, or the two tokenizers differ.
        InvalidDataError: If the prompts cannot be used; nothing is written.
        ModelUnavailableError: If a model cannot be loaded.
        LedgerError: If an interrupted run cannot be continued.

    Source:
        arXiv:2604.04461 (DP-OPD), arXiv:2306.13649.

    Example:
        sordino distill --teacher BIG --model SMALL --train prompts.jsonl --output run --epsilon 4
    """
    if guarantee not in ("dp", "none"):
        raise InvalidParameterError(f"guarantee must be dp or none, got {guarantee!r}.")
    dp = choose_dp_options(
        guarantee,
        epsilon=epsilon,
        delta=delta,
        unit=unit,
        adjacency=adjacency,
        clipping=clipping,
        max_records_per_unit=max_records_per_unit,
        allow_large_delta=allow_large_delta,
        with_edgeworth=edgeworth,
    )
    settings = DistillationSettings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        divergence=divergence,
        beta=beta,
    )
    request = RunRequest(
        config=make_config(
            guarantee=guarantee,
            estimator="first-order",
            dp=dp,
            optimizer=optimizer,
            num_steps=num_steps,
            learning_rate=learning_rate,
            learning_rate_schedule=learning_rate_schedule,
            weight_decay=weight_decay,
            clip=clip,
            batch_size=batch_size,
            adapter=adapter,
            seed=seed,
        ),
        folder=RunFolder(Path(output)),
        source=model,
        task=TaskOptions(
            objective="loss",
            template="",
            verbalizers=None,
            max_length=max_length,
            truncate=truncate,
            max_new_tokens=max_new_tokens,
            distillation=DistillationOptions(teacher=teacher, settings=settings),
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
        select="last",
        holder_report=False,
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
