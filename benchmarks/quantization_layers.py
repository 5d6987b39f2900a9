"""What rounding methods lose on layers of SmolLM2 whose own grid is broken first.

Run: OMP_NUM_THREADS=1 python benchmarks/quantization_layers.py [--blocks 3 15]
     [--bits 4 3 2] [--groups row 32 64 128] [--break rotation|perturbation|none]

The embedded model comes from a 4-bit file, so its linear weights lie on a grid already, and any
method that finds that grid again looks perfect. The grid is broken first, by one of:

rotation: a random orthogonal matrix R turns the residual stream, and the gains of the norms go
    into the layers: W diag(g) R for q, k, v, gate and up, R^T W for o and down. The model computes
    the same. The first five then have inputs without large single channels, which is what AWQ
    lives on.
perturbation: Gaussian noise of a tenth of the step of the file's grid (groups of 32) on every
    weight. The grid shines through at 4 bits in groups of 32.

Calibration and held-out inputs come from movie-review sentences (public). Codes lie in
[-2^(bits-1), 2^(bits-1) - 1]. Nearest and GPTQ share their scales: for each group the share of its
range with the smallest squared error of the weights. AWQ and HQQ choose their own. AWQ's input
scales cannot be folded before o_proj here (grouped queries): it gets AWQ's clipping alone.
HQQ(asym) has a zero point, which no shipped file has.

Printed: the relative loss of nearest, tr(E H E^T) / tr(W H W^T), as a geometric mean over layers,
and the other methods' losses as ratios to it. First under the damped Gram matrix that GPTQ
minimizes (1% of the mean diagonal), then without damping on held-out inputs. At the end: in how
many layers GPTQ with min-pivot has a smaller exact (damped) loss than nearest and activation order.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from rotation import make_rotation, rotate_reader, rotate_writer
from sordino.data import embedded_reviews
from sordino.lattices import ORDERS, damp_gram
from sordino.models import choose_compute_dtype, load_model
from sordino.quantization import quantize_rows
from sordino.quantization.awq import awq, output_loss
from sordino.quantization.hqq import hqq, hqq_asymmetric
from sordino.quantization.scales import (
    absmax_scales,
    code_limits,
    dequantize,
    round_weight,
    search_scales,
)

_LENGTH = 512  # tokens of a sequence: sentences one after the other
_INPUTS = {  # layers that share one input, and whether it is the residual stream
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
_NORMS = {"self_attn.q_proj": "input_layernorm", "mlp.gate_proj": "post_attention_layernorm"}
_METHODS = ("absmax", *ORDERS, "awq", "hqq", "hqq-asym")


@dataclass
class Inputs:
    """Gram matrices of one input, for calibration and held out, and its mean magnitudes."""

    grams: list[torch.Tensor]
    magnitudes: torch.Tensor
    num_tokens: int = 0
    transform: torch.Tensor | None = None

    def add(self, inputs: torch.Tensor, part: int) -> None:
        """Adds the inputs of one sequence; part 0 is for calibration."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        if self.transform is not None:
            rows = rows @ self.transform
        self.grams[part] += (rows.T @ rows).double()
        if part == 0:
            self.magnitudes += rows.abs().sum(dim=0).double()
            self.num_tokens += len(rows)


@dataclass
class Case:
    """Layers with one input, their grid broken."""

    name: str
    weights: dict[str, torch.Tensor]
    inputs: Inputs
    is_foldable: bool
    damped: torch.Tensor = field(init=False)
    held_out: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.damped = torch.from_numpy(damp_gram(self.inputs.grams[0].numpy())[0])
        self.held_out = self.inputs.grams[1].float()


