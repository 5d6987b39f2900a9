"""The subset game's set-up: the pool in its order, the candidates, and the true one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sordino.core.entropy import OperatingSystemEntropy
from sordino.core.errors import InvalidDataError
from sordino.ledger.durable import PRIVATE_FILE_MODE, replace_file
from sordino.mechanisms.candidates import CandidateSubsets

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from sordino.ledger.ledger import Ledger

DRAWN = "drawn_subset.PRIVATE.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class SubsetGame:
    """What the attacker knows, and the answer.

    Args:
        membership: Which record of the pool is in which candidate, (num_records, num_subsets).
        true_candidate: The secret.
        prior: Success of a guess about one record without the release.
        is_drawn_after: Whether the run never read a secret, so that it was drawn for the game.
    """

    membership: NDArray[np.bool_]
    true_candidate: int
    prior: float
    is_drawn_after: bool


def find_subset_game(
    ledger: Ledger | None, num_records: int, *, kept: Path, folder: Path
) -> SubsetGame | None:
    """Returns the game of a PAC run, or None where it cannot be played.

    With a positive budget the secret is the one that the run has kept, if it was asked to. At
    budget 0 the run never read a secret subset: one drawn afterwards has the law that one drawn
    before would have had. It is drawn once and kept, so that nobody draws until the answer suits.
    Both files name the ledger's last line: the secret of another run is never taken for this one's.

    Args:
        ledger: The run's; None for models made elsewhere.
        num_records: Records of the pool that are at hand, in its order.
        kept: File in which `sordino tune --keep-subset` left the secret; it may be missing.
        folder: Folder of the audit.

    Raises:
        InvalidDataError: If a file that holds the secret cannot be read, or is another run's.
    """
    if ledger is None or ledger.events[0]["guarantee"] != "pac":
        return None
    opening = ledger.events[0]
    mechanism = opening["mechanism"]
    construction = mechanism["subset_construction"]
    per_record = mechanism.get("subsets_per_record")  # older ledgers do not have it
    is_unknown = construction == "rate" and per_record is None
    if num_records != opening["num_records"] or is_unknown:
        return None
    num_subsets = mechanism["num_subsets"]
    is_drawn_after = opening["mutual_information_budget_nats"] == 0
    path = folder / DRAWN if is_drawn_after else kept
    if is_drawn_after and not path.exists():
        drawn = {"subset": OperatingSystemEntropy().index(num_subsets), "ledger": ledger.head}
        replace_file(path, json.dumps(drawn).encode(), mode=PRIVATE_FILE_MODE)
    if not path.exists():
        return None
    candidates = CandidateSubsets(
        num_subsets=num_subsets,
        construction=construction,
        subsets_per_record=per_record,
        seed=opening["seed"],
    )
    return SubsetGame(
        membership=candidates.membership(num_records),
        true_candidate=_read_secret(path, num_subsets, ledger.head),
        prior=mechanism["prior"],
        is_drawn_after=is_drawn_after,
    )


def _read_secret(path: Path, num_subsets: int, head: str) -> int:
    """Returns the number of the true candidate of the run with that ledger; never prints it."""
    try:
        stored: dict[str, Any] = json.loads(path.read_bytes())
        secret, its_head = stored["subset"], stored["ledger"]
    except (OSError, ValueError, KeyError, TypeError):
        secret, its_head = None, head
    if its_head != head:
        raise InvalidDataError(f"{path} belongs to another run. Move it away, and audit again.")
    if type(secret) is not int or not 0 <= secret < num_subsets:
        raise InvalidDataError(
            f"{path} does not hold the number of one of {num_subsets} candidate subsets. Remove "
            "it: the subset game is then not played."
        )
    return secret
