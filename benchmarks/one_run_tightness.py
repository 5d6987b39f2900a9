"""How much of a Gaussian mechanism's epsilon one run with many canaries can prove.

Run: python benchmarks/one_run_tightness.py [--num-canaries 10000] [--delta 1e-5] [--repeats 20]

Every canary has a coin and one released number: mu if it is in, plus standard normal noise. The
mechanism is exactly mu-Gaussian-DP, and this is the strongest attack on it. The table has the true
epsilon at delta, the bound for (epsilon, delta)-DP, and the epsilon of the bound for Gaussian DP,
as medians over the repeats with their share of the truth, for three numbers of guesses fixed
beforehand: all, a tenth, and the number that is best for the expected count of right guesses (a
plan made from mu alone, one for each bound). "above" counts bounds that exceed the truth; 5% may.
"""

from __future__ import annotations

import argparse
import math
from functools import lru_cache
from statistics import median

import numpy as np
from scipy.special import ndtr
from scipy.stats import norm

from sordino.accounting.dp import ADD_OR_REMOVE_ONE, SampledGaussian, compute_epsilon
from sordino.auditing.one_run import (
    count_correct_guesses,
    epsilon_lower_bound,
    gaussian_epsilon_lower_bound,
)

MUS = (0.5, 1.0, 2.0, 4.0)
SEED = 20260101  # public simulation
BOUNDS = {
    "(epsilon, delta)": lru_cache(maxsize=None)(epsilon_lower_bound),
    "Gaussian DP": lru_cache(maxsize=None)(gaussian_epsilon_lower_bound),
}
HEADER = "mu   true    bound             guesses        right    epsilon  share  above"


def true_epsilon(mu: float, delta: float) -> float:
    """Returns the epsilon of one release with this mean difference."""
    event = SampledGaussian(
        noise_multiplier=1.0 / mu,
        sampling_probability=1.0,
        num_steps=1,
        neighboring_relation=ADD_OR_REMOVE_ONE,
    )
    return compute_epsilon(event, delta).epsilon_upper


def expected_right(num_canaries: int, num_guesses: int, mu: float) -> int:
    """Returns the expected count of right guesses from both ends, rounded down."""
    # the cut above which the mixture of in and out has the wanted share
    share = 0.5 * num_guesses / num_canaries
    low, high = -10.0, mu + 40.0
    for _ in range(100):
        cut = 0.5 * (low + high)
        if norm.sf(cut) + norm.sf(cut - mu) > 2.0 * share:
            low = cut
        else:
            high = cut
    return math.floor(num_guesses * float(ndtr(mu - low) / (2.0 * share)))


def planned_guesses(bound: str, num_canaries: int, mu: float, delta: float) -> int:
    """Returns the number of guesses that is best for the expected count."""
    choices = sorted({2 * round(0.5 * x) for x in np.geomspace(20, num_canaries, 40)})
    return max(
        choices,
        key=lambda num: BOUNDS[bound](
            num_canaries, num, expected_right(num_canaries, num, mu), delta
        ),
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-canaries", type=int, default=10_000)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    random = np.random.default_rng(SEED)
    print(f"m = {options.num_canaries}, delta = {options.delta:g}, {options.repeats} runs, 95%")
    print(HEADER)
    for mu in MUS:
        truth = true_epsilon(mu, options.delta)
        members = random.random((options.repeats, options.num_canaries)) < 0.5
        scores = mu * members + random.normal(size=members.shape)
        for name, bound in BOUNDS.items():
            plans = {
                "all": options.num_canaries,
                "tenth": options.num_canaries // 10,
                "plan": planned_guesses(name, options.num_canaries, mu, options.delta),
            }
            for plan, num in plans.items():
                right = [
                    count_correct_guesses(row, coins, num // 2, num - num // 2)
                    for row, coins in zip(scores, members, strict=True)
                ]
                found = [bound(options.num_canaries, num, v, options.delta) for v in right]
                print(
                    f"{mu:<4g} {truth:<7.3f} {name:<17} {plan + ' ' + str(num):<14} "
                    f"{median(right):<8g} {median(found):<8.3f} {median(found) / truth:<6.2f} "
                    f"{sum(value > truth for value in found)}"
                )


if __name__ == "__main__":
    main()
