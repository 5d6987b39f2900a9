"""What clipping every unit's gradient costs: a DP-SGD step over a plain step, and peak memory.

Run: python benchmarks/dp_step.py [--quick] [--train lora full] [--batch 4 16 64]
    [--length 64 128 512] [--objective classification completion] [--clipping flat per-layer]
    [--repeats 3] [--accumulate]

Plain is the same losses on the same model in the same compute type, their mean, `backward()`, and
gradients of the trainable tensors only, with the same attention. Ours adds clipped gradients to
float32 sums. Neither adds noise nor moves a weight. Times are of the processor, on one thread, or
on the clock of a GPU where there is one, in turn, A B A B: "time" is the ratio of the shortest,
"time_median" the median of paired ratios. Peak memory, resident (Linux only) or the GPU's, comes
from a process for each, which takes two steps after loading.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common import DEVICE, IS_GPU, machine, stopwatch
from sordino.data.tasks import Example
from sordino.gradients.attention import CausalAttentionMode
from sordino.gradients.clipped import ClippedGradients
from sordino.gradients.objectives import (
    ClassificationObjective,
    CompletionObjective,
    LanguageModel,
)
from sordino.models import add_lora, choose_compute_dtype, load_model, trainable_tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from sordino.gradients.objectives import AbstractObjective

CLIP_NORM = 0.1
GOALS = {"lora": (1.05, 1.10), "full": (1.35, 1.15)}


def make_objective(kind: str, num_records: int, length: int) -> AbstractObjective:
    """Returns records of random tokens, all of one length: no time goes into padding."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(10, 40_000, (num_records, length), generator=generator).tolist()
    if kind == "classification":
        return ClassificationObjective(
            [Example(row, target=i % 2) for i, row in enumerate(rows)], [3, 7]
        )
    return CompletionObjective([Example(row, num_prompt_tokens=length // 2) for row in rows])


def make_model(train: str, dtype: str) -> tuple[LanguageModel, dict[str, torch.nn.Parameter]]:
    """Returns the embedded model and what is trained of it."""
    loaded = load_model("embedded", dtype=choose_compute_dtype(dtype, DEVICE), device=DEVICE)
    if train == "lora":
        adapted = add_lora(loaded.model, rank=8, alpha=16.0, factors="both", seed=0)
        tensors = trainable_tensors(adapted)
        for tensor in tensors.values():  # away from the start, where A has no gradient
            tensor.data += 0.01
        causal_lm = adapted.get_base_model()
    else:
        causal_lm = loaded.model
        tensors = dict(causal_lm.named_parameters())
    causal_lm.requires_grad_(requires_grad=False)
    return LanguageModel(causal_lm, loaded.tokenizer.pad_token_id), tensors


def plain_step(
    model: LanguageModel,
    objective: AbstractObjective,
    tensors: dict[str, Any],
    batch: list[int],
    *,
    accumulate: bool,
) -> Callable[[int], None]:
    """Returns a step that is not private."""
    total = {name: torch.zeros(p.shape, device=DEVICE) for name, p in tensors.items() if accumulate}

    def step(_: int) -> None:
        for tensor in tensors.values():
            tensor.requires_grad_(requires_grad=True)
        with CausalAttentionMode():
            loss = objective.losses(model, batch).mean()
        loss.backward()
        for name, tensor in tensors.items():
            if accumulate and tensor.grad is not None:
                total[name].add_(tensor.grad)
            tensor.requires_grad_(requires_grad=False)
            tensor.grad = None

    return step


def private_step(
    model: LanguageModel,
    objective: AbstractObjective,
    tensors: dict[str, Any],
    batch: list[int],
    clipping: str,
) -> Callable[[int], None]:
    """Returns a step of ours."""
    clipped = ClippedGradients(model, objective, tensors, clip_norm=CLIP_NORM, clipping=clipping)
    total = clipped.zeros()

    def step(_: int) -> None:
        for values in total.values():
            values.zero_()
        clipped.add_batch(total, batch)

    return step


def forget_peak() -> None:
    """Makes this process's peak memory what it takes now."""
    gc.collect()
    if IS_GPU:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """Returns the peak since: allocated on the GPU, or resident."""
    return torch.cuda.max_memory_allocated() if IS_GPU else resident_bytes("VmHWM")


def resident_bytes(field: str) -> int:
    """Returns this process's resident memory (VmRSS) or its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in status if line.startswith(field))


def make_step(arguments: argparse.Namespace, private: bool) -> Callable[[int], None]:
    """Returns a step of the first configuration on a model of its own."""
    train, kind = arguments.train[0], arguments.objective[0]
    batch, length = arguments.batch[0], arguments.length[0]
    model, tensors = make_model(train, arguments.dtype)
    objective = make_objective(kind, batch, length)
    args = (model, objective, tensors, list(range(batch)))
    if private:
        return private_step(*args, arguments.clipping[0])
    return plain_step(*args, accumulate=arguments.accumulate)


def measure_memory(arguments: argparse.Namespace, *settings: object, private: bool) -> int:
    """Returns the peak resident bytes of a process that takes two steps."""
    train, kind, batch, length, clipping = settings
    command = [sys.executable, __file__, "--memory-of", "private" if private else "plain"]
    command += ["--train", train, "--objective", kind, "--batch", batch, "--length", length]
    command += ["--clipping", clipping, "--dtype", arguments.dtype]
    command += ["--accumulate"] if arguments.accumulate else []
    output = subprocess.run(map(str, command), check=True, capture_output=True, text=True).stdout
    return int(output.split()[-1])


def measure(arguments: argparse.Namespace, *settings: Any) -> None:
    """Prints the ratios of one configuration."""
    train, kind, batch, length, clipping = settings
    model, tensors = make_model(train, arguments.dtype)
    objective = make_objective(kind, batch, length)
    args = (model, objective, tensors, list(range(batch)))
    plain_one = plain_step(*args, accumulate=arguments.accumulate)
    steps = (private_step(*args, clipping), plain_one)
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(arguments.repeats + 1):
        for step, spent in zip(steps, times, strict=True):
            gc.collect()
            began = stopwatch()  # one thread: other load on the machine counts less
            step(repeat)
            if repeat:
                spent.append(stopwatch() - began)
    ours, plain = min(times[0]), min(times[1])
    paired = statistics.median(a / b for a, b in zip(*times, strict=True))
    line = {
        "machine": machine(),
        "train": train,
        "objective": kind,
        "batch": batch,
        "length": length,
        "clipping": clipping,
        "seconds": round(ours, 3),
        "time": round(ours / plain, 3),
        "time_median": round(paired, 3),
        "time_goal": GOALS[train][0],
    }
    if not arguments.no_memory:
        del model, tensors, steps, args, plain_one
        gc.collect()
        peaks = [measure_memory(arguments, *settings, private=p) for p in (True, False)]
        line |= {
            "peak_MiB": round(peaks[0] / 2**20),
            "memory": round(peaks[0] / peaks[1], 3),
            "memory_goal": GOALS[train][1],
        }
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="batch 8, lengths 64 and 256")
    parser.add_argument("--train", nargs="+", choices=["lora", "full"], default=["lora", "full"])
    parser.add_argument("--batch", nargs="+", type=int, default=[4, 16, 64])
    parser.add_argument("--length", nargs="+", type=int, default=[64, 128, 512])
    parser.add_argument("--objective", nargs="+", default=["classification", "completion"])
    parser.add_argument("--clipping", nargs="+", default=["flat"])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--accumulate", action="store_true", help="float32 sums in plain, too")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", choices=["private", "plain"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        step = make_step(arguments, arguments.memory_of == "private")
        forget_peak()
        step(0)
        step(1)
        print(peak_bytes())
        return
    if arguments.quick:
        arguments.batch, arguments.length = [8], [64, 256]
    for train in arguments.train:
        for kind in arguments.objective:
            for batch in arguments.batch:
                for length in arguments.length:
                    for clipping in arguments.clipping:
                        measure(arguments, train, kind, batch, length, clipping)


if __name__ == "__main__":
    main()
