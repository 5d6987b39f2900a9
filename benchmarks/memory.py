"""Peak memory of a zeroth-order step against inference on the same batches.

Run: python benchmarks/memory.py [--records 64]

Each figure is the peak resident memory of its own process, the interpreter and its libraries
included, as the operating system counts it. Inference means the forward passes of scoring the pool
once, with the parameters stored and computed in the same types.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from common import (
    assemble_run,
    forward_passes,
    movie_reviews,
    peak_memory_bytes,
    scratch,
    take_step,
)


def measure(mode: str, adapter: str, num_records: int) -> None:
    pool = movie_reviews(num_records)
    with scratch() as folder:
        parts = assemble_run(pool, folder, adapter=adapter)
        if mode == "step":
            take_step(parts, 0)
            take_step(parts, 1)
        else:
            forward_passes(parts, 2)
    print(peak_memory_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=64)
    parser.add_argument("--mode", choices=["step", "inference"])
    parser.add_argument("--adapter", choices=["lora", "full"], default="lora")
    arguments = parser.parse_args()
    if arguments.mode:
        measure(arguments.mode, arguments.adapter, arguments.records)
        return
    for adapter in ("lora", "full"):
        peak = {}
        for mode in ("inference", "step"):
            command = [sys.executable, __file__, "--mode", mode, "--adapter", adapter]
            command += ["--records", str(arguments.records)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peak[mode] = int(output.split()[-1])
        ratio = peak["step"] / peak["inference"]
        print(f"peak memory of a step / of inference, {adapter}: {ratio:.3f}; goal <= 1.1")


if __name__ == "__main__":
    main()
