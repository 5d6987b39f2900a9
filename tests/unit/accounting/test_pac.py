"""Channel information and its inverse searches: branches, refusals and single values."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import pytest
from mpmath import mpf

import oracles
from sordino.accounting.pac import (
    binary_symmetric_information,
    charge_upper,
    flip_probability,
    gaussian_channel_information,
    gaussian_noise_std,
)
from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Callable

NOT_A_PROBABILITY = [math.nan, math.inf, -math.inf, -1e-300, 1.0 + 1e-15, "0.5", True, None]
NOT_A_BUDGET = [math.nan, math.inf, -math.inf, -1e-300, "0.5", True, None]
TWO_ARGUMENT_FUNCTIONS = [
    binary_symmetric_information,
    gaussian_channel_information,
    flip_probability,
    gaussian_noise_std,
]


@pytest.mark.parametrize("function", TWO_ARGUMENT_FUNCTIONS)
@pytest.mark.parametrize("bad", NOT_A_PROBABILITY)
def test_refuses_what_is_not_a_mass(function: Callable[..., float], bad: float) -> None:
    """NaN, infinite and out-of-range masses raise and name the argument."""
    with pytest.raises(InvalidParameterError, match="positive_mass must be in"):
        function(bad, 0.25)


@pytest.mark.parametrize("bad", [*NOT_A_PROBABILITY, 0.5 + 1e-15])
def test_refuses_what_is_not_a_flip_probability(bad: float) -> None:
    """A flip probability above 1/2 would be a sign error somewhere else."""
    with pytest.raises(InvalidParameterError, match="flip_probability must be in"):
        binary_symmetric_information(0.5, bad)


@pytest.mark.parametrize("bad", [math.nan, -math.inf, -1e-300, "1", True, None])
def test_refuses_what_is_not_a_noise_std(bad: float) -> None:
    """Noise is a number of at least 0; positive infinity alone is special."""
    with pytest.raises(InvalidParameterError, match="noise_std must be at least 0"):
        gaussian_channel_information(0.5, bad)


@pytest.mark.parametrize("function", [flip_probability, gaussian_noise_std])
@pytest.mark.parametrize("bad", NOT_A_BUDGET)
def test_refuses_what_is_not_a_budget(function: Callable[..., float], bad: float) -> None:
    """A bad budget raises even where the sign is known and would be free."""
    for mass in (0.5, 0.0):
        with pytest.raises(InvalidParameterError, match="mutual_information_nats must be"):
            function(mass, bad)


@pytest.mark.parametrize("bad", NOT_A_BUDGET)
def test_refuses_to_charge_what_is_not_information(bad: float) -> None:
    """A charge of NaN would pass every comparison with a budget."""
    with pytest.raises(InvalidParameterError, match="information_nats must be"):
        charge_upper(bad)


@pytest.mark.parametrize("mass", [0.0, 1.0])
def test_a_known_sign_is_free_and_exact(mass: float) -> None:
    """Unanimity costs nothing and needs no noise, at any budget."""
    assert binary_symmetric_information(mass, 0.0) == 0.0
    assert gaussian_channel_information(mass, 0.0) == 0.0
    for budget in (0.0, 1e-12, 1.0):
        assert flip_probability(mass, budget) == 0.0
        assert gaussian_noise_std(mass, budget) == 0.0


@pytest.mark.parametrize("mass", [1e-300, 0.3, 0.5, 1.0 - 1e-16])
def test_budget_zero_sends_nothing(mass: float) -> None:
    """The bit is a fair coin and the noise infinite; both are worth exactly 0 nats."""
    assert flip_probability(mass, 0.0) == 0.5
    assert gaussian_noise_std(mass, 0.0) == math.inf
    assert binary_symmetric_information(mass, 0.5) == 0.0
    assert gaussian_channel_information(mass, math.inf) == 0.0


@pytest.mark.parametrize("mass", [1e-300, 1e-5, 0.3, 0.5])
def test_a_budget_of_the_whole_entropy_sends_the_sign(mass: float) -> None:
    """At h(q), charged, there is no noise; just below there is some."""
    entropy = charge_upper(binary_symmetric_information(mass, 0.0))
    assert flip_probability(mass, entropy) == 0.0
    assert gaussian_noise_std(mass, entropy) == 0.0
    below = math.nextafter(entropy, 0.0)
    assert flip_probability(mass, below) > 0.0
    assert gaussian_noise_std(mass, below) > 0.0


@pytest.mark.parametrize("mass", [5e-324, 1e-310, 1e-300, 0.5])
def test_underflow_is_never_free(mass: float) -> None:
    """Information too small for a double is charged as the smallest normal one."""
    smallest = sys.float_info.min
    assert binary_symmetric_information(mass, math.nextafter(0.5, 0.0)) >= smallest
    assert gaussian_channel_information(mass, 1e300) >= smallest
    for budget in (5e-324, smallest / 2):
        assert flip_probability(mass, budget) == 0.5
        assert gaussian_noise_std(mass, budget) == math.inf


@pytest.mark.parametrize("mass", [1e-300, 1e-9, 0.01, 0.3, 0.5])
@pytest.mark.parametrize("flip", [0.0, 1e-200, 1e-9, 0.01, 0.3, 0.4999, 0.5 - 1e-9, 0.5 - 1e-15])
def test_bit_information_matches_the_oracle(mass: float, flip: float) -> None:
    """Relative error 1e-14, where the difference of two entropies has no digit left."""
    exact = oracles.bit_information(mass, flip)
    if exact > mpf("1e-307"):
        assert abs(binary_symmetric_information(mass, flip) / exact - 1) < 1e-14


@pytest.mark.parametrize(
    ("mass", "noise_std"),
    [(0.5, 0.25), (0.5, 1.0), (0.5, 1e7), (0.1, 3.0), (1e-9, 0.3), (1e-300, 0.045), (1e-300, 1e3)],
)
def test_gaussian_information_matches_the_oracle(mass: float, noise_std: float) -> None:
    """Relative error 1e-14 from saturation down to 2e-314, for sure and for doubtful signs."""
    exact = oracles.gaussian_information(mass, noise_std)
    assert abs(gaussian_channel_information(mass, noise_std) / exact - 1) < 1e-14


def test_gaussian_branches_meet() -> None:
    """The leading term, the quadrature and the entropy agree where they take over."""
    for mass in (0.5, 1e-3, 1e-200):
        for edge in (2.0 / 1e-8, 2.0 / 60.0):
            left = gaussian_channel_information(mass, edge * (1 - 1e-9))
            right = gaussian_channel_information(mass, edge * (1 + 1e-9))
            assert right <= left * (1 + 1e-14)
            assert left == pytest.approx(right, rel=5e-9, abs=0.0)


def test_closed_form_at_tiny_budgets() -> None:
    """f = 1/2 - sqrt(beta / 8q(1-q)) and sigma**2 = 2q(1-q) / beta, to leading order."""
    for mass, budget in ((0.5, 1e-12), (0.1, 1e-10), (1e-6, 1e-16)):
        spread = mass * (1 - mass)
        flip = flip_probability(mass, budget)
        assert 0.5 - flip == pytest.approx(math.sqrt(budget / (8 * spread)), rel=1e-4)
        noise_std = gaussian_noise_std(mass, budget)
        assert noise_std == pytest.approx(math.sqrt(2 * spread / budget), rel=1e-4)


def test_charges_compose_within_the_budget() -> None:
    """Defect: an absolute tolerance overspends. Here 2,000 steps of 1e-4 nats fit exactly."""
    budget, num_steps = 1e-4, 2000
    spent, charged = mpf(0), mpf(0)
    for step in range(num_steps):
        mass = (step % 64 + 1) / 128
        flip = flip_probability(mass, budget / num_steps)
        spent += oracles.bit_information(mass, flip)
        charged += mpf(charge_upper(binary_symmetric_information(mass, flip)))
    assert spent <= charged <= mpf(budget)
    assert charged >= mpf(budget) * (1 - mpf("1e-8"))


def test_gaussian_charges_compose_within_the_budget() -> None:
    """The same for the Gaussian channel; one exact value stands for 2,000 equal steps."""
    budget, num_steps = 1e-4, 2000
    for mass in (0.5, 1 / 128):
        noise_std = gaussian_noise_std(mass, budget / num_steps)
        spent = num_steps * oracles.gaussian_information(mass, noise_std)
        assert mpf(budget) * (1 - mpf("1e-8")) <= spent <= mpf(budget)


def test_absolute_tolerance_overspends_tenfold() -> None:
    """Negative control: stopping within 5e-7 nats of a step's budget spends eleven budgets."""
    budget, num_steps = 1e-4, 2000
    flip = flip_probability(0.5, budget / num_steps + 5e-7)
    assert num_steps * oracles.bit_information(0.5, flip) > 10 * mpf(budget)
