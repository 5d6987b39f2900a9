"""Exposure of canaries: how far above its references a secret that was in the pool scores.

References are secrets of the same kind, drawn in the same way, that were not in the pool. Scores
are oriented: higher = more likely a member. A secret without influence has exposure e or more
with probability at most 2**-e.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import log_ndtr
from scipy.stats import kstest, skewnorm

from sordino.auditing._counts import require_scores
from sordino.core.errors import InvalidDataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["FEWEST_REFERENCES", "ExtrapolatedExposure", "exposure", "extrapolated_exposure"]

FEWEST_REFERENCES = 100  # for three fitted parameters; fewer would extrapolate from noise
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_REACH = 45.0  # in lengths of exponential decay: what lies beyond is below 1e-19
_LARGEST_SKEWNESS = 0.99  # of a skew-normal law: 0.9953


@dataclass(frozen=True, slots=True)
class ExtrapolatedExposure:
    """Exposures beyond what ranks can resolve: an estimate that rests on a fitted law."""

    exposures: NDArray[np.float64]  # in bits
    shape: float
    location: float
    scale: float
    largest_distance: float  # Kolmogorov-Smirnov distance of the references from the fit


def exposure(secret_scores: ArrayLike, reference_scores: ArrayLike) -> NDArray[np.float64]:
    """Returns each secret's exposure in bits, by rank.

    Guarantee:
        If a secret was not used, its exposure is at least e with probability at most 2**-e.
        Assumes: secret and references are exchangeable, drawn from one law.

    Args:
        secret_scores: Scores of secrets that were in the pool, finite, shape (num_secrets,).
        reference_scores: Scores of references, finite, shape (num_references,).

    Returns:
        log2(num_references + 1) - log2(rank), shape (num_secrets,): the space counts the secret
        itself, and its rank is one more than the references that score at least as high. At
        most log2(num_references + 1), at least 0.

    Raises:
        InvalidDataError: If scores are missing, NaN, infinite or not numbers.

    Source:
        arXiv:1802.08232, Definition 4, on a sample of the space; references come first in ties.

    Example:
        >>> exposure([9.0, 0.5, -1.0], [0.0, 1.0, 2.0]).round(3).tolist()
        [2.0, 0.415, 0.0]
    """
    secrets = require_scores("secret_scores", secret_scores)
    references = np.sort(require_scores("reference_scores", reference_scores))
    rank = 1 + references.size - np.searchsorted(references, secrets, side="left")
    exposures: NDArray[np.float64] = np.log2((references.size + 1) / rank)
    return exposures


def extrapolated_exposure(
    secret_scores: ArrayLike, reference_scores: ArrayLike
) -> ExtrapolatedExposure:
    """Returns exposures from a skew-normal law fitted to the references.

    Guarantee:
        None: an estimate. It is as good as the fit in a tail that was not seen; read
        `largest_distance`, and use `exposure` for claims.

    Args:
        secret_scores: Scores of secrets that were in the pool, finite, shape (num_secrets,).
        reference_scores: Scores of references, finite, not all equal, shape
            (num_references,); at least 100.

    Returns:
        The `ExtrapolatedExposure`: -log2 of the fitted probability that a reference scores at
        least as high.

    Raises:
        InvalidDataError: If scores are missing, too few, constant, NaN, infinite or not
            numbers.

    Source:
        arXiv:1802.08232, Section 5 (approximation by distribution modelling). Departure: fitted
        by moments, integrated in log space, so that the tail does not underflow.

    Example:
        >>> from scipy.special import ndtri
        >>> references = ndtri((np.arange(1000) + 0.5) / 1000)
        >>> f"{extrapolated_exposure([6.0], references).exposures[0]:.1f}"  # -log2 of 9.9e-10
        '30.0'
    """
    secrets = require_scores("secret_scores", secret_scores)
    references = require_scores("reference_scores", reference_scores)
    if references.size < FEWEST_REFERENCES or not np.ptp(references) > 0.0:
        raise InvalidDataError(
            f"reference_scores must be at least {FEWEST_REFERENCES} scores that are not all "
            f"equal, got {references.size}. Use exposure, or draw more references."
        )
    shape, location, scale = _fit(references)
    law = skewnorm(shape, loc=location, scale=scale)
    return ExtrapolatedExposure(
        exposures=np.array(
            [-_log_survival((score - location) / scale, shape) for score in secrets.tolist()]
        )
        / math.log(2.0),
        shape=shape,
        location=location,
        scale=scale,
        largest_distance=float(kstest(references, law.cdf).statistic),
    )


def _fit(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Returns shape, location and scale of the skew-normal law with the values' moments."""
    mean, deviation = float(values.mean()), float(values.std())
    skewness = float(np.mean(((values - mean) / deviation) ** 3))
    skewness = min(max(skewness, -_LARGEST_SKEWNESS), _LARGEST_SKEWNESS)
    root = (2.0 * abs(skewness) / (4.0 - math.pi)) ** (1.0 / 3.0)
    mean_unit = math.copysign(root / math.sqrt(1.0 + root * root), skewness)  # of scale 1
    delta = mean_unit * math.sqrt(math.pi / 2.0)
    scale = deviation / math.sqrt(1.0 - mean_unit * mean_unit)
    return delta / math.sqrt(1.0 - delta * delta), mean - scale * mean_unit, scale


def _log_survival(z: float, shape: float) -> float:
    """Returns ln P(Z > z) of the standard skew-normal law, accurate in its far upper tail."""
    tail = float(skewnorm.sf(z, shape))
    if tail > 1e-3:
        return math.log(tail)
    # The log density is concave, so beyond z the density falls at least like exp(-slope (t - z)).
    ratio = math.exp(-0.5 * (shape * z) ** 2 - float(log_ndtr(shape * z)))
    slope = z - shape * ratio / math.sqrt(2.0 * math.pi)
    steps = (_NODES + 1.0) * (0.5 * _REACH / slope)
    exponents = -z * steps - 0.5 * steps * steps + log_ndtr(shape * (z + steps))
    largest = float(exponents.max())
    integral = float(np.sum(_WEIGHTS * np.exp(exponents - largest))) * 0.5 * _REACH / slope
    return 0.5 * math.log(2.0 / math.pi) - 0.5 * z * z + largest + math.log(integral)
