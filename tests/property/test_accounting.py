"""Laws of the accounting layer over its whole domain, against oracles that share no code."""

from __future__ import annotations

import math
import sys

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy.special import ndtr

import oracles
from sordino.accounting import (
    binary_symmetric_information,
    charge_upper,
    epsilon_from_posterior,
    flip_probability,
    gaussian_channel_information,
    gaussian_noise_std,
    mutual_information_from_posterior,
    posterior_from_epsilon,
    posterior_from_gaussian_mu,
    posterior_from_mutual_information,
)

SMALLEST = sys.float_info.min
LN_2 = math.log(2.0)
FEW = settings(max_examples=25, deadline=None)
SOME = settings(max_examples=150, deadline=None)


def log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    """Returns numbers whose order of magnitude is drawn evenly."""
    logs = st.floats(math.log(low), math.log(high))
    return logs.map(lambda value: min(max(math.exp(value), low), high))


masses = log_uniform(1e-300, 0.5) | st.floats(0.001, 0.999) | st.just(0.5)
flips = (
    st.floats(0.0, 0.5)
    | log_uniform(1e-300, 0.5)
    | log_uniform(1e-15, 0.5).map(lambda gap: 0.5 - gap)
)
budgets = log_uniform(1e-15, LN_2)
priors = st.just(0.5) | st.floats(0.001, 0.999) | log_uniform(1e-300, 0.5)


@SOME
@example(mass=0.025368952976795877, flip=0.39652137849002095)  # worst understatement found
@example(mass=0.038914511018508006, flip=0.39306091854047015)  # worst overstatement found
@example(mass=1e-300, flip=0.5 - 1e-9)  # underflows
@given(mass=masses, flip=flips)
def test_bit_charge_is_never_below_the_exact_information(mass: float, flip: float) -> None:
    """And above it by less than 2e-12 of itself, or by the smallest normal double."""
    exact = oracles.bit_information(mass, flip)
    charge = charge_upper(binary_symmetric_information(mass, flip))
    assert exact <= charge <= max(exact * (1 + mpf("2e-12")), 2 * SMALLEST)


@FEW
@example(mass=0.003512797348512627, noise_std=14.740543081572284)  # worst errors found
@example(mass=9.332887487585836e-59, noise_std=0.04027587444326744)
@example(mass=0.5, noise_std=1e8)
@example(mass=1e-300, noise_std=0.05)
@given(mass=masses, noise_std=log_uniform(0.03, 1e8))
def test_gaussian_charge_is_never_below_the_exact_information(
    mass: float, noise_std: float
) -> None:
    """And above it by less than 2e-12 of itself, or by the smallest normal double."""
    exact = oracles.gaussian_information(mass, noise_std)
    charge = charge_upper(gaussian_channel_information(mass, noise_std))
    assert exact <= charge <= max(exact * (1 + mpf("2e-12")), 2 * SMALLEST)


@SOME
@example(mass=0.5, budget=1e-15)
@example(mass=0.5, budget=LN_2)
@example(mass=1e-300, budget=6.9e-298)  # nearly its whole entropy
@given(mass=masses, budget=budgets | log_uniform(1e-300, 1e-15))
def test_flip_probability_spends_its_budget_and_no_more(mass: float, budget: float) -> None:
    """Exact information <= charge <= budget, and close to it where doubles are fine enough."""
    flip = flip_probability(mass, budget)
    information = binary_symmetric_information(mass, flip)
    assert oracles.bit_information(mass, flip) <= charge_upper(information) <= budget
    if flip > 0 and budget >= 1e-20:
        assert charge_upper(information) >= budget * (1 - 1e-10 - 1e-15 / math.sqrt(budget))


