"""`sordino audit-protocol`: attack a mechanism that releases single values, and judge its claim."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from typing_extensions import Doc

from sordino.auditing.local_protocols import LocalProtocolAudit, audit_local_protocol
from sordino.auditing.verdict import EPSILON, Claim, Outcome, Verdict, judge
from sordino.core.checks import require_integer, require_non_negative, require_one_of
from sordino.core.entropy import OperatingSystemEntropy
from sordino.core.errors import InvalidParameterError
from sordino.core.secret_stream import SecretStream
from sordino.mechanisms.local_protocols import (
    AbstractLocalProtocol,
    GeneralizedRandomizedResponse,
    OptimizedLocalHashing,
    OptimizedUnaryEncoding,
)
from sordino.mechanisms.randomized_quantization import (
    RandomizedQuantization,
    StochasticRounding,
    breakpoints,
    probabilities,
    renyi_divergence,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

__all__ = ["PROTOCOLS", "ProtocolAudit", "audit_protocol"]

_DISCRETE: dict[str, type[AbstractLocalProtocol[Any]]] = {
    "generalized-randomized-response": GeneralizedRandomizedResponse,
    "optimised-unary-encoding": OptimizedUnaryEncoding,
    "optimised-local-hashing": OptimizedLocalHashing,
}
PROTOCOLS = (*_DISCRETE, "randomized-quantization", "stochastic-rounding")
_ATTACK = "likelihood ratio"
_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class ProtocolAudit:
    """What was audited, what it claims, and what the attack proves."""

    protocol: str
    settings: dict[str, float]
    epsilon_closed_form: float  # of the protocol as built; may be infinite
    found: LocalProtocolAudit
    control: LocalProtocolAudit | None
    verdict: Verdict

    @property
    def is_contradicted(self) -> bool:
        """Whether the lower bound is above the claim."""
        return self.verdict.outcome is Outcome.CONTRADICTED

    def as_dict(self) -> dict[str, Any]:
        """Returns everything for JSON; an infinite epsilon is None."""
        return {
            "protocol": self.protocol,
            "settings": self.settings,
            "epsilon_claimed": self.verdict.claim.value,
            "epsilon_closed_form": _finite(self.epsilon_closed_form),
            "found": asdict(self.found),
            "control": None if self.control is None else asdict(self.control),
            "verdict": self.verdict.outcome.value,
            "verdict_line": self.verdict.line(),
        }

    def lines(self) -> list[str]:
        """Returns the audit in words; the verdict is the last line."""
        claim, found = self.verdict.claim, self.found
        settings = ", ".join(f"{name} {value:g}" for name, value in self.settings.items())
        claimed = "no finite epsilon" if claim.value is None else f"epsilon {claim.value:g}"
        closed = self.epsilon_closed_form
        exact = "infinite" if math.isinf(closed) else f"{closed:.6g}"
        attack = (
            f"Attack: {_ATTACK} between two values; it names the first in {found.true_positives} "
            f"of {found.num_trials} releases of the first, and in {found.false_positives} of the "
            "second."
        )
        return [
            f"Protocol: {self.protocol} ({settings}).",
            f"Claim: {claimed} at delta {claim.delta:g}, for one release of one value.",
            f"Closed form of the protocol as built: epsilon {exact} at delta 0.",
            attack,
            self.verdict.line(),
        ]


@dataclass(frozen=True, slots=True)
class _Game:
    """A protocol with its best pair of values and its best attack."""

    release: Callable[[Any], Any]
    leak: Callable[[Any], Any]  # a report without any noise, for the control
    score: Callable[[Any], float]
    first: Any
    second: Any
    closed_form: float
    settings: dict[str, float]


def audit_protocol(
    *,
    protocol: Annotated[str, Doc(f"One of {', '.join(PROTOCOLS)}.")],
    epsilon: Annotated[
        float | None, Doc("Epsilon that a discrete protocol is built for; in [0.01, 20].")
    ] = None,
    num_values: Annotated[
        int, Doc("Values that can be reported; for quantization, levels, up to 256.")
    ] = 4,
    clip: Annotated[float, Doc("Quantization: values lie in [-clip, clip].")] = 1.0,
    margin: Annotated[
        float, Doc("Randomized quantization: by how much the levels reach beyond the clip.")
    ] = 1.0,
    keep_probability: Annotated[
        float, Doc("Randomized quantization: probability that an inner level is kept.")
    ] = 0.5,
    claimed_epsilon: Annotated[
        float | None,
        Doc("Epsilon claimed by whoever offers the protocol; default: the protocol's own."),
    ] = None,
    delta: Annotated[float, Doc("Delta of the claim; in [0, 1].")] = 0.0,
    num_trials: Annotated[int, Doc("Releases of each of the two values; at most 10,000,000.")] = (
        100_000
    ),
    significance: Annotated[float, Doc("One minus the confidence; in (0, 1).")] = 0.05,
    control: Annotated[
        bool, Doc("Attack a broken copy too, which leaves the noise out every other time.")
    ] = True,
) -> ProtocolAudit:
    """Attacks a local protocol with many releases of two values, and judges its claim.

    The pair of values, the attack and the threshold are fixed from the protocol's law before the
    first release. A true claim is called contradicted with probability at most `significance`.

    Example:
        sordino audit-protocol --protocol generalized-randomized-response --epsilon 1

    Raises:
        InvalidParameterError: If an argument is NaN, infinite, out of range or does not belong to
            the protocol.
    """
    require_one_of("protocol", protocol, PROTOCOLS)
    trials = require_integer("num_trials", num_trials, 1, 10**7)
    if claimed_epsilon is not None:
        require_non_negative("claimed_epsilon", claimed_epsilon)
    if protocol in _DISCRETE:
        game = _discrete_game(protocol, epsilon, num_values)
    else:
        if epsilon is not None:
            raise InvalidParameterError(
                f"epsilon belongs to the discrete protocols, got it with {protocol}; its epsilon "
                "follows from clip, margin, levels and keep probability. A claim to test goes into "
                "--claimed-epsilon."
            )
        game = _quantization_game(
            protocol,
            (clip, margin, num_values, keep_probability),
            num_trials=trials,
            significance=significance,
        )
    own = epsilon if protocol in _DISCRETE else _finite(game.closed_form)
    claim = Claim(EPSILON, own if claimed_epsilon is None else float(claimed_epsilon), delta)
    found = _attack(game, game.release, trials, delta, significance)
    broken = (
        _attack(game, _half_noise(game), trials, delta, significance)
        if control and claim.value is not None
        else None
    )
    verdict = judge(
        claim,
        [found.measurement(_ATTACK)],
        [] if broken is None else [broken.measurement(_ATTACK)],
    )
    return ProtocolAudit(protocol, game.settings, game.closed_form, found, broken, verdict)


def _attack(
    game: _Game,
    release: Callable[[Any], Any],
    num_trials: int,
    delta: float,
    significance: float,
) -> LocalProtocolAudit:
    """Plays the game with one way to release."""
    return audit_local_protocol(
        release,
        game.score,
        game.first,
        game.second,
        threshold=1.0,
        num_trials=num_trials,
        delta=delta,
        significance=significance,
    )


def _half_noise(game: _Game) -> Callable[[Any], Any]:
    """Returns a release that leaves the noise out every other time: the positive control."""
    entropy = OperatingSystemEntropy()

    def release(value: Any) -> Any:
        return game.leak(value) if entropy.coins(1)[0] else game.release(value)

    return release


def _discrete_game(name: str, epsilon: float | None, num_values: int) -> _Game:
    """Returns the game of two values of a pure protocol."""
    if epsilon is None:
        raise InvalidParameterError(f"epsilon must be given: {name} is built for one.")
    protocol = _DISCRETE[name](OperatingSystemEntropy(), epsilon=epsilon, domain_size=num_values)
    hit, alarm = protocol.compute_evidence_rates()

    def leak(value: int) -> Any:
        if isinstance(protocol, OptimizedUnaryEncoding):
            return (value,)
        if isinstance(protocol, OptimizedLocalHashing):
            key = protocol.release(value)[0]
            return key, protocol.bucket_of(key, value)
        return value

    return _Game(
        release=protocol.release,
        leak=leak,
        score=lambda report: float(protocol.evidence(report, 0, 1)),
        first=0,
        second=1,
        closed_form=math.log(hit / alarm),
        settings={"epsilon": protocol.epsilon, "num_values": protocol.domain_size},
    )


def _quantization_game(
    name: str,
    parameters: tuple[float, float, int, float],
    *,
    num_trials: int,
    significance: float,
) -> _Game:
    """Returns the game of the two values and the levels that should prove most."""
    clip, margin, num_levels, keep_probability = parameters
    require_integer("num_values", num_levels, 2, 256)
    stream = SecretStream.from_operating_system()
    mechanism: RandomizedQuantization | StochasticRounding
    settings = {"clip": clip, "num_values": num_levels}
    if name == "stochastic-rounding":
        mechanism = StochasticRounding(stream, clip=clip, num_levels=num_levels)
        closed_form = mechanism.renyi_divergence(math.inf)
        first, second, levels = clip, -clip, frozenset({num_levels - 1})
    else:
        mechanism = RandomizedQuantization(
            stream,
            clip=clip,
            margin=margin,
            num_levels=num_levels,
            keep_probability=keep_probability,
            num_coordinates=_AT_ONCE,
        )
        settings |= {"margin": margin, "keep_probability": keep_probability}
        closed_form = renyi_divergence(math.inf, *parameters)
        points = breakpoints(clip, margin, num_levels)
        laws = np.array([probabilities(point, *parameters) for point in points])
        i, j, levels = _plan(laws, num_trials, significance)
        first, second = points[i], points[j]
    draws = {value: _endless(mechanism, value) for value in (first, second)}
    speaks_for = {first: min(levels), second: min(set(range(num_levels)) - levels)}
    return _Game(
        release=lambda value: next(draws[value]),
        leak=lambda value: speaks_for[value],
        score=lambda level: float(level in levels),
        first=first,
        second=second,
        closed_form=closed_form,
        settings=settings,
    )


def _plan(
    laws: NDArray[np.float64], num_trials: int, significance: float
) -> tuple[int, int, frozenset[int]]:
    """Returns the pair of values and the levels of largest ratio that should prove most.

    It looks at the laws alone, so the attack is fixed before a release. The bound is approximated:
    a plan decides about power, not about correctness.
    """
    width = math.sqrt(-2.0 * math.log(significance / 2.0))
    best = (-math.inf, 0, 1, frozenset({0}))
    for i, first in enumerate(laws):
        for j, second in enumerate(laws):
            if i == j:
                continue
            with np.errstate(divide="ignore", invalid="ignore"):
                order = np.argsort(-np.nan_to_num(first / second, nan=0.0))
                hit, alarm = np.cumsum(first[order]), np.cumsum(second[order])
                low = hit - width * np.sqrt(hit / num_trials)
                high = alarm + width * np.sqrt(alarm / num_trials) + width**2 / num_trials
                proved = np.where(low > 0.0, np.log(np.maximum(low, 1e-300) / high), -math.inf)
            k = int(proved.argmax())
            if proved[k] > best[0]:
                best = (float(proved[k]), i, j, frozenset(order[: k + 1].tolist()))
    return best[1:]


def _endless(mechanism: RandomizedQuantization | StochasticRounding, value: float) -> Iterator[int]:
    """Yields independent releases of one value, drawn many at a time."""
    while True:
        yield from mechanism.release(np.full(_AT_ONCE, value)).tolist()


def _finite(epsilon: float) -> float | None:
    """Returns an epsilon, or None where it is infinite and nothing is claimed."""
    return epsilon if math.isfinite(epsilon) else None
