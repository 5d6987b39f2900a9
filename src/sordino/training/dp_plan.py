"""What differential privacy was asked for, and the noise that gives it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context
from typing import TYPE_CHECKING, Any

from sordino.accounting.dp import (
    ADD_OR_REMOVE_ONE,
    NOISE_MULTIPLIERS,
    REPLACE_ONE,
    SampledGaussian,
    calibrate_noise_multiplier,
    require_small_delta,
)
from sordino.accounting.nearly_normal import NearlyNormalNoise, calibrate_nearly_normal_noise
from sordino.core.checks import require_integer, require_one_of, require_positive
from sordino.core.errors import InvalidParameterError
from sordino.mechanisms.candidates import fixed_point_unit
from sordino.mechanisms.gaussian import GaussianMechanism

if TYPE_CHECKING:
    from collections.abc import Callable

    from sordino.core.secret_stream import SecretStream

ADJACENCIES = {"add-remove": ADD_OR_REMOVE_ONE, "replace": REPLACE_ONE}
CLIPPINGS = ("flat", "per-layer", "automatic")
NOISES = ("continuous", "discrete")
RECORD = "record"


@dataclass(frozen=True, kw_only=True, slots=True)
class DpOptions:
    """What the user asked for, before anything is known about the data.

    Args:
        epsilon: Target, in nats.
        delta: None takes 1 / (10 N^1.1) for N units, rounded down to one digit.
        unit: "record", or the column that names whose record it is.
        adjacency: "add-remove" or "replace".
        clipping: "flat", "per-layer" or "automatic".
        noise: "continuous" or "discrete".
        max_records_per_unit: Most records of one unit in one step.
        allow_large_delta: Whether delta may be 1 / (10 times the number of units) or more.
        with_edgeworth: Whether the certificate carries a third opinion on epsilon.
    """

    epsilon: float | None
    delta: float | None = None
    unit: str = RECORD
    adjacency: str = "add-remove"
    clipping: str = "flat"
    noise: str = "continuous"
    max_records_per_unit: int = 32
    allow_large_delta: bool = False
    with_edgeworth: bool = False

    def __post_init__(self) -> None:
        if self.epsilon is None:
            raise InvalidParameterError(
                "--guarantee dp needs a target: give --epsilon, for example --epsilon 2."
            )
        require_positive("epsilon", self.epsilon)
        require_one_of("adjacency", self.adjacency, tuple(ADJACENCIES))
        require_one_of("clipping", self.clipping, CLIPPINGS)
        require_one_of("noise", self.noise, NOISES)
        require_integer("max_records_per_unit", self.max_records_per_unit, 1)
        if not self.unit.strip():
            raise InvalidParameterError('unit must be "record" or the name of a column.')

    @property
    def unit_column(self) -> str | None:
        """The column that names whose record it is; None where records stand for themselves."""
        return None if self.unit == RECORD else self.unit


@dataclass(frozen=True, kw_only=True, slots=True)
class DpPlan:
    """Everything that decides the privacy of a run; all of it public.

    Args:
        event: The releases: noise, sampling, number, and which data sets are neighbors.
        delta: Probability; what the certificate states.
        delta_of_normal_noise: What normal noise may use of it; the rest is for what discrete noise
            differs from normal noise.
        clip_norm: Largest Euclidean norm of one unit's contribution.
        num_units: Units in the pool.
        expected_units: Units expected in a step; what sums are divided by.
        options: What was asked for.
    """

    event: SampledGaussian
    delta: float
    delta_of_normal_noise: float
    clip_norm: float
    num_units: int
    expected_units: int
    options: DpOptions

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on each coordinate of the sum."""
        return self.event.noise_multiplier * self.clip_norm

    def describe(self) -> dict[str, Any]:
        """Returns the plan as the ledger's opening event holds it."""
        options, event = self.options, self.event
        return {
            "target_epsilon": options.epsilon,
            "delta": self.delta,
            "delta_of_normal_noise": self.delta_of_normal_noise,
            "privacy_unit": options.unit,
            "num_units": self.num_units,
            "max_records_per_unit": options.max_records_per_unit,
            "neighboring_relation": event.neighboring_relation,
            "noise_multiplier": event.noise_multiplier,
            "sampling_probability": event.sampling_probability,
            "expected_units": self.expected_units,
            "clip_norm": self.clip_norm,
            "clipping": options.clipping,
            "noise": options.noise,
            "with_edgeworth": options.with_edgeworth,
        }


def choose_dp_options(
    guarantee: str,
    *,
    epsilon: float | None,
    delta: float | None,
    unit: str,
    **others: Any,
) -> DpOptions | None:
    """Returns what was asked for under `--guarantee dp`, and None under another guarantee.

    Raises:
        InvalidParameterError: If a setting is out of range, or given for another guarantee.
    """
    if guarantee == "dp":
        return DpOptions(epsilon=epsilon, delta=delta, unit=unit, **others)
    if epsilon is not None or delta is not None or unit != RECORD:
        raise InvalidParameterError("--epsilon, --delta and --unit are for --guarantee dp.")
    return None


