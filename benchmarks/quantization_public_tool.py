"""Time and memory of GPTQ for SmolLM2-135M against llm-compressor: 4 bits, groups of 64.

Run: OMP_NUM_THREADS=1 python benchmarks/quantization_public_tool.py --tool-python TOOL/bin/python
     --work FOLDER [--blocks 30] [--texts 128] [--sentences 1] [--repeats 1] [--score]

llm-compressor is no dependency of the project, and wants another transformers. Install it into an
environment of its own with the same torch: python -m venv TOOL; TOOL/bin/pip install torch==2.13.0
llmcompressor==0.14.0.1.

Both sides read the same folder (float32; residual stream rotated, see rotation.py) and the same
calibration texts, in the same tokens, and write a compressed-tensors folder. Each runs in processes
of its own, on one thread, in turn; neither sees a network. Both quantize block after block on the
outputs of quantized blocks, with symmetric grids and 1% damping. Sordino runs its defaults (order
min-pivot, searched scales, a certificate for every layer), the tool its own (activation order with
static groups, scales of the largest weight, one text at a time).

Processor seconds are counted twice: of quantizing and writing, with the model's loading, and of the
whole process. Memory is the process's peak, libraries included. With --blocks the model is cut to
its first blocks, and what they cost is to be scaled up by the reader. --score prints the perplexity
of both results as in quantization_models.py (for whole models); --side score does so afterwards.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_SIDES = ("sordino", "tool")
_LENGTH = 512


def prepare(work: Path, num_blocks: int, num_texts: int, num_sentences: int) -> None:
    """Writes the model, the texts and their tokens."""
    import torch

    from rotation import rotate_model
    from sordino.data import embedded_reviews
    from sordino.models import load_model
    from sordino.quantization.calibration import encode_calibration

    work.mkdir(parents=True, exist_ok=True)
    loaded = load_model("embedded", dtype=torch.float32)
    rotate_model(loaded.model, seed=0)
    loaded.model.model.layers = loaded.model.model.layers[:num_blocks]
    loaded.model.config.num_hidden_layers = num_blocks
    loaded.model.save_pretrained(work / "model")
    loaded.tokenizer.save_pretrained(work / "model")
    sentences = [review.text for review in embedded_reviews()[: num_texts * num_sentences]]
    texts = [" ".join(sentences[i::num_texts]) for i in range(num_texts)]
    (work / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    tokens = encode_calibration(
        texts, loaded.tokenizer, num_sequences=num_texts, max_length=_LENGTH
    )
    (work / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")


def run_sordino(work: Path) -> None:
    """Quantizes with `sordino.quantize`."""
    import sordino

    sordino.quantize(
        str(work / "model"),
        output=work / "sordino",
        calibration=str(work / "texts.txt"),
        calibration_is_public=True,
        calibration_sequences=10**6,
        calibration_length=_LENGTH,
    )


def run_tool(work: Path) -> None:
    """Quantizes with llm-compressor."""
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    tokens = json.loads((work / "tokens.json").read_text(encoding="utf-8"))
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in tokens]
    weights = QuantizationArgs(
        num_bits=4, type="int", symmetric=True, strategy="group", group_size=64
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    recipe = GPTQModifier(config_groups={"all": scheme}, ignore=["lm_head"], dampening_frac=0.01)
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_list(rows),
        recipe=recipe,
        max_seq_length=_LENGTH,
        num_calibration_samples=len(rows),
    )
    model.save_pretrained(work / "tool", save_compressed=True)
    tokenizer.save_pretrained(work / "tool")


def run_side(side: str, work: Path) -> None:
    """Runs one side in this process and prints what it took."""
    import torch

    torch.set_num_threads(1)
    # Libraries are counted with the process, not with the work.
    names = ("llmcompressor.modifiers.gptq",) if side == "tool" else ("sordino.reports.quantize",)
    for name in ("transformers.models.llama.modeling_llama", *names):
        importlib.import_module(name)
    began = time.process_time()
    (run_tool if side == "tool" else run_sordino)(work)
    now = time.process_time()
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    others = children.ru_utime + children.ru_stime
    took = {"work": now - began + others, "process": now + others, "memory": own.ru_maxrss / 1024}
    print(json.dumps(took))


def start_side(side: str, python: str, work: Path) -> dict[str, Any]:
    """Runs one side in a process of its own; returns what it took."""
    shutil.rmtree(work / side, ignore_errors=True)
    shutil.rmtree(work / f"{side}.partial", ignore_errors=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if side == "tool":
        environment.pop("PYTHONPATH", None)
    log = work / f"{side}.log"
    with log.open("w") as file:
        done = subprocess.run(
            [python, __file__, "--side", side, "--work", work],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{side} failed: {log.read_text()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{side}: {found['work']:.1f} s of CPU, {found['process']:.1f} s with imports, "
        f"peak {found['memory']:.0f} MiB",
        flush=True,
    )
    return found


def print_scores(work: Path) -> None:
    """Prints the perplexity of the model and of both results."""
    import math

    import torch

    from quantization_models import make_sequences, score
    from sordino.models import load_model

    for name in ("model", *_SIDES):
        loaded = load_model(str(work / name), dtype=torch.float32)
        losses = score(loaded.model, make_sequences(loaded.tokenizer)[1])
        print(f"perplexity, {name}: {math.exp(statistics.fmean(losses)):.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tool-python", help="interpreter of the tool's environment")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--sentences", type=int, default=1, help="of a text")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--score", action="store_true")
    parser.add_argument("--side", choices=("prepare", *_SIDES, "score"))
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    if arguments.side == "prepare":
        prepare(work, arguments.blocks, arguments.texts, arguments.sentences)
        return
    if arguments.side == "score":
        print_scores(work)
        return
    if arguments.side:
        run_side(arguments.side, work)
        return
    # In a process of its own: a child's peak memory starts at that of its parent.
    subprocess.run([sys.executable, *sys.argv, "--side", "prepare"], check=True)
    tokens = json.loads((work / "tokens.json").read_text(encoding="utf-8"))
    num_tokens = sum(map(len, tokens))
    print(
        f"SmolLM2-135M, {arguments.blocks} blocks, 4 bits, groups of 64; {arguments.texts} texts, "
        f"{num_tokens} tokens",
        flush=True,
    )
    pythons = {"sordino": sys.executable, "tool": arguments.tool_python}
    pairs = [
        {side: start_side(side, pythons[side], work) for side in _SIDES}
        for _ in range(arguments.repeats)
    ]
    for key, words in (
        ("work", "CPU seconds of loading, quantizing and writing"),
        ("process", "CPU seconds of the whole process"),
        ("memory", "peak memory"),
    ):
        ratios = [pair["sordino"][key] / pair["tool"][key] for pair in pairs]
        print(
            f"{words}, ours / the tool's: {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}); goal <= 1"
        )
    if arguments.score:
        print_scores(work)


if __name__ == "__main__":
    main()
