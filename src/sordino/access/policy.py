"""Policies in a TOML file that a security officer can read and edit.

    attributes = ["department", "age", "salary"]
    people_file = "employees.csv"       # columns id, name, role, supervisor; or [people] below

    [roles]
    employee = "Everybody who is employed"
    hr = "Human resources"

    [allow]                             # "*" is every attribute
    self = ["*"]
    direct_supervisor = ["*"]
    higher_managers = ["department"]
    everyone = []
    [allow.roles]
    hr = ["*"]

    [deny.roles]                        # wins over every allowance, about other people
    employee = []

    [people.e1]
    name = "..."
    role = "hr"                         # or a list
    supervisor = "e2"                   # id or full name; none at the top

    [[granted]]                         # beside the general rules
    person = "e1"
    attributes = ["salary"]
    of = ["e2"]                         # none: everybody else

    [[revoked]]                         # wins over everything
    person = "e3"
    attributes = ["*"]

What no line allows is refused. Unknown keys, people, roles and attributes are errors: a rule with a
typing mistake must not silently be no rule.
"""

from __future__ import annotations

import csv
import io
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sordino.access.rights import (
    RELATIONS,
    Decision,
    Person,
    Policy,
    SpecialRight,
    resolve_supervisors,
)
from sordino.core.errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Decision", "Person", "Policy", "load_policy", "read_table"]

ALL = "*"
_COLUMNS = ("id", "name", "role", "supervisor", "supervisor_id")
NOBODY = "none"  # supervisor of those at the top
_TOP = ("attributes", "people_file", "roles", "allow", "deny", "people", "granted", "revoked")


def load_policy(path: str | Path, *, employees: str | Path | None = None) -> Policy:
    """Returns the policy of a file, checked.

    Args:
        path: The TOML file.
        employees: A table of people instead of the file's own people.

    Raises:
        InvalidDataError: If the file cannot be read, has an unknown key, names an unknown person,
            role or attribute, has a cycle of supervisors, or contradicts itself.
    """
    path = Path(path)
    content = _parse(path)
    reader = _Reader(str(path), content)
    people = reader.people(path.parent, employees)
    return reader.policy(people)


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Returns the rows of a table of employees (CSV with a header line), stripped.

    Raises:
        InvalidDataError: If the file cannot be used; says where, never what it says.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        header = [name.strip() for name in reader.fieldnames or []]
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise InvalidDataError(
                    f"{path}, line {reader.line_num}: a row must have {len(header)} columns, as "
                    "the header line has."
                )
            rows.append({name.strip(): value.strip() for name, value in row.items()})
    except OSError as error:
        raise InvalidDataError(
            f"{path}: cannot be read ({error.strerror}). Check the path."
        ) from None
    except UnicodeDecodeError:
        raise InvalidDataError(f"{path}: not UTF-8. Save the file as UTF-8.") from None
    except csv.Error:
        raise InvalidDataError(f"{path}, line {reader.line_num}: not a CSV row.") from None
    missing = [name for name in ("id", "name") if name not in header]
    if missing or len(set(header)) != len(header):
        problem = f"the column {missing[0]} is required" if missing else "columns must be unique"
        raise InvalidDataError(f"{path}: {problem}; the first line must name the columns.")
    if not rows:
        raise InvalidDataError(f"{path}: must hold at least one person, has none.")
    return rows


def _read_person(row: Mapping[str, str]) -> Person:
    """Returns a person of a table; the supervisor's id goes before the name."""
    above = row.get("supervisor", "")
    return Person(
        id=row["id"],
        name=row["name"],
        roles=tuple(part.strip() for part in row.get("role", "").split(";") if part.strip()),
        supervisor=row.get("supervisor_id", "") or (None if above in {"", NOBODY} else above),
    )


def _require_one_supervisor(
    source: Path, row: Mapping[str, str], people: Mapping[str, Person]
) -> None:
    """Raises if a row names one supervisor by name and another one by id."""
    named, above = row.get("supervisor", ""), row.get("supervisor_id", "")
    if above and named not in {"", NOBODY, above, people[above].name if above in people else ""}:
        raise InvalidDataError(
            f"{source}: supervisor and supervisor_id of {row['id']!r} are two people. Correct one."
        )


