"""Laws of what canaries prove, everywhere in the domain."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sordino.attacks.canaries import canary_guess_bound, extraction_chance, tries_needed

PROBABILITIES = st.floats(1e-12, 0.999)


@given(st.integers(0, 10**6), PROBABILITIES, PROBABILITIES)
def test_more_tries_and_likelier_secrets_are_extracted_more(n: int, q: float, r: float) -> None:
    """The chance is a probability that rises in both arguments."""
    low, high = sorted((q, r))
    chance = extraction_chance(n, low)
    assert 0.0 <= chance <= extraction_chance(n, high) <= 1.0
    assert chance <= extraction_chance(n + 1, low) * (1 + 1e-12)


@given(PROBABILITIES, PROBABILITIES)
def test_tries_needed_is_the_least_number(q: float, p: float) -> None:
    """So many tries are enough, and one fewer is not, up to rounding."""
    n = tries_needed(q, p)
    assert extraction_chance(n, q) >= p * (1 - 1e-9)
    assert extraction_chance(n - 1, q) <= p * (1 + 1e-9)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40), st.data())
def test_bound_depends_on_ranks_alone(pairs: list[tuple[int, bool]], data: st.DataObject) -> None:
    """Rescaled scores and another order of the canaries prove the same, never less than 0."""
    scores = np.array([float(score) for score, _ in pairs])
    included = np.array([is_in for _, is_in in pairs])
    guesses = data.draw(st.integers(0, len(pairs)))
    order = np.array(data.draw(st.permutations(range(len(pairs)))))
    bound = canary_guess_bound(scores, included, guesses, 1e-6)
    assert bound.epsilon_lower >= 0.0
    assert 0 <= bound.num_correct <= guesses
    assert canary_guess_bound(np.exp(scores[order]), included[order], guesses, 1e-6) == bound
