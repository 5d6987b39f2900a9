"""The loss family in one shared pass, against a plain loss pass and against passes for each score.

Run: python benchmarks/audit_scores.py [--records 40] [--repeats 5] [--tokens 2048]

The embedded model with a LoRA adapter, bfloat16, one thread; every token of movie-review snippets
is scored. Four ways, in turn, in processor time of this process:

- plain: what training's loss of completions does, hidden states to one mean loss a record;
- shared: every score that needs no base, from one pass;
- with base: all scores of the family, from one pass with the adapter and one without;
- one by one: the same scores, each function with passes of its own and full log-probabilities, as
  public suites are built. It is given our batches, so that only the sharing is measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812

from common import movie_reviews, report
from sordino.attacks.scores import SCORES, score_all
from sordino.attacks.texts import encode_texts
from sordino.attacks.token_statistics import TokenStatistics, compute_token_statistics
from sordino.data import Record, plan_batches
from sordino.data.collate import collate
from sordino.data.tasks import Example
from sordino.gradients.objectives import CompletionObjective, LanguageModel
from sordino.models import add_lora, load_model, trainable_tensors

if TYPE_CHECKING:
    from collections.abc import Callable


class Contest:
    """The model, the texts, and the ways to score them."""

    def __init__(self, num_records: int, tokens_per_batch: int) -> None:
        loaded = load_model("embedded", dtype=torch.bfloat16)
        self.adapted = add_lora(loaded.model, rank=8, alpha=16.0, seed=0)
        generator = torch.Generator().manual_seed(0)
        for tensor in trainable_tensors(self.adapted).values():  # B starts at zero
            tensor.data.add_(torch.randn(tensor.shape, generator=generator), alpha=0.02)
        self.adapted.requires_grad_(requires_grad=False)
        self.model = LanguageModel(self.adapted.get_base_model(), loaded.tokenizer.pad_token_id)
        records = [Record(r.prompt, None, (), r.line) for r in movie_reviews(num_records)]
        self.texts = encode_texts(records, loaded.tokenizer, 512, task=None)
        self.tokens = tokens_per_batch
        self.examples = [Example(t.input_ids, num_prompt_tokens=1) for t in self.texts]
        self.batches = plan_batches(
            [len(t.input_ids) for t in self.texts], token_budget=tokens_per_batch, max_records=64
        )

    @torch.no_grad()
    def plain(self) -> list[float]:
        """Returns every text's loss."""
        objective = CompletionObjective(self.examples)
        losses = torch.zeros(len(self.examples))
        for batch in self.batches:
            losses[batch] = objective.losses(self.model, batch)
        return losses.tolist()

    def statistics(self) -> list[TokenStatistics]:
        """Returns every text's statistics, from one pass."""
        found = dict(compute_token_statistics(self.model, self.texts, tokens_per_batch=self.tokens))
        return [found[i] for i in range(len(self.texts))]

    def shared(self) -> list[dict[str, float]]:
        """Returns the scores that need no base."""
        found = zip(self.statistics(), self.texts, strict=True)
        return [score_all(tuned, None, text.text) for tuned, text in found]

    def with_base(self) -> list[dict[str, float]]:
        """Returns all scores."""
        tuned = self.statistics()
        with self.adapted.disable_adapter():
            base = self.statistics()
        found = zip(tuned, base, self.texts, strict=True)
        return [score_all(own, other, text.text) for own, other, text in found]

    @torch.no_grad()
    def tokens_of(self, *, with_moments: bool) -> list[TokenStatistics]:
        """Returns every text's statistics the plain way, from all log-probabilities.

        Args:
            with_moments: Whether to compute the moments; else they are zero.
        """
        found: dict[int, TokenStatistics] = {}
        for numbers in self.batches:
            batch = collate([self.examples[i] for i in numbers], self.model.pad_token_id)
            logits = self.model.causal_lm(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).logits
            for row, number in enumerate(numbers):
                length = len(self.texts[number].input_ids)
                targets = batch.input_ids[row, 1:length]
                log_p = F.log_softmax(logits[row, : length - 1].float(), dim=-1)
                own = log_p.gather(1, targets[:, None])[:, 0]
                mean = deviation = torch.zeros_like(own)
                if with_moments:
                    p = log_p.exp()
                    mean = (p * log_p).sum(dim=1)
                    deviation = ((p * log_p.square()).sum(dim=1) - mean.square()).clamp(0).sqrt()
                hits = log_p.argmax(dim=1) == targets
                columns = (own.double(), mean.double(), deviation.double(), hits)
                found[number] = TokenStatistics(*(column.numpy() for column in columns))
        return [found[i] for i in range(len(self.texts))]

    def one_by_one(self) -> list[dict[str, float]]:
        """Returns all scores, each from passes of its own."""
        scores: list[dict[str, float]] = [{} for _ in self.texts]
        for name, score in SCORES.items():
            tuned = self.tokens_of(with_moments=name == "min-k++")
            base = tuned
            if score.needs_base:
                with self.adapted.disable_adapter():
                    base = self.tokens_of(with_moments=False)
            for found, own, other, text in zip(scores, tuned, base, self.texts, strict=True):
                found[name] = score.compute(own, other, text.text)
        return scores


def timed(function: Callable[[], Any]) -> float:
    """Returns the processor seconds of one call."""
    began = time.process_time()
    function()
    return time.process_time() - began


def spread(ratios: list[float]) -> tuple[float, float, float]:
    """Returns median, lowest and highest."""
    return statistics.median(ratios), min(ratios), max(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2048)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    contest = Contest(arguments.records, arguments.tokens)
    num_scored = sum(len(text.scored_ids) for text in contest.texts)
    ways = (contest.plain, contest.shared, contest.with_base, contest.one_by_one)
    losses, _, ours, theirs = (way() for way in ways)  # also warms up
    worst = max(abs(x + y["loss"]) for x, y in zip(losses, ours, strict=True))
    print(
        f"{len(contest.texts)} records, {num_scored} scored tokens; largest gap to the plain loss"
    )
    print(f"  {worst:.1e} nats; to the scores one by one, each over its largest value:")
    for name in SCORES:
        gap = max(abs(x[name] - y[name]) for x, y in zip(ours, theirs, strict=True))
        print(f"  {name}: {gap / max(abs(y[name]) for y in theirs):.1e}")
    times = [[timed(way) for way in ways] for _ in range(arguments.repeats)]
    for way, column in zip(ways, zip(*times, strict=True), strict=True):
        print(f"{way.__name__}: {statistics.median(column):.2f} s of processor time")
    report("shared pass / plain loss pass", spread([b / a for a, b, _, _ in times]), "<= 1.1")
    report("with base / plain loss pass", spread([c / a for a, _, c, _ in times]), "<= 2.1")
    report("one by one / with base", spread([d / c for _, _, c, d in times]), ">= 5")


if __name__ == "__main__":
    main()
