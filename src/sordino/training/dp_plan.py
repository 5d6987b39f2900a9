"""What differential privacy was asked for, and the noise that gives it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context
from typing import Any

from sordino.accounting.dp import (
    ADD_OR_REMOVE_ONE,
    REPLACE_ONE,
    SampledGaussian,
    calibrate_noise_multiplier,
    require_small_delta,
)
from sordino.core.checks import require_integer, require_one_of, require_positive
from sordino.core.errors import InvalidParameterError

ADJACENCIES = {"add-remove": ADD_OR_REMOVE_ONE, "replace": REPLACE_ONE}
CLIPPINGS = ("flat", "per-layer", "automatic")
NOISES = ("continuous", "discrete")
RECORD = "record"
_SPARE_DELTA = 1e-3  # share of delta for what discrete noise differs from normal noise


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
        delta: Probability.
        clip_norm: Largest Euclidean norm of one unit's contribution.
        num_units: Units in the pool.
        expected_units: Units expected in a step; what sums are divided by.
        options: What was asked for.
    """

    event: SampledGaussian
    delta: float
    clip_norm: float
    num_units: int
    expected_units: int
    options: DpOptions

    @property
    def delta_of_normal_noise(self) -> float:
        """What normal noise may use of delta; discrete noise needs a little for itself."""
        return _delta_of_normal_noise(self.delta, self.options.noise)

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
) -> DpPlan:
    """Returns the plan with the least noise found that keeps the target.

    Args:
        options: What was asked for.
        num_units: Units in the pool.
        num_steps: Releases.
        expected_units: Units expected in a step; None takes an eighth of the pool, at least 64.
        clip_norm: Largest Euclidean norm of one unit's contribution.

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
    probability, relation = expected_units / num_units, ADJACENCIES[options.adjacency]
    noise_multiplier = calibrate_noise_multiplier(
        target_epsilon=options.epsilon,
        delta=_delta_of_normal_noise(delta, options.noise),
        sampling_probability=probability,
        num_steps=num_steps,
        neighboring_relation=relation,
    )
    event = SampledGaussian(
        noise_multiplier=noise_multiplier,
        sampling_probability=probability,
        num_steps=num_steps,
        neighboring_relation=relation,
    )
    return DpPlan(
        event=event,
        delta=delta,
        clip_norm=clip_norm,
        num_units=num_units,
        expected_units=expected_units,
        options=options,
    )


def _default_delta(num_units: int) -> float:
    """Returns 1 / (10 N^1.1), rounded down to one digit; below 1 / (10 N) from two units on."""
    exact = 0.1 * num_units**-1.1
    return float(Context(prec=1, rounding=ROUND_FLOOR).create_decimal(exact))


def _delta_of_normal_noise(delta: float, noise: str) -> float:
    """Returns what normal noise may use of delta."""
    return delta * (1.0 - _SPARE_DELTA) if noise == "discrete" else delta
