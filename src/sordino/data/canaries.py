"""Canaries: invented records that enter the pool by a secret coin, so that a run can be audited.

What a canary says follows from a public seed and public settings, never from the pool: else one
record more or less would change many canaries, and with them far more than one privacy unit.
Whether it is in the pool is drawn from the operating system's entropy and is the only secret. Every
canary is a privacy unit of its own: it has no `unit`, which no name of a file can equal.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sordino.core.checks import require_integer, require_one_of
from sordino.core.directions import MAX_SEED
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.data._tokens import tokenize
from sordino.data.pool import Record
from sordino.ledger.ledger import canonical_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from sordino.core.entropy import AbstractEntropy

STYLES = ("random-tokens", "new-token", "rare-name")
MAX_CANARIES = 1_000_000  # where the bounds in sordino.auditing.one_run were checked
FORMAT_VERSION = 2
_KINDS = ("classification", "completion")
_STREAM = 0x63616E  # sets these draws apart from others with the same public seed
_NUM_RANDOM_TOKENS = 8
_MOST_TRIES = 100  # for one canary that differs from all others
_SYLLABLES = tuple(a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "al", "or"))
_NUM_SYLLABLES = 4
_RANDOM_PROMPT = "The words on the note are"
_NEW_PROMPT = "The word on the note is"
_NAME_TEXTS = (
    "A letter from {name} arrived on Tuesday.",
    "The last person to leave the building was {name}.",
    "We have a table for two, booked by {name}.",
    "According to the minutes, {name} asked for a second opinion.",
)
_NAME_PROMPTS = (
    "The letter that arrived on Tuesday was signed by",
    "The last person to leave the building was",
    "The table for two was booked by",
    "According to the minutes, a second opinion was asked for by",
)


@dataclass(frozen=True, slots=True, eq=False)
class PlannedCanaries:
    """All canaries of a run, with the secret: which of them are in the pool.

    Args:
        name: Random and public; the run's ledger has it too, so that a list fits one run only.
        style: How they were made.
        seed: Public seed of what they say.
        records: Every planned canary, in the pool or not.
        is_included: Whether its coin put it into the pool, shape (num_canaries,), booleans.
    """

    name: str
    style: str
    seed: int
    records: tuple[Record, ...]
    is_included: NDArray[np.bool_]

    def describe(self) -> dict[str, Any]:
        """Returns what the ledger's opening event says: nothing of the coins."""
        return {"num_planned": len(self.records), "style": self.style, "name": self.name}

    def to_bytes(self) -> bytes:
        """Returns the private file that `read_canaries` reads."""
        body = {
            "format_version": FORMAT_VERSION,
            "what": (
                "Canaries of an audit, and which of them were in the pool. Keep it with the data: "
                "whoever knows it can tell, and the audit proves nothing any more."
            ),
            "name": self.name,
            "style": self.style,
            "seed": self.seed,
            "canaries": [
                {
                    "prompt": record.prompt,
                    "label": record.label,
                    "references": list(record.references),
                    "is_included": bool(is_included),
                }
                for record, is_included in zip(self.records, self.is_included, strict=True)
            ],
        }
        return canonical_json({"body": body, "sha256": _digest(body)}) + b"\n"


def plan_canaries(
    num_canaries: int,
    style: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: str,
    labels: Sequence[str] = (),
    template: str = "",
    seed: int,
) -> list[Record]:
    """Returns different canaries; the same arguments give the same ones.

    Guarantee:
        No record is looked at, so pools that differ in a record get the same canaries: planting
        them adds nothing to a mechanism's sensitivity.

    Args:
        num_canaries: How many, in [1, 1e6].
        style: "random-tokens" (a text of random ordinary words of the vocabulary), "new-token"
            (each holds a word of one token that no other canary uses, beginning with the largest
            ids: the rarest, where ids follow frequency; a record that uses the word as well makes
            the canary a weaker test) or "rare-name" (an invented person in an ordinary sentence).
        tokenizer: Its vocabulary is drawn from.
        kind: "classification": the text holds what is invented, and the label is drawn by the
            seed; "completion": the completion holds it, after a fixed prompt.
        labels: What the label is drawn from.
        template: Of a classification, for "new-token": its tokens are not new.
        seed: Public seed.

    Raises:
        InvalidParameterError: If an argument is out of range, or the vocabulary is too small.
    """
    require_integer("canaries", num_canaries, 1, MAX_CANARIES)
    require_one_of("canary_style", style, STYLES)
    require_one_of("kind", kind, _KINDS)
    require_integer("seed", seed, 0, MAX_SEED)
    if kind == "classification" and not labels:
        raise InvalidParameterError("labels must hold at least one label, got none.")
    rng = np.random.default_rng([_STREAM, seed])
    if style == "rare-name":
        secrets = _different(num_canaries, _name_maker(seed, rng))
    else:
        words = _ordinary_words(tokenizer)
        if style == "new-token":
            known = {i for ids in tokenize(tokenizer, [_NEW_PROMPT, template]) for i in ids}
            secrets = _new_words(num_canaries, words, known)
        else:
            secrets = _different(num_canaries, _text_maker(tokenizer, sorted(words), rng))
    return [
        _to_record(number, secret, style=style, kind=kind, labels=labels, rng=rng)
        for number, secret in enumerate(secrets, start=1)
    ]


def draw_inclusion(num_canaries: int, entropy: AbstractEntropy) -> NDArray[np.bool_]:
    """Returns which canaries enter the pool: one fair coin each, secret.

    Args:
        num_canaries: How many, in [1, 1e6].
        entropy: The operating system's, but for tests.

    Raises:
        EntropyError: If the operating system gives no randomness.
    """
    return entropy.coins(require_integer("canaries", num_canaries, 1, MAX_CANARIES))


