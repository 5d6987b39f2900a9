"""Whether step sizes or numbers of directions that change from step to step learn more.

Run: python benchmarks/schedules.py [--records 400] [--steps 8] [--seeds 0 1] [--schedules ...]

Movie-review snippets, SmolLM2-135M, LoRA B in the upper 15 blocks, M = 128, coins, K = 1,024. All
schedules of a seed start from the same weights and begin with the same step length.

linear    the step size falls to zero in equal parts (the default)
constant  it stays
follows   constant times the cosine of the last two released moves over that of the first two, in
          [.1, 1]: what anyone can see of how far coins dominate
rising    linear, with 256 directions in the first half of the steps
falling   linear, with 256 directions in the second half

A step that releases 256 signs is made as long as one of 1,024. Printed after each step: the share
of unanimous signs (secret; here it is looked at), the cosine with the released move before, loss
and accuracy on 400 other snippets.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common import TASK, TOKENS_PER_BATCH, Parts, assemble_run, movie_reviews, scratch, take_step
from sordino.training.encoding import choose_task, encode_records
from sordino.training.evaluate import evaluate_objective

if TYPE_CHECKING:
    from sordino.data import Record
    from sordino.ledger.transcript import StepSymbols

SCHEDULES = ("linear", "constant", "follows", "rising", "falling")
FEW = 256
NUM_HELD_OUT = 400


class Watched:
    """A run whose moves are changed, and looked at, by a schedule."""

    def __init__(self, parts: Parts, schedule: str) -> None:
        stepper: Any = parts.session.stepper
        self.schedule = schedule
        self.num_steps = parts.session.header.num_steps
        self.first_rate = parts.session.header.learning_rates[0]
        self.directions = stepper.space.directions
        self.moves: list[torch.Tensor] = []
        self.cosines: list[float] = []
        self.unanimous: list[float] = []
        self._apply, stepper.space.apply = stepper.space.apply, self.apply
        self._release, stepper.mechanism.release = stepper.mechanism.release, self.release

    def release(self, *arguments: Any) -> Any:
        """Releases, and notes the share of unanimous signs."""
        found = self._release(*arguments)
        self.unanimous.append(float(found.unanimous[: self._num_directions(found)].mean()))
        return found

    def apply(self, step: int, symbols: StepSymbols, rate: float, decay: float) -> bool:
        """Moves as the schedule says."""
        count = self._num_directions(symbols)
        kept = replace(
            symbols,
            integers=np.where(np.arange(len(symbols.integers)) < count, symbols.integers, 0),
        )
        move = torch.from_numpy(self.directions.combine(step, kept.integers))
        if self.moves:
            before = self.moves[-1]
            self.cosines.append(float(move @ before / (move.norm() * before.norm())))
        self.moves.append(move)
        if self.schedule in ("constant", "follows"):
            rate = self.first_rate
        if self.schedule == "follows" and len(self.cosines) >= 2:
            # the cosine with this step's own move is known by now as well: all of it is released
            rate *= float(np.clip(self.cosines[-1] / max(self.cosines[0], 1e-9), 0.1, 1.0))
        return self._apply(step, kept, rate * (len(symbols.integers) / count) ** 0.5, decay)

    def _num_directions(self, released: Any) -> int:
        """Returns how many directions of this step are used."""
        step = len(self.moves)
        is_first_half = step < self.num_steps // 2
        is_few = self.schedule == ("rising" if is_first_half else "falling")
        return FEW if is_few else len(released.integers)


def run(schedule: str, pool: list[Record], held_out: list[Record], seed: int, steps: int) -> None:
    """Prints one line a step."""
    with scratch() as folder:
        parts = assemble_run(
            pool,
            folder,
            estimator="first-order",
            lora_first_layer=15,
            num_steps=steps,
            seed=seed,
        )
        watched = Watched(parts, schedule)
        objective = encode_records(choose_task(TASK, pool), held_out, parts.loaded, TASK).objective
        for step in range(steps):
            take_step(parts, step)
            found = evaluate_objective(
                objective, parts.language_model, tokens_per_batch=TOKENS_PER_BATCH
            )
            cosine = f"{watched.cosines[-1]:.4f}" if watched.cosines else ""
            print(
                f"{schedule} | {seed} | {step + 1} | {watched.unanimous[-1]:.3f} | {cosine} | "
                f"{found['loss']:.4f} | {found['accuracy']:.3f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=400)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    arguments = parser.parse_args()
    records = movie_reviews(arguments.records + NUM_HELD_OUT)
    pool, held_out = records[: arguments.records], records[arguments.records :]
    print("schedule | seed | step | unanimous | cosine with the move before | loss | accuracy")
    for seed in arguments.seeds:
        for schedule in arguments.schedules:
            run(schedule, pool, held_out, seed, arguments.steps)


if __name__ == "__main__":
    main()
