"""Slow, exact answers in mpmath, written from the definitions; nothing here imports sordino.

Each function takes doubles as the exact numbers that they are and returns an `mpf` that is right
to at least 30 digits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpmath import mp, mpf

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Number = float | mpf


def _digits_for(*masses: Number) -> int:
    """Returns a working precision at which differences of order of the smallest mass survive."""
    smallest = min(abs(mpf(mass)) for mass in masses)
    return 60 + 2 * max(0, -int(mp.floor(mp.log10(smallest))))


def binary_entropy(p: Number) -> mpf:
    """Returns -p ln p - (1-p) ln(1-p) at the caller's working precision."""
    p = mpf(p)
    return -sum((x * mp.log(x) for x in (p, 1 - p) if x > 0), mpf(0))


def bit_information(positive_mass: Number, flip: Number) -> mpf:
    """Returns h(q(1-f) + (1-q)f) - h(f), the literal difference, with enough digits."""
    q, f = mpf(positive_mass), mpf(flip)
    bias = 1 - 2 * f
    if q in (0, 1) or bias == 0:
        return mpf(0)
    with mp.workdps(_digits_for(q, 1 - q, bias)):
        return binary_entropy(q * (1 - f) + (1 - q) * f) - binary_entropy(f)


def gaussian_information(positive_mass: Number, noise_std: Number) -> mpf:
    """Returns I(s; s + sigma n) by tanh-sinh quadrature of P(s) ln(P(y|s)/P(y)), 50 digits."""
    with mp.workdps(50):
        q, a = mpf(positive_mass), 2 / mpf(noise_std)
        if q > 0.5:
            q = 1 - q

        def density_weighted_logs(x: mpf) -> mpf:
            # x = y / sigma; a is the distance of the means in standard deviations
            ratio = mp.exp(a * x)
            given_plus = mp.npdf(x, a / 2)
            given_minus = mp.npdf(x, -a / 2)
            log_minus = -mp.log1p(q * (ratio - 1))
            total = q * given_plus * (a * x + log_minus) + (1 - q) * given_minus * log_minus
            return total / scale

        scale = q * min(a * a, mpf(1))  # the tolerance of mp.quad is absolute
        turn = mp.log((1 - q) / q) / a  # where the posterior crosses 1/2
        points = sorted({-a / 2 - 15, -a / 2, mpf(0), a / 2, a / 2 + 15, min(turn, a / 2 + 14)})
        return mp.quad(density_weighted_logs, points) * scale


def flip_for_information(positive_mass: Number, nats: Number) -> mpf:
    """Returns the flip probability whose information is exactly `nats`."""
    q = mpf(positive_mass)
    return _decreasing_root(lambda f: bit_information(q, f), mpf(nats), mpf(0), mpf(0.5))


def bernoulli_divergence(p: Number, prior: Number) -> mpf:
    """Returns p ln(p/prior) + (1-p) ln((1-p)/(1-prior)), with enough digits."""
    p, prior = mpf(p), mpf(prior)
    if p == prior:
        return mpf(0)
    with mp.workdps(_digits_for(prior, 1 - prior, p - prior)):
        pairs = ((p, prior), (1 - p, 1 - prior))
        return sum((x * mp.log(x / y) for x, y in pairs if x > 0), mpf(0))


def posterior(nats: Number, prior: Number) -> mpf:
    """Returns the largest p >= prior whose divergence from the prior is at most `nats`."""
    with mp.workdps(60):
        if mpf(nats) >= -mp.log(mpf(prior)):
            return mpf(1)
        return _decreasing_root(
            lambda p: -bernoulli_divergence(p, prior), -mpf(nats), mpf(prior), mpf(1)
        )


def best_test_success(
    with_record: Sequence[Number], without_record: Sequence[Number], prior: Number
) -> mpf:
    """Returns the average success of the best guess of which law an outcome came from."""
    with mp.workdps(400):  # exact for any prior, so that sums of 1 do not exceed it
        pi = mpf(prior)
        pairs = zip(with_record, without_record, strict=True)
        return sum((max(pi * mpf(p), (1 - pi) * mpf(q)) for p, q in pairs), mpf(0))


def dominating_pair(epsilon: Number, delta: Number) -> tuple[list[mpf], list[mpf]]:
    """Returns the two laws that every (epsilon, delta)-DP pair is a function of."""
    with mp.workdps(400):
        growth, slip = mp.exp(mpf(epsilon)), mpf(delta)
        law = [slip, (1 - slip) * growth / (1 + growth), (1 - slip) / (1 + growth), mpf(0)]
        return law, law[::-1]


def _decreasing_root(
    function: Callable[[mpf], mpf], target: mpf, low: mpf, high: mpf, steps: int = 180
) -> mpf:
    """Returns x in [low, high] where a decreasing function passes the target, by bisection."""
    with mp.workdps(60):
        for _ in range(steps):
            middle = (low + high) / 2
            low, high = (middle, high) if function(middle) > target else (low, middle)
        return (low + high) / 2
