"""What a step of the first-order estimator costs, and how well it uses this machine.

Run: python benchmarks/projected_step.py [--records 256] [--repeats 3] [--parts utilisation ...]

Utilisation: floating-point operations of the model's matrix products on real tokens (no padding, no
attention, no embeddings) per second, divided by what bfloat16 products of the model's own shapes
reach at 2,048 tokens just before or after, whichever is more. A backward pass through frozen
weights has the products of a forward pass, not twice as many. OMP_NUM_THREADS=1 measures one of
several processes.
Projection: a whole gradient pass with K directions over the same pass without projecting.
Profile: where a forward pass spends its time; which tokens are padding.
N and memory: a pass over 2 N records over a pass over N; peak memory at 4 N over that at N.
d and M: a pass that trains eight times as many numbers; sums over 32 times as many subsets.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from common import (
    Parts,
    assemble_run,
    movie_reviews,
    paired_ratio,
    peak_memory_bytes,
    report,
    scratch,
)
from sordino.gradients.projected import FirstOrderEstimator
from sordino.mechanisms.candidates import SubsetSums

if TYPE_CHECKING:
    from collections.abc import Callable

    from sordino.data import Record


def linear_operations(parts: Parts, first_layer: int) -> float:
    """Returns operations of one forward pass through the blocks from `first_layer` on."""
    layers = parts.language_model.causal_lm.get_decoder().layers[first_layer:]
    weights = sum(
        module.weight.numel()
        for module in layers.modules()
        if isinstance(module, torch.nn.Linear) and module.weight.dtype != torch.float32
    )
    return 2.0 * weights * sum(parts.objective.lengths)


def peak_operations(parts: Parts, num_tokens: int) -> float:
    """Returns operations a second of bare products with the weights of one block."""
    block = parts.language_model.causal_lm.get_decoder().layers[0]
    weights = [
        m.weight
        for m in block.modules()
        if isinstance(m, torch.nn.Linear) and m.weight.dtype != torch.float32
    ]
    inputs = [torch.randn(num_tokens, w.shape[1], dtype=w.dtype) for w in weights]
    best = np.inf
    for _ in range(15):
        began = time.perf_counter()
        for x, w in zip(inputs, weights, strict=True):
            torch.nn.functional.linear(x, w)
        best = min(best, time.perf_counter() - began)
    return sum(2.0 * num_tokens * w.numel() for w in weights) / best


def forward(parts: Parts) -> None:
    """Takes one forward pass through the whole model, without kept prefix states."""
    model = parts.language_model
    prefix, model.prefix = model.prefix, None
    with torch.no_grad():
        for batch in parts.session.stepper.plan.batches(0):
            parts.objective.losses(model, batch)
    model.prefix = prefix


def gradients(parts: Parts) -> None:
    """Takes one forward and backward pass: clipped per-record gradients, not projected."""
    estimator = parts.session.stepper.estimator
    assert isinstance(estimator, FirstOrderEstimator)
    estimator.begin_step()
    for batch in parts.session.stepper.plan.batches(0):
        estimator.clipped_gradients(batch)


def projected(parts: Parts, step: int) -> None:
    """Takes one whole pass: gradients, projections, sums over the subsets."""
    session = parts.session
    total = SubsetSums(
        session.stepper.membership,
        session.header.directions_per_step,
        session.stepper.estimator.bound,
    )
    batches = session.stepper.plan.batches(step)
    for records, contributions in session.stepper.estimator.contributions(step, batches):
        total.add(np.asarray(records, dtype=np.int64), contributions.numpy())


def utilisation(
    take_pass: Callable[[int], None], parts: Parts, operations: float, *, repeats: int
) -> tuple[float, float, float]:
    """Returns median, lowest and highest share of the peak, which is measured around each pass."""
    take_pass(0)  # the first is not counted
    shares = []
    for i in range(repeats):
        before = peak_operations(parts, 2048)
        began = time.perf_counter()
        take_pass(i + 1)
        rate = operations / (time.perf_counter() - began)
        shares.append(rate / max(before, peak_operations(parts, 2048)))
    return statistics.median(shares), min(shares), max(shares)


def first_order(pool: list[Record], folder: object, **changes: object) -> Parts:
    return assemble_run(pool, folder, estimator="first-order", **changes)  # type: ignore[arg-type]


def measure_utilisation(pool: list[Record], repeats: int) -> None:
    for first_layer in (0, 15):
        with scratch() as folder:
            parts = first_order(pool, folder, lora_first_layer=first_layer)
        operations = linear_operations(parts, first_layer)
        if first_layer == 0:
            share = utilisation(lambda _, p=parts: forward(p), parts, operations, repeats=repeats)
            report("forward pass / matmul peak", share, ">= 0.55")
        share = utilisation(
            lambda i, p=parts: projected(p, i), parts, 2 * operations, repeats=repeats
        )
        name = "all blocks" if first_layer == 0 else f"blocks from {first_layer} on"
        report(f"projected step / matmul peak, {name}", share, ">= 0.50")


def measure_profile(pool: list[Record], repeats: int) -> None:
    """Prints where a forward pass spends its time, and how many of its tokens are padding."""
    with scratch() as folder:
        parts = first_order(pool, folder)
    for _ in range(repeats):
        forward(parts)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        forward(parts)
    spent = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    kinds = {"matrix products": "aten::mm", "attention": "aten::_scaled_dot_product"}
    for kind, start in kinds.items():
        share = sum(time for key, time in spent.items() if key.startswith(start))
        print(f"forward pass, share of {kind}: {share / sum(spent.values()):.2f}", flush=True)
    lengths = parts.objective.lengths
    batches = parts.session.stepper.plan.batches(0)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    print(f"tokens that are padding: {1 - sum(lengths) / padded:.3f}", flush=True)


def measure_projection(pool: list[Record], repeats: int) -> None:
    for K in (256, 1024, 4096, 32768):
        with scratch() as folder:
            parts = first_order(pool, folder, lora_first_layer=15, directions_per_step=K)
        projected(parts, 0)
        ratio = paired_ratio(
            lambda i, p=parts: projected(p, i), lambda _, p=parts: gradients(p), repeats=repeats
        )
        report(f"pass with K={K} / pass without projection", ratio, "<= 1.15 at K=1024")


def measure_sizes(pool: list[Record], repeats: int) -> None:
    with scratch() as folder, scratch() as other:
        small = first_order(pool, folder, lora_first_layer=15)
        double = first_order([*pool, *pool], other, lora_first_layer=15)
        for parts in (small, double):
            projected(parts, 0)
        ratio = paired_ratio(
            lambda i: projected(double, i), lambda i: projected(small, i), repeats=repeats
        )
        report("pass at 2 N / pass at N", ratio, "2.0 (linear)")
    with scratch() as folder, scratch() as other:
        wide = first_order(pool, folder, lora_first_layer=15, lora_rank=64)
        many = first_order(pool, other, lora_first_layer=15, num_subsets=4096)
        for parts in (wide, many):
            projected(parts, 0)
        ratio = paired_ratio(
            lambda i: projected(wide, i), lambda i: projected(small, i), repeats=repeats
        )
        report("pass at 8 d / pass at d", ratio, "none stated")
        ratio = paired_ratio(
            lambda i: projected(many, i), lambda i: projected(small, i), repeats=repeats
        )
        report("pass at M=4096 / pass at M=128", ratio, "none stated")


def measure_memory(num_records: int) -> None:
    peak = {}
    for factor in (1, 4):
        command = [sys.executable, __file__, "--memory-of", str(factor * num_records)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peak[factor] = int(output.split()[-1])
    print(f"peak memory at 4 N / at N (N = {num_records}): {peak[4] / peak[1]:.3f}; goal flat")


PARTS = {
    "utilisation": measure_utilisation,
    "profile": measure_profile,
    "projection": measure_projection,
    "sizes": measure_sizes,
}


def main() -> None:
    names = [*PARTS, "memory"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--memory-of", type=int)
    arguments = parser.parse_args()
    if arguments.memory_of:
        with scratch() as folder:
            projected(first_order(movie_reviews(arguments.memory_of), folder), 0)
        print(peak_memory_bytes())
        return
    pool = movie_reviews(arguments.records)
    for part in arguments.parts:
        if part == "memory":
            measure_memory(arguments.records)
        else:
            PARTS[part](pool, arguments.repeats)


if __name__ == "__main__":
    main()
