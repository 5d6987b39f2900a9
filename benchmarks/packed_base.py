"""What a packed 4-bit base model costs in time and saves in memory, in bfloat16 on this machine.

Run: python benchmarks/packed_base.py [--bits 4] [--records 64] [--repeats 3]

Times: forward passes, and clipped per-record gradients of a LoRA adapter on all blocks, over the
same batches, packed over plain, measured in turn. Memory: the bytes of weights as held, packed over
plain, for the linear layers and for the whole model (embeddings stay); and the peak resident memory
of one gradient pass, each in its own process, loading included: layers are packed after loading,
so a saving shows only where the pass needs more than loading does.
The embedded model's linear weights come from a 4-bit file, so nothing here says how much quality
rounding costs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from common import TASK, movie_reviews, paired_ratio, peak_memory_bytes, report
from sordino.gradients.direction_sets import make_direction_set
from sordino.gradients.objectives import LanguageModel
from sordino.gradients.parameters import FlatParameterSpace
from sordino.gradients.projected import FirstOrderEstimator
from sordino.models import PackedLinear, add_lora, load_model, trainable_tensors
from sordino.training.encoding import choose_task, encode_records
from sordino.training.setup import BatchPlan

if TYPE_CHECKING:
    from sordino.data import Record
    from sordino.gradients.objectives import AbstractObjective

_TOKENS_PER_BATCH = 2048


@dataclass(frozen=True)
class Setup:
    """A model with an adapter, and the batches it is measured on."""

    model: LanguageModel
    objective: AbstractObjective
    estimator: FirstOrderEstimator
    batches: list[list[int]]

    def forward(self, _: int) -> None:
        """Takes one forward pass over all batches."""
        with torch.no_grad():
            for batch in self.batches:
                self.objective.losses(self.model, batch)

    def backward(self, _: int) -> None:
        """Takes one forward and backward pass over all batches."""
        for batch in self.batches:
            self.estimator.clipped_gradients(batch)


def prepare(pool: list[Record], bits: int | None) -> Setup:
    loaded = load_model("embedded", dtype=torch.bfloat16, base_bits=bits)
    objective = encode_records(choose_task(TASK, pool), pool, loaded, TASK).objective
    adapted = add_lora(loaded.model, rank=8, alpha=16.0, seed=0)
    tensors = trainable_tensors(adapted)
    adapted.requires_grad_(requires_grad=False)
    sizes = {name: p.numel() for name, p in tensors.items()}
    space = FlatParameterSpace(tensors, make_direction_set("hadamard", 0, sizes, 16))
    model = LanguageModel(adapted.get_base_model(), loaded.tokenizer.pad_token_id, space.rows)
    plan = BatchPlan(objective.lengths, batch_size=None, tokens_per_batch=_TOKENS_PER_BATCH, seed=0)
    estimator = FirstOrderEstimator(model, objective, space, clip=1.0)
    return Setup(model, objective, estimator, plan.batches(0))


def held_bytes(model: torch.nn.Module, *, linear_only: bool) -> int:
    """Returns the bytes of a base model's weights; tied ones and the adapter's are no more."""
    tensors = {}
    for name, module in model.named_modules():
        is_linear = isinstance(module, (torch.nn.Linear, PackedLinear))
        is_block = ".lora_" not in name and name != "lm_head"
        if is_block and (is_linear or not linear_only):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensors[tensor.data_ptr()] = tensor.nbytes
    return sum(tensors.values())


def peak_of_a_pass(num_records: int, bits: int) -> int:
    """Returns the peak memory of a process of its own; bits 16 means a plain base."""
    command = [sys.executable, __file__, "--peak-of", str(bits), "--records", str(num_records)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(output.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, choices=[4, 8], default=4)
    parser.add_argument("--records", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak-of", type=int, choices=[4, 8, 16])
    arguments = parser.parse_args()
    pool = movie_reviews(arguments.records)
    if arguments.peak_of:
        prepare(pool, None if arguments.peak_of == 16 else arguments.peak_of).backward(0)
        print(peak_memory_bytes())
        return
    packed, plain = prepare(pool, arguments.bits), prepare(pool, None)
    for name in ("forward", "backward"):
        ours, theirs = getattr(packed, name), getattr(plain, name)
        ours(0)
        theirs(0)
        what = "forward pass" if name == "forward" else "forward and backward pass"
        ratio = paired_ratio(ours, theirs, repeats=arguments.repeats)
        report(f"{what}, {arguments.bits} bits / bfloat16", ratio, "none stated")
    for linear_only in (True, False):
        ratio = held_bytes(packed.model.causal_lm, linear_only=linear_only) / held_bytes(
            plain.model.causal_lm, linear_only=linear_only
        )
        what = "linear layers" if linear_only else "all weights"
        print(f"bytes of {what}, {arguments.bits} bits / bfloat16: {ratio:.3f}", flush=True)
    peaks = [peak_of_a_pass(arguments.records, bits) for bits in (arguments.bits, 16)]
    print(f"peak memory of a gradient pass, loading included: {peaks[0] / peaks[1]:.3f}")


if __name__ == "__main__":
    main()
