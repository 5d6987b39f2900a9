"""Our DP-SGD step against Opacus 1.6 and against a step that is not private: time and memory.

Run: python benchmarks/dp_step_opacus.py [--mode lora full-untied full] [--case 4x64 16x64 ...]
    [--dtype auto] [--repeats 2] [--check]

Opacus is no dependency of the project. Install it beside the project into an environment of its
own, with the same torch: pip install torch==2.13.0, then pip install -c constraints.txt
"opacus==1.6.*". The modes are

lora: rank 8, query and value, A and B. Opacus with ghost clipping.
full-untied: all parameters, the output embedding a matrix of its own. Opacus with ghost clipping.
full: all parameters of the model as it is. Opacus' ghost clipping refuses the tied embedding, so
    this is its GradSampleModule, which forms every record's whole gradient.

All three sides run the same model, compute type, attention kernel and tokens, on one thread, and
the mean loss over the second half of each record's tokens; none adds noise or moves a weight. Ours
ends with float32 sums, the others with gradients in the model's type. Times are of the processor,
or on the clock of a GPU where there is one, in turn A B C A B C, each side on a model of its own;
ratios are of the shortest, medians of paired ratios in brackets. Memory is what one step takes, in
a process per side, above what the loaded model takes (resident, Linux only; the GPU's in one
process), the sums or gradients included; in brackets the ratio of all memory.
`--memory-of SIDE --mode full --case 16x64 --dtype float32 --with-optimizer` prints it in bytes for
a second step of full-weight training with AdamW, whose state lies in memory then.
`--check` compares the clipped sums in float32, and the norm of what one record adds in bfloat16.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812

from common import DEVICE, IS_GPU, machine, stopwatch
from dp_step import forget_peak, make_model, peak_bytes, resident_bytes
from sordino.data.tasks import Example
from sordino.gradients.attention import CausalAttentionMode
from sordino.gradients.clipped import ClippedGradients
from sordino.gradients.objectives import CompletionObjective

if TYPE_CHECKING:
    from collections.abc import Callable

MODES = ("lora", "full-untied", "full")
SIDES = ("ours", "plain", "opacus")
CLIP_NORM = 0.1


class Setting:
    """A model, what is trained of it, and a batch of random tokens."""

    def __init__(self, mode: str, num_records: int, length: int, dtype: str) -> None:
        self.mode = mode
        self.model, self.tensors = make_model(mode.removesuffix("-untied"), dtype)
        if mode == "full-untied":
            self._untie()
        self.set_batch(num_records, length)

    def set_batch(self, num_records: int, length: int) -> None:
        """Takes another batch."""
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(10, 40_000, (num_records, length), generator=generator)
        self.tokens = tokens.to(DEVICE)
        self.num_prompt_tokens = length // 2

    def _untie(self) -> None:
        causal_lm = self.model.causal_lm
        head = causal_lm.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        self.tensors = dict(causal_lm.named_parameters())

    @property
    def objective(self) -> CompletionObjective:
        """The losses as the project computes them."""
        return CompletionObjective(
            [Example(row, num_prompt_tokens=self.num_prompt_tokens) for row in self.tokens.tolist()]
        )

    @property
    def batch(self) -> list[int]:
        """All records."""
        return list(range(len(self.tokens)))

    def batch_first_losses(self) -> torch.Tensor:
        """Returns the same losses with records first at the head too, which Opacus needs."""
        states = self.model.last_hidden_state(self.tokens)[:, self.num_prompt_tokens - 1 : -1]
        states = states.contiguous()  # else torch copies the head's weight for every record
        logits = self.model.causal_lm.get_output_embeddings()(states).float()
        targets = self.tokens[:, self.num_prompt_tokens :]
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view(targets.shape).mean(dim=1)


# What each side's step returns: the gradients by name, for the check.
def ours(setting: Setting) -> Callable[[], dict[str, Any]]:
    """Returns a step of ours."""
    clipped = ClippedGradients(
        setting.model, setting.objective, setting.tensors, clip_norm=CLIP_NORM
    )
    total = clipped.zeros()

    def step() -> dict[str, Any]:
        for values in total.values():
            values.zero_()
        clipped.add_batch(total, setting.batch)
        return total

    return step


def plain(setting: Setting) -> Callable[[], dict[str, Any]]:
    """Returns a step that is not private."""
    objective = setting.objective
    for tensor in setting.tensors.values():
        tensor.requires_grad_(requires_grad=True)

    def step() -> dict[str, Any]:
        for tensor in setting.tensors.values():
            tensor.grad = None
        with CausalAttentionMode():
            loss = objective.losses(setting.model, setting.batch).sum()
        loss.backward()
        return {name: tensor.grad for name, tensor in setting.tensors.items()}

    return step


class _PerRecordLosses:
    """Losses as a criterion of Opacus; the attention's forward pass is the same on all sides."""

    reduction = "sum"

    def __call__(self, setting: Setting) -> torch.Tensor:
        with CausalAttentionMode():
            return setting.batch_first_losses()


