"""Perplexity of SmolLM2-135M after quantization, on public text, with its own grid broken first.

Run: OMP_NUM_THREADS=1 python benchmarks/quantization_models.py --output FOLDER
     [--rows nearest:4:64 gptq-min-pivot:4:row ...]
     python benchmarks/quantization_models.py --output FOLDER --table

A row is METHOD:BITS:GROUP, with METHOD one of nearest, absmax (nearest on a grid that clips
nothing), hqq, awq, smoothquant, gptq-natural, gptq-activation and gptq-min-pivot, and GROUP a
number of inputs or row. At 3 bits codes lie in [-4, 3]; no file of the library stores them. Results
are added to FOLDER/results.jsonl; rows that are there are left out, and a row that was cut short
goes on behind its last finished block.

The embedded model lies on a 4-bit grid already, so the residual stream is rotated first by a random
orthogonal matrix (see rotation.py), which changes no output; the perplexity of the model as it is
is printed beside it. All linear layers of all 30 blocks are quantized as `sordino quantize` does
it: block by block, each calibrated on the outputs of the quantized ones before it. The embedding
and the output layer stay as they are. Scales are searched (absmax: not; awq and hqq choose
their own), damping is 1%.

Text: the movie-review sentences that ship with the package (public), joined by line breaks and cut
into sequences of 512 tokens: the first 32 are for calibration, the last 8 are scored, every token
but the first of a sequence. The interval is for the ratio of perplexities, from the differences of
the 8 sequences' mean losses (t distribution, 95%).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812

from rotation import rotate_model
from sordino.data import embedded_reviews
from sordino.lattices import ORDERS
from sordino.models import load_model
from sordino.quantization.calibration import CalibrationRun
from sordino.quantization.input_scales import place_folds
from sordino.quantization.methods import METHODS, QuantizationSettings
from sordino.quantization.pipeline import quantize_blocks, select_layers
from sordino.quantization.store import LayerStore

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LENGTH = 512
NUM_CALIBRATION, NUM_SCORED = 32, 8
T_QUANTILE = 2.365  # 97.5%, 7 degrees of freedom
SEED = 0
NAMES = ("absmax", *(m for m in METHODS if m != "gptq"), *(f"gptq-{order}" for order in ORDERS))
DEFAULT_ROWS = [
    f"{name}:{bits}:{group}"
    for bits, group in ((4, "64"), (4, "row"), (2, "64"), (2, "row"))
    for name in ("gptq-min-pivot", "nearest", "gptq-activation", "gptq-natural", "awq", "hqq")
]
UNQUANTIZED = ("unrotated", "rotated")


@dataclass(frozen=True, slots=True)
class Row:
    """How to quantize."""

    method: str
    bits: int
    group: str

    @classmethod
    def read(cls, text: str) -> Row:
        """Reads METHOD:BITS:GROUP."""
        method, bits, group = text.split(":")
        if method not in NAMES:
            raise SystemExit(f"method must be one of {', '.join(NAMES)}, got {method}.")
        return cls(method, int(bits), group)

    @property
    def name(self) -> str:
        """What the row is called."""
        return f"{self.method}:{self.bits}:{self.group}"

    @property
    def settings(self) -> QuantizationSettings:
        """What the pipeline is told."""
        is_gptq = self.method.startswith("gptq-")
        return QuantizationSettings(
            bits=self.bits,
            group_size=None if self.group == "row" else int(self.group),
            method="gptq" if is_gptq else self.method.replace("absmax", "nearest"),
            order=self.method.removeprefix("gptq-") if is_gptq else "natural",
            lattice_reduction="none",
            scales="absmax" if self.method == "absmax" else "searched",
            damping=0.01,
        )


def allow_three_bits() -> None:
    """Lets the pipeline make codes of 3 bits, which no format of the library stores."""
    for name in ("layers", "methods", "scales"):
        import_module(f"sordino.quantization.{name}").QUANTIZED_BITS = (2, 3, 4, 8)


def make_sequences(tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[int]], torch.Tensor]:
    """Returns token lists for calibration, and those that are scored."""
    text = "\n".join(review.text for review in embedded_reviews())
    ids = torch.tensor(tokenizer(text)["input_ids"])
    sequences = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    return sequences[:NUM_CALIBRATION].tolist(), sequences[-NUM_SCORED:]  # from both ends


@torch.no_grad()
def score(model: PreTrainedModel, sequences: torch.Tensor) -> list[float]:
    """Returns the mean loss of each sequence, in nats a token."""
    losses = []
    for sequence in sequences.split(4):
        logits = model(input_ids=sequence, use_cache=False).logits[:, :-1]
        values = F.cross_entropy(
            logits.flatten(0, 1).float(), sequence[:, 1:].flatten(), reduction="none"
        )
        losses += values.view(len(sequence), -1).double().mean(dim=1).tolist()
    return losses


def quantize(
    model: PreTrainedModel, row: Row, calibration: list[list[int]], partial: Path
) -> dict[str, Any]:
    """Quantizes a model in place; returns what is known of its layers' losses."""
    settings = row.settings
    method = METHODS[settings.method]
    layers, _ = select_layers(model, settings)
    run = CalibrationRun(model, calibration, pad_id=0) if method.needs_calibration else None
    store = LayerStore(partial / row.name.replace(":", "-"), {"row": row.name})
    began = time.process_time()
    finished, _ = quantize_blocks(
        layers,
        run,
        settings,
        store,
        folds=place_folds(model, layers) if method.choose_input_scales else None,
        advance=lambda done: print(
            f"{row.name}: block {done}, {time.process_time() - began:.0f} s of CPU", flush=True
        ),
    )
    store.remove()
    certificates = [item.certificate for item in finished.values() if item.certificate]
    if settings.method != "gptq":  # others have no nearest codes on the same grid beside them
        return {}
    ratios = [math.log(c.exact / c.nearest) for c in certificates]
    return {
        "exact_over_nearest": math.exp(sum(ratios) / len(ratios)),  # geometric mean over layers
        "below_nearest": sum(c.exact < c.nearest for c in certificates),
        "layers": len(certificates),
        "applies": sum(c.applies for c in certificates),
    }


