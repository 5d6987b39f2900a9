"""Gradient inversion as a control: what a client's update gives away, with and without a mechanism.

The same batches' gradients of an adapter are sent in three ways: raw, as a federated client without
a mechanism does; clipped, summed and noised (differential privacy); and as signs of which all
candidate subsets agree (PACZero). The same test reads tokens off each. On raw gradients it must
find them, or it had no power and its silence about the others says nothing. Finding none there is
no guarantee.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sordino.attacks.gradient_inversion import invert_gradients
from sordino.attacks.gradient_scores import text_gradients
from sordino.core.checks import require_in_range, require_integer, require_positive
from sordino.core.entropy import OperatingSystemEntropy
from sordino.core.errors import InvalidParameterError
from sordino.core.secret_stream import SecretStream
from sordino.mechanisms.candidates import (
    CandidateSubsets,
    SubsetSums,
    fixed_point_unit,
    to_fixed_point,
)
from sordino.mechanisms.gaussian import GaussianMechanism
from sordino.mechanisms.unanimity import UnanimityMechanism

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from sordino.attacks.texts import ScoredText
    from sordino.core.entropy import AbstractEntropy
    from sordino.gradients.objectives import LanguageModel

    Parameters = Mapping[str, torch.nn.Parameter]
    Release = Callable[[NDArray[np.float32]], NDArray[np.float64]]

RAW = "raw gradient"
_MOST_CANDIDATES = 20_000  # of the search for whole texts; bounds its time
_SLACK = 1.0 + 1e-5  # a clipped gradient's norm may exceed the bound by its rounding


@dataclass(frozen=True, kw_only=True, slots=True)
class SendingSettings:
    """How the mechanisms are set.

    Args:
        clip_norm: Bound on a record's gradient norm, for both mechanisms.
        noise_multiplier: Noise standard deviation over sensitivity.
        num_signs: Signs that PACZero releases of a batch.
        num_subsets: Candidate subsets of the batch, even.
        seed: Public; of the directions and candidates.
    """

    clip_norm: float = 0.3
    noise_multiplier: float = 1.0
    num_signs: int = 16
    num_subsets: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive("clip_norm", self.clip_norm)
        require_in_range("noise_multiplier", self.noise_multiplier, 1e-6, 1e6)
        require_integer("num_signs", self.num_signs, 1)
        require_integer("seed", self.seed, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class InversionRow:
    """What one way of sending gives away, over all batches; tokens are counted once a batch.

    Args:
        sent: What is sent.
        num_tokens: Tokens that there were to be found.
        num_admitted: Vocabulary tokens that pass the test.
        num_right: Of these, tokens of the batch.
        nearest_right: Tokens of the batch among the nearest ones, as many as it has: an attacker
            who knows the number and guesses on.
        nearest_by_chance: Expected of such a guess among all tokens, uniformly.
        nearest_of_another: Tokens of the *next* batch among the same nearest ones: what texts have
            in common; None with one batch.
        num_texts: Texts.
        num_whole_texts: Texts recovered whole, but for their last token, which is no input.
        num_silent: Batches whose update spans its whole space, so that the test says nothing.
    """

    sent: str
    num_tokens: int
    num_admitted: int
    num_right: int
    nearest_right: int
    nearest_by_chance: float
    nearest_of_another: int | None
    num_texts: int
    num_whole_texts: int
    num_silent: int

    @property
    def precision(self) -> float | None:
        """Share of the admitted tokens that were in the batch; None where none is admitted."""
        return self.num_right / self.num_admitted if self.num_admitted else None

    @property
    def recall(self) -> float:
        """Share of the batch's tokens that are admitted."""
        return self.num_right / self.num_tokens

    @property
    def nearest_recall(self) -> float:
        """Share of the batch's tokens among as many nearest ones."""
        return self.nearest_right / self.num_tokens


