"""Poisson sampling of privacy units: each one is in a step's batch by its own secret coin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sordino.core.checks import require_in_range, require_integer
from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sordino.core.secret_stream import SecretStream


class PoissonSampler:
    """Draws the units of one step, independently of each other and of all other steps.

    Guarantee:
        Every unit is included with at most `sampling_probability` (rounded down to a multiple of
        2**-64), so accounting with `sampling_probability` is on the private side. Which units were
        drawn is secret: the batch and its size must not be released.

    Args:
        stream: Secret randomness.
        sampling_probability: In (0, 1]; 1 takes every unit in every step.
        num_units: How many units there are, at least 1.

    Raises:
        InvalidParameterError: If an argument is NaN, infinite or out of range.
    """

    def __init__(self, stream: SecretStream, sampling_probability: float, num_units: int) -> None:
        require_in_range("sampling_probability", sampling_probability, 0.0, 1.0)
        if sampling_probability == 0:
            raise InvalidParameterError(
                "sampling_probability must be above 0: at 0 no unit is ever drawn."
            )
        self._stream = stream
        self._num_units = require_integer("num_units", num_units, 1)
        self.sampling_probability = float(sampling_probability)

    def sample(self) -> NDArray[np.int64]:
        """Returns the sorted indices of one step's units, shape (batch_size,).

        The batch may be empty; the step must be taken all the same, with noise alone.
        """
        included = self._stream.bernoulli(self.sampling_probability, self._num_units)
        return np.flatnonzero(included).astype(np.int64, copy=False)