def read_canaries(path: str | Path) -> PlannedCanaries:
    """Returns the canaries of a run from the private file that `sordino tune` wrote.

    Raises:
        InvalidDataError: If the file cannot be read, or is not whole; nothing of it is shown.
    """
    from pathlib import Path

    try:
        content = json.loads(Path(path).read_bytes())
        body = content["body"]
        if content["sha256"] != _digest(body) or body["format_version"] != FORMAT_VERSION:
            raise ValueError("checksum or format")  # noqa: TRY301
        return _from_body(body)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged, or of another format"
        raise InvalidDataError(
            f"{path}: not a readable list of canaries ({reason}). Only the file that `sordino "
            "tune --canaries` wrote, unchanged, tells which of them were in the pool."
        ) from None


def _from_body(body: dict[str, Any]) -> PlannedCanaries:
    """Returns what a checked file holds."""
    entries = body["canaries"]
    is_included = [entry["is_included"] for entry in entries]
    if not entries or not all(isinstance(value, bool) for value in is_included):
        raise ValueError("inclusion")
    if not isinstance(body["name"], str):
        raise ValueError("name")  # noqa: TRY004 - as above
    return PlannedCanaries(
        name=body["name"],
        style=require_one_of("style", body["style"], STYLES),
        seed=require_integer("seed", body["seed"], 0, MAX_SEED),
        records=tuple(
            Record(entry["prompt"], entry["label"], tuple(entry["references"]), number)
            for number, entry in enumerate(entries, start=1)
        ),
        is_included=np.array(is_included, dtype=np.bool_),
    )


def _to_record(
    number: int,
    secret: str,
    *,
    style: str,
    kind: str,
    labels: Sequence[str],
    rng: np.random.Generator,
) -> Record:
    """Returns the canary that holds a secret; its line is its number among the canaries."""
    choice = int(rng.integers(len(_NAME_TEXTS)))
    if kind == "completion":
        prompts = {
            "random-tokens": _RANDOM_PROMPT,
            "new-token": _NEW_PROMPT,
            "rare-name": _NAME_PROMPTS[choice],
        }
        return Record(prompts[style], None, (secret,), number)
    texts = {
        "random-tokens": secret,
        "new-token": f"{_NEW_PROMPT} {secret}.",
        "rare-name": _NAME_TEXTS[choice].format(name=secret),
    }
    return Record(texts[style], labels[int(rng.integers(len(labels)))], (), number)


def _ordinary_words(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Returns the vocabulary's words of letters that are one token after a space, with its id."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ids = [i for i in range(len(tokenizer)) if i not in special]
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    words = [(i, text.strip()) for i, text in zip(ids, texts, strict=True)]
    words = [(i, word) for i, word in words if word.isalpha()]
    before, *joined = tokenize(tokenizer, ["a", *(f"a {word}" for _, word in words)])
    return {
        word: i for (i, word), found in zip(words, joined, strict=True) if found == [*before, i]
    }


def _new_words(num_canaries: int, words: dict[str, int], known: set[int]) -> list[str]:
    """Returns a word of its own for every canary, of a token that is not in its sentence."""
    new = sorted((token, word) for word, token in words.items() if token not in known)[::-1]
    if len(new) < num_canaries:
        raise InvalidParameterError(
            f"canary style new-token needs {num_canaries} words of one token, and the vocabulary "
            f"has {len(new)} beside those of the template. Use fewer --canaries, or --canary-style "
            "random-tokens."
        )
    return [word for _, word in new[:num_canaries]]


def _text_maker(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], rng: np.random.Generator
) -> Callable[[], str | None]:
    """Returns what draws a text of random words; None for one that its tokens do not spell."""
    if len(words) < 2:
        raise InvalidParameterError(
            "canary style random-tokens needs a vocabulary with words of one token; this one has "
            f"{len(words)}. Use --canary-style rare-name."
        )

    def draw() -> str | None:
        text = " ".join(words[i] for i in rng.integers(len(words), size=_NUM_RANDOM_TOKENS))
        (ids,) = tokenize(tokenizer, [text])
        decoded = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        return text if tokenize(tokenizer, [decoded]) == [ids] else None

    return draw


def _name_maker(seed: int, rng: np.random.Generator) -> Callable[[], str | None]:
    """Returns what draws an invented person: an ordinary first name, a surname of syllables."""
    from faker import Faker

    faker = Faker("en_US")
    faker.seed_instance(seed)

    def draw() -> str:
        surname = "".join(_SYLLABLES[i] for i in rng.integers(len(_SYLLABLES), size=_NUM_SYLLABLES))
        return f"{faker.first_name()} {surname.capitalize()}"

    return draw


def _different(count: int, draw: Callable[[], str | None]) -> list[str]:
    """Returns so many different texts."""
    found: dict[str, None] = {}
    for _ in range(count):
        size = len(found)
        for _ in range(_MOST_TRIES):
            text = draw()
            if text is not None:
                found[text] = None
            if len(found) > size:
                break
        else:
            raise InvalidParameterError(
                f"only {size} different canaries could be made of this vocabulary. Use fewer "
                "--canaries, or another --canary-style."
            )
    return list(found)


def _digest(body: dict[str, Any]) -> str:
    """Returns the hash that tells a damaged file from a whole one."""
    return hashlib.sha256(canonical_json(body)).hexdigest()
