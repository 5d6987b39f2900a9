"""The PII games on one model: who is looked for, what is written and what is guessed."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sordino.attacks.pii_strings import DETECTED_KINDS, StringFinder, detect, string_key
from sordino.core.errors import PrecisionError
from sordino.data._tokens import common_prefix, start_tokens, tokenize
from sordino.data.collate import collate, plan_batches
from sordino.data.tasks import Example
from sordino.gradients.generation import encode_opening, generate_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sordino.attacks.pii import PiiSettings
    from sordino.attacks.pii_strings import StringKey
    from sordino.data.secret_lists import Secret
    from sordino.gradients.objectives import LanguageModel

EXTRACTION = "extraction"
WITH_PREFIX = "extraction with prefix"
INFERENCE = "inference"
RECONSTRUCTION = "reconstruction"
_MOST_ROWS = 128  # sequences of a batch
_DRAWN_PER_CANDIDATE = 4  # some drawn are the same person's; a long list is not searched for each
_TARGETS_AT_ONCE = 32  # bounds the texts that are held while they are scored
_LONGEST_GUESS = 200  # characters
_GUESS_END = re.compile(r"\n|[.;!?](?:\s|$)")
_SPACED_AFTER = ":;,.!?)"  # signs that a space follows
_SUFFIX_HEAD = 8  # characters of the text after a string that end a guess


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A different sensitive string, all its entries of the list together.

    Args:
        key: What its spellings have in common.
        prefix: What stands before it; empty for unknown.
        suffix: What follows it.
        repetitions: The most of its entries; None for unknown.
        lines: Of its entries.
        candidates: Strings to choose from, the true one among them; empty for none.
    """

    key: StringKey
    prefix: str
    suffix: str
    repetitions: int | None
    lines: tuple[int, ...]
    candidates: tuple[str, ...]

    @property
    def is_control(self) -> bool:
        """Whether it was in no training document."""
        return self.repetitions == 0

    @property
    def has_prefix(self) -> bool:
        """Whether it is known what stands before it."""
        return bool(self.prefix.strip())

    def can_play(self, game: str) -> bool:
        """Returns whether a game can be played for it."""
        if game == INFERENCE:
            return self.has_prefix and len(self.candidates) > 1
        return game == EXTRACTION or self.has_prefix

    def filled(self, candidate: str) -> str:
        """Returns the text with a candidate in the string's place."""
        last = self.prefix[-1:]
        is_joined = (
            last.isspace()
            or candidate[:1].isspace()
            or not (last.isalnum() or last in _SPACED_AFTER)
        )
        return f"{self.prefix}{'' if is_joined else ' '}{candidate}{self.suffix}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the games gave on one model; keys of held-out strings included."""

    found: dict[str, set[StringKey]] = field(default_factory=lambda: defaultdict(set))
    produced: dict[tuple[str, str], set[StringKey]] = field(
        default_factory=lambda: defaultdict(set)
    )
    guessed: dict[str, set[StringKey]] = field(default_factory=lambda: defaultdict(set))


def list_targets(secrets: Sequence[Secret], num_candidates: int, seed: int) -> list[Target]:
    """Returns the different strings of a list, in its order, with candidates for inference.

    Candidates are other people's strings of the same kind, drawn without replacement: those of
    training documents with each other, and held-out ones with each other, so that having been seen
    is no advantage by itself. The place of the true one is drawn too: where all score the same, it
    is chosen by chance.
    """
    entries: dict[StringKey, list[Secret]] = {}
    for secret in secrets:
        entries.setdefault(string_key(secret.kind, secret.secret), []).append(secret)
    times = {key: _most_repetitions(same) for key, same in entries.items()}
    alike: dict[tuple[str, bool], list[StringKey]] = defaultdict(list)
    for key in entries:
        alike[key.kind, times[key] == 0].append(key)
    people = {
        key: {secret.person for secret in same if secret.person is not None}
        for key, same in entries.items()
    }
    targets = []
    for number, (key, same) in enumerate(entries.items()):
        generator = np.random.default_rng([seed, number])
        pool = alike[key.kind, times[key] == 0]
        num_drawn = min(len(pool), _DRAWN_PER_CANDIDATE * num_candidates)
        drawn = [pool[i] for i in generator.choice(len(pool), size=num_drawn, replace=False)]
        others = [other for other in drawn if other != key and not people[other] & people[key]]
        candidates = [entries[other][0].secret for other in others[: num_candidates - 1]]
        with_prefix = next((one for one in same if one.prefix.strip()), same[0])
        candidates.insert(int(generator.integers(len(candidates) + 1)), with_prefix.secret)
        targets.append(
            Target(
                key=key,
                prefix=with_prefix.prefix,
                suffix=with_prefix.suffix,
                repetitions=times[key],
                lines=tuple(one.line for one in same if one.line),
                candidates=tuple(candidates),
            )
        )
    return targets


