"""Several runs in every process that torchrun starts: `workers_driver.py PLAN.json`.

Each process writes what stopped each run, or an empty string, to answer-RANK.json, and at its very
end whether anything still holds the process group to left-RANK.txt.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import weakref
from pathlib import Path

import torch

torch.set_num_threads(1)

import sordino  # noqa: E402
from sordino.ledger import journal  # noqa: E402


def fail(*_arguments: object, **_more: object) -> None:
    """Stands for a disk that is full on the main process only."""
    raise OSError(28, "No space left on device")


def last(groups: list[weakref.ref[object]], left: Path) -> None:
    """Registered first, so it runs last: writes whether a process group is left."""
    left.write_text(str(not groups or any(group() is not None for group in groups)))


def main() -> None:
    """Works through a plan; errors are answers."""
    plan = Path(sys.argv[1])
    rank = os.environ["RANK"]
    groups: list[weakref.ref[object]] = []
    atexit.register(last, groups, plan.with_name(f"left-{rank}.txt"))
    answers = {}
    for name, settings in json.loads(plan.read_text()).items():
        if name == "disk":
            journal.replace_file = fail
        try:
            sordino.tune(**settings)
            answers[name] = ""
        except (sordino.core.errors.SordinoError, OSError) as error:
            answers[name] = f"{type(error).__name__}: {error}"
    groups.append(weakref.ref(torch.distributed.group.WORLD))
    plan.with_name(f"answer-{rank}.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
