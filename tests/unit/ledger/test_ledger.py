"""The ledger: every change is seen, every charge is exact, nothing is skipped."""

from __future__ import annotations

import hashlib
import json
import math
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest

from sordino.core.errors import BudgetExceededError, InvalidParameterError, LedgerError
from sordino.ledger.ledger import GENESIS, Ledger, canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BUDGET = 0.25
EVENTS = [
    {"kind": "open", "mutual_information_budget_nats": BUDGET, "note": "ünïcode \x00 \n"},
    {"kind": "release", "step": 0, "mutual_information_nats": 0.0625},
    {"kind": "release", "step": 1, "mutual_information_nats": 1e-300},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small ledger on disk."""
    ledger = Ledger.open(tmp_path / "ledger.jsonl")
    for event in EVENTS:
        ledger.append(event)
    return ledger.path


def seal(index: int, previous: str, event: object) -> tuple[bytes, str]:
    """Returns a line whose hash is right, whatever it says, and the hash."""
    body = {"index": index, "previous": previous, "event": event}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    head = hashlib.sha256(text.encode()).hexdigest()
    line = json.dumps({**body, "hash": head}, sort_keys=True, separators=(",", ":"))
    return line.encode() + b"\n", head


def refused(path: Path, content: bytes) -> bool:
    """Returns whether a ledger of these bytes is refused with the right error."""
    path.unlink(missing_ok=True)  # rewriting in place would wait for the disk each time
    path.write_bytes(content)
    try:
        Ledger.open(path)
    except LedgerError:
        return True
    return False


def test_what_is_written_is_read_back(path: Path) -> None:
    """Events, head and size survive; the format is canonical JSON, one object a line."""
    ledger = Ledger.open(path)
    assert ledger.events == EVENTS
    assert ledger.size == path.stat().st_size
    head, lines = GENESIS, b""
    for index, event in enumerate(EVENTS):
        line, head = seal(index, head, event)
        lines += line
    assert path.read_bytes() == lines
    assert ledger.head == head


def test_every_append_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    """After each append another reader sees the whole chain."""
    ledger = Ledger.open(tmp_path / "ledger.jsonl")
    for number, event in enumerate(EVENTS, start=1):
        ledger.append(event)
        other = Ledger.open(ledger.path)
        assert len(other.events) == number
        assert (other.head, other.size) == (ledger.head, ledger.size)


def test_a_missing_file_is_an_empty_ledger(tmp_path: Path) -> None:
    """Opening writes nothing."""
    ledger = Ledger.open(str(tmp_path / "none.jsonl"))
    assert (ledger.events, ledger.head, ledger.mutual_information_spent) == ([], GENESIS, 0)
    assert not ledger.path.exists()


def test_every_changed_byte_is_seen(path: Path) -> None:
    """Each byte, with each of its bits flipped, all flipped, or made a line end or a blank."""
    raw = path.read_bytes()
    for place, byte in enumerate(raw):
        values = {byte ^ mask for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255)} | {10, 13, 32, 0}
        for value in values - {byte}:
            assert refused(path, raw[:place] + bytes([value]) + raw[place + 1 :]), (place, value)


def test_every_dropped_or_inserted_byte_is_seen(path: Path) -> None:
    """One byte less, or one more, anywhere."""
    raw = path.read_bytes()
    for place in range(len(raw)):
        assert refused(path, raw[:place] + raw[place + 1 :]), place
        for extra in (b"\n", b" ", b"0"):
            assert refused(path, raw[:place] + extra + raw[place:]), (place, extra)


def test_every_cut_off_end_is_seen(path: Path) -> None:
    """Every length that is not the end of a line raises; whole lines are the certificate's part."""
    raw = path.read_bytes()
    ends = {place + 1 for place, byte in enumerate(raw) if byte == 10} | {0}
    for length in range(len(raw)):
        assert refused(path, raw[:length]) is (length not in ends), length


def test_dropping_inserting_or_reordering_lines_is_seen(path: Path) -> None:
    """The chain holds every line in its place."""
    first, second, third = path.read_bytes().splitlines(keepends=True)
    for lines in (
        [second, third],
        [first, third],
        [first, third, second],
        [second, first, third],
        [first, first, second, third],
        [first, second, second, third],
        [first, second, third, third],
        [first, b"\n", second, third],
        [b"\n", first, second, third],
        [first, second, third, b"\n"],
    ):
        assert refused(path, b"".join(lines))


def test_a_line_of_another_run_is_seen(path: Path, tmp_path: Path) -> None:
    """A well-formed line from another chain does not continue this one."""
    other = Ledger.open(tmp_path / "other.jsonl")
    other.append({**EVENTS[0], "note": "another run"})
    foreign = other.prepare(EVENTS[1])
    first = path.read_bytes().splitlines(keepends=True)[0]
    assert refused(path, first + foreign)


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\n",
        b"[]\n",
        b"null\n",
        b"{}\n",
        b"not json\n",
        b"[" * 100_000 + b"\n",
        b'{"event":{},"hash":"","index":0,"previous":"","more":1}\n',
        '{"é":1}\n'.encode("latin-1"),
        '{"event":{}}\n'.encode("utf-16"),
    ],
    ids=["utf8", "list", "null", "empty", "words", "deep", "fields", "latin", "utf16"],
)
def test_unreadable_lines_are_errors(path: Path, line: bytes) -> None:
    """An unreadable line is never skipped: it would be a forgotten charge (defect 4)."""
    raw = path.read_bytes()
    assert refused(path, raw + line)
    assert refused(path, line + raw)
    assert refused(path, line)


