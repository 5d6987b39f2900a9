"""Gradients of questions about one context: in one row that shares it, or as batches of records.

Run: python benchmarks/shared_prefix.py [--contexts 4] [--each 8] [--repeats 3]

The embedded model in bfloat16, LoRA of rank 32 on attention and feed-forward, `sordino access`
questions with their reasons; batches hold as many records as fit into 2,048 tokens. Times on the
processor, in turn; ratio row / batches of median (lowest to highest), the ratio of tokens as the
limit, and how far the two gradients are apart.
"""

from __future__ import annotations

import argparse
import statistics
from typing import TYPE_CHECKING

import torch

from common import DEVICE, TASK, TOKENS_PER_BATCH, scratch, stopwatch
from sordino.access.examples import choose_questions, make_records, write_records
from sordino.access.generate import generate, read_questions
from sordino.data import read_records
from sordino.gradients.objectives import CompletionObjective, LanguageModel
from sordino.models import add_lora, load_model, trainable_tensors
from sordino.reports.access_tune import LORA_TARGETS
from sordino.training.batch_plan import BatchPlan
from sordino.training.encoding import choose_task, encode_records
from sordino.training.gradient_steps import PlainSum

if TYPE_CHECKING:
    from sordino.data import Record
    from sordino.models import LoadedModel


def make_pool(loaded: LoadedModel, num_contexts: int, each: int) -> list[Record]:
    """Returns questions, those of a context after each other."""
    with scratch() as folder:
        generate(output=folder, seed=1, questions=25, questions_per_context=each)
        questions = choose_questions(read_questions(folder / "train"), num_contexts * each, seed=0)
        rows = make_records(questions, loaded.tokenizer, rationale_share=0.75, seed=0)
        write_records(folder / "pool.jsonl", rows)
        return read_records(folder / "pool.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, default=4)
    parser.add_argument("--each", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model("embedded", dtype=torch.bfloat16, device=DEVICE)
    pool = make_pool(loaded, arguments.contexts, arguments.each)
    objective = encode_records(choose_task(TASK, pool), pool, loaded, TASK).objective
    assert isinstance(objective, CompletionObjective)
    model = add_lora(
        loaded.model,
        rank=32,
        alpha=32.0,
        target_modules=list(LORA_TARGETS),
        factors="both",
        seed=0,
    )
    tensors = trainable_tensors(model)
    model.requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():  # factors of 0 would hide what the others' gradients are
        if "lora_B" in name:
            tensor.data.normal_(std=0.02, generator=generator)
    language_model = LanguageModel(loaded.model, loaded.tokenizer.pad_token_id)
    found: dict[str, dict[str, torch.Tensor]] = {}
    seconds: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    for repeat in range(arguments.repeats):
        for name, is_shared in (("row", True), ("batches", False)):
            plan = BatchPlan(
                objective.lengths,
                batch_size=arguments.each,
                tokens_per_batch=TOKENS_PER_BATCH,
                seed=0,
                order="blocks",
                shared_length=objective.shared_length if is_shared else None,
            )
            gradients = PlainSum(language_model, objective, tensors, is_shared=is_shared)
            total = {key: torch.zeros_like(p, dtype=torch.float32) for key, p in tensors.items()}
            began = stopwatch()
            for step in range(arguments.contexts):
                for batch in plan.batches(step):
                    gradients.add_batch(total, batch)
                    if repeat == 0:
                        lengths = [objective.lengths[i] for i in batch]
                        tokens = objective.shared_length(batch) if is_shared else sum(lengths)
                        counts[name] = counts.get(name, 0) + tokens
            seconds.setdefault(name, []).append(stopwatch() - began)
            found[name] = total
    ratios = [a / b for a, b in zip(seconds["row"], seconds["batches"], strict=True)]
    flat = {name: torch.cat([g.flatten() for g in total.values()]) for name, total in found.items()}
    apart = (flat["row"] - flat["batches"]).norm() / flat["batches"].norm()
    print(
        f"{arguments.contexts} contexts of {arguments.each} questions: row / batches "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); tokens "
        f"{counts['row'] / counts['batches']:.3f}; gradients apart {apart:.4f} of their norm"
    )


if __name__ == "__main__":
    main()
