"""Secret randomness: coins, noise and the choice of the secret subset.

Everything comes from the operating system, at the moment it is needed. There is no seed, no state
that could be saved or replayed, and no fallback: when the operating system refuses, `EntropyError`
is raised and nothing is released. Public directions live in `sordino.core.directions`.
"""

from __future__ import annotations

import os
import random
import secrets
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from sordino.core.checks import require_in_range, require_integer
from sordino.core.errors import EntropyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_T = TypeVar("_T")


class AbstractEntropy(ABC):
    """Where secret randomness comes from; tests enumerate every outcome through it."""

    @abstractmethod
    def coins(self, count: int) -> NDArray[np.bool_]:
        """Returns `count` independent fair coins, shape (count,)."""

    @abstractmethod
    def bernoulli(self, probability: float) -> bool:
        """Returns True with the given probability, rounded up to a multiple of 2**-53."""

    @abstractmethod
    def index(self, count: int) -> int:
        """Returns a uniform index in [0, count)."""

    @abstractmethod
    def normal(self) -> float:
        """Returns one standard normal number, float64."""


class OperatingSystemEntropy(AbstractEntropy):
    """The only source that a run uses.

    Raises:
        EntropyError: If the operating system gives no randomness.
    """

    def coins(self, count: int) -> NDArray[np.bool_]:
        """Returns `count` independent fair coins, shape (count,)."""
        require_integer("count", count, 0)
        raw = _ask(lambda: os.urandom(-(-count // 8)))
        return np.unpackbits(np.frombuffer(raw, dtype=np.uint8))[:count].astype(np.bool_)

    def bernoulli(self, probability: float) -> bool:
        """Returns True with the given probability, rounded up to a multiple of 2**-53."""
        require_in_range("probability", probability, 0.0, 1.0)
        word = _ask(lambda: os.urandom(8))
        return (int.from_bytes(word, "little") >> 11) * 2.0**-53 < probability

    def index(self, count: int) -> int:
        """Returns a uniform index in [0, count)."""
        require_integer("count", count, 1)
        return _ask(lambda: secrets.randbelow(count))

    def normal(self) -> float:
        """Returns one standard normal number, float64."""
        return _ask(lambda: random.SystemRandom().normalvariate(0.0, 1.0))


def _ask(draw: Callable[[], _T]) -> _T:
    """Returns draw(), turning every failure of the operating system into `EntropyError`."""
    try:
        return draw()
    except (OSError, NotImplementedError) as error:
        raise EntropyError(
            "the operating system gave no secret randomness; nothing was released. "
            "There is no fallback: make its entropy source available and run again with --resume."
        ) from error
