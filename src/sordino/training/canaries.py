"""Canaries in a run: every planned one has a place in the pool, and a secret coin fills it or not.

A place that is left empty counts like a record wherever a number is public (size of the pool,
candidate subsets, sampling probability, noise), and nothing is ever computed on it. So what a run
publishes depends on the coins through its mechanism alone, and a canary in or out is exactly a
record against an empty place, or a unit added or removed.
"""

from __future__ import annotations

import secrets
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sordino.core.checks import require_integer, require_one_of
from sordino.core.entropy import OperatingSystemEntropy
from sordino.core.errors import InvalidDataError, InvalidParameterError, LedgerError
from sordino.data import ClassificationTask, overlap
from sordino.data.canaries import (
    MAX_CANARIES,
    STYLES,
    PlannedCanaries,
    draw_inclusion,
    plan_canaries,
    read_canaries,
)
from sordino.training.encoding import encode_records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sordino.data import Record
    from sordino.models import LoadedModel
    from sordino.training.encoding import Task, TaskOptions
    from sordino.training.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class CanaryOptions:
    """What was asked for.

    Args:
        num_planned: Canaries for which a coin is thrown.
        style: How they are made.
    """

    num_planned: int
    style: str


def choose_canaries(num_canaries: int, style: str) -> CanaryOptions | None:
    """Returns what was asked for; None for no canaries.

    Raises:
        InvalidParameterError: If the number or the style is not allowed.
    """
    require_one_of("canary_style", style, STYLES)
    if require_integer("canaries", num_canaries, 0, MAX_CANARIES) == 0:
        return None
    return CanaryOptions(num_canaries, style)


@dataclass(frozen=True, slots=True)
class Places:
    """The pool as a run sees it.

    Args:
        records: What is, or could have been, at every place: the file's records, then the canaries.
        empty: Places that the coins left empty.
        canaries: The private list; None without canaries.
    """

    records: list[Record]
    empty: frozenset[int] = frozenset()
    canaries: PlannedCanaries | None = None


def plant_canaries(
    options: CanaryOptions | None,
    pool: Sequence[Record],
    public: Sequence[Record] | None,
    *,
    task: Task,
    task_options: TaskOptions,
    loaded: LoadedModel,
    folder: RunFolder,
    seed: int,
    resume: bool,
) -> Places:
    """Returns the pool with a place for every canary; only the main process may call it.

    A resumed run takes the list that it was started with, and never draws again. Nothing is written
    yet: see `RunFolder.keeping_canaries`.

    Args:
        options: What was asked for.
        pool: The file's records.
        public: Validation records, or None.
        task: What the records are.
        task_options: How they become tokens.
        loaded: The base model and its tokenizer.
        folder: Where the private list lies.
        seed: Public seed.
        resume: Whether an interrupted run is continued.

    Raises:
        InvalidParameterError: If such canaries cannot be made, or do not fit into the context.
        InvalidDataError: If a validation record equals a canary.
        LedgerError: If the list of a resumed run is gone, damaged or readable by others, or was
            made with other settings.
    """
    if options is None:
        return Places(list(pool))
    canaries = _read_own(folder, options, seed) if resume else None
    if canaries is None:
        what: dict[str, Any] = {"kind": "completion"}
        if isinstance(task, ClassificationTask):
            what = {"kind": "classification", "labels": task.labels, "template": task.template}
        planned = plan_canaries(
            options.num_planned, options.style, loaded.tokenizer, seed=seed, **what
        )
        drawn = draw_inclusion(options.num_planned, OperatingSystemEntropy())
        canaries = PlannedCanaries(
            name=secrets.token_hex(16),
            style=options.style,
            seed=seed,
            records=tuple(planned),
            is_included=drawn,
        )
    _require_fit(canaries, task, task_options, loaded)
    if public and overlap(public, canaries.records):
        raise InvalidDataError(
            "a validation record has the prompt of a canary, and its score would be an unaccounted "
            "release. Choose another --canary-style, or remove the record."
        )
    empty = [len(pool) + i for i, is_in in enumerate(canaries.is_included) if not is_in]
    return Places([*pool, *canaries.records], frozenset(empty), canaries)


def _read_own(folder: RunFolder, options: CanaryOptions, seed: int) -> PlannedCanaries | None:
    """Returns the list that the run was started with; None if nothing was ever charged."""
    if not folder.canaries.exists():
        if folder.is_begun:
            raise LedgerError(
                f"{folder.canaries} is gone, or the run was started without --canaries. The coins "
                "are never drawn again: repeat the settings that the run was started with, put the "
                "file back, or start a new run."
            )
        return None
    if stat.S_IMODE(folder.canaries.stat().st_mode) & 0o077:
        raise LedgerError(
            f"{folder.canaries}: others could read this private file (its mode must be 0600). "
            "Treat the list as known; start a new run."
        )
    try:
        canaries = read_canaries(folder.canaries)
    except InvalidDataError as error:
        raise LedgerError(f"{error} Put it back, or start a new run.") from None
    found = (len(canaries.records), canaries.style, canaries.seed)
    if found != (options.num_planned, options.style, seed):
        raise LedgerError(
            f"{folder.path} was started with other settings; --resume must repeat them. Different: "
            "canaries (number, style or public seed)."
        )
    return canaries


def _require_fit(
    canaries: PlannedCanaries, task: Task, options: TaskOptions, loaded: LoadedModel
) -> None:
    """Raises unless every canary is whole in the context: a canary that is cut tests nothing."""
    try:
        encode_records(task, canaries.records, loaded, replace(options, truncate=False))
    except InvalidDataError:
        raise InvalidParameterError(
            f"canaries of style {canaries.style} do not fit this task: they are longer than the "
            "context, or have other labels. Raise --max-length, shorten --template, or choose "
            "another --canary-style."
        ) from None
