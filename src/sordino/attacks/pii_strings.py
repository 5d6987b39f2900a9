"""Sensitive strings in a text: when two spellings are the same string, and where one stands.

Spellings are compared by kind: mail addresses without case, numbers by their digits, dates by their
day, everything else by its words without case and punctuation. A string is found only as whole
words or numbers, never inside longer ones.

For mail addresses, phone numbers, dates and account numbers (shaped as an IBAN) there are patterns
that find every string of that kind in a text. They are approximate: a number may be a phone number
or not. No pattern can tell names, addresses and free strings, so these have no such count.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

DETECTED_KINDS = ("email", "phone", "date", "account")
_COMPACT_KINDS = ("phone", "account")
_FEWEST_DIGITS = 6  # a string of digits alone is compared without its spaces from here on
_MOST_PHONE_DIGITS = 15  # ITU-T E.164

# Thai to Khmer, kana and Han: no spaces between words, so each sign is a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_UNSPACED += "\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_SEPARATORS = re.compile(r"[ .\-/()+]{0,3}")  # inside a number
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]+@[\w-]+(?:\.[\w-]+)+")
_PHONE = re.compile(r"(?<![\w.\-/])[+(]{0,2}\d(?:[ .\-/()]{0,2}\d){6,14}(?!\w|[.\-/]\d)")
_ACCOUNT = re.compile(
    r"(?<!\w)[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)"
)  # ISO 13616, by shape
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|"
    r"sep(?:t|tember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"(?<!\w)(\d{1,2})(?:st|nd|rd|th)?"
_ISO_DATE = re.compile(r"(?<![\w-])(\d{4})-(\d{1,2})-(\d{1,2})(?![\w-])")
_DAY_FIRST = re.compile(rf"{_DAY}(?: of)?[ .-]{{1,2}}{_MONTH}[ ,-]{{1,2}}(\d{{4}})(?!\w)")
_MONTH_FIRST = re.compile(rf"(?<!\w){_MONTH} (\d{{1,2}})(?:st|nd|rd|th)?,? (\d{{4}})(?!\w)")
_NUMERIC_DATE = re.compile(r"(?<![\w./-])(\d{1,2})([./-])(\d{1,2})\2(\d{4})(?!\w|[./-]\d)")


class StringKey(NamedTuple):
    """A sensitive string without what differs between spellings; equal keys are one string."""

    kind: str
    form: str  # how it is compared: "words", "compact", "email" or "date"
    normal: str


@dataclass(frozen=True, slots=True)
class Detected:
    """A string of some kind in a text."""

    start: int
    text: str
    key: StringKey


def string_key(kind: str, text: str) -> StringKey:
    """Returns what two spellings of one string have in common.

    Example:
        >>> string_key("phone", "+1 (415) 113-4821") == string_key("phone", "415.113.4821")
        True
        >>> string_key("date", "March 7, 1984").normal
        '1984-03-07'
    """
    text = _fold(text).strip()
    if _EMAIL.fullmatch(text):  # of any kind: the words of one may be the end of another
        return StringKey(kind, "email", text)
    if kind == "date":
        dates = [(match, normal) for match, normal in _dates(text) if match.group() == text]
        if dates:
            return StringKey(kind, "date", dates[0][1])
    words = _WORD.findall(text)
    compact = "".join(words)
    is_number = compact.isdecimal() and len(compact) >= _FEWEST_DIGITS
    if is_number or (kind in _COMPACT_KINDS and any(sign.isdecimal() for sign in compact)):
        return StringKey(kind, "compact", _without_country(kind, compact))
    return StringKey(kind, "words", " ".join(words))


def detect(kind: str, text: str) -> list[Detected]:
    """Returns the strings of a kind in a text, in their order; none for kinds without a pattern.

    Phone numbers exclude what is a date, or stands in a mail address or account number.

    Example:
        >>> [found.text for found in detect("phone", "born 1984-03-07, call (415) 113-4821 now")]
        ['(415) 113-4821']
    """
    plain = _flatten(text)
    lowered = "".join(sign.lower() if len(sign.lower()) == 1 else sign for sign in plain)
    if kind == "email":
        matches = list(_EMAIL.finditer(plain))
    elif kind == "account":
        matches = list(_ACCOUNT.finditer(plain))
    elif kind == "date":
        matches = [match for match, _ in _dates(lowered)]
    elif kind == "phone":
        others = [*_EMAIL.finditer(plain), *_ACCOUNT.finditer(plain)]
        others += [match for match, _ in _dates(lowered)]
        for match in others:
            plain = _blank(plain, match)
        matches = list(_PHONE.finditer(plain))
    else:
        return []
    spans = sorted(match.span() for match in matches)
    return [
        Detected(start, plain[start:stop], string_key(kind, plain[start:stop]))
        for start, stop in spans
    ]


class StringFinder:
    """Finds any of many known strings in texts.

    Args:
        keys: The strings; those of any kind together.
    """

    def __init__(self, keys: Iterable[StringKey]) -> None:
        self._exact: dict[tuple[str, str], list[StringKey]] = defaultdict(list)
        self._compact: dict[str, list[StringKey]] = defaultdict(list)
        self._words: dict[str, dict[tuple[str, ...], list[StringKey]]] = defaultdict(dict)
        for key in dict.fromkeys(keys):
            if key.form == "words":
                words = tuple(key.normal.split(" "))
                self._words[words[0]].setdefault(words, []).append(key)
            elif key.form == "compact":
                self._compact[key.normal].append(key)
            else:
                self._exact[key.form, key.normal].append(key)
        self._longest = max(map(len, self._compact), default=0)

    def find(self, text: str) -> set[StringKey]:
        """Returns the strings that a text holds."""
        folded = _fold(text)
        words = list(_WORD.finditer(folded))
        found = set(self._find_exact(folded))
        found.update(self._find_words([word.group() for word in words]))
        found.update(self._find_compact(folded, words))
        return found

    def _find_exact(self, folded: str) -> Iterator[StringKey]:
        """Yields mail addresses and dates."""
        if self._exact:
            for match in _EMAIL.finditer(folded):
                yield from self._exact.get(("email", match.group()), ())
            for _, normal in _dates(folded):
                yield from self._exact.get(("date", normal), ())

    def _find_words(self, words: Sequence[str]) -> Iterator[StringKey]:
        """Yields strings that are runs of whole words."""
        for start, first in enumerate(words):
            for wanted, keys in self._words.get(first, {}).items():
                if tuple(words[start : start + len(wanted)]) == wanted:
                    yield from keys

    def _find_compact(self, folded: str, words: Sequence[re.Match[str]]) -> Iterator[StringKey]:
        """Yields numbers, whatever separates their groups."""
        if not self._compact:
            return
        for first in range(len(words)):
            if _is_joined_before(folded, words, first):
                continue
            joined = ""
            for last in range(first, len(words)):
                if last > first and not _SEPARATORS.fullmatch(
                    folded, words[last - 1].end(), words[last].start()
                ):
                    break
                joined += words[last].group()
                if len(joined) > self._longest + 1:  # a country code of one digit may be left out
                    break
                if not re.match(r"[.\-/]\d", folded[words[last].end() :][:2]):
                    yield from self._compact.get(joined, ())
                    yield from (
                        key
                        for key in self._compact.get(_without_country("phone", joined), ())
                        if key.kind == "phone"
                    )


def _fold(text: str) -> str:
    """Returns a text without differences in case, width and white space."""
    return _flatten(text).casefold()


def _flatten(text: str) -> str:
    """Returns a text without differences in width and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _without_country(kind: str, number: str) -> str:
    """Returns a North American phone number without its country code."""
    is_long = kind == "phone" and len(number) == 11 and number[0] == "1" and number.isdecimal()
    return number[1:] if is_long else number


