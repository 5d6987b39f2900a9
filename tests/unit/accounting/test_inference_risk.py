"""Conversions between nats, epsilon and success: branches, refusals and single values."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from mpmath import mp, mpf

import oracles
import sordino.accounting
from sordino.accounting import inference_risk
from sordino.accounting.inference_risk import (
    attribute_guess_success,
    attribute_guess_success_with_correlation,
    attribute_risk,
    epsilon_from_posterior,
    mutual_information_from_posterior,
    posterior_from_epsilon,
    posterior_from_gaussian_mu,
    posterior_from_mutual_information,
    risk,
)
from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Callable

NOT_A_LEVEL = [math.nan, math.inf, -math.inf, -1e-300, "1", True]
NOT_A_PROBABILITY = [math.nan, math.inf, -math.inf, -1e-300, 1.0 + 1e-15, "0.5", True]
ROUNDING = mpf("5e-15")


@pytest.mark.parametrize(
    ("function", "name", "others"),
    [
        (posterior_from_mutual_information, "mutual_information_nats", {}),
        (posterior_from_epsilon, "epsilon", {}),
        (posterior_from_gaussian_mu, "mu", {}),
        (attribute_guess_success, "epsilon", {"delta": 0.1, "num_values": 3}),
        (
            attribute_guess_success_with_correlation,
            "epsilon",
            {"delta": 0.1, "public_success": 0.2},
        ),
        (risk, "epsilon", {}),
    ],
)
@pytest.mark.parametrize("bad", NOT_A_LEVEL)
def test_refuses_what_is_not_a_level(
    function: Callable[..., Any], name: str, others: dict[str, Any], bad: float
) -> None:
    """NaN, infinite and negative levels raise and name the argument."""
    with pytest.raises(InvalidParameterError, match=f"{name} must be at least 0"):
        function(**{name: bad}, **others)


@pytest.mark.parametrize(
    ("function", "name", "others"),
    [
        (posterior_from_epsilon, "delta", {"epsilon": 1.0}),
        (attribute_guess_success, "delta", {"epsilon": 1.0, "num_values": 3}),
        (
            attribute_guess_success_with_correlation,
            "delta",
            {"epsilon": 1.0, "public_success": 0.2},
        ),
        (
            attribute_guess_success_with_correlation,
            "public_success",
            {"epsilon": 1.0, "delta": 0.1},
        ),
        (risk, "delta", {"epsilon": 1.0}),
        (mutual_information_from_posterior, "posterior", {}),
        (epsilon_from_posterior, "posterior", {}),
        (risk, "posterior", {}),
    ],
)
@pytest.mark.parametrize("bad", NOT_A_PROBABILITY)
def test_refuses_what_is_not_a_probability(
    function: Callable[..., Any], name: str, others: dict[str, Any], bad: float
) -> None:
    """NaN, infinite and out-of-range probabilities raise and name the argument."""
    with pytest.raises(InvalidParameterError, match=f"{name} must be in"):
        function(**{name: bad}, **others)


@pytest.mark.parametrize(
    "function",
    [
        lambda prior: posterior_from_mutual_information(0.1, prior),
        lambda prior: mutual_information_from_posterior(0.9, prior),
        lambda prior: posterior_from_epsilon(1.0, 0.0, prior),
        lambda prior: posterior_from_epsilon(1.0, 0.1, prior),
        lambda prior: epsilon_from_posterior(0.9, prior),
        lambda prior: posterior_from_gaussian_mu(1.0, prior),
        lambda prior: risk(epsilon=1.0, prior=prior),
    ],
)
@pytest.mark.parametrize("bad", [*NOT_A_PROBABILITY, 0.0, 1.0])
def test_refuses_what_is_not_a_prior(function: Callable[[float], Any], bad: float) -> None:
    """A prior of 0 or 1 leaves nothing to guess."""
    with pytest.raises(InvalidParameterError, match="prior must be in"):
        function(bad)


@pytest.mark.parametrize("function", [mutual_information_from_posterior, epsilon_from_posterior])
def test_refuses_a_posterior_below_the_prior(function: Callable[..., float]) -> None:
    """No budget makes a release worse than none; the caller has mixed up two numbers."""
    with pytest.raises(InvalidParameterError, match=r"posterior must be in \[0\.5, 1\]"):
        function(0.4999, 0.5)


@pytest.mark.parametrize("bad", [1, 0, -3, 2.5, math.nan, True, None])
def test_refuses_what_is_not_a_number_of_values(bad: int) -> None:
    """One value is no guess."""
    with pytest.raises(InvalidParameterError, match="num_values must be a whole number"):
        attribute_guess_success(1.0, 0.0, bad)


@pytest.mark.parametrize("prior", [1e-300, 1 / 128, 0.5, 0.9, 1.0 - 1e-12])
def test_posterior_matches_the_oracle(prior: float) -> None:
    """From 1e-15 nats to just below the vacuous budget, rounded up by little."""
    for budget in (1e-15, 1e-6, 0.01, 0.5, 0.999999):
        nats = -math.log(prior) * budget
        exact = oracles.posterior(nats, prior)
        result = posterior_from_mutual_information(nats, prior)
        assert exact <= result <= exact + (exact - mpf(prior)) * mpf("1e-8") + mpf("3e-16")


@pytest.mark.parametrize("prior", [1e-300, 1 / 128, 0.5, 0.9])
def test_edges_of_the_posterior(prior: float) -> None:
    """No budget changes nothing; ln(1/prior) allows everything; the inverse agrees."""
    assert posterior_from_mutual_information(0.0, prior) == prior
    assert posterior_from_mutual_information(-math.log(prior), prior) == 1.0
    assert posterior_from_mutual_information(1e300, prior) == 1.0
    assert mutual_information_from_posterior(prior, prior) == 0.0
    assert epsilon_from_posterior(prior, prior) == 0.0
    assert epsilon_from_posterior(1.0, prior) == math.inf
    exact = -mp.log(mpf(prior))
    assert exact * (1 - mpf("3e-11")) <= mutual_information_from_posterior(1.0, prior) <= exact


def test_pure_dp_is_bayes_rule() -> None:
    """Posterior = prior e^eps / (1 - prior + prior e^eps), rounded up, without overflow."""
    for prior in (1e-300, 0.1, 0.5, 0.99):
        for epsilon in (1e-12, 0.5, 3.0, 40.0, 700.0):
            grown = mpf(prior) * mp.exp(epsilon)
            exact = grown / (1 - mpf(prior) + grown)
            assert exact <= posterior_from_epsilon(epsilon, 0.0, prior) <= exact * (1 + ROUNDING)
    assert posterior_from_epsilon(1e308) == 1.0
    assert posterior_from_epsilon(0.0, 0.0, 0.3) == 0.3


@pytest.mark.parametrize("prior", [0.01, 0.25, 0.5, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.3, 1.0])
def test_average_success_is_that_of_the_best_test(
    prior: float, epsilon: float, delta: float
) -> None:
    """Equals brute force over all tests between the two dominating laws, at every prior."""
    exact = oracles.best_test_success(*oracles.dominating_pair(epsilon, delta), prior)
    result = posterior_from_epsilon(epsilon, delta, prior)
    assert exact <= result <= min(mpf(1), exact * (1 + ROUNDING))


def test_posterior_and_average_success_differ_away_from_one_half() -> None:
    """They meet at prior 1/2 only; elsewhere neither may stand in for the other."""
    assert posterior_from_epsilon(1.0, 1e-12, 0.5) == pytest.approx(posterior_from_epsilon(1.0))
    assert posterior_from_epsilon(1.0, 0.0, 0.9) == pytest.approx(0.96073, abs=1e-5)
    assert posterior_from_epsilon(1.0, 1e-12, 0.9) == pytest.approx(0.9)
    assert posterior_from_epsilon(1.0, 0.0, 0.1) == pytest.approx(0.23197, abs=1e-5)
    assert posterior_from_epsilon(1.0, 1e-12, 0.1) == pytest.approx(0.9)


@pytest.mark.parametrize("prior", [0.01, 0.4, 0.5, 0.8])
@pytest.mark.parametrize("mu", [1e-3, 0.5, 1.0, 6.0])
def test_gaussian_success_is_that_of_the_best_test(mu: float, prior: float) -> None:
    """Equals the integral of the larger weighted density, which is the best test's success."""
    with mp.workdps(30):
        cut = mpf(mu) / 2 + mp.log((1 - mpf(prior)) / mpf(prior)) / mpf(mu)
        exact = mpf(prior) * mp.ncdf(mpf(mu) - cut) + (1 - mpf(prior)) * mp.ncdf(cut)
        result = posterior_from_gaussian_mu(mu, prior)
        assert exact <= result <= exact * (1 + ROUNDING)


