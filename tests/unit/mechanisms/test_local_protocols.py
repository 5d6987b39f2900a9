"""Local protocols: exact laws by enumeration, what they spend, closed forms of attacks."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
from mpmath import mp, mpf

from helpers_enumeration import ScriptedEntropy, exact_law
from helpers_mechanisms import BrokenEntropy
from sordino.core.errors import EntropyError, InvalidParameterError
from sordino.mechanisms.local_protocols import (
    GeneralizedRandomizedResponse,
    OptimizedLocalHashing,
    OptimizedUnaryEncoding,
)

if TYPE_CHECKING:
    from sordino.core.entropy import AbstractEntropy

GRR, OUE, OLH = (
    GeneralizedRandomizedResponse,
    OptimizedUnaryEncoding,
    OptimizedLocalHashing,
)
SETTINGS = [(GRR, 2), (GRR, 5), (OUE, 2), (OUE, 4), (OLH, 3), (OLH, 6)]
EPSILONS = [0.01, 0.5, 2.0, 8.0, 20.0]


def make(
    kind: type, epsilon: float, domain_size: int, entropy: AbstractEntropy | None = None
) -> Any:
    """Returns a protocol; a hash key is one of three, so that all can be enumerated."""
    keys = {"num_hash_functions": 3} if kind is OLH else {}
    entropy = ScriptedEntropy() if entropy is None else entropy
    return kind(entropy, epsilon=epsilon, domain_size=domain_size, **keys)


def laws(kind: type, epsilon: float, domain_size: int) -> list[dict[Any, Fraction]]:
    """Returns the exact law of the report of every value."""
    return [
        exact_law(lambda e, v=value: make(kind, epsilon, domain_size, e).release(v))
        for value in range(domain_size)
    ]


@pytest.mark.parametrize(("kind", "domain_size"), SETTINGS)
@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_probabilities_are_those_that_are_drawn(
    kind: type, domain_size: int, epsilon: float
) -> None:
    """Every report, every value, as fractions."""
    protocol = make(kind, epsilon, domain_size)
    for value, law in enumerate(laws(kind, epsilon, domain_size)):
        assert sum(law.values()) == 1
        assert all(protocol.probability(report, value) == p for report, p in law.items())


@pytest.mark.parametrize(
    ("kind", "domain_size", "epsilon"),
    [
        (kind, domain_size, epsilon)
        for kind, domain_size in SETTINGS
        for epsilon in EPSILONS
        if kind is not OLH or epsilon <= 2.0  # e**epsilon buckets are enumerated
    ],
)
def test_epsilon_is_kept_and_used(kind: type, domain_size: int, epsilon: float) -> None:
    """No ratio of exact probabilities exceeds e**epsilon, and the largest comes close to it."""
    protocol = make(kind, epsilon, domain_size)
    reports = sorted({report for law in laws(kind, epsilon, domain_size) for report in law})
    largest = Fraction(0)
    for report in reports:
        chances = [protocol.probability(report, value) for value in range(domain_size)]
        largest = max(largest, max(chances) / min(chances))
    with mp.workdps(60):
        spent = mp.log(mpf(largest.numerator) / largest.denominator)
        assert spent <= mpf(epsilon)
        assert spent >= mpf(epsilon) * (1 - mpf("1e-6"))


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("domain_size", [2, 3, 1000, 65_536])
def test_keeping_is_rounded_to_the_private_side(epsilon: float, domain_size: int) -> None:
    """Also where nothing can be enumerated: the ratio is at most e**epsilon, exactly."""
    for kind in (GRR, OUE, OLH):
        protocol = kind(ScriptedEntropy(), epsilon=epsilon, domain_size=domain_size)
        if kind is OUE:
            other = Fraction(protocol.other_probability)
            ratio = (1 - other) / other
        else:
            keep = Fraction(protocol.keep_probability)
            ratio = keep * (getattr(protocol, "num_buckets", domain_size) - 1) / (1 - keep)
        with mp.workdps(60):
            spent = mp.log(mpf(ratio.numerator) / ratio.denominator)
            assert mpf(epsilon) * (1 - mpf("1e-5")) <= spent <= mpf(epsilon)


@pytest.mark.parametrize(("kind", "domain_size"), SETTINGS)
def test_draws_do_not_depend_on_the_value(kind: type, domain_size: int) -> None:
    """The same calls with the same numbers of outcomes for every value."""
    shapes = set()
    for value in range(domain_size):
        entropy = ScriptedEntropy()
        make(kind, 1.0, domain_size, entropy).release(value)
        shapes.add(tuple(map(len, entropy.possible)))
    assert len(shapes) == 1


@pytest.mark.parametrize("kind", [GRR, OUE])
@pytest.mark.parametrize("domain_size", [2, 4])
@pytest.mark.parametrize("epsilon", [0.3, 2.0])
def test_closed_forms_are_exact(kind: type, domain_size: int, epsilon: float) -> None:
    """Guess and evidence rates against sums over all reports."""
    protocol = make(kind, epsilon, domain_size)
    law = laws(kind, epsilon, domain_size)
    guesses, evidence = [], []
    for value in (0, 1):
        guess, only_first = Fraction(0), Fraction(0)
        for report, probability in law[value].items():
            named = protocol.candidates(report) or tuple(range(domain_size))
            guess += probability * Fraction(named.count(0), len(named))
            only_first += probability * (protocol.evidence(report, 0, 1) == 1)
        guesses.append(float(guess))
        evidence.append(float(only_first))
    assert protocol.compute_guess_rates() == pytest.approx(guesses, rel=1e-12)
    assert protocol.compute_evidence_rates() == pytest.approx(evidence, rel=1e-12)
    assert math.log(evidence[0] / evidence[1]) == pytest.approx(epsilon, rel=1e-6)


def test_closed_form_of_hashing() -> None:
    """Against the definition for a random hash function, by summing over bucket sizes."""
    for epsilon, size in [(0.5, 4), (1.0, 7), (3.0, 50)]:
        protocol = OLH(ScriptedEntropy(), epsilon=epsilon, domain_size=size)
        g, keep = protocol.num_buckets, protocol.keep_probability
        success = 0.0
        for others in range(size):
            chance = math.comb(size - 1, others) * (1 / g) ** others
            chance *= (1 - 1 / g) ** (size - 1 - others)
            success += keep * chance / (1 + others)
            success += (1 - keep) * chance / size * (others == 0)
        rates = protocol.compute_guess_rates()
        assert rates == pytest.approx((success, (1 - success) / (size - 1)), rel=1e-12)
        first, second = protocol.compute_evidence_rates()
        assert math.log(first / second) == pytest.approx(epsilon, rel=1e-6)


def test_evidence_is_the_likelihood_ratio() -> None:
    """Its sign orders reports as exact likelihoods do."""
    for kind, size in SETTINGS:
        protocol = make(kind, 1.0, size)
        for report in laws(kind, 1.0, size)[0]:
            for first, second in combinations(range(size), 2):
                a, b = (protocol.probability(report, v) for v in (first, second))
                assert protocol.evidence(report, first, second) == (a > b) - (a < b)


@pytest.mark.parametrize("kind", [GRR, OUE, OLH])
@pytest.mark.parametrize("epsilon", [math.nan, math.inf, 0.0, -1.0, 21.0, True])
def test_bad_epsilon_is_refused(kind: type, epsilon: float) -> None:
    with pytest.raises(InvalidParameterError, match="epsilon must be in"):
        make(kind, epsilon, 4)


@pytest.mark.parametrize("kind", [GRR, OUE, OLH])
def test_bad_values_are_refused(kind: type) -> None:
    """A value outside the domain never becomes a report."""
    for size in (1, 0, 70_000, 2.5):
        with pytest.raises(InvalidParameterError, match="domain_size"):
            make(kind, 1.0, size)
    for value in (-1, 4, 1.5, math.nan):
        with pytest.raises(InvalidParameterError, match="value"):
            make(kind, 1.0, 4).release(value)


@pytest.mark.parametrize("kind", [GRR, OUE, OLH])
def test_without_entropy_nothing_is_released(kind: type) -> None:
    with pytest.raises(EntropyError):
        make(kind, 1.0, 4, BrokenEntropy()).release(0)
