"""Accuracy on SST-2 with and without privacy, and the cost of getting there.

Run: python benchmarks/sst2.py --data FOLDER --output RESULTS [--records 1000] [--seeds 0 1 2]
         [--methods zero-shot adamw adamw-half pac pac-skip ... zeroth mezo] [--curve]
     python benchmarks/sst2.py --output RESULTS --table

FOLDER holds train.tsv, dev.tsv and test.tsv (sentence, tab, 0 or 1; no header). Each finished run
is one line of RESULTS (JSON Lines), so that an interrupted series goes on where it stopped.
SmolLM2-135M, LoRA r = 8 on query and value; the PAC runs train B alone, AdamW both factors. Runs
are on a GPU where there is one. Seconds are of training alone, without loading and scoring. On the
CPU they are the processor's: with OMP_NUM_THREADS=1 they are what an idle machine takes, whatever
else runs on it; on a GPU they are the clock's, and no figure where several runs share it. A forward
pass over the training sentences counts 1, a forward and backward pass 3.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, field
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
from sordino.training.encoding import choose_task, encode_records
from sordino.training.evaluate import evaluate_objective

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sordino.gradients.objectives import AbstractObjective


@dataclass(frozen=True, kw_only=True)
class Method:
    """How one row of the table is trained."""

    settings: dict[str, Any] = field(default_factory=dict)
    learning_rates: tuple[float, ...] = ()  # AdamW: the best on dev is taken
    uses_half: bool = False
    factors: str = "both"  # what AdamW trains
    cost_per_step: float = 3.0  # forward equivalents, of the whole pool


PAC = {"estimator": "first-order"}
ZEROTH = {"estimator": "zeroth-order", "clip": 25.0}
ADAMW = (3e-4,)
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
METHODS = {
    "zero-shot": Method(settings={"num_steps": 0}),
    "adamw": Method(learning_rates=ADAMW),
    "adamw-half": Method(learning_rates=ADAMW, uses_half=True),
    # B alone, which is what the PAC runs train: what the parameters cost, not the method
    "adamw-b": Method(learning_rates=(1e-3, 3e-3), factors="b"),
    "pac": Method(settings=PAC),
    "pac-skip": Method(settings=PAC | {"on_disagreement": "skip"}),
    "pac-flip": Method(settings=PAC | {"unanimity_flip": 0.35, "learning_rate": 6.0}),
    "pac-clip0.1": Method(settings=PAC | {"clip": 0.1}),
    "pac-clip1": Method(settings=PAC | {"clip": 1.0}),
    # more and smaller steps, each on a thousand of many records
    "pac-batches": Method(
        settings=PAC | {"batch_size": 1000, "num_steps": 12, "learning_rate": 1.0}
    ),
    "pac-batches-lr2": Method(settings=PAC | {"batch_size": 1000, "num_steps": 12}),
    "pac-batches-500": Method(
        settings=PAC | {"batch_size": 500, "num_steps": 24, "learning_rate": 1.0}
    ),
    "pac-batches-k4096": Method(
        settings=PAC
        | {
            "batch_size": 1000,
            "num_steps": 12,
            "learning_rate": 1.0,
            "directions_per_step": 4096,
        }
    ),
    "pac-batches-48": Method(
        settings=PAC | {"batch_size": 1000, "num_steps": 48, "learning_rate": 0.5}
    ),
    "pac-batches-48-lr1": Method(
        settings=PAC | {"batch_size": 1000, "num_steps": 48, "learning_rate": 1.0}
    ),
    # more steps on all records
    "pac-16": Method(settings=PAC | {"num_steps": 16, "learning_rate": 1.0}),
    "pac-16-lr.5": Method(settings=PAC | {"num_steps": 16, "learning_rate": 0.5}),
    "pac-64": Method(settings=PAC | {"num_steps": 64, "learning_rate": 0.5}),
    "pac-64-skip": Method(
        settings=PAC | {"num_steps": 64, "learning_rate": 0.5, "on_disagreement": "skip"}
    ),
    "pac-16-k4096": Method(
        settings=PAC | {"num_steps": 16, "learning_rate": 1.0, "directions_per_step": 4096}
    ),
    # more is trained
    "pac-16-ab": Method(
        settings=PAC | {"num_steps": 16, "learning_rate": 1.0, "lora_factors": "both"}
    ),
    "pac-16-all-layers": Method(
        settings=PAC | {"num_steps": 16, "learning_rate": 1.0, "lora_targets": ALL_LINEAR}
    ),
    "pac-16-rank32": Method(
        settings=PAC | {"num_steps": 16, "learning_rate": 1.0, "lora_rank": 32}
    ),
    # steps that do not become smaller
    "pac-8-constant": Method(settings=PAC | {"num_steps": 8, "learning_rate_schedule": "constant"}),
    "pac-batches-constant": Method(
        settings=PAC
        | {
            "batch_size": 1000,
            "num_steps": 12,
            "learning_rate": 1.0,
            "learning_rate_schedule": "constant",
        }
    ),
    "pac-64-bits": Method(settings=PAC | {"directions_per_step": 32, "num_steps": 2}),
    "pac-k256-flip": Method(
        settings=PAC | {"directions_per_step": 256, "unanimity_flip": 0.35, "learning_rate": 6.0}
    ),
    "pac-k64": Method(settings=PAC | {"directions_per_step": 64}),
    "pac-k256": Method(settings=PAC | {"directions_per_step": 256}),
    "pac-k4096": Method(settings=PAC | {"directions_per_step": 4096}),
    "pac-k4096-flip": Method(settings=PAC | {"directions_per_step": 4096, "unanimity_flip": 0.35}),
    # about an hour of one core over 1,000 sentences each; MeZO in small batches, as its authors do
    "zeroth": Method(settings=ZEROTH | {"num_steps": 38, "learning_rate": 5e-3}, cost_per_step=2.0),
    "mezo": Method(
        settings=ZEROTH
        | {"guarantee": "none", "batch_size": 64, "num_steps": 600, "learning_rate": 5e-4},
        cost_per_step=2.0,
    ),
    # what an hour of one core cannot pay for
    "zeroth-1500": Method(
        settings=ZEROTH | {"num_steps": 1500, "learning_rate": 2e-3}, cost_per_step=2.0
    ),
    "zeroth-1500-lr5": Method(
        settings=ZEROTH | {"num_steps": 1500, "learning_rate": 5e-3}, cost_per_step=2.0
    ),
    "mezo-6000": Method(
        settings=ZEROTH
        | {"guarantee": "none", "batch_size": 64, "num_steps": 6000, "learning_rate": 5e-4},
        cost_per_step=2.0,
    ),
}
EPOCHS = 3


def read_sentences(path: Path) -> list[Record]:
    """Returns the sentences of one file."""
    rows = [line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [Record(text, label.strip(), (), i + 1) for i, (text, label) in enumerate(rows)]


def split(folder: Path, num_records: int, seed: int) -> tuple[list[Record], ...]:
    """Returns training, dev and test sentences; none of the latter two is a training sentence."""
    sentences = read_sentences(folder / "train.tsv")
    chosen = np.random.default_rng(seed).permutation(len(sentences))[:num_records]
    train = [sentences[i] for i in chosen]
    known = {record.prompt for record in train}
    dev, test = (
        [r for r in read_sentences(folder / name) if r.prompt not in known]
        for name in ("dev.tsv", "test.tsv")
    )
    return train, dev, test


def objective_of(parts: Parts, records: list[Record], pool: list[Record]) -> AbstractObjective:
    """Returns the objective over other records of the same task."""
    task = choose_task(TASK, pool)
    return encode_records(task, records, parts.loaded, TASK).objective


def accuracy(parts: Parts, objective: AbstractObjective) -> float:
    scores = evaluate_objective(objective, parts.language_model, tokens_per_batch=TOKENS_PER_BATCH)
    return scores["accuracy"]


def train_adamw(parts: Parts, learning_rate: float, seed: int) -> Iterator[None]:
    """Trains the adapter with AdamW, linear decay, batches of 32; yields after each epoch."""
    parameters = list(parts.session.stepper.space.tensors.values())
    for parameter in parameters:
        parameter.requires_grad_(requires_grad=True)
    count = len(parts.objective.lengths)
    num_batches = math.ceil(count / 32)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, EPOCHS * num_batches)
    order = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        for batch in np.array_split(order.permutation(count), num_batches):
            parts.objective.losses(parts.language_model, batch.tolist()).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        yield


def train_sordino(parts: Parts) -> Iterator[None]:
    """Takes the run's own steps; yields after each."""
    for step in range(parts.session.header.num_steps):
        take_step(parts, step)
        yield


