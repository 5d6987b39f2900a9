"""`sordino compare`: the same pool and model under every guarantee, in one table and one figure."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typing_extensions import Doc

from sordino.accounting.dp import compute_tradeoff, require_small_delta
from sordino.accounting.inference_risk import mutual_information_from_posterior
from sordino.core.checks import require_integer, require_one_of, require_positive
from sordino.core.errors import InvalidParameterError, LedgerError
from sordino.data import read_records
from sordino.ledger.certificate import compute_certificate
from sordino.ledger.durable import replace_file
from sordino.ledger.ledger import Ledger
from sordino.report.comparison import (
    METHODS,
    Comparison,
    Row,
    count_forward_equivalents,
    read_comparison,
)
from sordino.report.page import render_page
from sordino.training.config import find_recipe
from sordino.training.dp_plan import RECORD, DpOptions, make_dp_plan
from sordino.training.loop import read_metrics
from sordino.training.run_folder import RunFolder
from sordino.training.setup import read_validation_records
from sordino.training.tune import tune
from sordino.training.workers import Workers

if TYPE_CHECKING:
    from sordino.ledger.certificate import Certificate

_SMALLEST_BATCH = 64


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """A finished comparison and where it lies."""

    output: Path
    comparison: Comparison

    @property
    def record(self) -> Path:
        """The numbers, for machines."""
        return self.output / "comparison.json"

    @property
    def page(self) -> Path:
        """The table and the figure, for people."""
        return self.output / "comparison.html"


def compare(
    *,
    model: Annotated[str, Doc("Folder, GGUF file, hub id, or 'embedded' (SmolLM2-135M).")],
    train: Annotated[Path, Doc("Private records: JSONL, CSV, TSV, Parquet or a datasets folder.")],
    validation: Annotated[Path, Doc("Public records that every method is scored on.")],
    output: Annotated[Path, Doc("Folder to make: the page, its numbers, and one run a method.")],
    validation_is_public: Annotated[
        bool, Doc("Declare that the validation records are public.")
    ] = False,
    epsilon: Annotated[float, Doc("Target of the dp methods, in nats.")] = 2.0,
    delta: Annotated[
        float | None, Doc("Default: the largest power of ten below 1 / (10 x records).")
    ] = None,
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
    template: Annotated[str, Doc("Prompt of a classification.")] = "{text} It was",
    verbalizer: Annotated[
        list[str] | None, Doc("LABEL=WORD, once a label; default for two sentiment labels.")
    ] = None,
    max_length: Annotated[
        int | None, Doc("Longest record in tokens; default: the model's.")
    ] = None,
    truncate: Annotated[bool, Doc("Cut the beginning of records that are too long.")] = False,
    seed: Annotated[int, Doc("Public seed of directions, candidates and adapter.")] = 0,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Doc("Compute type.")
    ] = "auto",
    device: Annotated[str, Doc("auto, cpu, cuda or cuda:N.")] = "auto",
    tokens_per_batch: Annotated[int, Doc("Tokens a forward pass, padding included.")] = 2048,
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
    options = _dp_options(epsilon, delta)
    names = _require_methods(methods)
    workers = Workers.start(device)
    pool = read_records(Path(train))
    public = read_validation_records(Path(validation), pool, is_public=validation_is_public)
    if delta is not None:
        require_small_delta(delta, len(pool), is_large_allowed=False)
    if batch_size is None:
        batch_size = min(len(pool), max(_SMALLEST_BATCH, len(pool) // 8))
    require_integer("batch_size", batch_size, 1, len(pool))
    if directions_per_step is not None:
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
    steps = {
        "first-order": num_steps_first_order,
        "zeroth-order": num_steps_zeroth_order,
        "pac-first-order": num_steps_pac_first_order,
    }
    comparison = Comparison(
        sordino_version=version("sordino"),
        settings={
            "model": Path(model).name if Path(model).exists() else model,
            "epsilon": epsilon,
            "delta": delta,
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
    study = _Study(
        result=ComparisonResult(Path(output), comparison),
        options=options,
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


def _dp_options(epsilon: float, delta: float | None) -> DpOptions:
    """Returns the settings of both dp methods, as `tune` has them by default."""
    return DpOptions(
        epsilon=require_positive("epsilon", epsilon),
        delta=delta,
        unit=RECORD,
        adjacency="add-remove",
        clipping="flat",
        noise="continuous",
        max_records_per_unit=32,
        allow_large_delta=False,
        with_edgeworth=False,
    )


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
        asked = {*old.methods, *new.methods}
        new = replace(old, methods=tuple(name for name in METHODS if name in asked))
    result.output.mkdir(parents=True, exist_ok=True)
    replace_file(result.record, new.to_bytes())
    return replace(result, comparison=new)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Study:
    """The runs of one comparison, and what they share."""

    result: ComparisonResult
    options: DpOptions
    batch_size: int
    directions_per_step: int | None
    steps: dict[str, int | None]
    fixed: dict[str, Any]  # what every `tune` gets
    workers: Workers

    def with_run(self, name: str) -> _Study:
        """Returns the study after one more run; its record and page are on disk."""
        folder = RunFolder(self.result.output / "runs" / name)
        matched = self._matched_success(name)
        old = self.result.comparison.find(name)
        seconds = old.seconds if old is not None else None
        if not _is_finished(folder):
            is_begun = folder.path.exists()
            began = time.monotonic()
            tune(output=folder.path, resume=is_begun, **self.fixed, **self._settings(name, matched))
            seconds = None if is_begun else round(time.monotonic() - began, 1)

        def record() -> ComparisonResult:
            row, opening = self._read_row(name, folder, seconds, matched)
            comparison = _add_row(self.result.comparison, row, opening)
            result = replace(self.result, comparison=comparison)
            replace_file(result.page, render_page(comparison).encode())
            replace_file(result.record, comparison.to_bytes())
            return result

        return replace(self, result=self.workers.from_main(record))

    def _settings(self, name: str, matched: float | None) -> dict[str, Any]:
        """Returns what only this method's `tune` gets."""
        method, num_steps = METHODS[name], self._num_steps(name)
        settings: dict[str, Any] = {
            "guarantee": method.guarantee,
            "estimator": method.estimator,
            "num_steps": num_steps,
            "evaluate_every": num_steps,  # before and after, nothing between
        }
        if method.guarantee == "pac":
            budget = 0.0 if matched is None else mutual_information_from_posterior(matched)
            if method.estimator == "first-order":
                settings["directions_per_step"] = self.directions_per_step
            return settings | {"mutual_information": budget}
        settings |= {"batch_size": self.batch_size, "optimizer": _optimizer(name)}
        if method.guarantee == "dp":
            settings |= {"epsilon": self.options.epsilon, "delta": self.options.delta}
        return settings

    def _num_steps(self, name: str) -> int:
        """Returns the steps of a method: those asked for, or those of its recipe."""
        method = METHODS[name]
        is_pac_first = (method.guarantee, method.estimator) == ("pac", "first-order")
        asked = self.steps["pac-first-order" if is_pac_first else method.estimator]
        if asked is not None:
            return require_integer("num_steps", asked, 1)
        return find_recipe(method.estimator, "lora", optimizer=_optimizer(name)).num_steps

    def _matched_success(self, name: str) -> float | None:
        """Returns the success of a guess that a method is matched with; None if it is not.

        Raises:
            InvalidParameterError: If the dp method allows a guess that is always right.
        """
        matched_with = METHODS[name].matched_with
        if matched_with is None:
            return None
        row = self.result.comparison.find(matched_with)
        if row is not None and row.pool.success_upper is not None:
            success = row.pool.success_upper
        else:  # that method was not asked for: what it would allow follows from its settings
            plan = make_dp_plan(
                self.options,
                num_units=self.result.comparison.num_records,
                num_steps=self._num_steps(matched_with),
                expected_units=self.batch_size,
                clip_norm=1.0,  # does not change the accounting
            )
            success = compute_tradeoff(plan.event).success(0.5)
        if success >= 1.0:
            raise InvalidParameterError(
                f"epsilon {self.options.epsilon:g} allows a guess that is always right, so no PAC "
                "budget compares with it. Use a smaller --epsilon."
            )
        return success

    def _read_row(
        self, name: str, folder: RunFolder, seconds: float | None, matched: float | None
    ) -> tuple[Row, dict[str, Any]]:
        """Returns a finished run's row, from its files, and its ledger's opening event."""
        ledger = Ledger.open(folder.ledger)
        certificate, opening = _read_certificate(folder, ledger), ledger.events[0]
        scores = {e["num_steps"]: e for e in read_metrics(folder, opening["num_steps"])}
        share = 1.0
        if METHODS[name].guarantee != "pac":
            share = self.batch_size / self.result.comparison.num_records
        score = self.result.comparison.score
        row = Row(
            method=name,
            score_before=scores[0][score],
            score_after=scores[opening["num_steps"]][score],
            num_steps=opening["num_steps"],
            share_per_step=share,
            forward_equivalents=count_forward_equivalents(
                opening["derivative"],
                num_steps=opening["num_steps"],
                directions_per_step=opening["directions_per_step"],
                share_per_step=share,
            ),
            seconds=seconds,
            matched_success=matched,
            subset=certificate.subset,
            pool=certificate.pool,
            run=folder.path.relative_to(self.result.output).as_posix(),
        )
        return row, opening