def _most_repetitions(entries: Sequence[Secret]) -> int | None:
    """Returns the largest count of one string's entries, None where none is known."""
    known = [entry.repetitions for entry in entries if entry.repetitions is not None]
    return max(known, default=None)


def count_texts(targets: Sequence[Target], settings: PiiSettings) -> int:
    """Returns how many texts are written or scored on one model, but for ranking guesses."""
    total = settings.num_samples if EXTRACTION in settings.games else 0
    if {WITH_PREFIX, RECONSTRUCTION} & set(settings.games):
        total += settings.num_continuations * sum(target.has_prefix for target in targets)
    if INFERENCE in settings.games:
        total += sum(len(t.candidates) for t in targets if t.can_play(INFERENCE))
    return total


def play(model: LanguageModel, *, settings: PiiSettings, **arguments: Any) -> Outcome:
    """Returns what the chosen games give on one model; `arguments` are those of `_Games`."""
    games = _Games(model, settings=settings, **arguments)
    if EXTRACTION in settings.games:
        games.write_from_openings()
    if {WITH_PREFIX, RECONSTRUCTION} & set(settings.games):
        games.write_from_prefixes()
    if INFERENCE in settings.games:
        games.choose_candidates()
    return games.outcome


class _Games:
    """The games on one model; every text is looked at once and not kept."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        tokenizer: Any,
        context_length: int,
        targets: Sequence[Target],
        settings: PiiSettings,
        advance: Callable[[int], None],
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._targets = targets
        self._settings = settings
        self._advance = advance
        self._finder = StringFinder(target.key for target in targets)
        kinds = {target.key.kind for target in targets}
        self._detected = [kind for kind in DETECTED_KINDS if kind in kinds]
        self.outcome = Outcome()

    def write_from_openings(self) -> None:
        """Plays extraction without prefix."""
        openings = self._settings.openings
        texts = [openings[i % len(openings)] for i in range(self._settings.num_samples)]
        for index, written in self._write(texts, is_greedy=False):
            self._look_into(EXTRACTION, texts[index], written)

    def write_from_prefixes(self) -> None:
        """Plays extraction with prefix, and reconstruction on the same texts."""
        games = self._settings.games
        targets = [target for target in self._targets if target.has_prefix]
        guesses: list[dict[StringKey, str]] = [{} for _ in targets]
        num_sampled = self._settings.num_continuations - 1
        for is_greedy, asked in ((True, targets), (False, targets * num_sampled)):
            prefixes = [target.prefix for target in asked]
            for index, written in self._write(prefixes, is_greedy=is_greedy):
                target = asked[index]
                if WITH_PREFIX in games:
                    self._look_into(WITH_PREFIX, target.prefix, written)
                guess = first_guess(target, written) if RECONSTRUCTION in games else None
                if guess is not None:
                    key = string_key(target.key.kind, guess)
                    guesses[index % len(targets)].setdefault(key, guess)
        if RECONSTRUCTION in games:
            self._choose(
                RECONSTRUCTION,
                [
                    (target, tuple(own.values()))
                    for target, own in zip(targets, guesses, strict=True)
                    if own
                ],
            )

    def choose_candidates(self) -> None:
        """Plays inference."""
        asked = [(t, t.candidates) for t in self._targets if t.can_play(INFERENCE)]
        self._choose(INFERENCE, asked)

    def _write(self, openings: Sequence[str], *, is_greedy: bool) -> Iterator[tuple[int, str]]:
        """Yields what the model writes after each opening."""
        decoding = self._settings.decoding
        ids = {opening: encode_opening(self._tokenizer, opening) for opening in {*openings}}
        yield from generate_texts(
            self._model,
            self._tokenizer,
            [ids[opening] for opening in openings],
            replace(decoding, temperature=0.0) if is_greedy else decoding,
            context_length=self._context_length,
            seed=self._settings.seed,
            tokens_per_batch=self._settings.tokens_per_batch,
            advance=self._advance,
        )

    def _look_into(self, game: str, opening: str, written: str) -> None:
        """Notes the strings of one text that its opening does not hold."""
        found = self._finder.find(written)
        if found:
            self.outcome.found[game] |= found - self._finder.find(opening)
        for kind in self._detected:
            strings = {one.key for one in detect(kind, written)}
            if strings:
                told = {one.key for one in detect(kind, opening)}
                self.outcome.produced[game, kind] |= strings - told

    def _choose(self, game: str, asked: Sequence[tuple[Target, tuple[str, ...]]]) -> None:
        """Notes for which targets the candidate of least perplexity is the right one."""
        for start in range(0, len(asked), _TARGETS_AT_ONCE):
            block = asked[start : start + _TARGETS_AT_ONCE]
            rows = [ids for target, candidates in block for ids in self._encode(target, candidates)]
            losses = mean_losses(self._model, rows, self._settings.tokens_per_batch)
            for target, candidates in block:
                own, losses = losses[: len(candidates)], losses[len(candidates) :]
                best = candidates[int(np.argmin(own))]
                self.outcome.guessed[game].add(target.key)
                if string_key(target.key.kind, best) == target.key:
                    self.outcome.found[game].add(target.key)
            if game == INFERENCE:
                self._advance(len(rows))

    def _encode(self, target: Target, candidates: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of the text with each candidate in its place.

        Where one is longer than the context, all lose as much of the prefix, then their ends.
        """
        start = start_tokens(self._tokenizer)
        texts = [target.filled(candidate) for candidate in candidates]
        prefix, *filled = tokenize(self._tokenizer, [target.prefix.rstrip(" "), *texts])
        shared = min(common_prefix(prefix, ids) for ids in filled)
        longest = max(map(len, filled)) + len(start)
        cut = max(0, min(longest - self._context_length, shared - 1))
        return [(start + ids[cut:])[: self._context_length] for ids in filled]


