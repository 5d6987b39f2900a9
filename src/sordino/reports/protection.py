"""What fewer bits do to quality and to membership attacks, group by group and plan by plan.

Everything here is measured on records: it is for the data holder. Groups are chosen on one half of
the members and plans are judged on the other half, so that the choice does not flatter itself.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sordino.attacks.endings import Ending, ExtractionRates, extraction_rates, read_ending
from sordino.attacks.token_statistics import compute_token_statistics
from sordino.auditing.areas import auc_interval
from sordino.auditing.curves import operating_point
from sordino.ledger.durable import PRIVATE_FILE_MODE, append_line, read_whole_lines
from sordino.quantization.layers import QuantizedLayer, packed_bytes
from sordino.quantization.outliers import (
    Estimate,
    GroupScore,
    functional_score,
    sensitive_score,
)
from sordino.quantization.pipeline import matrix_of
from sordino.quantization.scales import choose_scales, round_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from sordino.attacks.texts import ScoredText
    from sordino.gradients.objectives import LanguageModel

    Modules = Mapping[str, torch.nn.Module]

FALSE_POSITIVE_RATE = 0.01
ENDING_TOKENS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeTexts:
    """The texts on which a model is measured.

    Args:
        members: Texts it was tuned on.
        nonmembers: Others of the same kind.
        public: Public text for its perplexity.
        base_members: Each member's loss under the base model, nats a token; zeros without one.
        base_nonmembers: The same of the others.
    """

    members: Sequence[ScoredText]
    nonmembers: Sequence[ScoredText]
    public: Sequence[ScoredText]
    base_members: NDArray[np.float64]
    base_nonmembers: NDArray[np.float64]

    def half(self, number: int) -> ProbeTexts:
        """Returns every second member and non-member; the public texts are all kept."""
        return ProbeTexts(
            members=self.members[number::2],
            nonmembers=self.nonmembers[number::2],
            public=self.public,
            base_members=self.base_members[number::2],
            base_nonmembers=self.base_nonmembers[number::2],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One model's measurement.

    Args:
        public: Loss of each public text, nats a token.
        members: Attack score of each member: the base's loss less this model's.
        nonmembers: The same of the others.
        member_endings: The last tokens of the members that are long enough.
        nonmember_endings: The same of the others.
    """

    public: NDArray[np.float64]
    members: NDArray[np.float64]
    nonmembers: NDArray[np.float64]
    member_endings: Sequence[Ending] = ()
    nonmember_endings: Sequence[Ending] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontierPoint:
    """One plan of bits, measured on the half of the records that did not choose it.

    Args:
        name: Of the plan.
        num_bytes: Bytes of the quantized layers' codes and scales.
        perplexity: Of a token of the public texts.
        auc: Of the membership attack: value, lower and upper end.
        true_positive_rate: At a false positive rate of at most 1%: value, lower and upper end.
        extracted: Members whose last tokens the model gives away; None where no text is
            long enough, or where words are chosen and not written.
        extracted_others: The same of the others: what it can write without having seen them.
    """

    name: str
    num_bytes: int
    perplexity: float
    auc: tuple[float, float, float]
    true_positive_rate: tuple[float, float, float]
    extracted: ExtractionRates | None = None
    extracted_others: ExtractionRates | None = None


def losses_of(
    model: LanguageModel, texts: Sequence[ScoredText], tokens_per_batch: int
) -> NDArray[np.float64]:
    """Returns each text's mean loss of a token, nats."""
    return _measure(model, texts, tokens_per_batch)[0]


def probe(model: LanguageModel, texts: ProbeTexts, tokens_per_batch: int) -> Probe:
    """Returns a model's measurement."""
    members, member_endings = _measure(model, texts.members, tokens_per_batch)
    nonmembers, nonmember_endings = _measure(model, texts.nonmembers, tokens_per_batch)
    return Probe(
        public=losses_of(model, texts.public, tokens_per_batch),
        members=texts.base_members - members,
        nonmembers=texts.base_nonmembers - nonmembers,
        member_endings=member_endings,
        nonmember_endings=nonmember_endings,
    )


