"""Answers a second: batched with a cache and a shared beginning, against one question at a time.

Three ways to the same greedy answers of the embedded model: every token by a forward pass over all
tokens so far (the naive loop), one question at a time with a cache, and what `sordino access
evaluate` does. All answers have the same number of tokens: the end token is not looked for, so that
each way does the same work.

    OMP_NUM_THREADS=1 python benchmarks/access_generation.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from common import peak_memory_bytes
from sordino.access.choose import choose_questions
from sordino.access.generate import generate, read_questions
from sordino.access.prompts import encode_prompt
from sordino.gradients.generation import Decoding, generate_texts
from sordino.gradients.objectives import LanguageModel
from sordino.models import LoadedModel, choose_compute_dtype, load_model

GOAL = 5.0


class NoEnd:
    """A tokenizer without an end token, whose texts are token ids."""

    eos_token_id = None

    def batch_decode(self, rows: list[list[int]], **_: object) -> list[str]:
        """Returns texts."""
        return [" ".join(map(str, row)) for row in rows]


def naive(loaded: LoadedModel, prompts: list[list[int]], num_tokens: int) -> list[str]:
    texts = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(num_tokens):
            output = loaded.model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=1)
            ids.append(int(output.logits[0, -1].argmax()))
        texts.append(" ".join(map(str, ids[len(prompt) :])))
    return texts


def batched(
    loaded: LoadedModel, prompts: list[list[int]], num_tokens: int, tokens_per_batch: int
) -> list[str]:
    model = LanguageModel(loaded.model, loaded.tokenizer.pad_token_id)
    own = loaded.model.generation_config.eos_token_id
    loaded.model.generation_config.eos_token_id = None
    try:
        texts = dict(
            generate_texts(
                model,
                NoEnd(),
                prompts,
                Decoding(max_new_tokens=num_tokens, temperature=0.0),
                context_length=loaded.context_length,
                seed=0,
                tokens_per_batch=tokens_per_batch,
            )
        )
    finally:
        loaded.model.generation_config.eos_token_id = own
    return [texts[number] for number in range(len(prompts))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--naive-questions", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        generate(output=Path(folder) / "q", seed=1, employees=60, questions=5)
        questions = choose_questions(read_questions(Path(folder) / "q" / "test"), None)
    questions = choose_questions(questions, arguments.questions)
    loaded = load_model("embedded", dtype=choose_compute_dtype(arguments.dtype, "cpu"))
    prompts = [encode_prompt(question, loaded.tokenizer) for question in questions]
    few = prompts[: arguments.naive_questions]
    print(
        f"{len(prompts)} questions of {min(map(len, prompts))} to {max(map(len, prompts))} tokens, "
        f"{arguments.tokens} new tokens each, {arguments.dtype}, "
        f"{torch.get_num_threads()} thread",
        flush=True,
    )
    seconds: dict[str, float] = {}
    answers: dict[str, list[str]] = {}
    with torch.no_grad():
        loaded.model(input_ids=torch.tensor([few[0][:64]]))  # warm
        ways = {
            "naive": (few, lambda: naive(loaded, few, arguments.tokens)),
            "one by one, cached": (few, lambda: batched(loaded, few, arguments.tokens, 1)),
            "batched, cached": (
                prompts,
                lambda: batched(loaded, prompts, arguments.tokens, 16_384),
            ),
        }
        for name, (asked, answer) in ways.items():
            began = time.process_time()  # of this process: other programs do not count
            answers[name] = answer()
            seconds[name] = (time.process_time() - began) / len(asked)
            print(f"{name}: {seconds[name]:.2f} processor seconds a question", flush=True)
    same = sum(len({answers[name][number] for name in answers}) == 1 for number in range(len(few)))
    print(f"same answers all three ways: {same} of {len(few)}")
    for name in ("naive", "one by one, cached"):
        ratio = seconds[name] / seconds["batched, cached"]
        goal = f"; goal >= {GOAL:g}" if name == "naive" else ""
        print(f"{name} / batched: {ratio:.2f}{goal}", flush=True)
    print(f"peak memory: {peak_memory_bytes() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
