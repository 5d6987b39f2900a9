"""Invented people: nobody collides, counts are kept, and the same seed gives the same bytes."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from helpers_runs import files_below
from sordino.attacks.pii_strings import StringFinder, string_key
from sordino.core.errors import InvalidParameterError
from sordino.data._renderings import RENDERINGS
from sordino.data.people import (
    REPETITIONS,
    generate_documents,
    generate_people,
    list_secrets,
    read_secrets,
    write_people,
)
from sordino.data.pool import group_by_unit, read_records
from sordino.data.secret_lists import SECRET_KINDS

if TYPE_CHECKING:
    from pathlib import Path


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """Files depend on the arguments alone, and no global random state is touched."""
    before = random.getstate()
    write_people(tmp_path / "a", num_people=8, num_heldout=4, seed=7)
    random.random()  # noqa: S311 - moves the global state
    write_people(tmp_path / "b", num_people=8, num_heldout=4, seed=7)
    write_people(tmp_path / "c", num_people=8, num_heldout=4, seed=8)
    assert files_below(tmp_path / "a") == files_below(tmp_path / "b")
    assert files_below(tmp_path / "a") != files_below(tmp_path / "c")
    random.setstate(before)
    generate_people(3, seed=0)
    assert random.getstate() == before


def test_no_document_holds_a_string_of_somebody_else() -> None:
    """Found by the attack's own matching, which ignores case and punctuation."""
    people = generate_people(120, seed=1, num_heldout=120)
    owner = {
        string_key(kind, value): person.id
        for person in people
        for kind, value in person.values.items()
    }
    assert len(owner) == 240 * len(SECRET_KINDS)
    finder = StringFinder(owner)
    for document in generate_documents(people, seed=2, num_each=2):
        found = finder.find(document.prompt + " " + document.completion)
        assert {owner[key] for key in found} == {document.person}
        assert len(found) == len(SECRET_KINDS)
        assert not finder.find(document.prompt)


def test_every_string_occurs_as_often_as_its_person_has_documents() -> None:
    """1, 5, 10 and 25, equally often; people held out have none."""
    people = generate_people(8, seed=3, num_heldout=2)
    assert Counter(p.repetitions for p in people) == {0: 2} | dict.fromkeys(REPETITIONS, 2)
    documents = generate_documents(people, seed=4)
    secrets = list_secrets(documents)
    assert len(documents) == 2 * sum(REPETITIONS)
    assert len(secrets) == 8 * len(SECRET_KINDS)
    for secret in secrets:
        holding = [d for d in documents if secret.secret in d.completion]
        assert secret.repetitions == len(holding)
        assert {d.person for d in holding} == {secret.person}


def test_renderings_differ_until_all_are_used() -> None:
    people = generate_people(1, seed=5, repetitions=[len(RENDERINGS) + 3])
    counts = Counter(document.rendering for document in generate_documents(people, seed=6))
    assert set(counts) == set(RENDERINGS)
    assert max(counts.values()) == 2


def test_prefix_string_and_suffix_are_one_piece_of_a_document() -> None:
    """The prefix does not hold the string, and says who it is about where a document does."""
    people = generate_people(12, seed=7)
    documents = generate_documents(people, seed=8)
    for secret in list_secrets(documents):
        piece = secret.prefix + secret.secret + secret.suffix
        own = [d for d in documents if d.person == secret.person]
        assert any(f"{d.prompt} {d.completion}".startswith(piece) for d in own)
        assert secret.secret not in secret.prefix
        others = [v for k, v in own[0].secrets.items() if k != secret.kind]
        is_told = any(value in secret.prefix for value in others)
        assert is_told or (secret.repetitions or 0) < len(RENDERINGS)


def test_nobody_real() -> None:
    """Domains for examples, exchanges that begin with 0 or 1, a country code nobody has."""
    for person in generate_people(60, seed=9):
        assert re.fullmatch(r"[a-z]+\d{4}@example\.(com|net|org)", person.values["email"])
        assert re.fullmatch(r"\(\d{3}\) [01]\d\d-\d{4}", person.values["phone"])
        assert re.fullmatch(r"ZZ\d\d[A-Z]{4}\d{14}", person.values["account"])


def test_files_fit_the_rest(tmp_path: Path) -> None:
    """`sordino tune` reads the documents, with people as units; the strings are read back."""
    train, heldout, secrets = write_people(tmp_path, num_people=4, num_heldout=3, seed=0)
    records = read_records(train, kind="completion", unit_column="person")
    assert sorted(map(len, group_by_unit(records))) == sorted(REPETITIONS)
    assert len(read_records(heldout, kind="completion")) == 3
    read = read_secrets(secrets)
    assert len(read) == 7 * len(SECRET_KINDS)
    assert Counter(s.repetitions for s in read)[0] == 3 * len(SECRET_KINDS)
    row = json.loads(train.read_text(encoding="utf-8").splitlines()[0])
    assert all(value in row["completion"] for value in row["secrets"].values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_people": 0}, "num_people must be"),
        ({"num_people": 10_001}, "num_people must be"),
        ({"num_heldout": 10_000}, "num_heldout must be"),
        ({"seed": -1}, "seed must be"),
        ({"repetitions": []}, "at least one count"),
        ({"repetitions": [0]}, "repetitions must be"),
    ],
)
def test_wrong_arguments(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        generate_people(**({"num_people": 3, "seed": 0} | changes))


def test_values_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing new can be drawn, that is an error and no endless loop."""
    monkeypatch.setattr("sordino.data.people._birth_date", lambda _: "7 March 1984")
    with pytest.raises(InvalidParameterError, match="ran out of values"):
        generate_people(2, seed=0)
