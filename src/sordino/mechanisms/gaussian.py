"""The Gaussian mechanism: a step's clipped sum with normal noise, on a public grid."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from sordino.core.checks import require_in_range, require_integer, require_positive
from sordino.core.errors import InvalidParameterError, PrecisionError
from sordino.mechanisms.discrete_gaussian import (
    LARGEST_SIGMA,
    distance_to_rounded_normal_upper,
    sample_discrete_gaussian,
)
from sordino.mechanisms.noise import noise_source, standard_normals
from sordino.mechanisms.release import AbstractMechanism, Release

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sordino.core.secret_stream import SecretStream

_LARGEST_INTEGER = 2**31 - 1
_FINEST_NOISE = 2.0**20  # integers that one standard deviation is divided into, at most
_ROUND_UP = 1.0 + 2.0**-48  # more than all roundings of the few operations it covers


class GaussianMechanism(AbstractMechanism):
    """Releases the noisy sum of a step's clipped contributions, over a public normaliser.

    Guarantee:
        One step's integers are a function of the sums plus noise of standard deviation
        `noise_multiplier * sensitivity_upper` in every coordinate. `sensitivity_upper` bounds the
        L2 norm by which one unit moves the sums (under REPLACE_ONE two units differ: twice that).
        The unit of the integers is fixed before the data are seen.
        Assumes: each unit's contributions have an L2 norm of at most `clip_norm` before they are
        rounded to whole numbers of `contribution_unit`. With continuous noise, Assumes: exact
        arithmetic. With discrete noise (`grid=True`) the arithmetic is exact, and
        `distance_to_normal_upper` says what a claim made for normal noise must add.

    Args:
        stream: Secret randomness.
        clip_norm: Largest L2 norm of one unit's contributions to a step.
        noise_multiplier: Noise standard deviation over sensitivity.
        num_releases: K, the numbers released in one step.
        expected_batch_size: The public number that sums are divided by.
        contribution_unit: Value of the integer 1 in the sums, the same in every step.
        grid: Whether sums are rounded to the grid and get discrete Gaussian noise, instead
            of getting continuous noise and then being rounded.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.
    """

    encoding = "value"

    def __init__(
        self,
        stream: SecretStream,
        *,
        clip_norm: float,
        noise_multiplier: float,
        num_releases: int,
        expected_batch_size: float,
        contribution_unit: float,
        grid: bool = False,
    ) -> None:
        # The ranges keep every product below far from the ends of float64.
        self._stream = stream
        self._clip_norm = require_in_range("clip_norm", clip_norm, 1e-100, 1e100)
        self._noise_multiplier = require_in_range("noise_multiplier", noise_multiplier, 1e-6, 1e6)
        self._num_releases = require_integer("num_releases", num_releases, 1, 2**31 - 1)
        self._normaliser = require_in_range("expected_batch_size", expected_batch_size, 1e-6, 1e12)
        self._contribution_unit = require_positive("contribution_unit", contribution_unit)
        require_in_range("contribution_unit / clip_norm", contribution_unit / clip_norm, 1e-30, 1.0)
        self._is_discrete = grid
        # Rounding moves each of a unit's K contributions by half a unit at most.
        half_units = contribution_unit * math.sqrt(num_releases) / 2
        sensitivity = (clip_norm + half_units) * _ROUND_UP
        self._shift = self._choose_shift(sensitivity)
        grid_unit = math.ldexp(contribution_unit, self._shift)
        if grid and self._shift > 0:
            # Rounding a sum to the grid moves the difference of two sums by one grid unit at most.
            sensitivity = (sensitivity + grid_unit * math.sqrt(num_releases)) * _ROUND_UP
        self.sensitivity_upper = sensitivity
        self.noise_std = noise_multiplier * sensitivity * _ROUND_UP
        self._sigma = self.noise_std / grid_unit * _ROUND_UP  # in integers
        if grid:
            require_in_range("noise standard deviation in integers", self._sigma, 16, LARGEST_SIGMA)
        self._grid_unit = grid_unit

    @property
    def distance_to_normal_upper(self) -> float:
        """Total variation distance of one step from a rounded one with normal noise, rounded up.

        A claim made for normal noise adds (1 + e**epsilon) times this to delta for every step; 0
        with continuous noise.
        """
        if not self._is_discrete:
            return 0.0
        return distance_to_rounded_normal_upper(self._sigma, self._num_releases)

    def release(self, sums: NDArray[np.float64], unit: float, step: int) -> Release:  # noqa: ARG002
        """Returns the noisy mean in whole numbers of a public unit.

        Numbers beyond int32 are cut off, which costs no privacy. That happens only in a batch of
        more than 2 * expected_batch_size + 32 units or with noise beyond 16 standard deviations:
        with Poisson sampling, in less than one step in 10**17.
        """
        self._require_sums(sums, unit)
        if self._is_discrete:
            noise = sample_discrete_gaussian(self._stream, self._sigma, self._num_releases)
            # A power of two times a whole number is exact, and so is the sum: below 2**53 after
            # the cut, which comes first so that no noise can be lost in a large number's low bits.
            scaled = np.rint(np.ldexp(sums[0], -self._shift))
            noisy = np.clip(scaled, -(2.0**52), 2.0**52).astype(np.int64) + noise
        else:
            normals = standard_normals(self._stream, self._num_releases).numpy()
            noisy = np.rint((sums[0] * unit + self.noise_std * normals) / self._grid_unit)
        integers = np.clip(noisy, -_LARGEST_INTEGER, _LARGEST_INTEGER).astype(np.int32)
        return Release(
            integers=integers,
            unit=self._grid_unit / self._normaliser,
            mutual_information_nats=0.0,
            unanimous=np.ones(integers.shape, dtype=np.bool_),
        )

    def describe(self) -> dict[str, Any]:
        """Returns the public description."""
        return {
            "name": "gaussian",
            "noise": "discrete" if self._is_discrete else "continuous",
            "noise_multiplier": self._noise_multiplier,
            "clip_norm": self._clip_norm,
            "expected_batch_size": self._normaliser,
            "sensitivity_upper": self.sensitivity_upper,
            "noise_std": self.noise_std,
            "noise_source": noise_source("cpu"),
            "distance_to_normal_upper": self.distance_to_normal_upper,
        }

    def private_state(self) -> dict[str, Any]:
        """Returns nothing: noise is drawn afresh and never repeated."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Needs nothing."""

    def _choose_shift(self, sensitivity: float) -> int:
        """Returns k such that the grid is 2**k contribution units: fine, yet within int32."""
        noise_std = self._noise_multiplier * sensitivity
        largest = (2 * self._normaliser + 32) * sensitivity + 16 * noise_std
        # 2**30 and not 2**31: room for what rounding to the grid adds.
        finest = max(noise_std / _FINEST_NOISE, largest / 2.0**30)
        return math.ceil(math.log2(finest / self._contribution_unit))

    def _require_sums(self, sums: NDArray[np.float64], unit: float) -> None:
        """Raises unless the sums are what the sensitivity was computed for."""
        if unit != self._contribution_unit:
            raise InvalidParameterError(
                f"sums must be in units of {self._contribution_unit!r}, which the noise was "
                f"computed for, got units of {unit!r}."
            )
        if sums.shape != (1, self._num_releases):
            raise InvalidParameterError(
                f"sums must have shape (1, {self._num_releases}), got {sums.shape}."
            )
        if not (np.isfinite(sums).all() and (np.rint(sums) == sums).all()):
            raise PrecisionError(
                "a sum to be released is NaN, infinite or no whole number; nothing was released. "
                "Lower the learning rate, or compute in float32."
            )
