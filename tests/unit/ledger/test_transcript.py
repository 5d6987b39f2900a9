"""The transcript: a fixed size, one encoding, and an error for whatever is not a symbol."""

from __future__ import annotations

import dataclasses
import json
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

from helpers_transcripts import as_tuples, draw_symbols, make_header, write_stepwise
from sordino.core.errors import LedgerError
from sordino.ledger.transcript import (
    ENCODINGS,
    MAGIC,
    StepSymbols,
    TranscriptHeader,
    decode_steps,
    encode_step,
    num_payload_bits,
    read_transcript,
)

if TYPE_CHECKING:
    from pathlib import Path

WITH_SYMBOLS = tuple(encoding for encoding in ENCODINGS if encoding != "none")


def write(path: Path, content: bytes) -> Path:
    """Returns the path of a new file of these bytes."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


def raw_header(fields: object) -> bytes:
    """Returns a header of any JSON value, in the canonical form."""
    payload = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return MAGIC + struct.pack("<I", len(payload)) + payload


@pytest.mark.parametrize(
    ("encoding", "num_steps", "directions", "num_bytes"),
    [
        ("bit", 1000, 1, 125),  # the sentence in the README
        ("bit", 1, 1, 1),
        ("bit", 3, 3, 2),
        ("bit", 6, 4096, 3072),
        ("trit", 1000, 1, 250),
        ("trit", 3, 3, 3),
        ("value", 10, 3, 200),
    ],
)
def test_size_of_the_symbols(
    tmp_path: Path, encoding: str, num_steps: int, directions: int, num_bytes: int
) -> None:
    """1,000 steps of one bit are 125 bytes."""
    header = make_header(encoding, num_steps, directions)
    assert -(-num_payload_bits(header, num_steps) // 8) == num_bytes
    content = write_stepwise(header, draw_symbols(header, 0))
    assert len(content) == len(header.to_bytes()) + num_bytes
    read_transcript(write(tmp_path / "transcript.bin", content))


def test_layout_of_bits() -> None:
    """The first release is the lowest bit; 1 is +1."""
    header = make_header("bit", 3, 3)
    steps = [StepSymbols(np.array(row)) for row in ([1, 1, -1], [-1, -1, 1], [-1, 1, 1])]
    payload = write_stepwise(header, steps)[len(header.to_bytes()) :]
    assert payload == bytes([0b10100011, 0b1])


def test_layout_of_trits() -> None:
    """0 is "nothing moved", 1 is +1, 2 is -1; the first release has the lowest bits."""
    header = make_header("trit", 1, 4)
    payload = write_stepwise(header, [StepSymbols(np.array([0, 1, -1, 1]))])
    assert payload[len(header.to_bytes()) :] == bytes([0b01_10_01_00])


def test_layout_of_values() -> None:
    """A float64 unit, then one int32 a release, all little-endian."""
    header = make_header("value", 1, 2)
    symbols = StepSymbols(np.array([-1, 2**31 - 1], dtype=np.int32), 0.375)
    payload = write_stepwise(header, [symbols])[len(header.to_bytes()) :]
    assert payload == struct.pack("<dii", 0.375, -1, 2**31 - 1)


def test_layout_of_the_header() -> None:
    """Magic, length, canonical JSON: nothing else is needed to replay."""
    header = make_header("bit", 2, 1)
    raw = header.to_bytes()
    assert raw[:8] == b"SORDINO1"
    assert struct.unpack_from("<I", raw, 8)[0] == len(raw) - 12
    fields = json.loads(raw[12:])
    assert fields == json.loads(json.dumps(dataclasses.asdict(header)))
    assert TranscriptHeader.from_bytes(raw + b"symbols", "here") == (header, len(raw))


def test_a_run_on_gradients_keeps_no_symbols(tmp_path: Path) -> None:
    """The header is there; every byte behind it is one too many."""
    header = make_header("none", 5, 1)
    path = tmp_path / "transcript.bin"
    assert read_transcript(write(path, header.to_bytes())) == (header, [])
    assert encode_step(header, 3, StepSymbols(np.array([1])), 0)[0] == 0
    with pytest.raises(LedgerError, match="take 0 bytes after the header, found 1"):
        read_transcript(write(path, header.to_bytes() + b"\0"))
    with pytest.raises(LedgerError, match="left over"):
        decode_steps(header, b"\0", 2, "here")


@pytest.mark.parametrize("encoding", WITH_SYMBOLS)
def test_a_step_only_adds_bits(encoding: str) -> None:
    """Writing a step leaves every earlier symbol as it was."""
    header = make_header(encoding, 9, 3)
    steps = draw_symbols(header, 1)
    whole = write_stepwise(header, steps)[len(header.to_bytes()) :]
    for done in range(1, 10):
        part = write_stepwise(header, steps[:done])[len(header.to_bytes()) :]
        assert as_tuples(decode_steps(header, part, done, "here")) == as_tuples(steps[:done])
        num_bits = num_payload_bits(header, done)
        assert part[: num_bits // 8] == whole[: num_bits // 8]


@pytest.mark.parametrize(
    ("encoding", "integers"),
    [("bit", [0]), ("bit", [2]), ("trit", [2]), ("trit", [-2])],
)
def test_only_symbols_are_written(encoding: str, integers: list[int]) -> None:
    """A number outside the alphabet is an error, not the nearest symbol."""
    header = make_header(encoding, 1, 1)
    with pytest.raises(LedgerError, match="holds only the symbols"):
        encode_step(header, 0, StepSymbols(np.array(integers)), 0)


@pytest.mark.parametrize(("encoding", "num_steps"), [("bit", 1), ("bit", 13), ("trit", 3)])
def test_unused_bits_must_be_zero(tmp_path: Path, encoding: str, num_steps: int) -> None:
    """Bits after the last symbol could hide a message: each of them is checked."""
    header = make_header(encoding, num_steps, 1)
    content = write_stepwise(header, draw_symbols(header, 2))
    used = num_payload_bits(header, num_steps) % 8
    for bit in range(used, 8):
        changed = content[:-1] + bytes([content[-1] | 1 << bit])
        with pytest.raises(LedgerError, match="unused bits are set"):
            read_transcript(write(tmp_path / "transcript.bin", changed))


def test_a_pair_of_set_bits_is_no_symbol(tmp_path: Path) -> None:
    """The fourth pair has no meaning and is refused."""
    header = make_header("trit", 2, 2)
    with pytest.raises(LedgerError, match="a pair of bits is not a symbol"):
        read_transcript(write(tmp_path / "t", header.to_bytes() + bytes([0b00_11_00_00])))


@pytest.mark.parametrize("encoding", WITH_SYMBOLS)
def test_missing_or_left_over_bytes_are_errors(tmp_path: Path, encoding: str) -> None:
    """Every other length than the right one is refused."""
    header = make_header(encoding, 5, 3)
    content = write_stepwise(header, draw_symbols(header, 3))
    path = tmp_path / "transcript.bin"
    for length in range(len(content)):
        with pytest.raises(LedgerError):
            read_transcript(write(path, content[:length]))
    for extra in (b"\0", b"\n", b"\0" * 100):
        with pytest.raises(LedgerError, match=r"take .* bytes after the header, found"):
            read_transcript(write(path, content + extra))


@pytest.mark.parametrize("encoding", WITH_SYMBOLS)
def test_a_partial_payload_is_refused(encoding: str) -> None:
    """A resumed run whose file lacks a step stops; missing bits are never read as -1."""
    header = make_header(encoding, 20, 1)
    steps = draw_symbols(header, 4)
    payload = write_stepwise(header, steps[:8])[len(header.to_bytes()) :]
    with pytest.raises(LedgerError, match="are missing"):
        decode_steps(header, payload, 9, "here")
    with pytest.raises(LedgerError, match=r"left over|unused bits"):
        decode_steps(header, payload + b"\x01", 8, "here")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"SORDINO",
        b"SORDINO2" + b"\0" * 20,
        MAGIC,
        MAGIC + b"\xff\xff\xff\xff",
        MAGIC + b"\xff\xff\xff\xff{}",
        raw_header([]),
        raw_header(None),
        raw_header({}),
        raw_header({"learning_rates": [], "tensors": []}),
        MAGIC + struct.pack("<I", 100_000) + b"[" * 100_000,
        MAGIC + struct.pack("<I", 4) + b"\xff\xfe\xfd\xfc",
    ],
)
def test_what_is_no_header_is_refused(raw: bytes) -> None:
    """Whatever stands at the start of the file, the error is the same one."""
    with pytest.raises(LedgerError, match="here: not a readable transcript"):
        TranscriptHeader.from_bytes(raw, "here")


@pytest.mark.parametrize(
    "change",
    [
        {"encoding": "byte"},
        {"encoding": None},
        {"directions_per_step": 0},
        {"directions_per_step": 1.0},
        {"directions_per_step": "1"},
        {"num_steps": -1, "learning_rates": []},
        {"num_steps": True},
        {"num_steps": 3},  # learning rates are for two steps
        {"learning_rates": [0.1]},
        {"learning_rates": None},
        {"tensors": [["a", [1]]]},
        {"more": 1},
    ],
)
def test_a_header_must_make_sense(change: dict[str, object]) -> None:
    """A header in canonical form whose settings contradict each other is refused too."""
    fields = json.loads(make_header("bit", 2, 1).to_bytes()[12:])
    assert TranscriptHeader.from_bytes(raw_header(fields), "here")
    with pytest.raises(LedgerError, match="here: not a readable transcript"):
        TranscriptHeader.from_bytes(raw_header(fields | change), "here")


def test_a_header_has_one_encoding() -> None:
    """The same settings in other words are another file, and are refused."""
    fields = json.loads(make_header("bit", 2, 1).to_bytes()[12:])
    payload = json.dumps(fields, sort_keys=True).encode()
    with pytest.raises(LedgerError, match="not in canonical form"):
        TranscriptHeader.from_bytes(MAGIC + struct.pack("<I", len(payload)) + payload, "here")


def test_a_missing_field_is_an_error() -> None:
    """No field has a default: a replay must not guess."""
    fields = json.loads(make_header("bit", 2, 1).to_bytes()[12:])
    for name in fields:
        part = {key: value for key, value in fields.items() if key != name}
        with pytest.raises(LedgerError, match="not a readable transcript"):
            TranscriptHeader.from_bytes(raw_header(part), "here")
