"""Which public directions tell most: unanimous releases, and where the released move points.

Run: python benchmarks/directions.py [--records 1000] [--steps 2]

Takes the per-record gradients of a pool (movie-review snippets, LoRA B in the upper 15 blocks) at
the start and after some steps, clipped as a run clips them, with and without weighing down what
moves all answers alike, and puts every family of directions through the same mechanism (M = 128,
coins):

unanimous  share of releases on which all candidate subsets agree
cosine     between the released move, coins included, and the pool's mean gradient
held-out   between the released move and the mean gradient of other records
pivotal    releases at which a record is pivotal, mean over records: what the pass tells about it

Families: Hadamard (K = 256 to 65,536); single coordinates; the last released move cut into K parts,
one direction each ("history"); singular vectors of the gradients of other records, taken as public
data ("public"); products of rank one ("kronecker").
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common import Parts, assemble_run, movie_reviews, scratch, take_step
from sordino.core.entropy import OperatingSystemEntropy
from sordino.gradients.direction_sets import HadamardDirections
from sordino.gradients.kronecker import KroneckerDirections
from sordino.gradients.projected import FirstOrderEstimator
from sordino.mechanisms.candidates import CandidateSubsets, SubsetSums, to_fixed_point
from sordino.mechanisms.unanimity import UnanimityMechanism
from sordino.training.leave_one_out import LeaveOneOut

if TYPE_CHECKING:
    from collections.abc import Callable

    from sordino.data import Record

    Project = Callable[[torch.Tensor], torch.Tensor]
    Combine = Callable[[np.ndarray], torch.Tensor]

NUM_PUBLIC = 256
STEP = 1000  # no step of the run itself uses these directions


@dataclass(frozen=True)
class Family:
    """Directions by what they do: project gradients, add up released signs."""

    name: str
    num_directions: int
    project: Project
    combine: Combine


def per_record_gradients(parts: Parts) -> torch.Tensor:
    """Returns unclipped gradients, shape (num_records, num_params)."""
    estimator = parts.session.stepper.estimator
    assert isinstance(estimator, FirstOrderEstimator)
    estimator.begin_step()
    rows: list[torch.Tensor] = [torch.empty(0)] * len(parts.objective.lengths)
    for batch in parts.session.stepper.plan.batches(0):
        for record, row in zip(batch, estimator.clipped_gradients(batch), strict=True):
            rows[record] = row
    return torch.stack(rows)


def hadamard(num_params: int, num_directions: int) -> Family:
    directions = HadamardDirections(1, {"all": num_params}, num_directions)
    return Family(
        f"hadamard, K={num_directions}",
        num_directions,
        lambda g: directions.project(STEP, g),
        lambda signs: torch.from_numpy(directions.combine(STEP, signs)),
    )


def kronecker(parts: Parts, num_directions: int) -> Family:
    shapes = {name: tuple(p.shape) for name, p in parts.session.stepper.space.tensors.items()}
    directions = KroneckerDirections(1, shapes, num_directions)
    return Family(
        f"kronecker, K={num_directions}",
        num_directions,
        lambda g: directions.project(STEP, g),
        lambda signs: torch.from_numpy(directions.combine(STEP, signs)),
    )


def coordinates(num_params: int) -> Family:
    return Family(
        "coordinates, K=d",
        num_params,
        lambda g: g,
        lambda signs: torch.from_numpy(signs.astype(np.float64)),
    )


def history(move: torch.Tensor, num_parts: int) -> Family:
    """Part k of the last move: its coordinates k, k + K, k + 2 K, ..."""

    def project(gradients: torch.Tensor) -> torch.Tensor:
        weighted = gradients * move.to(gradients)
        rest = -weighted.shape[1] % num_parts
        weighted = torch.nn.functional.pad(weighted, (0, rest))
        return weighted.reshape(len(weighted), -1, num_parts).sum(dim=1)

    def combine(signs: np.ndarray) -> torch.Tensor:
        repeats = -(-len(move) // num_parts)
        return torch.from_numpy(np.tile(signs, repeats)[: len(move)]).double() * move

    return Family(f"history, K={num_parts}", num_parts, project, combine)


def public(gradients: torch.Tensor, num_directions: int) -> Family:
    basis = torch.linalg.svd(gradients, full_matrices=False).Vh[:num_directions]
    return Family(
        f"public, K={num_directions}",
        num_directions,
        lambda g: g @ basis.T,
        lambda signs: torch.from_numpy(signs).double() @ basis.double(),
    )


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() @ b.double()) / (a.double().norm() * b.double().norm()))


def measure(
    family: Family, clipped: torch.Tensor, pool_mean: torch.Tensor, other_mean: torch.Tensor
) -> str:
    """Returns one row of the table."""
    contributions = family.project(clipped).double().numpy()
    bound = float(np.abs(contributions).max())
    candidates = CandidateSubsets(num_subsets=128, seed=5)
    member = candidates.membership(len(clipped))
    total = SubsetSums(member, family.num_directions, bound)
    total.add(np.arange(len(clipped)), contributions)
    mechanism = UnanimityMechanism(candidates, OperatingSystemEntropy())
    release = mechanism.release(total.sums, total.unit, 0)
    loss = LeaveOneOut(member, 0.0, "coin")
    part = slice(0, min(family.num_directions, 4096))  # pivotal releases are counted on a part
    loss.add(
        total.sums[:, part],
        to_fixed_point(contributions[:, part], bound, total.unit),
        release.integers[part],
    )
    pivotal = loss.pivotal_releases.mean() * family.num_directions / part.stop
    move = family.combine(release.integers)
    figures = (release.unanimous.mean(), cosine(move, pool_mean), cosine(move, other_mean))
    return " | ".join([family.name, *(f"{x:.3f}" for x in figures), f"{pivotal:.1f}"])


def table(pool_parts: Parts, other_parts: Parts, move: torch.Tensor | None, clip: float) -> None:
    """Prints all families at the models' present weights."""
    gradients, others = per_record_gradients(pool_parts), per_record_gradients(other_parts)
    shared = pool_parts.session.stepper.estimator._shared  # type: ignore[attr-defined]  # noqa: SLF001
    num_params = gradients.shape[1]
    families = [hadamard(num_params, K) for K in (256, 1024, 4096, 65536)]
    families += [kronecker(pool_parts, 4096), coordinates(num_params)]
    families += [public(others, K) for K in (16, 64, 256)]
    if move is not None:
        families += [history(move, K) for K in (64, 1024, 4096)]
    pool_mean, other_mean = gradients.mean(dim=0), others.mean(dim=0)
    for weight in (1.0, 0.3):
        shared._weight = weight  # noqa: SLF001
        kept = shared.weigh_down(gradients.clone())
        kept *= (clip / kept.norm(dim=1, keepdim=True)).clamp_max(1.0)
        print(f"shared weight {weight}: family | unanimous | cosine | held-out | pivotal")
        for family in families:
            print(measure(family, kept, pool_mean, other_mean), flush=True)
    shared._weight = 1.0  # noqa: SLF001


