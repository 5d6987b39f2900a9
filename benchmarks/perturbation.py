"""Which perturbation fits which compute type: finite differences against exact derivatives.

Run: python benchmarks/perturbation.py [--records 48] [--adapter lora|full]

For every compute type and perturbation: the correlation, over records, of the central difference
with the exact directional derivative (float32, backpropagation), averaged over two directions.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from common import Parts, assemble_run, movie_reviews, scratch
from sordino.gradients.estimators import ZerothOrderEstimator

PERTURBATIONS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
DIRECTIONS = 2


def differences(parts: Parts, perturbation: float) -> np.ndarray:
    """Returns finite differences, shape (num_records, DIRECTIONS)."""
    estimator = ZerothOrderEstimator(
        parts.language_model,
        parts.objective,
        parts.session.space,
        perturbation=perturbation,
        clip=1e9,
    )
    batches = parts.session.plan.batches(0)
    result = np.zeros((len(parts.objective.lengths), DIRECTIONS))
    for records, values in estimator.contributions(0, batches):
        result[list(records)] = values.numpy()
    return result


def exact(parts: Parts) -> np.ndarray:
    """Returns exact directional derivatives, shape (num_records, DIRECTIONS)."""
    tensors = list(parts.session.space.tensors.values())
    sizes = [p.numel() for p in tensors]
    result = np.zeros((len(parts.objective.lengths), DIRECTIONS))
    for parameter in tensors:
        parameter.requires_grad_(requires_grad=True)
    directions = [
        torch.from_numpy(parts.session.space.directions.direction(0, k)).split(sizes)
        for k in range(DIRECTIONS)
    ]
    for record in range(len(parts.objective.lengths)):
        loss = parts.objective.losses(parts.language_model, [record]).sum()
        gradients = torch.autograd.grad(loss, tensors)
        for k in range(DIRECTIONS):
            pairs = zip(gradients, directions[k], strict=True)
            result[record, k] = sum(float((g.reshape(-1) * z).sum()) for g, z in pairs)
    for parameter in tensors:
        parameter.requires_grad_(requires_grad=False)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=48)
    parser.add_argument("--adapter", default="lora", choices=["lora", "full"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    arguments = parser.parse_args()
    pool = movie_reviews(arguments.records)
    with scratch() as folder:
        truth = exact(
            assemble_run(
                pool,
                folder,
                adapter=arguments.adapter,
                dtype="float32",
                directions_per_step=DIRECTIONS,
            )
        )
    print("perturbation", *[f"{p:g}" for p in PERTURBATIONS], sep="\t")
    for dtype in arguments.dtypes:  # float16 takes very long on a CPU
        with scratch() as folder:
            parts = assemble_run(
                pool,
                folder,
                adapter=arguments.adapter,
                dtype=dtype,
                directions_per_step=DIRECTIONS,
            )
            row = []
            for perturbation in PERTURBATIONS:
                found = differences(parts, perturbation)
                row.append(
                    np.mean(
                        [np.corrcoef(found[:, k], truth[:, k])[0, 1] for k in range(DIRECTIONS)]
                    )
                )
        print(f"{dtype} ({arguments.adapter})", *[f"{r:.3f}" for r in row], sep="\t", flush=True)


if __name__ == "__main__":
    main()