def _parse(path: Path) -> dict[str, Any]:
    """Returns the content of a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidDataError(
            f"{path}: cannot be read ({error.strerror}). Check the path."
        ) from None
    except UnicodeDecodeError:
        raise InvalidDataError(f"{path}: not UTF-8. Save the file as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidDataError(f"{path}: not a TOML file: {error}.") from None


class _Reader:
    """Checks the parts of one file; every message begins with its path."""

    def __init__(self, place: str, content: Mapping[str, Any]) -> None:
        self._place = place
        self._content = content
        self._require_known("the file", content, _TOP)
        self._attributes = tuple(self._strings("attributes", content.get("attributes")))
        if not self._attributes or ALL in self._attributes:
            self._fail('attributes must be a list of at least one name, and none of them "*"')
        roles = self._table("roles", content.get("roles", {}))
        for name, description in roles.items():
            if not isinstance(description, str):
                self._fail(f"roles.{name} must be a description in quotes")
        self._roles = {str(name): str(text) for name, text in roles.items()}

    def people(self, folder: Path, employees: str | Path | None) -> dict[str, Person]:
        """Returns the people, from the one place that names them."""
        inline = self._table("people", self._content.get("people", {}))
        named = self._content.get("people_file")
        if named is not None and not isinstance(named, str):
            self._fail("people_file must be a path in quotes")
        if inline and (named is not None or employees is not None):
            self._fail("[people] and a table of people contradict each other: keep one")
        if inline:
            people = [self._inline_person(key, entry) for key, entry in inline.items()]
            return self._checked(self._place, people)
        if employees is not None:
            source = Path(employees)
        elif named is not None:
            source = folder / named
        else:
            self._fail("people are required: [people], or people_file, or a table of employees")
        rows = read_table(source)
        self._require_columns(source, rows[0])
        people = self._checked(str(source), [_read_person(row) for row in rows])
        for row in rows:
            _require_one_supervisor(source, row, people)
        return people

    def _require_columns(self, source: Path, header: Iterable[str]) -> None:
        """Raises for a column that is nearly one that rights depend on, or lacks for denials."""
        for name in header:
            plain = name.casefold().replace(" ", "_").replace("-", "_").rstrip("s")
            if plain in _COLUMNS and name not in _COLUMNS:
                raise InvalidDataError(
                    f"{source}: the column {name!r} must be written {plain!r}, or else it gives "
                    "nobody a role or supervisor. Rename it."
                )
        deny = self._table("deny", self._content.get("deny", {}))
        if deny.get("roles") and "role" not in header:
            raise InvalidDataError(
                f"{source}: the column role is required, for {self._place} has [deny.roles]; "
                "without it nobody is denied. Leave its cells empty for those who have no role."
            )

    def policy(self, people: dict[str, Person]) -> Policy:
        """Returns the policy, after the checks that need all parts."""
        allow = self._table("allow", self._content.get("allow", {}))
        self._require_known("[allow]", allow, (*RELATIONS, "roles"))
        deny = self._table("deny", self._content.get("deny", {}))
        self._require_known("[deny]", deny, ("roles",))
        rights = self._role_rights("allow.roles", allow.get("roles", {}))
        denials = self._role_rights("deny.roles", deny.get("roles", {}))
        for role in rights.keys() & denials.keys():
            both = sorted(rights[role] & denials[role])
            if both:
                self._fail(
                    f"allow.roles.{role} and deny.roles.{role} contradict each other about "
                    f"{', '.join(both)}: remove one"
                )
        policy = Policy(
            attributes=self._attributes,
            roles=self._roles,
            people=people,
            relations={
                relation: self._attribute_set(f"allow.{relation}", allow.get(relation, []))
                for relation in RELATIONS
            },
            role_rights=rights,
            role_denials=denials,
            granted=self._exceptions("granted", people),
            revoked=self._exceptions("revoked", people),
        )
        self._require_no_contradiction(policy)
        return policy

    def _inline_person(self, key: str, entry: object) -> Person:
        """Returns a person of the file itself."""
        table = self._table(f"people.{key}", entry)
        self._require_known(f"[people.{key}]", table, ("name", "role", "supervisor"))
        role = table.get("role", [])
        supervisor = table.get("supervisor")
        name = table.get("name", key)
        if not isinstance(name, str) or not isinstance(supervisor, str | None):
            self._fail(f"people.{key}: name and supervisor must be in quotes")
        roles = [role] if isinstance(role, str) else role
        return Person(
            id=key,
            name=name,
            roles=tuple(self._strings(f"people.{key}.role", roles)),
            supervisor=supervisor,
        )

    def _checked(self, place: str, people: Iterable[Person]) -> dict[str, Person]:
        """Returns people with known roles and sound reporting lines."""
        people = list(people)
        for person in people:
            if not person.id or not person.name.strip():
                raise InvalidDataError(f"{place}: every person must have an id and a name.")
            for role in person.roles:
                if role not in self._roles:
                    raise InvalidDataError(
                        f"{place}: the role {role!r} of {person.id!r} is unknown; {self._place} "
                        f"declares {', '.join(self._roles) or 'none'} under [roles]."
                    )
        return resolve_supervisors(place, people)

    def _role_rights(self, where: str, table: object) -> dict[str, frozenset[str]]:
        """Returns attributes by role."""
        rights = {}
        for role, attributes in self._table(where, table).items():
            if role not in self._roles:
                self._fail(
                    f"{where}.{role}: the role is unknown; declared under [roles]: "
                    f"{', '.join(self._roles) or 'none'}"
                )
            rights[role] = self._attribute_set(f"{where}.{role}", attributes)
        return rights

    def _exceptions(self, where: str, people: Mapping[str, Person]) -> tuple[SpecialRight, ...]:
        """Returns the entries of [[granted]] or [[revoked]]."""
        entries = self._content.get(where, [])
        if not isinstance(entries, list):
            self._fail(f"{where} must be written as [[{where}]]")
        found = []
        for number, entry in enumerate(entries, start=1):
            place = f"{where} {number}"
            table = self._table(place, entry)
            self._require_known(place, table, ("person", "attributes", "of", "reason"))
            of = table.get("of")
            named = self._strings(f"{place}.person", [table.get("person")])
            about = None if of is None else self._strings(f"{place}.of", of)
            for number_of, person in enumerate((*named, *(about or ()))):
                if person not in people:
                    key = "person" if number_of == 0 else "of"
                    self._fail(f"{place}.{key}: there is no person with the id {person!r}")
            if about == []:
                self._fail(f"{place}.of must name somebody; leave it out for everybody else")
            attributes = self._attribute_set(f"{place}.attributes", table.get("attributes"))
            if not attributes:
                self._fail(f"{place}.attributes must name at least one attribute")
            found.append(
                SpecialRight(
                    person=named[0],
                    attributes=attributes,
                    of=None if about is None else frozenset(about),
                )
            )
        return tuple(found)

    def _require_no_contradiction(self, policy: Policy) -> None:
        """Raises for a right given by name that has no effect: it is taken as well."""
        for number, grant in enumerate(policy.granted, start=1):
            for other, taken in enumerate(policy.revoked, start=1):
                # taking one person's record out of a right to all is an exception, not a mistake
                is_shared = taken.of is None or bool(grant.of and grant.of & taken.of)
                both = sorted(grant.attributes & taken.attributes)
                if grant.person == taken.person and is_shared and both:
                    self._fail(
                        f"granted {number} and revoked {other} contradict each other about "
                        f"{', '.join(both)} for {grant.person!r}: remove one"
                    )
            for role in policy.people[grant.person].roles:
                both = sorted(grant.attributes & policy.role_denials.get(role, frozenset()))
                if both:
                    self._fail(
                        f"granted {number} and deny.roles.{role} contradict each other about "
                        f"{', '.join(both)} for {grant.person!r}: remove one"
                    )

    def _attribute_set(self, where: str, value: object) -> frozenset[str]:
        """Returns known attributes; "*" is all of them."""
        names = self._strings(where, value)
        if ALL in names:
            if len(names) > 1:
                self._fail(f'{where}: "*" is every attribute and must stand alone')
            return frozenset(self._attributes)
        for name in names:
            if name not in self._attributes:
                self._fail(
                    f"{where}: the attribute {name!r} is unknown; attributes are "
                    f"{', '.join(self._attributes)}"
                )
        return frozenset(names)

    def _strings(self, where: str, value: object) -> list[str]:
        """Returns a list of different, non-empty strings."""
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            self._fail(f"{where} must be a list of names in quotes")
        if len(set(value)) != len(value):
            self._fail(f"{where} must not name anything twice")
        return value

    def _table(self, where: str, value: object) -> dict[str, Any]:
        """Returns a table of the file."""
        if not isinstance(value, dict):
            self._fail(f"{where} must be a table")
        return value

    def _require_known(self, where: str, table: Iterable[str], known: tuple[str, ...]) -> None:
        """Raises for a key that means nothing."""
        for key in table:
            if key not in known:
                self._fail(f"{where} has the unknown key {key!r}; known are {', '.join(known)}")

    def _fail(self, problem: str) -> NoReturn:
        """Raises for the file."""
        raise InvalidDataError(f"{self._place}: {problem}.")