def untouched(records: list[Record], folder: Any, clip: float) -> Parts:
    """Returns a run whose estimator clips nothing and weighs nothing down."""
    parts = assemble_run(
        records, folder, estimator="first-order", lora_first_layer=15, shared_weight=0.5
    )
    estimator = parts.session.stepper.estimator
    assert isinstance(estimator, FirstOrderEstimator)
    estimator._clip = clip  # noqa: SLF001
    estimator._shared._weight = 1.0  # type: ignore[union-attr]  # noqa: SLF001
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    records = movie_reviews(arguments.records + NUM_PUBLIC)
    pool, rest = records[: arguments.records], records[arguments.records :]
    with scratch() as a, scratch() as b, scratch() as c:
        run = assemble_run(pool, a, estimator="first-order", lora_first_layer=15)
        clip = run.session.stepper.estimator._clip  # type: ignore[attr-defined]  # noqa: SLF001
        pool_parts, other_parts = untouched(pool, b, 1e9), untouched(rest, c, 1e9)
        print("at the start", flush=True)
        table(pool_parts, other_parts, None, clip)
        for step in range(arguments.steps):
            take_step(run, step)
        last = arguments.steps - 1
        space = run.session.stepper.space
        move = torch.from_numpy(
            space.directions.combine(last, run.session.stepper.steps[last].integers)
        )
        for parts in (pool_parts, other_parts):
            parts.session.stepper.space.reset(space.state())
        print(f"after {arguments.steps} steps", flush=True)
        table(pool_parts, other_parts, move, clip)


if __name__ == "__main__":
    main()
