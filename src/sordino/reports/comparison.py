"""A comparison of guarantees as a record: what was measured, and what is protected, in words.

Two columns, never one: which candidate subset was used (PAC, on average over the secret), and
whether a record is in the pool at all (differential privacy, in the worst case). Every number comes
from a run's ledger, certificate and public scores.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sordino.core.errors import InvalidDataError
from sordino.ledger.certificate import NO_GUARANTEE, PoolLine, SubsetLine
from sordino.ledger.certificate_words import shown_upper

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT_VERSION = 1
SCORES = ("accuracy", "loss")
RELATIONS = {"ADD_OR_REMOVE_ONE": "added or removed", "REPLACE_ONE": "replaced by another"}
_BACKWARD = 2  # forward passes that a backward pass is counted as


@dataclass(frozen=True, slots=True)
class Method:
    """One way to tune.

    Args:
        guarantee: "none", "dp" or "pac".
        estimator: "first-order" or "zeroth-order".
        matched_with: The method whose bound on a guess decides the PAC budget; None: none does.
    """

    guarantee: str
    estimator: str
    matched_with: str | None = None


METHODS = {
    "non-private": Method("none", "first-order"),
    "dp-first-order": Method("dp", "first-order"),
    "dp-zeroth-order": Method("dp", "zeroth-order"),
    "pac-first-order": Method("pac", "first-order", matched_with="dp-first-order"),
    "pac-zeroth-order": Method("pac", "zeroth-order", matched_with="dp-zeroth-order"),
    "pac-first-order-zero": Method("pac", "first-order"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One finished run.

    Args:
        method: Key of `METHODS`.
        score_before: Accuracy or mean loss on the validation records, before the first step.
        score_after: The same after the last step.
        num_steps: Steps taken.
        share_per_step: Part of the pool that a step looks at (dp: is expected to).
        forward_equivalents: Cost in forward passes over the whole pool, counted.
        seconds: Wall time on this machine; None if the run was interrupted.
        matched_success: Success of a guess that the PAC budget was made for; None without one.
        subset: The certificate's line about the candidate subset.
        pool: The certificate's line about membership in the pool.
        run: Folder of the run, from the comparison's folder.
    """

    method: str
    score_before: float
    score_after: float
    num_steps: int
    share_per_step: float
    forward_equivalents: float
    seconds: float | None
    matched_success: float | None
    subset: SubsetLine
    pool: PoolLine
    run: str

    @property
    def subset_words(self) -> str:
        """What is proved about which candidate subset was used."""
        if METHODS[self.method].guarantee == "dp":
            return "no candidate subsets; each record is protected as a member of the pool"
        line = self.subset
        if line.mutual_information_nats_upper is None:
            return NO_GUARANTEE
        words = (
            f"guess right: at most {shown_upper(line.posterior_upper)}, average over the secret "
            f"(blind: {line.prior:.3g}); {shown_upper(line.mutual_information_nats_upper)} nats"
        )
        matched_with = METHODS[self.method].matched_with
        return words + (f"; matched with {matched_with}" if matched_with else "")

    @property
    def pool_words(self) -> str:
        """What is proved about whether a record is in the pool at all."""
        line = self.pool
        if line.epsilon_upper is None:
            return NO_GUARANTEE
        return (
            f"guess right: at most {shown_upper(line.success_upper)}, worst case (blind: 0.5); "
            f"epsilon {shown_upper(line.epsilon_upper)} at delta {shown_upper(line.delta, 3)}, one "
            f"record {RELATIONS[str(line.neighboring_relation)]}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Runs on the same pool, model and validation records.

    Args:
        sordino_version: That of the program.
        settings: All public settings that the runs share.
        methods: What was asked for, in the order of `METHODS`.
        score: "accuracy", or "loss" in nats (smaller is better).
        num_records: Records in the pool.
        num_validation: Public validation records.
        base_model: Its name; None until a run has finished.
        base_model_sha256: Its fingerprint.
        validation_sha256: Hash of the encoded validation records.
        rows: Finished runs, in the order of `METHODS`.
    """

    sordino_version: str
    settings: dict[str, Any]
    methods: tuple[str, ...]
    score: str
    num_records: int
    num_validation: int
    base_model: str | None = None
    base_model_sha256: str | None = None
    validation_sha256: str | None = None
    rows: tuple[Row, ...] = ()

    @property
    def unfinished(self) -> list[str]:
        """Methods that were asked for and have no result yet."""
        return [name for name in self.methods if all(row.method != name for row in self.rows)]

    def find(self, method: str) -> Row | None:
        """Returns the row of a method, if its run has finished."""
        return next((row for row in self.rows if row.method == method), None)

    def to_bytes(self) -> bytes:
        """Returns the content of comparison.json."""
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()

    def show_score(self, value: float) -> str:
        """Returns a score as people read it."""
        return f"{100 * value:.1f}%" if self.score == "accuracy" else f"{value:.3f}"

    @property
    def score_words(self) -> str:
        """The score's name, with its unit and direction."""
        return "Accuracy" if self.score == "accuracy" else "Loss in nats (smaller is better)"

    @property
    def headers(self) -> list[str]:
        """The table's headers."""
        return [
            "Method",
            f"{self.score_words}, before and after; one run",
            "Cost in forward passes over the pool",
            "Protected: which candidate subset of the pool was used (average over the secret)",
            "Protected: whether a record is in the pool (worst case)",
        ]

    def cells(self, row: Row) -> list[str]:
        """Returns a row of the table, in the order of `headers`."""
        return [
            row.method,
            f"{self.show_score(row.score_before)} → {self.show_score(row.score_after)}",
            f"{row.forward_equivalents:,.5g}",
            row.subset_words,
            row.pool_words,
        ]

    @property
    def notes(self) -> list[str]:
        """What must be read with the table, one sentence or two each."""
        return [*_matching_notes(self), *_fixed_notes(self)]


def read_comparison(path: Path) -> Comparison:
    """Returns what comparison.json holds.

    Raises:
        InvalidDataError: If it is not such a file, whole and of this format.
    """
    try:
        content = json.loads(path.read_bytes())
        version = content.pop("format_version")
        rows = tuple(_read_row(entry) for entry in content.pop("rows"))
        methods = tuple(content.pop("methods"))
        comparison = Comparison(**content, methods=methods, rows=rows)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidDataError(
            f"{path}: not a readable comparison.json ({type(error).__name__}: {error}). Make it "
            "again with sordino compare."
        ) from error
    unknown = {*methods, *(row.method for row in rows)} - set(METHODS)
    if version != FORMAT_VERSION or unknown or comparison.score not in SCORES:
        raise InvalidDataError(
            f"{path}: must be format {FORMAT_VERSION} with methods out of {', '.join(METHODS)} and "
            f"a score out of {', '.join(SCORES)}; found format {version!r}, score "
            f"{comparison.score!r}. Make it again with sordino compare."
        )
    return comparison


def _read_row(entry: Mapping[str, Any]) -> Row:
    """Returns one run; raises ValueError or TypeError if a number is missing or not finite."""
    row = Row(
        **{name: value for name, value in entry.items() if name not in ("subset", "pool")},
        subset=SubsetLine(**entry["subset"]),
        pool=PoolLine(**entry["pool"]),
    )
    required = [row.score_before, row.score_after, row.forward_equivalents, row.share_per_step]
    if row.subset.mutual_information_nats_upper is not None:
        required += [row.subset.mutual_information_nats_upper, row.subset.posterior_upper]
        required += [row.subset.prior]
    if row.pool.epsilon_upper is not None:
        required += [row.pool.epsilon_upper, row.pool.delta, row.pool.success_upper]
        if row.pool.neighboring_relation not in RELATIONS:
            raise ValueError(f"unknown relation {row.pool.neighboring_relation!r}")
    if not all(math.isfinite(value) for value in required):
        raise ValueError("a number is NaN or infinite")
    if row.forward_equivalents <= 0:
        raise ValueError("a cost is not positive")
    return row


def count_forward_equivalents(
    derivative: str, *, num_steps: int, directions_per_step: int, share_per_step: float
) -> float:
    """Returns a run's cost in forward passes over the whole pool: counted, not timed.

    A forward pass counts 1, a backward pass 2, a central difference 2 for each direction.

    Args:
        derivative: How the run differentiates, as its ledger says.
        num_steps: Steps.
        directions_per_step: Directions of a step.
        share_per_step: Part of the pool that a step looks at.

    Raises:
        InvalidDataError: If the derivative is not one of those that are compared.
    """
    costs = {
        "central-difference": 2 * directions_per_step,
        "backpropagation": 1 + _BACKWARD,  # all directions from one pass
        "gradient": 1 + _BACKWARD,
    }
    if derivative not in costs:
        raise InvalidDataError(
            f"the cost of derivative {derivative!r} is not counted; known: {', '.join(costs)}."
        )
    return costs[derivative] * num_steps * share_per_step


def _matching_notes(comparison: Comparison) -> list[str]:
    """Returns what was matched with what."""
    matched = [row for row in comparison.rows if row.matched_success is not None]
    if not matched:
        return []
    pairs = [
        f"{row.method} with {METHODS[row.method].matched_with} ({shown_upper(row.matched_success)})"
        for row in matched
    ]
    notes = [
        (
            "Matched: the PAC budget is chosen so that the best guess is right with the "
            f"probability that the DP method allows. {'; '.join(pairs)}."
        ),
        (
            "Matched is not equal. DP bounds the guess in the worst case: any record of the pool, "
            "all others known. PAC bounds it on average over the secret, and its secret is which "
            "candidate subset of a known pool was used. It is not protection of membership in the "
            "pool."
        ),
    ]
    if len({row.matched_success for row in matched}) > 1:
        notes.append(
            "The two DP methods allow different probabilities at the same epsilon and delta, "
            "because their steps differ; each PAC method is matched with the DP method of "
            "the same estimator."
        )
    return notes


def _fixed_notes(comparison: Comparison) -> list[str]:
    """Returns what holds for every comparison."""
    seed = comparison.settings.get("seed")
    notes = [
        (
            '"Guess right" bounds the probability that the best guess is right: whether a given '
            "record was in the subset, or whether it is in the pool. Blind is the best guess "
            "without the release."
        ),
        (
            "Each guarantee holds for its run alone. Whoever sees several of these runs, or this "
            "table, sees more: it has the scores of every run, and no formal guarantee covers them "
            "together. Show it outside only if the pool may be shown."
        ),
        (
            "Cost is counted, not timed: a forward pass over the whole pool counts 1, forward and "
            "backward 3, a zeroth-order step 2 for each direction, all times the share of the pool "
            "that a step looks at. Scoring the validation records is not counted."
        ),
        (
            f"One run of each method, seed {seed}, on {comparison.num_records} records, at each "
            "method's default learning rate."
        ),
    ]
    if comparison.score == "accuracy":
        points = 50 / math.sqrt(comparison.num_validation)
        notes.append(
            f"Accuracy on {comparison.num_validation} validation records has a standard error of "
            f"up to {points:.1f} points; the noise of training comes on top."
        )
    if comparison.unfinished:
        notes.append(f"Not finished: {', '.join(comparison.unfinished)}.")
    return notes
