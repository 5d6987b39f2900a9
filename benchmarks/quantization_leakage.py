"""Membership leakage against bits, and bits that follow what groups of layers carry.

Run: python benchmarks/quantization_leakage.py --run RUN --members FILE --nonmembers FILE
         --output FOLDER [--records 200] [--public 100] [--group-size 64] [--budget-bytes N]
         [--uniform]

RUN is a run that leaks, such as "overfitted" of audit_power.py, on the embedded model, with the
files that it was and was not tuned on. Public text: movie-review snippets that stand in neither.
Groups are attention and MLP of each block. Weights are rounded to the nearest codes with searched
scales, which needs no calibration. An interrupted series goes on where it stopped. The page with
both figures is FOLDER/protection.PRIVATE.html. `--uniform` measures 16, 8, 4 and 2 bits everywhere
and no groups, on all the records. Beside membership stands extraction: the share of records whose
last ten tokens the model writes after what stands before them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import DEVICE, movie_reviews
from sordino.attacks.endings import ExtractionRates
from sordino.data import normalize_text
from sordino.gradients.objectives import LanguageModel
from sordino.quantization.methods import QuantizationSettings
from sordino.quantization.pipeline import select_layers
from sordino.quantization.source import open_source
from sordino.reports.protect import ProtectSettings, choose_bits, read_texts
from sordino.reports.protection import FrontierPoint, measure_plan


def head(source: Path, target: Path, count: int) -> set[str]:
    """Writes the first records of a file; returns their texts, normalised."""
    lines = source.read_text(encoding="utf-8").splitlines()[:count]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {normalize_text(json.loads(line)["completion"]) for line in lines}


def show(point: FrontierPoint) -> None:
    """Prints one row."""
    print(
        f"{point.name} | {point.num_bytes / 1e6:.1f} | {point.perplexity:.4g} | "
        "{:.3f} ({:.3f} to {:.3f}) | ".format(*point.auc)
        + "{:.3f} ({:.3f} to {:.3f}) | ".format(*point.true_positive_rate)
        + show_rates(point.extracted)
        + f" | {show_rates(point.extracted_others)}",
        flush=True,
    )


def show_rates(rates: ExtractionRates | None) -> str:
    """Returns the shares of ends that are written greedily, and within so many samples."""
    if rates is None:
        return "-"
    greedy = "{:.3f} ({:.3f} to {:.3f})".format(*rates.greedy)
    return f"{greedy}; in {rates.num_tries}: {rates.sampled[0]:.3f} (n = {rates.num_records})"


def read_point(entry: dict[str, Any]) -> FrontierPoint:
    """Returns a row of the file."""
    for side in ("extracted", "extracted_others"):
        entry[side] = entry[side] and ExtractionRates(**entry[side])
    return FrontierPoint(**entry)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--members", type=Path, required=True)
    parser.add_argument("--nonmembers", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--public", type=int, default=100)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--budget-bytes", type=int)
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--uniform", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.output
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = head(arguments.members, folder / "members.PRIVATE.jsonl", arguments.records)
    known |= head(arguments.nonmembers, folder / "nonmembers.PRIVATE.jsonl", arguments.records)
    texts = [r.prompt for r in movie_reviews(10_000) if len(r.prompt.split()) >= 8]
    texts = [text for text in texts if normalize_text(text) not in known]
    public = folder / "public.txt"
    public.write_text("\n".join(texts[-arguments.public :]) + "\n", encoding="utf-8")
    opened = open_source(arguments.run, base="embedded")
    opened.model.to(DEVICE)
    settings = QuantizationSettings(
        bits=4,
        group_size=arguments.group_size,
        method="nearest",
        order="natural",
        lattice_reduction="none",
        scales="searched",
        damping=0.01,
    )
    blocks, _ = select_layers(opened.model, settings)
    layers = {name: module for block in blocks for name, module in block.items()}
    limits = ProtectSettings(
        members=folder / "members.PRIVATE.jsonl",
        nonmembers=folder / "nonmembers.PRIVATE.jsonl",
        public=public,
        budget=arguments.budget_bytes,
        tolerance=arguments.tolerance,
        base="embedded",
        num_public=arguments.public,
    )
    print(
        "plan | MB | perplexity | AUC (95%) | TPR at 1% FPR (95%) | last tokens of members "
        "extracted (95%) | of others",
        flush=True,
    )
    if arguments.uniform:
        texts = read_texts(arguments.run, opened, limits)
        model = LanguageModel(opened.model, opened.tokenizer.pad_token_id)
        for bits in (16, 8, 4, 2):
            plan = {} if bits == 16 else dict.fromkeys(layers, bits)
            show(
                measure_plan(
                    f"{bits} bits",
                    plan,
                    model,
                    layers,
                    texts,
                    group_size=arguments.group_size,
                    tokens_per_batch=limits.tokens_per_batch,
                )
            )
        return
    found = choose_bits(
        arguments.run,
        opened,
        layers,
        limits,
        group_size=arguments.group_size,
        folder=folder,
    )
    record = json.loads(found.record.read_text(encoding="utf-8"))
    for point in record["frontier"]:
        show(read_point(point))
    roles = [group["role"] for group in record["groups"]]
    print({role: roles.count(role) for role in sorted(set(roles))})
    print(f"rank correlation of the Fisher proxy: {record['proxy_rank_correlation']}")


if __name__ == "__main__":
    main()
