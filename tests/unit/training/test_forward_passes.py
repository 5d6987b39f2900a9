"""Two forward passes a direction and nothing more: none for logging, none for looking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from transformers import LlamaModel

import sordino
from helpers_runs import SMALL, completion_rows, sentiment_rows, write_jsonl
from sordino.training.probes import PROBE_TEXTS

if TYPE_CHECKING:
    from pathlib import Path

PROBE = 2 + len(PROBE_TEXTS)  # both ends of the difference at once, then one sentence at a time
NUM_RECORDS, RECORDS_A_BATCH = 10, 4
NUM_BATCHES = 3


class Counter:
    """Counts the sequences that go through the decoder, pass by pass."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.passes: list[int] = []
        real = LlamaModel.forward

        def forward(model: LlamaModel, *args: Any, **kwargs: Any) -> Any:
            self.passes.append(kwargs["input_ids"].shape[0])
            return real(model, *args, **kwargs)

        patch.setattr(LlamaModel, "forward", forward)


def count_passes(tmp_path: Path, model: Path, rows: list[Any], **settings: Any) -> list[int]:
    """Returns the number of sequences of every forward pass of a whole run."""
    tmp_path.mkdir(exist_ok=True)
    train = write_jsonl(tmp_path / "pool.jsonl", rows)
    with pytest.MonkeyPatch.context() as patch:
        counter = Counter(patch)
        sordino.tune(model=str(model), train=train, output=tmp_path / "run", **(SMALL | settings))
    return counter.passes


def batch_of(rows: list[Any], tokens: int) -> int:
    """Returns the token budget that makes batches of four records."""
    assert len(rows) == NUM_RECORDS
    return RECORDS_A_BATCH * tokens


@pytest.mark.parametrize(
    ("settings", "directions"),
    [
        ({}, 1),
        ({"directions_per_step": 3}, 3),
        ({"mutual_information": 0.1}, 1),
        ({"mutual_information": 0.1, "directions_per_step": 2}, 2),
        ({"guarantee": "none"}, 1),
        ({"holder_report": True}, 1),
        ({"adapter": "full", "learning_rate": 1e-3}, 1),
        ({"lora_factors": "both", "directions_per_step": 2}, 2),
    ],
)
def test_zeroth_order(
    settings: dict[str, Any], directions: int, tmp_path: Path, tiny_model: Path
) -> None:
    """A run makes exactly 2 * K * T * batches passes after the probe, each record once a pass."""
    rows = sentiment_rows(NUM_RECORDS)
    tokens = batch_of(rows, 18)  # every snippet is 16 tokens and the template 2
    passes = count_passes(tmp_path, tiny_model, rows, tokens_per_batch=tokens, **settings)
    assert passes[:PROBE] == [8, 8, *[1] * 8]
    steps = passes[PROBE:]
    assert steps == [4, 4, 2] * 2 * directions * SMALL["num_steps"]
    assert len(steps) == 2 * directions * SMALL["num_steps"] * NUM_BATCHES


def test_first_order(tmp_path: Path, tiny_model: Path) -> None:
    """A run makes one pass a batch and step, and no probe: there is no finite difference.

    Weighing down what moves all answers alike takes one pass over the public sentences a step.
    """
    rows = sentiment_rows(NUM_RECORDS)
    tokens = batch_of(rows, 18)
    settings = {"estimator": "first-order", "directions_per_step": 16, "tokens_per_batch": tokens}
    passes = count_passes(tmp_path, tiny_model, rows, shared_weight=1.0, **settings)
    assert passes == [4, 4, 2] * SMALL["num_steps"]
    passes = count_passes(tmp_path / "other", tiny_model, rows, **settings)
    assert passes == [2 * len(PROBE_TEXTS), 4, 4, 2] * SMALL["num_steps"]


def test_completions(tmp_path: Path, tiny_model: Path) -> None:
    """Completions take two passes a direction as well."""
    passes = count_passes(tmp_path, tiny_model, completion_rows(NUM_RECORDS))
    assert passes[PROBE:] == [NUM_RECORDS] * 2 * SMALL["num_steps"]


def test_scores_cost_only_the_public_records(tmp_path: Path, tiny_model: Path) -> None:
    """With validation there is one pass over the public records at each score."""
    public = write_jsonl(tmp_path / "public.jsonl", sentiment_rows(5, start=100))
    settings = {"validation": public, "validation_is_public": True, "evaluate_every": 2}
    passes = count_passes(tmp_path, tiny_model, sentiment_rows(NUM_RECORDS), **settings)
    step = [NUM_RECORDS] * 2
    assert passes[PROBE:] == [5, *step, *step, 5, *step, 5]  # after 0, 2 and 3 steps


def test_resume_repeats_no_pass(tmp_path: Path, tiny_model: Path) -> None:
    """What was released is replayed from the transcript, not computed again."""
    from sordino.ledger.journal import Journal

    commit, done = Journal.commit, []

    def interrupt(*arguments: Any) -> None:
        commit(*arguments)
        done.append(arguments)
        if len(done) == 3:
            raise KeyboardInterrupt

    rows = sentiment_rows(NUM_RECORDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "commit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            count_passes(tmp_path, tiny_model, rows)
    passes = count_passes(tmp_path, tiny_model, rows, resume=True)
    assert passes[PROBE:] == [NUM_RECORDS] * 2  # the third of three steps
    assert count_passes(tmp_path, tiny_model, rows, resume=True)[PROBE:] == []
