"""Which records a step looks at, and in which batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from sordino.core.checks import require_integer, require_one_of
from sordino.core.directions import public_permutation
from sordino.data import plan_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sordino.core.secret_stream import SecretStream
    from sordino.mechanisms.poisson import PoissonSampler
    from sordino.training.workers import Workers

MAX_RECORDS_PER_BATCH = 64
BATCH_ORDERS = ("independent", "shuffled", "blocks")


class AbstractPlan(ABC):
    """Chooses the records of a step; the same on every worker."""

    records_per_step: int  # public: how many, or how many units are expected

    @abstractmethod
    def batches(self, step: int) -> list[list[int]]:
        """Returns the batches of one step; every worker calls it once a step."""


class BatchPlan(AbstractPlan):
    """All records, or some chosen by the public seed.

    Args:
        lengths: Tokens of the record at every place.
        batch_size: Places a step; None takes all.
        tokens_per_batch: Tokens of a batch, padding included.
        seed: Public seed.
        empty: Places without a record: chosen like others, never looked at.
        order: "independent": each step draws from all places. "shuffled": steps go on through a
            shuffled order and shuffle anew when fewer than a batch are left. "blocks": the same
            with blocks of successive places; what is less than a block at the end is never chosen.
        shared_length: Tokens of some records in one batch, where it is less than their sum since
            they begin alike; records of a step then stay in their order.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int | None,
        tokens_per_batch: int,
        seed: int,
        empty: frozenset[int] = frozenset(),
        order: str = "independent",
        shared_length: Callable[[Sequence[int]], int] | None = None,
    ) -> None:
        self._order = require_one_of("order", order, BATCH_ORDERS)
        self._shared_length = shared_length
        self._lengths = list(lengths)
        self._empty = empty
        self._batch_size = batch_size
        self._tokens = tokens_per_batch
        self._seed = seed
        if batch_size is not None:
            require_integer("batch_size", batch_size, 1, len(self._lengths))
        self.records_per_step = batch_size or len(self._lengths)
        self._full = self._batches_of(range(len(self._lengths))) if batch_size is None else []

    def batches(self, step: int) -> list[list[int]]:
        """Returns the batches of one step."""
        if self._batch_size is None:
            return self._full
        size, count = self._batch_size, len(self._lengths)
        number, place = divmod(step, count // size)
        if self._order == "blocks":
            block = public_permutation(self._seed, "blocks", str(number), count // size)[place]
            return self._batches_of(range(block * size, (block + 1) * size))
        if self._order == "shuffled":
            order = public_permutation(self._seed, "pass", str(number), count)[place * size :]
        else:
            order = public_permutation(self._seed, "batch", str(step), count)
        return self._batches_of(np.sort(order[:size]).tolist())

    def _batches_of(self, places: Sequence[int]) -> list[list[int]]:
        """Returns batches of the records at these places."""
        filled = [place for place in places if place not in self._empty]
        if self._shared_length is None:
            return _plan(self._lengths, filled, self._tokens)
        batches: list[list[int]] = []
        for place in filled:
            longer = [*batches[-1], place] if batches else []
            if longer and self._shared_length(longer) <= self._tokens:
                batches[-1] = longer
            else:
                batches.append([place])
        return batches


class PoissonPlan(AbstractPlan):
    """Units drawn independently, step by step, in secret; the main process draws for all workers.

    Args:
        groups: The records of every unit; none at a place that was left empty.
        lengths: Tokens of every record.
        sampler: Draws units; None on the other workers.
        stream: Chooses among the records of a unit that has too many; None on the other workers.
        expected_units: Public; what sums are divided by, never the number that was drawn.
        max_records_per_unit: Most records of one unit in one step.
        tokens_per_batch: Tokens of a batch, padding included, unless one unit has more.
        workers: The processes that share the batches.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        lengths: Sequence[int],
        *,
        sampler: PoissonSampler | None,
        stream: SecretStream | None,
        expected_units: int,
        max_records_per_unit: int,
        tokens_per_batch: int,
        workers: Workers,
    ) -> None:
        self._groups = groups
        self._lengths = lengths
        self._sampler = sampler
        self._stream = stream
        self._tokens = tokens_per_batch
        self._workers = workers
        self._most = require_integer("max_records_per_unit", max_records_per_unit, 1)
        self._has_single_records = all(len(group) <= 1 for group in groups)
        self.records_per_step = expected_units
        self.unit_of = np.full(len(lengths), -1, dtype=np.int64)  # -1: left empty
        for unit, group in enumerate(groups):
            self.unit_of[list(group)] = unit

    def batches(self, step: int) -> list[list[int]]:  # noqa: ARG002 - every step is a new draw
        """Returns the batches of one step; none if nobody was drawn. A unit is never divided."""
        return self._workers.from_main(self._draw)

    def _draw(self) -> list[list[int]]:
        """Draws units and packs their records."""
        if self._sampler is None:
            raise RuntimeError("only the main process draws.")
        groups = [self._groups[unit] for unit in self._sampler.sample()]
        drawn = [self._some(group) for group in groups if group]
        if self._has_single_records:
            return _plan(self._lengths, [group[0] for group in drawn], self._tokens)
        return self._pack(drawn)

    def _some(self, group: Sequence[int]) -> list[int]:
        """Returns a unit's records; some of them, chosen in secret, if there are too many."""
        if len(group) <= self._most:
            return list(group)
        if self._stream is None:
            raise RuntimeError("only the main process draws.")
        order = np.argsort(self._stream.words(len(group)), kind="stable")
        return [group[i] for i in order[: self._most]]

    def _pack(self, drawn: list[list[int]]) -> list[list[int]]:
        """Returns batches of whole units, those with long records first."""
        longest = {id(group): max(self._lengths[i] for i in group) for group in drawn}
        batches: list[list[int]] = []
        width = 0
        for group in sorted(drawn, key=lambda group: -longest[id(group)]):
            size = len(batches[-1]) + len(group) if batches else 0
            if not batches or width * size > self._tokens or size > MAX_RECORDS_PER_BATCH:
                batches.append([])
                width = longest[id(group)]
            batches[-1] += group
        return batches


def _plan(lengths: Sequence[int], records: Sequence[int], tokens: int) -> list[list[int]]:
    """Returns batches of similar length over the given records."""
    plan = plan_batches(
        [lengths[i] for i in records], token_budget=tokens, max_records=MAX_RECORDS_PER_BATCH
    )
    return [[records[i] for i in batch] for batch in plan]
