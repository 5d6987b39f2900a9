"""Privacy in numbers: channel information, epsilon and delta, what they mean for a guess."""

from __future__ import annotations

from sordino.accounting.dp import (
    EpsilonReport,
    SampledGaussian,
    TradeoffBound,
    calibrate_noise_multiplier,
    compute_delta,
    compute_epsilon,
    compute_tradeoff,
    require_small_delta,
)
from sordino.accounting.inference_risk import (
    AttributeRisk,
    Risk,
    attribute_guess_success,
    attribute_guess_success_with_correlation,
    attribute_risk,
    epsilon_from_posterior,
    mutual_information_from_posterior,
    posterior_from_epsilon,
    posterior_from_gaussian_mu,
    posterior_from_mutual_information,
    risk,
)
from sordino.accounting.pac import (
    binary_symmetric_information,
    charge_upper,
    flip_probability,
    gaussian_channel_information,
    gaussian_noise_std,
)

__all__ = [
    "AttributeRisk",
    "EpsilonReport",
    "Risk",
    "SampledGaussian",
    "TradeoffBound",
    "attribute_guess_success",
    "attribute_guess_success_with_correlation",
    "attribute_risk",
    "binary_symmetric_information",
    "calibrate_noise_multiplier",
    "charge_upper",
    "compute_delta",
    "compute_epsilon",
    "compute_tradeoff",
    "epsilon_from_posterior",
    "flip_probability",
    "gaussian_channel_information",
    "gaussian_noise_std",
    "mutual_information_from_posterior",
    "posterior_from_epsilon",
    "posterior_from_gaussian_mu",
    "posterior_from_mutual_information",
    "require_small_delta",
    "risk",
]