def test_gaussian_success_at_the_edges() -> None:
    """No release leaves the blind guess; a huge mu reveals; 1/2 gives Phi(mu/2)."""
    assert posterior_from_gaussian_mu(0.0, 0.2) == 0.8
    assert posterior_from_gaussian_mu(5e-324, 0.2) == pytest.approx(0.8)
    assert posterior_from_gaussian_mu(1e300, 0.2) == 1.0
    assert posterior_from_gaussian_mu(2.0) == pytest.approx(0.8413447460685429, rel=1e-14)


def test_attribute_guess_matches_its_formula_and_one_half() -> None:
    """Two values are the yes-or-no guess at prior 1/2; nothing learned leaves 1/G."""
    for epsilon, delta in ((0.0, 0.0), (0.7, 0.0), (1.0, 1e-3), (900.0, 0.2)):
        two = attribute_guess_success(epsilon, delta, 2)
        assert two == pytest.approx(posterior_from_epsilon(epsilon, delta), rel=1e-14)
        grown = mp.exp(mpf(epsilon))
        exact = (grown + 9 * mpf(delta)) / (grown + 9)
        assert exact <= attribute_guess_success(epsilon, delta, 10) <= exact * (1 + ROUNDING)
    assert attribute_guess_success(0.0, 1.0, 10) == 1.0


