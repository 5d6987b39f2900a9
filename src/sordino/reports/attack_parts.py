"""Tables and ROC curves of attacks, as parts of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sordino.core.errors import InvalidDataError
from sordino.reports.audit_figures import Curve, draw_roc
from sordino.reports.audit_words import interval, percent, point_words
from sordino.reports.sections import Figure, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sordino.reports.audit_record import AttackResult

__all__ = ["STYLES", "attack_table", "curve_of", "roc_figures", "strongest_attacks"]

STYLES = ("first", "second", "third")  # of lines, in the page's style sheet


def attack_table(
    caption: str, attacks: Sequence[AttackResult], control: Sequence[AttackResult] = ()
) -> Table:
    """Returns all attacks, the strongest first, with the same on the positive control beside."""
    limits = sorted({p.fpr_limit for a in (*attacks, *control) for p in a.points}, reverse=True)
    columns = ["AUC", *(f"TPR at FPR \u2264 {percent(limit)}" for limit in limits)]
    headers = ["Attack", *columns, *(f"Control: {name}" for name in columns if control)]
    on_control = {attack.name: attack for attack in control}
    rows = [
        [
            (attack.name,),
            *_attack_cells(attack, limits),
            *(_attack_cells(on_control.get(attack.name), limits) if control else ()),
        ]
        for attack in sorted(attacks, key=lambda attack: (-attack.auc, attack.name))
    ]
    return Table(f"{caption}, the largest AUC first; in brackets: intervals", headers, rows)


def strongest_attacks(attacks: Sequence[AttackResult]) -> list[AttackResult]:
    """Returns up to three: the largest area, the best at the fewest false positives, the next."""

    def at_fewest(attack: AttackResult) -> tuple[float, float]:
        lowest = min(attack.points, key=lambda point: point.fpr_limit, default=None)
        return (0.0 if lowest is None else lowest.tpr, attack.auc)

    by_area = sorted(attacks, key=lambda attack: (-attack.auc, attack.name))
    order = [*by_area[:1], *sorted(attacks, key=at_fewest, reverse=True)[:1], *by_area[1:]]
    return list({attack.name: attack for attack in order}.values())[: len(STYLES)]


def curve_of(style: str, label: str, attack: AttackResult) -> tuple[AttackResult, Curve]:
    """Returns an attack with its line."""
    names = ("false_positive_rates", "true_positive_rates", "tpr_lower", "tpr_upper")
    values = [attack.curve.get(name, []) for name in names]
    if len({len(each) for each in values}) != 1:
        raise InvalidDataError(f"the curve of {attack.name} has parts of unequal length.")
    return attack, Curve(style, label, *values)


def roc_figures(
    identifier: str, title: str, attacks: Sequence[tuple[AttackResult, Curve]]
) -> list[Figure]:
    """Returns the figure of these curves; none where no curve has a point."""
    drawn = [(a, c) for a, c in attacks if any(rate > 0 for rate in c.false_positive_rates)]
    if not drawn:
        return []
    words = ["Both axes are logarithmic; bands are intervals, point by point."]
    for attack, curve in drawn:
        points = [
            f"TPR {' '.join(point_words(p)[:2])} at {percent(p.fpr_limit)} FPR"
            for p in attack.points
        ]
        words.append(f"{curve.label}: AUC {attack.auc:.3f}{''.join(f', {p}' for p in points)}.")
    curves = [curve for _, curve in drawn]
    legend = [(f"curve {c.style}", c.label) for c in curves] + [("chance", "a guess")]
    drawing = draw_roc(f"roc-{identifier}", title, " ".join(words), curves)
    return [Figure(title, drawing, legend, words)]


def _attack_cells(attack: AttackResult | None, limits: Sequence[float]) -> list[tuple[str, ...]]:
    """Returns AUC and true-positive rates."""
    if attack is None:
        return [("not run",)] * (1 + len(limits))
    points = {point.fpr_limit: point for point in attack.points}
    area = (f"{attack.auc:.3f}", interval(attack.auc_lower, attack.auc_upper))
    return [area, *(point_words(points.get(limit)) for limit in limits)]
