"""What rules for the bits of each layer lose at equal bytes, on layers of SmolLM2.

Run: OMP_NUM_THREADS=1 python benchmarks/quantization_allocation.py [--blocks 0 4]
     [--mean-bits 3 4 6] [--group 64]

The embedded model's weights lie on a 4-bit grid in groups of 32; normal noise of a tenth of that
grid's step on every weight breaks it, and groups are wider. Inputs are those of the unquantized
model on movie-review sentences (public). A layer gets 2, 4 or 8 bits; the budget is the bytes that
the mean number of bits needs. Rules:

certificate: the least sum of relative losses of nearest codes, what `sordino quantize` uses;
predicted: the same with the loss that the certificate predicts before rounding;
kurtosis, sensitivity: KurtBoost and SensiBoost; random: five public seeds.

Printed: the sum over layers of GPTQ's exact loss as a share of the layer's output energy, with the
bits that the rule chose; smaller is better.
"""

from __future__ import annotations

import argparse
import time

import torch

from sordino.data import embedded_reviews
from sordino.models import load_model
from sordino.quantization.allocation import allocate
from sordino.quantization.awq import output_loss
from sordino.quantization.bit_choice import (
    BitBudget,
    LayerLosses,
    choose_bits,
    num_bytes,
)
from sordino.quantization.blocked_gptq import damped_geometry
from sordino.quantization.calibration import CalibrationRun
from sordino.quantization.certificate import certify_problem
from sordino.quantization.methods import METHODS, QuantizationSettings
from sordino.quantization.pipeline import matrix_of, select_layers
from sordino.quantization.scales import absmax_scales, code_limits, spread_scales

CHOICES = (2, 4, 8)
_LENGTH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--mean-bits", type=float, nargs="+", default=[3.0, 4.0, 6.0])
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=8)
    arguments = parser.parse_args()
    began = time.process_time()
    loaded = load_model("embedded")
    model = loaded.model
    text = "\n".join(review.text for review in embedded_reviews())
    ids = loaded.tokenizer(text)["input_ids"]
    sequences = [ids[i * _LENGTH : (i + 1) * _LENGTH] for i in range(arguments.sequences)]
    settings = make_settings(arguments.group)
    layers, _ = select_layers(model, settings)
    generator = torch.Generator().manual_seed(0)
    for block in layers:
        for module in block.values():
            weight = module.weight.data
            step = absmax_scales(weight, 4, 32).repeat_interleave(32, dim=1)
            weight += 0.1 * step * torch.randn(weight.shape, generator=generator)
    run = CalibrationRun(model, sequences, pad_id=0)
    weights, nearest, own, predicted = measure(layers, run, arguments.blocks, settings)
    print(f"{len(weights)} layers, {time.process_time() - began:.0f} s")
    for mean_bits in arguments.mean_bits:
        budget = sum(
            int(w.numel() * mean_bits / 8) + num_bytes(w.shape, 8, settings) - w.numel()
            for w in weights.values()
        )
        results = {}
        for rule in ("certificate", "kurtosis", "sensitivity"):
            plan = BitBudget(budget_bytes=budget, allocation=rule, choices=CHOICES)
            results[rule] = choose_bits(weights, settings, plan, nearest, run.num_tokens)
        sizes = [[num_bytes(w.shape, b, settings) for b in CHOICES] for w in weights.values()]
        chosen = allocate([predicted[n].shares for n in weights], sizes, budget)
        results["predicted"] = dict(zip(weights, (CHOICES[i] for i in chosen), strict=True))
        for seed in range(5):
            plan = BitBudget(budget_bytes=budget, allocation="random", choices=CHOICES, seed=seed)
            results[f"random {seed}"] = choose_bits(weights, settings, plan)
        for rule, bits in results.items():
            loss = sum(own[n].shares[CHOICES.index(b)] for n, b in bits.items())
            spent = sum(num_bytes(weights[n].shape, b, settings) for n, b in bits.items())
            print(f"mean bits {mean_bits:g}  {rule:12} {loss:.5f}  {spent / budget:.3f} of budget")
    print(f"{time.process_time() - began:.0f} s")


def measure(
    layers: list[dict[str, torch.nn.Module]],
    run: CalibrationRun,
    blocks: list[int],
    settings: QuantizationSettings,
) -> tuple[dict[str, torch.Tensor], *tuple[dict[str, LayerLosses], ...]]:
    """Returns weights, and losses of nearest and GPTQ codes, and predicted ones."""
    weights, own, predicted = {}, {}, {}
    nearest: dict[str, LayerLosses] = {}
    for number, block in enumerate(layers):
        if number in blocks:
            groups = run.shared_inputs(number, block)
            sums = run.input_sums(number, {names[0]: block[names[0]] for names in groups})
            for names in groups:
                geometry = damped_geometry(sums[names[0]].gram, "min-pivot", settings.damping)
                gram = torch.from_numpy(geometry.gram)
                for name in names:
                    weight = matrix_of(block[name]).float()
                    weights[name] = weight
                    energy = output_loss(weight.double(), gram)
                    rows = {"nearest": [], "exact": [], "predicted": []}
                    for bits in CHOICES:
                        low, high = code_limits(bits)
                        at = make_settings(settings.group_size, bits)
                        codes, scales = METHODS["gptq"].round(weight, geometry, at)
                        found = certify_problem(
                            geometry.problem(
                                weight.numpy(), spread_scales(scales, at.group_size), low, high
                            ),
                            geometry.columns,
                            geometry.factor,
                            codes.numpy(),
                            order="min-pivot",
                            damping=geometry.damping,
                        )
                        for kind, losses in rows.items():
                            losses.append(getattr(found, kind))
                    nearest[name] = LayerLosses(tuple(rows["nearest"]), energy)
                    own[name] = LayerLosses(tuple(rows["exact"]), energy)
                    predicted[name] = LayerLosses(tuple(rows["predicted"]), energy)
        if number >= max(blocks):
            break
        run.advance(number)
    return weights, nearest, own, predicted


def make_settings(group_size: int, bits: int = 4) -> QuantizationSettings:
    """Returns the settings of `sordino quantize` with this group size."""
    return QuantizationSettings(
        bits=bits,
        group_size=group_size,
        method="gptq",
        order="min-pivot",
        lattice_reduction="none",
        scales="searched",
        damping=0.01,
    )


if __name__ == "__main__":
    main()
