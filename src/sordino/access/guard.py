"""A check of answers before they are sent: a value the asker may not read is refused.

A tuned model respects rights most of the time; this check does so every time, for the values it can
find. It looks for the values of the company's table as they are written and in the spellings of
`sordino.access.values`. It does not find paraphrases ("a little more than her supervisor"), answers
by yes or no, translations or encodings. What must not leak should not be in the prompt at all.

When in doubt it refuses. A value that many share, such as an age, is let through only if the asker
may read the same value of the person the question is about, and neither question nor answer names
another one who has it: say who the question is about. Cells without a letter or digit ("-") hold no
value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sordino.access.benchmark import REFUSAL
from sordino.access.values import ReadText, Value
from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sordino.access.rights import Policy

REFUSED_ANSWER = f"{{{{{REFUSAL}}}}}"
_IDENTIFIER = "name"  # an asker who writes a name knows it


@dataclass(frozen=True, slots=True)
class Finding:
    """A forbidden value in an answer; says where it comes from and never what it is.

    Args:
        person: Id of the person it belongs to.
        attribute: Which value.
        is_part: Whether the answer tells it in part: a rounded salary, half a name.
        is_shared: Whether the asker may read the same value of somebody else, so that the answer
            may mean that one; without a target this cannot be told.
    """

    person: str
    attribute: str
    is_part: bool
    is_shared: bool


@dataclass(frozen=True, slots=True)
class GuardDecision:
    """Whether an answer may be sent.

    Args:
        allowed: The decision.
        answer: What to send: the answer, or a refusal.
        reason: One line for the operator's log; holds ids and attributes, no values.
        findings: Every forbidden value found.
    """

    allowed: bool
    answer: str
    reason: str
    findings: tuple[Finding, ...]


class Guard:
    """Checks answers about one company.

    Args:
        policy: Who may read what.
        employees: The table: values by attribute, by id.

    Raises:
        InvalidParameterError: If somebody in the table is not in the policy, or lacks an attribute:
            what the guard does not know, it cannot refuse.
    """

    def __init__(self, policy: Policy, employees: Mapping[str, Mapping[str, str]]) -> None:
        for person in policy.people:
            missing = [a for a in policy.attributes if a not in employees.get(person, {})]
            if missing:
                raise InvalidParameterError(
                    f"employees must hold every attribute of everybody in the policy; {person!r} "
                    f"lacks {', '.join(missing)}."
                )
        strangers = [person for person in employees if person not in policy.people]
        if strangers:
            raise InvalidParameterError(
                f"employees must be people of the policy, {strangers[0]!r} is not."
            )
        self._policy = policy
        self._marks = {p.id: (Value(p.name), Value(p.id)) for p in policy.people.values()}
        self._values = {
            person: {a: Value(str(record[a])) for a in policy.attributes}
            for person, record in employees.items()
        }

    def check(
        self,
        asker: str,
        answer: str,
        *,
        target: str | None = None,
        question: str = "",
        records: Iterable[str] | None = None,
    ) -> GuardDecision:
        """Returns whether an answer may be sent to somebody.

        Args:
            asker: Verified id or unique name; somebody unknown may read nothing.
            answer: All text that would be sent, reasoning included.
            target: Id or unique name of the person the question is about, if known.
            question: What the asker wrote: a name that stands in it tells them nothing new.
            records: Ids of the records that the model was shown; None: it may know all. Values of
                other records are not looked for.

        Raises:
            InvalidParameterError: If the target or a record is unknown, or the answer is no text.
        """
        if not isinstance(answer, str):
            raise InvalidParameterError(f"answer must be text, got {type(answer).__name__}.")
        who = self._find_asker(asker)
        about = None if target is None else self._policy.find_person(target, "target").id
        shown = self._require_records(records)
        text, asked = ReadText(answer), ReadText(question)
        readable = self._readable(who, about)
        known = readable.get(_IDENTIFIER, set()) | self._known_texts(who, about, asked)
        told = readable | {_IDENTIFIER: known}
        others = self._others_asked_about(asked, told, {who, about})
        findings = []
        for person in shown:
            for attribute, value in self._values[person].items():
                if who is not None and self._policy.can_read(who, person, attribute):
                    continue
                found = text.find(value, with_negated=True, with_minus=True, known=asked)
                if found is None or (attribute == _IDENTIFIER and asked.places(value)):
                    continue
                # who asks or is asked about may be named, though they are others' supervisors
                # the target's hours, which may be read, do not hide an equal age, which may not
                is_shared = value.text in readable.get(attribute, ()) or (
                    _is_inside(text, value, readable, apart_from=attribute)
                    if person == about
                    else _is_inside(text, value, told)
                )
                if found == "part" and not is_shared:
                    # half of a name that is another's, which may be read
                    names = {_IDENTIFIER: self._readable_names(who)}
                    is_shared = _is_inside(text, value, names)
                # an age beside a name is that person's, whoever else has it
                if (
                    not is_shared
                    or about is None
                    or (
                        attribute != _IDENTIFIER
                        and (person in others or self._is_named(text, person, told))
                    )
                ):
                    findings.append(Finding(person, attribute, found == "part", is_shared))
        return _decide(answer, findings)

    def _find_asker(self, asker: str) -> str | None:
        """Returns the id of the asker; None for nobody of the company."""
        try:
            return self._policy.find_person(asker, "asker").id
        except InvalidParameterError:
            return None  # unknown or ambiguous: may read nothing

    def _require_records(self, records: Iterable[str] | None) -> list[str]:
        """Returns ids of records, checked."""
        shown = list(self._values) if records is None else list(dict.fromkeys(records))
        for person in shown:
            if person not in self._values:
                raise InvalidParameterError(
                    f"records must be ids of employees, {person!r} is none."
                )
        return shown

    def _readable(self, who: str | None, about: str | None) -> dict[str, set[str]]:
        """Returns values by attribute that the asker may read: of the target, or of anybody."""
        readable: dict[str, set[str]] = {}
        if who is None:
            return readable
        for person in self._values if about is None else [about]:
            for attribute, value in self._values[person].items():
                if self._policy.can_read(who, person, attribute):
                    readable.setdefault(attribute, set()).add(value.text)
        return readable

    def _readable_names(self, who: str | None) -> set[str]:
        """Returns the names that the asker may read."""
        if who is None or _IDENTIFIER not in self._policy.attributes:
            return set()
        people = self._policy.people.values()
        return {p.name for p in people if self._policy.can_read(who, p.id, _IDENTIFIER)}

    def _known_texts(self, who: str | None, about: str | None, asked: ReadText) -> set[str]:
        """Returns what tells the asker nothing: own name and roles, a target's name if written."""
        known = set()
        if who is not None:
            person = self._policy.people[who]
            known = {person.name, *(self._policy.roles[role] for role in person.roles)}
        if about is not None and asked.places(self._marks[about][0]):
            known.add(self._policy.people[about].name)
        return known

    def _others_asked_about(
        self, asked: ReadText, told: Mapping[str, set[str]], apart_from: set[str | None]
    ) -> set[str]:
        """Returns ids of people whom the question names beside the asker and the target."""
        return {
            person
            for person in self._marks
            if person not in apart_from and self._is_named(asked, person, told)
        }

    def _is_named(self, text: ReadText, person: str, told: Mapping[str, set[str]]) -> bool:
        """Returns whether a text speaks about somebody, and not as a value that may be told.

        Half of a name is enough: "Jonas is 42 as well".
        """
        name, identifier = self._marks[person]
        return any(
            found and not _is_inside(text, mark, told)
            for mark, found in ((name, text.find(name)), (identifier, text.places(identifier)))
        )


