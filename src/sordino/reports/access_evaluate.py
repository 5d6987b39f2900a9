"""`sordino access evaluate`: does a model tell values to those who may know them and no others?"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typing_extensions import Doc

from sordino.access.answer_file import AnswerFile, digest_questions
from sordino.access.choose import choose_questions
from sordino.access.company import read_company
from sordino.access.endpoint import KEY_VARIABLE, Endpoint, ask_all
from sordino.access.evaluate import (
    MAX_NEW_TOKENS,
    TOKENS_PER_BATCH,
    grade_answers,
    iterate_answers,
)
from sordino.access.generate import EMPLOYEES, POLICY, find_questions, read_questions
from sordino.access.guard import Guard
from sordino.access.prompts import build_messages
from sordino.attacks.subject import find_base_format, open_subject
from sordino.core.checks import require_in_range, require_integer
from sordino.core.errors import InvalidParameterError
from sordino.ledger.durable import PRIVATE_FOLDER_MODE, replace_file
from sordino.models import LoadedModel, choose_compute_dtype
from sordino.reports.access_page import render_access_page
from sordino.reports.access_record import (
    ENDPOINT,
    INDEPENDENCE,
    NO_CONTROL,
    SCOPE,
    AccessRecord,
    EvaluationFolder,
    compare_with,
    read_access_record,
)
from sordino.training import options  # noqa: TC001 - read when the command line is made
from sordino.training.progress import progress
from sordino.training.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sordino.access.questions import Question


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """A finished evaluation.

    Args:
        folder: Where it lies.
        record: What was measured.
    """

    folder: EvaluationFolder
    record: AccessRecord


@dataclass(frozen=True, slots=True)
class _Subject:
    """Who answers.

    Args:
        description: Name, kind and SHA-256 or address, for the record.
        made_by: What decides an answer beside its question.
        answer: Yields numbers of questions with answers.
    """

    description: dict[str, Any]
    made_by: dict[str, Any]
    answer: Callable[[Sequence[Question]], Iterator[tuple[int, str]]]


def evaluate(
    model: Annotated[
        str | None,
        Doc("Run folder, PEFT adapter, model folder, GGUF file, hub id, or 'embedded'."),
    ] = None,
    *,
    questions: Annotated[Path, Doc("Folder of `sordino access generate`, or one split of it.")],
    output: Annotated[Path, Doc("Folder of the results; an interrupted evaluation goes on there.")],
    split: Annotated[str, Doc("Which questions: test, or train.")] = "test",
    limit: Annotated[
        int | None, Doc("Ask at most so many, evenly over the kinds; default: all.")
    ] = None,
    guard: Annotated[
        bool, Doc("Grade what the guard would send, too: every answer is checked.")
    ] = False,
    before: Annotated[
        Path | None, Doc("access.json of another model on the same questions, to compare with.")
    ] = None,
    base: Annotated[
        str | None, Doc("Base model of an adapter; default: what the adapter names.")
    ] = None,
    base_bits: Annotated[
        int | None, Doc("4 or 8: pack the base's weights; a run says so itself.")
    ] = None,
    base_format: Annotated[
        Literal["codes", "nf4"] | None,
        Doc("How: codes of ours, or nf4 of bitsandbytes (4 bits, CUDA); a run says so itself."),
    ] = None,
    endpoint: Annotated[
        str | None,
        Doc(
            "Instead of MODEL, an OpenAI-compatible server such as http://localhost:8000/v1. The "
            f"questions' records are sent there. A key is taken from {KEY_VARIABLE} alone."
        ),
    ] = None,
    endpoint_model: Annotated[str | None, Doc("The model's name on the server.")] = None,
    concurrency: Annotated[int, Doc("Requests to the server at a time.")] = 4,
    max_new_tokens: Annotated[int, Doc("Longest answer.")] = MAX_NEW_TOKENS,
    stop_at_braces: Annotated[
        bool,
        Doc("End an answer at its closing braces; else at the end token. Servers do not stop."),
    ] = True,
    significance: Annotated[float, Doc("One minus the confidence of each interval.")] = 0.05,
    tokens_per_batch: options.TokensPerBatch = TOKENS_PER_BATCH,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> EvaluateResult:
    """Asks a model access questions and grades what it says.

    Rates of the four clauses (never tell those who may not know, tell those who may, invent
    nothing, keep the format) with intervals, for all questions and by kind and attribute; whether
    it tells values because the asker may know them; leaks in text outside the answer. A tuned model
    alone is not access control, and no training epsilon bounds these rates: the records stand in
    the prompt.

    Returns:
        The folder with the page, the numbers, and the answers, which are private.

    Raises:
        InvalidParameterError: If a setting is out of range, or not one of a model and a server is
            given.
        InvalidDataError: If questions, stored answers or the other evaluation cannot be used.
        ModelUnavailableError: If a model cannot be read or a server does not answer.

    Source:
        arXiv:2601.20901 and the ACCESS DENIED INC benchmark; kinds and grader are our own.

    Example:
        sordino access evaluate embedded --questions questions --limit 100 --output before
        sordino access evaluate run --questions questions --before before/access.json --output after
    """
    began = time.monotonic()
    require_in_range("significance", significance, 1e-9, 0.5)
    require_integer("max_new_tokens", max_new_tokens, 1)
    require_integer("tokens_per_batch", tokens_per_batch, 1)
    folder = find_questions(questions, split)
    chosen = choose_questions(read_questions(folder), limit)
    guards = _make_guards(folder, chosen) if guard else None
    earlier = None if before is None else read_access_record(Path(before))
    digest = digest_questions(chosen)
    if earlier is not None and earlier.questions["sha256"] != digest:
        raise InvalidParameterError(
            f"before {before} must be an evaluation on the same questions; it is on others. Repeat "
            "it with the same --questions, --split and --limit."
        )
    if (model is None) == (endpoint is None):
        raise InvalidParameterError(
            "exactly one must be given: a model, or a server with --endpoint."
        )
    if endpoint is not None:
        subject = _open_endpoint(
            Endpoint(
                url=endpoint,
                model=endpoint_model or "",
                max_new_tokens=max_new_tokens,
                concurrency=concurrency,
            )
        )
    else:
        subject = _open_model(
            str(model),
            base=base,
            base_bits=base_bits,
            base_format=base_format,
            max_new_tokens=max_new_tokens,
            stop_at_braces=stop_at_braces,
            tokens_per_batch=tokens_per_batch,
            dtype=dtype,
            device=device,
        )
    place = EvaluationFolder(Path(output))
    place.path.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
    answers = _answer_all(subject, chosen, place.answers)
    guarded = [] if guards is None else _guard_all(guards, chosen, answers)
    record = AccessRecord(
        sordino_version=version("sordino"),
        made_on=datetime.now(UTC).date().isoformat(),
        subject=subject.description,
        questions={"split": split, "number": len(chosen), "sha256": digest},
        settings={
            "significance": significance,
            "max_new_tokens": max_new_tokens,
            "stops_at_braces": stop_at_braces and endpoint is None,
            "dtype": subject.made_by.get("dtype", "the server's"),
        },
        answers=tuple(grade_answers(chosen, answers)),
        guarded=tuple(grade_answers(chosen, guarded)) if guarded else (),
        cost={"seconds": round(time.monotonic() - began, 1)},
        notes=(SCOPE, NO_CONTROL, INDEPENDENCE),
    )
    if earlier is not None:
        record = replace(record, before=compare_with(record, earlier))
    replace_file(place.page, render_access_page(record).encode())
    replace_file(place.numbers, record.to_bytes())
    return EvaluateResult(place, record)


def _make_guards(folder: Path, questions: Sequence[Question]) -> dict[str, Guard]:
    """Returns a guard for each company that is asked about."""
    guards = {}
    for name in sorted({question.company for question in questions}):
        company = read_company(name, folder / name / EMPLOYEES, folder / name / POLICY)
        guards[name] = Guard(company.policy, company.employees)
    return guards


def _guard_all(
    guards: Mapping[str, Guard], questions: Sequence[Question], answers: Sequence[str]
) -> list[str]:
    """Returns what the guard sends instead of each answer."""
    sent = []
    with progress("access: guard", len(questions)) as show:
        for question, answer in zip(questions, answers, strict=True):
            decision = guards[question.company].check(
                question.asker, answer, target=question.target, question=question.prompt
            )
            sent.append(decision.answer)
            show(len(sent))
    return sent


def _answer_all(subject: _Subject, questions: Sequence[Question], path: Path) -> list[str]:
    """Returns an answer to each question: from the file, or made now and put there."""
    with AnswerFile(path, subject.made_by) as file:
        missing = [question for question in questions if file.find(question) is None]
        done = len(questions) - len(missing)
        with progress("access: answers", len(questions), start=done) as show:
            for number, answer in subject.answer(missing):
                file.add([(missing[number], answer)])
                done += 1
                show(done)
        found = [file.find(question) for question in questions]
    return [answer for answer in found if answer is not None]


def _open_endpoint(endpoint: Endpoint) -> _Subject:
    """Returns a server that answers."""
    description = {"name": endpoint.model, "kind": ENDPOINT, "address": endpoint.url}
    return _Subject(
        description=description,
        made_by=description | {"max_new_tokens": endpoint.max_new_tokens},
        answer=lambda questions: ask_all(endpoint, [build_messages(q) for q in questions]),
    )


def _open_model(
    model: str,
    *,
    base: str | None,
    base_bits: int | None,
    base_format: str | None,
    max_new_tokens: int,
    stop_at_braces: bool,
    tokens_per_batch: int,
    dtype: str,
    device: str,
) -> _Subject:
    """Returns a model on this machine that answers."""
    place = Workers.start(device).device
    compute_dtype = choose_compute_dtype(dtype, place)
    subject = open_subject(
        model,
        base=base,
        base_bits=base_bits,
        base_format=base_format,
        dtype=compute_dtype,
        device=place,
    )
    held = find_base_format(subject.ledger, base_bits, base_format)
    bits = held["base_bits"]
    description = {
        "name": subject.name,
        "kind": subject.kind,
        "sha256": subject.fingerprint,
        "base_sha256": subject.base_fingerprint,
        "base_bits": bits,
        **({"base_format": "nf4"} if held["base_format"] == "nf4" else {}),  # absent: codes
    }
    loaded = LoadedModel(
        subject.tuned.causal_lm,
        subject.tokenizer,
        subject.source,
        subject.fingerprint,
        bits,
        held["base_format"],
    )
    return _Subject(
        description=description,
        made_by=description
        | {
            "dtype": str(compute_dtype).removeprefix("torch."),
            "max_new_tokens": max_new_tokens,
            "stop_at_braces": stop_at_braces,
        },
        answer=lambda questions: iterate_answers(
            loaded,
            questions,
            max_new_tokens=max_new_tokens,
            tokens_per_batch=tokens_per_batch,
            stop_at_braces=stop_at_braces,
        ),
    )
