"""Tokens a second of generation from a 4-bit base: packed, unpacked each time, and plain bfloat16.

All three hold the same weights: SmolLM2's own 4-bit grid in groups of 32, symmetric. Each generates
the same number of greedy tokens from the same prompt with a cache of keys and values, in turn, in
one process. Run with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

from sordino.models import PackedLinear, load_model, pack_base, packed_linear, unpack_base

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPT = "Once upon a time, in a small town by the sea, there lived"


def generate(model: Any, ids: torch.Tensor, num_tokens: int) -> tuple[list[int], float]:
    """Returns the tokens made, and how many a second after the first one."""
    with torch.no_grad():
        found = model(ids, use_cache=True)
        made = [int(found.logits[0, -1].argmax())]
        began = time.perf_counter()
        while len(made) < num_tokens:
            found = model(
                torch.tensor([[made[-1]]]), past_key_values=found.past_key_values, use_cache=True
            )
            made.append(int(found.logits[0, -1].argmax()))
    return made, (num_tokens - 1) / (time.perf_counter() - began)


def without_operator(run: Callable[[], Any]) -> Any:
    """Runs with weights unpacked for every token."""
    asks = packed_linear.is_one_token
    packed_linear.is_one_token = lambda _: False
    try:
        return run()
    finally:
        packed_linear.is_one_token = asks


def logits(model: Any, ids: torch.Tensor, made: list[int]) -> torch.Tensor:
    """Returns the scores of every next token when all are read one by one."""
    rows, cache = [], None
    with torch.no_grad():
        for number in [*ids[0].tolist(), *made]:
            found = model(torch.tensor([[number]]), past_key_values=cache, use_cache=True)
            cache = found.past_key_values
            rows.append(found.logits[0, -1].float())
    return torch.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    loaded = load_model(arguments.model, dtype=torch.bfloat16)
    packed = pack_base(loaded.model, is_symmetric=True)
    plain = pack_base(load_model(arguments.model, dtype=torch.bfloat16).model, is_symmetric=True)
    unpack_base(plain)
    ids = loaded.tokenizer(PROMPT, return_tensors="pt").input_ids
    runs: dict[str, Callable[[], tuple[list[int], float]]] = {
        "packed": lambda: generate(packed, ids, arguments.tokens),
        "unpacked for each token": lambda: without_operator(
            lambda: generate(packed, ids, arguments.tokens)
        ),
        "plain bfloat16": lambda: generate(plain, ids, arguments.tokens),
    }
    made = {name: run()[0] for name, run in runs.items()}  # also the warm-up
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.repeats):
        for name, run in runs.items():
            rates[name].append(run()[1])
    for name, found in rates.items():
        print(f"{name}: {statistics.median(found):.1f} tokens a second", flush=True)
    for name in list(runs)[1:]:
        ratios = [ours / other for ours, other in zip(rates["packed"], rates[name], strict=True)]
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(f"packed / {name}: {middle:.2f} ({low:.2f} to {high:.2f})")
    layers = [m for m in packed.modules() if isinstance(m, PackedLinear)]
    held = sum(b.nbytes for m in layers for b in m.buffers())
    copies = sum(
        w.tiles.nbytes + w.scales_and_offsets.nbytes
        for w in (m._one_token for m in layers)  # noqa: SLF001
        if w is not None
    )
    size = sum(m.in_features * m.out_features for m in layers)
    print(
        f"bytes a weight: {held / size:.3f}, with the copy for single tokens "
        f"{(held + copies) / size:.3f}, plain 2"
    )
    same = sum(a == b for a, b in zip(made["packed"], made["plain bfloat16"], strict=True))
    print(f"greedy tokens equal to those of plain bfloat16: {same} of {arguments.tokens}")
    text = made["plain bfloat16"]
    ours, theirs = logits(packed, ids, text), logits(plain, ids, text)
    exact = logits(plain.float(), ids, text)
    for name, found in (("packed", ours), ("plain bfloat16", theirs)):
        error = (found - exact).pow(2).mean().sqrt() / exact.std()
        print(f"error of the logits of {name} against float32, relative: {float(error):.4f}")


if __name__ == "__main__":
    main()
