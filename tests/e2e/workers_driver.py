"""Several runs in every process that torchrun starts: `workers_driver.py PLAN.json`.

Each process writes what stopped each run, or an empty string, to answer-RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)

import sordino  # noqa: E402
from sordino.ledger import journal  # noqa: E402


def fail(*_arguments: object, **_more: object) -> None:
    """Stands for a disk that is full on the main process only."""
    raise OSError(28, "No space left on device")


def main() -> None:
    """Works through a plan; errors are answers."""
    plan = Path(sys.argv[1])
    rank = os.environ["RANK"]
    answers = {}
    for name, settings in json.loads(plan.read_text()).items():
        if name == "disk":
            journal.replace_file = fail
        try:
            sordino.tune(**settings)
            answers[name] = ""
        except (sordino.core.errors.SordinoError, OSError) as error:
            answers[name] = f"{type(error).__name__}: {error}"
    plan.with_name(f"answer-{rank}.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
