"""Gram matrices of private calibration texts: clipped, summed, noised, made positive again.

A quantizer that sees only these has seen nothing else of the texts: what it makes of them is
post-processing. One privacy unit is one entry of the input, under ADD_OR_REMOVE_ONE. Where a person
owns several sequences, `sum_by_unit` makes one matrix of them first.

The space of symmetric matrices with the Frobenius norm is R^(n (n + 1) / 2) with the Euclidean norm
through the isometry (G_ii; sqrt(2) G_ij, i < j), because an entry off the diagonal counts twice in
the Frobenius norm. The Gaussian mechanism adds N(0, s^2) to every coordinate there, s = noise
multiplier x clip norm. Read back as a matrix: noise of deviation s on the diagonal and s / sqrt(2)
off it, symmetric. Adding or removing a unit moves the sum by at most the clip norm, so one matrix
is one Gaussian release at that noise multiplier: neither more noise off the diagonal (waste), nor
independent noise on both of its sides (not symmetric, and averaging would halve its variance).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from sordino.accounting._sampled_gaussian import ADD_OR_REMOVE_ONE, SampledGaussian
from sordino.core.checks import require_in_range, require_integer
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.mechanisms.noise import noise_source, standard_normals

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from sordino.core.secret_stream import SecretStream
    from sordino.ledger.releases import ReleaseLedger

__all__ = ["PrivateGrams", "private_gram", "project_to_positive_semidefinite", "sum_by_unit"]

_ROUND_UP = 1.0 + 2.0**-30  # more than the roundings of a norm over 2**26 entries, and of a sum
_ASYMMETRY = 1e-6  # of the largest entry; float32 products of activations are this symmetric
_LARGEST_SIZE = 2**15


class PrivateGrams:
    """Sums the Gram matrices of several layers over units, and releases all of them once.

    Guarantee:
        What `release` returns is one release of `event` (ADD_OR_REMOVE_ONE, one `add` is one unit),
        and everything made from it is post-processing. Assumes: exact arithmetic; the number of
        units is not taken from here but is public, or is not used; the layers' activations of a
        unit do not depend on other units.

    Args:
        sizes: Number of columns n of every layer, by name; public.
        clip_norm: C, the largest Frobenius norm of one unit's matrix in each layer, chosen without
            looking at the texts.
        noise_multiplier: Noise deviation / clip norm of each layer; see
            `sordino.accounting.composition.gram_noise_multiplier`.
        entropy: Secret randomness.
        ledger: Charged before the release; None leaves the account to the caller.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        clip_norm: float,
        noise_multiplier: float,
        entropy: SecretStream,
        ledger: ReleaseLedger | None = None,
    ) -> None:
        if not sizes:
            raise InvalidParameterError("sizes must name at least one layer.")
        self._clip_norm = require_in_range("clip_norm", clip_norm, 1e-100, 1e100)
        self.event = SampledGaussian(
            noise_multiplier=noise_multiplier,
            sampling_probability=1.0,
            num_steps=len(sizes),
            neighboring_relation=ADD_OR_REMOVE_ONE,
        )
        self._noise_std = noise_multiplier * clip_norm * _ROUND_UP
        self._stream, self._ledger = entropy, ledger
        self._sums: dict[str, NDArray[np.float64]] | None = {
            name: np.zeros((n, n))
            for name, n in sizes.items()
            if require_integer(f"sizes[{name!r}]", n, 1, _LARGEST_SIZE)
        }

    def add(self, grams: Mapping[str, NDArray[Any]]) -> None:
        """Adds one unit's matrices, each clipped to the clip norm.

        Raises:
            InvalidDataError: If a matrix is not symmetric, or holds NaN or infinity; nothing was
                added.
            InvalidParameterError: If layers or shapes are others than announced, or if the release
                was made.
        """
        sums = self._open_sums()
        if set(grams) != set(sums):
            raise InvalidParameterError(
                f"a unit must bring one matrix for each of {len(sums)} layers, got {len(grams)} "
                "names, or others."
            )
        clipped = {n: _clip(gram, sums[n].shape[0], self._clip_norm) for n, gram in grams.items()}
        for name, gram in clipped.items():
            sums[name] += gram

    def release(self) -> dict[str, NDArray[np.float64]]:
        """Returns the noisy sums, projected to positive semidefinite matrices; only once.

        Raises:
            BudgetExceededError: If the ledger has no room; nothing was released.
            EntropyError: If the stream cannot be read; nothing was released.
            InvalidParameterError: If the release was made: another one would spend again.
        """
        sums = self._open_sums()
        if self._ledger is not None:
            self._ledger.charge(self.event)
        self._sums = None
        return {
            name: project_to_positive_semidefinite(
                total + _symmetric_noise(self._stream, total.shape[0], self._noise_std)
            )
            for name, total in sums.items()
        }

    def describe(self) -> dict[str, Any]:
        """Returns the public description."""
        return {
            "name": "private-gram",
            "clip_norm": self._clip_norm,
            "noise_multiplier": self.event.noise_multiplier,
            "num_grams": self.event.num_steps,
            "noise_std": self._noise_std,
            "noise_source": noise_source("cpu"),
            "neighboring_relation": self.event.neighboring_relation,
        }

    def _open_sums(self) -> dict[str, NDArray[np.float64]]:
        """Returns the sums if they were not released, else raises."""
        if self._sums is None:
            raise InvalidParameterError(
                "these matrices were released; a second release spends again and needs sums of "
                "its own."
            )
        return self._sums


