"""Fewer questions of a benchmark, evenly over its kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sordino.core.checks import require_integer
from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sordino.access.questions import Question


def choose_questions(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """Returns at most `limit` questions, taken in turn from each kind, in their own order.

    Pairs stay together. Fewer questions are among more: an evaluation can be extended.

    Args:
        questions: All of them.
        limit: The most; None for all.

    Raises:
        InvalidParameterError: If the limit is not positive, or there are no questions.
    """
    if not questions:
        raise InvalidParameterError("questions must hold at least one question, got none.")
    if limit is None:
        return list(questions)
    require_integer("limit", limit, 1)
    kinds: dict[str, dict[str, list[int]]] = {}
    for number, question in enumerate(questions):
        units = kinds.setdefault(question.questionnaire, {})
        units.setdefault(question.pair or question.id, []).append(number)
    queues = [list(units.values()) for units in kinds.values()]
    chosen: list[int] = []
    for turn in range(max(map(len, queues))):
        for queue in queues:
            if turn < len(queue) and len(chosen) + len(queue[turn]) <= limit:
                chosen += queue[turn]
    return [questions[number] for number in sorted(chosen)]