def make_dp_plan(
    options: DpOptions,
    *,
    num_units: int,
    num_steps: int,
    expected_units: int | None,
    clip_norm: float,
    num_releases: int | None = None,
) -> DpPlan:
    """Returns the plan with the least noise found that keeps the target.

    Guarantee:
        The certificate of a run that follows the plan states an epsilon of at most
        `options.epsilon` and `delta`, which is below 1 / (10 num_units) unless that was waived.

    Args:
        options: What was asked for.
        num_units: Units in the pool.
        num_steps: Releases.
        expected_units: Units expected in a step; None takes an eighth of the pool, at least 64.
        clip_norm: Largest Euclidean norm of one unit's contribution.
        num_releases: Numbers released in one step; must be given for discrete noise.

    Raises:
        InvalidParameterError: If delta is too large for the pool, or no noise reaches the target.
    """
    if expected_units is None:
        expected_units = min(num_units, max(64, num_units // 8))
    require_integer("batch_size", expected_units, 1, num_units)
    delta = options.delta
    if delta is None:
        delta = _default_delta(num_units)
    require_small_delta(delta, num_units, is_large_allowed=options.allow_large_delta)
    if options.epsilon is None:
        raise InvalidParameterError("epsilon must be given.")
    target = {
        "target_epsilon": options.epsilon,
        "delta": delta,
        "sampling_probability": expected_units / num_units,
        "num_steps": num_steps,
        "neighboring_relation": ADJACENCIES[options.adjacency],
    }
    if options.noise == "discrete":
        noise = calibrate_nearly_normal_noise(
            **target,
            distance_upper=_distance_to_normal(
                clip_norm=clip_norm,
                num_units=num_units,
                expected_units=expected_units,
                num_releases=require_integer("num_releases", num_releases, 1),
            ),
        )
    else:
        noise = NearlyNormalNoise(
            noise_multiplier=calibrate_noise_multiplier(**target), delta_of_normal_noise=delta
        )
    event = SampledGaussian(
        noise_multiplier=noise.noise_multiplier,
        sampling_probability=target["sampling_probability"],
        num_steps=num_steps,
        neighboring_relation=target["neighboring_relation"],
    )
    return DpPlan(
        event=event,
        delta=delta,
        delta_of_normal_noise=noise.delta_of_normal_noise,
        clip_norm=clip_norm,
        num_units=num_units,
        expected_units=expected_units,
        options=options,
    )


def make_gaussian_mechanism(
    stream: SecretStream | None,
    *,
    noise_multiplier: float,
    clip_norm: float,
    num_units: int,
    expected_units: int,
    num_releases: int,
    noise: str,
) -> GaussianMechanism:
    """Returns the mechanism of a zeroth-order run, which a plan describes before there is one.

    Args:
        stream: Secret noise; None draws none.
        noise_multiplier: Noise standard deviation / clip_norm.
        clip_norm: Largest norm of one unit's contribution.
        num_units: Units in the pool.
        expected_units: Units expected in a step.
        num_releases: Numbers released in one step.
        noise: One of `NOISES`.
    """
    return GaussianMechanism(
        stream,
        noise_multiplier=noise_multiplier,
        clip_norm=clip_norm,
        num_releases=num_releases,
        expected_batch_size=expected_units,
        contribution_unit=fixed_point_unit(clip_norm, num_units),
        grid=noise == "discrete",
    )


def _distance_to_normal(
    *, clip_norm: float, num_units: int, expected_units: int, num_releases: int
) -> Callable[[float], float]:
    """Returns the distance that the run's mechanism will state, by the noise multiplier."""

    def stated(noise_multiplier: float) -> float:
        return make_gaussian_mechanism(
            None,  # nothing is drawn: the same mechanism as the run's, for its description only
            noise_multiplier=noise_multiplier,
            clip_norm=clip_norm,
            num_units=num_units,
            expected_units=expected_units,
            num_releases=num_releases,
            noise="discrete",
        ).distance_to_normal_upper

    stated(NOISE_MULTIPLIERS[1])  # refuses what no noise makes good

    def distance_upper(noise_multiplier: float) -> float:
        try:
            return stated(noise_multiplier)
        except InvalidParameterError:  # whole numbers too coarse for so little noise
            return 1.0

    return distance_upper


def _default_delta(num_units: int) -> float:
    """Returns 1 / (10 N^1.1), rounded down to one digit; below 1 / (10 N) from two units on."""
    exact = 0.1 * num_units**-1.1
    return float(Context(prec=1, rounding=ROUND_FLOOR).create_decimal(exact))
