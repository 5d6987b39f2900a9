"""A zeroth-order step against two bare forward passes, and against a plain MeZO loop.

Run: python benchmarks/zeroth_order_step.py [--records 96] [--repeats 5] [--adapter lora|full]

The plain loop is what public implementations of MeZO do, written here from their description:
normal noise regenerated four times a step (perturb, perturb back twice as far, restore, update), a
third forward pass for logging, both label words scored as separate sequences with full-vocabulary
logits, batches in order of arrival padded to the longest. Model, records, precision and token
budget are the same, and both run in this process, in turn.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812

from common import (
    Parts,
    assemble_run,
    forward_passes,
    movie_reviews,
    paired_ratio,
    report,
    scratch,
    take_step,
)

if TYPE_CHECKING:
    from sordino.data import Record

WORDS = {"0": " terrible", "1": " great"}


class PlainMezo:
    """The public implementations' loop on the same model."""

    def __init__(self, parts: Parts, pool: list[Record], tokens_per_batch: int) -> None:
        self.causal_lm = parts.language_model.causal_lm
        self.parameters = list(parts.session.stepper.space.tensors.values())
        tokenizer = parts.loaded.tokenizer
        self.batches, batch = [], []
        for record in pool:
            for word in WORDS.values():
                prompt = tokenizer(record.prompt + " It was")["input_ids"]
                tokens = tokenizer(record.prompt + " It was" + word)["input_ids"]
                batch.append((tokens, len(prompt)))
            longest = max(len(tokens) for tokens, _ in batch)
            if longest * (len(batch) + 2) > tokens_per_batch:
                self.batches.append(batch)
                batch = []
        if batch:
            self.batches.append(batch)
        self.pad = tokenizer.pad_token_id

    @torch.no_grad()
    def loss(self) -> float:
        """Returns the mean loss over all records, both label words as separate sequences."""
        total = count = 0.0
        for batch in self.batches:
            longest = max(len(tokens) for tokens, _ in batch)
            ids = torch.full((len(batch), longest), self.pad)
            mask = torch.zeros_like(ids)
            for row, (tokens, _) in enumerate(batch):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                mask[row, : len(tokens)] = 1
            logits = self.causal_lm(input_ids=ids, attention_mask=mask, use_cache=False).logits
            scores = []
            for row, (tokens, start) in enumerate(batch):
                own = logits[row, start - 1 : len(tokens) - 1].float()
                scores.append(-F.cross_entropy(own, ids[row, start : len(tokens)]))
            scores = torch.stack(scores).view(-1, 2)
            total += float(F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long)))
            count += 1
        return total / count

    def perturb(self, seed: int, scale: float) -> None:
        """Regenerates the normal noise and adds it."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)

    def step(self, index: int) -> None:
        """Takes one step: three forward passes, four times the noise."""
        eps = 3e-2
        self.perturb(index, eps)
        upper = self.loss()
        self.perturb(index, -2 * eps)
        lower = self.loss()
        self.perturb(index, eps)
        self.perturb(index, -1e-7 * (upper - lower) / (2 * eps))
        self.loss()  # logged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--adapter", default="lora", choices=["lora", "full"])
    parser.add_argument("--tokens", type=int, default=2048)
    arguments = parser.parse_args()
    pool = movie_reviews(arguments.records)
    goal = {"lora": "<= 1.05", "full": "<= 1.25"}[arguments.adapter]
    with scratch() as folder:
        parts = assemble_run(
            pool, folder, adapter=arguments.adapter, tokens_per_batch=arguments.tokens
        )
        take_step(parts, 0)
        forward_passes(parts, 1)
        ratio = paired_ratio(
            lambda i: take_step(parts, i + 1),
            lambda i: forward_passes(parts, 2),  # noqa: ARG005
            repeats=arguments.repeats,
        )
        report(f"zeroth-order step / two forward passes, {arguments.adapter}", ratio, goal)
        if arguments.adapter == "lora":
            plain = PlainMezo(parts, pool, arguments.tokens)
            ratio = paired_ratio(
                plain.step,
                lambda i: take_step(parts, i + 1 + arguments.repeats),
                repeats=max(arguments.repeats // 2, 2),
            )
            report("plain MeZO step / our step, lora", ratio, ">= 3")


if __name__ == "__main__":
    main()
