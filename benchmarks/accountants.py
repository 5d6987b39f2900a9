"""Epsilon by PLD, Renyi DP and Edgeworth over the number of steps.

Run: python benchmarks/accountants.py [--noise-multiplier 0.8] [--output accountants.html]

The table shows the PLD's two bounds, the Edgeworth interval ("vacuous" where its error in delta
reaches delta) and estimate, Renyi DP, and the ratios to the PLD's upper bound. With --output a page
with the figure is written (plotly, a few MB, opens without a network).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from sordino.accounting.dp import NEIGHBORING_RELATIONS, SampledGaussian, compute_epsilon
from sordino.accounting.edgeworth import interval_without_check

STEPS = (10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
COLUMNS = (
    "steps  PLD lower  PLD upper  EW lower  EW upper  EW estimate  EW error  RDP       RDP/PLD  "
    "EW/PLD"
)


def measure(event: SampledGaussian, delta: float) -> dict[str, float]:
    """Returns one row."""
    report = compute_epsilon(event, delta)
    lower, upper, estimate, error = interval_without_check(event, delta)
    return {
        "steps": event.num_steps,
        "pld_lower": report.epsilon_lower,
        "pld_upper": report.epsilon_upper,
        "edgeworth_lower": lower,
        "edgeworth_upper": upper,
        "edgeworth_estimate": estimate,
        "edgeworth_error": error,
        "rdp": math.inf if report.epsilon_rdp is None else report.epsilon_rdp,
    }


def line(row: dict[str, float]) -> str:
    """Returns a row as text."""
    upper = row["edgeworth_upper"]
    shown = f"{upper:.5g}" if math.isfinite(upper) else "vacuous"
    return (
        f"{row['steps']:<6g} {row['pld_lower']:<10.4g} {row['pld_upper']:<10.4g} "
        f"{row['edgeworth_lower']:<9.5g} {shown:<9} {row['edgeworth_estimate']:<12.5g} "
        f"{row['edgeworth_error']:<9.1e} {row['rdp']:<9.4g} "
        f"{row['rdp'] / row['pld_upper']:<8.4f} {row['edgeworth_estimate'] / row['pld_upper']:.4f}"
    )


def draw(rows: list[dict[str, float]], title: str, path: Path) -> None:
    """Writes the figure as one page that needs no network."""
    from plotly import graph_objects

    figure = graph_objects.Figure()
    for name in ("rdp", "pld_upper", "pld_lower", "edgeworth_estimate", "edgeworth_upper"):
        values = [row[name] if math.isfinite(row[name]) else None for row in rows]
        figure.add_scatter(x=[row["steps"] for row in rows], y=values, name=name.replace("_", " "))
    figure.update_layout(title=title, xaxis_title="steps", yaxis_title="epsilon")
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    figure.write_html(path, include_plotlyjs=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--noise-multiplier", type=float, default=0.8)
    parser.add_argument("--sampling-probability", type=float, default=0.01)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--relation", choices=NEIGHBORING_RELATIONS, default="ADD_OR_REMOVE_ONE")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    title = (
        f"noise multiplier {arguments.noise_multiplier:g}, sampling probability "
        f"{arguments.sampling_probability:g}, delta {arguments.delta:g}, {arguments.relation}"
    )
    print(title)
    print(COLUMNS)
    rows = []
    for steps in STEPS:
        event = SampledGaussian(
            noise_multiplier=arguments.noise_multiplier,
            sampling_probability=arguments.sampling_probability,
            num_steps=steps,
            neighboring_relation=arguments.relation,
        )
        rows.append(measure(event, arguments.delta))
        print(line(rows[-1]), flush=True)
    if arguments.output is not None:
        draw(rows, title, arguments.output)


if __name__ == "__main__":
    main()
