"""Secret randomness in bulk: a ChaCha20 keystream, keyed by the operating system.

`sordino.core.entropy` asks the operating system for every draw, which is right for a few coins and
too slow for millions of numbers a step. Here the operating system gives a key, and a stream cipher
stretches it. There is no seed, no state that could be saved or replayed, and no fallback.
"""

from __future__ import annotations

import math
import os
import threading
from fractions import Fraction
from typing import TYPE_CHECKING, NoReturn, Self, SupportsIndex

import numpy as np
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from sordino.core.checks import require_in_range, require_integer
from sordino.core.errors import EntropyError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext
    from numpy.typing import NDArray

_KEY_BYTES = 32
_NONCE_BYTES = 12
_COUNTER_START = bytes(4)  # the cipher's other four nonce bytes are its block counter
_BLOCK_BYTES = 1 << 20
_ZEROS = bytes(_BLOCK_BYTES)

# The counter has 32 bits, so one key and nonce give 2**38 bytes before the stream would repeat (or,
# in newer versions of the library, fail). A new key comes long before that.
_BYTES_PER_KEY = 1 << 32


class SecretStream:
    """A stream of secret bytes: ChaCha20 under a key that only this process ever held.

    Guarantee:
        Bytes are never repeated and never shared: a new key and a new nonce come from the operating
        system at the start and after every 2**32 bytes, a forked process is refused, and the object
        can be neither copied nor saved. What is promised about draws holds up to the
        indistinguishability of ChaCha20 from random bytes.

    Raises:
        EntropyError: If the operating system gives no randomness or the cipher is not available.

    Source:
        RFC 8439, sections 2.3 and 2.4.

    Example:
        >>> stream = SecretStream.from_operating_system()
        >>> stream.words(1000).shape, stream.bernoulli(1.0, 3).tolist()
        ((1000,), [True, True, True])
    """

    __slots__ = ("__cipher", "__left", "__lock", "__process")

    def __init__(self) -> None:
        self.__process = os.getpid()
        self.__lock = threading.Lock()
        self.__cipher, self.__left = _new_cipher(), _BYTES_PER_KEY

    @classmethod
    def from_operating_system(cls) -> Self:
        """Returns a stream under a fresh key; there is no other way to key one."""
        return cls()

    def read(self, count: int) -> bytes:
        """Returns the next `count` secret bytes.

        Raises:
            EntropyError: In a forked process, or if a new key is due and cannot be had.
        """
        require_integer("count", count, 0)
        return bytes(self.__fill(count))

    def words(self, count: int) -> NDArray[np.uint64]:
        """Returns `count` independent uniform 64-bit words, shape (count,).

        Raises:
            EntropyError: As `read`.
        """
        require_integer("count", count, 0)
        words = np.frombuffer(self.__fill(8 * count), dtype="<u8")  # writable: the caller's own
        return words.astype(np.uint64, copy=False)

    def bernoulli(self, probability: float, count: int) -> NDArray[np.bool_]:
        """Returns `count` independent truth values, shape (count,), True with the probability.

        The probability is exact where it is a multiple of 2**-64 (every float64 from 2**-12 on is)
        and is rounded *down* to one elsewhere: as an inclusion probability, less is more private.

        Raises:
            InvalidParameterError: If the probability is NaN or outside [0, 1].
            EntropyError: As `read`.
        """
        require_in_range("probability", probability, 0.0, 1.0)
        require_integer("count", count, 0)
        threshold = math.floor(Fraction(float(probability)) * 2**64)
        words = self.words(count)
        if threshold == 2**64:  # no word is that large
            return np.ones(count, dtype=np.bool_)
        return words < np.uint64(threshold)

    def __fill(self, count: int) -> bytearray:
        """Returns the next `count` bytes of the keystream."""
        if os.getpid() != self.__process:  # before the lock, which a fork may have left closed
            raise EntropyError(
                "this secret stream was made before the process forked; two processes would share "
                "their noise. Nothing was drawn: make a new stream in every process."
            )
        keystream = bytearray(count)
        view = memoryview(keystream)
        start = 0
        with self.__lock:
            while start < count:
                if self.__left == 0:
                    self.__cipher, self.__left = _new_cipher(), _BYTES_PER_KEY
                size = min(count - start, _BLOCK_BYTES, self.__left)
                # Paid for before it is drawn: an interrupt in between must not lose count.
                self.__left -= size
                self.__cipher.update_into(memoryview(_ZEROS)[:size], view[start : start + size])
                start += size
        return keystream

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuses to be pickled or copied: a copy would give the same noise twice."""
        raise EntropyError(
            "a secret stream cannot be pickled or copied: the copy would repeat its noise. "
            "Make a new stream where one is needed."
        )

    def __repr__(self) -> str:
        return "SecretStream()"


def _new_cipher() -> CipherContext:
    """Returns a cipher under a fresh key; the key itself is kept nowhere else."""
    try:
        key, nonce = os.urandom(_KEY_BYTES), os.urandom(_NONCE_BYTES)
        return Cipher(algorithms.ChaCha20(key, _COUNTER_START + nonce), mode=None).encryptor()
    except (OSError, NotImplementedError, UnsupportedAlgorithm) as error:
        raise EntropyError(
            "no secret stream: the operating system gave no secret randomness, or its cipher "
            "library has no ChaCha20; nothing was released. There is no fallback: make both "
            "available and run again with --resume."
        ) from error
