"""The baseline without privacy: the mean directional derivative itself (MeZO)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sordino.mechanisms.release import AbstractMechanism, Release

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INTEGER_BITS = 30


class OpenMeanMechanism(AbstractMechanism):
    """Releases the mean over the pool, rounded to 31 bits: no guarantee of any kind.

    The rounding makes the replay exact; it is not privacy.
    """

    encoding = "value"

    def __init__(self, records_per_step: int) -> None:
        self._records_per_step = records_per_step

    def release(self, sums: NDArray[np.float64], unit: float, step: int) -> Release:  # noqa: ARG002
        """Returns the mean over the pool, in units of 2**-30 of its largest value."""
        mean = sums[0] * unit / self._records_per_step
        largest = float(np.abs(mean).max())
        step_unit = largest * 2.0**-_INTEGER_BITS if largest > 0 else 1.0
        return Release(
            integers=np.rint(mean / step_unit).astype(np.int32),
            unit=step_unit,
            mutual_information_nats=0.0,
            unanimous=np.ones(mean.shape, dtype=np.bool_),
        )

    def describe(self) -> dict[str, Any]:
        """Returns the public description."""
        return {"name": "open-mean"}

    def private_state(self) -> dict[str, Any]:
        """Returns nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Needs nothing."""
