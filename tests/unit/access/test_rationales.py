"""Rationales: the checks of the policy, up to the one that decides, and no value."""

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
BEFORE = (
    "taken away: no, denied by role: no, as oneself: no, as direct supervisor: no, from further"
)


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    (tmp_path / "people.csv").write_text(TABLE, encoding="utf-8")
    (tmp_path / "policy.toml").write_text(POLICY, encoding="utf-8")
    return load_policy(tmp_path / "policy.toml", employees=tmp_path / "people.csv")


@pytest.mark.parametrize(
    ("asker", "target", "attributes", "expected"),
    [
        ("5", "3", ["salary"], "Right taken away: yes."),
        ("6", "3", ["salary"], "Right taken away: no, denied by role: yes."),
        ("6", "6", ["salary"], "Right taken away: no, denied by role: no, as oneself: yes."),
        ("1", "3", ["salary"], f"Right {BEFORE} up: yes."),
        ("4", "3", ["salary"], f"Right {BEFORE} up: no, by role: yes."),
        ("3", "1", ["salary"], f"Right {BEFORE} up: no, by role: no, given: yes."),
        ("3", "2", ["salary"], f"Right {BEFORE} up: no, by role: no, given: no."),
        # of several, the first that is refused
        ("2", "3", ["salary", "name"], f"Right {BEFORE} up: no, by role: no, given: no."),
    ],
)
def test_checks_end_where_the_policy_decides(
    policy: Policy, asker: str, target: str, attributes: list[str], expected: str
) -> None:
    """In the order in which the policy looks."""
    found = make_rationale(policy, asker, target, attributes)
    assert found.endswith(f"Record: found. {expected}")
    role = {"4": "HR", "5": "HR", "6": "Trainee"}.get(asker, "none")
    assert found.startswith(f"Asker: {policy.people[asker].name} (role: {role}). About: ")
    untold = make_rationale(policy, asker, target, attributes, with_role=False)
    assert untold == found.replace(f" (role: {role})", "")


def test_names_are_told_only_where_they_are_known(policy: Policy) -> None:
    """Who asks for the name behind an id has not written it."""
    assert "About: Cy Low." in make_rationale(policy, "2", "3", ["salary"])
    assert "About: the asker." in make_rationale(policy, "2", "2", ["salary"])
    assert "About: 2." in make_rationale(policy, "2", "2", ["name"])
    assert "About: 3." in make_rationale(policy, "2", "3", ["name"])
    assert "Cy" not in make_rationale(policy, "2", "3", ["name", "salary"])


def test_a_missing_record_ends_the_checks(policy: Policy) -> None:
    """Whose record is not there cannot be compared with anybody."""
    found = make_rationale(policy, "4", "3", ["salary"], is_missing=True)
    assert found == "Asker: Di Aide (role: HR). About: Cy Low. Record: not found."


def test_every_decision_of_a_company_is_told(tmp_path: Path) -> None:
    """All askers, some targets: one yes for every rule, none without, and only rules that exist."""
    generate(output=tmp_path / "out", seed=3, employees=43, questions=1)
    place = tmp_path / "out" / "test" / "company-1"
    policy = read_company("c", place / "employees.csv", place / "policy.toml").policy
    seen = set()
    for asker in policy.people:
        for target in list(policy.people)[:8]:
            rule = policy.decide(asker, target, "salary").rule
            told = make_rationale(policy, asker, target, ["salary"]).count("yes")
            assert told == (rule != "no rule")
            seen.add(rule.partition(":")[0])
    assert seen == {"self", "direct_supervisor", "higher_managers", "role", "revoked", "no rule"}
    assert "given" not in make_rationale(policy, *list(policy.people)[:2], ["salary"])
