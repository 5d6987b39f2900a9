"""`sordino access guard`: answers that are checked before they are sent, one JSON line each."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

from typing_extensions import Doc

from sordino.access.company import Company, read_company
from sordino.access.endpoint import KEY_VARIABLE, Endpoint, ask_all
from sordino.access.evaluate import MAX_NEW_TOKENS, TOKENS_PER_BATCH, answer_questions
from sordino.access.guard import REFUSED_ANSWER, Guard, GuardDecision
from sordino.access.policy import load_policy
from sordino.access.policy_text import make_system_text
from sordino.access.prompts import build_messages
from sordino.access.questions import Question
from sordino.attacks.subject import open_subject
from sordino.core.checks import require_integer
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.ledger.durable import PRIVATE_FILE_MODE
from sordino.models import LoadedModel, choose_compute_dtype
from sordino.training import options  # noqa: TC001 - read when the command line is made
from sordino.training.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_ANSWER_KEYS = {"asker", "answer"}
_QUESTION_KEYS = {"asker", "question"}
_OTHER_KEYS = {"target", "records", "question", "id"}


@dataclass(frozen=True, slots=True)
class GuardResult:
    """What a guard let through.

    Args:
        num_allowed: Answers sent as they were.
        num_refused: Answers replaced by a refusal.
        num_broken: Lines that were refused because they could not be checked.
        output: Where the answers went; None for standard output.
    """

    num_allowed: int
    num_refused: int
    num_broken: int
    output: Path | None


def guard(
    *,
    policy: Annotated[Path, Doc("Who may read what (TOML).")],
    employees: Annotated[
        Path | None, Doc("The table whose values are guarded (CSV); default: the policy's.")
    ] = None,
    source: Annotated[Path | None, Doc("JSON lines to read; default: standard input.")] = None,
    output: Annotated[
        Path | None, Doc("File to write, made anew and private; default: standard output.")
    ] = None,
    model: Annotated[
        str | None,
        Doc("Answer questions with this model: a run, adapter, folder, GGUF file or 'embedded'."),
    ] = None,
    endpoint: Annotated[
        str | None,
        Doc(
            "Answer questions with an OpenAI-compatible server; a key is taken from "
            f"{KEY_VARIABLE} alone."
        ),
    ] = None,
    endpoint_model: Annotated[str | None, Doc("The model's name on the server.")] = None,
    filter_records: Annotated[
        bool, Doc("Show the model only what the asker may read; the guard stands behind that.")
    ] = True,
    max_new_tokens: Annotated[int, Doc("Longest answer.")] = MAX_NEW_TOKENS,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> GuardResult:
    """Refuses answers that hold a value the asker may not read, whatever the model said.

    A tuned model alone is not access control: it respects rights most of the time, this check every
    time, for the values it can find. It matches spellings and does not understand: paraphrases,
    comparisons, translations and encodings pass. What must not leak should not be in the prompt.

    Without a model each line is {"asker": ..., "answer": ...}; with one it is {"asker": ...,
    "question": ..., "records": [ids]}. "target", "question" and "records" sharpen the check. The
    asker must be verified by whoever writes the line. A line that cannot be checked is refused.

    Returns:
        How many answers were sent and refused.

    Raises:
        InvalidParameterError: If a setting is out of range, or a model and a server are given.
        InvalidDataError: If the policy or the table cannot be used.
        ModelUnavailableError: If the model cannot be read, or the server does not answer.

    Example:
        sordino access guard --policy policy.toml --source answers.jsonl
    """
    require_integer("max_new_tokens", max_new_tokens, 1)
    if model is not None and endpoint is not None:
        raise InvalidParameterError("a model and an endpoint must not be given together.")
    table = _find_table(Path(policy)) if employees is None else Path(employees)
    company = read_company("guarded", table, Path(policy))
    checker = _Checker(company, filter_records=filter_records)
    ask = None
    if endpoint is not None:
        server = Endpoint(
            url=endpoint, model=endpoint_model or "", max_new_tokens=max_new_tokens, concurrency=1
        )
        ask = lambda question: next(iter(ask_all(server, [build_messages(question)])))[1]  # noqa: E731
    elif model is not None:
        loaded = _load(model, dtype, device)
        ask = lambda question: answer_questions(  # noqa: E731
            loaded, [question], max_new_tokens=max_new_tokens, tokens_per_batch=TOKENS_PER_BATCH
        )[0]
    counts = {"allowed": 0, "refused": 0, "broken": 0}
    with ExitStack() as stack:
        lines = sys.stdin if source is None else stack.enter_context(_open_lines(Path(source)))
        sink = sys.stdout if output is None else stack.enter_context(_open_private(Path(output)))
        for line in lines:
            if not line.strip():
                continue
            sent = checker.answer(line, ask)
            counts[sent.pop("outcome")] += 1
            sink.write(json.dumps(sent) + "\n")
            sink.flush()  # whoever waits for an answer gets it
    return GuardResult(
        num_allowed=counts["allowed"],
        num_refused=counts["refused"],
        num_broken=counts["broken"],
        output=None if output is None else Path(output),
    )


def _find_table(policy: Path) -> Path:
    """Returns the table of people that a policy names.

    Raises:
        InvalidDataError: If the policy cannot be read, or names none.
    """
    load_policy(policy)  # says what is wrong with it
    named = tomllib.loads(policy.read_text(encoding="utf-8")).get("people_file")
    if named is None:
        raise InvalidDataError(
            f"{policy}: its people stand in the file itself, and the guard needs a table of their "
            "values. Name one with people_file, instead of [people]."
        )
    return policy.parent / str(named)


class _Checker:
    """Turns a line into what may be sent."""

    def __init__(self, company: Company, *, filter_records: bool) -> None:
        self._company = company
        self._guard = Guard(company.policy, company.employees)
        self._filter_records = filter_records

    def answer(self, line: str, ask: Callable[[Question], str] | None) -> dict[str, Any]:
        """Returns what is sent for one line, with its outcome; errors of a line refuse it."""
        entry: Mapping[str, Any] = {}
        try:
            entry = _parse(line, _ANSWER_KEYS if ask is None else _QUESTION_KEYS)
            text = entry["answer"] if ask is None else ask(self._question(entry))
            decision = self._guard.check(
                entry["asker"],
                text,
                target=entry.get("target"),
                question=entry.get("question", ""),
                records=entry.get("records"),
            )
        except (InvalidDataError, InvalidParameterError) as error:
            return _sent(entry, None, str(error))
        return _sent(entry, decision, decision.reason)

    def _question(self, entry: Mapping[str, Any]) -> Question:
        """Returns a question as the model is asked it."""
        policy = self._company.policy
        asker = policy.find_person(entry["asker"], "asker")
        target = entry.get("target")
        ids = list(dict.fromkeys(entry.get("records") or []))
        for person in ids:
            if person not in self._company.employees:
                raise InvalidParameterError("records must be ids of employees, one is none.")
        return Question(
            id="guarded",
            company=self._company.name,
            questionnaire="guarded",
            kind="benign",
            attribute="",
            asker=asker.id,
            target=asker.id if target is None else policy.find_person(target, "target").id,
            system=make_system_text(
                self._company, asker.id, ids, only_readable=self._filter_records
            ),
            prompt=entry["question"],
            expected=[],
            answer="",
            rationale="",
            template="",
        )


def _parse(line: str, required: set[str]) -> dict[str, Any]:
    """Returns one line, checked; errors say nothing of its values."""
    try:
        entry = json.loads(line)
    except ValueError:
        raise InvalidDataError("the line must be JSON.") from None
    if not isinstance(entry, dict):
        raise InvalidDataError("the line must be a JSON object.")
    missing = sorted(required - entry.keys())
    unknown = sorted(entry.keys() - required - _OTHER_KEYS)
    if missing or unknown:
        raise InvalidDataError(
            f"the line must hold {', '.join(sorted(required))} and may hold "
            f"{', '.join(sorted(_OTHER_KEYS - required))}; "
            + (f"missing: {', '.join(missing)}." if missing else "it holds another key.")
        )
    texts = [entry[key] for key in (*required, "target", "question") if key in entry]
    records = entry.get("records", [])
    is_list = isinstance(records, list) and all(isinstance(person, str) for person in records)
    if not all(isinstance(text, str) for text in texts) or not is_list:
        raise InvalidDataError("every entry of the line must be text, and records a list of ids.")
    return entry


def _sent(entry: Mapping[str, Any], decision: GuardDecision | None, reason: str) -> dict[str, Any]:
    """Returns the line that is sent, with its outcome."""
    outcome = "broken" if decision is None else "allowed" if decision.allowed else "refused"
    known = {key: entry[key] for key in ("id", "asker") if key in entry}
    return known | {
        "answer": REFUSED_ANSWER if decision is None else decision.answer,
        "allowed": decision is not None and decision.allowed,
        "reason": reason,
        "outcome": outcome,
    }


def _open_lines(path: Path) -> IO[str]:
    """Returns an open file of lines."""
    return path.open(encoding="utf-8", errors="replace")


def _open_private(path: Path) -> IO[str]:
    """Returns a new private file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE_MODE)
    os.fchmod(descriptor, PRIVATE_FILE_MODE)
    return os.fdopen(descriptor, "w", encoding="utf-8")


def _load(model: str, dtype: str, device: str) -> LoadedModel:
    """Returns a model with its tokenizer."""
    place = Workers.start(device).device
    subject = open_subject(model, dtype=choose_compute_dtype(dtype, place), device=place)
    return LoadedModel(
        subject.tuned.causal_lm, subject.tokenizer, subject.source, subject.fingerprint
    )