def run(
    method: Method, splits: tuple[list[Record], ...], seed: int, *, with_curve: bool
) -> dict[str, Any]:
    """Returns the measurements of one run."""
    pool, dev, test = splits
    if method.uses_half:
        pool = pool[: len(pool) // 2]
    candidates: list[dict[str, Any]] = []
    for learning_rate in method.learning_rates or (None,):
        settings: dict[str, Any] = dict(method.settings)
        if learning_rate is not None:
            settings |= {"estimator": "first-order", "lora_factors": method.factors}
        num_steps = settings.pop("num_steps", None)
        if num_steps:
            settings["num_steps"] = num_steps
        with scratch() as folder:
            is_pac = learning_rate is None and settings.get("guarantee", "pac") == "pac"
            parts = assemble_run(pool, folder, seed=seed, holder_report=is_pac, **settings)
            dev_objective = objective_of(parts, dev, pool)
            if num_steps == 0:
                steps: Iterator[None] = iter(())
            elif learning_rate is not None:
                steps = train_adamw(parts, learning_rate, seed)
            else:
                steps = train_sordino(parts)
            curve, spent, began = [], 0.0, stopwatch()
            count = EPOCHS if learning_rate is not None else parts.session.header.num_steps
            every = max(1, count // 8) if with_curve else count
            for number, _ in enumerate(steps, 1):
                spent += stopwatch() - began
                if number % every == 0 or number == count:
                    curve.append((number, round(spent), accuracy(parts, dev_objective)))
                    print("  pass or step, seconds, dev accuracy:", *curve[-1], flush=True)
                began = stopwatch()
            test_accuracy = accuracy(parts, objective_of(parts, test, pool))
        share = settings.get("batch_size", len(pool)) / len(pool)  # of the pool, in a step
        candidates.append(
            {
                "test": test_accuracy,
                "dev": curve[-1][2] if curve else None,
                "seconds": round(spent),
                "forward_equivalents": curve[-1][0] * share * method.cost_per_step if curve else 0,
                "released_bits": _released_bits(parts) if learning_rate is None else None,
                "learning_rate": learning_rate or parts.session.header.learning_rates[0],
                "curve": curve,
                "pool_loss": _pool_loss(parts),
            }
        )
    return max(candidates, key=lambda c: c["dev"] or 0.0)


def _released_bits(parts: Parts) -> int:
    """Returns how many symbols left the building."""
    return sum(step.integers.size for step in parts.session.stepper.steps)


def _pool_loss(parts: Parts) -> dict[str, Any] | None:
    """Returns what the transcript tells about single records, after the fact."""
    report = parts.session.stepper.leave_one_out
    if report is None or not parts.session.stepper.steps:
        return None
    return {k: v for k, v in report.report()["by_directions_per_step"].items() if k != "what"}


def print_table(lines: list[dict[str, Any]]) -> None:
    """Prints mean test accuracy with a 95% interval over sentences (and seeds), by method."""
    print(
        "records | method | seeds | test accuracy % | dev % | forward equivalents | seconds"
        " | median, 95% loss of a record (nats), share infinite"
    )
    for records in sorted({line["records"] for line in lines}):
        for method in METHODS:
            rows = [x for x in lines if (x["records"], x["method"]) == (records, method)]
            if not rows:
                continue
            tests = np.array([x["test"] for x in rows])
            sampling = tests.mean() * (1 - tests.mean()) / 1821  # the same test set for all seeds
            seeds = tests.var(ddof=1) / len(tests) if len(tests) > 1 else 0.0
            half = 1.96 * math.sqrt(sampling + seeds)
            devs = [x["dev"] for x in rows if x["dev"] is not None]
            dev = f"{100 * np.mean(devs):.1f}" if devs else "-"
            cost = np.mean([x["forward_equivalents"] for x in rows])
            spent = np.mean([x["seconds"] for x in rows])
            print(
                f"{records} | {method} | {len(rows)} | {100 * tests.mean():.1f} +- {100 * half:.1f}"
                f" | {dev} | {cost:.0f} | {spent:.0f} | {_loss_words(rows[0])}"
            )


def _loss_words(line: dict[str, Any]) -> str:
    """Returns the pool loss over all released directions, of one run."""
    if not line.get("pool_loss"):
        return "-"
    whole = line["pool_loss"][max(line["pool_loss"], key=int)]
    quantiles = whole["quantiles_of_absolute_loss_nats"]
    figures = [x if isinstance(x, str) else f"{x:.1f}" for x in quantiles.values()]
    return f"{figures[0]}, {figures[1]}, {whole['share_infinite']:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--curve", action="store_true", help="score dev after every pass")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    lines = []
    if arguments.output.exists():
        lines = [json.loads(line) for line in arguments.output.read_text().splitlines()]
    if arguments.table:
        print_table(lines)
        return
    done = {(x["records"], x["seed"], x["method"]) for x in lines}
    for seed in arguments.seeds:
        splits = split(arguments.data, arguments.records, seed)
        for name in arguments.methods:
            if (arguments.records, seed, name) in done:
                continue
            print(f"{name}, seed {seed}, {arguments.records} sentences", flush=True)
            line = {"records": arguments.records, "seed": seed, "method": name}
            line["machine"] = machine()
            line |= run(METHODS[name], splits, seed, with_curve=arguments.curve)
            with arguments.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
