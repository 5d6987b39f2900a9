"""Public directions: pure functions of their labels, pinned bit for bit, and of the right law."""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.stats import binom, norm

from sordino.core.directions import (
    DIRECTION_KINDS,
    GAUSSIAN_UNIT,
    MAX_SEED,
    DirectionStream,
    _gaussian_levels,
    public_keys,
    public_permutation,
    public_signs,
    public_uniform,
)
from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SEED = 20260524
TENSOR = "model.layers.0.self_attn.q_proj.lora_B.weight"
WORD = 2**64


def digest(values: NDArray[np.generic]) -> str:
    """Returns the SHA-256 of the little-endian bytes of an array."""
    little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"))
    return hashlib.sha256(little.tobytes()).hexdigest()


def philox_words(label: str, num_words: int) -> list[int]:
    """Returns Philox 4x64-10 words from the published algorithm, in plain integers."""
    key = hashlib.sha256(label.encode()).digest()[:16]
    words: list[int] = []
    for block in itertools.count(1):  # NumPy counts before it draws
        if len(words) >= num_words:
            return words[:num_words]
        counter = [block, 0, 0, 0]
        k0, k1 = (int.from_bytes(key[i : i + 8], "little") for i in (0, 8))
        for _ in range(10):
            high0, low0 = divmod(counter[0] * 0xD2E7470EE14C6C93, WORD)
            high1, low1 = divmod(counter[2] * 0xCA5A826395121157, WORD)
            counter = [high1 ^ counter[1] ^ k0, low1, high0 ^ counter[3] ^ k1, low0]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) % WORD, (k1 + 0xBB67AE8584CAA73B) % WORD
        words += counter
    return words


def assert_count(found: int, total: int, probability: float, *, false_failure_rate: float) -> None:
    """Fails with at most this probability if `found` really is binomial."""
    low, high = binom.ppf([false_failure_rate / 2, 1 - false_failure_rate / 2], total, probability)
    assert low <= found <= high


def test_words_are_those_of_the_published_generator() -> None:
    """An implementation in plain integers gives the same words: any language can replay a run."""
    label = f"sordino-public-1\0{SEED}\0batch\0{TENSOR}"
    assert public_keys(SEED, "batch", TENSOR, 21).tolist() == philox_words(label, 21)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            lambda: DirectionStream(SEED).integers(7, 3, TENSOR, 10007),
            "b63fce2f669aa61cc437aff68d86051719c32db59677bd5a947f30dafe0ba02c",
        ),
        (
            lambda: DirectionStream(SEED, "gaussian").integers(7, 3, TENSOR, 10007),
            "98a7d285ddca9c6835e2424a020b467133410a620a1d5d2fe9472c847858601c",
        ),
        (_gaussian_levels, "06c028f826eb57a7feaddfc1b1f141350b9cbfbfafce0ba7368dc97db6711ecd"),
        (
            lambda: public_signs(SEED, "hadamard-signs", "7", 10007),
            "9d234bb4e3ae23231865efc10547db0e212832bbc9953b22dbe31e03321127aa",
        ),
        (
            lambda: public_uniform(SEED, "lora-a", TENSOR, 10007),
            "267ca173a9b7fc70e68e56606e387b9b7158566baa41ef2c9fd88bf351e204b7",
        ),
        (
            lambda: public_keys(SEED, "batch", "7", 10007),
            "1164167ebfc73ad71afe59b8dee0f268fd2830165c61e4d6075ac7356e8e34ec",
        ),
        (
            lambda: public_permutation(SEED, "batch", "7", 10007),
            "e0568c679cc0ff5b65806ca673bd3fc6a2b929acb1a4b2918c4f3edeb623fdf4",
        ),
    ],
    ids=["rademacher", "gaussian", "levels", "signs", "uniform", "keys", "permutation"],
)
def test_replay_format_is_pinned(values: Callable[[], NDArray[np.generic]], expected: str) -> None:
    """A changed bit here would make every old transcript replay to other weights."""
    assert digest(values()) == expected


