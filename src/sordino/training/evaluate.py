"""Scores on public records: accuracy, mean loss, or token F1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sordino.data import plan_batches
from sordino.gradients.objectives import ClassificationObjective, GenerationObjective

if TYPE_CHECKING:
    from sordino.gradients.objectives import AbstractObjective, LanguageModel

_MAX_RECORDS_PER_BATCH = 64


@torch.no_grad()
def evaluate_objective(
    objective: AbstractObjective, model: LanguageModel, *, tokens_per_batch: int
) -> dict[str, float]:
    """Returns the mean loss, and "score", which is better when larger.

    The score is the accuracy (classification), the mean token F1 (generation) or minus the mean
    loss in nats (completion: a token's surprise; distillation: the divergence from the teacher).
    """
    batches = plan_batches(
        objective.lengths, token_budget=tokens_per_batch, max_records=_MAX_RECORDS_PER_BATCH
    )
    loss = right = 0.0
    for batch in batches:
        objective.prepare(model, batch)
        if isinstance(objective, ClassificationObjective):
            logits, targets = objective.logits_and_targets(model, batch)
            right += float((logits.argmax(dim=1) == targets).sum())
            losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        else:
            losses = objective.losses(model, batch)
        loss += float(losses.double().sum())
    num_records = len(objective.lengths)
    mean_loss = loss / num_records
    if isinstance(objective, ClassificationObjective):
        return {"loss": mean_loss, "accuracy": right / num_records, "score": right / num_records}
    if isinstance(objective, GenerationObjective):
        return {"token_f1": 1.0 - mean_loss, "score": 1.0 - mean_loss}
    return {"loss": mean_loss, "score": -mean_loss}
