"""Public texts on which a tuned model is held to its base, beside what it learns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sordino.core.checks import require_integer, require_positive
from sordino.core.errors import InvalidParameterError
from sordino.data import CompletionTask, read_records
from sordino.gradients.retained import RetainedObjective
from sordino.models import adapter_off
from sordino.training.batch_plan import BatchPlan
from sordino.training.encoding import digest_examples, require_no_overlap
from sordino.training.gradient_steps import PlainSum

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sordino.data import Example, Record
    from sordino.gradients.objectives import LanguageModel
    from sordino.models import LoadedModel
    from sordino.training.config import TuneConfig
    from sordino.training.workers import Workers


@dataclass(frozen=True, kw_only=True, slots=True)
class RetainOptions:
    """What is to be kept, and how much it counts.

    Args:
        path: Public completions.
        weight: Of the mean divergence of a text against the mean loss of a record.
        per_step: Texts looked at in a step.
    """

    path: Path
    weight: float
    per_step: int

    def read(self, pool: Sequence[Record]) -> list[Record]:
        """Returns the texts.

        Raises:
            InvalidDataError: If the file cannot be used, or one of them is in the pool.
            InvalidParameterError: If there are fewer than `per_step`.
        """
        records = read_records(self.path, kind="completion", min_records=1)
        why = "what the model keeps of them would be an unaccounted release"
        require_no_overlap(self.path, records, pool, why)
        if self.per_step > len(records):
            raise InvalidParameterError(
                f"retain_per_step must be at most the number of texts in {self.path}: "
                f"{len(records)}; got {self.per_step}."
            )
        return records


def choose_retain_options(
    path: Path | None, *, is_public: bool, weight: float, per_step: int
) -> RetainOptions | None:
    """Returns checked options; None without a file.

    Raises:
        InvalidParameterError: If the texts are not declared public, or a number is out of range.
    """
    require_positive("retain_weight", weight)
    require_integer("retain_per_step", per_step, 1)
    if path is None:
        return None
    if not is_public:
        raise InvalidParameterError(
            "no guarantee covers the texts of --retain, so they must be public: confirm with "
            "--retain-is-public."
        )
    return RetainOptions(path=Path(path), weight=weight, per_step=per_step)


class Retention:
    """Adds the gradient of what is to be kept to that of a step.

    With differential privacy it is added after the noise. It depends on public texts and on weights
    that are released already: post-processing.

    Args:
        options: How much it counts.
        examples: The public texts, encoded.
        gradients: Of their divergences.
        plan: Which of them a step looks at.
    """

    def __init__(
        self,
        options: RetainOptions,
        examples: Sequence[Example],
        gradients: PlainSum,
        plan: BatchPlan,
    ) -> None:
        self._options = options
        self._examples = examples
        self._gradients = gradients
        self._plan = plan

    def add_to(
        self,
        total: Mapping[str, torch.Tensor],
        step: int,
        workers: Workers,
        *,
        records_per_step: int,
    ) -> None:
        """Adds the weighted gradient to a sum over `records_per_step` records."""
        own = {name: torch.zeros_like(values) for name, values in total.items()}
        for batch in workers.share(self._plan.batches(step)):
            self._gradients.add_batch(own, batch)
        scale = self._options.weight * records_per_step / self._plan.records_per_step
        for name, values in own.items():
            workers.add_up_tensor(values)
            total[name].add_(values, alpha=scale)

    def describe(self) -> dict[str, Any]:
        """Returns what is public about it: all."""
        return {
            "sha256": digest_examples(self._examples),
            "num_texts": len(self._examples),
            "per_step": self._options.per_step,
            "weight": self._options.weight,
        }


def make_retention(
    options: RetainOptions,
    records: Sequence[Record],
    *,
    loaded: LoadedModel,
    adapted: Any,
    language_model: LanguageModel,
    tensors: Mapping[str, torch.nn.Parameter],
    config: TuneConfig,
    is_summed: bool,
    tokens_per_batch: int,
) -> Retention:
    """Returns what holds a model to its base.

    Args:
        options: How much it counts.
        records: The public texts.
        loaded: The base model.
        adapted: The PEFT model around it.
        language_model: The same as objectives see it, without a frozen prefix.
        tensors: Trainable parameters by name.
        config: Settings of the run.
        is_summed: Whether a text's divergence is the sum over its tokens, as the records' losses.
        tokens_per_batch: Tokens of a batch, padding included.
    """
    limit = loaded.context_length
    examples = CompletionTask().encode(records, loaded.tokenizer, limit, truncate=True)
    objective = RetainedObjective(examples, lambda: adapter_off(adapted), is_summed=is_summed)
    plan = BatchPlan(
        objective.lengths,
        batch_size=options.per_step,
        tokens_per_batch=tokens_per_batch,
        seed=config.seed,
        order="shuffled",
    )
    return Retention(options, examples, PlainSum(language_model, objective, tensors), plan)
