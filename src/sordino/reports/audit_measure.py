"""Scoring what is at hand, and measuring both games on one model."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sordino.attacks.canaries import canary_guess_bound, exposure
from sordino.attacks.extra_scores import EXTRA_SCORES, make_extras
from sordino.attacks.reference_models import REFERENCE_SCORES
from sordino.attacks.score_store import score_texts
from sordino.attacks.scores import SCORES
from sordino.attacks.texts import EncodedTexts
from sordino.auditing.exposure import FEWEST_REFERENCES, extrapolated_exposure
from sordino.core.errors import InvalidParameterError
from sordino.data import normalize_text
from sordino.reports.audit_games import attack_result, attack_results, play_subset_game
from sordino.reports.audit_record import CanaryResult, Membership, SubsetResult
from sordino.reports.audit_references import add_reference_scores, score_references
from sordino.reports.audit_users import measure_users, require_users, users_of
from sordino.training.progress import progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from sordino.attacks.extra_scores import Extra
    from sordino.attacks.reference_models import ReferenceModels
    from sordino.attacks.subject import Subject
    from sordino.data import Record, Records
    from sordino.reports.audit_subset import SubsetGame

    ByName = dict[str, NDArray[np.float64]]

FEWEST_SCORED = 2  # of each side, for an interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What is scored: records of both sides and canaries, each in its order.

    The sides may be files (`RecordFile`), which are gone through and never held.

    Args:
        members: Records that the model was tuned on.
        nonmembers: Records that it was not.
        canaries: Every planned canary, in the pool or not.
        style: How the canaries were made.
        task: How records become tokens: the ledger's "task"; None goes by their columns.
        unit: Column that says whose record it is; None: nobody is named.
        member_population: Members that stand in for non-members as RMIA's population (what the
            control was not tuned on); None: the non-members do.
    """

    members: Records
    nonmembers: Records
    canaries: Sequence[Record]
    style: str
    task: Mapping[str, Any] | None
    unit: str | None = None
    member_population: NDArray[np.bool_] | None = None

    def only_once(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
        """Returns which members and non-members are compared, and how many are left out.

        A text on both sides tells nothing and one that comes twice would count twice: the first
        member of equal texts is kept.
        """
        digests = np.concatenate([_text_digests(self.members), _text_digests(self.nonmembers)])
        kept = np.zeros(digests.size, dtype=np.bool_)
        kept[np.unique(digests, return_index=True)[1]] = True  # the first of equal ones
        members, nonmembers = np.split(kept, [len(self.members)])
        return members, nonmembers, int((~kept).sum())


def _text_digests(records: Records) -> NDArray[np.bytes_]:
    """Returns the SHA-256 of every record's normalized text, shape (num_records,)."""
    digests = np.zeros(len(records), dtype="S32")
    for place, record in enumerate(records):
        text = normalize_text(record.prompt + " ".join(record.references))
        digests[place] = hashlib.sha256(text.encode()).digest()
    return digests


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What is fixed before anything is measured.

    Args:
        names: Scores that are reported.
        seed: Public; of scores that draw something.
        deciding: The one that guesses canaries and orders candidates.
        num_guesses: Canaries guessed.
        delta: Of the bound on epsilon.
        significance: One minus the confidence of each statement.
        references: Models that some of the scores compare with; None: no score does.
    """

    names: Sequence[str]
    seed: int
    deciding: str
    num_guesses: int
    delta: float
    significance: float
    references: ReferenceModels | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What the attacks found on one model; parts that could not be measured are None."""

    membership: Membership | None = None
    canaries: CanaryResult | None = None
    subset: SubsetResult | None = None

    def with_control(self, control: Measured) -> Measured:
        """Returns this with what the same attacks found on the positive control beside it."""
        membership, canaries, subset = self.membership, self.canaries, self.subset
        if membership is not None and control.membership is not None:
            users, control_users = membership.users, control.membership.users
            if users is not None and control_users is not None:
                users = replace(users, control=control_users.attacks)
            membership = replace(membership, control=control.membership.attacks, users=users)
        if canaries is not None and control.canaries is not None:
            found = control.canaries.epsilon_lower
            canaries = replace(canaries, control_epsilon_lower=found)
        if subset is not None and control.subset is not None:
            found = control.subset.posterior_lower
            subset = replace(subset, control_posterior_lower=found)
        return Measured(membership=membership, canaries=canaries, subset=subset)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Scores by name; a side without records has none."""

    members: ByName
    nonmembers: ByName
    canaries: ByName


def require_known(attacks: Sequence[str] | None) -> None:
    """Raises unless every wanted score exists."""
    known = [*SCORES, *EXTRA_SCORES, *REFERENCE_SCORES]
    for name in attacks or ():
        if name not in known:
            raise InvalidParameterError(f"attacks must be among {', '.join(known)}; got {name!r}.")


def choose_rules(
    subject: Subject,
    attacks: Sequence[str] | None,
    *,
    num_guesses: int,
    delta: float,
    significance: float,
    seed: int,
    references: ReferenceModels,
    has_population: bool,
) -> Rules:
    """Returns the rules; without a wish all scores that can be computed are reported.

    Raises:
        InvalidParameterError: If a wanted score needs a base, or reference models, that there are
            not.
    """
    compared = references.choose(attacks, has_population=has_population)
    usual = [name for name, score in SCORES.items() if subject.has_base or not score.needs_base]
    for name in attacks or ():
        if name not in {*usual, *EXTRA_SCORES, *compared}:
            raise InvalidParameterError(
                f"attack {name} compares with the base model: name it with --model BASE."
            )
    strongest = "reference-difference" if subject.has_base else "loss"
    return Rules(
        names=list(dict.fromkeys(attacks)) if attacks else [*usual, *compared],
        deciding=attacks[0] if attacks else strongest,
        seed=seed,
        num_guesses=num_guesses,
        delta=delta,
        significance=significance,
        references=references if compared else None,
    )


def score_material(
    subject: Subject,
    material: Material,
    rules: Rules,
    folder: Path,
    *,
    title: str,
    tokens_per_batch: int,
) -> Scores:
    """Returns all scores of all records; what an interrupted audit scored is not scored again."""

    def score(
        model: Subject, extras: dict[str, Extra], mark: str, side: str, records: Records
    ) -> ByName:
        if not records:
            return {}
        texts = EncodedTexts(records, subject.tokenizer, subject.context_length, task=material.task)
        with progress(f"{title}: {side}{mark}", len(texts)) as advance:
            return score_texts(
                model,
                texts,
                folder / f"scores-{side}{mark}.PRIVATE.jsonl",
                extras=extras,
                tokens_per_batch=tokens_per_batch,
                advance=advance,
            )

    def score_sides(model: Subject, mark: str, extras: dict[str, Extra]) -> Scores:
        return Scores(
            members=score(model, extras, mark, "members", material.members),
            nonmembers=score(model, extras, mark, "nonmembers", material.nonmembers),
            canaries=score(model, extras, mark, "canaries", material.canaries),
        )

    out = []
    if rules.references is not None:  # first, so that one that does not fit is told early
        out = score_references(rules.references, subject, lambda m, k: score_sides(m, k, {}))
    own = score_sides(subject, "", make_extras(subject, rules.names, rules.seed))
    if not out:
        return own
    return add_reference_scores(
        own,
        out,
        rules.names,
        member_population=material.member_population,
        nonmember_population=material.only_once()[1],
    )


def measure(
    scores: Scores,
    material: Material,
    rules: Rules,
    *,
    is_included: NDArray[np.bool_],
    game: SubsetGame | None,
) -> Measured:
    """Returns what the scores of the audited model tell.

    Args:
        scores: Of `material`.
        material: What was scored.
        rules: Fixed beforehand.
        is_included: Which canaries are in the pool.
        game: The subset game over all places of the pool, members first and then every canary's;
            None where it cannot be played.
    """
    membership = subset = None
    if scores.members and scores.nonmembers:
        kept_members, kept_nonmembers, num_removed = material.only_once()
        sides = [
            {name: side[name][kept] for name in rules.names}
            for side, kept in (
                (scores.members, kept_members),
                (scores.nonmembers, kept_nonmembers),
            )
        ]
        membership = measure_membership(sides[0], sides[1], num_removed, rules)
        if material.unit is not None:
            users = measure_users(
                sides[0],
                sides[1],
                users_of(material.members, kept_members),
                users_of(material.nonmembers, kept_nonmembers),
                unit=material.unit,
                significance=rules.significance,
                seed=rules.seed,
            )
            membership = replace(membership, users=require_users(users, material.unit))
    if game is not None:
        pool = [side[rules.deciding] for side in (scores.members, scores.canaries) if side]
        is_filled = np.concatenate([np.ones(len(material.members), dtype=np.bool_), is_included])
        filled = is_filled.nonzero()[0]
        subset = measure_subset(np.concatenate(pool)[filled], game, filled, rules)
    return Measured(
        membership=membership,
        canaries=measure_canaries(scores.canaries, is_included, material.style, rules),
        subset=subset,
    )


def measure_membership(
    inside: ByName, outside: ByName, num_removed: int, rules: Rules
) -> Membership:
    """Returns the membership attacks on two sides."""
    sizes = [next(iter(side.values())).size for side in (inside, outside)]
    if min(sizes) < FEWEST_SCORED:
        raise InvalidParameterError(
            f"an attack needs at least {FEWEST_SCORED} members and as many others, got {sizes[0]} "
            f"and {sizes[1]} different texts ({num_removed} were left out: they come twice, or on "
            "both sides)."
        )
    return Membership(
        num_members=sizes[0],
        num_nonmembers=sizes[1],
        num_removed=num_removed,
        significance=rules.significance,
        attacks=attack_results(inside, outside, rules.significance),
    )


def measure_canaries(
    scores: ByName, is_included: NDArray[np.bool_], style: str, rules: Rules
) -> CanaryResult | None:
    """Returns what guessing the canaries proves; None without canaries on both sides."""
    if not scores or is_included.all() or not is_included.any():
        return None
    values = scores[rules.deciding]
    bound = canary_guess_bound(
        values, is_included, rules.num_guesses, rules.delta, rules.significance
    )
    inside, outside = values[is_included], values[~is_included]
    extrapolated: list[float] = []
    if outside.size >= FEWEST_REFERENCES and np.ptp(outside) > 0:
        extrapolated = extrapolated_exposure(inside, outside).exposures.tolist()
    return CanaryResult(
        **asdict(bound),
        style=style,
        exposures=tuple(sorted(exposure(inside, outside).tolist())),
        extrapolated_exposures=tuple(sorted(extrapolated)),
        attack=attack_result(rules.deciding, inside, outside, rules.significance),
    )


def can_be_ordered(membership: NDArray[np.bool_]) -> bool:
    """Returns whether every candidate holds some of the records, and none holds all."""
    return bool((membership.any(axis=0) & ~membership.all(axis=0)).all())


def measure_subset(
    scores: NDArray[np.float64], game: SubsetGame, places: NDArray[np.intp], rules: Rules
) -> SubsetResult | None:
    """Returns how well the scores of some of the pool's places find the candidate that was used.

    None where the candidates cannot be ordered.
    """
    membership = game.membership[places]
    if not can_be_ordered(membership):
        return None
    return play_subset_game(
        scores,
        membership,
        game.true_candidate,
        attack=rules.deciding,
        prior=game.prior,
        significance=rules.significance,
        is_drawn_after=game.is_drawn_after,
    )
