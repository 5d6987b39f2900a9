"""Plans of noise: what the certificate of the planned run states is what was asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers_streams import seeded_stream
from sordino.core.errors import InvalidParameterError
from sordino.ledger.certificate import _dp_pool_line
from sordino.mechanisms.candidates import fixed_point_unit
from sordino.mechanisms.gaussian import GaussianMechanism
from sordino.training.dp_plan import ADJACENCIES, DpOptions, DpPlan, make_dp_plan

if TYPE_CHECKING:
    from sordino.ledger.certificate import PoolLine


def line_of(plan: DpPlan, num_releases: int) -> PoolLine:
    """Returns the line of the certificate of a run with this plan and the run's mechanism."""
    mechanism = GaussianMechanism(
        seeded_stream(1),
        noise_multiplier=plan.event.noise_multiplier,
        clip_norm=plan.clip_norm,
        num_releases=num_releases,
        expected_batch_size=plan.expected_units,
        contribution_unit=fixed_point_unit(plan.clip_norm, plan.num_units),
        grid=plan.options.noise == "discrete",
    )
    return _dp_pool_line(
        {
            "dp": plan.describe(),
            "num_steps": plan.event.num_steps,
            "mechanism": mechanism.describe(),
        }
    )


def plan_of(epsilon: float, num_units: int, num_steps: int, **changes: Any) -> DpPlan:
    """Returns a plan with discrete noise, as the zeroth-order recipe for LoRA makes it."""
    given = {"expected_units": None, "clip_norm": 25.0, "num_releases": 1}
    own = {name: changes.pop(name, value) for name, value in given.items()}
    options = DpOptions(epsilon=epsilon, noise="discrete", **changes)
    return make_dp_plan(options, num_units=num_units, num_steps=num_steps, **own)


@pytest.mark.parametrize(
    ("asked", "delta", "noise_before", "delta_before"),
    [((8.0, 90_000, 1000), 3e-7, 2.8165, 3.46e-5), ((10.0, 50_000, 2000), 6e-7, 3.1784, 1e-4)],
)
def test_whole_numbers_are_coarse_for_a_large_batch(
    asked: tuple[float, int, int], delta: float, noise_before: float, delta_before: float
) -> None:
    """Defect: a thousandth of delta was left for the difference, which took 100 times all of it."""
    epsilon, num_units, num_steps = asked
    plan = plan_of(epsilon, num_units, num_steps)
    line = line_of(plan, 1)
    assert line.delta == plan.delta == delta < 0.1 / num_units
    assert 0.4 * epsilon < line.epsilon_upper < epsilon
    event = replace(plan.event, noise_multiplier=noise_before)
    before = replace(plan, event=event, delta_of_normal_noise=delta * (1 - 1e-3))
    assert line_of(before, 1).delta > delta_before  # negative control


def test_whole_numbers_that_are_fine_enough_cost_nothing() -> None:
    """Where a thousandth of delta is enough, no more is taken."""
    plan = plan_of(2.0, 10_000, 1000)
    line = line_of(plan, 1)
    assert (line.delta, plan.event.noise_multiplier) == (3e-6, 8.4624)
    assert 1.99 < line.epsilon_upper <= 2.0


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.floats(0.1, 20.0), st.integers(2, 10**7), st.integers(1, 10**4)),
    st.integers(1, 64) | st.just(4096),
    st.sampled_from([0.3, 25.0, 33.0, 1000.0]),
    st.sampled_from(sorted(ADJACENCIES)),
)
def test_the_certificate_states_what_was_asked(
    asked: tuple[float, int, int], num_releases: int, clip_norm: float, adjacency: str
) -> None:
    """Whole batches, accounted in closed form, over the whole range; or the plan is refused."""
    epsilon, num_units, _ = asked
    try:
        plan = plan_of(
            *asked,
            num_releases=num_releases,
            clip_norm=clip_norm,
            adjacency=adjacency,
            expected_units=num_units,
        )
    except InvalidParameterError as error:
        words = str(error)
        assert "--noise continuous" in words or "noise multiplier above" in words
        return
    line = line_of(plan, num_releases)
    assert line.delta == plan.delta < 0.1 / num_units
    assert 0.0 <= line.epsilon_upper <= epsilon


@pytest.mark.parametrize(
    ("epsilon", "num_units", "num_steps", "num_releases"),
    [(6.0, 20_000, 20, 1), (6.0, 100_000, 50, 8)],
)
def test_the_certificate_of_sampled_batches_states_what_was_asked(
    epsilon: float, num_units: int, num_steps: int, num_releases: int
) -> None:
    """With Poisson sampling, and with several numbers a step."""
    plan = plan_of(epsilon, num_units, num_steps, num_releases=num_releases)
    line = line_of(plan, num_releases)
    assert line.delta == plan.delta < 0.1 / num_units
    assert line.epsilon_upper <= epsilon


def test_more_numbers_a_step_take_more_noise() -> None:
    """Each number's noise differs from normal noise, so a plan for one must not serve many."""
    changes = {"expected_units": 200_000}
    one = plan_of(8.0, 200_000, 100, **changes)
    many = plan_of(8.0, 200_000, 100, num_releases=64, **changes)
    assert many.event.noise_multiplier > 1.1 * one.event.noise_multiplier
    assert line_of(one, 64).delta > one.delta  # negative control
    assert line_of(many, 64).delta == many.delta


def test_refused_where_no_noise_is_enough() -> None:
    """What was required, what was found and what to do; before anything is charged."""
    with pytest.raises(InvalidParameterError, match=r"delta stays at 1e-09.*--noise continuous"):
        plan_of(2.0, 10_000, 10_000, delta=1e-9, expected_units=10_000)


def test_a_number_too_small_for_the_grid_is_answered_by_more_noise() -> None:
    """Noise of fewer than 16 whole numbers is refused by the mechanism, not by the plan."""
    plan = plan_of(20.0, 10**8, 1, expected_units=10**8, delta=1e-6, allow_large_delta=True)
    assert line_of(plan, 1).delta == 1e-6


@pytest.mark.parametrize("bad", [None, 0, 1.5, True])
def test_discrete_noise_needs_the_numbers_of_a_step(bad: Any) -> None:
    """Without them the distance is not known; nothing is assumed."""
    with pytest.raises(InvalidParameterError, match="num_releases"):
        plan_of(8.0, 1000, 10, num_releases=bad)


@pytest.mark.parametrize("bad", [1e-200, 1e200, float("nan")])
def test_a_clip_that_the_mechanism_refuses_is_named(bad: float) -> None:
    """Not the fineness of the numbers."""
    with pytest.raises(InvalidParameterError, match=r"clip|bound"):
        plan_of(8.0, 1000, 10, clip_norm=bad)


def test_continuous_noise_may_use_all_of_delta() -> None:
    """It needs to know nothing about the numbers of a step."""
    options = DpOptions(epsilon=8.0)
    plan = make_dp_plan(options, num_units=90, num_steps=1, expected_units=90, clip_norm=1.0)
    assert plan.delta_of_normal_noise == plan.delta
    assert line_of(plan, 1).delta == plan.delta