def _optimizer(name: str) -> str | None:
    """Returns what moves the weights; None: released symbols do."""
    method = METHODS[name]
    is_on_gradients = method.estimator == "first-order" and method.guarantee != "pac"
    return "adamw" if is_on_gradients else None


def _is_finished(folder: RunFolder) -> bool:
    """Returns whether nothing is left to do: the certificate is there, the secrets are not."""
    return folder.certificate.exists() and not folder.private.exists()


def _read_certificate(folder: RunFolder, ledger: Ledger) -> Certificate:
    """Returns the certificate that the ledger gives.

    Raises:
        LedgerError: If certificate.json says something else.
    """
    certificate = compute_certificate(ledger)
    if folder.certificate.read_bytes() != certificate.to_bytes():
        raise LedgerError(
            f"{folder.certificate} is not the certificate of its ledger. Look with sordino verify "
            f"{folder.path}, and take the run out of the folder before you compare again."
        )
    return certificate


def _add_row(comparison: Comparison, row: Row, opening: dict[str, Any]) -> Comparison:
    """Returns the comparison with a run in its place.

    Raises:
        LedgerError: If the run is on another model, pool size or validation file.
    """
    found = {
        "base_model": opening["base_model"],
        "base_model_sha256": opening["base_model_sha256"],
        "validation_sha256": opening["validation"]["sha256"],
    }
    known = {name: getattr(comparison, name) for name in found} if comparison.rows else found
    same_size = opening["num_records"] == comparison.num_records
    differing = [name for name, value in found.items() if known[name] != value]
    if differing or not same_size:
        raise LedgerError(
            f"{row.run} does not belong to this comparison: it differs in "
            f"{', '.join(differing) or 'num_records'}. Runs are compared on the same model, "
            "records and validation file; take it out of the folder and repeat it."
        )
    rows = {each.method: each for each in comparison.rows} | {row.method: row}
    return replace(comparison, rows=tuple(rows[name] for name in METHODS if name in rows), **found)
