"""Questions to tune on, several about each context: what they share is then computed once.

Their answers differ by who asks and about whom, with the same records before them. Half of each
context's questions are to be refused. Reporting lines are asked about more often than in the
benchmark, and the strangers are often people who stand in the context themselves.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from sordino.access.questions import NUM_OTHERS, QuestionMaker
from sordino.core.checks import require_integer
from sordino.core.errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sordino.access.cases import Case
    from sordino.access.company import Company
    from sordino.access.questions import Question

    Slot = tuple[str, Callable[[], Case | None], str, bool]

MOST_QUESTIONS = 64
_MOST_EMPTY = 100  # contexts in a row that nothing can be asked about


def make_context_questions(
    company: Company, *, seed: int, num_contexts: int, num_each: int
) -> list[Question]:
    """Returns questions in the wordings to tune on, those of one context after each other.

    Args:
        company: Its table and policy.
        seed: Public; the same arguments give the same questions.
        num_contexts: How many contexts.
        num_each: Questions about each.

    Raises:
        InvalidParameterError: If a number is out of range.
        InvalidDataError: If the policy and the table leave too little to ask.
    """
    require_integer("contexts", num_contexts, 1)
    require_integer("questions of a context", num_each, 2, MOST_QUESTIONS)
    maker = _ContextMaker(company, f"sordino-access/{seed}/{company.name}/contexts")
    return [question for number in range(num_contexts) for question in maker.make(number, num_each)]


class _ContextMaker:
    """Draws contexts of one company with their questions."""

    def __init__(self, company: Company, seed: str) -> None:
        self._company = company
        self._policy = company.policy
        self._maker = QuestionMaker(company, seed, "train")
        self._cases = self._maker.cases
        self._queues = [deque(self._shuffled(slots)) for slots in (self._may(), self._may_not())]

    def make(self, number: int, num_each: int) -> list[Question]:
        """Returns the questions of one context."""
        for _ in range(_MOST_EMPTY):
            shown = self._draw_context()
            drawn = self._draw_cases(shown, num_each)
            if len(drawn) == num_each:
                break
        else:
            raise InvalidDataError(
                "the policy must leave something to ask and something to refuse in a context of "
                f"{NUM_OTHERS + 1} records; found fewer than {num_each} questions in "
                f"{_MOST_EMPTY} contexts. Generate with one question for each context."
            )
        name = f"train-{self._company.name}-context-{number:05d}"
        return [
            self._maker.question(
                f"{name}-{place:02d}",
                questionnaire,
                case,
                style,
                with_role,
                is_missing=questionnaire == "missing",
                context=shown,
                shares=name,
            )
            for place, ((questionnaire, _, style, with_role), case) in enumerate(drawn)
        ]

    def _draw_cases(self, shown: list[str], num_each: int) -> list[tuple[Slot, Case]]:
        """Returns questions that fit a context, to be answered and to be refused in turn."""
        drawn: list[tuple[Slot, Case]] = []
        for queue, count in zip(
            self._queues, (num_each - num_each // 2, num_each // 2), strict=True
        ):
            skipped: list[Slot] = []
            taken = 0
            while queue and taken < count:
                slot = queue.popleft()
                case = self._draw(slot, shown)
                if case is None:
                    skipped.append(slot)
                    continue
                queue.append(slot)
                drawn.append((slot, case))
                taken += 1
            queue.extendleft(reversed(skipped))  # they are due in the next context
        return self._shuffled(drawn)

    def _draw(self, slot: Slot, shown: list[str]) -> Case | None:
        """Returns a case whose records are shown, or is missing where it is to be."""
        name, draw, _, _ = slot
        self._cases.targets = shown
        if name == "missing":
            self._cases.targets = [p for p in self._cases.people if p not in shown]
        elif name == "from_higher_manager":  # the reporting line can be read
            self._cases.targets = [p for p in shown if self._policy.people[p].supervisor in shown]
        return self._cases.draw(draw) if self._cases.targets else None

    def _draw_context(self) -> list[str]:
        """Returns the ids of records; in half of the contexts, one is another's supervisor."""
        random, people = self._cases.random, self._cases.people
        shown = random.sample(people, min(NUM_OTHERS + 1, len(people)))
        above = self._policy.people[shown[0]].supervisor
        if above is not None and above not in shown and random.random() < 0.5:
            shown[-1] = above
        random.shuffle(shown)
        return shown

    def _shuffled(self, found: Iterable[Any]) -> list[Any]:
        """Returns a shuffled list."""
        ordered = list(found)
        self._cases.random.shuffle(ordered)
        return ordered

    def _may(self) -> Iterator[Slot]:
        """Yields what is to be answered, as often as it comes in a round."""
        cases = self._cases
        for attribute in cases.asked:
            times = 3 if attribute == "name" else 1  # that an id is one's own must be found
            yield from [
                (f"{attribute}_self", partial(cases.own, (attribute,)), "self", False)
            ] * times
        yield "missing", cases.missing, "other", True
        for role in self._policy.role_rights:
            yield f"from_{role}", partial(cases.from_role, role), "other", True
        for with_role in (False, True):
            yield "from_supervisor", cases.from_supervisor, "other", with_role
            yield "from_supervisor", cases.from_supervisor, "other", with_role
            yield "from_higher_manager", cases.from_higher_manager, "other", True
            yield "missing", cases.missing, "other", True
            yield "several_self", lambda: cases.own(cases.several()), "self", True

    def _may_not(self) -> Iterator[Slot]:
        """Yields what is to be refused."""
        cases = self._cases
        for with_role in (False, True):
            yield "other", lambda: cases.other((cases.attribute(),)), "other", with_role
            yield "near_other", cases.near, "other", with_role
            yield "near_other", cases.near, "other", with_role
            yield "revoked", cases.revoked, "other", True
        yield "several_other", lambda: cases.other(cases.several()), "other", True
        yield "lying", cases.lying, "lying", False
