"""`sordino quantize --protect`: bits that follow what groups of weights carry.

Groups that carry membership and no quality go to the coarsest grid, groups that carry quality to
the finest, and the budget decides the others. What comes of it is measured beside uniform bits,
random bits and bits by quality alone, at equal bytes, on records that did not choose.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from sordino.attacks.subject import open_subject
from sordino.attacks.texts import encode_texts
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.data import Record, find_kind, normalize_text, read_records
from sordino.gradients.objectives import LanguageModel
from sordino.ledger.durable import PRIVATE_FILE_MODE, PRIVATE_FOLDER_MODE, replace_file
from sordino.ledger.ledger import canonical_json
from sordino.quantization.allocation import allocate
from sordino.quantization.calibration import read_calibration_texts
from sordino.quantization.layers import packed_bytes
from sordino.quantization.outliers import (
    allocate_by_role,
    bytes_by_role,
    describe_groups,
    rank_correlation,
)
from sordino.quantization.pipeline import matrix_of
from sordino.reports.protection import (
    ENDING_TOKENS,
    ProbeTexts,
    fisher_proxies,
    group_layers,
    losses_of,
    measure_plan,
    score_groups,
    squared_errors,
)
from sordino.reports.protection_page import render_protection_page
from sordino.training.progress import progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from sordino.attacks.texts import ScoredText
    from sordino.quantization.outliers import GroupScore
    from sordino.quantization.source import QuantizationSource

BITS = (2, 4, 8)
RECORD, PAGE = "protection.PRIVATE.json", "protection.PRIVATE.html"
_RANDOM_SEEDS = range(5)
_FEWEST = 8  # members and others, so that each half has four
_PROXY_TEXTS = 32
_USUAL_BITS = 4
NOTES = (
    (
        "For the data holder: every number was computed on the members. Choosing bits by looking "
        "at them is a private query that no certificate covers: it voids the lines of a run's."
    ),
    "Random plans shuffle the differentiated plan's bits among layers of one shape: equal bytes.",
    "Groups were scored on one half of the members and the others, plans on the other half.",
    "Intervals are 95% each. Of many groups without any effect, one in forty comes out sensitive.",
    "Sensitive means that this attack becomes weaker, not that less could be found out by another.",
    (
        f"Extracted: after all of a member but its last {ENDING_TOKENS} tokens, the model's "
        "likeliest continuation is these tokens; in samples: one of so many is, with a chance of "
        "one half. Others: records it has not seen, whose ends it can guess all the same."
    ),
)


@dataclass(frozen=True, slots=True, eq=False)
class Protection:
    """Bits by layer, and where the measurements lie."""

    bits: dict[str, int]
    record: Path
    page: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class ProtectSettings:
    """What `--protect` needs.

    Args:
        members: Records that the model was tuned on.
        nonmembers: Others of the same kind.
        public: Public text, for quality.
        budget: Bytes of all quantized layers; None takes those of 4 bits everywhere, or, if that is
            more, what the groups' roles need with 4 bits for the layers without one.
        tolerance: Rise of the loss, nats a token, from which on a group counts as functional.
        base: Model it was tuned from; None takes what an adapter's folder names.
        num_public: Public texts used, from the first on.
        tokens_per_batch: Tokens of a forward pass, padding included.
    """

    members: Path
    nonmembers: Path
    public: Path
    budget: int | None
    tolerance: float
    base: str | None
    num_public: int = 200
    tokens_per_batch: int = 2048


def choose_bits(
    source: str,
    opened: QuantizationSource,
    layers: Mapping[str, torch.nn.Module],
    settings: ProtectSettings,
    *,
    group_size: int | None,
    folder: Path,
    choices: Sequence[int] = BITS,
) -> Protection:
    """Returns the bits of every layer: differentiated projection.

    Interrupted, it goes on where it stopped: finished groups lie in the folder.

    Args:
        source: What is quantized, as the user named it.
        opened: The same as one plain model; it is as before afterwards.
        layers: Its linear layers by name.
        settings: Records and limits.
        group_size: Neighbouring inputs that share a scale; None for a row.
        folder: For measurements; made with mode 0700.
        choices: Bits that a layer can get, rising.

    Raises:
        InvalidDataError: If records cannot be used, or are too few.
        InvalidParameterError: If the budget is too small.
    """
    sizes = {
        name: [packed_bytes(matrix_of(module).shape, bits, group_size) for bits in choices]
        for name, module in layers.items()
    }
    budget = _budget(settings.budget, sizes, choices)
    texts = read_texts(source, opened, settings)
    folder.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
    model = LanguageModel(opened.model, opened.tokenizer.pad_token_id)
    choosing, judging = texts.half(0), texts.half(1)
    proxies = fisher_proxies(model, layers, choosing, num_texts=_PROXY_TEXTS)
    digest = _digest(opened, texts, group_size, choices[0])
    with progress("protect: groups", len(group_layers(list(layers)))) as advance:
        groups = score_groups(
            model,
            layers,
            choosing,
            folder / f"groups-{digest}.PRIVATE.jsonl",
            bits=choices[0],
            group_size=group_size,
            proxies=proxies,
            tokens_per_batch=settings.tokens_per_batch,
            advance=advance,
        )
    costs = _costs(groups, layers, group_size, choices)
    roles = {name: group.role(settings.tolerance) for group in groups for name in group.layers}
    if settings.budget is None:
        # hours of measuring must not end in a refusal; nor in a plan that leaves 2 bits to layers
        # which each carry little: together they carry the model (benchmarks/RESULTS.md)
        usual = choices.index(_USUAL_BITS)
        budget = max(budget, bytes_by_role(roles, sizes, others=usual))
    chosen = allocate_by_role(roles, choices, costs, sizes, budget)
    plans = _plans(chosen, costs, sizes, budget, choices)
    frontier = []
    with progress("protect: plans", len(plans)) as advance:
        for number, (name, plan) in enumerate(plans.items(), start=1):
            frontier.append(
                measure_plan(
                    name,
                    plan,
                    model,
                    layers,
                    judging,
                    group_size=group_size,
                    tokens_per_batch=settings.tokens_per_batch,
                )
            )
            advance(number)
    record = {
        "format_version": 2,
        "members": len(texts.members),
        "nonmembers": len(texts.nonmembers),
        "public_texts": len(texts.public),
        "budget_bytes": budget,
        "tolerance_nats": settings.tolerance,
        "proxy_rank_correlation": rank_correlation(groups),
        "groups": describe_groups(groups, settings.tolerance),
        "frontier": [asdict(point) for point in frontier],
        "bits": chosen,
        "notes": list(NOTES),
    }
    replace_file(folder / PAGE, render_protection_page(record).encode(), mode=PRIVATE_FILE_MODE)
    content = json.dumps(record, indent=1, allow_nan=False).encode() + b"\n"
    replace_file(folder / RECORD, content, mode=PRIVATE_FILE_MODE)
    return Protection(chosen, folder / RECORD, folder / PAGE)


def describe_frontier(folder: Path) -> tuple[str, ...]:
    """Returns what the plan came to, beside its neighbours, and a warning if it is no good.

    Nothing if the record is gone: bits are chosen once, and its holder may have removed it since.
    """
    if not (folder / RECORD).exists():
        return ()
    content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    points = {point["name"]: point for point in content["frontier"]}
    chosen, usual = points["differentiated"], points[f"{_USUAL_BITS} bits"]
    lines = ["Measured on the members, for the data holder:"]
    lines += [
        f"{point['name']}: {point['num_bytes'] / 1e6:.1f} MB, perplexity "
        f"{point['perplexity']:.4g}, AUC of the attack {point['auc'][0]:.3f}"
        for point in (points["not quantized"], usual, points["by quality alone"], chosen)
    ]
    if chosen["perplexity"] > usual["perplexity"] and chosen["num_bytes"] >= usual["num_bytes"]:
        lines.append(
            f"Warning: the plan is worse than {_USUAL_BITS} bits everywhere, and not smaller: the "
            "model pays for what is hidden. Raise --budget-bytes or --tolerance, or take uniform "
            "bits."
        )
    return tuple(lines)


def _budget(asked: int | None, sizes: Mapping[str, Sequence[int]], choices: Sequence[int]) -> int:
    """Returns the bytes that all layers may take; refused before hours of work if too few."""
    least = sum(size[0] for size in sizes.values())
    if asked is None:
        return sum(size[choices.index(_USUAL_BITS)] for size in sizes.values())
    if asked < least:
        raise InvalidParameterError(
            f"budget_bytes must be at least {least:,}, what all layers take with {choices[0]} "
            f"bits; got {asked:,}."
        )
    return asked


def read_texts(source: str, opened: QuantizationSource, settings: ProtectSettings) -> ProbeTexts:
    """Returns the texts to measure on, with their losses under the base where there is one."""
    kind = find_kind(settings.members)
    sides = [read_records(path, kind=kind) for path in (settings.members, settings.nonmembers)]
    sides = _without_repeats(sides)
    if min(map(len, sides)) < _FEWEST:
        raise InvalidDataError(
            f"--protect needs at least {_FEWEST} members and as many others, got {len(sides[0])} "
            f"and {len(sides[1])} different ones (a text on both sides counts on neither)."
        )
    parameter = next(opened.model.parameters())
    subject = open_subject(
        source, base=settings.base, dtype=parameter.dtype, device=str(parameter.device)
    )
    task = None if subject.ledger is None else subject.ledger.events[0]["task"]
    members, nonmembers = (
        encode_texts(side, opened.tokenizer, opened.context_length, task=task) for side in sides
    )
    words = read_calibration_texts(settings.public)[: settings.num_public]
    public = [Record(text, None, (), line) for line, text in enumerate(words, 1)]
    bases = [np.zeros(len(members)), np.zeros(len(nonmembers))]
    if subject.has_base:
        with subject.base() as base:
            bases = [
                losses_of(base, side, settings.tokens_per_batch) for side in (members, nonmembers)
            ]
    return ProbeTexts(
        members=members,
        nonmembers=nonmembers,
        public=encode_texts(public, opened.tokenizer, opened.context_length, task=None),
        base_members=bases[0],
        base_nonmembers=bases[1],
    )


def _without_repeats(sides: list[list[Record]]) -> list[list[Record]]:
    """Returns the records of both sides whose text is on one side only, each once."""
    keys = [[normalize_text(" ".join((r.prompt, *r.references))) for r in side] for side in sides]
    found = []
    for own, others, side in ((keys[0], set(keys[1]), sides[0]), (keys[1], set(keys[0]), sides[1])):
        seen: set[str] = set(others)
        kept = []
        for key, record in zip(own, side, strict=True):
            if key not in seen:
                kept.append(record)
            seen.add(key)
        found.append(kept)
    return found


def _costs(
    groups: Sequence[GroupScore],
    layers: Mapping[str, torch.nn.Module],
    group_size: int | None,
    choices: Sequence[int],
) -> dict[str, np.ndarray]:
    """Returns each layer's cost of each number of bits, nats a token.

    A group's measured rise is shared among its layers by their rounding errors at the coarse grid,
    and shrinks with the error at finer ones. A rise below zero is noise, and taken as a small one.
    """
    smallest = min((g.functional.value for g in groups if g.functional.value > 0), default=1.0)
    costs = {}
    for group in groups:
        errors = {
            n: squared_errors(matrix_of(layers[n]), choices, group_size) for n in group.layers
        }
        total = sum(float(error[0]) for error in errors.values()) or 1.0
        rise = max(group.functional.value, smallest)
        costs |= {name: rise * error / total for name, error in errors.items()}
    return costs


def _plans(
    chosen: Mapping[str, int],
    costs: Mapping[str, np.ndarray],
    sizes: Mapping[str, Sequence[int]],
    budget: int,
    choices: Sequence[int],
) -> dict[str, dict[str, int]]:
    """Returns the chosen plan and what it is compared with."""
    names = list(chosen)
    size = np.array([sizes[name] for name in names])
    plans: dict[str, dict[str, int]] = {"not quantized": {}}
    plans |= {f"{bits} bits": dict.fromkeys(names, bits) for bits in choices}
    by_cost = allocate(np.array([costs[name] for name in names]), size, budget)
    plans["by quality alone"] = {
        name: choices[choice] for name, choice in zip(names, by_cost.tolist(), strict=True)
    }
    for seed in _RANDOM_SEEDS:
        plans[f"random {seed + 1}"] = _shuffled(chosen, sizes, seed)
    return plans | {"differentiated": dict(chosen)}


def _shuffled(
    plan: Mapping[str, int], sizes: Mapping[str, Sequence[int]], seed: int
) -> dict[str, int]:
    """Returns the same bits, at random among layers of the same size."""
    random = np.random.default_rng(seed)
    shuffled = {}
    for size in sorted({tuple(sizes[name]) for name in plan}):
        names = [name for name in plan if tuple(sizes[name]) == size]
        bits = random.permutation([plan[name] for name in names]).tolist()
        shuffled |= dict(zip(names, bits, strict=True))
    return {name: shuffled[name] for name in plan}


def _digest(
    opened: QuantizationSource, texts: ProbeTexts, group_size: int | None, coarse: int
) -> str:
    """Returns what finished groups depend on."""
    digest = hashlib.sha256(canonical_json([opened.fingerprint, group_size, coarse]))
    sides: tuple[Sequence[ScoredText], ...] = (texts.members, texts.nonmembers, texts.public)
    for side in sides:
        for text in side:
            digest.update(canonical_json([text.input_ids, text.first_scored]))
    digest.update(texts.base_members.tobytes() + texts.base_nonmembers.tobytes())
    return digest.hexdigest()[:16]