def opacus(setting: Setting) -> Callable[[], dict[str, Any]]:
    """Returns a step of Opacus, up to the clipped sums."""
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    tensors = setting.tensors
    for tensor in tensors.values():
        tensor.requires_grad_(requires_grad=True)
    setting.model.causal_lm.train()  # its hooks see nothing otherwise; there is no dropout
    is_ghost = setting.mode != "full"
    options: dict[str, Any] = {
        "optimizer": torch.optim.SGD(tensors.values(), lr=0.0),
        "noise_multiplier": 0.0,
        "max_grad_norm": CLIP_NORM,
        "expected_batch_size": len(setting.tokens),
        "loss_reduction": "sum",
    }
    causal_lm, losses = setting.model.causal_lm, _PerRecordLosses()
    if is_ghost:
        module = GradSampleModuleFastGradientClipping(
            causal_lm, loss_reduction="sum", max_grad_norm=CLIP_NORM
        )
        optimizer = DPOptimizerFastGradientClipping(**options)
        criterion = DPLossFastGradientClipping(module, optimizer, losses, "sum")
    else:
        module = GradSampleModule(causal_lm, loss_reduction="sum")
        optimizer = DPOptimizer(**options)

    def step() -> dict[str, Any]:
        optimizer.zero_grad(set_to_none=True)
        if is_ghost:
            criterion(setting).backward()
            return {name: tensor.grad for name, tensor in tensors.items()}
        losses(setting).sum().backward()
        optimizer.clip_and_accumulate()
        return {name: tensor.summed_grad for name, tensor in tensors.items()}

    return step


MAKERS = {"ours": ours, "plain": plain, "opacus": opacus}


def memory_of(side: str, setting: Setting, *, with_optimizer: bool) -> None:
    """Prints what this process takes for one step above what it takes now, its sums included."""
    import opacus  # noqa: F401  # on all sides, so that the library itself does not count

    forget_peak()
    before = torch.cuda.memory_allocated() if IS_GPU else resident_bytes("VmRSS")
    gradients = MAKERS[side](setting)()
    if with_optimizer:
        optimizer = torch.optim.AdamW(setting.tensors.values(), lr=0.0, foreach=False)
        for name, tensor in setting.tensors.items():
            tensor.grad = gradients[name]
        optimizer.step()
        # its state lies there already when later steps begin
        step = MAKERS[side](setting)
        del gradients
        step()
    print(peak_bytes() - before, before)


def measure_memory(side: str, loaded: Setting, case: str, dtype: str) -> tuple[float, float]:
    """Returns MiB above what was loaded, and what was loaded.

    Resident memory is that of a process of its own; a GPU's is counted by torch.
    """
    if IS_GPU:
        setting = copy.deepcopy(loaded)
        forget_peak()
        before = torch.cuda.memory_allocated()
        MAKERS[side](setting)()
        held = sum(p.numel() * p.element_size() for p in loaded.model.causal_lm.parameters())
        return (peak_bytes() - before) / 2**20, held / 2**20
    mode = loaded.mode
    command = [sys.executable, __file__, "--memory-of", side, "--mode", mode, "--case", case]
    command += ["--dtype", dtype]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    above, before = output.split()[-2:]
    return int(above) / 2**20, int(before) / 2**20


