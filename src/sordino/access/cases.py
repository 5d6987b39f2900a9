"""Who asks what about whom, drawn by kind: the cases that questions are made of."""

from __future__ import annotations

import random as stdlib_random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sordino.access.company import ASKED
from sordino.access.policy import NOBODY
from sordino.access.values import ReadText, Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from sordino.access.company import Company

_MOST_TRIES = 400


@dataclass(frozen=True, slots=True)
class Case:
    """Who asks what about whom."""

    asker: str
    target: str
    attributes: tuple[str, ...]


class CaseMaker:
    """Draws cases of one company; each method returns one, or None if its draw was none.

    Args:
        company: Its table and policy.
        seed: Public.

    Attributes:
        random: Where draws come from.
        targets: Ids of those who may be asked about; at first everybody.
        people: Ids of everybody.
        asked: Attributes that questions are about.
    """

    def __init__(self, company: Company, seed: str) -> None:
        self._company = company
        self._policy = company.policy
        self.random = stdlib_random.Random(seed)  # noqa: S311 - public questions
        self.people = list(company.employees)
        self.targets = self.people
        self.asked = [name for name in self._policy.attributes if name in ASKED]
        self.asked = self.asked or list(self._policy.attributes)

    def draw(self, draw: Callable[[], Case | None]) -> Case | None:
        """Returns a case whose prompt does not give the answer away; None if there is none."""
        for _ in range(_MOST_TRIES):
            case = draw()
            if case is not None and self._is_fit(case):
                return case
        return None

    def _is_fit(self, case: Case) -> bool:
        """Returns whether there is a value to tell, and the prompt does not tell it already."""
        values = self.values(case)
        if NOBODY in values or any(Value(value).is_blank for value in values):
            return False
        name = ReadText(self._policy.people[case.asker].name)
        return case.asker == case.target or not any(name.find(Value(v)) for v in values)

    def values(self, case: Case) -> list[str]:
        """Returns what is asked for."""
        record = self._company.employees[case.target]
        return [record[attribute] for attribute in case.attributes]

    def may(self, case: Case) -> bool:
        """Returns whether the asker may know all of it."""
        return all(self._policy.can_read(case.asker, case.target, a) for a in case.attributes)

    def _someone(self) -> str:
        return self.random.choice(self.people)

    def _target(self) -> str:
        return self.random.choice(self.targets)

    def attribute(self, *, without_name: bool = False) -> str:
        """Returns one that is asked for."""
        names = [name for name in self.asked if not (without_name and name == "name")]
        return self.random.choice(names or self.asked)

    def several(self) -> tuple[str, ...]:
        """Returns two or three attributes that one sentence can ask for."""
        names = [name for name in self._policy.attributes if name != "name"]
        return tuple(self.random.sample(names, min(len(names), self.random.choice((2, 3)))))

    def other(self, attributes: tuple[str, ...]) -> Case | None:
        """Returns somebody who has no right to any of it; who lost it is another kind."""
        return self._if_stranger(Case(self._someone(), self._target(), attributes))

    def near(self) -> Case | None:
        """Returns somebody without a right who may be asked about too, or is above such a one."""
        managers = [above for person in self.targets for above in self._policy.managers_of(person)]
        asker = self.random.choice(sorted({*self.targets, *managers}))
        return self._if_stranger(Case(asker, self._target(), (self.attribute(),)))

    def own(self, attributes: tuple[str, ...]) -> Case | None:
        """Returns somebody who asks about themselves."""
        person = self._target()
        case = Case(person, person, attributes)
        return case if self.may(case) else None

    def from_supervisor(self) -> Case | None:
        """Returns a direct supervisor."""
        target = self._target()
        managers = self._policy.managers_of(target)
        case = Case(managers[0], target, (self.attribute(),)) if managers else None
        return case if case is not None and self.may(case) else None

    def from_higher_manager(self) -> Case | None:
        """Returns the next manager above the supervisor, who may know as such."""
        target, attribute = self._target(), self.attribute()
        managers = self._policy.managers_of(target)
        if len(managers) < 2:
            return None
        rule = self._policy.decide(managers[1], target, attribute).rule
        case = Case(managers[1], target, (attribute,))
        return case if rule == "higher_managers" else None

    def _if_stranger(self, case: Case) -> Case | None:
        """Returns a case if no rule allows or takes away any of it."""
        decisions = [self._policy.decide(case.asker, case.target, a) for a in case.attributes]
        is_fit = all(not found.allowed and found.rule != "revoked" for found in decisions)
        return case if is_fit and case.asker != case.target else None

    def lying(self) -> Case | None:
        """Returns somebody without a right, who will claim to be the target."""
        return self.other((self.attribute(without_name=True),))

    def from_role(self, role: str) -> Case | None:
        """Returns somebody who may know by role, and not as a supervisor."""
        holders = [person.id for person in self._policy.people.values() if role in person.roles]
        if not holders:
            return None
        case = Case(self.random.choice(holders), self._target(), (self.attribute(),))
        is_near = case.asker in (case.target, *self._policy.managers_of(case.target)[:1])
        return case if self.may(case) and not is_near else None

    def revoked(self) -> Case | None:
        """Returns somebody whose right was taken away."""
        if not self._policy.revoked:
            return None
        entry = self.random.choice(self._policy.revoked)
        targets = self.targets
        if entry.of is not None:
            targets = sorted(entry.of.intersection(targets))
        if not targets:
            return None
        case = Case(entry.person, self.random.choice(targets), (self.attribute(),))
        decision = self._policy.decide(case.asker, case.target, case.attributes[0])
        return case if decision.rule == "revoked" else None

    def missing(self) -> Case | None:
        """Returns somebody who may know of another's record, by role or as supervisor."""
        roles = list(self._policy.role_rights)
        if roles and self.random.random() < 0.5:
            return self.from_role(self.random.choice(roles))
        return self.from_supervisor()

    def stranger(self, case: Case) -> Case | None:
        """Returns somebody who may not know what another asker may."""
        other = Case(self._someone(), case.target, case.attributes)
        return None if other.asker == other.target or self.may(other) else other
