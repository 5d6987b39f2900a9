"""`sordino access tune`: a model learns who may know what, measured before and after.

The records are questions whose answers come from the policy; `sordino tune` learns them. The
measurements are on another company and other wordings.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typing_extensions import Doc

from sordino.access.evaluate import (
    MAX_NEW_TOKENS,
    TOKENS_PER_BATCH,
    answer_questions,
    grade_answers,
)
from sordino.access.examples import choose_questions, make_records, require_apart, write_records
from sordino.access.forgetting import answer_items, compare_items
from sordino.access.general_items import NUM_ITEMS, make_items
from sordino.access.general_texts import write_general_texts
from sordino.access.generate import find_questions, read_questions
from sordino.access.results import compare_models, compute_clauses
from sordino.attacks.subject import open_subject
from sordino.core.checks import require_integer, require_non_negative
from sordino.core.errors import InvalidParameterError
from sordino.data import read_records
from sordino.ledger.durable import PRIVATE_FILE_MODE, PRIVATE_FOLDER_MODE, replace_file
from sordino.models import LoadedModel, choose_compute_dtype, load_model
from sordino.reports.access_tune_result import AccessTuneResult
from sordino.training import options  # noqa: TC001 - read when the command line is made
from sordino.training.progress import counting, progress
from sordino.training.run_folder import RunFolder
from sordino.training.tune import tune as tune_model
from sordino.training.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sordino.access.general_items import Item
    from sordino.access.questions import Question
    from sordino.access.results import GradedAnswer
    from sordino.attacks.subject import Subject

LORA_TARGETS = (
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)
_TRAIN, _RESULT = "access_train.PRIVATE.jsonl", "access.PRIVATE.json"
_RETAINED = "general_texts.jsonl"


def tune(
    *,
    model: options.Model,
    questions: Annotated[
        Path, Doc("Folder of `sordino access generate`, or one split of it: tunes on train.")
    ],
    output: options.Output,
    test: Annotated[
        Path | None, Doc("Folder of questions to measure; default: the folder test beside.")
    ] = None,
    records: Annotated[int | None, Doc("Questions to tune on; default: all.")] = None,
    test_questions: Annotated[
        int, Doc("Questions to measure before and after; 0 measures nothing.")
    ] = 200,
    forgetting: Annotated[bool, Doc("Measure general questions before and after.")] = True,
    forgetting_items: Annotated[
        int, Doc(f"General questions; {NUM_ITEMS} show a collapse, 2,500 a loss of two points.")
    ] = NUM_ITEMS,
    rationale_share: Annotated[
        float, Doc("Share of the answers that begin with the policy's checks.")
    ] = 0.75,
    violation_penalty: Annotated[
        float, Doc("Weight of the penalty on the probability of a forbidden value's tokens.")
    ] = 0.0,
    retain_weight: Annotated[
        float,
        Doc(
            "Of holding the model to its base on texts that the base writes itself, so that it "
            "forgets less; 0: it is not held."
        ),
    ] = 1.0,
    retain_texts: Annotated[int, Doc("General texts that the base writes.")] = 128,
    retain_per_step: options.RetainPerStep = 2,
    epsilon: Annotated[
        float | None,
        Doc("Differential privacy of the records used in training, in nats; default: none."),
    ] = None,
    delta: options.Delta = None,
    clip: Annotated[float | None, Doc("With --epsilon: bound on a record's gradient norm.")] = None,
    epochs: Annotated[int, Doc("Passes over the questions.")] = 1,
    batch_size: Annotated[
        int, Doc("Questions a step; with --epsilon: expected, drawn in secret.")
    ] = 8,
    learning_rate: Annotated[float, Doc("Small models may need ten times as much.")] = 2e-5,
    learning_rate_schedule: options.LearningRateSchedule = "linear",
    warmup_steps: options.WarmupSteps = 5,
    weight_decay: options.WeightDecay = 0.01,
    base_bits: Annotated[
        int, Doc("Bits of a frozen weight: 4 or 8; 0 leaves the base as it is.")
    ] = 4,
    base_format: Annotated[
        Literal["codes", "nf4"],
        Doc("With --base-bits 4: codes of ours, or nf4 of bitsandbytes (CUDA only)."),
    ] = "codes",
    lora_rank: options.LoraRank = 32,
    lora_alpha: options.LoraAlpha = 32.0,
    lora_targets: Annotated[
        list[str] | None, Doc("Linear layers to adapt; default: attention and feed-forward.")
    ] = None,
    max_new_tokens: Annotated[int, Doc("Longest answer.")] = MAX_NEW_TOKENS,
    seed: Annotated[int, Doc("Public seed of the adapter and of what is chosen.")] = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    tokens_per_batch: options.TokensPerBatch = 2048,
    resume: options.Resume = False,
) -> AccessTuneResult:
    """Tunes a model on questions whose right answers come from a policy, measured before and after.

    Labels and reasons come from the policy, never from another model. The questions measured are
    about another company, in other wordings. What holds values of records lies beside the run
    folder, for the data holder only.

    Returns:
        The run, its certificate, rates before and after, and what was forgotten.

    Raises:
        InvalidParameterError: If a setting is out of range or contradicts another one.
        InvalidDataError: If the questions cannot be used, or share a company or a wording.
        ModelUnavailableError: If the model cannot be loaded.

    Source:
        arXiv:2601.20901, the recipe of supervised tuning; texts and labels are our own.

    Example:
        sordino access tune --model embedded --questions questions --output run
    """
    if epsilon is None and (delta is not None or clip is not None):
        raise InvalidParameterError(
            "--delta and --clip are for --epsilon: give it too, or neither."
        )
    if epsilon is not None and records is not None:
        raise InvalidParameterError(
            "--records cannot be used with --epsilon: which questions are taken depends on all of "
            "them. Leave it out, and give a folder with fewer questions."
        )
    require_non_negative("violation_penalty", violation_penalty)
    require_non_negative("retain_weight", retain_weight)
    require_integer("retain_texts", retain_texts, 1)
    require_integer("retain_per_step", retain_per_step, 1)
    folder = RunFolder(Path(output))
    if not resume:
        folder.require_new()
    items = make_items(forgetting_items) if forgetting else []
    split = find_questions(questions, "train")
    learned = _choose(read_questions(split), records, seed)
    measured = []
    if require_integer("test_questions", test_questions, 0) > 0:
        others = read_questions(find_questions(test or split.parent, "test"))
        require_apart(learned, others)
        # the same ones for every seed, so that runs can be compared
        measured = choose_questions(others, min(test_questions, len(others)), seed=0)
    recipe = make_recipe(
        len(learned),
        in_contexts=any(question.context is not None for question in learned),
        epsilon=epsilon,
        delta=delta,
        clip=clip,
        epochs=epochs,
        batch_size=batch_size,
        warmup_steps=warmup_steps,
    )
    workers = Workers.start(device)
    dtype_used = choose_compute_dtype(dtype, workers.device)
    base: dict[str, Any] = {"base_bits": base_bits or None, "base_format": base_format}
    # the tokenizer is all that is needed of the model here
    tokenizer = load_model(model, dtype=dtype_used).tokenizer
    rows = make_records(learned, tokenizer, rationale_share=rationale_share, seed=seed)
    with _private_files(folder, workers) as private:
        train = private / _TRAIN
        workers.from_main(lambda: write_records(train, rows))
        retained: dict[str, Any] = {}
        if retain_weight > 0:
            path = private / _RETAINED

            def write() -> int:
                if not (folder.is_begun and path.exists()):  # else the ledger names them
                    held = load_model(model, dtype=dtype_used, device=workers.device, **base)
                    _write_general(path, held, retain_texts, seed)
                return len(read_records(path, kind="completion", min_records=1))

            retained = {
                "retain": path,
                "retain_is_public": True,  # nothing but the base made them
                "retain_weight": retain_weight,
                "retain_per_step": min(retain_per_step, workers.from_main(write)),
            }
        result = tune_model(
            model=model,
            train=train,
            output=folder.path,
            objective="summed-loss",
            estimator="first-order",
            optimizer="adamw",
            learning_rate=learning_rate,
            learning_rate_schedule=learning_rate_schedule,
            weight_decay=weight_decay,
            violation_penalty=violation_penalty,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            lora_targets=lora_targets or list(LORA_TARGETS),
            lora_factors="both",
            seed=seed,
            dtype=str(dtype_used).removeprefix("torch."),
            device=device,
            tokens_per_batch=tokens_per_batch,
            resume=resume and folder.is_begun,
            **base,
            **retained,
            **recipe,
        )
    subject = open_subject(str(folder.path), base=model, dtype=dtype_used, device=workers.device)
    with subject.base():
        before, items_before = measure(subject, measured, items, max_new_tokens=max_new_tokens)
    after, items_after = measure(subject, measured, items, max_new_tokens=max_new_tokens)
    made = AccessTuneResult(
        output=folder.path,
        certificate=result.certificate,
        num_train=len(learned),
        num_test=len(measured),
        before=compute_clauses(before) if measured else None,
        after=compute_clauses(after) if measured else None,
        change=compare_models(before, after) if measured else None,
        forgetting=compare_items(items, items_before, items_after) if items else None,
    )
    content = json.dumps(made.as_dict(), indent=1, allow_nan=False).encode()
    workers.from_main(
        lambda: replace_file(folder.private / _RESULT, content, mode=PRIVATE_FILE_MODE)
    )
    return made


@contextmanager
def _private_files(folder: RunFolder, workers: Workers) -> Iterator[Path]:
    """Yields the place of files to learn, beside the run; without a run they are taken away."""
    place = folder.private
    workers.from_main(lambda: place.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True))
    try:
        yield place
    finally:
        if workers.is_main and not folder.is_begun:
            for name in (_TRAIN, _RETAINED):
                (place / name).unlink(missing_ok=True)
            if not any(place.iterdir()):
                place.rmdir()


def _write_general(path: Path, loaded: LoadedModel, count: int, seed: int) -> None:
    """Writes what the base writes by itself."""
    with progress("access: general texts", 2 * count) as show:
        texts = write_general_texts(loaded, count, seed=seed, advance=counting(show))
    write_records(path, texts)


def make_recipe(
    num_records: int,
    *,
    in_contexts: bool = False,
    epsilon: float | None = None,
    delta: float | None = None,
    clip: float | None = None,
    epochs: int = 1,
    batch_size: int = 8,
    warmup_steps: int = 5,
) -> dict[str, Any]:
    """Returns the arguments of `tune` that depend on the number of records and on the guarantee.

    Every record is seen once an epoch, but for less than a batch that is left over; with
    differential privacy it is drawn once an epoch on average.

    Raises:
        InvalidParameterError: If a number is out of range.
    """
    require_integer("epochs", epochs, 1)
    size = min(require_integer("batch_size", batch_size, 1), num_records)
    num_steps = epochs * (num_records // size)
    recipe: dict[str, Any] = {
        "num_steps": num_steps,
        "batch_size": size,
        "warmup_steps": min(require_integer("warmup_steps", warmup_steps, 0), num_steps - 1),
    }
    if epsilon is None:
        order = "blocks" if in_contexts else "shuffled"
        return recipe | {"guarantee": "none", "batch_order": order}
    return recipe | {"guarantee": "dp", "epsilon": epsilon, "delta": delta, "clip": clip}


def measure(
    subject: Subject,
    questions: Sequence[Question],
    items: Sequence[Item] = (),
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> tuple[list[GradedAnswer], list[bool]]:
    """Returns a model's graded answers, and which general items it answers rightly.

    Inside of `subject.base()` they are the base's. `tokens_per_batch` bounds the memory of answers.
    """
    loaded = LoadedModel(
        model=subject.tuned.causal_lm,
        tokenizer=subject.tokenizer,
        source=subject.source,
        fingerprint=subject.fingerprint,
    )
    answers = answer_questions(
        loaded, questions, max_new_tokens=max_new_tokens, tokens_per_batch=tokens_per_batch
    )
    return grade_answers(questions, answers), answer_items(loaded, items)


def _choose(questions: list[Question], count: int | None, seed: int) -> list[Question]:
    """Returns the questions to learn; None takes all."""
    return questions if count is None else choose_questions(questions, count, seed=seed)
