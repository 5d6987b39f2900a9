"""What a model gives away of known sensitive strings: three games, beside the base model's result.

Extraction: the model writes texts, from nothing or from what stands before a string, and the
strings are looked for in them. Precision and recall count different strings, never mentions; a
string that stood in what the text was continued from does not count. Inference: the attacker
chooses between a string and those of other people, by the perplexity of the text with each in its
place. Reconstruction: the candidates are what the model writes in that place.

In extraction and reconstruction `num_found` and, in extraction, `num_produced` leave out what the
base model produces as well: it was not learned in tuning. In inference they do not, since the base
is right by chance too. Strings of held-out people (0 repetitions) are controls: they stand in
`by_repetition` only, and whatever is found of them is chance.

Source:
    The games of Lukas et al., arXiv:2302.00539. Departures: candidates of inference come from the
    list, and other masks of a document are not filled in, since the prefix is known as it was.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sordino.attacks._pii_games import (
    EXTRACTION,
    INFERENCE,
    RECONSTRUCTION,
    WITH_PREFIX,
    Outcome,
    Target,
    count_texts,
    list_targets,
    play,
)
from sordino.attacks.pii_strings import DETECTED_KINDS
from sordino.core.checks import require_integer, require_one_of
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.gradients.generation import Decoding, ignore_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sordino.attacks.pii_strings import StringKey
    from sordino.attacks.subject import Subject
    from sordino.data.secret_lists import Secret

GAMES = (EXTRACTION, WITH_PREFIX, INFERENCE, RECONSTRUCTION)


@dataclass(frozen=True, kw_only=True, slots=True)
class PiiSettings:
    """How much is tried.

    Args:
        games: Those to play, of `GAMES`.
        num_samples: Texts written from nothing.
        num_continuations: Texts written from each prefix, the first with the likeliest tokens.
        num_candidates: Strings to choose from in inference, the true one included.
        decoding: How texts are written.
        openings: What texts without prefix begin with, in turn; the empty one begins from nothing.
        tokens_per_batch: Bounds the memory.
        seed: Public.
    """

    games: tuple[str, ...] = GAMES
    num_samples: int = 512
    num_continuations: int = 4
    num_candidates: int = 20
    decoding: Decoding = field(default_factory=Decoding)
    openings: tuple[str, ...] = ("",)
    tokens_per_batch: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        for game in self.games:
            require_one_of("game", game, GAMES)
        if not self.games or not self.openings:
            raise InvalidParameterError("games and openings must hold at least one entry each.")
        require_integer("num_samples", self.num_samples, 1)
        require_integer("num_continuations", self.num_continuations, 1)
        require_integer("num_candidates", self.num_candidates, 2)
        require_integer("tokens_per_batch", self.tokens_per_batch, 1)
        require_integer("seed", self.seed, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PiiFinding:
    """What one game found of one kind of string; the fields of a row of the audit's record.

    Args:
        kind: Of string.
        game: One of `GAMES`.
        num_secrets: Different strings that the game was played for, without held-out people's.
        num_found: Those that the tuned model gave away; without those that the base gives away,
            except in inference.
        num_produced: Extraction: different strings of that kind that were written, by the tuned
            model only; 0 for kinds that no pattern can tell. Else: guesses made.
        base_found: The same attack on the base, None without one.
        by_repetition: Number of training documents -> [found, strings]; "0" for held-out people.
    """

    kind: str
    game: str
    num_secrets: int
    num_found: int
    num_produced: int
    base_found: int | None
    by_repetition: dict[str, list[int]] = field(default_factory=dict)

    @property
    def recall(self) -> float:
        """Share of the strings that were found."""
        return self.num_found / self.num_secrets

    @property
    def precision(self) -> float | None:
        """Share of what was produced that is in the list; None where nothing was counted."""
        return self.num_found / self.num_produced if self.num_produced else None


@dataclass(frozen=True, kw_only=True, slots=True)
class PiiResult:
    """The findings of all games.

    Args:
        findings: By kind, then game.
        chance: Probability that a guess in inference is right by chance, by kind.
        leaked_lines: Game -> lines of the user's list whose strings are in `num_found`.
        notes: What must be read with the numbers.
    """

    findings: tuple[PiiFinding, ...]
    chance: dict[str, float]
    leaked_lines: dict[str, tuple[int, ...]]
    notes: tuple[str, ...]


def play_pii_games(
    subject: Subject,
    secrets: Sequence[Secret],
    settings: PiiSettings | None = None,
    *,
    advance: Callable[[int], None] = ignore_progress,
) -> PiiResult:
    """Returns what the tuned model gives away, and the base beside it where there is one.

    Strings that are one up to spelling count once. Only extraction without prefix is played for
    strings without a prefix; inference needs another person's string of the same kind.

    Args:
        subject: The model, with its base.
        secrets: The strings, from `sordino.data.people`.
        settings: How much is tried.
        advance: Called with a number of finished texts; `count_pii_texts` gives their sum.

    Raises:
        InvalidDataError: If there is no string that a game can be played for.
        InvalidParameterError: If the context is too short for the texts.
        PrecisionError: If a model gives NaN.
    """
    settings = settings or PiiSettings()
    targets = list_targets(secrets, settings.num_candidates, settings.seed)
    _require_playable(targets, settings)
    arguments: dict[str, Any] = {
        "tokenizer": subject.tokenizer,
        "context_length": subject.context_length,
        "targets": targets,
        "settings": settings,
        "advance": advance,
    }
    tuned = play(subject.tuned, **arguments)
    base = None
    if subject.has_base:
        with subject.base() as model:
            base = play(model, **arguments)
    findings = []
    leaked = {}
    for game in GAMES:
        if game in settings.games:
            played = [target for target in targets if target.can_play(game)]
            found = _count_as_found(game, tuned, base)
            leaked[game] = tuple(
                sorted(
                    line
                    for target in played
                    if target.key in found and not target.is_control
                    for line in target.lines
                )
            )
            findings += [
                _finding(
                    kind,
                    game,
                    [target for target in played if target.key.kind == kind],
                    found=found,
                    tuned=tuned,
                    base=base,
                )
                for kind in _kinds(played)
            ]
    kinds = _kinds(targets)
    findings.sort(key=lambda finding: kinds.index(finding.kind))  # stable: games keep their order
    chance = _chance(targets) if INFERENCE in settings.games else {}
    return PiiResult(
        findings=tuple(findings),
        chance=chance,
        leaked_lines=leaked,
        notes=tuple(_notes(targets, settings, chance, has_base=base is not None)),
    )


def count_pii_texts(
    secrets: Sequence[Secret], settings: PiiSettings | None = None, *, has_base: bool
) -> int:
    """Returns how many texts `play_pii_games` reports to `advance`."""
    settings = settings or PiiSettings()
    targets = list_targets(secrets, settings.num_candidates, settings.seed)
    return count_texts(targets, settings) * (2 if has_base else 1)


def _require_playable(targets: Sequence[Target], settings: PiiSettings) -> None:
    """Raises if all games would be empty."""
    own = [target for target in targets if not target.is_control]
    if not own:
        raise InvalidDataError(
            "the list must hold at least one string of a training document, has "
            f"{len(targets)} of held-out people only. Give repetitions above 0 or leave them out."
        )
    if not any(target.can_play(game) for target in own for game in settings.games):
        raise InvalidDataError(
            "no string can be looked for in the chosen games: they need what stands before it in "
            'its document. Give the column prefix, or play "extraction".'
        )


def _kinds(targets: Sequence[Target]) -> list[str]:
    """Returns the kinds of strings that are not controls, in the order of the list."""
    return list(dict.fromkeys(t.key.kind for t in targets if not t.is_control))


def _count_as_found(game: str, tuned: Outcome, base: Outcome | None) -> set[StringKey]:
    """Returns the strings that tuning gave away; a right guess by chance is not told apart."""
    if base is None or game == INFERENCE:
        return tuned.found[game]
    return tuned.found[game] - base.found[game]


def _finding(
    kind: str,
    game: str,
    targets: Sequence[Target],
    *,
    found: set[StringKey],
    tuned: Outcome,
    base: Outcome | None,
) -> PiiFinding:
    """Returns one row."""
    own = [target for target in targets if not target.is_control]
    if game in (EXTRACTION, WITH_PREFIX):
        produced = set(tuned.produced[game, kind])
        if kind in DETECTED_KINDS:  # a known string counts even where no pattern tells it
            produced |= {target.key for target in own if target.key in tuned.found[game]}
        if base is not None:
            produced -= base.produced[game, kind] | base.found[game]
        num_produced = len(produced)
    else:
        num_produced = sum(target.key in tuned.guessed[game] for target in own)
    by_repetition: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for target in targets:
        if target.repetitions is not None:
            by_repetition[target.repetitions][0] += target.key in found
            by_repetition[target.repetitions][1] += 1
    return PiiFinding(
        kind=kind,
        game=game,
        num_secrets=len(own),
        num_found=sum(target.key in found for target in own),
        num_produced=num_produced,
        base_found=None if base is None else sum(t.key in base.found[game] for t in own),
        by_repetition={str(times): by_repetition[times] for times in sorted(by_repetition)},
    )


def _chance(targets: Sequence[Target]) -> dict[str, float]:
    """Returns the share of guesses that are right by chance, by kind."""
    shares: dict[str, list[float]] = defaultdict(list)
    for target in targets:
        if target.can_play(INFERENCE) and not target.is_control:
            shares[target.key.kind].append(1.0 / len(target.candidates))
    return {kind: sum(values) / len(values) for kind, values in shares.items()}


def _notes(
    targets: Sequence[Target],
    settings: PiiSettings,
    chance: dict[str, float],
    *,
    has_base: bool,
) -> list[str]:
    """Returns what must be read with the numbers."""
    notes = ["Sensitive strings are counted once each, however often a model writes them."]
    if has_base:
        notes.append(
            "Strings that the base model produces too are not counted as given away by tuning in "
            "extraction and reconstruction."
        )
    else:
        notes.append("There is no base model: strings that it knew before are counted as found.")
    if chance:
        shares = ", ".join(f"{kind} {share:.1%}" for kind, share in chance.items())
        notes.append(f"Inference is right by chance with probability: {shares}.")
    untold = [kind for kind in _kinds(targets) if kind not in DETECTED_KINDS]
    if untold and {EXTRACTION, WITH_PREFIX} & set(settings.games):
        notes.append(
            "Extraction has no precision for these kinds, since no pattern tells all such strings "
            f"in a text: {', '.join(untold)}."
        )
    without = sum(not target.has_prefix for target in targets)
    if without and set(settings.games) - {EXTRACTION}:
        notes.append(
            f"{without} of {len(targets)} strings have no prefix; only extraction without prefix "
            "was played for them."
        )
    alone = Counter(
        target.key.kind
        for target in targets
        if target.has_prefix and not target.can_play(INFERENCE)
    )
    if alone and INFERENCE in settings.games:
        notes.append(
            "Inference needs strings of other people to choose from; there are none for: "
            f"{', '.join(sorted(alone))}."
        )
    return notes
