"""Randomized quantization: bounded numbers leave as levels, drawn exactly, and spend an epsilon.

A mechanism for bounded *contributions*, such as clipped updates of a device. Rounding the weights
of a model that was trained without privacy with it protects nothing: what training released about
a record is not bounded by the clip of a weight.

The law and its divergences are in `sordino.accounting.randomized_quantization`. Draws have no
error: keep decisions compare 64 secret bits with q, which is a multiple of 2**-64, and the rounding
compares a lazily drawn uniform number with an exact fraction. So the total variation distance from
the stated law is 0, up to the indistinguishability of the secret stream from random bits.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from sordino.accounting.randomized_quantization import (
    RandomizedQuantizationEvent,
    breakpoints,
    level_position,
    probabilities,
    renyi_divergence,
)
from sordino.core.checks import require_in_range, require_integer, require_positive
from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sordino.core.secret_stream import SecretStream
    from sordino.ledger.releases import ReleaseLedger

__all__ = [
    "TOTAL_VARIATION_PER_DRAW",
    "RandomizedQuantization",
    "StochasticRounding",
    "breakpoints",
    "probabilities",
    "renyi_divergence",
]

TOTAL_VARIATION_PER_DRAW = 0.0  # the draws are exact: nothing is added to delta for the sampler

_SMALLEST_KEEP_PROBABILITY = 2.0**-12  # from here on every float64 is a multiple of 2**-64
_MARGIN = 2.0**-40  # more than the float64 errors of a place, a weight and the first 53 bits
_WORDS_AT_ONCE = 1 << 20


class RandomizedQuantization:
    """Releases vectors of bounded numbers as levels.

    Guarantee:
        All releases of one unit together spend what `compose_epsilon` says about
        `RandomizedQuantizationEvent` (local model, REPLACE_ONE). What is drawn, and how often, does
        not depend on the values, except for a lazily drawn word once in 2**29 draws or less often.
        Assumes: honest caller.

    Args:
        stream: Secret randomness.
        clip: c; values lie in [-c, c].
        margin: D, by how much the levels reach beyond the clip.
        num_levels: m; in [2, 1024]. Up to 256 a value is one byte.
        keep_probability: q; 0, or in [2**-12, 1].
        num_coordinates: Length of every vector: what the coordinates spend adds up.
        ledger: Charged before each release; None leaves the account to the caller.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.

    Source:
        arXiv:2306.11913.
    """

    def __init__(
        self,
        stream: SecretStream,
        *,
        clip: float,
        margin: float,
        num_levels: int,
        keep_probability: float,
        num_coordinates: int,
        ledger: ReleaseLedger | None = None,
    ) -> None:
        self.event = RandomizedQuantizationEvent(
            clip=float(clip),
            margin=float(margin),
            num_levels=int(num_levels),
            keep_probability=float(keep_probability),
            num_coordinates=num_coordinates,
        )
        if keep_probability != 0.0:
            require_in_range("keep_probability", keep_probability, _SMALLEST_KEEP_PROBABILITY, 1.0)
        self._stream, self._ledger = stream, ledger
        self.levels = _levels(self.event.clip + self.event.margin, self.event.num_levels)

    def release(self, values: NDArray[np.floating[Any]]) -> NDArray[np.int16]:
        """Returns the numbers of the levels, in [0, num_levels), shape (num_coordinates,).

        Raises:
            InvalidParameterError: If the shape is another, or a value is NaN or beyond the clip:
                clip first, since only the caller knows by which norm.
            BudgetExceededError: If the ledger has no room; nothing was released.
            EntropyError: If the stream cannot be read; nothing was released.
        """
        event = self.event
        values = _require_values(values, event.num_coordinates, event.clip)
        if self._ledger is not None:
            self._ledger.charge(event)
        return _draw(
            self._stream,
            values,
            (event.clip, event.margin),
            event.num_levels,
            event.keep_probability,
        )

    def decode(self, integers: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Returns the values of levels; their mean over the draws is what was released."""
        return self.levels[integers]

    def describe(self) -> dict[str, Any]:
        """Returns the public description."""
        return {
            "name": "randomized-quantization",
            "clip": self.event.clip,
            "margin": self.event.margin,
            "num_levels": self.event.num_levels,
            "keep_probability": self.event.keep_probability,
            "num_coordinates": self.event.num_coordinates,
            "total_variation_per_draw": TOTAL_VARIATION_PER_DRAW,
        }


