"""Canaries: what they say is public and reproducible, who is in is a secret fair coin."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.stats import binom

from helpers_enumeration import enumerate_outcomes
from helpers_runs import CONTEXT_LENGTH, NOUNS
from sordino.core.entropy import OperatingSystemEntropy
from sordino.core.errors import EntropyError, InvalidDataError, InvalidParameterError
from sordino.data import ClassificationTask, CompletionTask, group_by_unit
from sordino.data.canaries import (
    STYLES,
    PlannedCanaries,
    draw_inclusion,
    plan_canaries,
    read_canaries,
)
from sordino.data.pool import Record

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("classification", "completion")
FALSE_FAILURE_RATE = 1e-6


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def plan(count: int, style: str, tokenizer: Any, kind: str, **changes: Any) -> list[Record]:
    return plan_canaries(
        count, style, tokenizer, kind=kind, **({"labels": ("0", "1"), "seed": 7} | changes)
    )


def text_of(record: Record) -> str:
    return " ".join((record.prompt, *record.references))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", STYLES)
def test_canaries_are_public_different_and_usable(style: str, kind: str, tokenizer: Any) -> None:
    """The seed alone decides them; none repeats; a task can encode them; nobody's unit is named."""
    canaries = plan(12, style, tokenizer, kind)
    assert canaries == plan(12, style, tokenizer, kind)
    assert len({text_of(canary) for canary in canaries}) == 12
    assert [canary.line for canary in canaries] == list(range(1, 13))
    assert all(canary.unit is None for canary in canaries)
    if style != "new-token":  # whose words follow from the vocabulary
        other = plan(12, style, tokenizer, kind, seed=8)
        assert not {text_of(c) for c in canaries} & {text_of(c) for c in other}
    if kind == "classification":
        task: Any = ClassificationTask({"0": "terrible", "1": "great"})
        assert {canary.references for canary in canaries} == {()}
    else:
        task = CompletionTask()
        assert {canary.label for canary in canaries} == {None}
        assert len({canary.references for canary in canaries}) == 12  # the secret is there
    assert len(task.encode(canaries, tokenizer, CONTEXT_LENGTH)) == 12


def test_random_tokens_are_ordinary_and_stable(tokenizer: Any) -> None:
    """Eight words of the vocabulary; their tokens decode to a text with the same tokens."""
    for canary in plan(50, "random-tokens", tokenizer, "classification"):
        ids = tokenizer(canary.prompt, add_special_tokens=False)["input_ids"]
        assert len(ids) == 8
        assert not set(ids) & set(tokenizer.all_special_ids)
        assert tokenizer(tokenizer.decode(ids))["input_ids"] == ids


@pytest.mark.parametrize("kind", KINDS)
def test_new_tokens_are_new_and_not_shared(kind: str, tokenizer: Any) -> None:
    """Every canary has a token that not the template and no other canary has."""
    template = "{text} It was very muddled"  # the last word of the vocabulary
    canaries = plan(20, "new-token", tokenizer, kind, template=template)
    known = set(tokenizer(template)["input_ids"])
    own = [set(tokenizer(text_of(canary))["input_ids"]) - known for canary in canaries]
    shared = set.intersection(*own)  # the sentence around it
    tokens = [ids - shared for ids in own]
    assert all(len(ids) == 1 for ids in tokens)
    assert len(set.union(*tokens)) == 20
    assert all(min(ids) > max(shared | {1}) for ids in tokens)
    found = [next(iter(ids)) for ids in tokens]
    assert found == sorted(found, reverse=True)  # the rarest first


def test_too_few_new_tokens(tokenizer: Any) -> None:
    """A canary without a token of its own is refused, with what to do and without a word of it."""
    with pytest.raises(InvalidParameterError, match=r"needs 99 words .* has 35 .*\. Use") as error:
        plan(99, "new-token", tokenizer, "completion")
    assert not any(noun in str(error.value) for noun in NOUNS)


def test_names_are_invented(tokenizer: Any) -> None:
    """A first name and a surname of random syllables, in a sentence."""
    canaries = plan(40, "rare-name", tokenizer, "completion")
    surnames = {canary.references[0].split()[1] for canary in canaries}
    assert len(surnames) == 40
    assert all(len(name) >= 8 and name.istitle() for name in surnames)
    assert 1 < len({canary.prompt for canary in canaries}) <= 4
    texts = [canary.prompt for canary in plan(40, "rare-name", tokenizer, "classification")]
    assert all(any(name in text for name in surnames) for text in texts)


def test_labels_are_drawn_evenly(tokenizer: Any) -> None:
    """The seed is fixed; under a fresh one the test would fail with probability 1e-6."""
    canaries = plan(2000, "rare-name", tokenizer, "classification")
    ones = sum(canary.label == "1" for canary in canaries)
    low, high = binom.ppf([FALSE_FAILURE_RATE / 2, 1 - FALSE_FAILURE_RATE / 2], 2000, 0.5)
    assert low <= ones <= high


