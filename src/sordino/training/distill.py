"""`sordino distill`: a student learns from a teacher on what it writes after private prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typing_extensions import Doc

from sordino.core.checks import require_integer, require_positive
from sordino.core.errors import InvalidParameterError
from sordino.gradients.distillation import DistillationSettings
from sordino.mechanisms.candidates import CandidateSubsets
from sordino.training.assembly import RunRequest
from sordino.training.config import TuneConfig, find_recipe
from sordino.training.dp_plan import RECORD, DpOptions
from sordino.training.run_folder import RunFolder
from sordino.training.setup import AdapterOptions, TaskOptions
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
    output: Annotated[Path, Doc("Run folder to make.")],
    validation: Annotated[Path | None, Doc("Public prompts to score during the run.")] = None,
    validation_is_public: Annotated[
        bool, Doc("Declare that the validation prompts are public.")
    ] = False,
    guarantee: Annotated[
        Literal["dp", "none"], Doc("dp: differential privacy; none: no privacy.")
    ] = "dp",
    epsilon: Annotated[float | None, Doc("dp: target, in nats.")] = None,
    delta: Annotated[
        float | None, Doc("dp: default: the largest power of ten below 1 / (10 x units).")
    ] = None,
    unit: Annotated[
        str, Doc("dp: who is protected: record, or the column that names whose record it is.")
    ] = "record",
    adjacency: Annotated[
        Literal["add-remove", "replace"], Doc("dp: which data sets are neighbors.")
    ] = "add-remove",
    clipping: Annotated[
        Literal["flat", "per-layer", "automatic"], Doc("dp: how gradients are bounded.")
    ] = "flat",
    max_records_per_unit: Annotated[
        int, Doc("dp with a column as --unit: most records of a unit in one step.")
    ] = 32,
    allow_large_delta: Annotated[
        bool, Doc("dp: allow a delta of 1 / (10 x units) or more.")
    ] = False,
    edgeworth: Annotated[
        bool, Doc("dp: a third opinion on epsilon in the certificate, where it has one.")
    ] = False,
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
        float | None, Doc("Default: 1e-3 for an adapter, 1e-4 for all weights.")
    ] = None,
    learning_rate_schedule: Annotated[
        Literal["linear", "constant", "cosine"], Doc("Public decay of the learning rate.")
    ] = "linear",
    weight_decay: Annotated[float, Doc("Decoupled weight decay.")] = 0.0,
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
    adapter: Annotated[Literal["lora", "full"], Doc("Train an adapter or all weights.")] = "lora",
    lora_rank: Annotated[int, Doc("Rank of the adapter.")] = 8,
    lora_alpha: Annotated[float, Doc("Scale of the adapter: alpha / rank.")] = 16.0,
    lora_targets: Annotated[
        list[str] | None, Doc("Linear layers to adapt; default: query and value.")
    ] = None,
    lora_first_layer: Annotated[int, Doc("First block to adapt.")] = 0,
    lora_factors: Annotated[
        Literal["b", "both"], Doc("Train B alone (A stays public and random), or both.")
    ] = "b",
    max_length: Annotated[
        int | None,
        Doc("Longest prompt and continuation in tokens; default: what both models can read."),
    ] = None,
    truncate: Annotated[bool, Doc("Cut the beginning of prompts that are too long.")] = False,
    seed: Annotated[int, Doc("Public seed of the adapter.")] = 0,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Doc("Compute type of both models.")
    ] = "auto",
    device: Annotated[str, Doc("auto, cpu, cuda or cuda:N.")] = "auto",
    tokens_per_batch: Annotated[int, Doc("Tokens a forward pass, padding included.")] = 2048,
    evaluate_every: Annotated[int | None, Doc("Steps between scores on --validation.")] = None,
    resume: Annotated[bool, Doc("Continue an interrupted run; repeat its other settings.")] = False,
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
    dp = None
    if guarantee == "dp":
        dp = DpOptions(
            epsilon=epsilon,
            delta=delta,
            unit=unit,
            adjacency=adjacency,
            clipping=clipping,
            noise="continuous",
            max_records_per_unit=max_records_per_unit,
            allow_large_delta=allow_large_delta,
            with_edgeworth=edgeworth,
        )
    elif guarantee != "none":
        raise InvalidParameterError(f"guarantee must be dp or none, got {guarantee!r}.")
    elif epsilon is not None or delta is not None or unit != RECORD:
        raise InvalidParameterError("--epsilon, --delta and --unit are for --guarantee dp.")
    settings = DistillationSettings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        divergence=divergence,
        beta=beta,
    )
    request = RunRequest(
        config=_make_config(
            guarantee=guarantee,
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
        adapter=AdapterOptions(
            rank=require_integer("lora_rank", lora_rank, 1),
            alpha=require_positive("lora_alpha", lora_alpha),
            targets=lora_targets,
            first_layer=require_integer("lora_first_layer", lora_first_layer, 0),
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


def _make_config(
    *,
    guarantee: str,
    dp: DpOptions | None,
    optimizer: str,
    num_steps: int | None,
    learning_rate: float | None,
    learning_rate_schedule: str,
    weight_decay: float,
    clip: float | None,
    batch_size: int | None,
    adapter: str,
    seed: int,
) -> TuneConfig:
    """Returns the settings of steps along gradients; what belongs to signs has no effect there."""
    recipe = find_recipe("first-order", adapter, optimizer=optimizer)
    return TuneConfig(
        guarantee=guarantee,
        mutual_information=0.0,
        channel="binary-symmetric",
        budget_schedule="adaptive",
        on_disagreement="coin",
        unanimity_flip=0.0,
        candidates=CandidateSubsets(num_subsets=2, construction="random-halves", seed=seed),
        estimator="first-order",
        num_steps=recipe.num_steps if num_steps is None else num_steps,
        learning_rate=recipe.learning_rate if learning_rate is None else learning_rate,
        learning_rate_schedule=learning_rate_schedule,
        weight_decay=weight_decay,
        clip=recipe.clip if clip is None else clip,
        perturbation=None,
        directions_per_step=recipe.directions_per_step,
        direction_kind=recipe.direction_kind,
        batch_size=batch_size,
        adapter=adapter,
        shared_weight=None,
        seed=seed,
        dp=dp,
        optimizer=optimizer,
    )
