"""The contract of every mechanism, as tests that each implementation inherits."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from helpers_enumeration import SeededEntropy, history_sums
from helpers_transcripts import as_tuples, make_header, write_stepwise
from sordino.core.entropy import AbstractEntropy
from sordino.core.errors import EntropyError
from sordino.ledger.ledger import canonical_json
from sordino.ledger.transcript import StepSymbols, decode_steps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sordino.mechanisms.release import AbstractMechanism, Release

NUM_STEPS, NUM_RELEASES = 6, 5
UNIT = 2.0**-20


class BrokenEntropy(AbstractEntropy):
    """Fails as the operating system may."""

    def coins(self, count: int) -> NDArray[np.bool_]:
        raise EntropyError

    def bernoulli(self, probability: float) -> bool:
        raise EntropyError

    def index(self, count: int) -> int:
        raise EntropyError

    def normal(self) -> float:
        raise EntropyError


def sums_of(step: int, num_subsets: int) -> NDArray[np.float64]:
    """Returns sums of one step: some columns unanimous, some not, some tied."""
    return history_sums(11, [[step]], num_subsets, NUM_RELEASES)


def release_all(mechanism: AbstractMechanism, num_subsets: int, first: int = 0) -> list[Release]:
    """Returns the releases of the steps from `first` on."""
    return [
        mechanism.release(sums_of(step, num_subsets), UNIT, step)
        for step in range(first, NUM_STEPS)
    ]


def as_data(releases: list[Release]) -> list[tuple[object, ...]]:
    """Returns releases in a form that compares with ==."""
    return [
        (r.integers.tolist(), r.unit, r.mutual_information_nats, r.unanimous.tolist())
        for r in releases
    ]


class MechanismContract:
    """Inherited by the tests of each implementation, which say how to make one."""

    num_subsets = 8
    draws_entropy = True
    shows_entropy = True  # whether other draws give other symbols

    def make(self, entropy: AbstractEntropy) -> AbstractMechanism:
        """Returns a fresh mechanism for `NUM_STEPS` steps of `NUM_RELEASES` releases."""
        raise NotImplementedError

    def test_a_release_has_the_promised_form(self) -> None:
        """K int32 symbols, a positive unit, a finite charge, and a private flag a symbol."""
        for release in release_all(self.make(SeededEntropy(0)), self.num_subsets):
            assert release.integers.shape == (NUM_RELEASES,)
            assert release.integers.dtype == np.int32
            assert release.unanimous.shape == (NUM_RELEASES,)
            assert release.unanimous.dtype == np.bool_
            assert math.isfinite(release.unit)
            assert release.unit > 0
            assert type(release.mutual_information_nats) is float
            assert 0 <= release.mutual_information_nats < math.inf

    def test_symbols_fit_the_declared_encoding(self) -> None:
        """What is released survives the transcript."""
        mechanism = self.make(SeededEntropy(1))
        header = make_header(mechanism.encoding, NUM_STEPS, NUM_RELEASES)
        releases = release_all(mechanism, self.num_subsets)
        steps = [StepSymbols(r.integers, r.unit) for r in releases]
        payload = write_stepwise(header, steps)[len(header.to_bytes()) :]
        assert as_tuples(decode_steps(header, payload, NUM_STEPS, "here")) == as_tuples(steps)

    def test_one_release_a_step_works_too(self) -> None:
        """K = 1 is not special."""
        sums = sums_of(0, self.num_subsets)[:, :1]
        assert self.make(SeededEntropy(2)).release(sums, UNIT, 0).integers.shape == (1,)

    def test_the_sums_are_left_as_they_were(self) -> None:
        """The holder's report reads the same sums afterwards."""
        sums = sums_of(0, self.num_subsets)
        before = sums.copy()
        self.make(SeededEntropy(3)).release(sums, UNIT, 0)
        assert np.array_equal(sums, before)

    def test_equal_entropy_gives_equal_releases(self) -> None:
        """Global generators, and what other mechanisms drew, do not matter."""
        first = as_data(release_all(self.make(SeededEntropy(4)), self.num_subsets))
        np.random.seed(0)  # noqa: NPY002
        self.make(SeededEntropy(5))
        assert as_data(release_all(self.make(SeededEntropy(4)), self.num_subsets)) == first

    def test_other_entropy_gives_other_releases(self) -> None:
        """Coins and noise come from the given source, or the mechanism shows none."""
        first, second = (
            as_data(release_all(self.make(SeededEntropy(seed)), self.num_subsets))
            for seed in (6, 7)
        )
        assert (first != second) is self.shows_entropy

    def test_without_entropy_nothing_is_released(self) -> None:
        """Defect 15: the source's error goes through; there is no other source."""
        if not self.draws_entropy:
            release_all(self.make(BrokenEntropy()), self.num_subsets)
            return
        with pytest.raises(EntropyError):
            release_all(self.make(BrokenEntropy()), self.num_subsets)

    def test_the_description_is_public(self) -> None:
        """It is JSON, stays as it is, and does not depend on what was drawn."""
        described = []
        for seed in range(20):
            mechanism = self.make(SeededEntropy(seed))
            before = canonical_json(mechanism.describe())
            release_all(mechanism, self.num_subsets)
            assert canonical_json(mechanism.describe()) == before
            described.append(before)
        assert len(set(described)) == 1
        assert json.loads(described[0])["name"]

    def test_the_private_state_continues_identically(self) -> None:
        """After JSON and back, a new mechanism goes on as the old one would have (defect 4)."""
        for stop in range(NUM_STEPS + 1):
            mechanism = self.make(SeededEntropy(8))
            for step in range(stop):
                mechanism.release(sums_of(step, self.num_subsets), UNIT, step)
            state = json.loads(canonical_json(mechanism.private_state()))
            restored = self.make(SeededEntropy(9))
            restored.restore(state)
            for each in (mechanism, restored):
                if self.draws_entropy:
                    each._entropy = SeededEntropy(10)
            expected = as_data(release_all(mechanism, self.num_subsets, stop))
            assert as_data(release_all(restored, self.num_subsets, stop)) == expected
            assert restored.private_state() == mechanism.private_state()

    def test_the_name_shows_no_secret(self) -> None:
        """Whatever was drawn, a mechanism prints the same: a log line gives nothing away."""
        shown = set()
        for seed in range(20):
            mechanism = self.make(SeededEntropy(seed))
            release_all(mechanism, self.num_subsets)
            for text in (repr(mechanism), str(mechanism), f"{mechanism}"):
                shown.add(re.sub(r"0x[0-9a-f]+", "0x", text))
        assert len(shown) == 1