def _is_joined_before(text: str, words: Sequence[re.Match[str]], index: int) -> bool:
    """Returns whether a word continues a number before it; a country code is no such number."""
    start = words[index].start()
    if not re.fullmatch(r"\d[.\-/]", text[max(0, start - 2) : start]):
        return False
    before = words[index - 1]
    sign = text[before.start() - 1 : before.start()]
    is_code = sign == "+" and len(before.group()) <= 3
    is_code = is_code or (before.group() in ("1", "001") and sign not in (".", "-", "/"))
    return not is_code


def _dates(folded: str) -> Iterator[tuple[re.Match[str], str]]:
    """Yields the dates of a folded text, each with its day.

    Numbers alone are a day only where one of the orders is impossible; the others are compared as
    they are written.
    """
    for match in _ISO_DATE.finditer(folded):
        yield from _valid(match, match[1], match[2], match[3])
    for match in _DAY_FIRST.finditer(folded):
        yield from _valid(match, match[3], str(_MONTHS.index(match[2][:3]) + 1), match[1])
    for match in _MONTH_FIRST.finditer(folded):
        yield from _valid(match, match[3], str(_MONTHS.index(match[1][:3]) + 1), match[2])
    for match in _NUMERIC_DATE.finditer(folded):
        first, second, year = int(match[1]), int(match[3]), match[4]
        if match[2] == "." or first > 12:
            yield from _valid(match, year, match[3], match[1])
        elif second > 12:
            yield from _valid(match, year, match[1], match[3])
        elif first and second:
            yield match, f"{first}/{second}/{year}"


def _valid(
    match: re.Match[str], year: str, month: str, day: str
) -> Iterator[tuple[re.Match[str], str]]:
    """Yields a day if there is such a month and day."""
    if 1 <= int(month) <= 12 and 1 <= int(day) <= 31:
        yield match, f"{year}-{int(month):02d}-{int(day):02d}"


def _blank(text: str, match: re.Match[str]) -> str:
    """Returns a text with a part replaced by a sign that no number goes across."""
    return text[: match.start()] + "|" * (match.end() - match.start()) + text[match.end() :]
