"""Our causal attention against PyTorch's fused kernel, on a processor, forward and backward.

Run: python benchmarks/attention.py [--lengths 32 64 ...] [--repeats 8]

bfloat16, about 2,048 tokens in records of equal length, one thread, processor time, in turn; ratios
of the shortest times, ours by theirs.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

from sordino.gradients.attention import CausalAttentionMode

NUM_TOKENS = 2048
SHAPES = {"9 heads of 64": (9, 64), "16 heads of 128": (16, 128)}


def seconds(
    inputs: list[torch.Tensor], gradient: torch.Tensor, *, ours: bool
) -> tuple[float, float]:
    """Returns how long the passes take: forward, backward."""
    began = time.process_time()
    with CausalAttentionMode() if ours else torch.enable_grad():
        output = scaled_dot_product_attention(*inputs, is_causal=True)
    between = time.process_time()
    torch.autograd.grad(output, inputs, gradient)
    return between - began, time.process_time() - between


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[32, 64, 128, 192, 256, 512, 740, 1024, 2048]
    )
    parser.add_argument("--repeats", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, (num_heads, width) in SHAPES.items():
        for length in arguments.lengths:
            shape = (max(1, NUM_TOKENS // length), num_heads, length, width)
            made = [torch.randn(shape, dtype=torch.bfloat16) for _ in range(4)]
            inputs = [x.requires_grad_() for x in made[:3]]
            times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
            for _ in range(arguments.repeats):
                for ours, found in times.items():
                    found.append(seconds(inputs, made[3], ours=ours))
            shortest = {
                side: [min(found) for found in zip(*times[side], strict=True)] for side in times
            }
            forward, backward = (
                ours / theirs for ours, theirs in zip(shortest[True], shortest[False], strict=True)
            )
            both = sum(shortest[True]) / sum(shortest[False])
            print(
                f"{name}, {length} tokens: ours / fused {forward:.2f} forward, {backward:.2f} "
                f"backward, {both:.2f} both",
                flush=True,
            )


if __name__ == "__main__":
    main()