def test_the_same_event_in_other_words_is_refused(tmp_path: Path) -> None:
    """There is one encoding: a blank, another key order or an escaped letter is a change."""
    line, _ = seal(0, GENESIS, {"kind": "open"})
    entry = json.loads(line)
    path = tmp_path / "ledger.jsonl"
    assert not refused(path, line)
    assert refused(path, json.dumps(entry, sort_keys=True).encode() + b"\n")
    backwards = dict(reversed(entry.items()))
    assert refused(path, json.dumps(backwards, separators=(",", ":")).encode() + b"\n")
    assert refused(path, line.replace(b'"kind"', b'"\\u006bind"'))
    assert refused(path, line.replace(b"{", b'{"index":0,', 1))  # a key twice


@pytest.mark.parametrize("event", [None, [], "release", 0.5])
def test_an_event_is_an_object(tmp_path: Path, event: object) -> None:
    """A line with a right hash and no event in it is refused."""
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(seal(0, GENESIS, event)[0])
    with pytest.raises(LedgerError, match="line 1: its event must be an object"):
        Ledger.open(path)


@pytest.mark.parametrize("charge", [-1e-300, -1, True, False, "0.1", [0.1], {}, 10**400])
def test_a_sealed_charge_must_be_a_number(tmp_path: Path, charge: object) -> None:
    """A charge that cannot be added up is refused even under a right hash."""
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(seal(0, GENESIS, {"mutual_information_nats": charge})[0])
    with pytest.raises(LedgerError, match="line 1: a charge must be a finite number of nats"):
        Ledger.open(path)


@pytest.mark.parametrize("charge", [math.nan, math.inf, -math.inf])
def test_a_sealed_charge_is_json(tmp_path: Path, charge: float) -> None:
    """NaN and Infinity are not JSON; Python's reader would take them."""
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(seal(0, GENESIS, {"mutual_information_nats": charge})[0])
    with pytest.raises(LedgerError, match="line 1: not readable as JSON"):
        Ledger.open(path)
    path.write_bytes(seal(0, GENESIS, {"x": 1})[0].replace(b'"x":1', b'"x":1e999'))
    with pytest.raises(LedgerError, match="line 1: not readable as JSON"):
        Ledger.open(path)


