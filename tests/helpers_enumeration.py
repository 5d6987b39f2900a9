"""Entropy for tests: every outcome with its exact probability, or a seeded stream.

Nothing here may be used outside tests: secret randomness comes from the operating system.
"""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from mpmath import mp, mpf

from sordino.core.entropy import AbstractEntropy

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

T = TypeVar("T")
A = TypeVar("A", bound="Hashable")
B = TypeVar("B", bound="Hashable")


class ScriptedEntropy(AbstractEntropy):
    """Plays a script of outcomes; where the script ends it takes the first possible outcome."""

    def __init__(self, script: Sequence[int] = ()) -> None:
        self._script = list(script)
        self.taken: list[int] = []
        self.possible: list[list[int]] = []
        self.probability = Fraction(1)
        self.num_indices = 0

    def coins(self, count: int) -> NDArray[np.bool_]:
        """Returns `count` outcomes of a fair coin."""
        fair = (Fraction(1, 2), Fraction(1, 2))
        return np.array([bool(self._choose(fair)) for _ in range(count)], dtype=np.bool_)

    def bernoulli(self, probability: float) -> bool:
        """Returns an outcome that is True with the probability, rounded up as documented."""
        exact = Fraction(math.ceil(Fraction(probability) * 2**53), 2**53)
        return bool(self._choose((1 - exact, exact)))

    def index(self, count: int) -> int:
        """Returns a uniform outcome."""
        self.num_indices += 1
        return self._choose([Fraction(1, count)] * count)

    def normal(self) -> float:
        """Refuses: a continuous outcome cannot be enumerated."""
        raise NotImplementedError

    def next_script(self) -> list[int] | None:
        """Returns the script of the next branch, None if this was the last."""
        taken = list(self.taken)
        while taken and taken[-1] == self.possible[len(taken) - 1][-1]:
            taken.pop()
        if not taken:
            return None
        options = self.possible[len(taken) - 1]
        taken[-1] = options[options.index(taken[-1]) + 1]
        return taken

    def _choose(self, weights: Sequence[Fraction]) -> int:
        """Returns the scripted outcome, or the first that is possible."""
        assert sum(weights) == 1
        possible = [i for i, weight in enumerate(weights) if weight > 0]
        place = len(self.taken)
        outcome = self._script[place] if place < len(self._script) else possible[0]
        self.taken.append(outcome)
        self.possible.append(possible)
        self.probability *= weights[outcome]
        return outcome


class SeededEntropy(AbstractEntropy):
    """A seeded stream, so that a statistical test gives the same verdict each time."""

    def __init__(self, seed: int | Sequence[int]) -> None:
        self._rng = np.random.default_rng(seed)

    def coins(self, count: int) -> NDArray[np.bool_]:
        """Returns fair coins."""
        return self._rng.integers(0, 2, size=count).astype(np.bool_)

    def bernoulli(self, probability: float) -> bool:
        """Returns True with the given probability."""
        return bool(self._rng.random() < probability)

    def index(self, count: int) -> int:
        """Returns a uniform index."""
        return int(self._rng.integers(count))

    def normal(self) -> float:
        """Returns a standard normal number."""
        return float(self._rng.standard_normal())


def enumerate_outcomes(run: Callable[[AbstractEntropy], T]) -> Iterator[tuple[Fraction, T]]:
    """Yields (exact probability, result) of `run` for every sequence of random outcomes."""
    script: list[int] | None = []
    while script is not None:
        entropy = ScriptedEntropy(script)
        result = run(entropy)
        yield entropy.probability, result
        script = entropy.next_script()


def exact_law(run: Callable[[AbstractEntropy], A]) -> dict[A, Fraction]:
    """Returns the exact distribution of what `run` returns."""
    law: dict[A, Fraction] = defaultdict(Fraction)
    for probability, result in enumerate_outcomes(run):
        law[result] += probability
    assert sum(law.values()) == 1
    return dict(law)


def marginals(joint: Mapping[tuple[A, B], Fraction]) -> tuple[dict[A, Fraction], dict[B, Fraction]]:
    """Returns the laws of the first and of the second entry."""
    first: dict[A, Fraction] = defaultdict(Fraction)
    second: dict[B, Fraction] = defaultdict(Fraction)
    for (a, b), probability in joint.items():
        first[a] += probability
        second[b] += probability
    return dict(first), dict(second)


def exact_mutual_information(joint: Mapping[tuple[A, B], Fraction]) -> mpf:
    """Returns the mutual information of a joint law in nats, right to 50 digits."""
    first, second = marginals(joint)
    with mp.workdps(80):
        return sum(
            (
                _mpf(p) * mp.log(_mpf(p / (first[a] * second[b])))
                for (a, b), p in joint.items()
                if p > 0
            ),
            mpf(0),
        )


def bayes_success(joint: Mapping[tuple[A, B], Fraction]) -> Fraction:
    """Returns how often the best guess of the first entry, given the second, is right."""
    best: dict[B, Fraction] = defaultdict(Fraction)
    for (_, b), probability in joint.items():
        best[b] = max(best[b], probability)
    return sum(best.values(), Fraction(0))


def history_sums(
    seed: int, history: Iterable[Sequence[int]], num_subsets: int, num_releases: int
) -> NDArray[np.float64]:
    """Returns whole-number sums that depend on all released symbols, as training makes them do.

    Some columns are unanimous, some nearly, some split; zeros (ties) occur.
    """
    words = [symbol + 1 for step in history for symbol in step]
    rng = np.random.default_rng([seed, len(words), *words])
    lean = rng.choice([-9, -4, -1, 0, 1, 4, 9], size=num_releases)
    return rng.integers(-4, 5, size=(num_subsets, num_releases)).astype(np.float64) + lean


def contested_sums(
    seed: int, history: Iterable[Sequence[int]], num_subsets: int, num_releases: int
) -> NDArray[np.float64]:
    """Returns sums that depend on all released symbols; half of each column is positive."""
    words = [symbol + 1 for step in history for symbol in step]
    rng = np.random.default_rng([seed, len(words), *words])
    half = num_subsets // 2
    signs = np.repeat([1.0, -1.0], [half, num_subsets - half])
    return np.stack([rng.permutation(signs) for _ in range(num_releases)], axis=1)


def _mpf(value: Fraction) -> mpf:
    """Returns a fraction at the working precision."""
    return mpf(value.numerator) / mpf(value.denominator)
