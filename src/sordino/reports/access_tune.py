"""`sordino access tune`: a model learns who may know what, measured before and after.

The records are questions whose answers come from the policy; `sordino tune` learns them. The
measurements are on another company and other wordings.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typing_extensions import Doc

from sordino.access.evaluate import answer_questions, grade_answers
from sordino.access.examples import choose_questions, make_records, require_apart, write_records
from sordino.access.forgetting import answer_items, compare_items, make_items
from sordino.access.generate import read_questions
from sordino.access.results import compare_models, compute_clauses
from sordino.core.checks import require_in_range, require_integer, require_non_negative
from sordino.core.errors import InvalidParameterError
from sordino.ledger.certificate import describe_certificate
from sordino.ledger.durable import PRIVATE_FILE_MODE, PRIVATE_FOLDER_MODE, replace_file
from sordino.models import choose_compute_dtype, load_adapter, load_model
from sordino.training import options  # noqa: TC001 - read when the command line is made
from sordino.training.run_folder import RunFolder
from sordino.training.tune import tune

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from sordino.access.forgetting import Forgetting
    from sordino.access.questions import Question
    from sordino.access.results import Clauses, GradedAnswer, PairedTest, Rate
    from sordino.ledger.certificate import Certificate
    from sordino.models import LoadedModel

LORA_TARGETS = (
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)
SCOPE = (
    "A certificate covers the records used in training. Records in a prompt are not training "
    "records: no training epsilon bounds the leak rates of this table.",
    "A tuned model alone is not access control: filter records before they reach the prompt, and "
    "check answers with the guard.",
)
_TRAIN, _RESULT = "access_train.PRIVATE.jsonl", "access.PRIVATE.json"
_CLAUSES = {
    "correct": "correct",
    "leak": "leaked, of forbidden",
    "leak_in_braces": "leaked in the braces",
    "false_refusal": "refused, of allowed",
    "wrong": "wrong or invented",
    "wrong_format": "out of format",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AccessTuneResult:
    """A tuned model and what it can do.

    Args:
        output: The run folder.
        certificate: What is guaranteed about the records used in training.
        num_train: Questions learned.
        num_test: Questions measured, before and after.
        before: Rates of the four clauses; None without a test.
        after: The same.
        change: Questions answered rightly before and after; None without a test.
        forgetting: What general questions lost; None where it was not measured.
    """

    output: Path
    certificate: Certificate
    num_train: int
    num_test: int
    before: Clauses | None
    after: Clauses | None
    change: PairedTest | None
    forgetting: Forgetting | None

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        fields = asdict(replace(self, certificate=None))  # type: ignore[arg-type]
        certificate = json.loads(self.certificate.to_bytes())
        return fields | {"output": str(self.output), "certificate": certificate}

    def lines(self) -> list[str]:
        """Returns the table before and after, what was forgotten, and the certificate."""
        lines = [f"Tuned on {self.num_train} questions."]
        if self.before is not None and self.after is not None and self.change is not None:
            lines += [
                f"On {self.num_test} questions about another company, in other wordings "
                "(95% intervals):",
                f"  {'':<22}{'before':>24}{'after':>24}",
                *_rows(self.before, self.after),
                f"  Rightly answered only before: {self.change.only_first}, only after: "
                f"{self.change.only_second} (McNemar, exact: p = {self.change.p_value:.2g}).",
            ]
        if self.forgetting is not None:
            lines += _forgetting_lines(self.forgetting)
        return [
            *lines,
            *SCOPE,
            "",
            "Certificate:",
            *[f"  {line}" for line in describe_certificate(self.certificate)],
            f"The run lies in {self.output}. Check it: sordino verify {self.output}",
        ]


def tune_access(
    *,
    model: options.Model,
    questions: Annotated[
        Path, Doc("Folder of questions to tune on: OUTPUT/train of `sordino access generate`.")
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
    rationale_share: Annotated[
        float, Doc("Share of the answers that begin with a short reason.")
    ] = 0.75,
    violation_penalty: Annotated[
        float, Doc("Weight of the penalty on the probability of a forbidden value's tokens.")
    ] = 0.0,
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
        int | None, Doc("Bits of a frozen weight: 4 or 8; 0 leaves the base as it is.")
    ] = 4,
    lora_rank: options.LoraRank = 32,
    lora_alpha: options.LoraAlpha = 32.0,
    lora_targets: Annotated[
        list[str] | None, Doc("Linear layers to adapt; default: attention and feed-forward.")
    ] = None,
    max_new_tokens: Annotated[int, Doc("Longest answer.")] = 96,
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
        sordino access tune --model embedded --questions questions/train --output run
    """
    folder = RunFolder(Path(output))
    plan = _Plan.read(
        Path(questions), test, records=records, num_test=test_questions, seed=seed, resume=resume
    )
    require_integer("epochs", epochs, 1)
    require_integer("batch_size", batch_size, 1)
    require_in_range("rationale_share", rationale_share, 0.0, 1.0)
    require_non_negative("violation_penalty", violation_penalty)
    if epsilon is None and (delta is not None or clip is not None):
        raise InvalidParameterError("--delta and --clip are for --epsilon: give it, or neither.")
    if not resume:
        folder.require_new()
    kept = _Kept(folder, plan)
    bits = base_bits or None
    on = _device(device)
    computed = choose_compute_dtype(dtype, on)
    base = load_model(model, dtype=computed, device=on, base_bits=bits)
    kept.measure("before", base, forgetting=forgetting, max_new_tokens=max_new_tokens)
    train = make_records(plan.train, base.tokenizer, rationale_share=rationale_share, seed=seed)
    del base  # the run loads its own
    write_records(kept.train_file, train)
    size = min(batch_size, len(train))
    num_steps = epochs * max(1, len(train) // size)
    private: dict[str, Any] = {"guarantee": "none"}
    if epsilon is not None:
        private = {"guarantee": "dp", "epsilon": epsilon, "delta": delta, "clip": clip}
    elif size < len(train):
        private |= {"batch_order": "shuffled"}
    result = tune(
        model=model,
        train=kept.train_file,
        output=folder.path,
        estimator="first-order",
        optimizer="adamw",
        num_steps=num_steps,
        batch_size=size if size < len(train) or epsilon is not None else None,
        learning_rate=learning_rate,
        learning_rate_schedule=learning_rate_schedule,
        warmup_steps=min(require_integer("warmup_steps", warmup_steps, 0), num_steps - 1),
        weight_decay=weight_decay,
        violation_penalty=violation_penalty,
        base_bits=bits,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_targets=list(lora_targets or LORA_TARGETS),
        lora_factors="both",
        seed=seed,
        dtype=str(computed).removeprefix("torch."),
        device=on,
        tokens_per_batch=tokens_per_batch,
        resume=resume and folder.path.exists(),
        **private,
    )
    with _tuned(model, folder.path, dtype=computed, device=on, base_bits=bits) as tuned:
        kept.measure("after", tuned, forgetting=forgetting, max_new_tokens=max_new_tokens)
    return kept.result(result.certificate)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """The questions of a run."""

    train: list[Question]
    test: list[Question]

    @classmethod
    def read(
        cls,
        folder: Path,
        test: Path | None,
        *,
        records: int | None,
        num_test: int,
        seed: int,
    ) -> _Plan:
        """Returns the chosen questions of both splits."""
        train = read_questions(folder)
        chosen = train if records is None else choose_questions(train, records, seed=seed)
        if require_integer("test_questions", num_test, 0) == 0:
            return cls(train=chosen, test=[])
        everything = read_questions(Path(test) if test is not None else folder.parent / "test")
        require_apart(train, everything)
        number = min(num_test, len(everything))
        # always the same ones, so that runs with other seeds can be compared
        return cls(train=chosen, test=choose_questions(everything, number, seed=0))
