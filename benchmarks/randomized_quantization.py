"""Randomized quantization against a Gaussian of equal variance, at Renyi orders 2 to 256.

Run: python benchmarks/randomized_quantization.py [--clip 1]

The Gaussian's variance is the largest variance of the quantizer over the breakpoints (its worst
value), its sensitivity is 2c, and it is continuous: released as it is, it takes 4 bytes a value
(float32), and the quantizer log2(m) bits, packed. The ratio is Gaussian / quantizer: above 1 the
quantizer spends less. Nothing is drawn; all numbers are exact up to rounding. One coordinate: a
vector of n spends n times as much, of either kind.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from sordino.accounting.randomized_quantization import (
    breakpoints,
    probabilities,
    renyi_divergence,
)

ORDERS = (2, 4, 8, 16, 32, 64, 128, 256)
SETTINGS = (  # margin / clip, levels, keep probability
    (1.0, 16, 0.42),
    (1.0, 16, 0.1),
    (4.0, 16, 0.2),
    (10.0, 16, 0.1),
    (10.0, 4, 0.1),
    (10.0, 256, 0.01),
    (40.0, 2, 0.0),
)


def worst_variance(clip: float, margin: float, num_levels: int, keep: float) -> float:
    """Returns the largest variance over the breakpoints and the middles between them."""
    points = np.array(breakpoints(clip, margin, num_levels))
    levels = np.linspace(-(clip + margin), clip + margin, num_levels)
    values = [*points, *((points[1:] + points[:-1]) / 2)]
    return max(
        float(probabilities(x, clip, margin, num_levels, keep) @ (levels - x) ** 2) for x in values
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clip", type=float, default=1.0)
    clip = parser.parse_args().clip
    print("margin  levels  keep  bytes  std/clip  " + "".join(f"order {a:<5}" for a in ORDERS))
    for scale, num_levels, keep in SETTINGS:
        margin = scale * clip
        variance = worst_variance(clip, margin, num_levels, keep)
        ratios = [
            order
            * (2.0 * clip) ** 2
            / (2.0 * variance)
            / renyi_divergence(order, clip, margin, num_levels, keep)
            for order in ORDERS
        ]
        print(
            f"{margin:<7g} {num_levels:<7d} {keep:<5g} {math.log2(num_levels) / 8:<6.3g} "
            f"{math.sqrt(variance) / clip:<9.3f} " + "".join(f"{ratio:<11.3f}" for ratio in ratios)
        )


if __name__ == "__main__":
    main()
