"""What differential privacy costs in quality: SST-2 accuracy and E2E perplexity.

Run: python benchmarks/dp_utility.py --task sst2|e2e --data FOLDER --output RESULTS
         [--epsilons 1 2 8 inf] [--seeds 0 1 2] [--first-layer 24] [--steps 32] [--batch-size 865]
         [--learning-rate 1e-3] [--clip 0.3] [--records N]
     python benchmarks/dp_utility.py --output RESULTS --table

sst2: FOLDER holds train.tsv, dev.tsv and test.tsv (sentence, tab, 0 or 1), 6,920 training
sentences. e2e: devset.csv (trained on) and testset_w_refs.csv (mr, ref); perplexity of a token of
the completions. Epsilon "inf" is AdamW without clipping, noise or secret sampling. delta is 1e-5.
SmolLM2-135M in bfloat16, LoRA r = 8 on query and value of the blocks from --first-layer on, on a
GPU where there is one. Each finished run is one line of RESULTS, so that an interrupted series goes
on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common import (
    TASK,
    TOKENS_PER_BATCH,
    Parts,
    assemble_run,
    machine,
    scratch,
    stopwatch,
    take_step,
)
from sordino.data import Record
from sordino.training.dp_plan import choose_dp_options
from sordino.training.encoding import choose_task, encode_records
from sordino.training.evaluate import evaluate_objective
from sst2 import read_sentences, split

if TYPE_CHECKING:
    from sordino.gradients.objectives import LanguageModel
    from sordino.training.encoding import EncodedRecords

DELTA = 1e-5


def read_tables(path: Path) -> list[Record]:
    """Returns the meaning representations and sentences of the E2E challenge."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Record(f"{row['mr']}\n", None, (row["ref"],), number)
        for number, row in enumerate(rows, 1)
        if row["mr"].strip() and row["ref"].strip()
    ]


def read_task(arguments: argparse.Namespace) -> tuple[list[Record], list[Record]]:
    """Returns training and test records."""
    if arguments.task == "sst2":
        size = arguments.records or len(read_sentences(arguments.data / "train.tsv"))
        train, _, test = split(arguments.data, size, 0)
        return train, test
    train = read_tables(arguments.data / "devset.csv")[: arguments.records]
    tables = {record.prompt for record in train}
    test = read_tables(arguments.data / "testset_w_refs.csv")
    return train, [record for record in test if record.prompt not in tables]


@torch.no_grad()
def token_perplexity(encoded: EncodedRecords, model: LanguageModel) -> float:
    """Returns the perplexity of a token of the completions."""
    # a record's loss is a mean over its tokens: weigh the records by theirs
    counts = [len(x.input_ids) - (x.num_prompt_tokens or 0) for x in encoded.examples]
    total = 0.0
    for start in range(0, len(counts), 16):
        batch = list(range(start, min(start + 16, len(counts))))
        losses = encoded.objective.losses(model, batch).double().cpu().numpy()
        total += float(np.dot(losses, [counts[i] for i in batch]))
    return math.exp(total / sum(counts))


def measure(parts: Parts, records: list[Record], pool: list[Record]) -> float:
    """Returns the accuracy, or the perplexity of a token."""
    encoded = encode_records(choose_task(TASK, pool), records, parts.loaded, TASK)
    if records[0].label is not None:
        scores = evaluate_objective(
            encoded.objective, parts.language_model, tokens_per_batch=TOKENS_PER_BATCH
        )
        return scores["accuracy"]
    return token_perplexity(encoded, parts.language_model)


def run(
    arguments: argparse.Namespace,
    epsilon: float,
    seed: int,
    records: tuple[list[Record], list[Record]],
    kept: dict[bytes, Any],
) -> dict[str, Any]:
    """Returns the measurements of one run."""
    train, test = records
    is_private = math.isfinite(epsilon)
    dp = None
    if is_private:
        dp = choose_dp_options("dp", epsilon=epsilon, delta=DELTA, unit="record")
    with scratch() as folder:
        parts = assemble_run(
            train,
            folder,
            tokens_per_batch=TOKENS_PER_BATCH,
            guarantee="dp" if is_private else "none",
            estimator="first-order",
            optimizer="adamw",
            dp=dp,
            seed=seed,
            num_steps=arguments.steps,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            clip=arguments.clip,
            lora_first_layer=arguments.first_layer,
            lora_factors=arguments.factors,
        )
        if parts.language_model.prefix is not None:
            # the frozen blocks are the same in every run
            parts.language_model.prefix._kept = kept  # noqa: SLF001
        before = measure(parts, test, train)
        began = stopwatch()
        for step in range(arguments.steps):
            take_step(parts, step)
            print(f"  step {step + 1}, {stopwatch() - began:.0f} s", flush=True)
        spent = stopwatch() - began
        opening = parts.session.opening
        return {
            "before": before,
            "after": measure(parts, test, train),
            "seconds": round(spent),
            "machine": machine(),
            "noise_multiplier": opening["dp"] and opening["dp"]["noise_multiplier"],
        }


def print_table(lines: list[dict[str, Any]]) -> None:
    """Prints mean, lowest and highest score by task, settings and epsilon."""
    print(
        "task | settings | epsilon | noise multiplier | runs | before | after (lowest to highest)"
    )
    keys = sorted(
        {(x["task"], json.dumps(x["settings"]), x["epsilon"]) for x in lines},
        key=lambda key: (key[0], key[1], float(key[2])),
    )
    for key in keys:
        rows = [x for x in lines if (x["task"], json.dumps(x["settings"]), x["epsilon"]) == key]
        after = [row["after"] for row in rows]
        noise = rows[0]["noise_multiplier"]
        print(
            f"{key[0]} | {key[1]} | {key[2]} | {'-' if noise is None else f'{noise:.3f}'} | "
            f"{len(rows)} | {np.mean([x['before'] for x in rows]):.4f} | {np.mean(after):.4f} "
            f"({min(after):.4f} to {max(after):.4f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=("sst2", "e2e"), default="sst2")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epsilons", nargs="+", default=["1", "2", "8", "inf"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--first-layer", type=int, default=24)
    parser.add_argument("--factors", default="b")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=865)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--clip", type=float, default=0.3)
    parser.add_argument("--records", type=int, help="train on so many only")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    lines = []
    if arguments.output.exists():
        lines = [json.loads(line) for line in arguments.output.read_text().splitlines()]
    if arguments.table:
        print_table(lines)
        return
    names = ("first_layer", "factors", "steps", "batch_size", "learning_rate", "clip")
    settings = {name: getattr(arguments, name) for name in names}
    if arguments.records:
        settings["records"] = arguments.records
    records, kept = read_task(arguments), {}
    for seed in arguments.seeds:
        for epsilon in arguments.epsilons:
            line = {"task": arguments.task, "epsilon": epsilon, "seed": seed, "settings": settings}
            if any(all(x[key] == value for key, value in line.items()) for x in lines):
                continue
            print(json.dumps(line), flush=True)
            line |= run(arguments, float(epsilon), seed, records, kept)
            with arguments.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