def make_cases(blocks: list[int], num_sequences: tuple[int, int], kind: str) -> list[Case]:
    """Returns the layers of the blocks with the Gram matrices of their inputs."""
    loaded = load_model("embedded")
    model, tokenizer = loaded.model, loaded.tokenizer
    text = "\n".join(review.text for review in embedded_reviews())
    ids = torch.tensor(tokenizer(text)["input_ids"])
    sequences = ids[: len(ids) // _LENGTH * _LENGTH].view(-1, _LENGTH)
    # From both ends: no sentence is in both parts.
    parts = (sequences[: num_sequences[0]], sequences[-num_sequences[1] :])
    generator = torch.Generator().manual_seed(0)
    width = model.config.hidden_size
    rotation = make_rotation(width, generator)
    cases, current = [], [0]
    for block in blocks:
        layer = model.model.layers[block]
        for first, names in _INPUTS.items():
            # Copies in float64: the model itself computes in the processor's fastest type.
            weights = {name: layer.get_submodule(name).weight.double() for name in names}
            columns = layer.get_submodule(first).in_features
            transform = None
            if kind == "rotation" and first in _NORMS:
                gains = layer.get_submodule(_NORMS[first]).weight.double()
                weights = {n: rotate_reader(w, gains, rotation) for n, w in weights.items()}
                transform = (rotation / gains[:, None]).float()
            elif kind == "rotation":
                weights = {name: rotate_writer(w, rotation) for name, w in weights.items()}
            elif kind == "perturbation":
                weights = {name: perturb(w, generator) for name, w in weights.items()}
            zeros = [torch.zeros(columns, columns, dtype=torch.float64) for _ in parts]
            inputs = Inputs(zeros, torch.zeros(columns, dtype=torch.float64), transform=transform)
            layer.get_submodule(first).register_forward_pre_hook(
                lambda _, given, inputs=inputs: inputs.add(given[0], current[0])
            )
            cases.append((f"{block}", weights, inputs, first != "self_attn.o_proj"))
    model.model.layers = model.model.layers[: max(blocks) + 1]
    model.to(choose_compute_dtype("auto", "cpu"))
    with torch.no_grad():
        for part, batch in enumerate(parts):
            current[0] = part
            for sequence in batch:
                model.model(input_ids=sequence[None], use_cache=False)
    return [Case(*case) for case in cases]


def perturb(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns the weight plus noise of a tenth of a step of a 4-bit grid in groups of 32."""
    steps = absmax_scales(weight, 4, 32).repeat_interleave(32, dim=1)
    return weight + 0.1 * steps * torch.randn(weight.shape, generator=generator).double()


def losses_of(case: Case, quantized: dict[str, torch.Tensor]) -> list[tuple[float, float]]:
    """Returns each layer's loss under the damped Gram matrix and on held-out inputs."""
    found = []
    for name, weight in case.weights.items():
        error = weight - quantized[name]
        found.append((output_loss(error, case.damped), output_loss(error.float(), case.held_out)))
    return found


def compare(case: Case, bits: int, group_size: int | None) -> dict[str, list[tuple[float, float]]]:
    """Returns the losses of all methods: of each layer, a pair."""
    low, high = code_limits(bits)
    results: dict[str, dict[str, torch.Tensor]] = {m: {} for m in ("nearest", *_METHODS)}
    for name, weight in case.weights.items():
        size = group_size or weight.shape[1]
        scales = search_scales(weight, bits, size)
        results["nearest"][name] = dequantize(round_weight(weight, scales, bits), scales)
        plain = absmax_scales(weight, bits, size)
        results["absmax"][name] = dequantize(round_weight(weight, plain, bits), plain)
        steps = scales.repeat_interleave(size, dim=1).numpy()
        for order in ORDERS:
            codes = quantize_rows(weight.numpy(), case.damped.numpy(), steps, low, high, order)
            results[order][name] = torch.from_numpy(codes * steps)
        codes, fitted = hqq(weight.float(), bits=bits, group_size=size)
        results["hqq"][name] = dequantize(codes, fitted.double())
        results["hqq-asym"][name] = hqq_asymmetric(weight, bits=bits, group_size=size).dequantize()
    magnitudes = case.inputs.magnitudes / case.inputs.num_tokens
    if not case.is_foldable:
        magnitudes = torch.ones_like(magnitudes)
    size = group_size or len(magnitudes)
    weights = [weight.float() for weight in case.weights.values()]
    found = awq(weights, case.damped, magnitudes, bits=bits, group_size=size)
    for name, codes, scales in zip(case.weights, found.codes, found.scales, strict=True):
        shipped = dequantize(codes, scales.double())
        results["awq"][name] = shipped / found.input_scales.double()
    return {method: losses_of(case, quantized) for method, quantized in results.items()}


def geometric_mean(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def print_row(name: str, columns: dict[str, list[float]]) -> None:
    """Prints nearest's relative loss, and the others as ratios to it."""
    line = f"{name:22}{len(columns['nearest']):7}{geometric_mean(columns['nearest']):10.5f}"
    print(line + "".join(f"{geometric_mean(columns[m]):11.3f}" for m in _METHODS), flush=True)


def measure(
    cases: list[Case], bits: int, size: int | None
) -> tuple[list[dict[str, list[float]]], list[int]]:
    """Returns each method's losses over nearest's, damped and held out; layers, and those won."""
    columns: list[dict[str, list[float]]] = [
        {method: [] for method in ("nearest", *_METHODS)} for _ in range(2)
    ]
    wins = [0, 0, 0]
    for case in cases:
        if size is not None and len(case.damped) % size:
            continue  # 576 inputs have no groups of 128
        found = compare(case, bits, size)
        for i, weight in enumerate(case.weights.values()):
            for k, H in enumerate((case.damped, case.held_out)):
                nearest = found["nearest"][i][k]
                columns[k]["nearest"].append(nearest / output_loss(weight.to(H), H))
                for method in _METHODS:
                    columns[k][method].append(found[method][i][k] / nearest)
            ours = found["min-pivot"][i][0]
            wins[0] += 1
            wins[1] += ours < found["nearest"][i][0]
            wins[2] += ours < found["activation"][i][0]
    return columns, wins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=[3, 15])
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--groups", nargs="+", default=["row", "32", "64", "128"])
    parser.add_argument(
        "--break", dest="kind", choices=["rotation", "perturbation", "none"], default="rotation"
    )
    parser.add_argument("--sequences", type=int, nargs=2, default=[32, 8])
    arguments = parser.parse_args()
    began = time.process_time()
    calibration, held_out = arguments.sequences
    cases = make_cases(arguments.blocks, (calibration, held_out), arguments.kind)
    num_layers = sum(len(case.weights) for case in cases)
    print(
        f"SmolLM2-135M, blocks {arguments.blocks}, {num_layers} layers, grid broken by "
        f"{arguments.kind}; {calibration * _LENGTH} tokens of calibration, "
        f"{held_out * _LENGTH} held out; {time.process_time() - began:.0f} s of CPU so far"
    )
    print(f"{'':22}{'layers':>7}{'nearest':>10}" + "".join(f"{m:>11}" for m in _METHODS))
    total = np.zeros(3, dtype=int)
    for bits in arguments.bits:
        for group in arguments.groups:
            columns, wins = measure(cases, bits, None if group == "row" else int(group))
            print_row(f"{bits} bits, {group}", columns[0])
            print_row("    held out", columns[1])
            if wins[1:] != [wins[0], wins[0]]:
                ratios = np.divide(columns[0]["min-pivot"], columns[0]["activation"])
                print(
                    f"    min-pivot below nearest {wins[1]}, below activation {wins[2]}; "
                    f"largest ratio to activation {ratios.max():.4f}"
                )
            total += wins
    print(
        f"GPTQ min-pivot has a smaller exact loss than nearest in {total[1]} of {total[0]} layers "
        f"(over all grids), than activation order in {total[2]}"
    )
    print(f"{time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main()
