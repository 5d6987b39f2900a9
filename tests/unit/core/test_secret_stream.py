"""The secret stream: ChaCha20 as standardised, never repeated, never shared, never seeded."""

from __future__ import annotations

import copy
import math
import os
import pickle
import random
import sys
import threading
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from scipy.stats import binom

from helpers_streams import ScriptedStream, seeded_stream
from sordino.core import secret_stream
from sordino.core.errors import EntropyError, InvalidParameterError
from sordino.core.secret_stream import SecretStream

if TYPE_CHECKING:
    from collections.abc import Callable


def fixed_key(count: int) -> bytes:
    """Returns the key 00 01 .. 1f, then the nonce 00 00 00 00 00 00 00 4a 00 00 00 00."""
    return bytes(range(32)) if count == 32 else bytes([0] * 7 + [0x4A] + [0] * 4)


def test_the_keystream_is_rfc_8439_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 2.4.2: the second block (counter 1) under the RFC's key and nonce."""
    monkeypatch.setattr(os, "urandom", fixed_key)
    stream = SecretStream.from_operating_system()
    second = stream.read(128)[64:]
    assert second[:32].hex() == "224f51f3401bd9e12fde276fb8631ded8c131f823d2c06e27e4fcaec9ef3cf78"
    assert second[32:].hex() == "8a3b0aa372600a92b57974cded2b9334794cba40c63e34cdea212c4cf07d41b7"


def test_reads_go_on_where_the_last_one_ended() -> None:
    """Small and large reads cut one stream into pieces: nothing is skipped, nothing comes twice."""
    whole = seeded_stream(1).read(3 * 2**20 + 77)
    stream = seeded_stream(1)
    sizes = [0, 1, 63, 64, 65, 2**20, 2**20 + 1, 5]
    pieces = b"".join(stream.read(size) for size in sizes)
    pieces += stream.read(len(whole) - len(pieces))
    assert pieces == whole


def test_words_are_little_endian_on_every_machine() -> None:
    """Eight bytes a word, uint64 of the machine's own order."""
    raw, words = seeded_stream(2).read(80), seeded_stream(2).words(10)
    assert words.tolist() == [int.from_bytes(raw[i : i + 8], "little") for i in range(0, 80, 8)]
    assert words.dtype == np.uint64
    words[0] = 0  # the caller's own copy


def test_a_new_key_comes_before_the_counter_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit of 100 bytes a key, 250 bytes take three keys, each stream from its start."""
    keys: list[bytes] = []

    def remember(count: int) -> bytes:
        keys.append(random.Random(len(keys)).randbytes(count))  # noqa: S311
        return keys[-1]

    monkeypatch.setattr(os, "urandom", remember)
    monkeypatch.setattr(secret_stream, "_BYTES_PER_KEY", 100)
    stream = SecretStream.from_operating_system()
    drawn = stream.read(250)
    assert [len(key) for key in keys] == [32, 12] * 3
    monkeypatch.setattr(secret_stream, "_BYTES_PER_KEY", 1 << 32)
    expected = b""
    for first in (0, 2, 4):
        with mock.patch.object(os, "urandom", mock.Mock(side_effect=keys[first : first + 2])):
            expected += SecretStream.from_operating_system().read(100)
    assert drawn == expected[:250]
    assert len({drawn[:50], drawn[100:150], drawn[200:]}) == 3


def test_the_limit_is_below_the_counter_s() -> None:
    """One key gives at most 2**38 bytes: 2**32 blocks of 64."""
    assert 0 < secret_stream._BYTES_PER_KEY < 2**38
    assert secret_stream._BYTES_PER_KEY % 64 == 0


@pytest.mark.parametrize("failure", [OSError("none"), NotImplementedError("none")])
def test_fails_closed_without_the_operating_system(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start and at every new key; what was drawn before stays drawn once."""
    monkeypatch.setattr(secret_stream, "_BYTES_PER_KEY", 64)
    stream = SecretStream.from_operating_system()
    stream.read(64)
    monkeypatch.setattr(os, "urandom", mock.Mock(side_effect=failure))
    for draw in (SecretStream, SecretStream.from_operating_system, lambda: stream.read(1)):
        with pytest.raises(EntropyError, match=r"nothing was released\. There is no fallback"):
            draw()