def measure(loaded: Setting, case: str, arguments: argparse.Namespace) -> None:
    """Prints one row of the table."""
    mode, num_records, length = loaded.mode, *map(int, case.split("x"))
    loaded.set_batch(num_records, length)
    steps = {side: MAKERS[side](copy.deepcopy(loaded)) for side in SIDES}
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for repeat in range(arguments.repeats + 1):
        for side, step in steps.items():
            gc.collect()
            began = stopwatch()  # one thread: other load on the machine counts less
            step()
            if repeat:
                times[side].append(stopwatch() - began)
    del steps, step
    gc.collect()
    memory = {s: measure_memory(s, loaded, case, arguments.dtype) for s in SIDES}
    cells = [mode, str(num_records), str(length)]
    for other in ("plain", "opacus"):
        paired = zip(times["ours"], times[other], strict=True)
        middle = statistics.median(a / b for a, b in paired)
        cells.append(f"{min(times['ours']) / min(times[other]):.2f} ({middle:.2f})")
    for other in ("plain", "opacus"):
        total = sum(memory["ours"]) / sum(memory[other])
        cells.append(f"{memory['ours'][0] / memory[other][0]:.2f} ({total:.2f})")
    cells.append(" / ".join(f"{min(times[s]):.2f}" for s in SIDES))
    cells.append(" / ".join(f"{memory[s][0]:.0f}" for s in SIDES))
    print("| " + " | ".join(cells) + " |", flush=True)


def check(mode: str) -> None:
    """Prints how far the two clipped sums are apart in float32, and norms in the compute type."""
    found = {s: MAKERS[s](Setting(mode, 3, 48, "float32"))() for s in ("ours", "opacus")}
    squares = {"difference": 0.0, "ours": 0.0}
    for name, values in found["ours"].items():
        squares["difference"] += float((values - found["opacus"][name]).double().square().sum())
        squares["ours"] += float(values.double().square().sum())
    error = (squares["difference"] / squares["ours"]) ** 0.5
    print(f"{mode}: relative difference of clipped sums, float32: {error:.1e}", flush=True)
    for side in ("ours", "opacus"):
        alone = MAKERS[side](Setting(mode, 1, 48, "bfloat16"))()
        norm = sum(float(v.double().square().sum()) for v in alone.values()) ** 0.5
        print(
            f"{mode}: norm of one record's part / clip_norm, bfloat16, {side}: "
            f"{norm / CLIP_NORM:.5f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--case", nargs="+", default=["4x64", "16x64", "4x256", "16x256"])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--memory-of", choices=SIDES)
    parser.add_argument("--with-optimizer", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        num_records, length = map(int, arguments.case[0].split("x"))
        setting = Setting(arguments.mode[0], num_records, length, arguments.dtype)
        memory_of(arguments.memory_of, setting, with_optimizer=arguments.with_optimizer)
        return
    if arguments.check:
        for mode in arguments.mode:
            check(mode)
        return
    print(machine())
    print(
        "| mode | batch | length | time: ours/plain | ours/Opacus | memory above the loaded "
        "model (in all): ours/plain | ours/Opacus | s: ours / plain / Opacus | MiB: same |"
    )
    print("|---" * 9 + "|")
    for mode in arguments.mode:
        loaded = Setting(mode, 1, 2, arguments.dtype)
        for case in arguments.case:
            try:
                measure(loaded, case, arguments)
            except torch.OutOfMemoryError as error:
                print(f"| {mode} | {case} | {str(error).splitlines()[0]} |", flush=True)


if __name__ == "__main__":
    main()