class StochasticRounding:
    """Plain stochastic rounding to the two nearest of evenly spaced levels in [-clip, clip].

    Guarantee:
        None: values in different cells are released as different levels, so no epsilon is finite,
        at any order. It stands here so that it can be compared and audited.

    Args:
        stream: Secret randomness.
        clip: c; values lie in [-c, c].
        num_levels: m; in [2, 1024].

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.
    """

    def __init__(self, stream: SecretStream, *, clip: float, num_levels: int) -> None:
        self.clip = require_positive("clip", clip)
        require_in_range("clip", clip, 1e-100, 1e100)
        self.num_levels = require_integer("num_levels", num_levels, 2, 1024)
        self._stream = stream
        self.levels = _levels(self.clip, self.num_levels)

    def release(self, values: NDArray[np.floating[Any]]) -> NDArray[np.int16]:
        """Returns the numbers of the levels, in [0, num_levels), shape as the values."""
        values = _require_values(values, np.size(values), self.clip)
        return _draw(self._stream, values, (self.clip, 0.0), self.num_levels, 1.0)

    def renyi_divergence(self, order: float) -> float:
        """Returns infinity, for every order above 1."""
        if not order > 1.0:
            raise InvalidParameterError(f"order must be above 1, or infinity, got {order!r}.")
        return math.inf


def _draw(
    stream: SecretStream,
    values: NDArray[np.float64],
    lengths: tuple[float, float],
    num_levels: int,
    keep_probability: float,
) -> NDArray[np.int16]:
    """Returns exact draws, a block of coordinates at a time."""
    block = max(1, _WORDS_AT_ONCE // num_levels)
    parts = [
        _draw_block(stream, values[start : start + block], lengths, num_levels, keep_probability)
        for start in range(0, values.size, block)
    ]
    return np.concatenate([np.empty(0, dtype=np.int16), *parts])


def _draw_block(
    stream: SecretStream,
    values: NDArray[np.float64],
    lengths: tuple[float, float],
    num_levels: int,
    keep_probability: float,
) -> NDArray[np.int16]:
    """Returns exact draws for a few coordinates."""
    clip, margin = lengths
    reach = Fraction(clip) + Fraction(margin)
    half = (num_levels - 1) / 2.0
    places = half + values / float(reach) * half
    cells = np.clip(np.floor(places), 0, num_levels - 2).astype(np.int64)
    # Near a level float64 cannot say on which side a value is: the exact place does.
    for i in np.flatnonzero(np.abs(places - np.rint(places)) < _MARGIN * num_levels):
        place = level_position(float(values[i]), clip, margin, num_levels)
        cells[i] = min(math.floor(place), num_levels - 2)
    kept = np.ones((values.size, num_levels), dtype=np.bool_)
    inner = stream.bernoulli(keep_probability, values.size * (num_levels - 2))
    kept[:, 1:-1] = inner.reshape(values.size, -1)
    number = np.arange(num_levels)
    is_below = number[None, :] <= cells[:, None]
    lower = np.where(kept & is_below, number, 0).max(axis=1)
    upper = np.where(kept & ~is_below, number, num_levels - 1).min(axis=1)

    words = stream.words(values.size)
    uniforms = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53  # U is in [u, u + 2**-53]
    weights = (places - lower) / (upper - lower)
    margins = _MARGIN * num_levels
    goes_up = uniforms < weights - margins
    for i in np.flatnonzero(np.abs(uniforms - weights) <= margins):
        place = level_position(float(values[i]), clip, margin, num_levels)
        weight = (place - int(lower[i])) / int(upper[i] - lower[i])
        goes_up[i] = _is_below(stream, int(words[i]), weight)
    return np.where(goes_up, upper, lower).astype(np.int16)


def _is_below(stream: SecretStream, word: int, weight: Fraction) -> bool:
    """Returns whether U < weight, for a uniform U whose first 64 bits are given."""
    while True:
        weight *= 2**64
        whole = math.floor(weight)
        if word != whole:
            return word < whole
        weight -= whole
        if weight == 0:
            return False
        word = int(stream.words(1)[0])


def _levels(reach: float, num_levels: int) -> NDArray[np.float64]:
    """Returns the values of the levels."""
    number = np.arange(num_levels, dtype=np.float64)
    return reach * ((2.0 * number - (num_levels - 1)) / (num_levels - 1))


def _require_values(values: Any, count: int, clip: float) -> NDArray[np.float64]:
    """Returns the values as float64 if there are `count`, all in [-clip, clip], else raises."""
    found = np.asarray(values)
    if found.dtype.kind != "f" or found.shape != (count,):
        raise InvalidParameterError(
            f"values must be floats of shape ({count},), got {found.dtype} of shape {found.shape}."
        )
    numbers = found.astype(np.float64)
    if not (np.abs(numbers) <= clip).all():  # NaN fails here
        raise InvalidParameterError(
            f"every value must lie in [-{clip:g}, {clip:g}], and at least one is NaN or beyond; "
            "nothing was released. Clip the contribution first."
        )
    return numbers
