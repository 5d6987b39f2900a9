"""Public sentences as records, and when the gradients' shared part is weighed down."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sordino.core.errors import InvalidParameterError
from sordino.data import ClassificationTask, CompletionTask, GenerationTask
from sordino.mechanisms.candidates import CandidateSubsets
from sordino.training.config import TuneConfig
from sordino.training.probes import PROBE_TEXTS, labelled_probes, mixed_probes
from sordino.training.setup import DEFAULT_SHARED_WEIGHT, find_shared_weight

SENTIMENT = ClassificationTask({"0": "terrible", "1": "great"}, "{text} It was")
CONFIG = TuneConfig(
    guarantee="pac",
    mutual_information=0.0,
    channel="binary-symmetric",
    budget_schedule="adaptive",
    on_disagreement="coin",
    unanimity_flip=0.0,
    candidates=CandidateSubsets(num_subsets=8),
    estimator="first-order",
    num_steps=4,
    learning_rate=0.5,
    learning_rate_schedule="linear",
    weight_decay=0.0,
    clip=1.0,
    perturbation=None,
    directions_per_step=16,
    direction_kind="hadamard",
    batch_size=None,
    adapter="lora",
    shared_weight=None,
    seed=0,
)


def test_probes_of_a_classification() -> None:
    """Labels in turn, or every label with every sentence."""
    assert [r.label for r in mixed_probes(SENTIMENT)] == ["0", "1"] * 4
    records = labelled_probes(SENTIMENT)
    assert [r.label for r in records] == ["0", "1"] * 8
    assert [r.prompt for r in records[::2]] == list(PROBE_TEXTS)
    assert [r.prompt for r in records[1::2]] == list(PROBE_TEXTS)


@pytest.mark.parametrize(("num_labels", "num_texts"), [(2, 8), (9, 7), (40, 1), (300, 1)])
def test_many_labels_take_fewer_sentences(num_labels: int, num_texts: int) -> None:
    """The cost a step is bounded, but every label is seen."""
    task = ClassificationTask({f"label{i}": f"word{i}" for i in range(num_labels)}, "{text}:")
    records = labelled_probes(task)
    assert len(records) == num_texts * num_labels
    assert {r.label for r in records} == set(task.labels)


def test_probes_of_completions() -> None:
    """The last words of each sentence complete it."""
    for record, text in zip(mixed_probes(CompletionTask()), PROBE_TEXTS, strict=True):
        assert f"{record.prompt} {record.references[0]}" == text


def test_the_shared_part_is_weighed_down_where_there_is_one() -> None:
    """Classification, first order, adapter, several directions: by default; else all is kept."""
    assert find_shared_weight(CONFIG, SENTIMENT) == DEFAULT_SHARED_WEIGHT < 1.0
    assert find_shared_weight(replace(CONFIG, shared_weight=0.0), SENTIMENT) == 0.0
    elsewhere = [
        (CONFIG, CompletionTask()),
        (CONFIG, GenerationTask(4)),
        (replace(CONFIG, estimator="zeroth-order"), SENTIMENT),
        (replace(CONFIG, directions_per_step=1), SENTIMENT),
        (replace(CONFIG, adapter="full", direction_kind="kronecker"), SENTIMENT),
    ]
    for config, task in elsewhere:
        assert find_shared_weight(config, task) == 1.0
        assert find_shared_weight(replace(config, shared_weight=1.0), task) == 1.0
        with pytest.raises(InvalidParameterError, match="shared_weight below 1 is for classif"):
            find_shared_weight(replace(config, shared_weight=0.5), task)