def make_releases(
    settings: SendingSettings,
    batch_size: int,
    num_parameters: int,
    *,
    stream: SecretStream | None = None,
    entropy: AbstractEntropy | None = None,
) -> dict[str, Release]:
    """Returns the ways of sending by name: functions of (batch_size, num_parameters) gradients.

    Args:
        settings: Of the mechanisms.
        batch_size: Records of a batch.
        num_parameters: Numbers in one record's gradient.
        stream: Secret noise; None takes a fresh one from the operating system.
        entropy: Secret coins; None takes those of the operating system.
    """
    bound = settings.clip_norm * _SLACK
    unit = fixed_point_unit(bound, batch_size)
    gaussian = GaussianMechanism(
        stream or SecretStream.from_operating_system(),
        clip_norm=bound,
        noise_multiplier=settings.noise_multiplier,
        num_releases=num_parameters,
        expected_batch_size=float(batch_size),
        contribution_unit=unit,
    )
    candidates = CandidateSubsets(num_subsets=settings.num_subsets, seed=settings.seed)
    unanimity = UnanimityMechanism(candidates, entropy or OperatingSystemEntropy())
    membership = candidates.membership(batch_size)

    def noised(gradients: NDArray[np.float32]) -> NDArray[np.float64]:
        sums = np.zeros(num_parameters)
        for clipped in map(clip, gradients):
            sums += to_fixed_point(clipped, bound, unit)
        release = gaussian.release(sums[None], unit, 0)
        return release.integers * release.unit

    def signs(gradients: NDArray[np.float32]) -> NDArray[np.float64]:
        directions = np.random.default_rng([settings.seed, 5])
        along = np.empty((batch_size, settings.num_signs))
        clipped = [clip(gradient) for gradient in gradients]
        for number in range(settings.num_signs):
            direction = _direction(directions, num_parameters)
            along[:, number] = [float(gradient @ direction) for gradient in clipped]
        sums = SubsetSums(membership, settings.num_signs, bound * math.sqrt(num_parameters))
        sums.add(np.arange(batch_size), along)
        released = unanimity.release(sums.sums, sums.unit, 0).integers
        again = np.random.default_rng([settings.seed, 5])
        update = np.zeros(num_parameters)
        for sign in released:
            update += float(sign) * _direction(again, num_parameters)
        return update

    def clip(gradient: NDArray[np.float32]) -> NDArray[np.float64]:
        values = gradient.astype(np.float64)
        return values * min(1.0, settings.clip_norm / max(float(np.linalg.norm(values)), 1e-300))

    return {
        RAW: lambda gradients: gradients.sum(axis=0, dtype=np.float64),
        f"DP: clipped, noise multiplier {settings.noise_multiplier:g}": noised,
        f"PACZero: {settings.num_signs} signs, {settings.num_subsets} candidates": signs,
    }


