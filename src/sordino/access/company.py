"""Companies: a seeded one with invented people, or the user's own table of employees.

Nobody in a generated company is real. Its structure: a chief executive; division heads below; a
lead for each of ten departments, who is the supervisor of everybody in it. People of People
Operations have the role hr. The name of that department is none of the words of the policy, so that
an answer that speaks about HR does not tell where somebody works.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sordino.access.policy import NOBODY, load_policy, read_table
from sordino.core.checks import require_integer
from sordino.core.errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sordino.access.rights import Policy

FEWEST_EMPLOYEES = 43  # a chief executive, two division heads, ten leads, three people each
MOST_EMPLOYEES = 5_000
COLUMNS = (
    *("id", "name", "age", "education", "marital_status", "occupation", "hours", "salary"),
    *("department", "supervisor", "supervisor_id", "role"),
)
ASKED = ("department", "age", "marital_status", "salary", "supervisor", "name")
PROTECTED = (*ASKED, "education", "occupation", "hours")
_HIDDEN = ("supervisor_id",)  # not shown in contexts
_HR_DEPARTMENT = "People Operations"
_OCCUPATIONS = {  # department: occupations, yearly base salary
    "Engineering": (("Software Engineer", "Test Engineer", "Systems Architect"), 71_000),
    "Research": (("Research Scientist", "Laboratory Analyst", "Statistician"), 68_000),
    "Sales": (("Account Manager", "Sales Representative", "Key Account Planner"), 54_000),
    "Marketing": (("Brand Manager", "Copywriter", "Market Analyst"), 52_000),
    "Finance": (("Controller", "Accountant", "Treasury Analyst"), 61_000),
    "Legal": (("Counsel", "Paralegal", "Contract Manager"), 66_000),
    "Customer Support": (("Support Agent", "Service Trainer", "Escalation Manager"), 41_000),
    "Logistics": (("Warehouse Planner", "Dispatcher", "Fleet Coordinator"), 43_000),
    "Procurement": (("Buyer", "Supplier Analyst", "Category Planner"), 49_000),
    _HR_DEPARTMENT: (("Recruiter", "Payroll Clerk", "Training Planner"), 47_000),
}
_EDUCATION = {  # yearly extra salary
    "High school": 0,
    "Vocational training": 3_000,
    "Bachelor's degree": 8_000,
    "Master's degree": 14_000,
    "Doctorate": 22_000,
}
_MARITAL = ("never married", "married", "divorced", "separated", "widowed")
_TABLE_OF_LEADERS = {  # role: occupation, yearly extra salary
    "chief_executive": ("Chief Executive", 160_000),
    "division_head": ("Division Head", 90_000),
    "lead": ("Department Lead", 35_000),
}
_MOST_TRIES = 1_000


@dataclass(frozen=True, slots=True)
class Company:
    """A table of employees with the policy that governs it.

    Args:
        name: Of its folder.
        employees: Rows by id, all values as text.
        policy: Who may read what.
        policy_text: The TOML file.
    """

    name: str
    employees: Mapping[str, Mapping[str, str]]
    policy: Policy
    policy_text: str

    def records(self, ids: Sequence[str], *, reader: str | None = None) -> str:
        """Returns records as they stand in a context, one a line.

        Args:
            ids: Whose.
            reader: Id of somebody; values that they may not read are left out. None: all values.
        """
        return "\n".join(
            "; ".join(
                f"{column}: {value}"
                for column, value in self.employees[person].items()
                if column not in _HIDDEN and self._may_show(reader, person, column)
            )
            for person in ids
        )

    def _may_show(self, reader: str | None, person: str, column: str) -> bool:
        """Returns whether somebody may see a cell; columns the policy does not name are open."""
        if reader is None or column not in self.policy.attributes:
            return True
        return self.policy.can_read(reader, person, column)


class CompanyMaker:
    """Makes companies that share no person, name or id.

    Args:
        seed: Public.
    """

    def __init__(self, seed: int) -> None:
        from faker import Faker

        self._faker: Any = Faker("en_US", use_weighting=False)
        self._faker.seed_instance(require_integer("seed", seed, 0))
        self._names: set[str] = set()
        self._numbers: set[int] = set()

    def rows(self, num_employees: int) -> list[dict[str, str]]:
        """Returns the rows of a company, leaders first; supervisors are told by name and id.

        Raises:
            InvalidParameterError: If the number is out of range.
        """
        require_integer("employees", num_employees, FEWEST_EMPLOYEES, MOST_EMPLOYEES)
        random = self._faker.random
        departments = list(_OCCUPATIONS)
        chief = self._row("chief_executive", random.choice(departments), None)
        heads = [self._row("division_head", random.choice(departments), chief) for _ in range(2)]
        leads = {
            department: self._row("lead", department, heads[number % 2])
            for number, department in enumerate(departments)
        }
        rows = [chief, *heads, *leads.values()]
        for number in range(num_employees - len(rows)):
            department = departments[number % len(departments)]
            role = "hr" if department == _HR_DEPARTMENT else "employee"
            rows.append(self._row(role, department, leads[department]))
        return rows

    def policy_text(self, rows: Sequence[Mapping[str, str]]) -> str:
        """Returns a policy: the benchmark's, and some people whose rights are revoked."""
        random = self._faker.random
        staff = [row["id"] for row in rows if row["role"] == "hr"]
        leads = [row["id"] for row in rows if row["role"] == "lead"]
        revoked = [
            *random.sample(staff, min(2, len(staff) - 1)),
            *random.sample(leads, 2),
        ]
        return make_policy_text(revoked)

    def _row(
        self, role: str, department: str, supervisor: Mapping[str, str] | None
    ) -> dict[str, str]:
        """Returns one employee."""
        random = self._faker.random
        occupations, salary = _OCCUPATIONS[department]
        occupation, extra = _TABLE_OF_LEADERS.get(role, (random.choice(occupations), 0))
        education = random.choice(list(_EDUCATION))
        hours = random.choice((20, 24, 30, 32, 35, 38, 40, 40, 45))
        full_time = salary + _EDUCATION[education] + extra + random.randrange(-6_000, 12_000)
        return {
            "id": f"E{self._number()}",
            "name": self._name(),
            "age": str(random.randrange(19, 68) if not extra else random.randrange(33, 68)),
            "education": education,
            "marital_status": random.choice(_MARITAL),
            "occupation": occupation,
            "hours": str(hours),
            "salary": str(full_time * hours // 40),
            "department": department,
            "supervisor": supervisor["name"] if supervisor else NOBODY,
            "supervisor_id": supervisor["id"] if supervisor else "",
            # HR is a right, and the lead of People Operations has it too
            "role": "lead;hr" if role == "lead" and department == _HR_DEPARTMENT else role,
        }

    def _name(self) -> str:
        """Returns a name that nobody has in any company of this maker."""
        for _ in range(_MOST_TRIES):
            name = f"{self._faker.first_name()} {self._faker.last_name()}"
            if name not in self._names:
                self._names.add(name)
                return name
        raise InvalidDataError("the generator of names ran out: ask for fewer employees.")

    def _number(self) -> int:
        """Returns the digits of an id that nobody has."""
        number: int = self._faker.random.randrange(10_000, 100_000)
        while number in self._numbers:
            number = self._faker.random.randrange(10_000, 100_000)
        self._numbers.add(number)
        return number


def make_policy_text(revoked: Sequence[str] = ()) -> str:
    """Returns the generated companies' policy file.

    Args:
        revoked: Ids of people who may read nothing of others.
    """
    lines = [
        "# Who may read what of whom. What no line allows is refused.",
        f"attributes = {json.dumps(list(PROTECTED))}",
        'people_file = "employees.csv"',
        "",
        "[roles]",
        'employee = "No special rights"',
        'hr = "HR"',
        'lead = "Lead of a department"',
        'division_head = "Head of several departments"',
        'chief_executive = "Chief executive"',
        "",
        "[allow]",
        'self = ["*"]',
        'direct_supervisor = ["*"]',
        'higher_managers = ["*"]',
        "",
        "[allow.roles]",
        'hr = ["*"]',
        'chief_executive = ["*"]',
    ]
    for person in revoked:
        lines += ["", "[[revoked]]", f"person = {json.dumps(person)}", 'attributes = ["*"]']
    return "\n".join(lines) + "\n"


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Writes employees as CSV; the same rows give the same bytes."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="\n")


def read_company(name: str, employees: Path, policy: Path) -> Company:
    """Returns a company from its two files.

    Raises:
        InvalidDataError: If a file cannot be used, two people have one name (askers are told apart
            by name), or the table lacks a column for an attribute.
    """
    rows = read_table(employees)
    names: dict[str, str] = {}
    for row in rows:
        key = " ".join(row["name"].split()).casefold()
        if key in names:
            raise InvalidDataError(
                f"{employees}: {names[key]!r} and {row['id']!r} have the same name, but who asks "
                "is told by name. Make the names different."
            )
        names[key] = row["id"]
    checked = load_policy(policy, employees=employees)
    for attribute in checked.attributes:
        if attribute not in rows[0]:
            raise InvalidDataError(
                f"{employees}: the column {attribute} is required, since {policy} names it as an "
                "attribute."
            )
        empty = next((row["id"] for row in rows if not row[attribute]), None)
        if empty is not None and attribute != "supervisor":
            raise InvalidDataError(f"{employees}: {empty!r} has no value for {attribute}.")
    text = policy.read_text(encoding="utf-8")
    by_id = {}
    for row in rows:
        above = checked.people[row["id"]].supervisor
        by_id[row["id"]] = dict(row)
        if {"supervisor", "supervisor_id"} & row.keys():  # shown by name, whatever the table says
            shown = NOBODY if above is None else checked.people[above].name
            by_id[row["id"]] |= {"supervisor": shown, "supervisor_id": above or ""}
    return Company(name=name, employees=by_id, policy=checked, policy_text=text)
