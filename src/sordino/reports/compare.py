"""`sordino compare`: the same pool and model under every guarantee, in one table and one figure."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from sordino.accounting.dp import require_small_delta
from sordino.core.checks import require_integer, require_one_of, require_positive
from sordino.core.errors import LedgerError
from sordino.data import read_records
from sordino.ledger.durable import replace_file
from sordino.reports.comparison import METHODS, Comparison, read_comparison
from sordino.reports.study import ComparisonResult, Study
from sordino.training import options  # noqa: TC001 - read when the command line is made
from sordino.training.dp_plan import DpOptions
from sordino.training.encoding import read_validation_records
from sordino.training.run_folder import RunFolder
from sordino.training.workers import Workers

_SMALLEST_BATCH = 64


def compare(
    *,
    model: options.Model,
    train: options.Train,
    validation: Annotated[Path, Doc("Public records that every method is scored on.")],
    output: Annotated[Path, Doc("Folder to make: the page, its numbers, and one run a method.")],
    validation_is_public: options.ValidationIsPublic = False,
    epsilon: Annotated[float, Doc("Target of the dp methods, in nats.")] = 2.0,
    delta: Annotated[
        float | None, Doc("Default: 1 / (10 N^1.1) for N records, rounded down to one digit.")
    ] = None,
    allow_large_delta: Annotated[bool, Doc("Allow a delta of 1 / (10 x records) or more.")] = False,
    methods: Annotated[
        list[str] | None, Doc(f"One of {', '.join(METHODS)}; may be repeated; default: all.")
    ] = None,
    num_steps_first_order: Annotated[
        int | None, Doc("Steps of non-private and dp-first-order; default: that of tune.")
    ] = None,
    num_steps_zeroth_order: Annotated[
        int | None, Doc("Steps of dp- and pac-zeroth-order; default: that of tune.")
    ] = None,
    num_steps_pac_first_order: Annotated[
        int | None, Doc("Steps of both pac-first-order methods; default: that of tune.")
    ] = None,
    directions_per_step: Annotated[
        int | None,
        Doc("Signs that a step of both pac-first-order methods releases; default: that of tune."),
    ] = None,
    batch_size: Annotated[
        int | None,
        Doc(
            "Records a step of non-private, and records expected in a step of dp; default: an "
            "eighth, at least 64. A step of pac looks at all records."
        ),
    ] = None,
    lora_rank: options.LoraRank = 8,
    lora_alpha: options.LoraAlpha = 16.0,
    lora_targets: options.LoraTargets = None,
    lora_first_layer: options.LoraFirstLayer = 0,
    lora_factors: options.LoraFactors = "b",
    template: options.Template = "{text} It was",
    verbalizer: options.Verbalizer = None,
    max_length: options.MaxLength = None,
    truncate: options.Truncate = False,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    tokens_per_batch: options.TokensPerBatch = 2048,
    resume: Annotated[
        bool, Doc("Skip finished runs and continue an interrupted one; repeat the other settings.")
    ] = False,
) -> ComparisonResult:
    """Tunes with every guarantee and puts scores, cost and what is protected into one table.

    The PAC methods get the budget at which the best guess is right with the probability that the
    dp method of the same estimator allows. The page says what that does not mean: PAC is an average
    over which candidate subset was used, DP a worst case over membership in the pool.

    Each run's guarantee holds for that run alone; nothing formal covers all runs together, or the
    page, which shows the scores of all.

    Returns:
        The comparison; comparison.json and comparison.html lie in the output folder.

    Raises:
        InvalidParameterError: If a setting is out of range, or epsilon leaves nothing to match.
        InvalidDataError: If the records cannot be used; nothing is written.
        LedgerError: If finished runs do not belong together, or one cannot be continued.
        SordinoError: If a run fails; those that have finished stay.

    Example:
        sordino compare --model embedded --train pool.jsonl --validation public.jsonl --validation-is-public --output comparison
    """  # noqa: E501 - a shell line that can be copied
    dp_options = DpOptions(
        epsilon=require_positive("epsilon", epsilon),
        delta=delta,
        allow_large_delta=allow_large_delta,
    )
    names = _require_methods(methods)
    workers = Workers.start(device)
    pool = read_records(Path(train))
    public = read_validation_records(Path(validation), pool, is_public=validation_is_public)
    if delta is not None:
        require_small_delta(delta, len(pool), is_large_allowed=allow_large_delta)
    steps = {
        "first-order": num_steps_first_order,
        "zeroth-order": num_steps_zeroth_order,
        "pac-first-order": num_steps_pac_first_order,
    }
    for name, count in steps.items():
        if count is not None:
            require_integer(f"num_steps_{name.replace('-', '_')}", count, 1)
    if batch_size is None:
        batch_size = min(len(pool), max(_SMALLEST_BATCH, len(pool) // 8))
    require_integer("batch_size", batch_size, 1, len(pool))
    if directions_per_step is not None:  # a single one is differentiated forwards, at another cost
        require_integer("directions_per_step", directions_per_step, 2)
    shared = {
        "lora_rank": lora_rank,
        "lora_alpha": lora_alpha,
        "lora_targets": list(lora_targets) if lora_targets else None,
        "lora_first_layer": lora_first_layer,
        "lora_factors": lora_factors,
        "template": template,
        "verbalizer": list(verbalizer) if verbalizer else None,
        "max_length": max_length,
        "truncate": truncate,
        "seed": seed,
        "dtype": dtype,
        "tokens_per_batch": tokens_per_batch,
    }
    comparison = Comparison(
        sordino_version=version("sordino"),
        settings={
            "model": Path(model).name if Path(model).exists() else model,
            "epsilon": epsilon,
            "delta": delta,
            "allow_large_delta": allow_large_delta,
            "batch_size": batch_size,
            "directions_per_step": directions_per_step,
            **{f"num_steps_{name.replace('-', '_')}": count for name, count in steps.items()},
            **shared,
        },
        methods=names,
        score="accuracy" if pool[0].label is not None else "loss",
        num_records=len(pool),
        num_validation=len(public),
    )
    study = Study(
        result=ComparisonResult(Path(output), comparison),
        options=dp_options,
        batch_size=batch_size,
        directions_per_step=directions_per_step,
        steps=steps,
        fixed={
            "model": model,
            "train": Path(train),
            "validation": Path(validation),
            "validation_is_public": validation_is_public,
            "device": device,
            **shared,
        },
        workers=workers,
    )
    study = replace(study, result=workers.from_main(lambda: _open(study.result, resume=resume)))
    for name in study.result.comparison.methods:
        study = study.with_run(name)
    return study.result


def _require_methods(asked: list[str] | None) -> tuple[str, ...]:
    """Returns the methods asked for, in the order of the table."""
    names = {require_one_of("methods", name, tuple(METHODS)) for name in asked or METHODS}
    return tuple(name for name in METHODS if name in names)


def _open(result: ComparisonResult, *, resume: bool) -> ComparisonResult:
    """Starts the folder, or takes up what lies there.

    Raises:
        InvalidParameterError: If the folder has something in it and `resume` is False.
        LedgerError: If it was started with other settings.
    """
    new = result.comparison
    if not resume:
        RunFolder(result.output).require_new()
    if resume and result.record.exists():
        old = read_comparison(result.record)
        fields = ("score", "num_records", "num_validation")
        before = old.settings | {name: getattr(old, name) for name in fields}
        now = new.settings | {name: getattr(new, name) for name in fields}
        names = sorted({*before, *now})
        differing = [name for name in names if before.get(name) != now.get(name)]
        if differing:
            raise LedgerError(
                f"{result.output} was started with other settings or records; --resume must repeat "
                f"them. Different: {', '.join(differing)}."
            )
        asked = {*(row.method for row in old.rows), *new.methods}
        new = replace(old, methods=tuple(name for name in METHODS if name in asked))
    result.output.mkdir(parents=True, exist_ok=True)
    replace_file(result.record, new.to_bytes())
    return replace(result, comparison=new)