def test_fails_closed_without_the_cipher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cipher library that allows only other ciphers is no reason for another stream."""
    refuse = mock.Mock(side_effect=UnsupportedAlgorithm("not allowed"))
    monkeypatch.setattr(secret_stream, "Cipher", refuse)
    with pytest.raises(EntropyError, match="no ChaCha20"):
        SecretStream.from_operating_system()


def test_no_seed_repeats_it() -> None:
    """Equal global seeds give other bytes (equal by chance: 2**-256)."""
    drawn = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        drawn.append(SecretStream.from_operating_system().read(32))
    assert drawn[0] != drawn[1]
    with pytest.raises(TypeError):
        SecretStream(0)
    with pytest.raises(TypeError):
        SecretStream.from_operating_system(0)


@pytest.mark.parametrize(
    "duplicate", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"]
)
def test_it_cannot_be_copied_or_saved(duplicate: Callable[[SecretStream], object]) -> None:
    """A copy would give the same noise a second time."""
    with pytest.raises(EntropyError, match="cannot be pickled or copied"):
        duplicate(SecretStream.from_operating_system())


def test_it_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key in its name, its fields or its attributes."""
    monkeypatch.setattr(os, "urandom", fixed_key)
    stream = SecretStream.from_operating_system()
    assert repr(stream) == str(stream) == "SecretStream()"
    with pytest.raises(TypeError):
        vars(stream)
    held = [getattr(stream, f"_SecretStream{name}") for name in SecretStream.__slots__]
    assert not [value for value in held if isinstance(value, (bytes, bytearray, memoryview))]
    with pytest.raises(AttributeError):
        stream.seed = 1


def test_another_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fork two processes would draw the same noise."""
    stream = SecretStream.from_operating_system()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    for draw in (lambda: stream.read(1), lambda: stream.words(0), lambda: stream.bernoulli(1.0, 1)):
        with pytest.raises(EntropyError, match="before the process forked"):
            draw()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_real_fork_is_refused() -> None:
    """The child leaves at once with a code that says what happened; the parent goes on."""
    stream = SecretStream.from_operating_system()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            stream.read(1)
        except EntropyError:
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(stream.read(8)) == 8


def test_threads_share_one_stream_without_repeats() -> None:
    """Four threads draw 4,000 words in all; each is a word of the stream, none comes twice."""
    stream, drawn = seeded_stream(3), []
    threads = [
        threading.Thread(target=lambda: drawn.extend(stream.words(10).tolist() for _ in range(100)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    flat = [word for words in drawn for word in words]
    assert sorted(flat) == sorted(seeded_stream(3).words(4000).tolist())


@pytest.mark.parametrize(
    ("word", "probability", "expected"),
    [
        (0, 0.0, False),  # never, even at the lowest draw
        (2**64 - 1, 1.0, True),  # always, even at the highest
        (0, 5e-324, False),  # rounded down to 0, not up to 2**-64
        (0, 2.0**-64, True),
        (1, 2.0**-64, False),
        (1, math.nextafter(2.0**-63, 0.0), False),  # rounded down to 2**-64
        (2**63 - 1, 0.5, True),
        (2**63, 0.5, False),
        (2**64 - 2**11, 1.0 - 2.0**-53, False),
        (2**64 - 2**11 - 1, 1.0 - 2.0**-53, True),
    ],
)
def test_bernoulli_compares_64_bits(word: int, probability: float, expected: bool) -> None:
    """Exact on multiples of 2**-64, rounded down elsewhere."""
    assert ScriptedStream([word, word]).bernoulli(probability, 2).tolist() == [expected] * 2


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, -math.inf, -1e-300, 1.0 + 1e-15, True, None, "1"]
)
def test_bernoulli_refuses_what_is_no_probability(bad: float) -> None:
    """NaN would compare as False: a batch that is always empty."""
    with pytest.raises(InvalidParameterError, match="probability must be in"):
        SecretStream.from_operating_system().bernoulli(bad, 1)


@pytest.mark.parametrize("bad", [-1, 2.0, math.nan, math.inf, True, None])
@pytest.mark.parametrize("name", ["read", "words", "bernoulli"])
def test_counts_are_whole_numbers(name: str, bad: int) -> None:
    """A negative number of bytes is an error, not none."""
    stream = SecretStream.from_operating_system()
    arguments = (0.5, bad) if name == "bernoulli" else (bad,)
    with pytest.raises(InvalidParameterError, match="count must be a whole number at least 0"):
        getattr(stream, name)(*arguments)


def test_nothing_asked_for_is_nothing() -> None:
    """Zero counts are allowed."""
    stream = SecretStream.from_operating_system()
    assert stream.read(0) == b""
    assert stream.words(0).shape == (0,)
    assert stream.bernoulli(0.5, 0).shape == (0,)
    assert stream.bernoulli(0.5, 0).dtype == np.bool_


@pytest.mark.parametrize("probability", [0.5, 0.1, 0.001])
def test_draws_have_their_probability(probability: float) -> None:
    """100,000 fresh draws are binomial; each parameter fails by chance at 1e-9."""
    stream = SecretStream.from_operating_system()
    hits = int(stream.bernoulli(probability, 100_000).sum())
    low, high = binom.ppf([0.5e-9, 1 - 0.5e-9], 100_000, probability)
    assert low <= hits <= high