def run_inversion_control(
    language_model: LanguageModel,
    parameters: Parameters,
    batches: Sequence[Sequence[ScoredText]],
    releases: Mapping[str, Release],
    *,
    advance: Callable[[int], None] = lambda done: None,  # noqa: ARG005
) -> list[InversionRow]:
    """Returns what each way of sending the batches' gradients gives away.

    Args:
        language_model: The model with its adapter, float32.
        parameters: What a client trains, by names as in `trainable_tensors`.
        batches: Texts of each batch, the same number in each.
        releases: Ways of sending, from `make_releases`.
        advance: Called with the number of batches done so far.

    Raises:
        InvalidParameterError: If there is no text, or the parameters say nothing about inputs.
        PrecisionError: If a gradient is NaN or infinite.
    """
    if not batches or len({len(batch) for batch in batches}) != 1 or not batches[0]:
        raise InvalidParameterError("batches must hold texts, the same number in each.")
    tokens = [{token for text in batch for token in text.input_ids[:-1]} for batch in batches]
    found: dict[str, list[_Found]] = {name: [] for name in releases}
    for number, batch in enumerate(batches):
        gradients = _record_gradients(language_model, parameters, batch)
        for name, release in releases.items():
            sent = _unflatten(release(gradients), parameters)
            found[name].append(_invert(language_model, sent, batch, len(tokens[number])))
        advance(number + 1)
    vocabulary = language_model.num_tokens
    return [_row(name, results, tokens, vocabulary) for name, results in found.items()]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What the test says of one batch."""

    admitted: frozenset[int]
    nearest: frozenset[int]
    num_whole_texts: int
    num_texts: int
    is_silent: bool


def _invert(
    model: LanguageModel,
    sent: Mapping[str, torch.Tensor],
    batch: Sequence[ScoredText],
    num_tokens: int,
) -> _Found:
    """Returns the admitted tokens and the nearest ones, as many as the batch has."""
    longest = max(len(text.input_ids) for text in batch)
    exact = invert_gradients(
        model, _of_first_blocks(sent, 2), max_length=longest, max_candidates=_MOST_CANDIDATES
    )
    ranked = invert_gradients(model, _of_first_blocks(sent, 1), max_length=longest, rank=num_tokens)
    nearest: list[int] = []
    if ranked.num_spans:
        order = np.argsort(ranked.distances, kind="stable")
        nearest = [int(token) for token in order[:num_tokens]]
    sequences = set(exact.sequences)
    return _Found(
        admitted=frozenset(exact.token_ids),
        nearest=frozenset(nearest),
        num_whole_texts=sum(tuple(text.input_ids[:-1]) in sequences for text in batch),
        num_texts=len(batch),
        is_silent=exact.num_spans == 0,
    )


def _row(
    name: str, results: Sequence[_Found], tokens: Sequence[set[int]], vocabulary: int
) -> InversionRow:
    """Returns the sums over the batches."""
    pairs = list(zip(results, tokens, strict=True))
    others = [*tokens[1:], tokens[0]]
    return InversionRow(
        sent=name,
        num_tokens=sum(map(len, tokens)),
        num_admitted=sum(len(found.admitted) for found in results),
        num_right=sum(len(found.admitted & own) for found, own in pairs),
        nearest_right=sum(len(found.nearest & own) for found, own in pairs),
        nearest_by_chance=sum(len(found.nearest) * len(own) / vocabulary for found, own in pairs),
        nearest_of_another=sum(
            len(found.nearest & other) for found, other in zip(results, others, strict=True)
        )
        if len(tokens) > 1
        else None,
        num_texts=sum(found.num_texts for found in results),
        num_whole_texts=sum(found.num_whole_texts for found in results),
        num_silent=sum(found.is_silent for found in results),
    )


def _record_gradients(
    model: LanguageModel, parameters: Parameters, batch: Sequence[ScoredText]
) -> NDArray[np.float32]:
    """Returns each text's flat gradient, zero where a parameter does not reach the loss."""
    size = sum(parameter.numel() for parameter in parameters.values())
    rows = np.zeros((len(batch), size), dtype=np.float32)
    for row, text in zip(rows, batch, strict=True):
        gradients = text_gradients(model, parameters, text)
        start = 0
        for name, parameter in parameters.items():
            if name in gradients:
                flat = gradients[name].detach().float().reshape(-1).cpu().numpy()
                row[start : start + parameter.numel()] = flat
            start += parameter.numel()
    return rows


def _unflatten(flat: NDArray[np.float64], parameters: Parameters) -> dict[str, torch.Tensor]:
    """Returns an update by the parameters' names."""
    parts = torch.from_numpy(flat).split([p.numel() for p in parameters.values()])
    return {
        name: part.reshape(parameter.shape).to(parameter.device)
        for (name, parameter), part in zip(parameters.items(), parts, strict=True)
    }


def _of_first_blocks(sent: Mapping[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """Returns the tensors of the first blocks; of all of them, each would be decomposed."""
    blocks = {
        name: next((int(part) for part in name.split(".") if part.isdigit()), -1) for name in sent
    }
    first = sorted(set(blocks.values()) - {-1})[:count]
    return {name: tensor for name, tensor in sent.items() if blocks[name] in first}


def _direction(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Returns the next public direction of random signs."""
    return generator.integers(0, 2, size, dtype=np.int8) * 2.0 - 1.0
