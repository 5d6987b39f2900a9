"""Who may read which attribute of whom: people, rules, and the decision with its reason.

What no rule allows is refused. What is denied or revoked is refused whatever else allows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from sordino.core.errors import InvalidDataError, InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

RELATIONS = ("self", "direct_supervisor", "higher_managers", "everyone")


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """Somebody in the company.

    Args:
        id: Unique.
        name: As people write it; not shown in messages.
        roles: Names of roles that the policy declares.
        supervisor: Id of the direct supervisor; None at the top.
    """

    id: str
    name: str = field(repr=False)
    roles: tuple[str, ...] = ()
    supervisor: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialRight:
    """A right of one person that is given or taken beside the general rules.

    Args:
        person: Id of the asker.
        attributes: What it is about.
        of: Ids of the people it is about; None: everybody but the person.
    """

    person: str
    attributes: frozenset[str]
    of: frozenset[str] | None = None

    def covers(self, asker: str, target: str, attribute: str) -> bool:
        """Returns whether it is about this question."""
        is_about = asker != target if self.of is None else target in self.of
        return asker == self.person and attribute in self.attributes and is_about


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an asker may read an attribute, and the rule that says so.

    Args:
        allowed: The decision.
        rule: "self", "direct_supervisor", "higher_managers", "everyone", "role:NAME" or "granted"
            if allowed; "revoked", "denied:ROLE" or "no rule" if not.
    """

    allowed: bool
    rule: str


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A checked policy; made by `sordino.access.policy.load_policy`.

    Args:
        attributes: All attributes, in the file's order.
        roles: Their descriptions by name.
        people: By id.
        relations: What people may read of those they stand in a relation to (`RELATIONS`).
        role_rights: What a role may read of everybody.
        role_denials: What a role may never read of others.
        granted: Exceptions that allow.
        revoked: Exceptions that refuse.
    """

    attributes: tuple[str, ...]
    roles: Mapping[str, str]
    people: Mapping[str, Person]
    relations: Mapping[str, frozenset[str]]
    role_rights: Mapping[str, frozenset[str]]
    role_denials: Mapping[str, frozenset[str]] = field(default_factory=dict)
    granted: tuple[SpecialRight, ...] = ()
    revoked: tuple[SpecialRight, ...] = ()
    _ids_of_names: Mapping[str, list[str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids_of: dict[str, list[str]] = {}
        for person in self.people.values():
            ids_of.setdefault(_key(person.name), []).append(person.id)
        object.__setattr__(self, "_ids_of_names", MappingProxyType(ids_of))

    def can_read(self, asker: str, target: str, attribute: str) -> bool:
        """Returns whether `asker` may read `attribute` of `target`.

        Args:
            asker: Id, or a name that only one person has.
            target: The same.
            attribute: One of `attributes`.

        Raises:
            InvalidParameterError: If a person or the attribute is unknown, or a name ambiguous:
                who cannot be told apart is not answered.
        """
        return self.decide(asker, target, attribute).allowed

    def decide(self, asker: str, target: str, attribute: str) -> Decision:
        """Returns the decision of `can_read` with the rule behind it.

        Raises:
            InvalidParameterError: As `can_read`.
        """
        who, whom = self._require_known(asker, target, attribute)
        rule = next(self._rules(who, whom, attribute), None)
        return Decision(rule is not None and not _is_refusal(rule), rule or "no rule")

    def rules_about(self, asker: str, target: str, attribute: str) -> list[str]:
        """Returns all rules that hold for a question, as `Decision` names them; the first decides.

        Raises:
            InvalidParameterError: As `can_read`.
        """
        return list(self._rules(*self._require_known(asker, target, attribute), attribute))

    def find_person(self, who: str, parameter: str = "person") -> Person:
        """Returns a person by id, or by a name that only one person has.

        Raises:
            InvalidParameterError: If there is nobody, or more than one.
        """
        if not isinstance(who, str):
            raise InvalidParameterError(f"{parameter} must be an id or a name, got {who!r}.")
        if who in self.people:
            return self.people[who]
        ids = self._ids_of_names.get(_key(who), [])
        if len(ids) > 1:
            raise InvalidParameterError(
                f"{parameter} must be one person, but {len(ids)} have this name. Give the id: "
                f"{', '.join(ids)}."
            )
        if not ids:
            raise InvalidParameterError(
                f"{parameter} must be a person of the policy, by id or full name; there is no such "
                "person."
            )
        return self.people[ids[0]]

    def managers_of(self, target: str) -> list[str]:
        """Returns the ids of all managers of a person, the direct supervisor first."""
        chain = []
        above = self.people[target].supervisor
        while above is not None:
            chain.append(above)
            above = self.people[above].supervisor
        return chain

    def _require_known(self, asker: str, target: str, attribute: str) -> tuple[Person, Person]:
        """Returns asker and target of a question."""
        who, whom = self.find_person(asker, "asker"), self.find_person(target, "target")
        if attribute not in self.attributes:
            raise InvalidParameterError(
                f"attribute must be one of {', '.join(self.attributes)}; got {attribute!r}."
            )
        return who, whom

    def _rules(self, who: Person, whom: Person, attribute: str) -> Iterator[str]:
        """Yields the rules that hold: what forbids, whatever else allows, then what allows."""
        if any(entry.covers(who.id, whom.id, attribute) for entry in self.revoked):
            yield "revoked"
        if who.id != whom.id:  # denials of a role are about other people's records
            for role in who.roles:
                if attribute in self.role_denials.get(role, ()):
                    yield f"denied:{role}"
        managers = self.managers_of(whom.id)
        holds = {
            "self": who.id == whom.id,
            "direct_supervisor": who.id in managers[:1],
            "higher_managers": who.id in managers[1:],
            "everyone": True,
        }
        for relation in RELATIONS:
            if holds[relation] and attribute in self.relations.get(relation, ()):
                yield relation
        for role in who.roles:
            if attribute in self.role_rights.get(role, ()):
                yield f"role:{role}"
        if any(entry.covers(who.id, whom.id, attribute) for entry in self.granted):
            yield "granted"


def resolve_supervisors(place: str, people: Iterable[Person]) -> dict[str, Person]:
    """Returns people by id, supervisors given by name replaced by ids, and lines checked.

    Raises:
        InvalidDataError: If an id is taken twice, a supervisor is unknown or ambiguous, or
            somebody is above themselves. Messages hold ids, never names.
    """
    by_id: dict[str, Person] = {}
    ids_of: dict[str, list[str]] = {}
    for person in people:
        if person.id in by_id:
            raise InvalidDataError(f"{place}: ids must be unique, {person.id!r} stands twice.")
        by_id[person.id] = person
        ids_of.setdefault(_key(person.name), []).append(person.id)
    resolved = {}
    for person in by_id.values():
        above = person.supervisor
        if above is not None and above not in by_id:
            found = ids_of.get(_key(above), [])
            if len(found) != 1:
                problem = "is ambiguous: give the id" if found else "is nobody in the table"
                raise InvalidDataError(f"{place}: the supervisor of {person.id!r} {problem}.")
            above = found[0]
        resolved[person.id] = Person(
            id=person.id, name=person.name, roles=person.roles, supervisor=above
        )
    _require_no_cycle(place, resolved)
    return resolved


def _require_no_cycle(place: str, people: Mapping[str, Person]) -> None:
    """Raises if somebody is, over any number of steps, their own supervisor."""
    is_clear: set[str] = set()
    for start in people:
        path: dict[str, None] = {}  # in order, and quick to look into
        current: str | None = start
        while current is not None and current not in is_clear:
            if current in path:
                met = list(path)
                cycle = [*met[met.index(current) :], current]
                raise InvalidDataError(
                    f"{place}: reporting lines must not form a cycle, found "
                    f"{' -> '.join(cycle)}. Correct one of these supervisors."
                )
            path[current] = None
            current = people[current].supervisor
        is_clear.update(path)


def _is_refusal(rule: str) -> bool:
    """Returns whether a rule forbids."""
    return rule == "revoked" or rule.startswith("denied:")


def _key(name: str) -> str:
    """Returns a name without differences in case and spaces."""
    return " ".join(name.split()).casefold()
