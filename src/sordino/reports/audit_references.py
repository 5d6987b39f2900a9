"""Scores of an audit that compare with reference models: LiRA and RMIA."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np

from sordino.attacks.reference_models import reference_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from sordino.attacks.reference_models import ReferenceModels
    from sordino.attacks.subject import Subject
    from sordino.reports.audit_measure import Scores

_LENGTH_OF_MARK = 12  # hexadecimal digits; more than tell files of one folder apart


def score_references(
    references: ReferenceModels, subject: Subject, score: Callable[[Subject, str], Scores]
) -> list[Scores]:
    """Returns what each reference model gives the texts, one model after the other.

    Args:
        references: The models.
        subject: The attacked model, which they must fit.
        score: Scores every side with a model; the second argument is for its files' names.
    """
    return [
        score(reference, f"-{reference.fingerprint[:_LENGTH_OF_MARK]}")
        for reference in references.open_all(subject)
    ]


def add_reference_scores(
    own: Scores,
    out: Sequence[Scores],
    names: Sequence[str],
    *,
    member_population: NDArray[np.bool_] | None,
    nonmember_population: NDArray[np.bool_],
) -> Scores:
    """Returns the scores with those of `REFERENCE_SCORES` that are wanted.

    Args:
        own: Of the attacked model.
        out: Of each reference model.
        names: Wanted scores.
        member_population: Which members are RMIA's population; None: none of them.
        nonmember_population: Which non-members are.
    """
    sides = [field.name for field in fields(own) if getattr(own, field.name)]
    sizes = {side: getattr(own, side)["loss"].size for side in sides}
    population = {side: np.zeros(size, dtype=np.bool_) for side, size in sizes.items()}
    if "members" in sides and member_population is not None:
        population["members"] = member_population
    if "nonmembers" in sides:
        population["nonmembers"] = nonmember_population
    # all sides at once: the same variance and the same population for all
    found = reference_scores(
        names,
        _losses(own, sides),
        np.stack([_losses(each, sides) for each in out]),
        np.concatenate([population[side] for side in sides]),
    )
    ends = np.cumsum([sizes[side] for side in sides])[:-1]
    parts = {name: np.split(values, ends) for name, values in found.items()}
    added = {
        side: getattr(own, side) | {name: part[number] for name, part in parts.items()}
        for number, side in enumerate(sides)
    }
    return replace(own, **added)


def _losses(scores: Scores, sides: Sequence[str]) -> NDArray[np.float64]:
    """Returns the mean negative log-likelihoods of all texts, side after side."""
    return -np.concatenate([getattr(scores, side)["loss"] for side in sides])