@pytest.mark.parametrize("kind", DIRECTION_KINDS)
def test_equal_labels_give_equal_bits_and_others_do_not(kind: str) -> None:
    """Seed, step, direction and tensor each name another stream; nothing else matters."""
    stream = DirectionStream(SEED, kind)
    first = stream.integers(4, 2, "w", 512)
    np.random.seed(1)  # noqa: NPY002 - a global seed must not matter
    assert np.array_equal(first, DirectionStream(SEED, kind).integers(4, 2, "w", 512))
    others = [
        DirectionStream(SEED + 1, kind).integers(4, 2, "w", 512),
        stream.integers(5, 2, "w", 512),
        stream.integers(4, 3, "w", 512),
        stream.integers(2, 4, "w", 512),
        stream.integers(4, 2, "v", 512),
        stream.integers(42, 2, "w", 512),
        stream.integers(4, 22, "w", 512),
    ]
    assert not any(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("kind", DIRECTION_KINDS)
@pytest.mark.parametrize("size", [0, 1, 15, 63, 64, 65, 255, 257, 4097])
def test_slices_equal_the_whole(kind: str, size: int) -> None:
    """A block that starts at an aligned element is that part of the whole direction."""
    stream = DirectionStream(3, kind)
    whole = stream.integers(0, 0, "w", 16384)
    assert whole.shape == (16384,)
    assert np.array_equal(stream.integers(0, 0, "w", size), whole[:size])
    for start in (stream.alignment, 2 * stream.alignment, 4096 - 4096 % stream.alignment):
        part = stream.integers(0, 0, "w", size, start)
        assert np.array_equal(part, whole[start : start + size])


@pytest.mark.parametrize("kind", DIRECTION_KINDS)
def test_slices_must_be_aligned(kind: str) -> None:
    """An unaligned start is refused, not rounded."""
    stream = DirectionStream(3, kind)
    for start in (1, stream.alignment - 1, stream.alignment + 1):
        with pytest.raises(ValueError, match=f"start must be a multiple of {stream.alignment}"):
            stream.integers(0, 0, "w", 8, start)
    with pytest.raises(ValueError, match="first_word must be a multiple of 4"):
        public_keys(0, "batch", "7", 8, 2)


def test_keys_may_start_anywhere_in_blocks_of_four() -> None:
    """Words from a later start are those of the whole stream."""
    whole = public_keys(5, "candidates", "x", 64)
    assert np.array_equal(public_keys(5, "candidates", "x", 20, 12), whole[12:32])


@pytest.mark.parametrize(
    ("kind", "dtype", "unit"), [("rademacher", np.int8, 1.0), ("gaussian", np.int16, 2.0**-11)]
)
def test_kinds_state_their_type_and_unit(kind: str, dtype: type, unit: float) -> None:
    """Directions are integers; `unit` says what the integer 1 is worth."""
    stream = DirectionStream(0, kind)
    assert stream.integers(0, 0, "w", 10).dtype == dtype
    assert stream.unit == unit


def test_rademacher_directions_hold_only_signs() -> None:
    """Every element is -1 or +1; no zero slips in at the end of a word."""
    for size in (1, 63, 64, 65, 1000):
        assert set(DirectionStream(8).integers(0, 0, "w", size).tolist()) <= {-1, 1}
        assert set(public_signs(8, "p", "n", size).tolist()) <= {-1, 1}


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 1.0, True, None, "1"])
def test_seeds_are_whole_numbers_in_range(seed: int) -> None:
    """Other seeds raise, also where no stream object is involved."""
    with pytest.raises(InvalidParameterError, match="seed must be a whole number"):
        DirectionStream(seed)
    with pytest.raises(InvalidParameterError, match="seed must be a whole number"):
        public_signs(seed, "p", "n", 1)


def test_unknown_kinds_are_refused() -> None:
    """Hadamard directions are made elsewhere; a typo is not a default."""
    with pytest.raises(InvalidParameterError, match="direction kind must be one of rademacher"):
        DirectionStream(0, "hadamard")


def test_gaussian_levels_are_the_rounded_quantiles() -> None:
    """Each of the 65,536 levels is the normal quantile, by another library, to half a unit."""
    levels = _gaussian_levels()
    quantiles = norm.ppf((np.arange(65536) + 0.5) / 65536)
    assert np.abs(levels * GAUSSIAN_UNIT - quantiles).max() <= 0.5001 * GAUSSIAN_UNIT
    assert np.array_equal(levels, -levels[::-1])
    assert math.isclose(np.mean((levels * GAUSSIAN_UNIT) ** 2), 1.0, rel_tol=3e-5)
    assert levels.max() * GAUSSIAN_UNIT < 4.4  # the bound that first-order clipping relies on


def test_signs_are_fair() -> None:
    """A million signs pass an exact binomial test at 1e-6; a bias of 0.3% would not."""
    signs = DirectionStream(11).integers(0, 0, "w", 1_000_000)
    assert_count(int((signs > 0).sum()), signs.size, 0.5, false_failure_rate=1e-6)
    with pytest.raises(AssertionError):  # negative control
        assert_count(503_000, 1_000_000, 0.5, false_failure_rate=1e-6)


def test_directions_are_uncorrelated() -> None:
    """Neighbouring steps, directions and elements agree in half of the signs, each at 1e-7."""
    stream, size = DirectionStream(12), 200_000
    first = stream.integers(0, 0, "w", size)
    pairs = [
        (first, stream.integers(0, 1, "w", size)),
        (first, stream.integers(1, 0, "w", size)),
        (first, stream.integers(0, 0, "v", size)),
        (first, DirectionStream(13).integers(0, 0, "w", size)),
        (first[:-1], first[1:]),
        (first[:-64], first[64:]),
    ]
    for a, b in pairs:
        assert_count(int((a == b).sum()), a.size, 0.5, false_failure_rate=1e-7)


def test_gaussian_directions_have_the_table_s_law() -> None:
    """Counts beyond 0, 1, 2 and 3 deviations are binomial with the table's shares, each at 1e-7."""
    drawn = DirectionStream(14, "gaussian").integers(0, 0, "w", 1_000_000)
    for limit in (0, 2048, 4096, 6144):
        share = float(np.mean(_gaussian_levels() > limit))
        for count in ((drawn > limit).sum(), (drawn < -limit).sum()):
            assert_count(int(count), drawn.size, share, false_failure_rate=1e-7)


def test_uniform_numbers_lie_on_their_grid() -> None:
    """Multiples of 2**-23 in [-1, 1), float32, with fair halves and quarters at 1e-7."""
    values = public_uniform(15, "p", "n", 500_001)
    assert values.dtype == np.float32
    assert values.shape == (500_001,)
    assert -1.0 <= values.min() < -0.9999
    assert 0.9999 < values.max() < 1.0
    assert np.array_equal(values, np.rint(values * 2**23) / np.float32(2**23))
    for limit, share in ((0.0, 0.5), (-0.5, 0.25), (0.5, 0.75)):
        below = int((values < limit).sum())
        assert_count(below, values.size, share, false_failure_rate=1e-7)


@pytest.mark.parametrize("size", [0, 1, 2, 1000])
def test_permutations_hold_every_number_once(size: int) -> None:
    """A public permutation is one, and another label gives another."""
    order = public_permutation(1, "batch", "0", size)
    assert sorted(order.tolist()) == list(range(size))
    if size == 1000:
        assert not np.array_equal(order, public_permutation(1, "batch", "1", size))
