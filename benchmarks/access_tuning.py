"""How a small model learns access rights: what it gets right over the number of records.

Run: python benchmarks/access_tuning.py --output FOLDER [--sizes 0 400 1600] [--rates 1e-3]
     [--seeds 0] [--test-questions 200] [--records-seed 1] [--general-items 124]
     [--batch-size 8] [--retain-weights 1]

The embedded model in 4 bits, LoRA of rank 32 on attention and feed-forward, one epoch, linear
decay; the questions of a context are a step (8 in all rows of a FOLDER). Questions to measure are
about another company, in other wordings; the same ones for every row. One line of JSON a finished
row in FOLDER/rows.jsonl: a second call goes on after it, continues a run that was cut short (its
seconds are then those of the rest), and prints the table of all rows. To choose a learning rate,
give several with one size. Rows whose general items are not the ones asked for are asked them.

The embedded model comes from a 4-bit file, so rounding its weights to a 4-bit grid costs less than
it would cost another model. 200 questions leave wide intervals: they are printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from contextlib import nullcontext
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common import DEVICE, IS_GPU, TOKENS_PER_BATCH, stopwatch
from sordino.access.examples import choose_questions
from sordino.access.forgetting import compare_items
from sordino.access.general_items import NUM_ITEMS, make_items
from sordino.access.generate import generate, read_questions
from sordino.access.results import compute_clauses
from sordino.attacks.subject import open_subject
from sordino.models import choose_compute_dtype
from sordino.reports.access_tune import measure, tune

if TYPE_CHECKING:
    from sordino.access.general_items import Item

_TOKENS_OF_ANSWERS = 131_072 if IS_GPU else 16_384
_KEYS = ("size", "rate", "retain", "seed")
_BASE = {"size": 0, "rate": 0.0, "retain": 0.0, "seed": 0}
_SHOWN = ("correct", "leak", "false_refusal", "wrong", "wrong_format")


def measure_row(run: Path, test: list[Any], num_items: int, *, is_base: bool) -> dict[str, Any]:
    """Returns rates and items of a run, or of the base that it started from."""
    dtype = choose_compute_dtype("auto", DEVICE)
    subject = open_subject(str(run), base="embedded", dtype=dtype, device=DEVICE)
    with subject.base() if is_base else nullcontext():
        answers, items = measure(
            subject, test, make_items(num_items), tokens_per_batch=_TOKENS_OF_ANSWERS
        )
    clauses = asdict(compute_clauses(answers))
    kinds: dict[str, list[int]] = {}
    for answer in answers:
        kinds.setdefault(answer.questionnaire, []).append(answer.grading.grade)
    asked = digest(make_items(num_items))
    outcomes = [bool(right) for right in items]
    return {"clauses": clauses, "grades": kinds, "items": outcomes, "asked": asked}


def tune_row(
    questions: Path, run: Path, row: dict[str, Any], *, batch_size: int, retain_texts: int
) -> float:
    """Tunes a run, and returns its seconds."""
    began = stopwatch()
    tune(
        model="embedded",
        questions=questions,
        output=run,
        records=row["size"],
        test_questions=0,
        forgetting=False,
        learning_rate=row["rate"],
        retain_weight=row["retain"],
        retain_texts=retain_texts,
        batch_size=batch_size,
        seed=row["seed"],
        device=DEVICE,
        tokens_per_batch=TOKENS_PER_BATCH,
        resume=True,
    )
    return stopwatch() - began


def finished(rows: Path) -> list[dict[str, Any]]:
    if not rows.exists():
        return []
    return [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]


def done_rows(folder: Path) -> list[dict[str, Any]]:
    """Returns what tells the finished rows apart."""
    return [{name: row[name] for name in _KEYS} for row in finished(folder / "rows.jsonl")]


def run_folder(folder: Path, row: dict[str, Any]) -> Path:
    """Returns where the run of a row lies."""
    return folder / f"run-{row['size']}-{row['rate']:g}-{row['retain']:g}-{row['seed']}"


def add(folder: Path, row: dict[str, Any], found: dict[str, Any]) -> None:
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row | found) + "\n")


def make_rows(arguments: argparse.Namespace, folder: Path) -> None:
    """Makes the rows that are not there yet."""
    everything = read_questions(folder / "questions" / "test")
    test = choose_questions(everything, arguments.test_questions, seed=0)
    grid = (arguments.seeds, arguments.rates, arguments.retain_weights, sorted(arguments.sizes))
    for seed, rate, retain, size in product(*grid):
        row = {"size": size, "rate": rate, "retain": retain, "seed": seed}
        if size == 0 or row in done_rows(folder):
            continue
        run = run_folder(folder, row)
        seconds = tune_row(
            folder / "questions" / "train",
            run,
            row,
            batch_size=arguments.batch_size,
            retain_texts=arguments.retain_texts,
        )
        if 0 in arguments.sizes and _BASE not in done_rows(folder):
            found = measure_row(run, test, arguments.general_items, is_base=True)
            add(folder, _BASE | {"seconds": 0.0}, found)
        found = measure_row(run, test, arguments.general_items, is_base=False)
        add(folder, row | {"seconds": seconds}, found)
        print_table(folder)


def refresh_items(folder: Path, num_items: int) -> None:
    """Asks the general items of rows that were asked others."""
    rows, items = finished(folder / "rows.jsonl"), make_items(num_items)
    for row in rows:
        if row.get("asked") == digest(items):
            continue
        named = row if row["size"] else next(other for other in rows if other["size"])
        run = run_folder(folder, named)
        dtype = choose_compute_dtype("auto", DEVICE)
        subject = open_subject(str(run), base="embedded", dtype=dtype, device=DEVICE)
        with subject.base() if row["size"] == 0 else nullcontext():
            _, row["items"] = measure(subject, [], items)
        row["asked"] = digest(items)
        lines = "".join(json.dumps(other) + "\n" for other in rows)
        (folder / "rows.jsonl").write_text(lines, encoding="utf-8")


def digest(items: list[Item]) -> str:
    """Returns what tells one set of items from another."""
    return hashlib.sha256(repr(items).encode()).hexdigest()


def print_table(folder: Path) -> None:
    """Prints all rows so far."""
    rows = sorted(
        finished(folder / "rows.jsonl"), key=lambda row: [row[name] for name in _KEYS[::-1]]
    )
    base = next((row for row in rows if row["size"] == 0), None)
    print("records | rate | retain | seed | " + " | ".join(_SHOWN) + " | general items | s")
    for row in rows:
        cells = []
        for name in _SHOWN:
            rate = row["clauses"][name]
            ends = f"{rate['lower']:.3f}-{rate['upper']:.3f}"
            cells.append(f"{rate['count'] / rate['total']:.3f} ({ends})")
        lost = ""
        if base is not None and row is not base:
            change = compare_items(make_items(len(row["items"])), base["items"], row["items"])
            counts = [f"{name} {b} to {a}/{n}" for name, (b, a, n) in change.groups.items()]
            lost = f" ({', '.join(counts)}"
            for name, (points, lower, upper) in change.known.items():
                lost += f"; of {name} {-points:+.1f} points, {-upper:+.1f} to {-lower:+.1f}"
            lost += ")"
        general = f"{sum(row['items'])}/{len(row['items'])}{lost}"
        shown = [row["size"], f"{row['rate']:g}", f"{row['retain']:g}", row["seed"]]
        shown += [*cells, general, f"{row['seconds']:.0f}"]
        print(" | ".join(map(str, shown)), flush=True)
    print(
        "\nright, and grade 3 (leaked or refused), by kind | "
        + " | ".join(f"{row['size']}" for row in rows)
    )
    for kind in sorted({kind for row in rows for kind in row["grades"]}):
        counts = [row["grades"].get(kind, []) for row in rows]
        cells = [f"{grades.count(1)}, {grades.count(3)} of {len(grades)}" for grades in counts]
        print(" | ".join([kind, *cells]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 400, 1600])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--retain-weights", type=float, nargs="+", default=[1.0])
    parser.add_argument("--retain-texts", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--test-questions", type=int, default=200)
    parser.add_argument("--general-items", type=int, default=NUM_ITEMS)
    parser.add_argument("--records-seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "questions").exists():
        # many companies, so that names of single supervisors do not give the answer away
        generate(
            output=folder / "questions",
            seed=arguments.records_seed,
            questions=100,
            train_companies=8,
            questions_per_context=arguments.batch_size,
        )
    make_rows(arguments, folder)
    refresh_items(folder, arguments.general_items)
    print_table(folder)


if __name__ == "__main__":
    main()