def _measure(
    model: LanguageModel, texts: Sequence[ScoredText], tokens_per_batch: int
) -> tuple[NDArray[np.float64], list[Ending]]:
    """Returns each text's loss, and what the model makes of the ends of those that have one."""
    losses = np.zeros(len(texts))
    endings = []
    found = compute_token_statistics(model, texts, tokens_per_batch=tokens_per_batch)
    for index, statistics in found:
        losses[index] = statistics.negative_log_likelihood
        ending = read_ending(statistics, ENDING_TOKENS)
        if ending is not None and texts[index].word_ids is None:
            endings.append(ending)
    return losses, endings


def round_layer(name: str, weights: torch.Tensor, bits: int, group_size: int) -> QuantizedLayer:
    """Returns weights (rows, columns) rounded to the nearest codes, scales searched."""
    rows = weights.float()
    scales = choose_scales(rows, bits=bits, group_size=group_size, scales="searched")
    codes = round_weight(rows, scales.float(), bits).to(torch.int8)
    return QuantizedLayer(name=name, codes=codes, scales=scales, bits=bits, group_size=group_size)


@contextmanager
def rounded(modules: Modules, bits: Mapping[str, int], group_size: int | None) -> Iterator[None]:
    """Holds the named layers at so many bits; outside they are what they were."""
    kept = {name: matrix_of(modules[name]).clone() for name in bits}
    try:
        for name, number in bits.items():
            weights = matrix_of(modules[name])
            width = weights.shape[1] if group_size is None else group_size
            weights.copy_(round_layer(name, weights, number, width).dequantize(weights.dtype))
        yield
    finally:
        for name, weights in kept.items():
            matrix_of(modules[name]).copy_(weights)