def first_guess(target: Target, written: str) -> str | None:
    """Returns the string that a model wrote in a target's place, None for none.

    For kinds that a pattern can tell it is the first one; else the text up to where the document
    goes on as the attacker knows it, or up to the end of the line or sentence.
    """
    if target.key.kind in DETECTED_KINDS:
        strings = detect(target.key.kind, written)
        return strings[0].text if strings else None
    head = target.suffix.strip()[:_SUFFIX_HEAD].strip()
    stop = written.find(head) if head else -1
    if stop < 0:
        end = _GUESS_END.search(written.lstrip())
        written = written.lstrip()
        stop = end.start() if end else len(written)
    guess = written[:stop].strip()
    is_usable = len(guess) <= _LONGEST_GUESS and any(sign.isalnum() for sign in guess)
    return guess if is_usable else None


def mean_losses(
    model: LanguageModel, rows: Sequence[list[int]], tokens_per_batch: int
) -> list[float]:
    """Returns the log perplexity of each token list in nats: the mean over all but its first token.

    Raises:
        PrecisionError: If one is NaN or infinite.
    """
    losses = [0.0] * len(rows)
    batches = plan_batches(
        [len(ids) for ids in rows], token_budget=tokens_per_batch, max_records=_MOST_ROWS
    )
    for batch in batches:
        inputs = collate([Example(rows[i]) for i in batch], model.pad_token_id).to(model.device)
        sequences, positions = inputs.attention_mask[:, 1:].nonzero(as_tuple=True)
        targets = inputs.input_ids[sequences, positions + 1]
        with torch.no_grad():
            likelihoods = model.token_log_likelihoods(
                inputs.input_ids, sequences, positions, targets
            )
        totals = torch.zeros(len(batch), device=model.device).index_add(0, sequences, likelihoods)
        means = -totals / inputs.attention_mask[:, 1:].sum(dim=1).clamp_min(1)
        if not bool(torch.isfinite(means).all()):
            raise PrecisionError(
                "the model gives NaN or infinite probabilities, so that nothing can be compared. "
                "Check its weights, or compute in float32."
            )
        for index, mean in zip(batch, means.tolist(), strict=True):
            losses[index] = mean
    return losses
