"""What a private student learns from a teacher that wrote about other, public tables.

Run: python benchmarks/distillation.py --data FOLDER --output FOLDER [--epsilons 8 inf] [--seed 0]
         [--teacher-records 800] [--prompts 1000] [--test 300] [--steps 8] [--batch-size 125]
         [--learning-rate 1e-2] [--first-layer 10] [--tokens 32]

E2E (`devset.csv`, `testset_w_refs.csv`): the teacher is the embedded model, all weights tuned on
the sentences of one half of the tables, without privacy. The student is the embedded model; it sees
the tables of the other half as private prompts, and no sentence of them. Printed: perplexity of a
token of the test sentences, whose tables occur in neither half, under the model as it was, the
teacher and the students. delta is 1e-5; epsilon "inf" is the same without clipping and noise.
A finished model lies in the output folder, and a second call uses it.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common import DEVICE, TASK, TOKENS_PER_BATCH, stopwatch
from dp_utility import DELTA, read_tables, token_perplexity
from sordino.gradients.objectives import LanguageModel
from sordino.models import choose_compute_dtype, load_adapter, load_model
from sordino.training.distill import distill
from sordino.training.encoding import choose_task, encode_records
from sordino.training.tune import tune

if TYPE_CHECKING:
    from sordino.data import Record


def split_tables(records: list[Record], seed: int) -> tuple[list[Record], list[Record]]:
    """Returns the records of one half of the tables, and those of the other."""
    tables = sorted({record.prompt for record in records})
    chosen = set(np.random.default_rng(seed).permutation(tables)[: len(tables) // 2].tolist())
    halves: tuple[list[Record], list[Record]] = ([], [])
    for i in np.random.default_rng(seed).permutation(len(records)):
        halves[records[i].prompt not in chosen].append(records[i])
    return halves


def write(path: Path, records: list[Record], *, completions: bool) -> Path:
    """Writes records, or their prompts alone."""
    rows = [
        {"prompt": x.prompt} | ({"completion": x.references[0]} if completions else {})
        for x in records
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def perplexity(folder: str, test: list[Record], *, is_run: bool) -> float:
    """Returns the perplexity of a token of the completions."""
    dtype = choose_compute_dtype("auto", DEVICE)
    loaded = load_model("embedded" if is_run else folder, dtype=dtype, device=DEVICE)
    model = load_adapter(loaded.model, folder)[0] if is_run else loaded.model
    encoded = encode_records(choose_task(TASK, test), test, loaded, TASK)
    return token_perplexity(encoded, LanguageModel(model, loaded.tokenizer.pad_token_id))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epsilons", nargs="+", default=["8", "inf"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher-records", type=int, default=800)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=125)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--first-layer", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=32)
    arguments = parser.parse_args()
    output, seed = arguments.output, arguments.seed
    output.mkdir(parents=True, exist_ok=True)
    known = read_tables(arguments.data / "devset.csv")
    public, private = split_tables(known, seed)
    tables = {record.prompt for record in known}
    test = read_tables(arguments.data / "testset_w_refs.csv")
    test = [record for record in test if record.prompt not in tables][: arguments.test]
    prompts = write(output / "prompts.jsonl", private[: arguments.prompts], completions=False)
    print("model | perplexity of a token | seconds of tuning", flush=True)
    print(f"as it was | {perplexity('embedded', test, is_run=False):.2f} | ", flush=True)
    teacher = output / "teacher"
    began = stopwatch()
    if not (teacher / "certificate.json").exists():
        tune(
            model="embedded",
            train=write(
                output / "public.jsonl", public[: arguments.teacher_records], completions=True
            ),
            output=teacher,
            guarantee="none",
            estimator="first-order",
            adapter="full",
            num_steps=arguments.teacher_records // 16,
            batch_size=32,
            tokens_per_batch=TOKENS_PER_BATCH,
            seed=seed,
        )
    score = perplexity(str(teacher), test, is_run=False)
    print(f"teacher | {score:.2f} | {stopwatch() - began:.0f}", flush=True)
    for epsilon in arguments.epsilons:
        run = output / f"student-{epsilon}"
        is_private = math.isfinite(float(epsilon))
        began = stopwatch()
        if not (run / "certificate.json").exists():
            distill(
                teacher=str(teacher),
                model="embedded",
                train=prompts,
                output=run,
                guarantee="dp" if is_private else "none",
                epsilon=float(epsilon) if is_private else None,
                delta=DELTA if is_private else None,
                max_new_tokens=arguments.tokens,
                num_steps=arguments.steps,
                batch_size=arguments.batch_size,
                learning_rate=arguments.learning_rate,
                lora_first_layer=arguments.first_layer,
                tokens_per_batch=TOKENS_PER_BATCH,
                seed=seed,
            )
        score = perplexity(str(run), test, is_run=True)
        print(f"student, epsilon {epsilon} | {score:.2f} | {stopwatch() - began:.0f}", flush=True)


if __name__ == "__main__":
    main()
