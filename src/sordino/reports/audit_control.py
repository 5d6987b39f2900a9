"""The positive control: a run that is known to leak, attacked and measured like the audited one.

It is tuned without privacy on half of the records and half of the canaries, over and over. If the
attacks do not find these halves, they would not have found a leak in the audited run either.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sordino.attacks.subject import Subject, open_subject
from sordino.core.errors import InvalidDataError
from sordino.ledger.durable import PRIVATE_FILE_MODE, replace_file
from sordino.ledger.ledger import canonical_json
from sordino.models import PackedLinear
from sordino.training.tune import tune

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from sordino.data import Record

_BATCH = 16
_RANK = 16
_LEARNING_RATE = 3e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlPlan:
    """What the control is tuned on.

    Args:
        records: Records, those not trained included.
        places: Their places among the members, rising, shape (num_records,).
        is_trained: Which of them it learns, shape (num_records,).
        candidate: The candidate subset that they are; None if they are a random half.
        canaries: Canaries, those not trained included.
        is_canary_trained: Which of them it learns, shape (num_canaries,).
        epochs: How often it sees each.
    """

    records: Sequence[Record]
    places: NDArray[np.intp]
    is_trained: NDArray[np.bool_]
    candidate: int | None
    canaries: Sequence[Record]
    is_canary_trained: NDArray[np.bool_]
    epochs: int

    @property
    def trained(self) -> list[Record]:
        """What is learned."""
        chosen = [r for r, used in zip(self.records, self.is_trained, strict=True) if used]
        return chosen + [
            r for r, used in zip(self.canaries, self.is_canary_trained, strict=True) if used
        ]

    def folder_in(self, audit: Path, subject: Subject) -> Path:
        """Returns where the control is kept; another plan or base has another place."""
        digest = hashlib.sha256(
            canonical_json(
                [
                    subject.base_fingerprint or subject.fingerprint,
                    [_row(record) for record in self.trained],
                    self.describe(),
                    _BATCH,
                ]
            )
        )
        return audit / f"control-{digest.hexdigest()[:16]}"

    def describe(self) -> dict[str, Any]:
        """Returns how the control is made, for the record."""
        return {
            "tuned": "AdamW without privacy, LoRA on all linear layers of the upper blocks",
            "records": int(self.is_trained.sum()),
            "canaries": int(self.is_canary_trained.sum()),
            "epochs": self.epochs,
            "rank": _RANK,
            "learning_rate": _LEARNING_RATE,
        }


def random_half(count: int, seed: int) -> NDArray[np.bool_]:
    """Returns a reproducible half; the control's halves are no secret."""
    chosen = np.zeros(count, dtype=np.bool_)
    chosen[np.random.default_rng(seed).permutation(count)[: (count + 1) // 2]] = True
    return chosen


def run_control(
    plan: ControlPlan,
    subject: Subject,
    folder: Path,
    *,
    task: Mapping[str, Any] | None,
    seed: int,
    dtype: torch.dtype,
    device: str,
    tokens_per_batch: int,
) -> Subject:
    """Returns the finished control; one that was begun or finished before is taken up again.

    Args:
        plan: What it learns.
        subject: The audited model; the control starts from its base, if it has one.
        folder: Where it is kept, for the data holder only; of `ControlPlan.folder_in`.
        task: What the audited run's ledger says under "task"; None for models made elsewhere.
        seed: Public seed.
        dtype: Compute type.
        device: Where to compute.
        tokens_per_batch: Tokens of a forward pass, padding included.

    Raises:
        InvalidDataError: If there are too few records to learn.
    """
    trained, source = plan.trained, subject.base_source or subject.source
    if len(trained) < 2:
        raise InvalidDataError(
            "the positive control needs at least 4 records or canaries, of which it learns half. "
            "Give more, or --no-control."
        )
    folder.mkdir(parents=True, exist_ok=True)
    pool, output = folder / "train.jsonl", folder / "run"
    lines = [json.dumps(_row(record)) for record in trained]
    replace_file(pool, ("\n".join(lines) + "\n").encode(), mode=PRIVATE_FILE_MODE)
    size = min(_BATCH, len(trained))
    if not (output / "certificate.json").is_file():
        tune(
            model=source,
            train=pool,
            output=output,
            guarantee="none",
            estimator="first-order",
            optimizer="adamw",
            num_steps=plan.epochs * math.ceil(len(trained) / size),
            batch_size=size if size < len(trained) else None,
            learning_rate=_LEARNING_RATE,
            lora_rank=_RANK,
            lora_alpha=2.0 * _RANK,
            lora_targets=_linear_layers(subject.tuned.causal_lm),
            lora_first_layer=_first_block(subject.tuned.causal_lm),
            lora_factors="both",
            truncate=True,
            seed=seed,
            dtype=str(dtype).removeprefix("torch."),
            device=device,
            tokens_per_batch=tokens_per_batch,
            resume=output.exists(),
            **_task_settings(task),
        )
    return open_subject(str(output), base=source, dtype=dtype, device=device)


def _linear_layers(model: Any) -> list[str]:
    """Returns the names of the model's linear layers, without the output layer and adapters."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    names = {
        name.removesuffix(".base_layer").rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D, PackedLinear))
        and module is not head
        and "lora_" not in name
    }
    return sorted(names)


def _first_block(model: Any) -> int:
    """Returns the first block that is adapted: from the middle on, passes cost half as much."""
    return int(getattr(model.config, "num_hidden_layers", 0)) // 2


def _row(record: Record) -> dict[str, Any]:
    """Returns a record as a line of a training file."""
    if record.label is not None:
        return {"text": record.prompt, "label": record.label}
    if record.references:
        return {"prompt": record.prompt, "completion": list(record.references)}
    first, _, rest = record.prompt.partition(" ")  # a text alone: learn it from its first word on
    return {"prompt": first, "completion": " " + (rest or first)}


def _task_settings(task: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the template and words that the audited run was tuned with."""
    if task is None or task.get("kind") != "classification":
        return {}
    words = [f"{label}={word}" for label, word in task["verbalizers"].items()]
    return {"template": task["template"], "verbalizer": words}
