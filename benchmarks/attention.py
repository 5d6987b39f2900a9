"""Our backward pass of causal attention against that of PyTorch's fused kernel, on a processor.

Run: python benchmarks/attention.py [--lengths 32 64 ...] [--repeats 8]

bfloat16, about 2,048 tokens in records of equal length, one thread, processor time, in turn; ratios
of the shortest times, ours by theirs. The forward pass is the same kernel on both sides.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

from sordino.gradients.attention import CausalAttentionMode

NUM_TOKENS = 2048
SHAPES = {"9 heads of 64": (9, 64), "16 heads of 128": (16, 128)}


def backward_seconds(inputs: list[torch.Tensor], gradient: torch.Tensor, *, ours: bool) -> float:
    """Returns how long one backward pass takes."""
    with CausalAttentionMode() if ours else torch.enable_grad():
        output = scaled_dot_product_attention(*inputs, is_causal=True)
    began = time.process_time()
    torch.autograd.grad(output, inputs, gradient)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 64, 128, 192, 256, 512, 740])
    parser.add_argument("--repeats", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, (num_heads, width) in SHAPES.items():
        for length in arguments.lengths:
            shape = (max(1, NUM_TOKENS // length), num_heads, length, width)
            made = [torch.randn(shape, dtype=torch.bfloat16) for _ in range(4)]
            inputs = [x.requires_grad_() for x in made[:3]]
            times: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(arguments.repeats):
                for ours, found in times.items():
                    found.append(backward_seconds(inputs, made[3], ours=ours))
            ratio = min(times[True]) / min(times[False])
            print(f"{name}, {length} tokens: ours / fused {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
