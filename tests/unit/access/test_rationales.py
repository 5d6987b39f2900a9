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


ALONE = ", id: not shown, leads: nobody."
ROLE = "Role: none, denied: no, may read: no."
SHOWN = "About: Cy Low, shown."


@pytest.mark.parametrize(
    ("asker", "target", "attributes", "expected"),
    [
        ("5", "3", ["salary"], "Asker: Ed Gone may not read."),
        ("6", "3", ["salary"], f"Asker: Fay Temp{ALONE} Role: Trainee, denied: yes."),
        (
            *("6", "6", ["salary"]),
            (
                f"Asker: Fay Temp{ALONE} Role: Trainee, denied: no, may read: no. "
                "About: the asker, shown. Look up: salary of Fay Temp."
            ),
        ),
        (
            *("2", "3", ["salary"]),
            (
                f"Asker: Ben Mid{ALONE} {ROLE} {SHOWN} May read as: direct supervisor. "
                "Look up: salary of Cy Low."
            ),
        ),
        (
            *("1", "3", ["salary"]),
            (
                f"Asker: Ada Top{ALONE} {ROLE} {SHOWN} May read as: further up. "
                "Look up: salary of Cy Low."
            ),
        ),
        (
            *("4", "3", ["salary"]),
            (
                f"Asker: Di Aide{ALONE} Role: HR, denied: no, may read: yes. {SHOWN} "
                "Look up: salary of Cy Low."
            ),
        ),
        (
            *("3", "1", ["salary"]),
            (
                f"Asker: Cy Low{ALONE} {ROLE} About: Ada Top, shown. "
                "May read as: given. Look up: salary of Ada Top."
            ),
        ),
        (
            *("3", "2", ["salary"]),
            (f"Asker: Cy Low{ALONE} {ROLE} About: Ben Mid, shown. May read as: nobody."),
        ),
        (
            *("2", "2", ["salary", "name"]),
            (
                f"Asker: Ben Mid{ALONE} {ROLE} About: the asker, shown. "
                "Look up: salary, name of Ben Mid."
            ),
        ),
        (  # of several, the first that is refused
            *("2", "3", ["salary", "name"]),
            (f"Asker: Ben Mid{ALONE} {ROLE} About: 3, shown. May read as: nobody."),
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
    assert untold.startswith(f"Asker: Ben Mid{ALONE} {SHOWN} May read as: direct supervisor.")
    assert "Role: HR" in make_rationale(policy, "4", "3", ["salary"], with_role=False)
    assert "Role: HR" not in make_rationale(policy, "4", "4", ["salary"], with_role=False)
    assert "denied: yes" in make_rationale(policy, "6", "3", ["salary"], with_role=False)


def test_names_are_told_only_where_they_are_known(policy: Policy) -> None:
    """Who asks for the name behind an id has not written it."""
    assert "About: 3," in make_rationale(policy, "4", "3", ["name"], shown=["3", "4"])
    assert "Cy" not in make_rationale(policy, "4", "3", ["name", "salary"], shown=["3", "4"])


def test_a_missing_record_ends_the_checks(policy: Policy) -> None:
    """Whose record is not there cannot be compared with anybody."""
    found = make_rationale(policy, "4", "3", ["salary"], is_missing=True)
    start = f"Asker: Di Aide{ALONE} Role: HR, denied: no, may read: yes."
    assert found == f"{start} About: Cy Low, not shown."
    refused = make_rationale(policy, "5", "3", ["salary"], is_missing=True)
    assert refused == "Asker: Ed Gone may not read."


def test_who_reports_to_the_asker_is_listed_from_what_is_shown(tmp_path: Path) -> None:
    """Through all levels; who has no right to know it learns nothing."""
    (tmp_path / "people.csv").write_text(TABLE, encoding="utf-8")
    text = POLICY.replace('direct_supervisor = ["salary"]', 'direct_supervisor = ["*"]')
    text = text.replace('higher_managers = ["salary"]', 'higher_managers = ["*"]')
    (tmp_path / "policy.toml").write_text(text, encoding="utf-8")
    policy = load_policy(tmp_path / "policy.toml", employees=tmp_path / "people.csv")

    def told(asker: str, shown: list[str]) -> str:
        found = make_rationale(policy, asker, "3", ["salary"], shown=shown, with_role=False)
        return found.partition(". ")[0]

    everybody = list(policy.people)
    assert told("2", everybody) == "Asker: Ben Mid, id: 2, leads: Cy Low, Fay Temp"
    assert told("2", ["6", "1"]) == "Asker: Ben Mid, id: not shown, leads: Fay Temp"
    assert told("1", ["3", "2", "5"]) == (
        "Asker: Ada Top, id: not shown, leads: Ben Mid over Cy Low, Ed Gone"
    )
    assert told("1", ["3"]) == "Asker: Ada Top, id: not shown, leads: nobody"
    assert told("3", everybody) == "Asker: Cy Low, id: 3, leads: nobody"
    by_id = make_rationale(policy, "1", "3", ["name"], shown=["3", "2", "5"], with_role=False)
    assert by_id.startswith("Asker: Ada Top, id: not shown, leads: 2 over 3, 5. ")
    (tmp_path / "policy.toml").write_text(POLICY, encoding="utf-8")  # the salary alone is told
    policy = load_policy(tmp_path / "policy.toml", employees=tmp_path / "people.csv")
    assert told("2", everybody) == "Asker: Ben Mid, id: 2, leads: nobody"


def test_every_decision_of_a_company_is_told(tmp_path: Path) -> None:
    """All askers, some targets: what holds is said, and nothing else."""
    generate(output=tmp_path / "out", seed=3, employees=43, questions=1)
    place = tmp_path / "out" / "test" / "company-1"
    policy = read_company("c", place / "employees.csv", place / "policy.toml").policy
    seen = set()
    for asker in policy.people:
        for target in list(policy.people)[:8]:
            rule = policy.decide(asker, target, "salary").rule
            told = make_rationale(policy, asker, target, ["salary"])
            others = {r.partition(":")[0] for r in policy.rules_about(asker, target, "salary")}
            assert told.endswith(" may not read.") == ("revoked" in others)
            assert ("may read: yes" in told) == ("role" in others and "revoked" not in others)
            is_led = rule in ("direct_supervisor", "higher_managers") and "role" not in others
            assert ("May read as: nobody" not in told and "May read as" in told) == is_led
            assert ("About: the asker," in told) == (rule == "self")
            assert ("Look up: salary of" in told) == policy.can_read(asker, target, "salary")
            seen.add(rule.partition(":")[0])
    assert seen == {"self", "direct_supervisor", "higher_managers", "role", "revoked", "no rule"}
    assert "given" not in make_rationale(policy, *list(policy.people)[:2], ["salary"])
