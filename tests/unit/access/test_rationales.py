"""Rationales: asker, role, target, each with its checks, up to the one that decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sordino.access.company import read_company
from sordino.access.generate import generate
from sordino.access.policy import load_policy
from sordino.access.rationales import make_rationale

if TYPE_CHECKING:
    from pathlib import Path

    from sordino.access.rights import Policy

TABLE = """id,name,role,supervisor,salary
1,Ada Top,,,9
2,Ben Mid,,1,8
3,Cy Low,,2,7
4,Di Aide,hr,1,6
5,Ed Gone,hr,1,5
6,Fay Temp,trainee,2,4
"""
POLICY = """
attributes = ["name", "salary"]
[roles]
hr = "HR"
trainee = "Trainee"
[allow]
self = ["*"]
direct_supervisor = ["salary"]
higher_managers = ["salary"]
[allow.roles]
hr = ["*"]
[deny.roles]
trainee = ["salary"]
[[granted]]
person = "3"
attributes = ["salary"]
of = ["1"]
reason = "books"
[[revoked]]
person = "5"
attributes = ["*"]
reason = "left"
"""


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    (tmp_path / "people.csv").write_text(TABLE, encoding="utf-8")
    (tmp_path / "policy.toml").write_text(POLICY, encoding="utf-8")
    return load_policy(tmp_path / "policy.toml", employees=tmp_path / "people.csv")


NO = ", right taken away: no."
ROLE = "Role: none, denied: no, may read: no."
FOUND = "About: Cy Low. Record: found."


@pytest.mark.parametrize(
    ("asker", "target", "attributes", "expected"),
    [
        ("5", "3", ["salary"], "Asker: Ed Gone, right taken away: yes."),
        ("6", "3", ["salary"], f"Asker: Fay Temp{NO} Role: Trainee, denied: yes."),
        (
            *("6", "6", ["salary"]),
            (
                f"Asker: Fay Temp{NO} Role: Trainee, denied: no, may read: no. About: the asker. "
                "Record: found. Look up: salary of Fay Temp."
            ),
        ),
        (
            *("2", "3", ["salary"]),
            f"Asker: Ben Mid{NO} {ROLE} {FOUND} Direct supervisor: yes. Look up: salary of Cy Low.",
        ),
        (
            *("1", "3", ["salary"]),
            (
                f"Asker: Ada Top{NO} {ROLE} {FOUND} Direct supervisor: no, further up: yes. "
                "Look up: salary of Cy Low."
            ),
        ),
        (
            *("4", "3", ["salary"]),
            (
                f"Asker: Di Aide{NO} Role: HR, denied: no, may read: yes. {FOUND} "
                "Look up: salary of Cy Low."
            ),
        ),
        (
            *("3", "1", ["salary"]),
            (
                f"Asker: Cy Low{NO} {ROLE} About: Ada Top. Record: found. Direct supervisor: no, "
                "further up: no, given: yes. Look up: salary of Ada Top."
            ),
        ),
        (
            *("3", "2", ["salary"]),
            (
                f"Asker: Cy Low{NO} {ROLE} About: Ben Mid. Record: found. Direct supervisor: no, "
                "further up: no, given: no."
            ),
        ),
        (
            *("2", "2", ["salary", "name"]),
            (
                f"Asker: Ben Mid{NO} {ROLE} About: 2. Record: found. Oneself: yes. "
                "Look up: salary, name of 2."
            ),
        ),
        (  # of several, the first that is refused
            *("2", "3", ["salary", "name"]),
            (
                f"Asker: Ben Mid{NO} {ROLE} About: 3. Record: found. Oneself: no, "
                "direct supervisor: no, further up: no, given: no."
            ),
        ),
    ],
)
def test_checks_end_where_the_policy_decides(
    policy: Policy, asker: str, target: str, attributes: list[str], expected: str
) -> None:
    """Each stands behind what it is about; what may be told is looked up by name or id."""
    assert make_rationale(policy, asker, target, attributes) == expected


def test_a_role_is_told_where_the_prompt_tells_it(policy: Policy) -> None:
    """Or where nothing else allows or forbids."""
    untold = make_rationale(policy, "2", "3", ["salary"], with_role=False)
    assert (
        untold == f"Asker: Ben Mid{NO} {FOUND} Direct supervisor: yes. Look up: salary of Cy Low."
    )
    assert "Role: HR" in make_rationale(policy, "4", "3", ["salary"], with_role=False)
    assert "Role: HR" not in make_rationale(policy, "4", "4", ["salary"], with_role=False)
    assert "denied: yes" in make_rationale(policy, "6", "3", ["salary"], with_role=False)


def test_names_are_told_only_where_they_are_known(policy: Policy) -> None:
    """Who asks for the name behind an id has not written it."""
    assert "About: 3." in make_rationale(policy, "4", "3", ["name"])
    assert "Cy" not in make_rationale(policy, "4", "3", ["name", "salary"])


def test_a_missing_record_ends_the_checks(policy: Policy) -> None:
    """Whose record is not there cannot be compared with anybody."""
    found = make_rationale(policy, "4", "3", ["salary"], is_missing=True)
    start = f"Asker: Di Aide{NO} Role: HR, denied: no, may read: yes."
    assert found == f"{start} About: Cy Low. Record: not found."
    refused = make_rationale(policy, "5", "3", ["salary"], is_missing=True)
    assert refused == "Asker: Ed Gone, right taken away: yes."


def test_every_decision_of_a_company_is_told(tmp_path: Path) -> None:
    """All askers, some targets: a yes where another rule than one's own holds."""
    generate(output=tmp_path / "out", seed=3, employees=43, questions=1)
    place = tmp_path / "out" / "test" / "company-1"
    policy = read_company("c", place / "employees.csv", place / "policy.toml").policy
    seen = set()
    for asker in policy.people:
        for target in list(policy.people)[:8]:
            rule = policy.decide(asker, target, "salary").rule
            told = make_rationale(policy, asker, target, ["salary"])
            others = set(policy.rules_about(asker, target, "salary")) - {"self"}
            assert told.count("yes") == bool(others)
            assert ("About: the asker." in told) == (rule == "self")
            assert ("Look up: salary of" in told) == policy.can_read(asker, target, "salary")
            seen.add(rule.partition(":")[0])
    assert seen == {"self", "direct_supervisor", "higher_managers", "role", "revoked", "no rule"}
    assert "given" not in make_rationale(policy, *list(policy.people)[:2], ["salary"])
