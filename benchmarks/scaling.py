"""Cost against the number of records N and of candidate subsets M.

Run: python benchmarks/scaling.py [--repeats 5]

Time a step at N and 2 N records (linear growth gives 2 on records of equal length), and at M = 128
and M = 4,096 on the same records, measured in turn in one process.
"""

from __future__ import annotations

import argparse

from common import assemble_run, movie_reviews, paired_ratio, report, scratch, take_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--records", type=int, default=64)
    arguments = parser.parse_args()
    record = movie_reviews(2)[0]
    few, many = [record] * arguments.records, [record] * (2 * arguments.records)
    with scratch() as a, scratch() as b, scratch() as c:
        small = assemble_run(few, a)
        large = assemble_run(many, b)
        wide = assemble_run(few, c, num_subsets=4096)
        for parts in (small, large, wide):
            take_step(parts, 0)
        ratio = paired_ratio(
            lambda i: take_step(large, i + 1),
            lambda i: take_step(small, i + 1),
            repeats=arguments.repeats,
        )
        report("step at 2 N / step at N", ratio, "2.0 (linear)")
        ratio = paired_ratio(
            lambda i: take_step(wide, i + 1),
            lambda i: take_step(small, i + 1 + arguments.repeats),
            repeats=arguments.repeats,
        )
        report("step at M=4096 / step at M=128", ratio, "<= 1.02")


if __name__ == "__main__":
    main()