def _is_inside(
    text: ReadText,
    value: Value,
    readable: Mapping[str, set[str]],
    *,
    apart_from: str | None = None,
) -> bool:
    """Returns whether a value stands in a text only inside others that may be read.

    Who may read that the supervisor is Maria Keller reads that name, and half of Maria Bell's.

    Args:
        text: The answer.
        value: What may not be read.
        readable: What may be, by attribute.
        apart_from: Its attribute; equal values of other attributes, but for names, do not count.
    """
    held = [
        (
            other,
            spans,
            apart_from is None or name == apart_from or _IDENTIFIER in {apart_from, name},
        )
        for name, values in readable.items()
        for other in map(Value, sorted(values))
        if (spans := text.places(other, with_negated=True))
    ]
    places = text.places(value, with_negated=True, with_minus=True)
    if places:
        return all(
            any(
                left <= start and stop <= right and (is_same or right - left > stop - start)
                for _, spans, is_same in held
                for left, right in spans
            )
            for start, stop in places
        )
    if value.number is not None:
        return False
    known = {word for other, _, _ in held for word in other.spellings[0]}
    told = {word[0] for word in text.words} & set(value.spellings[0])
    return told <= known


def _decide(answer: str, findings: Sequence[Finding]) -> GuardDecision:
    """Returns the decision that findings make."""
    if not findings:
        return GuardDecision(
            allowed=True, answer=answer, reason="no forbidden value found", findings=()
        )
    sources = sorted({f"{found.attribute} of {found.person}" for found in findings})
    shown = ", ".join(sources[:5]) + (f" and {len(sources) - 5} more" if len(sources) > 5 else "")
    reason = f"the asker may not read {shown}"
    if all(found.is_shared for found in findings):
        reason += "; others whom the asker may read have the same value: give the target"
    return GuardDecision(
        allowed=False, answer=REFUSED_ANSWER, reason=reason, findings=tuple(findings)
    )
