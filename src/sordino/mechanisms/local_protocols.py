"""Local protocols: one person's value out of a short list, randomised before it leaves them.

The three are "pure" protocols: a report supports some values and not others, and its likelihood
under a value depends only on whether it supports that value. What attacks on them can reach is
known in closed form, so they are also the yardstick of `sordino.auditing.local_protocols`.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from fractions import Fraction
from typing import TYPE_CHECKING, Generic, TypeVar

from sordino.core.checks import require_in_range, require_integer

if TYPE_CHECKING:
    from sordino.core.entropy import AbstractEntropy

_Report = TypeVar("_Report")
_DRAWABLE = 2.0**53  # entropy draws probabilities that are multiples of 2**-53 exactly
_SLACK = 8  # such multiples; more than the rounding of exp, a sum and a quotient near 1
_SMALLEST_EPSILON, _LARGEST_EPSILON = 0.01, 20.0
_LARGEST_DOMAIN = 2**16


class AbstractLocalProtocol(ABC, Generic[_Report]):
    """A randomised report of one value in [0, domain_size)."""

    def __init__(self, entropy: AbstractEntropy, *, epsilon: float, domain_size: int) -> None:
        self._entropy = entropy
        self.epsilon = require_in_range("epsilon", epsilon, _SMALLEST_EPSILON, _LARGEST_EPSILON)
        self.domain_size = require_integer("domain_size", domain_size, 2, _LARGEST_DOMAIN)

    @abstractmethod
    def release(self, value: int) -> _Report:
        """Returns a fresh report; what is drawn, and how often, does not depend on the value."""

    @abstractmethod
    def probability(self, report: _Report, value: int) -> Fraction:
        """Returns the exact probability of a report of this value."""

    @abstractmethod
    def supports(self, report: _Report, value: int) -> bool:
        """Returns whether the report speaks for the value."""

    @abstractmethod
    def compute_guess_rates(self) -> tuple[float, float]:
        """Returns how often the guess attack names a value: when it is the value, when another is.

        The attack names a random one of `candidates`, or of all values where there are none. The
        first rate is its success probability.
        """

    @abstractmethod
    def compute_evidence_rates(self) -> tuple[float, float]:
        """Returns how often `evidence` is 1: when the first value is the value, when the second is.

        The logarithm of their ratio is what the protocol spends: no attack is better.
        """

    def candidates(self, report: _Report) -> tuple[int, ...]:
        """Returns the values that the report supports, ascending."""
        return tuple(v for v in range(self.domain_size) if self.supports(report, v))

    def evidence(self, report: _Report, first: int, second: int) -> int:
        """Returns 1 if the report supports only the first value, -1 only the second, else 0.

        It is the log-likelihood ratio of the two values, but for a positive factor.
        """
        first, second = self._require_value(first), self._require_value(second)
        return int(self.supports(report, first)) - int(self.supports(report, second))

    def _require_value(self, value: int) -> int:
        """Returns a value of the domain, else raises."""
        return require_integer("value", value, 0, self.domain_size - 1)


class GeneralizedRandomizedResponse(AbstractLocalProtocol[int]):
    """GRR: the value itself with probability p, else a uniform other one.

    Guarantee:
        Each report is epsilon-DP in the value (local model, REPLACE_ONE): p is rounded towards
        more noise, to what the entropy source draws exactly. Assumes: honest caller.

    Args:
        entropy: Secret randomness.
        epsilon: Nats; in [0.01, 20].
        domain_size: Number of values k; in [2, 65536].

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        arXiv:1705.04421, direct encoding: p = e**epsilon / (e**epsilon + k - 1).
    """

    def __init__(self, entropy: AbstractEntropy, *, epsilon: float, domain_size: int) -> None:
        super().__init__(entropy, epsilon=epsilon, domain_size=domain_size)
        self.keep_probability = _keep_probability(self.epsilon, self.domain_size)

    def release(self, value: int) -> int:
        """Returns a value."""
        value = self._require_value(value)
        keeps = self._entropy.bernoulli(self.keep_probability)
        other = self._entropy.index(self.domain_size - 1)
        return value if keeps else other + (other >= value)

    def probability(self, report: int, value: int) -> Fraction:
        """Returns the exact probability of a report of this value."""
        self._require_value(report)
        keep = Fraction(self.keep_probability)
        if report == self._require_value(value):
            return keep
        return (1 - keep) / (self.domain_size - 1)

    def supports(self, report: int, value: int) -> bool:
        """Returns whether the report is the value."""
        return report == value

    def compute_guess_rates(self) -> tuple[float, float]:
        """Returns p and (1 - p) / (k - 1): the guess is the report."""
        return self.keep_probability, (1.0 - self.keep_probability) / (self.domain_size - 1)

    def compute_evidence_rates(self) -> tuple[float, float]:
        """Returns the same two rates."""
        return self.compute_guess_rates()


class OptimizedUnaryEncoding(AbstractLocalProtocol[tuple[int, ...]]):
    """OUE: the value's own bit is a fair coin, every other bit is 1 with probability q.

    Guarantee:
        Each report is epsilon-DP in the value (local model, REPLACE_ONE): q is rounded towards
        1/2, to what the entropy source draws exactly. Assumes: honest caller.

    Args:
        entropy: Secret randomness.
        epsilon: Nats; in [0.01, 20].
        domain_size: Number of values k; in [2, 65536].

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        arXiv:1705.04421, optimized unary encoding: q = 1 / (e**epsilon + 1).
    """

    def __init__(self, entropy: AbstractEntropy, *, epsilon: float, domain_size: int) -> None:
        super().__init__(entropy, epsilon=epsilon, domain_size=domain_size)
        self.other_probability = 1.0 - _keep_probability(self.epsilon, 2)

    def release(self, value: int) -> tuple[int, ...]:
        """Returns the positions of the bits that are 1, ascending."""
        value = self._require_value(value)
        chances = [0.5 if i == value else self.other_probability for i in range(self.domain_size)]
        bits = [self._entropy.bernoulli(chance) for chance in chances]
        return tuple(i for i, bit in enumerate(bits) if bit)

    def probability(self, report: tuple[int, ...], value: int) -> Fraction:
        """Returns the exact probability of a report of this value."""
        value = self._require_value(value)
        ones = {self._require_value(position) for position in report}
        other = Fraction(self.other_probability)
        num_other_ones = len(ones - {value})
        num_other_zeros = self.domain_size - 1 - num_other_ones
        return Fraction(1, 2) * other**num_other_ones * (1 - other) ** num_other_zeros

    def supports(self, report: tuple[int, ...], value: int) -> bool:
        """Returns whether the value's bit is 1."""
        return value in report

    def candidates(self, report: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the report itself."""
        return report

    def compute_guess_rates(self) -> tuple[float, float]:
        """Returns the rates: the guess is one of the bits that are 1.

        With X ~ Binomial(n, q) other bits at 1, E[1 / (1 + X)] = (1 - (1 - q)**(n + 1)) /
        ((n + 1) q); nothing is 1 with probability (1 - q)**(k - 1) / 2. What is left after the
        value is named falls on the others alike.
        """
        k, q = self.domain_size, self.other_probability
        log_zero = math.log1p(-q)
        named = -math.expm1(k * log_zero) / (2.0 * k * q)
        success = named + math.exp((k - 1) * log_zero) / (2.0 * k)
        return success, (1.0 - success) / (k - 1)

    def compute_evidence_rates(self) -> tuple[float, float]:
        """Returns (1 - q) / 2 and q / 2."""
        return (1.0 - self.other_probability) / 2.0, self.other_probability / 2.0


class OptimizedLocalHashing(AbstractLocalProtocol[tuple[int, int]]):
    """OLH: a public hash function of the person's own, and GRR on the value's bucket.

    Guarantee:
        Each report is epsilon-DP in the value (local model, REPLACE_ONE), whatever the hash
        functions are, since the choice among them does not depend on the value. Assumes: honest
        caller. The closed forms below, which are no part of the guarantee, assume that the hash
        functions behave like random ones.

    Args:
        entropy: Secret randomness.
        epsilon: Nats; in [0.01, 20].
        domain_size: Number of values k; in [2, 65536].
        num_hash_functions: How many keys of the hash function there are.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        arXiv:1705.04421, optimized local hashing: g = e**epsilon + 1 buckets, rounded.
        Departure: the hash is keyed BLAKE2b.
    """

    def __init__(
        self,
        entropy: AbstractEntropy,
        *,
        epsilon: float,
        domain_size: int,
        num_hash_functions: int = 2**32,
    ) -> None:
        super().__init__(entropy, epsilon=epsilon, domain_size=domain_size)
        self.num_hash_functions = require_integer(
            "num_hash_functions", num_hash_functions, 1, 2**62
        )
        self.num_buckets = max(round(math.exp(self.epsilon)) + 1, 2)
        self.keep_probability = _keep_probability(self.epsilon, self.num_buckets)

    def release(self, value: int) -> tuple[int, int]:
        """Returns the key of the hash function, and a bucket."""
        value = self._require_value(value)
        key = self._entropy.index(self.num_hash_functions)
        keeps = self._entropy.bernoulli(self.keep_probability)
        other = self._entropy.index(self.num_buckets - 1)
        bucket = self.bucket_of(key, value)
        return key, bucket if keeps else other + (other >= bucket)

    def probability(self, report: tuple[int, int], value: int) -> Fraction:
        """Returns the exact probability of a report of this value, its key included."""
        key, bucket = report
        require_integer("key", key, 0, self.num_hash_functions - 1)
        require_integer("bucket", bucket, 0, self.num_buckets - 1)
        keep = Fraction(self.keep_probability)
        if bucket != self.bucket_of(key, self._require_value(value)):
            keep = (1 - keep) / (self.num_buckets - 1)
        return keep / self.num_hash_functions

    def supports(self, report: tuple[int, int], value: int) -> bool:
        """Returns whether the value falls into the reported bucket."""
        key, bucket = report
        return self.bucket_of(key, value) == bucket

    def bucket_of(self, key: int, value: int) -> int:
        """Returns the value's bucket under one hash function."""
        digest = hashlib.blake2b(
            value.to_bytes(8, "little"), digest_size=16, key=key.to_bytes(8, "little")
        ).digest()
        return int.from_bytes(digest, "little") % self.num_buckets

    def compute_guess_rates(self) -> tuple[float, float]:
        """Returns the rates: the guess is one of the values in the reported bucket.

        As for OUE, with other values in the bucket with probability 1 / g each; the bucket is the
        value's own with probability p, and another and empty with probability (1 - p) (1 -
        1 / g)**(k - 1).
        """
        k, g = self.domain_size, self.num_buckets
        log_other = math.log1p(-1.0 / g)
        named = self.keep_probability * -math.expm1(k * log_other) * g / k
        success = named + (1.0 - self.keep_probability) * math.exp((k - 1) * log_other) / k
        return success, (1.0 - success) / (k - 1)

    def compute_evidence_rates(self) -> tuple[float, float]:
        """Returns p (1 - 1/g) and (1 - p) / (g - 1) (1 - 1/g)."""
        apart = 1.0 - 1.0 / self.num_buckets
        keep = self.keep_probability
        return keep * apart, (1.0 - keep) / (self.num_buckets - 1) * apart


def _keep_probability(epsilon: float, num_values: int) -> float:
    """Returns e**epsilon / (e**epsilon + k - 1), rounded down to a multiple of 2**-53."""
    exact = 1.0 / (1.0 + (num_values - 1) * math.exp(-epsilon))
    # In the ranges above this stays far from 1 / k, where the response would turn around.
    return (math.floor(exact * _DRAWABLE) - _SLACK) / _DRAWABLE
