"""The seam between contributions and releases: every mechanism is one `AbstractMechanism`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """What one step makes public, what it costs, and one thing that stays with the holder."""

    integers: NDArray[np.int32]  # shape (num_releases,), in units of `unit`
    unit: float
    mutual_information_nats: float  # the charge, rounded up
    unanimous: NDArray[np.bool_]  # private: shape (num_releases,); never written to the artefact


class AbstractMechanism(ABC):
    """Turns exact sums over candidate subsets into a public release and its charge.

    A mechanism draws its secret randomness from `AbstractEntropy` alone. Its private state (none,
    or a secret and a posterior) goes to the sealed journal after every step and nowhere else.
    """

    encoding: str  # how the transcript writes a symbol

    @abstractmethod
    def release(self, sums: NDArray[np.float64], unit: float, step: int) -> Release:
        """Returns the release of one step.

        Args:
            sums: Whole numbers in units of `unit`, shape (num_subsets, num_releases).
            unit: Value of the integer 1.
            step: Step number, from 0.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns the public description that the ledger's opening event and certificate carry."""

    @abstractmethod
    def private_state(self) -> dict[str, Any]:
        """Returns what the sealed journal must keep to continue; never shown, never logged."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a `private_state`."""