def private_gram(
    sequence_grams: Iterable[NDArray[Any]],
    *,
    clip_norm: float,
    noise_multiplier: float,
    entropy: SecretStream,
) -> NDArray[np.float64]:
    """Returns the noisy sum of clipped Gram matrices, projected to positive semidefinite ones.

    Guarantee:
        The result is one Gaussian release at `noise_multiplier` under ADD_OR_REMOVE_ONE, one matrix
        of the input being one unit. It charges nothing: that is the caller's business (for several
        layers and with a ledger, use `PrivateGrams`). Assumes: exact arithmetic.

    Args:
        sequence_grams: X^T X of every sequence, shape (n, n) each, symmetric; at least one, since
            the first one says n, which is public.
        clip_norm: C, the largest Frobenius norm of one of them; larger ones are scaled down.
        noise_multiplier: Noise deviation / clip norm, no unit; in [0.1, 1000].
        entropy: Secret randomness.

    Returns:
        A symmetric positive semidefinite matrix, float64.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.
        InvalidDataError: If a matrix is not symmetric, or holds NaN or infinity.

    Source:
        The top of this module.

    Example:
        >>> from sordino.core.secret_stream import SecretStream
        >>> grams = [np.eye(2), 5.0 * np.eye(2)]
        >>> stream = SecretStream.from_operating_system()
        >>> noisy = private_gram(grams, clip_norm=1.0, noise_multiplier=1.0, entropy=stream)
        >>> noisy.shape, bool(np.linalg.eigvalsh(noisy).min() > -1e-9)
        ((2, 2), True)
    """
    grams = iter(sequence_grams)
    first = next(grams, None)
    if first is None:
        raise InvalidParameterError("sequence_grams must hold at least one matrix, got none.")
    size = np.shape(first)[0] if np.ndim(first) else 0
    sums = PrivateGrams(
        {"": size}, clip_norm=clip_norm, noise_multiplier=noise_multiplier, entropy=entropy
    )
    sums.add({"": first})
    for gram in grams:
        sums.add({"": gram})
    return sums.release()[""]


def project_to_positive_semidefinite(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the nearest positive semidefinite matrix: negative eigenvalues become 0.

    Args:
        matrix: Symmetric, shape (n, n).
    """
    values, vectors = np.linalg.eigh(matrix)
    kept = vectors * np.sqrt(np.maximum(values, 0.0))
    result: NDArray[np.float64] = kept @ kept.T  # symmetric also after rounding
    return result


def sum_by_unit(
    grams: Iterable[tuple[Hashable, NDArray[Any]]],
) -> Iterator[NDArray[np.float64]]:
    """Yields one matrix a unit, so that a person with many sequences is clipped as one.

    Args:
        grams: (unit, matrix) with the sequences of a unit behind each other.

    Raises:
        InvalidDataError: If a unit comes back after another one: it would be counted twice.
    """
    seen: set[Hashable] = set()
    unit: Hashable = None
    total: NDArray[np.float64] | None = None
    for owner, gram in grams:
        matrix = np.asarray(gram, dtype=np.float64)
        if total is not None and owner == unit:
            total = total + matrix
            continue
        if owner in seen:
            raise InvalidDataError(
                "the sequences of a unit must stand behind each other, but one came back after "
                "another's; sort them by unit. Nothing may be released."
            )
        if total is not None:
            yield total
        seen.add(owner)
        unit, total = owner, matrix
    if total is not None:
        yield total


def _clip(gram: NDArray[Any], size: int, clip_norm: float) -> NDArray[np.float64]:
    """Returns the matrix, made exactly symmetric, of a Frobenius norm of at most the clip norm."""
    matrix = np.asarray(gram, dtype=np.float64)
    if matrix.shape != (size, size):
        raise InvalidParameterError(
            f"a Gram matrix must have shape ({size}, {size}), got {matrix.shape}."
        )
    largest = float(np.abs(matrix).max())
    if not math.isfinite(largest):
        raise InvalidDataError("a Gram matrix holds NaN or infinity; nothing was added.")
    if largest == 0.0:
        return matrix
    scaled = matrix / largest  # no square overflows, or vanishes as a whole
    if np.abs(scaled - scaled.T).max() > _ASYMMETRY:
        raise InvalidDataError("a Gram matrix must be symmetric; nothing was added.")
    scaled = (scaled + scaled.T) / 2.0
    norm = float(np.linalg.norm(scaled))
    return scaled * min(largest, clip_norm / norm)


def _symmetric_noise(stream: SecretStream, size: int, noise_std: float) -> NDArray[np.float64]:
    """Returns symmetric noise: deviation `noise_std` on the diagonal, / sqrt(2) off it."""
    rows, columns = np.triu_indices(size)
    normals = standard_normals(stream, rows.size).numpy() * noise_std
    normals[rows != columns] /= math.sqrt(2.0)
    noise = np.zeros((size, size))
    noise[rows, columns] = normals
    noise[columns, rows] = normals
    return noise