@pytest.mark.parametrize(
    ("epsilon", "delta", "known"),
    [(0.1, 0.0, 0.8), (0.1, 1e-3, 0.01), (5.0, 0.0, 1e-9), (720.0, 0.0, 5e-324), (800.0, 0.3, 0.0)],
)
def test_correlated_guess_matches_its_formula(epsilon: float, delta: float, known: float) -> None:
    """The smaller of the two sides of DP, rounded up, without overflow."""
    with mp.workdps(400):
        grown = mp.exp(mpf(epsilon))
        slip, start = mpf(delta), mpf(known)
        exact = min(grown * start + slip, 1 - (1 - start - slip) / grown, mpf(1))
        result = attribute_guess_success_with_correlation(epsilon, delta, known)
        assert exact <= result <= exact * (1 + ROUNDING)


def test_correlated_guess_at_the_edges() -> None:
    """What is public stays; what delta allows is capped at 1; a huge epsilon hides nothing."""
    assert attribute_guess_success_with_correlation(0.0, 0.0, 0.25) == pytest.approx(0.25)
    assert attribute_guess_success_with_correlation(1.0, 1.0, 0.5) == 1.0
    assert attribute_guess_success_with_correlation(1e308, 0.0, 1e-300) == 1.0


def test_risk_keeps_what_was_stated() -> None:
    """Each language round-trips through the others at prior 1/2."""
    by_nats = risk(mutual_information=0.33)
    by_posterior = risk(posterior=by_nats.posterior)
    by_epsilon = risk(epsilon=by_nats.epsilon_matched)
    assert (by_nats.given, by_nats.mutual_information_nats) == ("mutual_information", 0.33)
    assert (by_epsilon.given, by_epsilon.epsilon_matched) == ("epsilon", by_nats.epsilon_matched)
    assert (by_posterior.given, by_posterior.posterior) == ("posterior", by_nats.posterior)
    for level in (by_posterior, by_epsilon):
        assert level.mutual_information_nats == pytest.approx(0.33, rel=1e-9)
        assert level.posterior == pytest.approx(by_nats.posterior, rel=1e-12)
        assert level.epsilon_matched == pytest.approx(by_nats.epsilon_matched, rel=1e-9)
        assert not level.is_vacuous


def test_risk_with_delta_matches_the_average_success() -> None:
    """The matched epsilon is the pure one with the same success, slightly above the stated."""
    level = risk(epsilon=1.0, delta=0.01)
    assert level.posterior == posterior_from_epsilon(1.0, 0.01)
    assert level.epsilon_matched == epsilon_from_posterior(level.posterior) > 1.0
    assert level.delta == 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of .* got none"),
        ({"epsilon": 1.0, "posterior": 0.9}, "exactly one of .* got epsilon, posterior"),
        ({"mutual_information": 0.1, "delta": 1e-5}, "delta belongs to epsilon"),
        ({"epsilon": 1.0, "delta": 1e-5, "prior": 0.6}, "prior must be 0.5 where delta > 0"),
        ({"mutual_information": math.nan}, "mutual_information_nats must be at least 0"),
        ({"posterior": 0.4}, "posterior must be in"),
    ],
)
def test_risk_refuses(arguments: dict[str, float], message: str) -> None:
    """Contradicting or missing levels raise with the remedy."""
    with pytest.raises(InvalidParameterError, match=message):
        risk(**arguments)


