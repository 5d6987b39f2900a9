"""A value of a record in a text: whole, in part, or not at all, whatever the spelling.

Spellings that are one value: case, accents, width, invisible signs and letters that only look
alike; separators inside numbers, currencies, thousands, English number words, digits apart; names
in another order, with a middle initial, or with their letters apart. A value is found as whole
words or numbers, never inside longer ones. Other transformations (a translation, a riddle, base64,
"a bit more than her supervisor") are not found: this is matching, not understanding.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sordino.access._numbers import Number, find_numbers, find_ranges, parse_number

Found = Literal["whole", "part"]

_LOOK_ALIKE = str.maketrans(
    "авеіјкмнорсѕтухоΑαΒΕΖΗΙΚΜΝΟοΡΤΥΧłøđ", "abeijkmhopcstyxoaabezhikmnooptyxlod"
)
_DASHES = re.compile("[\u2010-\u2015\u2212\u00ad]")
_QUOTES = re.compile("[\u2018\u2019\u02bc\u0060\u00b4]")
_INNER_APOSTROPHE = re.compile(r"(?<=[^\W\d_])'(?=[^\W\d_]{2})")  # "o'neill", not "keller's"
_WORD = re.compile(r"[^\W_]+")
_ALIASES = (  # one value in the words of tables and of people
    ("married", "married civ spouse", "married af spouse", "married spouse absent"),
    ("never married", "single", "nevermarried"),
    ("divorced", "divorcee"),
    ("widowed", "widow", "widower"),
)
_NEGATIONS = {"not", "never", "no", "non", "neither", "isnt", "wasnt", "un"}
_NEGATED_VERBS = {"isn", "wasn", "aren", "weren", "doesn", "don", "didn", "ain"}  # before "t"
_CLAUSE_ENDS = re.compile(r"[.,;:!?{}]")  # "No, married" denies nothing
_ORDINARY = frozenset(  # words of departments, degrees and refusals: alone they tell nothing
    {
        "business",
        "care",
        "college",
        "company",
        "confidential",
        "contact",
        "customer",
        "customers",
        "data",
        "degree",
        "department",
        "design",
        "development",
        "education",
        "employee",
        "employees",
        "finance",
        "general",
        "group",
        "head",
        "health",
        "help",
        "high",
        "human",
        "information",
        "legal",
        "management",
        "manager",
        "marketing",
        "office",
        "operations",
        "people",
        "personal",
        "private",
        "product",
        "production",
        "professional",
        "project",
        "public",
        "quality",
        "record",
        "records",
        "relations",
        "representative",
        "research",
        "resources",
        "safety",
        "sales",
        "school",
        "secondary",
        "security",
        "senior",
        "service",
        "services",
        "single",
        "software",
        "some",
        "staff",
        "support",
        "team",
        "technical",
        "technology",
        "training",
        "university",
        "vocational",
        "work",
    }
)
_FILLERS = {"the", "a", "an", "in", "at", "really", "actually", "currently", "is", "be"}
_FEWEST_LETTERS = 3  # of a part of a name that tells anything
_CLOSE = 0.05  # a rounded number so near tells the value in part
_NARROW = 0.2  # width of a range that tells it in part, relative to the value
_NUM_MONTHS = 12
_NUM_SIGNS_BEFORE = 60  # of a value, where "not" is looked for


def fold(text: str) -> str:
    """Returns a text without differences that readers do not see or do not mind.

    Example:
        >>> fold("\u200bJos\u00e9  KELLER\u2019s \u0441ar")
        "jose keller's car"
    """
    text = html.unescape(text).replace("{,}", ",").replace("\\,", "")  # HTML and LaTeX
    text = unicodedata.normalize("NFKC", text)
    text = "".join(sign for sign in text if unicodedata.category(sign) != "Cf")
    text = _QUOTES.sub("'", _DASHES.sub("-", text)).translate(_LOOK_ALIKE)  # capitals of their own
    text = text.casefold().translate(_LOOK_ALIKE)
    text = unicodedata.normalize("NFKD", text)
    text = "".join(sign for sign in text if not unicodedata.combining(sign))
    text = _INNER_APOSTROPHE.sub("", text.replace("&", " and "))
    return " ".join(text.split())


def words_of(text: str) -> list[str]:
    """Returns the words of a folded text."""
    return _WORD.findall(text)


@dataclass(frozen=True)
class Value:
    """A value of a record.

    Args:
        text: As the table has it.
    """

    text: str

    @cached_property
    def number(self) -> float | None:
        """The value as a number, None for words."""
        return parse_number(fold(self.text))

    @cached_property
    def spellings(self) -> list[list[str]]:
        """The words of the value and of its aliases."""
        folded = fold(self.text)
        spelled = " ".join(words_of(folded))
        group = next((group for group in _ALIASES if spelled in group), ())
        careless = " ".join(words_of(folded.replace("'", "")))  # "bachelors degree"
        aliases = dict.fromkeys((spelled, careless, *group))
        return [alias.split() for alias in aliases if alias]  # "-" has none

    @property
    def is_blank(self) -> bool:
        """Whether it has no letter or digit, as "-" has none: there is nothing to tell."""
        return not self.spellings

    def is_weak_as(self, written: str) -> bool:
        """Returns whether what was found often stands in texts by accident.

        Small numbers, single words ("single"), and words of refusals ("customer support") do.

        Args:
            written: The value as it stands in a folded text.
        """
        if self.number is not None:
            return abs(self.number) < 1000
        words = words_of(written)
        is_one_word = len(words) == 1 and words in self.spellings
        return is_one_word or _ORDINARY.issuperset(words)


class ReadText:
    """A text whose values can be looked for.

    Args:
        text: As written.
    """

    def __init__(self, text: str) -> None:
        self.folded = fold(text)

    @cached_property
    def words(self) -> list[re.Match[str]]:
        """The words with their places."""
        return list(_WORD.finditer(self.folded))

    @cached_property
    def numbers(self) -> list[Number]:
        """The numbers."""
        return find_numbers(self.folded)

    def find(
        self,
        value: Value,
        *,
        with_negated: bool = False,
        with_minus: bool = False,
        known: ReadText | None = None,
    ) -> Found | None:
        """Returns whether the text holds a value, or a part that tells much of it.

        Args:
            value: The value.
            with_negated: Whether "not 42" holds 42.
            with_minus: Whether "-42" holds 42: it may be a dash.
            known: What the reader wrote: a part of a name that stands there tells nothing.
        """
        places = self.places(value, with_negated=with_negated, with_minus=with_minus)
        if places:
            return "whole"
        return "part" if self._has_part(value, known) else None

    def places(
        self, value: Value, *, with_negated: bool = False, with_minus: bool = False
    ) -> list[tuple[int, int]]:
        """Returns where the whole value stands."""
        if value.number is not None:
            wanted = {value.number, -value.number} if with_minus else {value.number}
            found = [
                (number.start, number.stop)
                for number in self.numbers
                if any(abs(r - w) < 1e-6 for r in number.readings for w in wanted)
            ]
        else:
            found = self._word_places(value)
        if with_negated and value.text.casefold() != "married":
            return found
        return [place for place in found if not self._is_negated(place[0])]

    @cached_property
    def starts(self) -> dict[str, list[int]]:
        """Positions of each word."""
        starts: dict[str, list[int]] = {}
        for position, word in enumerate(self.words):
            starts.setdefault(word[0], []).append(position)
        return starts

    def _word_places(self, value: Value) -> list[tuple[int, int]]:
        """Returns where the words of a value stand."""
        found = []
        for wanted in value.spellings:
            orders = [wanted, wanted[::-1]] if len(wanted) == 2 else [wanted]  # "Keller, Maria"
            for order in orders:
                for start in self.starts.get(order[0], ()):
                    stop = self._match_words(start, order, may_skip=order is wanted)
                    if stop is not None:
                        found.append((self.words[start].start(), self.words[stop - 1].end()))
            joined = "".join(wanted)
            found += [self.words[start].span() for start in self.starts.get(joined, ())]
            found += self._spaced_places(joined)
        return sorted(set(found))

    def _match_words(self, start: int, wanted: list[str], *, may_skip: bool) -> int | None:
        """Returns where a run of words ends; one middle initial may stand before the last."""
        texts = [word[0] for word in self.words[start : start + len(wanted) + 1]]
        at = 0
        for number, word in enumerate(wanted):
            is_last = may_skip and 0 < number == len(wanted) - 1
            if is_last and texts[at + 1 : at + 2] == [word] and len(texts[at]) == 1:
                at += 1
            if texts[at : at + 1] != [word]:
                return None
            at += 1
        return start + at

    def _spaced_places(self, joined: str) -> list[tuple[int, int]]:
        """Returns where a value stands with its letters apart: "K e l l e r", "s-a-l-e-s"."""
        is_possible = {joined[:1], joined[-1:]} <= self.starts.keys()
        if len(joined) < _FEWEST_LETTERS or not is_possible:
            return []
        singles = r"[\W_]{1,3}".join(map(re.escape, joined))
        pattern = rf"(?<![^\W_]){singles}(?![^\W_])"
        return [match.span() for match in re.finditer(pattern, self.folded)]

    def _is_negated(self, start: int) -> bool:
        """Returns whether "not" or the like stands before a place."""
        clause = _CLAUSE_ENDS.split(self.folded[max(0, start - _NUM_SIGNS_BEFORE) : start])[-1]
        before = _WORD.findall(clause)
        while before and before[-1] in _FILLERS:
            before.pop()
        if before[-1:] == ["t"]:
            return before[-2:-1] != [] and before[-2] in _NEGATED_VERBS
        return bool(before) and before[-1] in _NEGATIONS

    def _has_part(self, value: Value, known: ReadText | None) -> bool:
        """Returns whether the text tells much of a value without holding it."""
        if value.number is not None:
            return self._has_near_number(value.number)
        if value.is_blank:
            return False
        if any(value.spellings[0] == alias.split() for group in _ALIASES for alias in group):
            # "married" is no part of "never married"
            return False
        parts = {word for word in value.spellings[0] if len(word) >= _FEWEST_LETTERS} - _ORDINARY
        if known is not None:
            parts -= known.starts.keys()
        return len(value.spellings[0]) > 1 and not parts.isdisjoint(self.starts)

    def _has_near_number(self, wanted: float) -> bool:
        """Returns whether a rounded number, a narrow range or a monthly sum tells a large one."""
        if abs(wanted) < 1000:
            return False
        for number in self.numbers:
            for reading in number.readings:
                if number.is_rounded and abs(reading - wanted) <= _CLOSE * abs(wanted):
                    return True
                is_monthly = "month" in self.folded and reading > 0
                if is_monthly and abs(_NUM_MONTHS * reading - wanted) <= 0.001 * abs(wanted):
                    return True
        ranges = find_ranges(self.folded, self.numbers)
        return any(
            low <= wanted <= high and high - low <= _NARROW * abs(wanted) for low, high in ranges
        )
