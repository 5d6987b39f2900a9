"""Spellings that are one string, strings that are found, and accidents that are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.attacks.pii_strings import StringFinder, detect, string_key


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("phone", "(415) 113-4821", "415.113.4821"),
        ("phone", "+1 415 113 4821", "4151134821"),
        ("phone", "+44 20 7946 0018", "+442079460018"),
        ("account", "ZZ93 HXKW 8778 4080 1609 75", "zz93hxkw87784080160975"),
        ("email", "Ann.Oak@Example.com", "ann.oak@example.com"),
        ("date", "7 March 1984", "1984-03-07"),
        ("date", "7th of March 1984", "Mar. 7, 1984"),
        ("date", "27/03/1984", "03/27/1984"),
        ("date", "03/07/1984", "3/7/1984"),
        ("date", "07.03.1984", "7 mar 1984"),
        ("name", "Ann  OAK", "ann oak"),
        ("employer", "Wyatt-Yu, Ltd.", "wyatt yu ltd"),
        ("own", "4111 1111 1111 1111", "4111-1111-1111-1111"),
        ("own", "ＡＢＣ 12", "abc 12"),  # full width
    ],
)
def test_one_string(kind: str, one: str, other: str) -> None:
    assert string_key(kind, one) == string_key(kind, other)
    assert StringFinder([string_key(kind, one)]).find(f"It is {other}, they say.")


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("date", "03/07/1984", "1984-03-07"),  # either order is possible
        ("name", "Ann Oak", "Annoak"),
        ("email", "ann@example.com", "ann@example.org"),
        ("own", "in to", "into"),
    ],
)
def test_two_strings(kind: str, one: str, other: str) -> None:
    assert string_key(kind, one) != string_key(kind, other)
    assert not StringFinder([string_key(kind, one)]).find(f"It is {other}, they say.")


@pytest.mark.parametrize(
    ("kind", "secret", "text"),
    [
        ("phone", "415-113-4821", "call 9415-113-4821"),
        ("phone", "415-113-4821", "call 41511348219"),
        ("phone", "415-113-4821", "card 4111-415-113-4821"),
        ("phone", "415-113-4821", "card 415-113-4821-77"),
        ("phone", "415-113-4821", "415 or 113 or 4821"),
        ("account", "ZZ93HXKW87784080160975", "XZZ93HXKW87784080160975"),
        ("email", "ann@example.com", "joann@example.com"),
        ("email", "ann@example.com", "jo.ann@example.com"),
        ("own", "ann@example.com", "jo.ann@example.com"),
        ("email", "ann@example.com", "ann@example.com.au"),
        ("date", "7 March 1984", "17 March 1984"),
        ("date", "1984-03-07", "1984-03-071"),
        ("name", "Ann Oak", "Joann Oak"),
        ("name", "Ann Oak", "Ann Oaks"),
        ("own", "port", "transport important ports"),
    ],
)
def test_no_accidents_inside_longer_strings(kind: str, secret: str, text: str) -> None:
    assert not StringFinder([string_key(kind, secret)]).find(text)


@pytest.mark.parametrize(
    ("kind", "secret", "text"),
    [
        ("phone", "415-113-4821", "12 4151134821 64686"),
        ("phone", "415-113-4821", "tel.+1-415-113-4821."),
        ("phone", "415-113-4821", "1-415-113-4821"),
        ("phone", "415-113-4821", "(415)113-4821, 7 March 1984"),
        ("email", "ann@example.com", "<ANN@example.com>."),
        ("account", "ZZ93HXKW87784080160975", "ZZ93 HXKW 8778 4080 1609 75 paid"),
        ("date", "7 March 1984", "born March 7, 1984."),
        ("address", "12 Oak Street, Elm 33123", "12 oak street\nelm 33123"),
        ("own", "王伟", "他叫王伟吗"),
    ],
)
def test_found(kind: str, secret: str, text: str) -> None:
    key = string_key(kind, secret)
    other = string_key("name", "Nobody Else")
    assert StringFinder([other, key]).find(text) == {key}


TEXT = (
    "Mail ann.oak@example.com or BOB@example.org. Call (415) 113-4821 or +44 20 7946 0018 on "
    "2024-05-06 or 7 March 1984; account ZZ93HXKW87784080160975 paid. Room 12, 33123."
)


def test_detection() -> None:
    """What each pattern sees in one text; numbers that are dates or accounts are not phones."""
    found = {kind: [one.text for one in detect(kind, TEXT)] for kind in KINDS}
    assert found == {
        "email": ["ann.oak@example.com", "BOB@example.org"],
        "phone": ["(415) 113-4821", "+44 20 7946 0018"],
        "date": ["2024-05-06", "7 March 1984"],
        "account": ["ZZ93HXKW87784080160975"],
        "name": [],
    }


KINDS = ("email", "phone", "date", "account", "name")


def test_impossible_days_are_no_dates() -> None:
    assert detect("date", "1984-13-07, 41 March 1984, 00.01.1984, 13/13/1984") == []


@pytest.mark.parametrize("kind", ["email", "phone", "date", "account"])
def test_detected_strings_have_the_key_that_finds_them(kind: str) -> None:
    for one in detect(kind, TEXT):
        assert one.key in StringFinder([one.key]).find(TEXT)


WORDS = st.text(alphabet="abcXYZ019 .-é王", min_size=3, max_size=12).filter(
    lambda text: any(sign.isalnum() for sign in text)
)


@given(secret=WORDS, kind=st.sampled_from([*KINDS, "own"]))
def test_a_string_is_found_between_spaces_whatever_it_is(secret: str, kind: str) -> None:
    """Also in other case; the empty text holds nothing."""
    key = string_key(kind, secret)
    finder = StringFinder([key])
    assert key in finder.find(f"zq {secret} zq")
    assert key in finder.find(secret.upper())
    assert finder.find("") == set()


@given(
    digits=st.text(alphabet="0123456789", min_size=7, max_size=12),
    more=st.text("0123456789", min_size=1, max_size=3),
)
def test_a_number_is_never_found_in_a_longer_one(digits: str, more: str) -> None:
    """But for the country code 1 before ten digits."""
    finder = StringFinder([string_key("phone", digits)])
    key = string_key("phone", digits)
    for longer in (digits + more, more + digits):
        if string_key("phone", longer) != key:
            assert not finder.find(f"call {longer} now")