def test_global_randomness_is_left_alone(tokenizer: Any) -> None:
    """Planning reads and moves no global stream."""
    import random

    random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    for style in STYLES:
        plan(5, style, tokenizer, "completion")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_exhausted_vocabulary(tmp_path: Path) -> None:
    """Where no other canary can be made, the run is refused instead of repeating one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))  # noqa: S106
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    small = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")  # noqa: S106
    with pytest.raises(InvalidParameterError, match="different canaries could be made"):
        plan(300, "random-tokens", small, "completion")  # there are 256 texts
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))  # noqa: S106
    one = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")  # noqa: S106
    with pytest.raises(InvalidParameterError, match="words of one token"):
        plan(3, "random-tokens", one, "completion")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "canaries"),
        ({"count": 1_000_001}, "canaries"),
        ({"count": float("nan")}, "canaries"),
        ({"style": "loud"}, "canary_style"),
        ({"kind": "prompt"}, "kind"),
        ({"seed": -1}, "seed"),
        ({"labels": ()}, "labels"),
    ],
)
def test_arguments_are_checked(changes: dict[str, Any], message: str, tokenizer: Any) -> None:
    arguments = {"count": 3, "style": "rare-name", "kind": "classification"} | changes
    with pytest.raises(InvalidParameterError, match=message):
        plan(tokenizer=tokenizer, **arguments)


def test_every_inclusion_is_equally_likely() -> None:
    """All eight outcomes of three coins, each with probability 1/8, exactly."""
    outcomes = list(enumerate_outcomes(lambda entropy: draw_inclusion(3, entropy).tolist()))
    assert len({tuple(drawn) for _, drawn in outcomes}) == len(outcomes) == 8
    assert {probability for probability, _ in outcomes} == {Fraction(1, 8)}


def test_coins_of_the_operating_system_are_fair() -> None:
    """Fails once in a million runs; misses a coin of 0.54 once in a million too."""
    drawn = draw_inclusion(20_000, OperatingSystemEntropy())
    low, high = binom.ppf([FALSE_FAILURE_RATE / 2, 1 - FALSE_FAILURE_RATE / 2], 20_000, 0.5)
    assert low <= drawn.sum() <= high
    assert binom.cdf(high, 20_000, 0.54) < 1e-6
    assert drawn.dtype == np.bool_


def test_no_entropy_no_canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no fallback for coins."""

    def refuse(_count: int) -> bytes:
        raise OSError

    monkeypatch.setattr("os.urandom", refuse)
    with pytest.raises(EntropyError):
        draw_inclusion(4, OperatingSystemEntropy())


def test_canaries_are_units_of_their_own() -> None:
    """No unit of a file, whatever its name, holds a canary."""
    named = [Record("a", "1", (), i, unit=str(i)) for i in range(4)]
    canaries = [Record("b", "1", (), i) for i in range(3)]
    assert group_by_unit([*named, *canaries]) == [[i] for i in range(7)]


def planned(tokenizer: Any) -> PlannedCanaries:
    records = tuple(plan(6, "rare-name", tokenizer, "completion"))
    is_included = np.array([True, False, True, True, False, False])
    return PlannedCanaries("ab", "rare-name", 7, records, is_included)


def test_list_is_read_back(tmp_path: Path, tokenizer: Any) -> None:
    """What was written is read: records, coins, style and seed."""
    canaries = planned(tokenizer)
    path = tmp_path / "list.json"
    path.write_bytes(canaries.to_bytes())
    again = read_canaries(path)
    assert (again.style, again.seed, again.records) == ("rare-name", 7, canaries.records)
    assert np.array_equal(again.is_included, canaries.is_included)
    assert again.is_included.dtype == np.bool_
    assert again.to_bytes() == canaries.to_bytes()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "list", "version", "gone", "folder"])
def test_damaged_list_is_refused(damage: str, tmp_path: Path, tokenizer: Any) -> None:
    """A list that is not whole is not used; the message quotes nothing of it."""
    path = tmp_path / "list.json"
    content = planned(tokenizer).to_bytes()
    changed = json.loads(content)
    changed["body"]["format_version"] = 1
    contents = {
        "cut": content[: len(content) // 2],
        "flipped": content.replace(b'"is_included":false', b'"is_included":true', 1),
        "empty": b"",
        "list": b"[1, 2]",
        "version": json.dumps(changed).encode(),
    }
    if damage == "folder":
        path.mkdir()
    elif damage in contents:
        assert contents[damage] != content
        path.write_bytes(contents[damage])
    with pytest.raises(InvalidDataError, match="not a readable list of canaries") as error:
        read_canaries(path)
    surname = planned(tokenizer).records[0].references[0].split()[1]
    assert surname in content.decode()
    assert surname not in str(error.value)
