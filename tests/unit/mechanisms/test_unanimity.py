"""PACZero-ZPL: unanimous signs, coins elsewhere, and nothing that depends on a secret subset."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest

from helpers_enumeration import ScriptedEntropy, SeededEntropy, exact_law
from helpers_mechanisms import MechanismContract
from sordino.core.errors import InvalidParameterError
from sordino.mechanisms.candidates import CandidateSubsets
from sordino.mechanisms.unanimity import UnanimityMechanism

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sordino.core.entropy import AbstractEntropy

HALF = Fraction(1, 2)


def make(
    entropy: AbstractEntropy, *, on_disagreement: str = "coin", flip: float = 0.0, M: int = 8
) -> UnanimityMechanism:
    return UnanimityMechanism(
        CandidateSubsets(num_subsets=M),
        entropy,
        on_disagreement=on_disagreement,
        unanimity_flip=flip,
    )


class TestCoin(MechanismContract):
    """The default: coins hide which steps were unanimous."""

    def make(self, entropy: AbstractEntropy) -> UnanimityMechanism:
        return make(entropy)


class TestSkip(MechanismContract):
    """Nothing moves without unanimity; coins are drawn all the same, and not shown."""

    shows_entropy = False

    def make(self, entropy: AbstractEntropy) -> UnanimityMechanism:
        return make(entropy, on_disagreement="skip")


class TestFlip(MechanismContract):
    """Noisy unanimity."""

    def make(self, entropy: AbstractEntropy) -> UnanimityMechanism:
        return make(entropy, flip=0.3)


class TestSkipAndFlip(MechanismContract):
    """Both settings together."""

    def make(self, entropy: AbstractEntropy) -> UnanimityMechanism:
        return make(entropy, on_disagreement="skip", flip=0.3)


def law(sums: NDArray[np.float64], *, on_disagreement: str, flip: float) -> dict[int, Fraction]:
    """Returns the exact law of a single symbol."""

    def run(entropy: AbstractEntropy) -> int:
        mechanism = make(entropy, on_disagreement=on_disagreement, flip=flip, M=4)
        return int(mechanism.release(sums, 1.0, 0).integers[0])

    return exact_law(run)


def column(*values: float) -> NDArray[np.float64]:
    return np.array(values)[:, None]


@pytest.mark.parametrize(
    ("sums", "sign"),
    [
        (column(1, 2, 3, 4), 1),
        (column(-1, -2, -3, -4), -1),
        (column(0, 0, 0, 0), 1),  # a tie counts as +1
        (column(0, 5, 0, 1), 1),
        (column(-0.0, 1, 2, 3), 1),
        (column(-1, 2, 3, 4), None),
        (column(-1, -1, 0, -1), None),  # a tie contradicts a minus
        (column(-1, 1, -1, 1), None),
    ],
)
@pytest.mark.parametrize("flip", [0.0, 0.25])
@pytest.mark.parametrize("on_disagreement", ["coin", "skip"])
def test_exact_law_of_one_release(
    sums: NDArray[np.float64], sign: int | None, flip: float, on_disagreement: str
) -> None:
    """The sign with probability 1 - eta where all agree; elsewhere a fair coin or nothing."""
    found = law(sums, on_disagreement=on_disagreement, flip=flip)
    if sign is None:
        expected = {1: HALF, -1: HALF} if on_disagreement == "coin" else {0: Fraction(1)}
    else:
        expected = {sign: 1 - Fraction(flip), -sign: Fraction(flip)}
    assert found == {symbol: p for symbol, p in expected.items() if p > 0}


def test_the_private_flag_says_which_were_unanimous() -> None:
    """It is for the holder's report only; the symbols do not show it."""
    sums = np.array([[1.0, -1.0, 1.0, 0.0], [1.0, -1.0, -1.0, 0.0]])
    release = make(SeededEntropy(0), M=2).release(sums, 1.0, 0)
    assert release.unanimous.tolist() == [True, True, False, True]


def test_no_secret_is_drawn_or_read() -> None:
    """The mechanism never asks for an index: there is no secret subset in it at all."""
    entropy = ScriptedEntropy()
    mechanism = make(entropy, flip=0.2)
    for step in range(3):
        mechanism.release(np.random.default_rng(step).normal(size=(8, 4)), 1.0, step)
    assert entropy.num_indices == 0
    assert mechanism.private_state() == {}


@pytest.mark.parametrize("flip", [0.0, 0.2])
@pytest.mark.parametrize("on_disagreement", ["coin", "skip"])
def test_draws_do_not_show_unanimity(flip: float, on_disagreement: str) -> None:
    """The same draws are made whether or not the subsets agree: time says nothing."""
    counts = set()
    for sums in (np.ones((8, 3)), -np.ones((8, 3)), np.eye(8)[:, :3] - 0.5):
        entropy = ScriptedEntropy()
        make(entropy, on_disagreement=on_disagreement, flip=flip).release(sums, 1.0, 0)
        counts.add(len(entropy.taken))
    assert len(counts) == 1


def test_size_of_the_sums_does_not_matter() -> None:
    """Only signs are looked at, so the unit and a record's weight in the sum are not."""
    sums = np.random.default_rng(1).normal(size=(8, 6)) + 0.5
    results = [
        make(SeededEntropy(2)).release(sums * scale, unit, 0).integers.tolist()
        for scale, unit in ((1.0, 1.0), (2.0**40, 1.0), (2.0**-40, 1.0), (1.0, 2.0**-30))
    ]
    assert all(result == results[0] for result in results)


def test_it_charges_nothing() -> None:
    """I(S*; Y) = 0 is exact, so the charge is the number 0."""
    mechanism = make(SeededEntropy(3), flip=0.1)
    for step in range(10):
        release = mechanism.release(np.random.default_rng(step).normal(size=(8, 4)), 1.0, step)
        assert release.mutual_information_nats == 0.0


def test_encoding_and_description() -> None:
    """`skip` needs a third symbol; the description carries what the certificate reads."""
    coin, skip = make(SeededEntropy(0), flip=0.25), make(SeededEntropy(0), on_disagreement="skip")
    assert (coin.encoding, skip.encoding) == ("bit", "trit")
    assert coin.describe() == {
        "name": "unanimity",
        "num_subsets": 8,
        "subset_construction": "random-halves",
        "subsets_per_record": None,
        "prior": 0.5,
        "on_disagreement": "coin",
        "unanimity_flip": 0.25,
    }


@pytest.mark.parametrize("flip", [0.5, 0.6, -0.1, 1.0, math.nan, math.inf, True, None])
def test_a_flip_must_be_below_one_half(flip: float) -> None:
    """At 1/2 a unanimous sign would be a coin, and above it a lie."""
    with pytest.raises(InvalidParameterError, match="unanimity_flip must be"):
        make(SeededEntropy(0), flip=flip)


def test_unknown_words_are_refused() -> None:
    """A misspelt setting is not a default."""
    with pytest.raises(InvalidParameterError, match="on_disagreement must be one of coin, skip"):
        make(SeededEntropy(0), on_disagreement="coins")
