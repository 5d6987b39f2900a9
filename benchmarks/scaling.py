"""Cost against the number of records N and of candidate subsets M.

Run: python benchmarks/scaling.py [--repeats 5]

N: a step at 2 N records over a step at N, records of equal length, in turn; linear growth gives 2.
M: everything in a step that depends on M (sums over subsets, mechanism), timed alone at M = 128
and M = 4,096; the difference is divided by the time of a whole step of the same records. (Two
whole steps differ by less than the noise of a shared machine.)
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common import Parts, assemble_run, movie_reviews, paired_ratio, report, scratch, take_step
from sordino.mechanisms.candidates import SubsetSums

if TYPE_CHECKING:
    from sordino.data import Record

TIMES = 20


def pair_of(record: Record) -> list[Record]:
    """Returns two records of equal length, one a label."""
    return [replace(record, label="0"), replace(record, label="1")]


def seconds_that_depend_on_m(parts: Parts) -> float:
    """Returns the median time of sums and release in one step."""
    session = parts.session
    K = session.header.directions_per_step
    batches = [np.array(batch) for batch in session.stepper.plan.batches(0)]
    values = [np.full((len(batch), K), 0.5) for batch in batches]
    times = []
    for _ in range(TIMES):
        began = time.perf_counter()
        sums = SubsetSums(session.stepper.membership, K, session.stepper.estimator.bound)
        for batch, value in zip(batches, values, strict=True):
            sums.add(batch, value)
        session.stepper.mechanism.release(sums.sums, sums.unit, 0)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--records", type=int, default=48)
    arguments = parser.parse_args()
    pair = pair_of(movie_reviews(2)[0])
    few, many = pair * (arguments.records // 2), pair * arguments.records
    with scratch() as a, scratch() as b, scratch() as c:
        small, large = assemble_run(few, a), assemble_run(many, b)
        take_step(small, 0)
        take_step(large, 0)
        ratio = paired_ratio(
            lambda i: take_step(large, i + 1),
            lambda i: take_step(small, i + 1),
            repeats=arguments.repeats,
        )
        report("step at 2 N / step at N", ratio, "2.0 (linear)")
        began = time.perf_counter()
        take_step(small, arguments.repeats + 1)
        step = time.perf_counter() - began
        wide = assemble_run(few, Path(c), num_subsets=4096)
        added = seconds_that_depend_on_m(wide) - seconds_that_depend_on_m(small)
        print(f"step at M=4096 / step at M=128: {1 + added / step:.4f}; goal <= 1.02")


if __name__ == "__main__":
    main()