@pytest.mark.parametrize(
    "level",
    [
        risk(mutual_information=0.11),
        risk(epsilon=2.0),
        risk(epsilon=2.0, delta=1e-5),
        risk(posterior=0.6),
        risk(mutual_information=1.0),
        risk(mutual_information=0.1, prior=1 / 128),
    ],
)
def test_risk_in_words_names_average_and_worst_case(level: inference_risk.Risk) -> None:
    """Whoever reads both numbers also reads that they are different kinds of statement."""
    text = "\n".join(level.lines())
    assert "bounds an average, over the secret and its candidates" in text
    assert "bounds a worst case" in text
    assert "a PAC budget implies no epsilon" in text
    assert ("Vacuous" in text) == level.is_vacuous == (level.posterior == 1.0)
    assert ("several candidates" in text) == (level.prior < 0.5)
    assert ("with delta 1e-05" in text) == (level.delta > 0)
    assert text.count("(stated)") == int(level.given != "posterior" and level.delta == 0)
    assert all(len(line) <= 100 for line in level.lines())


def test_risk_display_never_rounds_a_success_down() -> None:
    """0.730112 prints as 0.7302; a prior prints as it is."""
    assert "at most 0.7302 " in risk(mutual_information=0.11).lines()[0]
    assert "at most 0.5500 (before: 0.55)" in risk(mutual_information=0.0, prior=0.55).lines()[0]


def test_risk_is_json() -> None:
    """An infinite epsilon is null, since JSON has no infinity."""
    fields = json.loads(json.dumps(risk(posterior=1.0).as_dict(), allow_nan=False))
    assert fields["epsilon_matched"] is None
    assert fields["is_vacuous"] is True
    assert set(fields) == {
        "given",
        "mutual_information_nats",
        "posterior",
        "epsilon_matched",
        "delta",
        "prior",
        "is_vacuous",
        "attribute",
    }
    assert fields["attribute"] is None
    fields = json.loads(json.dumps(risk(epsilon=1.0, attribute_values=4).as_dict()))
    assert fields["attribute"]["num_values"] == 4


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("delta", [0.0, 1e-3])
def test_advantage_at_two_values_has_its_closed_form(epsilon: float, delta: float) -> None:
    """(e^epsilon - 1 + 2 delta) / (e^epsilon + 1), rounded up."""
    exact = (mp.exp(epsilon) - 1 + 2 * mpf(delta)) / (mp.exp(epsilon) + 1)
    found = attribute_risk(epsilon, delta, num_values=2).advantage
    assert found is not None
    assert 0 <= found - exact <= 1e-14


def test_advantage_over_public_data() -> None:
    """(success - p0) / (1 - p0); nothing is left to gain where public data tell all."""
    level = attribute_risk(1.0, 1e-5, public_success=0.6)
    success = attribute_guess_success_with_correlation(1.0, 1e-5, 0.6)
    assert level.correlated_success == success
    assert level.correlated_advantage == pytest.approx((success - 0.6) / 0.4, rel=1e-12)
    assert (level.num_values, level.success, level.advantage) == (None, None, None)
    assert attribute_risk(1.0, 0.0, public_success=1.0).correlated_advantage == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 1.0, "delta": 0.0}, "or both"),
        ({"epsilon": 1.0, "delta": 0.0, "num_values": 1}, "num_values"),
        ({"epsilon": math.nan, "delta": 0.0, "num_values": 2}, "epsilon"),
        ({"epsilon": 1.0, "delta": 0.0, "num_values": 4, "public_success": 0.2}, "public_success"),
    ],
)
def test_attribute_risk_refuses(arguments: dict[str, Any], message: str) -> None:
    """Public data never tell less than a blind guess among equally likely values."""
    with pytest.raises(InvalidParameterError, match=message):
        attribute_risk(**arguments)


def test_attribute_bounds_belong_to_epsilon() -> None:
    """A PAC budget implies no epsilon for a change of an attribute."""
    with pytest.raises(InvalidParameterError, match="belong to epsilon"):
        risk(mutual_information=0.1, attribute_values=4)
    with pytest.raises(InvalidParameterError, match="belong to epsilon"):
        risk(posterior=0.6, public_success=0.3)


def test_attribute_bounds_in_words_name_their_scope() -> None:
    """The bound on training records and the records of a prompt are two statements."""
    lines = risk(epsilon=1.0, attribute_values=10, public_success=0.3).lines()
    text = "\n".join(lines)
    assert "10 equally likely values: a guess is right with probability at most 0.2320" in text
    assert "advantage of at most 0.1467" in text
    assert "public data give away with probability 0.3: with the release at most 0.7425" in text
    assert "Scope: attributes of records used in training." in lines[-1]
    assert "no training epsilon says anything" in lines[-1]
    assert "Scope" not in "\n".join(risk(epsilon=1.0).lines())


@pytest.mark.parametrize("module", [sordino.accounting, inference_risk])
def test_exports_are_sorted_and_real(module: Any) -> None:
    """Every exported name exists, once, in order."""
    assert module.__all__ == sorted(set(module.__all__))
    assert all(hasattr(module, name) for name in module.__all__)
