"""Noise from the secret stream against torch's own normal numbers.

Run: python benchmarks/noise.py [--numbers 16000000]

`torch.randn` gives float32 numbers from a generator that is not cryptographic; ours are float64,
from ChaCha20, added to a float32 tensor and rounded once. Times are of the processor, on one
thread, so that other programs on the machine do not count.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import torch

from sordino.core.secret_stream import SecretStream
from sordino.mechanisms.noise import add_noise, standard_normals

if TYPE_CHECKING:
    from collections.abc import Callable

REPEATS = 3


def millions_a_second(draw: Callable[[], object], count: int) -> float:
    draw()
    best = float("inf")
    for _ in range(REPEATS):
        start = time.process_time()
        draw()
        best = min(best, time.process_time() - start)
    return count / best / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numbers", type=int, default=16_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count = arguments.numbers
    stream = SecretStream.from_operating_system()
    tensor = torch.zeros(count)
    speeds = {
        "torch.randn, float32": millions_a_second(lambda: torch.randn(count), count),
        "torch.randn, float64": millions_a_second(
            lambda: torch.randn(count, dtype=torch.float64), count
        ),
        "standard_normals": millions_a_second(lambda: standard_normals(stream, count), count),
        "add_noise": millions_a_second(lambda: add_noise(tensor, stream, 1.0), count),
    }
    baseline = speeds["torch.randn, float32"]
    for name, speed in speeds.items():
        print(f"{name:>22}: {speed:6.1f} million numbers a second, {speed / baseline:.2f} of randn")


if __name__ == "__main__":
    main()
