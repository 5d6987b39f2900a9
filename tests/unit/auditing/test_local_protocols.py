"""Audits of single values: closed forms, the level, half the noise, our own releases.

Entropy is seeded. A statement about counts fails for a correct protocol with probability at most
RATE by itself; the bounds of correct protocols are too high with probability at most RATE too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.stats import binom

from helpers_enumeration import SeededEntropy
from sordino.accounting.pac import flip_probability
from sordino.auditing.local_protocols import audit_local_protocol, guess_among
from sordino.auditing.verdict import Claim, Outcome, judge
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.mechanisms.binary_channel import BinaryChannelMechanism
from sordino.mechanisms.candidates import CandidateSubsets
from sordino.mechanisms.local_protocols import (
    GeneralizedRandomizedResponse,
    OptimizedLocalHashing,
    OptimizedUnaryEncoding,
)
from sordino.mechanisms.unanimity import UnanimityMechanism

if TYPE_CHECKING:
    from collections.abc import Callable

    from sordino.auditing.local_protocols import LocalProtocolAudit

RATE = 1e-7
TRIALS = 6_000
KINDS = pytest.mark.parametrize(
    "kind", [GeneralizedRandomizedResponse, OptimizedUnaryEncoding, OptimizedLocalHashing]
)
EPSILONS = pytest.mark.parametrize(("epsilon", "domain_size"), [(1.0, 4), (2.0, 6)])


def assert_rate(count: int, rate: float, trials: int = TRIALS) -> None:
    """Fails with probability at most RATE for a count with this success probability."""
    low, high = binom.ppf([RATE / 2, 1 - RATE / 2], trials, rate)
    assert low <= count <= high


def half_noise(protocol: Any, value: int) -> Any:
    """Returns a report that a protocol with half the noise gives: half of what is wrong stays."""
    report = protocol.release(value)
    entropy = protocol._entropy
    if isinstance(protocol, OptimizedUnaryEncoding):
        return tuple(i for i in report if i == value or bool(entropy.coins(1)[0]))
    if isinstance(protocol, OptimizedLocalHashing):
        right = (report[0], protocol.bucket_of(report[0], value))
    else:
        right = value
    return right if report != right and bool(entropy.coins(1)[0]) else report


def audit(
    protocol: Any, release: Callable[[int], Any], *, num_trials: int = TRIALS
) -> LocalProtocolAudit:
    """Returns the audit by the best attack."""
    return audit_local_protocol(
        release,
        lambda report: protocol.evidence(report, 1, 3),
        1,
        3,
        threshold=1.0,
        num_trials=num_trials,
        significance=RATE,
    )


@KINDS
@EPSILONS
def test_the_best_attack_reaches_the_claim(kind: Any, epsilon: float, domain_size: int) -> None:
    """Counts as in closed form; the bound is below epsilon, and above 2/3 of it."""
    protocol = kind(SeededEntropy([1, domain_size]), epsilon=epsilon, domain_size=domain_size)
    found = audit(protocol, protocol.release)
    first, second = protocol.compute_evidence_rates()
    assert_rate(found.true_positives, first)
    assert_rate(found.false_positives, second)
    assert 2 / 3 * epsilon < found.epsilon_lower <= epsilon


@KINDS
@EPSILONS
def test_the_guess_attack_has_its_closed_form(kind: Any, epsilon: float, domain_size: int) -> None:
    """The published attack: weaker, with the success probability that is stated."""
    protocol = kind(SeededEntropy([2, domain_size]), epsilon=epsilon, domain_size=domain_size)
    rng = np.random.default_rng(3)
    found = audit_local_protocol(
        protocol.release,
        lambda r: float(guess_among(protocol.candidates(r), domain_size, rng) == 1),
        1,
        3,
        threshold=1.0,
        num_trials=TRIALS,
        significance=RATE,
    )
    first, second = protocol.compute_guess_rates()
    assert_rate(found.true_positives, first)
    assert_rate(found.false_positives, second)
    assert found.epsilon_lower <= epsilon
    assert math.log(first / second) <= epsilon


@KINDS
@EPSILONS
def test_half_the_noise_is_contradicted(kind: Any, epsilon: float, domain_size: int) -> None:
    """Negative control: the same audit of a protocol with a wrong probability."""
    protocol = kind(SeededEntropy([4, domain_size]), epsilon=epsilon, domain_size=domain_size)
    broken = audit(protocol, lambda value: half_noise(protocol, value)).measurement("evidence")
    honest = audit(protocol, protocol.release).measurement("evidence")
    claim = Claim("epsilon", epsilon)
    assert judge(claim, [broken], []).outcome is Outcome.CONTRADICTED
    assert judge(claim, [honest], [broken]).outcome is Outcome.CONSISTENT


def test_false_alarms_keep_the_level() -> None:
    """1,000 audits at 5%: randomised response at its own epsilon, where alarms are likeliest.

    Fails with probability at most RATE if alarms come with probability 5%.
    """
    entropy, rng = SeededEntropy(5), np.random.default_rng(6)
    protocol = GeneralizedRandomizedResponse(entropy, epsilon=1.0, domain_size=2)
    keep = protocol.keep_probability
    alarms = 0
    for _ in range(1_000):
        found = audit_local_protocol(
            lambda value: value if rng.random() < keep else 1 - value,
            float,
            1,
            0,
            threshold=1.0,
            num_trials=60,
            significance=0.05,
        )
        alarms += found.epsilon_lower > 1.0
    assert alarms <= binom.isf(RATE, 1_000, 0.05)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_binary_channel_is_audited(wrong: bool) -> None:
    """One bit of the noisy channel is randomised response; half the flips are seen."""
    budget = 0.2
    flip = flip_probability(0.5, budget * (1 - 2.0**-45))
    epsilon = math.log((1 - flip) / flip)
    candidates = CandidateSubsets(num_subsets=2, seed=0)
    entropy = SeededEntropy([7, wrong])

    def release(sign: int) -> int:
        mechanism = BinaryChannelMechanism(candidates, entropy, budget_nats=budget, num_steps=1)
        secret = mechanism.private_state()["secret"]
        sums = np.full((2, 1), -float(sign))
        sums[secret] = sign
        bit = int(mechanism.release(sums, 1.0, 0).integers[0])
        return sign if wrong and bool(entropy.coins(1)[0]) else bit

    found = audit_local_protocol(
        release, float, 1, -1, threshold=0.0, num_trials=3_000, significance=RATE
    )
    if wrong:
        assert found.epsilon_lower > epsilon
    else:
        assert 0.75 * epsilon < found.epsilon_lower <= epsilon


@pytest.mark.parametrize("claimed_flip", [0.2, 0.4])
def test_flipped_unanimity_is_audited(claimed_flip: float) -> None:
    """A unanimous sign against a contested one: ln(1 / (2 flip)); half the flips are seen."""
    mechanism = UnanimityMechanism(
        CandidateSubsets(num_subsets=4, seed=0), SeededEntropy(8), unanimity_flip=0.2
    )
    sums = {"all": np.ones((4, 1)), "some": np.array([[1.0], [1.0], [-1.0], [1.0]])}
    found = audit_local_protocol(
        lambda value: mechanism.release(sums[value], 1.0, 0).integers[0],
        lambda sign: -float(sign),
        "some",
        "all",
        threshold=0.0,
        num_trials=TRIALS,
        significance=RATE,
    )
    claimed = math.log(1 / (2 * claimed_flip))
    if claimed_flip == 0.2:
        assert 2 / 3 * claimed < found.epsilon_lower <= claimed
    else:
        assert found.epsilon_lower > claimed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_trials": 0}, "num_trials"),
        ({"num_trials": math.nan}, "num_trials"),
        ({"delta": math.nan}, "delta"),
        ({"delta": 1.5}, "delta"),
        ({"significance": 0.0}, "significance"),
        ({"significance": math.inf}, "significance"),
        ({"threshold": math.nan}, "threshold"),
        ({"threshold": math.inf}, "threshold"),
        ({"second": 1}, "different values"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    """Before anything is released."""

    def release(value: int) -> int:
        raise AssertionError

    settings = {"first": 1, "second": 0, "threshold": 1.0, "num_trials": 10} | changes
    with pytest.raises(InvalidParameterError, match=message):
        audit_local_protocol(release, float, **settings)


def test_a_score_of_nan_is_refused() -> None:
    with pytest.raises(InvalidDataError, match="NaN"):
        audit_local_protocol(int, lambda _: math.nan, 1, 0, threshold=0.0, num_trials=3)


def test_guess_among_nothing_and_among_strangers() -> None:
    """Without candidates every value is guessed; a candidate outside the domain is refused."""
    rng = np.random.default_rng(0)
    assert {guess_among((), 3, rng) for _ in range(200)} == {0, 1, 2}
    with pytest.raises(InvalidParameterError, match="candidate"):
        guess_among([5], 3, rng)