@SOME
@given(mass=log_uniform(1e-300, 0.5), share=st.floats(1e-6, 1 - 1e-9))
def test_flip_probability_is_tight_for_rare_signs(mass: float, share: float) -> None:
    """The same where the budget is a share of the entropy, however small that is."""
    budget = binary_symmetric_information(mass, 0.0) * share
    flip = flip_probability(mass, budget)
    information = oracles.bit_information(mass, flip)
    assert budget * (1 - mpf("1e-10")) <= information <= budget


@FEW
@given(mass=log_uniform(1e-6, 0.5), budget=log_uniform(1e-12, LN_2))
def test_flip_probability_agrees_with_bisection(mass: float, budget: float) -> None:
    """The flip probability itself, against 180 halvings at 60 digits."""
    flip = flip_probability(mass, budget)
    exact = oracles.flip_for_information(mass, budget)
    assert exact <= flip + mpf("1e-50")  # the resolution of the bisection
    assert flip - exact <= (mpf(0.5) - exact) * mpf("1e-8") + mpf("1e-9") * exact


@SOME
@example(mass=0.5, budget=1e-300)
@given(mass=masses, budget=budgets | log_uniform(1e-300, 1e-15))
def test_noise_std_spends_its_budget_and_no_more(mass: float, budget: float) -> None:
    """Charge <= budget, and at least budget * (1 - 1e-10) wherever there is noise."""
    noise_std = gaussian_noise_std(mass, budget)
    charge = charge_upper(gaussian_channel_information(mass, noise_std))
    assert charge <= budget
    if noise_std > 0:
        assert charge >= budget * (1 - 1e-10)


@SOME
@given(mass=st.floats(0.5, 1.0), flip=flips, noise_std=log_uniform(0.1, 1e8))
def test_information_is_symmetric_in_the_sign(mass: float, flip: float, noise_std: float) -> None:
    """Exchanging the two signs changes nothing, to the last bit (1 - q is exact here)."""
    assert binary_symmetric_information(mass, flip) == binary_symmetric_information(1 - mass, flip)
    left = gaussian_channel_information(mass, noise_std)
    assert left == gaussian_channel_information(1 - mass, noise_std)


@SOME
@given(mass=masses, small=flips, large=flips, noise_std=log_uniform(0.02, 1e6))
def test_more_noise_tells_less(mass: float, small: float, large: float, noise_std: float) -> None:
    """Information falls with the flip probability and with the noise, and never exceeds h(q)."""
    small, large = sorted((small, large))
    rounding = 1 + 2e-14
    entropy = binary_symmetric_information(mass, 0.0)
    less = binary_symmetric_information(mass, large)
    assert less <= binary_symmetric_information(mass, small) * rounding <= entropy * rounding**2
    noisy = gaussian_channel_information(mass, noise_std * 1.5)
    assert noisy <= gaussian_channel_information(mass, noise_std) * rounding
    assert gaussian_channel_information(mass, noise_std) <= entropy * rounding


@SOME
@given(mass=masses, noise_std=log_uniform(0.2, 1e6))
def test_taking_the_sign_loses_information(mass: float, noise_std: float) -> None:
    """Data processing: the sign of the noisy value tells less than the value."""
    flip = float(ndtr(-1.0 / noise_std))
    value = gaussian_channel_information(mass, noise_std)
    assert binary_symmetric_information(mass, flip) <= value * (1 + 1e-12)


@SOME
@given(mass=masses, budget=log_uniform(1e-12, 0.5))
def test_a_flipped_bit_errs_less_than_a_gaussian_sign(mass: float, budget: float) -> None:
    """At equal information the direct channel wins: that is why it is the default."""
    assume(binary_symmetric_information(mass, 0.0) > budget * 1.001)
    sign_error = float(ndtr(-1.0 / gaussian_noise_std(mass, budget)))
    assert flip_probability(mass, budget) <= sign_error * (1 + 1e-9)


