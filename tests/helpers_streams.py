"""Secret streams for tests whose draws repeat; nothing here may be used outside tests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np

from sordino.core.errors import EntropyError
from sordino.core.secret_stream import SecretStream

if TYPE_CHECKING:
    from collections.abc import Sequence


def seeded_stream(seed: int | Sequence[int]) -> SecretStream:
    """Returns a stream whose first key comes from a seed, so that verdicts do not change."""
    with mock.patch.object(os, "urandom", np.random.default_rng(seed).bytes):
        return SecretStream.from_operating_system()


class ScriptedStream(SecretStream):
    """Plays a list of 64-bit words."""

    def __init__(self, words: Sequence[int]) -> None:
        super().__init__()
        self.script = list(words)

    def words(self, count: int) -> np.ndarray:
        """Returns the next words."""
        taken, self.script = self.script[:count], self.script[count:]
        assert len(taken) == count, "the script is over"
        return np.array(taken, dtype=np.uint64)


class BrokenStream(SecretStream):
    """Fails as the operating system may."""

    def words(self, count: int) -> np.ndarray:
        """Fails."""
        raise EntropyError

    def read(self, count: int) -> bytes:
        """Fails."""
        raise EntropyError
