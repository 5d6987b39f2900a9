"""`sordino invert`: which tokens a federated client's update gives away; a control."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from typing_extensions import Doc

from sordino.attacks.inversion_control import (
    RAW,
    InversionRow,
    SendingSettings,
    make_releases,
    run_inversion_control,
)
from sordino.attacks.subject import open_subject
from sordino.attacks.texts import encode_texts
from sordino.core.checks import require_integer
from sordino.core.errors import InvalidDataError
from sordino.data import find_kind, read_records
from sordino.gradients.objectives import LanguageModel
from sordino.models import add_lora
from sordino.training import options  # noqa: TC001 - read when the command line is made
from sordino.training.progress import progress
from sordino.training.workers import Workers

if TYPE_CHECKING:
    from sordino.attacks.subject import Subject
    from sordino.attacks.texts import ScoredText

STATEMENT = (
    "This is a control, not a guarantee: it shows whether one known test reads tokens off an "
    "update. That it finds none behind a mechanism proves nothing about other attacks; what a "
    "mechanism promises stands in a run's certificate."
)
_RECALL_WITH_POWER = 0.5  # of the raw gradient's tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class InversionResult:
    """What was read off the updates.

    Args:
        name: The model.
        rows: One a way of sending, the raw gradient first.
        batch_size: Texts in each update.
        num_batches: Updates.
        max_length: Texts were cut to so many tokens.
        rank: Of the adapter.
        vocabulary_size: Tokens that could be guessed.
        settings: Of the mechanisms.
    """

    name: str
    rows: tuple[InversionRow, ...]
    batch_size: int
    num_batches: int
    max_length: int
    rank: int
    vocabulary_size: int
    settings: dict[str, Any]

    @property
    def has_power(self) -> bool:
        """Whether the test finds at least half of the tokens in raw gradients."""
        return next(row for row in self.rows if row.sent == RAW).recall >= _RECALL_WITH_POWER

    def conclusions(self) -> list[str]:
        """Returns what must be read with the numbers."""
        raw = next(row for row in self.rows if row.sent == RAW)
        found = f"{raw.num_right} of {raw.num_tokens} tokens of raw gradients"
        if self.has_power:
            power = f"The test has power: it finds {found}."
        else:
            power = (
                f"NO POWER: the test finds only {found}, so that it finds none behind a mechanism "
                f"says nothing. A batch has {raw.num_tokens / self.num_batches:.0f} different "
                f"tokens, and an adapter of rank {self.rank} shows fewer than {self.rank}: take "
                "smaller batches or shorter texts."
            )
        return [power, STATEMENT]

    def as_dict(self) -> dict[str, Any]:
        """Returns the result for machines."""
        rows = [
            asdict(row)
            | {
                "precision": row.precision,
                "recall": row.recall,
                "nearest_recall": row.nearest_recall,
            }
            for row in self.rows
        ]
        own = {name: getattr(self, name) for name in ("name", "batch_size", "num_batches")}
        own |= {name: getattr(self, name) for name in ("max_length", "rank", "vocabulary_size")}
        return own | {
            "settings": self.settings,
            "has_power": self.has_power,
            "rows": rows,
            "conclusions": self.conclusions(),
        }


def invert(
    model: Annotated[
        str,
        Doc(
            "Folder of `sordino tune` or PEFT adapter: its adapter is the client's; or a model "
            "(folder, GGUF file, hub id, 'embedded'), which gets a new one."
        ),
    ],
    *,
    records: Annotated[Path, Doc("Texts that the client would train on: JSONL, CSV, TSV, ...")],
    base: Annotated[str | None, Doc("Model of an adapter; default: what its folder names.")] = None,
    batch_size: Annotated[int, Doc("Texts in one update.")] = 2,
    num_batches: Annotated[int, Doc("Updates, of different texts.")] = 4,
    max_length: Annotated[
        int, Doc("Texts are cut to so many tokens: an adapter shows fewer than its rank.")
    ] = 16,
    lora_rank: Annotated[int, Doc("Rank of a new adapter.")] = 64,
    clip: Annotated[float, Doc("Bound on a record's gradient norm.")] = 0.3,
    noise_multiplier: Annotated[float, Doc("DP: noise over sensitivity.")] = 1.0,
    num_signs: Annotated[int, Doc("PACZero: signs released of a batch.")] = 16,
    num_subsets: Annotated[int, Doc("PACZero: candidate subsets; even.")] = 128,
    seed: Annotated[int, Doc("Public seed of the batches, the adapter and the directions.")] = 0,
    device: options.Device = "auto",
) -> InversionResult:
    """Reads tokens off the gradients that a federated client would send, raw and behind mechanisms.

    The span test of DAGER on an adapter's gradients, in float32: it must find the batch's tokens in
    raw gradients, or it had no power. A control, not a guarantee.

    Returns:
        Precision and recall of the vocabulary tokens that each update admits.

    Raises:
        InvalidParameterError: If a setting is out of range, or the adapter does not read a block's
            input.
        InvalidDataError: If the records cannot be used, or are too few for one batch.
        ModelUnavailableError: If a model cannot be read.

    Source:
        arXiv:2405.15586 (DAGER).

    Example:
        sordino invert embedded --records notes.jsonl
    """
    require_integer("batch_size", batch_size, 1)
    require_integer("num_batches", num_batches, 1)
    require_integer("max_length", max_length, 3)
    settings = SendingSettings(
        clip_norm=clip,
        noise_multiplier=noise_multiplier,
        num_signs=num_signs,
        num_subsets=num_subsets,
        seed=seed,
    )
    place = Workers.start(device).device
    subject = open_subject(model, base=base, dtype=torch.float32, device=place)
    batches = _read_batches(
        Path(records),
        subject,
        batch_size=batch_size,
        num_batches=num_batches,
        max_length=max_length,
        seed=seed,
    )
    client, parameters = _adapted(subject, lora_rank, seed)
    size = sum(parameter.numel() for parameter in parameters.values())
    releases = make_releases(settings, batch_size, size)
    with progress("invert", len(batches)) as advance:
        rows = run_inversion_control(client, parameters, batches, releases, advance=advance)
    return InversionResult(
        name=subject.name,
        rows=tuple(rows),
        batch_size=batch_size,
        num_batches=len(batches),
        max_length=max_length,
        rank=_rank(parameters),
        vocabulary_size=client.num_tokens,
        settings=asdict(settings),
    )


def _read_batches(
    path: Path, subject: Subject, *, batch_size: int, num_batches: int, max_length: int, seed: int
) -> list[list[ScoredText]]:
    """Returns batches of different texts, chosen by the public seed."""
    found = read_records(path, kind=find_kind(path), min_records=1)
    task = None if subject.ledger is None else subject.ledger.events[0]["task"]
    if task is None:  # without words for the labels, a labelled text is a text
        found = [replace(record, label=None) for record in found]
    count = min(num_batches, len(found) // batch_size)
    if count == 0:
        raise InvalidDataError(
            f"{path}: must hold at least --batch-size {batch_size} records, has {len(found)}."
        )
    order = np.random.default_rng([seed, 6]).permutation(len(found))[: count * batch_size]
    length = min(max_length, subject.context_length)
    texts = encode_texts([found[i] for i in order], subject.tokenizer, length, task=task)
    return [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]


def _adapted(
    subject: Subject, rank: int, seed: int
) -> tuple[LanguageModel, dict[str, torch.nn.Parameter]]:
    """Returns the model with its adapter, or a new one, and what a client trains of it."""
    client = subject.tuned
    if not _adapter_tensors(client):
        adapted = add_lora(client.causal_lm, rank=rank, alpha=2.0 * rank, factors="both", seed=seed)
        adapted.requires_grad_(requires_grad=False)
        client = LanguageModel(adapted.get_base_model(), client.pad_token_id)
    tensors = _adapter_tensors(client)
    opening = subject.ledger.events[0] if subject.ledger is not None else {}
    if opening.get("adapter", {}).get("factors") == "b":
        tensors = {name: p for name, p in tensors.items() if ".lora_B." in name}
    return client, tensors


def _adapter_tensors(client: LanguageModel) -> dict[str, torch.nn.Parameter]:
    """Returns A and B of every adapted layer, by names as in `trainable_tensors`."""
    return {
        name.replace(".default.", "."): parameter
        for name, parameter in sorted(client.causal_lm.named_parameters())
        if ".lora_A." in name or ".lora_B." in name
    }


def _rank(parameters: dict[str, torch.nn.Parameter]) -> int:
    """Returns the rank of the adapter: of the first layer, if they differ."""
    return next(
        int(p.shape[1] if ".lora_B." in name else p.shape[0]) for name, p in parameters.items()
    )