@pytest.mark.parametrize("charge", [math.nan, math.inf, -math.inf, -5e-324, True, "0.1", 10**400])
def test_no_charge_is_made_that_is_not_a_number(path: Path, charge: object) -> None:
    """A NaN charge raises and leaves the file as it was."""
    raw = path.read_bytes()
    ledger = Ledger.open(path)
    with pytest.raises(InvalidParameterError, match="mutual_information_nats must be at least 0"):
        ledger.append({"kind": "release", "mutual_information_nats": charge})
    assert path.read_bytes() == raw
    assert ledger.events == EVENTS


def test_no_event_with_nan_is_written(path: Path) -> None:
    """NaN anywhere in an event is refused before anything is written."""
    raw = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        Ledger.open(path).append({"kind": "release", "figure": math.nan})
    assert path.read_bytes() == raw


def spend(tmp_path: Path, budget: float, charges: list[float]) -> Ledger:
    """Returns a ledger that was charged in turn."""
    ledger = Ledger.open(tmp_path / "ledger.jsonl")
    ledger.append({"kind": "open", "mutual_information_budget_nats": budget})
    for charge in charges:
        ledger.append({"kind": "release", "mutual_information_nats": charge})
    return ledger


@pytest.mark.parametrize(
    ("budget", "spent", "last"),
    [
        (0.25, [0.125], 0.125),
        (0.1 + 0.2, [0.1], 0.2),  # the exact sum is below the rounded one
        (0.0, [], 0.0),
        (1e-12, [1e-12 - 2.0**-60], 2.0**-60),
        (1.0, [1.0 - 2.0**-53], 2.0**-53),
    ],
)
def test_the_budget_is_exact_at_its_end(
    tmp_path: Path, budget: float, spent: list[float], last: float
) -> None:
    """What fills the budget to the last bit fits; the smallest float beyond does not."""
    ledger = spend(tmp_path, budget, [*spent, last])
    room = Fraction(budget) - ledger.mutual_information_spent
    assert room >= 0
    raw = ledger.path.read_bytes()
    beyond = math.nextafter(float(room), math.inf)
    with pytest.raises(BudgetExceededError, match=r"a charge of .* does not fit: .* are spent"):
        ledger.append({"kind": "release", "mutual_information_nats": beyond})
    assert ledger.path.read_bytes() == raw
    ledger.append({"kind": "release", "mutual_information_nats": 0.0})  # free ones always fit


def test_a_sum_that_rounds_into_the_budget_is_refused(tmp_path: Path) -> None:
    """In floats 0.75 + 2**-54 is 0.75: ten thousand such charges would be free."""
    ledger = spend(tmp_path, 0.75, [0.75])
    with pytest.raises(BudgetExceededError, match=r"Nothing was released"):
        ledger.append({"kind": "release", "mutual_information_nats": 2.0**-54})
    assert ledger.mutual_information_spent == Fraction(3, 4)


def test_one_tenth_and_two_tenths_exceed_three_tenths(tmp_path: Path) -> None:
    """The doubles 0.1 and 0.2 add up to more than the double 0.3, and that is noticed."""
    ledger = spend(tmp_path, 0.3, [0.1])
    with pytest.raises(BudgetExceededError):
        ledger.append({"kind": "release", "mutual_information_nats": 0.2})
    ledger.append({"kind": "release", "mutual_information_nats": math.nextafter(0.2, 0.0)})


def test_the_budget_survives_reopening(tmp_path: Path) -> None:
    """What was spent before a restart stays spent."""
    spend(tmp_path, 0.5, [0.25, 0.125])
    ledger = Ledger.open(tmp_path / "ledger.jsonl")
    assert ledger.mutual_information_spent == Fraction(3, 8)
    with pytest.raises(BudgetExceededError):
        ledger.append({"kind": "release", "mutual_information_nats": 0.25})
    ledger.append({"kind": "release", "mutual_information_nats": 0.125})


def test_spent_is_the_exact_sum(tmp_path: Path) -> None:
    """A thousand charges of 1e-20 on top of 0.5 are not lost to rounding."""
    ledger = spend(tmp_path, 0.6, [0.5, *[1e-20] * 100])
    assert ledger.mutual_information_spent == Fraction(1, 2) + 100 * Fraction(1e-20)


