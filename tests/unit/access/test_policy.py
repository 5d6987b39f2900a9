"""Policies: default deny, each rule alone, and an error for whatever is not meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sordino.access.policy import Policy, load_policy, read_table
from sordino.core.errors import InvalidDataError, InvalidParameterError

if TYPE_CHECKING:
    from pathlib import Path

BASE = """
attributes = ["salary", "age", "department"]

[roles]
hr = "HR"
trainee = "Trainee"
chief = "Chief executive"

[allow]
self = ["*"]
direct_supervisor = ["salary", "age"]
higher_managers = ["age"]
everyone = ["department"]

[allow.roles]
hr = ["*"]
chief = ["salary"]

[deny.roles]
trainee = ["salary"]

[people.top]
name = "Ada Top"
role = "chief"

[people.lead]
name = "Bo Lead"
supervisor = "top"

[people.ann]
name = "Ann Worker"
supervisor = "Bo Lead"

[people.ben]
name = "Ben Worker"
supervisor = "lead"
role = ["hr", "trainee"]

[people.cy]
name = "Cy Staff"
supervisor = "lead"
role = "hr"
"""
FRIEND = '\n[[granted]]\nperson = "ann"\nattributes = ["age"]\nof = ["top"]\n'
REVOKED = '\n[[revoked]]\nperson = "cy"\nattributes = ["*"]\nreason = "on leave"\n'


def _load(folder: Path, text: str) -> Policy:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return load_policy(path)


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return _load(tmp_path, BASE + FRIEND + REVOKED)


@pytest.mark.parametrize(
    ("asker", "target", "attribute", "allowed", "rule"),
    [
        ("ann", "ann", "salary", True, "self"),
        ("lead", "ann", "salary", True, "direct_supervisor"),
        ("top", "ann", "age", True, "higher_managers"),
        ("top", "lead", "age", True, "direct_supervisor"),
        ("top", "ann", "salary", True, "role:chief"),
        ("ann", "lead", "age", False, "no rule"),
        ("ann", "cy", "salary", False, "no rule"),
        ("ann", "cy", "department", True, "everyone"),
        ("ben", "ann", "age", True, "role:hr"),
        ("ben", "ann", "salary", False, "denied:trainee"),
        ("ben", "ben", "salary", True, "self"),
        ("ann", "top", "age", True, "granted"),
        ("ann", "top", "salary", False, "no rule"),
        ("cy", "ann", "age", False, "revoked"),
        ("cy", "ann", "department", False, "revoked"),
        ("cy", "cy", "age", True, "self"),
        ("ANN  worker", "ada top", "age", True, "granted"),
    ],
)
def test_each_rule(
    policy: Policy, *, asker: str, target: str, attribute: str, allowed: bool, rule: str
) -> None:
    """The decision and the rule behind it; names serve as ids."""
    assert policy.can_read(asker, target, attribute) is allowed
    assert policy.decide(asker, target, attribute).rule == rule


def test_an_empty_policy_allows_nothing(tmp_path: Path) -> None:
    """Not even to read oneself."""
    policy = _load(tmp_path, 'attributes = ["age"]\n[people.a]\n[people.b]\nsupervisor = "a"\n')
    assert not any(policy.can_read(a, b, "age") for a in "ab" for b in "ab")


@pytest.mark.parametrize(
    ("asker", "target", "attribute", "message"),
    [
        ("nobody", "ann", "age", "asker must be a person of the policy"),
        ("ann", "nobody", "age", "target must be a person of the policy"),
        ("ann", "ann", "wage", "attribute must be one of salary, age, department; got 'wage'"),
        (None, "ann", "age", "asker must be an id or a name, got None"),
        (float("nan"), "ann", "age", "asker must be an id or a name"),
    ],
)
def test_unknown_questions_are_refused(
    tmp_path: Path, asker: str, target: str, attribute: str, message: str
) -> None:
    """Nothing is answered about somebody or something unknown."""
    with pytest.raises(InvalidParameterError, match=message):
        _load(tmp_path, BASE).can_read(asker, target, attribute)


def test_a_name_of_two_people_is_nobody(tmp_path: Path) -> None:
    """The ids still work."""
    policy = _load(tmp_path, BASE.replace("Cy Staff", "Ann Worker"))
    with pytest.raises(InvalidParameterError, match=r"one person, but 2 have this name.*ann, cy"):
        policy.can_read("Ann Worker", "top", "age")
    assert policy.can_read("cy", "top", "age")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('attributes = ["salary", "age", "department"]', "", "attributes must be a list"),
        ('"department"]\n\n[roles]', '"*"]\n\n[roles]', "attributes must be a list of at least"),
        ('"age", "department"]', '"age", "age"]', "attributes must not name anything twice"),
        ("[allow]", "[alow]", "unknown key 'alow'; known are attributes"),
        ("higher_managers", "higher_manager", "unknown key 'higher_manager'"),
        ("[deny.roles]", "[deny.people]", "unknown key 'people'"),
        ('role = "chief"', 'title = "chief"', "unknown key 'title'"),
        ('role = "chief"', 'role = "boss"', "the role 'boss' of 'top' is unknown"),
        ('chief = ["salary"]', 'boss = ["salary"]', r"allow.roles.boss: the role is unknown"),
        ('chief = ["salary"]', 'chief = ["wage"]', "the attribute 'wage' is unknown"),
        ('chief = ["salary"]', 'chief = ["*", "age"]', "must stand alone"),
        ('chief = ["salary"]', 'chief = "salary"', "must be a list of names"),
        ('trainee = ["salary"]', 'hr = ["age"]', "contradict each other about age"),
        ('supervisor = "top"', 'supervisor = "ann"', "cycle, found lead -> ann -> lead"),
        ('supervisor = "top"', 'supervisor = "lead"', "cycle, found lead -> lead"),
        ('supervisor = "top"', 'supervisor = "Zed"', "the supervisor of 'lead' is nobody"),
        ('supervisor = "top"', "supervisor = 7", "name and supervisor must be in quotes"),
        ("[people.top]", 'people_file = "x.csv"\n[people.top]', "deny.roles.people_file: the role"),
        ("attributes", 'people_file = "x.csv"\nattributes', "contradict each other: keep one"),
        ('hr = "HR"', "hr = 1", "roles.hr must be a description"),
        ('name = "Ada Top"', 'name = " "', "must have an id and a name"),
        ("[roles]", "roles]", "not a TOML file"),
    ],
)
def test_mistakes_are_errors(tmp_path: Path, old: str, new: str, message: str) -> None:
    """A rule with a mistake is never silently no rule, and messages name no names."""
    assert old in BASE
    with pytest.raises(InvalidDataError, match=message) as caught:
        _load(tmp_path, BASE.replace(old, new, 1))
    assert "policy.toml" in str(caught.value)
    assert "Worker" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (FRIEND.replace("ann", "zed"), "granted 1.person: there is no person with the id 'zed'"),
        (FRIEND.replace("top", "zed"), "granted 1.of: there is no person with the id 'zed'"),
        (FRIEND.replace('["top"]', "[]"), "of must name somebody"),
        (FRIEND.replace('["age"]', "[]"), "attributes must name at least one"),
        (FRIEND.replace("of =", "off ="), "unknown key 'off'"),
        (FRIEND + FRIEND.replace("granted", "revoked"), "granted 1 and revoked 1 contradict"),
        (REVOKED + FRIEND.replace("ann", "cy"), "granted 1 and revoked 1 contradict"),
        (
            FRIEND.replace("ann", "ben").replace("age", "salary"),
            "granted 1 and deny.roles.trainee contradict each other about salary",
        ),
        ('\n[granted]\nperson = "ann"\n', r"must be written as \[\[granted\]\]"),
    ],
)
def test_exceptions_are_checked(tmp_path: Path, entry: str, message: str) -> None:
    """Rights of single people are held against the rest of the file."""
    with pytest.raises(InvalidDataError, match=message):
        _load(tmp_path, BASE + entry)


def test_taking_one_record_out_is_no_contradiction(tmp_path: Path) -> None:
    """All but one."""
    policy = _load(
        tmp_path, BASE + FRIEND.replace('of = ["top"]', "") + FRIEND.replace("granted", "revoked")
    )
    assert policy.can_read("ann", "ben", "age")
    assert not policy.can_read("ann", "top", "age")


def test_people_from_a_table(tmp_path: Path) -> None:
    """Supervisors by id or name, several roles, and none at the top."""
    rules = BASE.partition("[people.top]")[0]
    (tmp_path / "people.csv").write_text(
        "id,name,role,supervisor\n1,Ada Top,chief,\n2,Bo Lead,,1\n"
        "3,Ann Worker,hr; trainee,bo lead\n",
        encoding="utf-8",
    )
    policy = _load(tmp_path, 'people_file = "people.csv"\n' + rules)
    assert policy.people["3"].roles == ("hr", "trainee")
    assert policy.managers_of("3") == ["2", "1"]
    other = tmp_path / "other.csv"
    other.write_text("id,name,role\n9,Solo Person,\n", encoding="utf-8")
    assert list(load_policy(tmp_path / "policy.toml", employees=other).people) == ["9"]
    with pytest.raises(InvalidDataError, match="people are required"):
        _load(tmp_path, rules)


def test_columns_of_supervisors(tmp_path: Path) -> None:
    """Defect: an empty id dropped the supervisor who was given by name."""
    rules = BASE.partition("[people.top]")[0]
    (tmp_path / "people.csv").write_text(
        "id,name,role,supervisor,supervisor_id\n1,Ada Top,,none,\n2,Bo Lead,,Ada Top,\n"
        "3,Ann Worker,,Bo Lead,2\n4,Al Worker,,,2\n",
        encoding="utf-8",
    )
    people = _load(tmp_path, 'people_file = "people.csv"\n' + rules).people
    assert [people[person].supervisor for person in "1234"] == [None, "1", "2", "2"]


def test_denials_need_a_column_of_roles(tmp_path: Path) -> None:
    """Defect: without it nobody was denied anything."""
    rules = BASE.partition("[people.top]")[0]
    (tmp_path / "people.csv").write_text("id,name\n1,a\n", encoding="utf-8")
    with pytest.raises(InvalidDataError, match="the column role is required"):
        _load(tmp_path, 'people_file = "people.csv"\n' + rules)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,age\n1,2\n", "the column name is required"),
        ("id,name,name\n1,a,b\n", "columns must be unique"),
        ("id,name\n1\n", "line 2: a row must have 2 columns"),
        ("id,name\n1,a,b\n", "line 2: a row must have 2 columns"),
        ("id,name\n", "at least one person"),
        ("id,name,role\n1,a,\n1,b,\n", "ids must be unique, '1' stands twice"),
        ("id,name,role\n1,a,king\n", "the role 'king' of '1' is unknown"),
        ("id,name,Role\n1,a,hr\n", "the column 'Role' must be written 'role'"),
        ("id,name,roles\n1,a,hr\n", "the column 'roles' must be written 'role'"),
        ("id,name,Supervisor\n1,a,\n", "the column 'Supervisor' must be written"),
        ("id,name,role,supervisor,supervisor_id\n1,a,,,\n2,b,,c,1\n3,c,,,\n", "'2' are two people"),
    ],
)
def test_tables_are_checked(tmp_path: Path, text: str, message: str) -> None:
    """A row that is not understood is no person."""
    table = tmp_path / "people.csv"
    table.write_text(text, encoding="utf-8")
    (tmp_path / "policy.toml").write_text(BASE.partition("[people.top]")[0], encoding="utf-8")
    with pytest.raises(InvalidDataError, match=message):
        load_policy(tmp_path / "policy.toml", employees=table)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing ones, and ones in another encoding."""
    for read in (load_policy, read_table):
        with pytest.raises(InvalidDataError, match="cannot be read"):
            read(tmp_path / "nothing")
        (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(InvalidDataError, match="not UTF-8"):
            read(tmp_path / "bytes")


def test_long_reporting_lines_are_quick(tmp_path: Path) -> None:
    """Cycles are looked for once for everybody, not once for each person's whole line."""
    rows = "".join(f"{n},Name {n},{n - 1 if n else ''}\n" for n in range(3000))
    table = tmp_path / "people.csv"
    table.write_text("id,name,supervisor\n" + rows, encoding="utf-8")
    (tmp_path / "policy.toml").write_text(
        'attributes = ["age"]\n[allow]\nhigher_managers = ["age"]\n', encoding="utf-8"
    )
    policy = load_policy(tmp_path / "policy.toml", employees=table)
    assert policy.can_read("0", "2999", "age")
    assert not policy.can_read("2999", "0", "age")
