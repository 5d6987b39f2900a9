"""A tiny model, pools of invented snippets, and the command line in this process."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pytest

NOUNS = ("plot", "actor", "song", "ending", "camera", "joke", "script", "hero", "scene", "pace")
GOOD = ("warm", "lovely", "witty", "fresh", "gentle", "bold", "clever", "bright")
BAD = ("dull", "stale", "noisy", "flat", "weak", "grim", "lazy", "muddled")
JOINTS = ("the", "and", "is", "of", "this", "film", "very", "It", "was", "great", "terrible", ".")
CONTEXT_LENGTH = 48

# On 24 `sentiment_rows` the first sign is unanimous and the other two are contested.
SMALL = {
    "num_subsets": 8,
    "num_steps": 3,
    "learning_rate": 0.05,
    "lora_rank": 2,
    "dtype": "float32",
    "device": "cpu",
}

# ordinary fine-tuning on completions
COMPLETIONS = {name: SMALL[name] for name in ("lora_rank", "dtype", "device")} | {
    "guarantee": "none",
    "estimator": "first-order",
    "optimizer": "adamw",
    "objective": "summed-loss",
    "batch_size": 4,
}


def write_tiny_model(folder: Path, **changes: Any) -> Path:
    """Writes a random Llama and its tokenizer in Hugging Face format."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["</s>", "<unk>", *JOINTS, *NOUNS, *GOOD, *BAD]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        model_max_length=CONTEXT_LENGTH,
    )
    settings = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_LENGTH,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    config = LlamaConfig(**(settings | changes))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def snippet(number: int, *, is_good: bool) -> str:
    """Returns an invented snippet; different numbers below 6,400 give different texts."""
    words = GOOD if is_good else BAD
    first, second = NOUNS[number % 10], NOUNS[(number // 10 + number) % 10]
    left, right = words[(number // 10) % 8], words[(number // 80 + number) % 8]
    return f"the {first} is {left} and the {second} of this film is very {right} ."


def sentiment_rows(count: int, *, share_good: float = 0.5, start: int = 0) -> list[dict[str, Any]]:
    """Returns labelled snippets, spread evenly."""
    rows = []
    for i in range(start, start + count):
        is_good = (i * share_good) % 1.0 < share_good
        rows.append({"text": snippet(i, is_good=is_good), "label": int(is_good)})
    return rows


def completion_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Returns prompts with acceptable completions."""
    return [
        {
            "prompt": f"the {NOUNS[i % 10]} of this {NOUNS[i // 10 % 10]} film is",
            "completion": [f"very {GOOD[i % 8]} .", "lovely"],
        }
        for i in range(start, start + count)
    ]


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass(frozen=True, slots=True)
class Shell:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> Shell:
    """Runs the real command line in this process."""
    from sordino.cli import main

    capsys.readouterr()
    before = sys.argv
    sys.argv = ["sordino", *map(str, arguments)]
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = 0 if stop.code is None else int(stop.code)
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return Shell(code, captured.out, captured.err)


def files_below(folder: Path) -> dict[str, bytes]:
    """Returns every file's content by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def environment(**changes: str | None) -> Iterator[None]:
    """Changes environment variables for a while; None removes one."""
    before = {name: os.environ.get(name) for name in changes}
    try:
        for name, value in changes.items():
            _set(name, value)
        yield
    finally:
        for name, value in before.items():
            _set(name, value)


def _set(name: str, value: str | None) -> None:
    """Sets or removes one environment variable."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
