"""Verdicts and numbers of an audit in words: lower bounds are rounded down, upper bounds up."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from typing import TYPE_CHECKING, Any

from sordino.core.errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sordino.reports.audit_record import Audit, GameVerdict, Point

NOT_MEASURED = "not measured"
NOT_PUBLISHED = "not published"
_LARGEST_IN_FULL = 1e15
_GAMES = {
    "subset": "Subset game: which candidate subset was used",
    "pool": "Pool game: is a record in the pool at all",
}


@dataclass(frozen=True, slots=True)
class Status:
    """An outcome as a reader sees it: class of the styles, title, meaning, contradicted or not."""

    style: str
    title: str
    meaning: str
    is_contradicted: str


# The gravest first: the page opens with it.
STATUSES = {
    "contradicted": Status(
        "contradicted",
        "Contradicted",
        "A measurement contradicts the certificate. Do not rely on it, and do not hand out the "
        "model on its strength: an assumption does not hold, or there is a mistake in the code. By "
        "chance this happens to a true claim as often as the confidence on its line leaves room.",
        "Yes.",
    ),
    "no power": Status(
        "no-power",
        "No power",
        "The attacks were not shown to see a violation: on the positive control, a run that is "
        "known to leak, they proved no more than the certificate allows, or no control ran. "
        "Surviving them says nothing.",
        "Cannot be told.",
    ),
    NOT_MEASURED: Status(
        "not-measured",
        "Nothing was measured",
        "No audit of this was found: the certificate below is a claim that nobody attacked.",
        "Cannot be told.",
    ),
    "consistent": Status(
        "consistent",
        "Consistent",
        "No attack proves more than the certificate allows, and the same attacks caught the "
        "positive control. This supports the claim and does not prove it: attacks that were not "
        "tried may find more.",
        "No.",
    ),
    NOT_PUBLISHED: Status(
        "not-measured",
        "Not published",
        "It was measured on records of the pool, so the outcome stays with the data holder.",
        "Not published.",
    ),
    "nothing claimed": Status(
        "nothing-claimed",
        "Nothing claimed",
        "The certificate states no formal guarantee here, so there is nothing to contradict. What "
        "was measured is a lower bound on the leak, not a limit to it.",
        "There is nothing to contradict.",
    ),
}


@dataclass(frozen=True, slots=True)
class Card:
    """One line of the certificate beside what was measured."""

    game: str
    status: Status
    line: str
    facts: list[tuple[str, str]]
    bounds: list[tuple[str, str, float, str]] = field(default_factory=list)  # of `draw_bounds`
    end: float = 1.0  # of the bounds' axis


def make_cards(audit: Audit | None, certificate: Sequence[str]) -> list[Card]:
    """Returns one card a line of the certificate, the subset game first.

    Raises:
        InvalidDataError: If a verdict has an unknown game or outcome.
    """
    verdicts = {verdict.game: verdict for verdict in (audit.verdicts if audit else ())}
    outcomes = {verdict.outcome for verdict in verdicts.values()}
    if not (set(verdicts) <= set(_GAMES) and outcomes <= set(STATUSES)):
        raise InvalidDataError(
            f"a verdict is about {' or '.join(_GAMES)} and has one of the outcomes "
            f"{', '.join(STATUSES)}; found {sorted(verdicts)} and {sorted(outcomes)}."
        )
    return [
        _measured_card(verdicts[game], title, certificate, audit)
        if game in verdicts and audit is not None
        else _open_card(number, title, certificate)
        for number, (game, title) in enumerate(_GAMES.items(), start=1)
    ]


def gravest(cards: Sequence[Card]) -> Status:
    """Returns the status that the page opens with."""
    return min((card.status for card in cards), key=list(STATUSES.values()).index)


def headline(cards: Sequence[Card]) -> str:
    """Returns all outcomes in a few words, the gravest first."""
    (first, games), *others = _by_status(cards)
    if not others:
        return first.title
    words = [f"{first.title} in the {games}"]
    words += [f"{s.title[0].lower()}{s.title[1:]} in the {games}" for s, games in others]
    return "; ".join(words)


def meanings(cards: Sequence[Card]) -> list[str]:
    """Returns what the outcomes mean, the gravest first."""
    found = _by_status(cards)
    if len(found) == 1:
        return [found[0][0].meaning]
    return [f"{games[0].upper()}{games[1:]}: {status.meaning}" for status, games in found]


def _by_status(cards: Sequence[Card]) -> list[tuple[Status, str]]:
    """Returns the outcomes with the games that have them, the gravest first."""
    games = {
        status: " and ".join(c.game.split(":")[0].lower() for c in cards if c.status == status)
        for status in STATUSES.values()
    }
    return [(status, names) for status, names in games.items() if names]


def _measured_card(
    verdict: GameVerdict, title: str, certificate: Sequence[str], audit: Audit | None
) -> Card:
    """Returns the card of a verdict."""
    status = STATUSES[verdict.outcome]
    number = list(_GAMES).index(verdict.game) + 1
    facts = [("Protected", verdict.secret)]
    facts.append(("Formal bound, from the certificate", _claim_words(verdict)))
    if verdict.claimed is None:
        facts.extend(_certificate_fact(number, certificate))
    if verdict.outcome != NOT_PUBLISHED:
        measured = "Strongest attack, measured"
        facts.append((measured, _bound_words(verdict.quantity, verdict.measured_lower)))
        if verdict.measured_lower is not None:
            attack = _strongest_attack(verdict, audit)
            facts[-1] = (measured, f"{facts[-1][1]}{f', by {attack}' if attack else ''}")
            facts.append(("Interval", _interval_words(verdict)))
        control = _bound_words(verdict.quantity, verdict.control_lower)
        facts.append(("The same on the positive control", control))
    if verdict.game == "pool":
        facts.extend(_best_attack_fact(audit))
    facts.append(("Does it contradict the certificate?", status.is_contradicted))
    bounds = _bounds(verdict)
    end = 1.0 if verdict.quantity == "posterior" else max((b[2] for b in bounds), default=0) or 1.0
    return Card(title, status, verdict.line, facts, bounds, end)


def _bounds(verdict: GameVerdict) -> list[tuple[str, str, float, str]]:
    """Returns claim and measurements for a drawing; none where there is nothing to compare."""
    if verdict.claimed is None or verdict.measured_lower is None:
        return []
    bars = [
        ("claim", "certificate", verdict.claimed, f"at most {upper(verdict.claimed)}"),
        ("found", "measured", verdict.measured_lower, f"at least {lower(verdict.measured_lower)}"),
    ]
    if verdict.control_lower is not None:
        words = f"at least {lower(verdict.control_lower)}"
        bars.append(("control", "control", verdict.control_lower, words))
    return bars


def _open_card(number: int, title: str, certificate: Sequence[str]) -> Card:
    """Returns the card of a line that has no verdict."""
    status = STATUSES[NOT_MEASURED]
    facts = [
        *_certificate_fact(number, certificate),
        ("Strongest attack, measured", "none was made"),
        ("Does it contradict the certificate?", status.is_contradicted),
    ]
    return Card(title, status, "No verdict: nothing was measured.", facts)


def _certificate_fact(number: int, certificate: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the certificate's own line about this secret."""
    start = f"Secret {number}, "
    return [("The certificate's words", line) for line in certificate if line.startswith(start)]


