"""Numbers in a text, in digits or in English words, whatever separates their groups."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_TEENS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_UNITS = {word: number for number, word in enumerate(_TEENS)}
_TENS = {
    word: 10 * number
    for number, word in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], start=2
    )
}
_SCALES = {"thousand": 1_000, "million": 1_000_000}
_WORDS = {*_UNITS, *_TENS, *_SCALES, "hundred"}
_CURRENCY = r"(?:usd|eur|gbp|chf|us\$|\$|€|£)"
# what may touch a number without making it a part of another word
_AFTER = (
    r"(?:usd|eur|gbp|chf|yo|y/o|yrs?|years?|h|hrs?|hours?|pa|per|annually|dollars?|euros?|a|each)"
)
_GROUPED = r"(?:\d{1,2}(?:,\d\d)+,\d{3}|\d{1,3}(?:[ ,.'_]\d{3})+)"  # 1,31,207 in India
_DIGITS = re.compile(
    rf"(?<![^\W_])(?P<currency>{_CURRENCY})?\s?(?<![\d][.,:])(?P<minus>(?<!\S)-)?"
    rf"(?P<number>(?:{_GROUPED}|\d+)(?:[.,]\d+)?)(?P<exponent>e\+?\d{{1,2}})?"
    r"(?:(?P<scale> ?(?:k|m|thousand|million))(?![^\W_])"
    r"(?P<rest>(?<=[kd]) (?:and )?\d{1,3}(?![\d.,]))?)?"  # "52 thousand and 300"
    rf"(?:{_AFTER})?(?![^\W_])(?![.,:]\d)(?! ?%)"
)
_SPACED = re.compile(  # "4 2", "5-2-3-0-0"; "4.2" and "4-2" are something else
    r"(?<![^\W_])(?<!\d[.,])(?:\d(?:[ .\-_*,]{1,2}\d){2,14}|\d[ _*]{1,2}\d)(?![^\W_])(?![ .,]\d)"
)
_CHAINED = re.compile(r"\d+(?:[-./:]\d+){2,}|\d+:\d+")  # dates, versions, telephone numbers, times
_LIST = re.compile(r"\d+(?:\.\d+)?(?:[,/:]\d+(?:\.\d+)?)+")  # rows of a table, "id:value"
_DATE = re.compile(r"\d{1,2}/\d{1,2}/(?:\d\d|\d{4})|\d{4}/\d{1,2}/\d{1,2}")
_TIME = re.compile(r"(?:[01]?\d|2[0-4]):[0-5]\d(?::[0-5]\d)?")
_ONE_NUMBER = re.compile(rf"{_GROUPED}(?:\.\d+)?")
_WORD = re.compile(r"[^\W\d_]+")
_ENDED = re.compile(rf"(?:{_AFTER})?(?![^\W_])(?!\.\d)(?! ?%)")
_APPROXIMATE = re.compile(
    r"(?:about|around|roughly|approximately|approx\.?|circa|ca\.|almost|nearly|close to|"
    r"just (?:under|over|below|above)|a (?:little|bit) (?:under|over|less than|more than)|~|≈)"
    r"\s*(?:usd|eur|gbp|\$|€|£)?\s*$"
)
_NUM_SIGNS_BEFORE = 40  # where a word that makes a number approximate is looked for
_LONGEST_GAP = 12  # between the ends of a range
_RANGE = re.compile(r"\s*(?:-|to|and|\.\.\.?)\s*(?:usd|eur|gbp|\$|€|£)?\s*")


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a text.

    Args:
        start: Where it begins.
        stop: Where it ends.
        readings: What it may mean: "52.300" is 52300, or 52.3.
        is_rounded: Whether it is said to be approximate, or given in thousands.
    """

    start: int
    stop: int
    readings: frozenset[float]
    is_rounded: bool = False


def parse_number(text: str) -> float | None:
    """Returns the number that a folded text is as a whole, None if it is anything else.

    Example:
        >>> parse_number("$52,300"), parse_number("e482")
        (52300.0, None)
    """
    match = _DIGITS.fullmatch(text.strip())
    if match is None or _CHAINED.fullmatch(text.strip()):
        return None
    return max(_readings(match))


def find_numbers(folded: str) -> list[Number]:
    """Returns the numbers of a folded text; those of one place may overlap."""
    is_chained = bytearray(len(folded) + 1)
    for match in _CHAINED.finditer(folded):
        is_chained[match.start() : match.end()] = b"\1" * (match.end() - match.start())
    found = []
    for match in _DIGITS.finditer(folded):
        start = match.start("number")
        if not is_chained[start]:
            is_rounded = bool(match["scale"]) or _is_approximate(folded, match.start())
            found.append(Number(start, match.end(), frozenset(_readings(match)), is_rounded))
    found.extend(
        Number(match.start(), match.end(), frozenset({float(re.sub(r"\D", "", match[0]))}))
        for match in _SPACED.finditer(folded)
    )
    found.extend(_members(folded))
    found.extend(_spelled(folded))
    return sorted(found, key=lambda number: (number.start, number.stop))


