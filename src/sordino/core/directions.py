"""Public, counter-based, replayable numbers: everybody who knows the seed gets the same bits.

Nothing here is secret and nothing here may serve as noise: coins, noise and the choice of the
secret subset come from `sordino.core.entropy`, a different type from a different source.

Each number is a pure function of (seed, purpose, tensor name, step, direction, element). The bits
come from Philox 4x64 (a counter-based generator whose raw stream NumPy keeps stable), keyed by
SHA-256, and are turned into *integers* only: +-1 for Rademacher directions, fixed-point multiples
of 2**-11 for Gaussian ones. Sums of integers are exact in any order, so a replay gives the same
weights on every device and with any number of workers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from sordino.core.checks import require_integer, require_one_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIRECTION_KINDS = ("rademacher", "gaussian")
GAUSSIAN_UNIT = 2.0**-11  # a Gaussian direction is an integer times this
MAX_SEED = 2**63 - 1
_WORDS_PER_COUNTER = 4  # one Philox 4x64 block
_UNIFORM_BITS = 24


@dataclass(frozen=True, slots=True)
class DirectionStream:
    """The public directions of one run.

    Args:
        seed: Public seed in [0, 2**63).
        kind: "rademacher" (+-1, each with probability 1/2) or "gaussian" (standard normal rounded
            to 65,536 equally likely levels, in units of `GAUSSIAN_UNIT`).
    """

    seed: int
    kind: str = "rademacher"

    def __post_init__(self) -> None:
        require_integer("seed", self.seed, 0, MAX_SEED)
        require_one_of("direction kind", self.kind, DIRECTION_KINDS)

    @property
    def unit(self) -> float:
        """The value of the integer 1: 1.0 for Rademacher, 2**-11 for Gaussian directions."""
        return GAUSSIAN_UNIT if self.kind == "gaussian" else 1.0

    @property
    def alignment(self) -> int:
        """`start` of a slice must be a multiple of this many elements."""
        return _WORDS_PER_COUNTER * self._elements_per_word

    @property
    def _elements_per_word(self) -> int:
        return 4 if self.kind == "gaussian" else 64

    def integers(
        self, step: int, direction: int, tensor: str, size: int, start: int = 0
    ) -> NDArray[np.int16] | NDArray[np.int8]:
        """Returns elements [start, start + size) of one direction for one tensor.

        Args:
            step: Step number, from 0.
            direction: Direction number within the step, from 0.
            tensor: Name of the parameter tensor.
            size: Number of elements wanted.
            start: First element; a multiple of `alignment`.

        Returns:
            Integers of shape (size,), int8 (Rademacher) or int16 (Gaussian), in units of `unit`.

        Example:
            >>> DirectionStream(seed=1).integers(step=0, direction=0, tensor="w", size=8).tolist()
            [-1, 1, 1, -1, 1, -1, -1, 1]
        """
        if start % self.alignment:
            raise ValueError(f"start must be a multiple of {self.alignment}, got {start}.")
        num_words = -(-size // self._elements_per_word)
        words = _raw_words(
            self.seed,
            f"direction/{self.kind}/{step}/{direction}",
            tensor,
            num_words,
            start // self._elements_per_word,
        )
        if self.kind == "gaussian":
            levels: NDArray[np.int16] = _gaussian_levels()[words.view("<u2")][:size]
            return levels
        return _sign_table()[words.view(np.uint8)].view(np.int8)[:size]


def public_signs(seed: int, purpose: str, name: str, size: int) -> NDArray[np.int8]:
    """Returns `size` public signs, -1 or +1, int8."""
    words = _raw_words(seed, purpose, name, -(-size // 64))
    return _sign_table()[words.view(np.uint8)].view(np.int8)[:size]


def public_uniform(seed: int, purpose: str, name: str, size: int) -> NDArray[np.float32]:
    """Returns `size` public float32 numbers, uniform on the multiples of 2**-23 in [-1, 1)."""
    words = _raw_words(seed, purpose, name, -(-size // 2)).view("<u4")[:size]
    integers = (words >> np.uint32(32 - _UNIFORM_BITS)).astype(np.int64) - 2 ** (_UNIFORM_BITS - 1)
    uniform: NDArray[np.float32] = (integers / 2.0 ** (_UNIFORM_BITS - 1)).astype(np.float32)
    return uniform


def public_keys(
    seed: int, purpose: str, name: str, size: int, start: int = 0
) -> NDArray[np.uint64]:
    """Returns `size` public 64-bit words, from word `start` (a multiple of 4) on."""
    return _raw_words(seed, purpose, name, size, start).astype(np.uint64)


def public_permutation(seed: int, purpose: str, name: str, size: int) -> NDArray[np.int64]:
    """Returns a public permutation of range(size)."""
    return np.argsort(public_keys(seed, purpose, name, size), kind="stable").astype(np.int64)


def _raw_words(
    seed: int, purpose: str, name: str, num_words: int, first_word: int = 0
) -> NDArray[np.uint64]:
    """Returns little-endian Philox words [first_word, first_word + num_words) of one stream."""
    require_integer("seed", seed, 0, MAX_SEED)
    label = f"sordino-public-1\0{seed}\0{purpose}\0{name}".encode()
    key = int.from_bytes(hashlib.sha256(label).digest()[:16], "little")
    if first_word % _WORDS_PER_COUNTER:
        raise ValueError(f"first_word must be a multiple of {_WORDS_PER_COUNTER}.")
    generator = np.random.Philox(key=key, counter=first_word // _WORDS_PER_COUNTER)
    return generator.random_raw(num_words).astype("<u8", copy=False)


@cache
def _sign_table() -> NDArray[np.uint64]:
    """Returns 256 words; word b holds the eight signs of the bits of byte b, one per byte."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    signs = (2 * bits.astype(np.int8) - 1).astype(np.int8)
    return np.ascontiguousarray(signs).view(np.uint64).reshape(256)


@cache
def _gaussian_levels() -> NDArray[np.int16]:
    """Returns 65,536 normal quantiles in units of 2**-11; integers, so no platform differs."""
    quantile = NormalDist().inv_cdf
    upper = [round(quantile(0.5 + (i + 0.5) / 65536) / GAUSSIAN_UNIT) for i in range(32768)]
    return np.array([-level for level in reversed(upper)] + upper, dtype=np.int16)
