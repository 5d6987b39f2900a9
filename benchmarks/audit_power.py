"""What the attacks find on a model that is meant to leak, and on private ones beside it.

Run: python benchmarks/audit_power.py --output FOLDER [--records 500] [--epochs 20]
         [--runs overfitted untrained pac dp-8 dp-1] [--table]

Movie-review snippets as completions, half of them members, no text on both sides; SmolLM2-135M in
bfloat16, LoRA on the upper blocks; 200 planned canaries a run. Every run is tuned and audited by
the public functions; finished ones are taken up again. "untrained" is the overfitted run audited on
two files that it has never seen, where no attack may see anything.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import sordino
from common import movie_reviews
from sordino.data import normalize_text
from sordino.reports.audit_record import read_audit

CANARIES = 200
SHARED: dict[str, Any] = {
    "model": "embedded",
    "estimator": "first-order",
    "lora_first_layer": 15,
    "lora_rank": 16,
    "lora_alpha": 32.0,
    "truncate": True,
    "canaries": CANARIES,
}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def settings_of(name: str, num_records: int, epochs: int) -> dict[str, Any]:
    """Returns what only this run's `tune` gets."""
    if name == "pac":
        return {"guarantee": "pac", "num_steps": 4}
    batch = (num_records + CANARIES // 2) // 8
    if name == "overfitted":
        return {
            "guarantee": "none",
            "optimizer": "adamw",
            "learning_rate": 1e-3,
            "lora_factors": "both",
            "lora_targets": ALL_LINEAR,
            "batch_size": batch,
            "num_steps": 8 * epochs,
        }
    return {
        "guarantee": "dp",
        "epsilon": float(name.removeprefix("dp-")),
        "delta": 1e-5,
        "learning_rate": 3e-3,
        "batch_size": batch,
        "num_steps": 32,
    }


def write_sides(folder: Path, num_records: int) -> tuple[Path, Path, Path]:
    """Writes members, non-members and further non-members, all different texts."""
    seen: set[str] = set()
    texts = []
    for record in movie_reviews(4 * num_records):
        key = normalize_text(record.prompt)
        if key not in seen and len(record.prompt.split()) >= 8:
            seen.add(key)
            texts.append(record.prompt)
    order = np.random.default_rng(0).permutation(len(texts))[: 3 * num_records]
    paths = []
    for side, name in enumerate(("members", "nonmembers", "others")):
        rows = [
            {"prompt": "Review:", "completion": f" {texts[i]}"}
            for i in order[side * num_records : (side + 1) * num_records]
        ]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        paths.append(path)
    return paths[0], paths[1], paths[2]


def run(name: str, folder: Path, num_records: int, epochs: int) -> None:
    """Tunes and audits one row."""
    members, nonmembers, others = write_sides(folder, num_records)
    tuned = "overfitted" if name == "untrained" else name
    output = folder / tuned
    if not (output / "certificate.json").exists():
        own = settings_of(tuned, num_records, epochs)
        sordino.tune(**SHARED | own, train=members, output=output, resume=output.exists())
    is_untrained = name == "untrained"
    sordino.audit(
        str(output),
        model="embedded",
        members=nonmembers if is_untrained else members,
        nonmembers=others if is_untrained else nonmembers,
        canaries=not is_untrained,
        control=False,
        output=folder / f"{name}.audit",
    )


def mean_gain(folder: Path) -> float:
    """Returns by how much tuning lowered the loss of the audit's non-members, nats a token."""
    _, *lines = (folder / "scores-nonmembers.PRIVATE.jsonl").read_text().splitlines()
    return float(np.mean([json.loads(x)["scores"]["reference-difference"] for x in lines]))


def print_row(name: str, folder: Path) -> None:
    """Prints what the audit says."""
    audit = read_audit(folder / f"{name}.audit" / "audit.json")
    best = audit.membership.attacks[0]
    point = best.points[0]
    cells = [
        name,
        f"{best.name} {best.auc:.3f} ({best.auc_lower:.3f} to {best.auc_upper:.3f})",
        f"{point.tpr:.3f} ({point.tpr_lower:.3f} to {point.tpr_upper:.3f})",
        f"{mean_gain(folder / f'{name}.audit'):+.2f}",
    ]
    if audit.canaries is not None:
        exposures = audit.canaries.exposures
        cells += [
            f"{audit.canaries.num_correct} of {audit.canaries.num_guesses}",
            f"{audit.canaries.epsilon_lower:.2f}",
            f"{exposures[len(exposures) // 2]:.2f}",
        ]
    claimed = [str(v.claimed) for v in audit.verdicts if v.game == "pool"]
    print(" | ".join([*cells, f"claimed {claimed[0]}" if claimed else ""]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=20)
    names = ["overfitted", "untrained", "pac", "dp-8", "dp-1"]
    parser.add_argument("--runs", nargs="+", choices=names, default=names)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        for name in arguments.runs:
            run(name, arguments.output, arguments.records, arguments.epochs)
    print(
        "run | best attack, AUC | TPR at 1% FPR | gain on non-members, nats a token"
        " | right guesses | epsilon >= | median exposure | pool line"
    )
    for name in arguments.runs:
        if (arguments.output / f"{name}.audit" / "audit.json").exists():
            print_row(name, arguments.output)


if __name__ == "__main__":
    main()
