"""Transcripts for tests: headers, symbols, and a file written step by step as a run does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sordino.ledger.transcript import StepSymbols, TranscriptHeader, encode_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ALPHABETS = {"bit": (-1, 1), "trit": (-1, 0, 1)}


def make_header(encoding: str, num_steps: int, directions_per_step: int) -> TranscriptHeader:
    """Returns a header like that of a small run."""
    return TranscriptHeader(
        seed=7,
        encoding=encoding,
        direction_kind="rademacher",
        directions_per_step=directions_per_step,
        num_steps=num_steps,
        learning_rates=tuple(0.1 / (t + 1) for t in range(num_steps)),
        weight_decay=0.0,
        adapter={"kind": "lora", "rank": 2},
        tensors={"a.lora_B.weight": (4, 2), "b.lora_B.weight": (3, 2)},
    )


def draw_symbols(header: TranscriptHeader, seed: int) -> list[StepSymbols]:
    """Returns symbols of every step, drawn with a seed."""
    rng = np.random.default_rng(seed)
    K = header.directions_per_step
    if header.encoding == "value":
        return [
            StepSymbols(rng.integers(-(2**31), 2**31, K).astype(np.int32), float(rng.normal() ** 9))
            for _ in range(header.num_steps)
        ]
    alphabet: NDArray[np.int32] = np.array(ALPHABETS[header.encoding], dtype=np.int32)
    return [StepSymbols(rng.choice(alphabet, K)) for _ in range(header.num_steps)]


def write_stepwise(header: TranscriptHeader, steps: Sequence[StepSymbols]) -> bytes:
    """Returns the file that writing one step after another leaves."""
    content = bytearray(header.to_bytes())
    start = len(content)
    for step, symbols in enumerate(steps):
        last_byte = content[-1] if len(content) > start else 0
        offset, added = encode_step(header, step, symbols, last_byte)
        content[start + offset :] = added
    return bytes(content)


def as_tuples(steps: Sequence[StepSymbols]) -> list[tuple[float, tuple[int, ...]]]:
    """Returns symbols in a form that compares with ==."""
    return [(symbols.unit, tuple(symbols.integers.tolist())) for symbols in steps]
