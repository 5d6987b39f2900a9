"""From records to tokens and the losses over them: which task a file holds, and how it is read."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sordino.core.checks import require_integer
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.data import (
    ClassificationTask,
    CompletionTask,
    GenerationTask,
    PromptTask,
    default_verbalizers,
    overlap,
    parse_verbalizers,
    read_records,
)
from sordino.gradients.objectives import ClassificationObjective, GenerationObjective
from sordino.gradients.penalized import PenalizedCompletionObjective
from sordino.ledger.ledger import canonical_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sordino.data import Example, Record
    from sordino.gradients.objectives import AbstractObjective
    from sordino.models import LoadedModel
    from sordino.training.teacher import DistillationOptions, Teacher

    Task = ClassificationTask | CompletionTask | GenerationTask | PromptTask


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskOptions:
    """How records become tokens."""

    objective: str
    template: str
    verbalizers: Sequence[str] | None
    max_length: int | None
    truncate: bool
    max_new_tokens: int
    distillation: DistillationOptions | None = None  # the loss is a teacher's then
    violation_penalty: float = 0.0  # on the probability of a completion's forbidden tokens


@dataclass(frozen=True, slots=True)
class EncodedRecords:
    """Records of one file, encoded for a task."""

    examples: list[Example]
    objective: AbstractObjective
    description: dict[str, Any]  # public


def choose_task(options: TaskOptions, records: Sequence[Record]) -> Task:
    """Returns the task that the records' columns and the objective ask for."""
    is_classification = records[0].label is not None
    is_generation = options.objective == "token-f1"
    if options.violation_penalty and (is_generation or is_classification):
        raise InvalidParameterError(
            "violation_penalty is for the loss of records with the columns prompt and completion."
        )
    if options.distillation is not None:
        return PromptTask(options.distillation.settings.max_new_tokens)
    if is_classification and options.objective != "loss":
        raise InvalidParameterError(
            f"objective {options.objective} is about completions: it needs the columns prompt and "
            "completion, found text and label."
        )
    if is_generation:
        return GenerationTask(options.max_new_tokens)
    if not is_classification:
        return CompletionTask()
    if options.verbalizers:
        words = parse_verbalizers(options.verbalizers)
    else:
        words = default_verbalizers({r.label for r in records if r.label is not None})
    return ClassificationTask(words, options.template)


def encode_records(
    task: Task,
    records: Sequence[Record],
    loaded: LoadedModel,
    options: TaskOptions,
    teacher: Teacher | None = None,
) -> EncodedRecords:
    """Returns encoded records and the objective over them; prompts alone need a teacher."""
    limit = loaded.context_length
    if teacher is not None:
        limit = min(limit, teacher.context_length)
    if options.max_length is not None:
        limit = require_integer("max_length", options.max_length, 2, limit)
    examples = task.encode(records, loaded.tokenizer, limit, truncate=options.truncate)
    if isinstance(task, ClassificationTask):
        words = task.label_token_ids(loaded.tokenizer)
        objective: AbstractObjective = ClassificationObjective(examples, words)
        description: dict[str, Any] = {
            "kind": "classification",
            "template": task.template,
            "verbalizers": dict(task.verbalizers),
        }
    elif isinstance(task, CompletionTask):
        penalty = options.violation_penalty
        is_summed = options.objective == "summed-loss"
        objective = PenalizedCompletionObjective(examples, penalty, is_summed=is_summed)
        description = {
            "kind": "completion",
            **({"violation_penalty": penalty} if penalty else {}),
            **({"loss": "sum"} if is_summed else {}),  # absent: the mean over a record's tokens
        }
    elif isinstance(task, PromptTask):
        if teacher is None:
            raise InvalidParameterError("prompts alone need a teacher: use `sordino distill`.")
        objective = teacher.objective(examples)
        description = {"kind": "distillation", **asdict(teacher.settings)}
    else:
        objective = GenerationObjective(examples, loaded.tokenizer, task.max_new_tokens)
        description = {"kind": "token-f1", "max_new_tokens": task.max_new_tokens}
    return EncodedRecords(examples, objective, description)


def read_validation_records(
    path: Path, pool: Sequence[Record], *, is_public: bool, kind: str | None = None
) -> list[Record]:
    """Returns public validation records; refuses records that are not declared public or private.

    Args:
        path: Their file.
        pool: The private records.
        is_public: Whether they were declared public.
        kind: See `read_records`; None takes the pool's.

    Raises:
        InvalidParameterError: If they are not declared public.
        InvalidDataError: If one of them is in the pool.
    """
    if not is_public:
        raise InvalidParameterError(
            "scores on --validation are published in metrics.jsonl and may choose the checkpoint, "
            "so its records must be public: confirm with --validation-is-public."
        )
    if kind is None:
        kind = "classification" if pool[0].label is not None else "completion"
    records = read_records(path, kind=kind, min_records=1)
    require_no_overlap(path, records, pool, "their scores would be an unaccounted release")
    return records


def require_no_overlap(
    path: Path, records: Sequence[Record], pool: Sequence[Record], why: str
) -> None:
    """Raises if public records are in the private pool too.

    Raises:
        InvalidDataError: If so; says `why` that must not be.
    """
    shared = overlap(records, pool)
    if shared:
        raise InvalidDataError(
            f"{path}: {len(shared)} records are in the training pool too (the first at line "
            f"{shared[0]}); {why}. Remove them."
        )


def digest_examples(examples: Sequence[Example]) -> str:
    """Returns a hash of the encoded pool; private: it goes to the sealed journal only."""
    digest = hashlib.sha256()
    for example in examples:
        parts = [example.input_ids, example.target, example.num_prompt_tokens, example.references]
        # only where there are any: earlier runs have none, and keep their hash
        digest.update(canonical_json([*parts, *([example.forbidden] if example.forbidden else [])]))
    return digest.hexdigest()
