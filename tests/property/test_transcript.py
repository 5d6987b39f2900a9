"""Laws of the transcript: what was written is read, and no changed byte reads the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers_transcripts import as_tuples, draw_symbols, make_header, write_stepwise
from sordino.core.errors import LedgerError
from sordino.ledger.transcript import (
    ENCODINGS,
    MAGIC,
    TranscriptHeader,
    decode_steps,
    read_transcript,
)

if TYPE_CHECKING:
    from pathlib import Path

MANY = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
encodings = st.sampled_from([encoding for encoding in ENCODINGS if encoding != "none"])
seeds = st.integers(0, 2**32)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "transcript.bin"


@MANY
@given(encoding=encodings, num_steps=st.integers(0, 20), K=st.integers(1, 20), seed=seeds)
def test_round_trip(path: Path, encoding: str, num_steps: int, K: int, seed: int) -> None:
    """A file written step by step reads back as the same header and the same symbols."""
    header = make_header(encoding, num_steps, K)
    steps = draw_symbols(header, seed)
    path.unlink(missing_ok=True)
    path.write_bytes(write_stepwise(header, steps))
    found, symbols = read_transcript(path)
    assert found == header
    assert as_tuples(symbols) == as_tuples(steps)


@MANY
@given(
    seed=st.integers(0, 2**63 - 1),
    learning_rates=st.lists(st.floats(0, 1e300), max_size=5),
    weight_decay=st.floats(0, 1),
    adapter=st.dictionaries(st.text(), json_values, max_size=4),
    tensors=st.dictionaries(
        st.text(), st.lists(st.integers(0, 2**40), max_size=3).map(tuple), max_size=4
    ),
)
def test_headers_round_trip(
    seed: int,
    learning_rates: list[float],
    weight_decay: float,
    adapter: dict[str, object],
    tensors: dict[str, tuple[int, ...]],
) -> None:
    """Any public settings survive, floats to the last bit."""
    header = TranscriptHeader(
        seed=seed,
        encoding="bit",
        direction_kind="rademacher",
        directions_per_step=1,
        num_steps=len(learning_rates),
        learning_rates=tuple(learning_rates),
        weight_decay=weight_decay,
        adapter=adapter,
        tensors=tensors,
    )
    raw = header.to_bytes()
    assert TranscriptHeader.from_bytes(raw, "here") == (header, len(raw))


@MANY
@given(data=st.data(), encoding=encodings, mask=st.integers(1, 255))
def test_no_changed_byte_reads_the_same(
    path: Path, data: st.DataObject, encoding: str, mask: int
) -> None:
    """One changed byte is an error or another public claim, whose hash the ledger then misses."""
    header = make_header(encoding, 4, 3)
    steps = draw_symbols(header, 5)
    content = bytearray(write_stepwise(header, steps))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= mask
    path.unlink(missing_ok=True)
    path.write_bytes(bytes(content))
    try:
        found, symbols = read_transcript(path)
    except LedgerError:
        return
    assert found != header or as_tuples(symbols) != as_tuples(steps)


@MANY
@given(raw=st.binary(max_size=200), encoding=encodings, num_steps=st.integers(0, 6))
def test_any_bytes_are_symbols_or_an_error(raw: bytes, encoding: str, num_steps: int) -> None:
    """A payload of any bytes decodes to allowed symbols or raises the one error."""
    header = make_header(encoding, num_steps, 3)
    try:
        steps = decode_steps(header, raw, num_steps, "here")
    except LedgerError:
        return
    allowed = {"bit": {-1, 1}, "trit": {-1, 0, 1}}.get(encoding)
    for symbols in steps:
        assert symbols.integers.shape == (3,)
        assert allowed is None or set(symbols.integers.tolist()) <= allowed


@MANY
@given(raw=st.binary(max_size=60), has_mark=st.booleans())
def test_any_bytes_are_a_header_or_an_error(raw: bytes, has_mark: bool) -> None:
    """No file makes the reader fail in another way."""
    with pytest.raises(LedgerError, match="not a readable transcript"):
        TranscriptHeader.from_bytes(MAGIC + raw if has_mark else raw, "here")
