"""Questions as records to tune on: balanced, with short rationales, their labels from the policy.

Nothing here asks a model for a label. A rationale that holds a value which the asker may not read
is left out.
"""

from __future__ import annotations

import json
import random as stdlib_random
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sordino.access.benchmark import KINDS
from sordino.access.prompts import build_prompt
from sordino.access.values import ReadText, Value
from sordino.core.checks import require_in_range, require_integer
from sordino.core.directions import public_uniform
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.data._tokens import start_tokens
from sordino.ledger.durable import PRIVATE_FILE_MODE, replace_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sordino.access.questions import Question


def choose_questions(questions: Sequence[Question], count: int, *, seed: int) -> list[Question]:
    """Returns some questions: half benign, half malicious, their questionnaires in turn.

    Where several are about one context, contexts are chosen whole, and the count is rounded down.
    The same seed and a larger count give the same questions and more, as long as neither kind is
    used up.

    Args:
        questions: All there are.
        count: How many; no more than there are.
        seed: Public.

    Raises:
        InvalidParameterError: If there are not so many.
    """
    require_integer("number of questions", count, 1)
    if count > len(questions):
        raise InvalidParameterError(
            f"number of questions must be at most {len(questions)}, as many as the file holds; got "
            f"{count}. Generate more with `sordino access generate --questions`."
        )
    random = stdlib_random.Random(f"sordino-access-choice/{seed}")  # noqa: S311 - public choice
    if any(question.context is not None for question in questions):
        return _choose_contexts(questions, count, random)
    lines = {kind: _in_turn([q for q in questions if q.kind == kind], random) for kind in KINDS}
    chosen: list[Question] = []
    while len(chosen) < count:
        shortest = min(
            (kind for kind in KINDS if lines[kind]), key=lambda kind: _used(chosen, kind)
        )
        chosen.append(lines[shortest].pop())
    return chosen


def make_records(
    questions: Sequence[Question], tokenizer: Any, *, rationale_share: float, seed: int
) -> list[dict[str, Any]]:
    """Returns records for `sordino tune`: prompt, completion and, if any, forbidden values.

    Args:
        questions: From one split.
        tokenizer: Of the model that will be tuned.
        rationale_share: Probability that an answer begins with the rationale; in [0, 1].
        seed: Public; with the question's id, and nothing else of the others, it decides: under
            differential privacy one question must not change another one's record.

    Raises:
        InvalidParameterError: If the share is out of range.
        InvalidDataError: If a question cannot be a prompt.
    """
    require_in_range("rationale_share", rationale_share, 0.0, 1.0)
    has_start = bool(start_tokens(tokenizer))
    records = []
    for question in questions:
        prompt = build_prompt(question, tokenizer)
        if has_start:  # a completion's prompt gets the start token when it is tokenized
            prompt = prompt.removeprefix(tokenizer.bos_token)
        is_drawn = _is_drawn(question, rationale_share, seed)
        is_explained = is_drawn and not tells_forbidden(question)
        completion = f"{question.rationale} {question.answer}" if is_explained else question.answer
        record: dict[str, Any] = {"prompt": prompt, "completion": completion}
        if question.kind == "malicious":
            record["forbidden"] = list(question.expected)
        records.append(record)
    return records


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Writes records as JSON Lines that only their owner may read."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    replace_file(path, ("\n".join(lines) + "\n").encode(), mode=PRIVATE_FILE_MODE)


def tells_forbidden(question: Question) -> bool:
    """Returns whether a rationale holds a value, or a part of it, that the asker may not read."""
    if question.kind != "malicious":
        return False
    rationale = ReadText(question.rationale)
    return any(rationale.find(Value(text), with_negated=True) for text in question.expected)


def require_apart(train: Sequence[Question], test: Sequence[Question]) -> None:
    """Raises if questions to tune on and to test on share a company or a wording.

    Raises:
        InvalidDataError: If they do.
    """
    for what in ("company", "template"):
        shared = {getattr(q, what) for q in train} & {getattr(q, what) for q in test}
        if shared:
            raise InvalidDataError(
                f"questions to tune on and to test on must share no {what}, found "
                f"{min(shared)} in both. Take both from one `sordino access generate`."
            )


def _in_turn(questions: Sequence[Question], random: stdlib_random.Random) -> list[Question]:
    """Returns questions so that popping takes one of each questionnaire in turn."""
    groups: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        groups[question.questionnaire].append(question)
    for group in groups.values():
        random.shuffle(group)
    names = list(groups)
    random.shuffle(names)
    ordered: list[Question] = []
    while any(groups.values()):
        ordered += [groups[name].pop() for name in names if groups[name]]
    return ordered[::-1]


def _choose_contexts(
    questions: Sequence[Question], count: int, random: stdlib_random.Random
) -> list[Question]:
    """Returns the questions of as many contexts as do not hold more than `count`; at least one."""
    groups: dict[str | None, list[Question]] = defaultdict(list)
    for question in questions:
        groups[question.context].append(question)
    names = list(groups)
    random.shuffle(names)
    chosen: list[Question] = []
    for name in names:
        if chosen and len(chosen) + len(groups[name]) > count:
            break
        chosen += groups[name]
    return chosen


def _used(chosen: Sequence[Question], kind: str) -> int:
    """Returns how many of a kind were chosen."""
    return sum(question.kind == kind for question in chosen)


def _is_drawn(question: Question, share: float, seed: int) -> bool:
    """Returns whether a public coin that is the question's own falls on its reason."""
    (uniform,) = public_uniform(seed, "access-rationale", question.id, 1)  # in [-1, 1)
    return bool((1.0 + uniform) / 2.0 < share)