class Bench:
    """The model, loaded and rotated once, and its weights as they were."""

    def __init__(self, folder: Path) -> None:
        loaded = load_model("embedded", dtype=torch.float32)
        self.model = loaded.model.requires_grad_(requires_grad=False).eval()
        self.calibration, self.scored = make_sequences(loaded.tokenizer)
        self.partial = folder / "partial"
        self.weights: dict[str, torch.Tensor] = {}

    def measure(self, name: str) -> dict[str, Any]:
        """Returns one row's result."""
        if name == "unrotated":
            return {"row": name, "losses": score(self.model, self.scored), "cpu_s": 0.0}
        if not self.weights:
            rotate_model(self.model, seed=SEED)
            self.weights = {n: p.clone() for n, p in self.model.named_parameters()}
        self.model.load_state_dict(self.weights, strict=False)
        found, began = {}, time.process_time()
        if name not in UNQUANTIZED:
            found = quantize(self.model, Row.read(name), self.calibration, self.partial)
        seconds = time.process_time() - began
        return {"row": name, "losses": score(self.model, self.scored), "cpu_s": seconds, **found}


def print_table(results: dict[str, dict[str, Any]]) -> None:
    """Prints all finished rows."""
    plain = torch.tensor(results["rotated"]["losses"], dtype=torch.float64)
    print("| row | perplexity | / unquantized | layer loss / nearest | below nearest | CPU s |")
    print("|---|---|---|---|---|---|")
    for name, result in results.items():
        losses = torch.tensor(result["losses"], dtype=torch.float64)
        gaps = losses - plain
        ratio = math.exp(gaps.mean())
        spread = T_QUANTILE * float(gaps.std()) / math.sqrt(len(gaps))
        low, high = ratio * math.exp(-spread), ratio * math.exp(spread)
        line = f"| {name} | {math.exp(losses.mean()):.3f} | {ratio:.4f} ({low:.4f} to {high:.4f})"
        if "layers" in result:
            line += f" | {result['exact_over_nearest']:.3f}"
            line += f" | {result['below_nearest']} of {result['layers']}"
        else:
            line += " | | "
        print(f"{line} | {result['cpu_s']:.0f} |")


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the finished rows by name."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {result["row"]: result for result in map(json.loads, lines)}


def add_result(path: Path, result: dict[str, Any]) -> None:
    """Adds a finished row to the file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=DEFAULT_ROWS)
    parser.add_argument("--table", action="store_true", help="print what was measured, and stop")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "results.jsonl"
    results = read_results(path)
    if not arguments.table:
        rows = [Row.read(text).name for text in arguments.rows]  # refused before any work
        todo = [name for name in (*UNQUANTIZED, *rows) if name not in results]
        bench = Bench(arguments.output) if todo else None
        allow_three_bits()
        for name in todo:
            results[name] = bench.measure(name)
            add_result(path, results[name])
            losses = results[name]["losses"]
            print(f"{name}: perplexity {math.exp(sum(losses) / len(losses)):.3f}", flush=True)
    print_table(results)


if __name__ == "__main__":
    main()
