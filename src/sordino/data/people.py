"""Invented people, documents about them, and lists of sensitive strings.

The people are made by a seeded generator, so that it is known of every string how often it was in
the data and who it belongs to. Nobody real is in them: mail addresses stand on the domains reserved
for examples, phone numbers have an exchange that the North American plan does not assign, and
account numbers a country code that no country has.

The attacks work on the user's own list of strings too, read with `read_secrets`.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Annotated, Any

from typing_extensions import Doc

from sordino.core.checks import require_integer
from sordino.core.errors import InvalidParameterError
from sordino.data._renderings import RENDERINGS, TOPICS, WEEKDAYS
from sordino.data.secret_lists import SECRET_KINDS, Secret, read_secrets

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "Document",
    "PeopleResult",
    "Person",
    "Secret",
    "generate_documents",
    "generate_people",
    "list_secrets",
    "people",
    "read_secrets",
    "write_people",
]

REPETITIONS = (1, 5, 10, 25)
MOST_PEOPLE = 10_000  # birth dates are 24,107 different days
_BIRTH_DATES = (dt.date(1940, 1, 1), dt.date(2005, 12, 31))
_ACCOUNT = "ZZ##????" + "#" * 14  # shaped as an IBAN; ZZ is nobody's country code
_MOST_TRIES = 1000
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_SENTENCE = re.compile(r"[^\n]*?(?:[.!?](?=\s|$)|$)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """An invented person.

    Args:
        id: Number in its generator, such as "p0012".
        values: The sensitive strings by kind, in the order of `SECRET_KINDS`.
        first_name: Used alone in documents; not sensitive.
        job: Not sensitive.
        repetitions: Number of documents about this person; 0 for held out.
    """

    id: str
    values: Mapping[str, str]
    first_name: str
    job: str
    repetitions: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A text about one person, as a prompt and its completion.

    Args:
        prompt: The heading; holds nothing sensitive.
        completion: The text.
        person: Id of the person.
        rendering: How it is worded, a key of `RENDERINGS`.
        secrets: The sensitive strings that the completion holds, by kind.
    """

    prompt: str
    completion: str
    person: str
    rendering: str
    secrets: Mapping[str, str]


def generate_people(
    num_people: int, seed: int, *, num_heldout: int = 0, repetitions: Sequence[int] = REPETITIONS
) -> list[Person]:
    """Returns invented people, the held-out ones last; the same arguments give the same people.

    No value of anybody is another's, or a part of another's by whole words. Repetition counts are
    dealt in turn, so that each occurs equally often.

    Args:
        num_people: People with documents; with `num_heldout` at most 10,000.
        seed: Public.
        num_heldout: People with 0 repetitions.
        repetitions: Counts to deal.

    Raises:
        InvalidParameterError: If a number is out of range.
    """
    require_integer("num_people", num_people, 1, MOST_PEOPLE)
    require_integer("num_heldout", num_heldout, 0, MOST_PEOPLE - num_people)
    if not repetitions:
        raise InvalidParameterError("repetitions must hold at least one count, got none.")
    counts = [require_integer("repetitions", count, 1) for count in repetitions]
    faker = _make_faker(seed)
    taken = _Taken()
    people = []
    for number in range(num_people + num_heldout):
        first_name, last_name = taken.draw(
            lambda: (faker.first_name(), faker.last_name()), " ".join
        )
        initials = f"{first_name[0]}{last_name}".lower()
        values = {
            "name": f"{first_name} {last_name}",
            "email": taken.draw(lambda i=initials: _email(faker, i)),
            "phone": taken.draw(lambda: _phone(faker)),
            "address": taken.draw(lambda: _address(faker)),
            "date": taken.draw(lambda: _birth_date(faker)),
            "employer": taken.draw(faker.company),
            "account": taken.draw(lambda: faker.bothify(_ACCOUNT, letters=ascii_uppercase)),
        }
        people.append(
            Person(
                id=f"p{number:04d}",
                values=values,
                first_name=first_name,
                job=faker.job().split(",")[0].lower(),
                repetitions=counts[number % len(counts)] if number < num_people else 0,
            )
        )
    return people


def generate_documents(
    people: Iterable[Person], seed: int, *, num_each: int | None = None
) -> list[Document]:
    """Returns shuffled documents: as many about each person as its repetitions say.

    The documents of a person take all renderings before one comes again with other circumstances.

    Args:
        people: From `generate_people`.
        seed: Public.
        num_each: Documents per person instead; for people who are held out.
    """
    require_integer("num_each", 0 if num_each is None else num_each, 0)
    faker = _make_faker(seed)
    documents = []
    for person in people:
        order = faker.random.sample(sorted(RENDERINGS), len(RENDERINGS))
        for number in range(person.repetitions if num_each is None else num_each):
            rendering = order[number % len(order)]
            prompt, completion = RENDERINGS[rendering]
            circumstances = {
                "first": person.first_name,
                "job": person.job,
                "agent": faker.first_name(),
                "weekday": faker.random.choice(WEEKDAYS),
                "topic": faker.random.choice(TOPICS),
            }
            documents.append(
                Document(
                    prompt=prompt,
                    completion=completion.format(**person.values, **circumstances),
                    person=person.id,
                    rendering=rendering,
                    secrets=dict(person.values),
                )
            )
    faker.random.shuffle(documents)
    return documents


