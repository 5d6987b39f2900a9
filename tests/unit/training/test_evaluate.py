"""Scores on public records, compared with sums made by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from helpers_runs import completion_rows, sentiment_rows, write_jsonl
from sordino.data import ClassificationTask, CompletionTask, GenerationTask, read_records
from sordino.gradients.objectives import (
    ClassificationObjective,
    CompletionObjective,
    GenerationObjective,
    LanguageModel,
)
from sordino.models import load_model
from sordino.training.evaluate import evaluate_objective

if TYPE_CHECKING:
    from pathlib import Path

    from sordino.models import LoadedModel


@pytest.fixture
def loaded(tiny_model: Path) -> LoadedModel:
    """The tiny model."""
    return load_model(str(tiny_model))


def see(loaded: LoadedModel) -> LanguageModel:
    """Returns the model as objectives see it."""
    return LanguageModel(loaded.model, loaded.tokenizer.pad_token_id)


@pytest.mark.parametrize("tokens", [1, 60, 10**6])
def test_classification(tokens: int, tmp_path: Path, loaded: LoadedModel) -> None:
    """Accuracy and loss are those of one record at a time, however they are batched."""
    records = read_records(write_jsonl(tmp_path / "p.jsonl", sentiment_rows(11)))
    task = ClassificationTask({"0": "terrible", "1": "great"})
    words = task.label_token_ids(loaded.tokenizer)
    examples = task.encode(records, loaded.tokenizer, 48)
    found = evaluate_objective(
        ClassificationObjective(examples, words), see(loaded), tokens_per_batch=tokens
    )
    right, loss = 0, 0.0
    for example in examples:
        with torch.no_grad():
            logits = loaded.model(torch.tensor([example.input_ids])).logits[0, -1, words]
        right += int(logits.argmax() == example.target)
        loss -= float(logits.log_softmax(0)[example.target])
    assert found["accuracy"] == found["score"] == right / 11
    assert found["loss"] == pytest.approx(loss / 11, rel=1e-5)
    assert 0 < right < 11


def test_completion(tmp_path: Path, loaded: LoadedModel) -> None:
    """The score of a completion is minus its mean loss a token, averaged over records."""
    records = read_records(write_jsonl(tmp_path / "p.jsonl", completion_rows(5)))
    examples = CompletionTask().encode(records, loaded.tokenizer, 48)
    found = evaluate_objective(CompletionObjective(examples), see(loaded), tokens_per_batch=40)
    losses = []
    for example in examples:
        ids = torch.tensor(example.input_ids)
        with torch.no_grad():
            log_p = loaded.model(ids[None]).logits[0, :-1].log_softmax(-1)
        own = log_p.gather(1, ids[1:, None])[example.num_prompt_tokens - 1 :, 0]
        losses.append(-float(own.mean()))
    assert found["loss"] == pytest.approx(sum(losses) / 5, rel=1e-5)
    assert found["score"] == -found["loss"]


def test_generation(tmp_path: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score of generations is their mean token F1."""
    records = read_records(write_jsonl(tmp_path / "p.jsonl", completion_rows(4)))
    examples = GenerationTask(3).encode(records, loaded.tokenizer, 48)
    given = iter([1.0, 0.0, 0.5, 0.5])
    monkeypatch.setattr("sordino.gradients.objectives.token_f1", lambda *a: next(given))
    objective = GenerationObjective(examples, loaded.tokenizer, 3)
    found = evaluate_objective(objective, see(loaded), tokens_per_batch=10**6)
    assert found == {"token_f1": 0.5, "score": 0.5}
