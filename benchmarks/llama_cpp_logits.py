"""What llama.cpp computes from our GGUF files: its logits and greedy tokens against ours.

Run: python benchmarks/llama_cpp_logits.py
llama-cpp-python is needed (`pip install sordino[interop]`, which compiles it).

The embedded model's linear layers are rounded to 8 bits in groups of 32, and written twice: as
codes (Q8_0), and as what the codes stand for (F32, one layer excepted). Both files hold the same
numbers and differ in how llama.cpp multiplies with them: with codes it rounds the inputs of each
layer to 8 bits too. Ours computes in float32. Printed: the relative error of each prompt's
logits (norm of the difference by the norm of the logits less their mean), and how many of 16 greedy
tokens are the same before the first other one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sordino.models import load_model
from sordino.quantization.gguf import write_gguf
from sordino.reports.protection import round_layer

PROMPTS = (
    "The film was",
    "Once upon a time there was",
    "The capital of France is",
    "def add(a, b):",
)
BITS, GROUP, NUM_TOKENS = 8, 32, 16


def compare(path: Path, model: Any, tokenizer: Any) -> tuple[list[float], list[int]]:
    """Returns each prompt's relative error of the logits, and its number of equal tokens."""
    from llama_cpp import Llama

    theirs = Llama(str(path), n_ctx=128, n_threads=1, verbose=False, logits_all=True)
    errors, equal = [], []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        if theirs.tokenize(prompt.encode(), add_bos=False) != ids:
            raise SystemExit(f"llama.cpp cuts {prompt!r} into other tokens.")
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double().numpy()
        written = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
        )[0, len(ids) :].tolist()
        theirs.reset()
        theirs.eval(ids)
        difference = np.array(theirs.scores[: len(ids)], dtype=np.float64) - logits
        spread = logits - logits.mean(axis=1, keepdims=True)
        errors.append(float(np.linalg.norm(difference) / np.linalg.norm(spread)))
        tokens = theirs.generate(ids, temp=0.0, repeat_penalty=1.0)
        pairs = zip(written, tokens, strict=False)
        equal.append(next((i for i, (a, b) in enumerate(pairs) if a != b), len(written)))
    theirs.close()
    return errors, equal


def main() -> None:
    torch.set_num_threads(1)
    loaded = load_model("embedded", dtype=torch.float32)
    layers = {}
    for name, module in loaded.model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            layers[name] = round_layer(name, module.weight.detach(), BITS, GROUP)
            module.weight.data.copy_(layers[name].dequantize())
    with tempfile.TemporaryDirectory() as folder:
        for kind, chosen in (("Q8_0", layers), ("F32", dict(list(layers.items())[:1]))):
            path = Path(folder) / f"{kind}.gguf"
            write_gguf(path, loaded.model, chosen, loaded.tokenizer)
            errors, equal = compare(path, loaded.model, loaded.tokenizer)
            print(
                f"{kind}: relative error of logits "
                + ", ".join(f"{error:.4f}" for error in errors)
                + f"; equal tokens of {NUM_TOKENS}: {', '.join(map(str, equal))}",
                flush=True,
            )


if __name__ == "__main__":
    main()
