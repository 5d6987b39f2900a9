"""How near to the exact derivative each estimator comes in each compute type.

Run: python benchmarks/perturbation.py [--records 32] [--adapter lora|full] [--dtypes float16 ...]

The reference is each record's exact directional derivative, by forward mode in float32. For every
compute type: the correlation with it, over records, of the central difference at several
perturbations, of forward mode, and of backpropagation; averaged over two directions.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from common import Parts, assemble_run, movie_reviews, scratch
from sordino.gradients.estimators import AbstractEstimator, ZerothOrderEstimator
from sordino.gradients.forward_mode import ForwardModeEstimator
from sordino.gradients.objectives import LanguageModel

PERTURBATIONS = {
    "lora": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "full": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
}
DIRECTIONS = 2
NO_CLIP = 1e9


def gather(estimator: AbstractEstimator, parts: Parts) -> np.ndarray:
    """Returns an estimator's contributions, shape (num_records, DIRECTIONS)."""
    result = np.full((len(parts.objective.lengths), DIRECTIONS), np.nan)
    for records, values in estimator.contributions(0, parts.session.stepper.plan.batches(0)):
        result[list(records)] = values.numpy()
    return result


def differences(parts: Parts, perturbation: float) -> np.ndarray:
    """Returns central differences."""
    estimator = ZerothOrderEstimator(
        parts.language_model,
        parts.objective,
        parts.session.stepper.space,
        perturbation=perturbation,
        clip=NO_CLIP,
    )
    return gather(estimator, parts)


def forward_mode(parts: Parts) -> np.ndarray:
    """Returns derivatives by forward mode."""
    estimator = ForwardModeEstimator(
        parts.language_model, parts.objective, parts.session.stepper.space, clip=NO_CLIP
    )
    return gather(estimator, parts)


def backpropagation(parts: Parts, dtype: torch.dtype) -> np.ndarray:
    """Returns derivatives by one backward pass a record; fully tuned weights end up in `dtype`."""
    space = parts.session.stepper.space
    causal_lm = parts.language_model.causal_lm
    if hasattr(space, "close"):  # full fine-tuning: compute with the weights themselves
        space.close()
        causal_lm.to(dtype)
    model = LanguageModel(causal_lm, parts.language_model.pad_token_id)
    tensors = list(space.tensors.values())
    sizes = [p.numel() for p in tensors]
    result = np.zeros((len(parts.objective.lengths), DIRECTIONS))
    directions = [
        torch.from_numpy(space.directions.direction(0, k)).split(sizes) for k in range(DIRECTIONS)
    ]
    for parameter in tensors:
        parameter.requires_grad_(requires_grad=True)
    for record in range(len(parts.objective.lengths)):
        loss = parts.objective.losses(model, [record]).sum()
        gradients = torch.autograd.grad(loss, tensors)
        for k in range(DIRECTIONS):
            pairs = zip(gradients, directions[k], strict=True)
            total = sum(
                float((g.reshape(-1).float() * z).sum(dtype=torch.double)) for g, z in pairs
            )
            result[record, k] = total * space.directions.unit
    for parameter in tensors:
        parameter.requires_grad_(requires_grad=False)
    return result


def correlation(found: np.ndarray, truth: np.ndarray) -> str:
    """Returns the mean correlation of the columns, or says that there were numbers missing."""
    if not np.isfinite(found).all():
        return "overflow"
    columns = [np.corrcoef(found[:, k], truth[:, k])[0, 1] for k in range(DIRECTIONS)]
    return f"{np.mean(columns):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--adapter", default="lora", choices=["lora", "full"])
    parser.add_argument(
        "--dtypes",
        nargs="+",
        default=["float32", "bfloat16"],
        choices=["float32", "bfloat16", "float16"],
        help="float16 takes six times as long as bfloat16 on a CPU: give it fewer --records",
    )
    arguments = parser.parse_args()
    pool = movie_reviews(arguments.records)
    settings = {"adapter": arguments.adapter, "directions_per_step": DIRECTIONS}
    with scratch() as folder:
        truth = forward_mode(assemble_run(pool, folder, dtype="float32", **settings))
    spread = ", ".join(f"{s:.3g}" for s in truth.std(axis=0))
    print(f"exact derivatives of {arguments.records} records spread by {spread}")
    grid = PERTURBATIONS[arguments.adapter]
    header = [*[f"{p:g}" for p in grid], "forward mode", "backpropagation"]
    print("perturbation", *header, sep="\t", flush=True)
    for dtype in arguments.dtypes:
        with scratch() as folder:
            parts = assemble_run(pool, folder, dtype=dtype, **settings)
            row = [correlation(differences(parts, p), truth) for p in grid]
            row.append(correlation(forward_mode(parts), truth))
            row.append(correlation(backpropagation(parts, getattr(torch, dtype)), truth))
        name = f"{dtype} ({arguments.adapter}, {arguments.records} records)"
        print(name, *row, sep="\t", flush=True)


if __name__ == "__main__":
    main()
