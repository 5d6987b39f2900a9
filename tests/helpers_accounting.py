"""Events of the accountants' tests, in one line."""

from __future__ import annotations

from sordino.accounting.dp import ADD_OR_REMOVE_ONE, SampledGaussian


def event_of(
    noise_multiplier: float,
    sampling_probability: float,
    num_steps: int,
    relation: str = ADD_OR_REMOVE_ONE,
) -> SampledGaussian:
    """Returns the event of so many Poisson-sampled Gaussian releases."""
    return SampledGaussian(
        noise_multiplier=noise_multiplier,
        sampling_probability=sampling_probability,
        num_steps=num_steps,
        neighboring_relation=relation,
    )