def group_layers(names: Sequence[str]) -> dict[str, list[str]]:
    """Returns layers by the module that holds them: a block's attention, a block's MLP."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    return groups


def score_groups(
    model: LanguageModel,
    modules: Modules,
    texts: ProbeTexts,
    path: Path,
    *,
    bits: int,
    group_size: int | None,
    proxies: Mapping[str, float],
    tokens_per_batch: int,
    advance: Callable[[int], None],
) -> list[GroupScore]:
    """Returns what each group carries: the change when it alone is put on the coarse grid.

    Args:
        model: Whole; it is as before afterwards.
        modules: Its linear layers by name.
        texts: The half of the records that chooses.
        path: File of finished measurements; an interrupted series goes on where it stopped. Its
            folder belongs to this model and these texts.
        bits: Of the coarse grid.
        group_size: Neighbouring inputs that share a scale; None for a row.
        proxies: Fisher proxy by group; may be empty.
        tokens_per_batch: Tokens of a forward pass, padding included.
        advance: Called with the number of finished groups.
    """
    entries = map(json.loads, read_whole_lines(path))
    found: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in entries}
    tokens = [len(text.scored_ids) for text in texts.public]
    groups = group_layers(list(modules))
    whole = probe(model, texts, tokens_per_batch) if set(groups) - set(found) else None
    scores = []
    for number, (name, layers) in enumerate(groups.items(), start=1):
        if name not in found:
            with rounded(modules, dict.fromkeys(layers, bits), group_size):
                coarse = probe(model, texts, tokens_per_batch)
            assert whole is not None  # noqa: S101 - for the type checker
            functional = functional_score(whole.public, coarse.public, tokens)
            sensitive = sensitive_score(
                (whole.members, whole.nonmembers), (coarse.members, coarse.nonmembers)
            )
            line = {
                "name": name,
                "functional": asdict(functional),
                "sensitive": asdict(sensitive),
            }
            append_line(path, json.dumps(line), mode=PRIVATE_FILE_MODE)
            found[name] = line
        scores.append(_group_score(found[name], layers, proxies.get(name)))
        advance(number)
    return scores


def measure_plan(
    name: str,
    plan: Mapping[str, int],
    model: LanguageModel,
    modules: Modules,
    texts: ProbeTexts,
    *,
    group_size: int | None,
    tokens_per_batch: int,
) -> FrontierPoint:
    """Returns a plan's point of the frontier.

    Args:
        name: Of the plan.
        plan: Bits by layer; a layer that is not in it stays as it is, and counts 16 bits a weight.
        model: Whole; it is as before afterwards.
        modules: Its linear layers by name.
        texts: The half of the records that did not choose the plan.
        group_size: Neighbouring inputs that share a scale; None for a row.
        tokens_per_batch: Tokens of a forward pass, padding included.
    """
    with rounded(modules, plan, group_size):
        found = probe(model, texts, tokens_per_batch)
    area = auc_interval(found.members, found.nonmembers)
    point = operating_point(found.members, found.nonmembers, FALSE_POSITIVE_RATE)
    counts = [len(text.scored_ids) for text in texts.public]
    shapes = {layer: matrix_of(module).shape for layer, module in modules.items()}
    return FrontierPoint(
        name=name,
        num_bytes=sum(
            packed_bytes(shape, plan[layer], group_size) if layer in plan else 2 * shape.numel()
            for layer, shape in shapes.items()
        ),
        perplexity=float(np.exp(np.average(found.public, weights=counts))),
        auc=(area.auc, area.lower, area.upper),
        true_positive_rate=(point.tpr, point.tpr_lower, point.tpr_upper),
        extracted=_rates(found.member_endings),
        extracted_others=_rates(found.nonmember_endings),
    )


def _rates(endings: Sequence[Ending]) -> ExtractionRates | None:
    return extraction_rates(endings, num_tokens=ENDING_TOKENS) if endings else None


def squared_errors(
    weights: torch.Tensor, bits: Sequence[int], group_size: int | None
) -> NDArray[np.float64]:
    """Returns the squared rounding error of a layer at each number of bits."""
    width = weights.shape[1] if group_size is None else group_size
    return np.array(
        [
            float(
                (round_layer("", weights, number, width).dequantize() - weights.float())
                .double()
                .square()
                .sum()
            )
            for number in bits
        ]
    )


def fisher_proxies(
    model: LanguageModel, modules: Modules, texts: ProbeTexts, *, num_texts: int
) -> dict[str, float]:
    """Returns, by group, the Fisher information of its weights on members less that on public text.

    Each side is the mean over texts of sum (gradient x weight)^2: the squared change of a text's
    loss when weights shrink together with their number, a sum over weights taken one by one.
    """
    weights = {name: module.weight for name, module in modules.items()}
    groups = group_layers(list(modules))
    sides = []
    try:
        for weight in weights.values():
            weight.requires_grad_(requires_grad=True)
        for side in (texts.members, texts.public):
            sums = dict.fromkeys(groups, 0.0)
            chosen = list(side)[:num_texts]
            for text in chosen:
                for name, value in _squared_sensitivities(model, weights, text).items():
                    sums[name.rpartition(".")[0]] += value / len(chosen)
            sides.append(sums)
    finally:
        for weight in weights.values():
            weight.requires_grad_(requires_grad=False)
            weight.grad = None
    return {name: sides[0][name] - sides[1][name] for name in groups}


def _squared_sensitivities(
    model: LanguageModel, weights: Mapping[str, torch.nn.Parameter], text: ScoredText
) -> dict[str, float]:
    """Returns sum (gradient x weight)^2 of each layer for one text's loss."""
    ids = torch.tensor([text.input_ids], device=model.device)
    positions = torch.arange(text.first_scored, len(text.input_ids), device=model.device)
    rows = torch.zeros_like(positions)
    logits = model.logits_of(model.states_at(ids, rows, positions - 1), rows)
    loss = torch.nn.functional.cross_entropy(logits.float(), ids[0, positions])
    gradients = torch.autograd.grad(loss, list(weights.values()))
    return {
        name: float((gradient.float() * weight.detach().float()).double().square().sum())
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }


def _group_score(line: Mapping[str, Any], layers: Sequence[str], proxy: float | None) -> GroupScore:
    """Returns a finished measurement."""
    return GroupScore(
        name=line["name"],
        layers=tuple(layers),
        functional=Estimate(**line["functional"]),
        sensitive=Estimate(**line["sensitive"]),
        proxy=proxy,
    )