@pytest.mark.parametrize("opening", [{"kind": "open"}, {"kind": "other"}])
def test_without_a_declared_budget_charges_are_recorded(
    tmp_path: Path, opening: Mapping[str, object]
) -> None:
    """The ledger enforces a declared budget only; compute_certificate asks for one."""
    ledger = Ledger.open(tmp_path / "ledger.jsonl")
    ledger.append(opening)
    ledger.append({"kind": "release", "mutual_information_nats": 5.0})
    ledger.append({"kind": "note", "mutual_information_nats": None})
    assert ledger.mutual_information_spent == 5


def test_preparing_a_line_changes_nothing(path: Path) -> None:
    """A prepared line is only bytes until it is appended, and it is then those bytes."""
    ledger = Ledger.open(path)
    raw = path.read_bytes()
    line = ledger.prepare(EVENTS[1])
    assert path.read_bytes() == raw
    assert ledger.events == EVENTS
    ledger.append_line(line)
    assert path.read_bytes() == raw + line


def test_a_prepared_line_fits_one_place_only(path: Path) -> None:
    """A line that was prepared before another was appended is refused, and is not written."""
    ledger = Ledger.open(path)
    line = ledger.prepare(EVENTS[1])
    ledger.append(EVENTS[2])
    raw = path.read_bytes()
    with pytest.raises(LedgerError, match="does not continue the chain"):
        ledger.append_line(line)
    assert path.read_bytes() == raw


def test_two_handles_never_overwrite_each_other(path: Path) -> None:
    """Defect: the second wrote where it remembered the end, over what the first had charged."""
    first, second = Ledger.open(path), Ledger.open(path)
    first.append(EVENTS[1])
    raw = path.read_bytes()
    with pytest.raises(LedgerError, match=r"no longer what was read here .* open it again"):
        second.append(EVENTS[2])
    assert path.read_bytes() == raw
    assert second.events == EVENTS
    again = Ledger.open(path)
    again.append(EVENTS[2])
    assert Ledger.open(path).events == [*EVENTS, EVENTS[1], EVENTS[2]]


def test_a_file_that_was_changed_is_not_appended_to(path: Path, tmp_path: Path) -> None:
    """Gone, cut off, torn, or replaced by another chain of the same length."""
    raw = path.read_bytes()
    lines = raw.splitlines(keepends=True)
    line, _ = seal(2, json.loads(lines[1])["hash"], EVENTS[2] | {"step": 2})
    for content in (None, b"", lines[0], raw[:-1], raw + b"{", b"".join([*lines[:2], line])):
        path.write_bytes(raw)
        ledger = Ledger.open(path)
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(LedgerError, match="Nothing was written"):
            ledger.append(EVENTS[1])
        assert (path.read_bytes() if path.exists() else None) == content
    new = Ledger.open(tmp_path / "new.jsonl")
    Ledger.open(new.path).append(EVENTS[0])
    with pytest.raises(LedgerError, match="Nothing was written"):
        new.append(EVENTS[0])


def test_a_handle_whose_write_failed_appends_nothing_more(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on disk is not known then, whether nothing, a part or all of the line is there."""
    raw = path.read_bytes()

    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    ledger = Ledger.open(path)
    with monkeypatch.context() as patch:
        patch.setattr("sordino.ledger.ledger.write_at", fail)
        with pytest.raises(OSError, match="No space"):
            ledger.append(EVENTS[1])
    with pytest.raises(LedgerError, match="Nothing was written"):
        ledger.append(EVENTS[1])
    assert path.read_bytes() == raw


def test_events_are_found_by_kind(path: Path) -> None:
    """In the order in which they happened."""
    ledger = Ledger.open(path)
    assert [event["step"] for event in ledger.of_kind("release")] == [0, 1]
    assert ledger.of_kind("close") == []


def test_canonical_json_is_one_encoding() -> None:
    """Sorted, without blanks, ASCII; NaN is refused."""
    assert canonical_json({"b": [1, 0.5], "a": "é"}) == b'{"a":"\\u00e9","b":[1,0.5]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json([math.inf])
