"""Which records a step looks at: public, repeatable, and named in what the run claims."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import sordino
from helpers_runs import SMALL, files_below, sentiment_rows, write_jsonl
from sordino.core.errors import InvalidParameterError
from sordino.ledger.ledger import Ledger
from sordino.training.batch_plan import BatchPlan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LENGTHS = [7, 3, 9, 4, 4, 8, 2, 6, 5, 5]


def make_plan(batch_size: int | None, **changes: Any) -> BatchPlan:
    """Returns a plan over ten records."""
    return BatchPlan(
        LENGTHS, **{"batch_size": batch_size, "tokens_per_batch": 16, "seed": 0} | changes
    )


def records_of(plan: BatchPlan, step: int) -> list[int]:
    """Returns the records of one step."""
    return sorted(record for batch in plan.batches(step) for record in batch)


def test_full_batch_is_the_pool() -> None:
    """By default every step looks at every record once, in the same batches."""
    plan = make_plan(None)
    assert plan.records_per_step == 10
    assert records_of(plan, 0) == list(range(10))
    assert plan.batches(0) == plan.batches(5)


def test_batches_hold_their_tokens() -> None:
    """No batch has more tokens, padding included, than it may, unless it is one record."""
    for step in range(5):
        for batch in make_plan(6).batches(step):
            assert len(batch) * max(LENGTHS[i] for i in batch) <= 16 or len(batch) == 1


def test_batch_size_is_exact_and_without_repetition() -> None:
    """A step looks at exactly so many different records, others at another step."""
    plan = make_plan(4)
    assert plan.records_per_step == 4
    chosen = [records_of(plan, step) for step in range(50)]
    assert all(len(set(records)) == 4 for records in chosen)
    assert len({tuple(records) for records in chosen}) > 30
    assert {record for records in chosen for record in records} == set(range(10))


@pytest.mark.parametrize("batch_size", [None, 4])
def test_empty_places_change_nobody_else(batch_size: int | None) -> None:
    """Defect: a canary that was left out moves the others. Its place is chosen, and not looked at.

    What sums are divided by is the public number of places.
    """
    plan, emptied = make_plan(batch_size), make_plan(batch_size, empty=frozenset({2, 9}))
    assert emptied.records_per_step == plan.records_per_step
    for step in range(20):
        assert records_of(emptied, step) == [i for i in records_of(plan, step) if i not in {2, 9}]
    assert make_plan(batch_size, empty=frozenset(range(10))).batches(0) == []


def test_plan_is_public() -> None:
    """Seed and step give the same records on every worker; another seed gives others."""
    assert make_plan(4).batches(3) == make_plan(4).batches(3)
    assert [make_plan(4).batches(t) for t in range(5)] != [
        make_plan(4, seed=1).batches(t) for t in range(5)
    ]


def test_how_tokens_are_batched_does_not_change_who_is_looked_at() -> None:
    """The size of a forward pass is a matter of speed only."""
    for step in range(5):
        assert records_of(make_plan(4), step) == records_of(make_plan(4, tokens_per_batch=1), step)


@pytest.mark.parametrize("batch_size", [0, 11, 2.5])
def test_impossible_batch_sizes(batch_size: Any) -> None:
    """A batch is at least one record and at most the pool."""
    with pytest.raises(InvalidParameterError, match=r"batch_size .* in \[1, 10\]"):
        make_plan(batch_size)


def test_shuffled_passes_see_every_record_once() -> None:
    """But for less than a batch, which is left over; the next pass has another order."""
    plan = BatchPlan([5] * 11, batch_size=3, tokens_per_batch=99, seed=2, order="shuffled")
    passes = [[records_of(plan, step) for step in range(n, n + 3)] for n in (0, 3)]
    for one in passes:
        seen = [record for step in one for record in step]
        assert len(seen) == len(set(seen)) == 9
    assert passes[0] != passes[1]


def test_blocks_are_shuffled_whole() -> None:
    """Records that follow each other stay together; what is less than a block is left over."""
    plan = BatchPlan([5] * 14, batch_size=3, tokens_per_batch=99, seed=2, order="blocks")
    passes = [[records_of(plan, step) for step in range(n, n + 4)] for n in (0, 4)]
    for one in passes:
        assert sorted(one) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert passes[0] != passes[1]


def test_records_that_share_tokens_fill_a_batch_by_what_they_need() -> None:
    """In their order; a record that is too long alone has a batch of its own."""
    lengths = [50] * 6

    def shared_length(records: Sequence[int]) -> int:
        return 40 + 10 * len(records)

    def plan(tokens: int) -> list[list[int]]:
        return BatchPlan(
            lengths,
            batch_size=6,
            tokens_per_batch=tokens,
            seed=2,
            empty=frozenset({1}),
            order="blocks",
            shared_length=shared_length,
        ).batches(0)

    assert plan(90) == [[0, 2, 3, 4, 5]]
    assert plan(70) == [[0, 2, 3], [4, 5]]
    assert plan(10) == [[0], [2], [3], [4], [5]]


@pytest.mark.parametrize("settings", [{}, {"mutual_information": 0.1}], ids=["zpl", "mi"])
def test_sampling_is_named_and_amplifies_nothing(
    settings: dict[str, Any], tmp_path: Path, tiny_model: Path
) -> None:
    """Ledger and model card say how records were drawn; the claim is that of the full batch."""
    train = write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(24))
    claims = []
    for name, changes in (("all", {}), ("some", {"batch_size": 6})):
        output = tmp_path / name
        chosen = SMALL | settings | changes
        result = sordino.tune(model=str(tiny_model), train=train, output=output, **chosen)
        claims.append(result.certificate)
    assert claims[0].subset == claims[1].subset
    assert claims[0].pool == claims[1].pool
    opening = Ledger.open(tmp_path / "some" / "ledger.jsonl").events[0]
    assert opening["sampling"] == "6, by the public seed"
    files = files_below(tmp_path / "some")
    assert b"| records a step | 6, by the public seed |" in files["README.md"]
    for content in files.values():
        assert b"amplif" not in content.lower()
        assert b"poisson" not in content.lower()


def test_baseline_divides_by_the_batch(tmp_path: Path, tiny_model: Path) -> None:
    """Without a guarantee the mean is over the records looked at, not over the pool."""
    train = write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(24))
    settings = SMALL | {"guarantee": "none", "batch_size": 6, "num_steps": 1}
    sordino.tune(model=str(tiny_model), train=train, output=tmp_path / "some", **settings)

    from sordino.ledger.transcript import read_transcript

    (symbols,) = read_transcript(tmp_path / "some" / "transcript.bin")[1]
    found = float(symbols.integers[0] * symbols.unit)
    chosen = records_of(BatchPlan([1] * 24, batch_size=6, tokens_per_batch=99, seed=0), 0)
    alone = write_jsonl(tmp_path / "six.jsonl", [sentiment_rows(24)[i] for i in chosen])
    settings = SMALL | {"guarantee": "none", "num_steps": 1}
    sordino.tune(model=str(tiny_model), train=alone, output=tmp_path / "six", **settings)
    (symbols,) = read_transcript(tmp_path / "six" / "transcript.bin")[1]
    assert float(symbols.integers[0] * symbols.unit) == pytest.approx(found, rel=1e-6)