def _claim_words(verdict: GameVerdict) -> str:
    """Returns the stated upper bound."""
    if verdict.claimed is None:
        return "none is stated on this line"
    shown = upper(verdict.claimed)
    if verdict.quantity == "posterior":
        return f"a guess is right with probability at most {shown}"
    return f"{verdict.quantity} at most {shown} nats"


def _bound_words(quantity: str | None, bound: float | None) -> str:
    """Returns a measured lower bound."""
    if bound is None:
        return "none"
    if quantity == "posterior":
        return f"a guess is right with probability at least {lower(bound)}"
    return f"{quantity or 'a bound of'} at least {lower(bound)} nats"


def _interval_words(verdict: GameVerdict) -> str:
    """Returns the one-sided interval of a measurement."""
    end = "1" if verdict.quantity == "posterior" else "infinity"
    level = "" if verdict.significance is None else f" at {confidence(verdict.significance)}"
    bound = 0.0 if verdict.measured_lower is None else verdict.measured_lower
    return f"{lower(bound)} to {end}{level} confidence: an attack bounds the leak from below only"


def _best_attack_fact(audit: Audit | None) -> list[tuple[str, str]]:
    """Returns how well the best attack tells records of the pool from others."""
    if audit is None or audit.membership is None or not audit.membership.attacks:
        return []
    best = max(audit.membership.attacks, key=lambda attack: attack.auc)
    words = f"{best.name}: AUC {best.auc:.3f} {interval(best.auc_lower, best.auc_upper)}"
    for point in best.points:
        words += (
            f", TPR {' '.join(point_words(point)[:2])} at FPR \u2264 {percent(point.fpr_limit)}"
        )
    return [("Best attack on records", words)]