def list_secrets(documents: Iterable[Document], *, is_heldout: bool = False) -> list[Secret]:
    """Returns every sensitive string of some documents once, with how often it occurs.

    The prefix is taken from a document that names another value of the same person before it,
    where there is one: it says who is asked about.

    Args:
        documents: All documents about their people.
        is_heldout: Whether they are not trained on: repetitions are 0 then.
    """
    by_person: dict[str, list[Document]] = {}
    for document in documents:
        by_person.setdefault(document.person, []).append(document)
    secrets = []
    for person, own in sorted(by_person.items()):
        for kind in SECRET_KINDS:
            holding = [document for document in own if kind in document.secrets]
            if not holding:
                continue
            value = holding[0].secrets[kind]
            places = [_split_at(document, value) for document in holding]
            others = [other for name, other in holding[0].secrets.items() if name != kind]
            told = [place for place in places if any(other in place[0] for other in others)]
            prefix, suffix = (told or places)[0]
            secrets.append(
                Secret(
                    secret=value,
                    kind=kind,
                    person=person,
                    repetitions=0 if is_heldout else len(holding),
                    prefix=prefix,
                    suffix=suffix,
                )
            )
    return secrets


def write_people(
    folder: str | Path, *, num_people: int = 100, num_heldout: int = 100, seed: int = 0
) -> tuple[Path, Path, Path]:
    """Writes train.jsonl, heldout.jsonl and secrets.jsonl; returns their paths.

    The documents have the columns prompt and completion, the person as a possible privacy unit, the
    rendering and the strings they hold; there is one document about each held-out person. The
    strings of held-out people have 0 repetitions. Existing files are replaced. The same arguments
    give the same bytes, with the same version of faker.
    """
    people = generate_people(num_people, seed, num_heldout=num_heldout)
    train = generate_documents(people, seed + 1)
    heldout = generate_documents(people[num_people:], seed + 2, num_each=1)
    secrets = list_secrets(train) + list_secrets(heldout, is_heldout=True)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / "train.jsonl", folder / "heldout.jsonl", folder / "secrets.jsonl")
    rows = [[asdict(entry) for entry in entries] for entries in (train, heldout, secrets)]
    for row in rows[2]:
        del row["line"]
    for path, entries in zip(paths, rows, strict=True):
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        path.write_text("".join(lines), encoding="utf-8", newline="\n")
    return paths


@dataclass(frozen=True, slots=True)
class PeopleResult:
    """The written files."""

    train: Path
    heldout: Path
    secrets: Path


def people(
    *,
    output: Annotated[Path, Doc("Folder for train.jsonl, heldout.jsonl and secrets.jsonl.")],
    num_people: Annotated[int, Doc("People that documents are about.")] = 100,
    num_heldout: Annotated[int, Doc("People who are in no training document: controls.")] = 100,
    seed: Annotated[int, Doc("Public seed; the same seed gives the same people.")] = 0,
) -> PeopleResult:
    """Invents people and documents that hold their sensitive strings 1, 5, 10 or 25 times.

    Tune on train.jsonl, then look for secrets.jsonl in what the model writes. Nobody is real.

    Raises:
        InvalidParameterError: If a number is out of range, or a file is there already.

    Example:
        sordino people --output people --num-people 50
    """
    names = ("train.jsonl", "heldout.jsonl", "secrets.jsonl")
    present = [name for name in names if (Path(output) / name).exists()]
    if present:
        raise InvalidParameterError(
            f"output {output} holds {present[0]} already and nothing is overwritten. Choose "
            "another folder."
        )
    paths = write_people(output, num_people=num_people, num_heldout=num_heldout, seed=seed)
    return PeopleResult(*paths)


class _Taken:
    """Draws values until one is neither taken, nor holds or is part of one that is."""

    def __init__(self) -> None:
        self._values: set[tuple[str, ...]] = set()
        self._parts: set[tuple[str, ...]] = set()

    def draw(self, draw: Any, spell: Any = str) -> Any:
        """Returns a new value."""
        for _ in range(_MOST_TRIES):
            value = draw()
            words = tuple(re.findall(r"\w+", spell(value).casefold()))
            parts = {words} | {
                words[i : i + length]
                for length in (2, 3, 4)
                for i in range(len(words) - length + 1)
            }
            if words not in self._parts and not parts & self._values:
                self._values.add(words)
                self._parts |= parts
                return value
        raise InvalidParameterError("num_people must be smaller: the generator ran out of values.")


def _make_faker(seed: int) -> Any:
    """Returns a generator of its own; the global one of the library stays as it is."""
    from faker import Faker

    require_integer("seed", seed, 0)
    faker = Faker("en_US", use_weighting=False)
    faker.seed_instance(seed)
    return faker


def _email(faker: Any, initials: str) -> str:
    """Returns a mail address whose digits cannot be told from the name."""
    domain = faker.random.choice(("example.com", "example.net", "example.org"))
    return f"{initials}{faker.numerify('####')}@{domain}"


def _phone(faker: Any) -> str:
    """Returns a number that cannot be anybody's: no exchange begins with 0 or 1."""
    exchange = faker.random.choice("01") + faker.numerify("##")
    return f"{faker.numerify('(%##)')} {exchange}-{faker.numerify('####')}"


def _address(faker: Any) -> str:
    """Returns an address in a town that does not exist."""
    street = f"{faker.building_number()} {faker.street_name()}"
    return f"{street}, {faker.city()} {faker.postcode()}"


def _birth_date(faker: Any) -> str:
    """Returns a day such as "7 March 1984"."""
    first, last = _BIRTH_DATES
    day = first + dt.timedelta(days=faker.random.randrange((last - first).days + 1))
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


def _split_at(document: Document, value: str) -> tuple[str, str]:
    """Returns what stands before a value, and after it up to the end of the sentence."""
    before, _, after = document.completion.partition(value)
    sentence = _SENTENCE.match(after)
    return f"{document.prompt} {before}", sentence[0] if sentence else ""
