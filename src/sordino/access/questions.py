"""Questions about records, whose right answers come from the policy and from nothing else.

The original benchmark's kinds: six attributes, asked by somebody else and by oneself; a supervisor
who may know; a liar who claims to be somebody else. Beyond it: roles with rights (HR, the chief
executive), managers further up, revoked rights, records that are not in the context, several
attributes at once, and pairs that differ in the asker alone.
"""

from __future__ import annotations

import random as stdlib_random
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from sordino.access import _templates as wording
from sordino.access.benchmark import MISSING, REFUSAL
from sordino.access.cases import CaseMaker
from sordino.access.policy_text import label_of, make_system_text
from sordino.access.rationales import make_rationale
from sordino.core.checks import require_integer, require_one_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sordino.access.cases import Case
    from sordino.access.company import Company

NUM_OTHERS = 5  # records in a context beside the target's


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question with its right answer.

    Args:
        id: Unique in a file.
        company: Name of the company.
        questionnaire: Kind of question, such as "salary_other" or "from_supervisor".
        kind: "benign": the asker may know; "malicious": not.
        attribute: What is asked for; several joined by "+".
        asker: Id.
        target: Id.
        system: Rules, context and who the asker is.
        prompt: What the asker writes.
        expected: For benign questions what the answer must hold; for malicious ones what it must
            not.
        answer: The right answer, in its braces.
        rationale: The checks that decide; holds no value.
        template: Style, split and number of the wording.
        pair: Id of a pair; None for none.
        context: Id of a context that several questions are about; None for one of its own.
    """

    id: str
    company: str
    questionnaire: str
    kind: str
    attribute: str
    asker: str
    target: str
    system: str
    prompt: str
    expected: list[str]
    answer: str
    rationale: str
    template: str
    pair: str | None = None
    context: str | None = None


def make_questions(
    company: Company, *, seed: int, split: str, num_each: int = 250
) -> list[Question]:
    """Returns the questionnaire of a company; the same arguments give the same questions.

    A kind that the policy makes impossible (nobody's rights are revoked, say) has no questions; of
    rare ones there may be repetitions with other contexts.

    Args:
        company: Its table and policy.
        seed: Public.
        split: "train" or "test": which wordings are used.
        num_each: Questions of each kind; pairs count as one.

    Raises:
        InvalidParameterError: If a number is out of range.
    """
    require_integer("seed", seed, 0)
    require_integer("questions of each kind", num_each, 1)
    require_one_of("split", split, wording.SPLITS)
    maker = QuestionMaker(company, f"sordino-access/{seed}/{company.name}/{split}", split)
    return maker.make(num_each)


def count_kinds(questions: Sequence[Question]) -> dict[str, int]:
    """Returns the number of questions by questionnaire."""
    return dict(Counter(question.questionnaire for question in questions))


class QuestionMaker:
    """Draws the questions of one company.

    Args:
        company: Its table and policy.
        seed: Public.
        split: As in `make_questions`.
    """

    def __init__(self, company: Company, seed: str, split: str) -> None:
        self._company = company
        self._policy = company.policy
        self._seed = seed
        self._split = split
        self.cases = CaseMaker(company, seed)

    def make(self, num_each: int) -> list[Question]:
        """Returns all kinds, in order."""
        questions: list[Question] = []
        for name, draw, style, with_role in self._kinds():
            # a generator of its own: one kind does not change the others
            self.cases.random = stdlib_random.Random(f"{self._seed}/{name}")  # noqa: S311 - public
            for number in range(num_each):
                case = self.cases.draw(draw)
                if case is None:
                    break
                identity = f"{self._split}-{self._company.name}-{name}-{number:04d}"
                is_missing = name == "missing"
                questions.append(
                    self.question(identity, name, case, style, with_role, is_missing=is_missing)
                )
        return questions + self._pairs(num_each)

    def _kinds(self) -> Iterator[tuple[str, Callable[[], Case | None], str, bool]]:
        """Yields name, drawing, style and whether the asker's role is told."""
        cases = self.cases
        for attribute in cases.asked:
            yield f"{attribute}_other", partial(cases.other, (attribute,)), "other", False
            yield f"{attribute}_self", partial(cases.own, (attribute,)), "self", False
        yield "from_supervisor", cases.from_supervisor, "other", False
        yield "lying", cases.lying, "lying", False
        for role in self._policy.role_rights:
            yield f"from_{role}", partial(cases.from_role, role), "other", True
        yield "from_higher_manager", cases.from_higher_manager, "other", True
        yield "revoked", cases.revoked, "other", True
        yield "missing", cases.missing, "other", True
        yield "several_other", lambda: cases.other(cases.several()), "other", True
        yield "several_self", lambda: cases.own(cases.several()), "self", True

    def _pairs(self, num_each: int) -> list[Question]:
        """Returns pairs of questions that differ in the asker alone."""
        self.cases.random = stdlib_random.Random(f"{self._seed}/paired")  # noqa: S311 - public
        questions = []
        for number in range(num_each):
            may = self.cases.draw(self.cases.missing)
            if may is None:
                break
            may_not = self.cases.draw(partial(self.cases.stranger, may))
            if may_not is None:
                continue
            context = self._context(may.target)
            template = self._template("other", may.attributes)
            for case in (may, may_not):
                kind = "benign" if case is may else "malicious"
                name = f"paired-{number:04d}"
                identity = f"{self._split}-{self._company.name}-{name}-{kind}"
                question = self.question(
                    identity,
                    "paired",
                    case,
                    "other",
                    True,  # noqa: FBT003 - roles are told, so that they can be compared
                    pair=f"{self._split}-{self._company.name}-{name}",
                    context=context,
                    template=template,
                    involved=(may.asker, may_not.asker),
                )
                questions.append(question)
        return questions

    def _context(
        self, target: str, *, is_missing: bool = False, also: Sequence[str] = ()
    ) -> list[str]:
        """Returns the target and five others, shuffled; six others where the target is missing."""
        shown = list(dict.fromkeys([*([] if is_missing else [target]), *also]))
        rest = [person for person in self.cases.people if person not in {target, *also}]
        shown += self.cases.random.sample(rest, min(NUM_OTHERS + is_missing - len(also), len(rest)))
        self.cases.random.shuffle(shown)
        return shown

    def _template(self, style: str, attributes: tuple[str, ...]) -> tuple[str, str]:
        """Returns a wording and its name."""
        if attributes == ("name",) and style in ("other", "self"):
            style = f"name_{style}"
        texts = wording.TEMPLATES[style][self._split]
        number = self.cases.random.randrange(len(texts))
        return texts[number], f"{style}/{self._split}/{number}"

    def question(
        self,
        identity: str,
        name: str,
        case: Case,
        style: str,
        with_role: bool,  # noqa: FBT001 - one of the kind's parts
        *,
        is_missing: bool = False,
        pair: str | None = None,
        context: list[str] | None = None,
        template: tuple[str, str] | None = None,
        involved: tuple[str, ...] = (),
        shares: str | None = None,
    ) -> Question:
        """Returns the question of a case; its label comes from the policy.

        Args:
            identity: Its id.
            name: Its questionnaire.
            case: Who asks what about whom.
            style: Of the wording.
            with_role: Whether the asker's role is told.
            is_missing: Whether the context does not hold the target's record.
            pair: Id of its pair.
            context: Ids of the records shown; None draws them.
            template: Wording and its name; None draws one.
            involved: Ids of people beside asker and target whose exceptions are told.
            shares: Id of the context that it shares with others.
        """
        people = self._policy.people
        between = []
        if name == "from_higher_manager":  # the reporting line can be read in the context
            managers = self._policy.managers_of(case.target)
            between = managers[: managers.index(case.asker)]
        shown = context or self._context(case.target, is_missing=is_missing, also=between)
        text, template_name = template or self._template(style, case.attributes)
        may = self.cases.may(case)
        expected = [MISSING] if is_missing and may else self.cases.values(case)
        answer = "; ".join(expected) if may else REFUSAL
        return Question(
            id=identity,
            company=self._company.name,
            questionnaire=name,
            kind="benign" if may else "malicious",
            attribute="+".join(case.attributes),
            asker=case.asker,
            target=case.target,
            system=make_system_text(
                self._company,
                case.asker,
                shown,
                involved=(case.asker, case.target, *involved),
                with_role=with_role,
            ),
            prompt=text.format(
                target=people[case.target].name,
                id=case.target,
                label=" and the ".join(label_of(name) for name in case.attributes),
            ),
            expected=expected,
            answer=f"{{{{{answer}}}}}",
            rationale=make_rationale(
                self._policy,
                case.asker,
                case.target,
                case.attributes,
                shown=shown,
                is_missing=is_missing,
                with_role=with_role,
            ),
            template=template_name,
            pair=pair,
            context=shares,
        )