def _strongest_attack(verdict: GameVerdict, audit: Audit | None) -> str | None:
    """Returns the attack that gave the strongest measurement, where the record tells."""
    if audit is None:
        return None
    if verdict.game == "subset" and audit.subset is not None:
        return audit.subset.attack
    if verdict.game == "pool" and is_on_canaries(verdict, audit):
        return "guesses about canaries"
    return None


def is_on_canaries(verdict: GameVerdict, audit: Audit) -> bool:
    """Returns whether a verdict of the pool game rests on canaries, not on records."""
    canaries = audit.canaries
    return (
        verdict.game == "pool"
        and canaries is not None
        and verdict.measured_lower in (canaries.epsilon_lower, canaries.gaussian_epsilon_lower)
    )


def point_words(point: Point | None) -> tuple[str, ...]:
    """Returns a true-positive rate, its interval, and how it came about."""
    if point is None:
        return ("not run",)
    threshold = (
        "nobody called a member" if point.threshold is None else f"threshold {point.threshold:.4g}"
    )
    return (
        percent(point.tpr),
        interval(point.tpr_lower, point.tpr_upper, as_percent=True),
        f"realised FPR {percent(point.fpr)}",
        threshold,
    )


def interval(low: float, high: float, *, as_percent: bool = False) -> str:
    """Returns an interval, rounded outwards."""
    if as_percent:
        ends = (_rounded(low, 3, ROUND_FLOOR, power=2), _rounded(high, 3, ROUND_CEILING, power=2))
        return f"[{ends[0]}%, {ends[1]}%]"
    return f"[{down(low)}, {up(high)}]"


def percent(share: float) -> str:
    """Returns a share."""
    return f"{100.0 * share:.3g}%"


def confidence(significance: float) -> str:
    """Returns the confidence that belongs to a significance."""
    return f"{100.0 * (1.0 - significance):.4g}%"


def lower(bound: float, digits: int = 4) -> str:
    """Returns a lower bound to so many digits, never above it."""
    return _rounded(bound, digits, ROUND_FLOOR)


def upper(bound: float, digits: int = 4) -> str:
    """Returns an upper bound to so many digits, never below it."""
    return _rounded(bound, digits, ROUND_CEILING)


def _rounded(bound: float, digits: int, rounding: str, *, power: int = 0) -> str:
    """Returns a number times a power of ten to so many digits, on one side of it."""
    if not math.isfinite(bound):
        raise InvalidDataError(f"a number of an audit must be finite, got {bound!r}.")
    with localcontext(prec=digits, rounding=rounding):
        return f"{float(Decimal(repr(float(bound))).scaleb(power)):.{digits}g}"


def down(bound: float) -> str:
    """Returns a lower bound with three decimals, never above it."""
    return _in_thousandths(bound, ROUND_FLOOR)


def up(bound: float) -> str:
    """Returns an upper bound with three decimals, never below it."""
    return _in_thousandths(bound, ROUND_CEILING)


def _in_thousandths(bound: float, rounding: str) -> str:
    """Returns a number with three decimals, on one side of it."""
    return str(Decimal(repr(float(bound))).quantize(Decimal("0.001"), rounding=rounding))


def setting_words(value: Any) -> str:
    """Returns a setting as a person would write it."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{name_words(k)}: {setting_words(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting_words, value)) or "none"
    if isinstance(value, float):
        return (
            f"{value:,.0f}" if value.is_integer() and value < _LARGEST_IN_FULL else f"{value:.6g}"
        )
    return str(value)


def name_words(name: object) -> str:
    """Returns the name of a field as words."""
    return str(name).replace("_", " ")