@FEW
@example(budget=1e-33, prior=0.5)
@example(budget=0.6931471805592522, prior=0.5)  # 1e-12 below vacuous
@given(budget=log_uniform(1e-15, 2.0), prior=priors)
def test_posterior_never_understates(budget: float, prior: float) -> None:
    """At least the exact supremum, and above it by little."""
    exact = oracles.posterior(budget, prior)
    result = posterior_from_mutual_information(budget, prior)
    assert exact <= result <= 1
    assert result <= exact + (exact - mpf(prior)) * mpf("1e-6") + mpf("1e-11")


@SOME
@given(budget=log_uniform(1e-15, 2.0), growth=log_uniform(1 + 1e-9, 10.0), prior=priors)
def test_posterior_rises_with_budget(budget: float, growth: float, prior: float) -> None:
    """A larger budget never looks safer; no budget looks better than blind guessing."""
    smaller = posterior_from_mutual_information(budget, prior)
    assert prior <= smaller <= posterior_from_mutual_information(budget * growth, prior) <= 1


@SOME
@example(prior=1.0000000000000237e-300, rise=0.12982223709683763)  # worst round trip found
@given(prior=priors, rise=st.floats(0.0, 1.0))
def test_budget_from_posterior_keeps_its_promise(prior: float, rise: float) -> None:
    """The budget is below the exact divergence, and leads back to the posterior or below."""
    posterior = min(prior + rise * (1.0 - prior), 1.0)
    budget = mutual_information_from_posterior(posterior, prior)
    exact = oracles.bernoulli_divergence(posterior, prior)
    assert exact * (1 - mpf("3e-11")) - 2 * SMALLEST <= budget <= exact
    back = posterior_from_mutual_information(budget, prior)
    assert back <= posterior + 2 * math.ulp(posterior)
    assert oracles.bernoulli_divergence(back, prior) >= budget


@SOME
@given(epsilon=log_uniform(1e-12, 30.0), prior=priors)
def test_matched_epsilon_inverts_pure_dp(epsilon: float, prior: float) -> None:
    """logit(posterior) - logit(prior) is the epsilon that allowed the posterior."""
    posterior = posterior_from_epsilon(epsilon, 0.0, prior)
    assume(posterior < 1.0)
    with mp.workdps(50):
        p, pi = mpf(posterior), mpf(prior)
        exact = mp.log(p / (1 - p)) - mp.log(pi / (1 - pi)) if pi > mpf("1e-30") else None
        matched = epsilon_from_posterior(posterior, prior)
        assert exact is None or abs(matched - exact) <= mpf("1e-14") * exact
    assert matched >= epsilon * (1 - 1e-14)


@SOME
@given(
    epsilon=log_uniform(1e-9, 50.0),
    delta=log_uniform(1e-20, 1.0),
    prior=priors,
    growth=st.floats(1.0, 3.0),
)
def test_average_success_is_best_test_and_monotone(
    epsilon: float, delta: float, prior: float, growth: float
) -> None:
    """Never below brute force; never falls with epsilon or delta."""
    exact = oracles.best_test_success(*oracles.dominating_pair(epsilon, delta), prior)
    success = posterior_from_epsilon(epsilon, delta, prior)
    assert exact <= success <= min(mpf(1), exact * (1 + mpf("5e-15")))
    assert success <= posterior_from_epsilon(epsilon * growth, delta, prior) * (1 + 1e-15)
    assert success <= posterior_from_epsilon(epsilon, min(delta * growth, 1.0), prior) * (1 + 1e-15)


@SOME
@given(mu=log_uniform(1e-6, 40.0), prior=priors, growth=st.floats(1.0, 3.0))
def test_gaussian_success_is_a_probability_and_monotone(
    mu: float, prior: float, growth: float
) -> None:
    """At least the blind guess, never falls with mu."""
    success = posterior_from_gaussian_mu(mu, prior)
    assert max(prior, 1 - prior) <= success <= 1
    assert success <= posterior_from_gaussian_mu(mu * growth, prior) * (1 + 1e-14)