def find_ranges(folded: str, numbers: list[Number]) -> list[tuple[float, float]]:
    """Returns the ranges that two neighboring numbers make."""
    ranges = []
    starts = [number.start for number in numbers]
    for first in numbers:
        nearest = bisect_left(starts, first.stop)
        furthest = bisect_left(starts, first.stop + _LONGEST_GAP)
        for second in numbers[nearest:furthest]:
            if _RANGE.fullmatch(folded, first.stop, second.start):
                low, high = max(first.readings), max(second.readings)
                if low < 1000 <= high and low * 1000 <= high:  # "50-55k"
                    low *= 1000
                if low < high:
                    ranges.append((low, high))
    return ranges


def _members(folded: str) -> Iterator[Number]:
    """Yields the numbers of lists without spaces, such as "42,38,52347"; not of dates and times."""
    for chain in _LIST.finditer(folded):
        start, stop = chain.span()
        before, after = folded[max(0, start - 2) : start], folded[stop:]
        is_free = not re.search(r"[^\W_]$|\.$|\d-$", before)
        if _DATE.fullmatch(chain[0]) or (
            _TIME.fullmatch(chain[0]) and (is_free or re.search(r"\dt$", before))
        ):
            continue
        for piece in re.finditer(r"[^/:]+", chain[0]):
            is_one = _ONE_NUMBER.fullmatch(piece[0]) is not None
            for token in re.finditer(r".+" if is_one else r"[^,]+", piece[0]):
                left = start + piece.start() + token.start()
                right = left + len(token[0])
                is_first, is_last = left == start, right == stop
                if (is_first and not is_free) or (is_last and not _ENDED.match(after)):
                    continue  # a part of a word, or of a longer number
                match = _DIGITS.fullmatch(token[0])
                if match is not None:
                    yield Number(left, right, frozenset(_readings(match)))


def _is_approximate(folded: str, start: int) -> bool:
    """Returns whether a number is called approximate by what stands before it."""
    return bool(_APPROXIMATE.search(folded[max(0, start - _NUM_SIGNS_BEFORE) : start]))


def _readings(match: re.Match[str]) -> set[float]:
    """Returns what the digits of one match may mean."""
    number = match["number"]
    scale = {"k": 1e3, "thousand": 1e3, "m": 1e6, "million": 1e6}.get(
        (match["scale"] or "").strip()
    )
    factor = scale or 1.0
    factor *= 10.0 ** int(match["exponent"][1:]) if match["exponent"] else 1.0
    factor *= -1.0 if match["minus"] else 1.0
    texts = set()
    last = max(number.rfind("."), number.rfind(","))
    decimals = len(number) - last - 1
    if last < 0:
        texts.add(re.sub(r"\D", "", number))
    else:
        whole = re.sub(r"\D", "", number[:last]) or "0"
        is_group = decimals == 3 and re.fullmatch(_GROUPED, number) is not None
        if is_group and factor == 1.0:
            texts.add(whole + number[last + 1 :])
        if not is_group or (int(number[last + 1 :]) and len(whole) <= 3):
            texts.add(f"{whole}.{number[last + 1 :]}")
    extra = 0.0
    if match["rest"] and scale == 1e3:
        extra = float(re.sub(r"\D", "", match["rest"]))
    return {round(float(text) * factor + extra, 6) for text in texts}


def _spelled(folded: str) -> Iterator[Number]:
    """Yields runs of number words: "fifty-two thousand three hundred", "five two three"."""
    run: list[re.Match[str]] = []
    for word in [*_WORD.finditer(folded), None]:
        is_next = word is not None and (
            not run or re.fullmatch(r"[\s,\-]{1,3}", folded[run[-1].end() : word.start()])
        )
        if word is not None and is_next and (word[0] in _WORDS or (run and word[0] == "and")):
            run.append(word)
            continue
        while run and run[-1][0] == "and":
            run.pop()
        if run:
            values = _spelled_values([entry[0] for entry in run])
            if values:
                is_rounded = _is_approximate(folded, run[0].start())
                yield Number(run[0].start(), run[-1].end(), frozenset(values), is_rounded)
        run = [word] if word is not None and word[0] in _WORDS else []


def _spelled_values(words: list[str]) -> set[float]:
    """Returns what number words may mean; a run of digits is read one by one too."""
    values: set[float] = set()
    digits = [_UNITS.get(word, 10) for word in words]
    if len(words) > 1 and all(digit < 10 for digit in digits):
        return {float("".join(map(str, digits)))}
    total = group = 0.0
    for word in words:
        if word in _SCALES:
            total += (group or 1.0) * _SCALES[word]
            group = 0.0
        elif word == "hundred":
            group = (group or 1.0) * 100
        else:
            group += _UNITS.get(word, _TENS.get(word, 0))
    values.add(total + group)
    return values
