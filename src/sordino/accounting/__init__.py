"""Privacy in numbers: channel information, and what a budget means for an attacker's guess."""

from __future__ import annotations

from sordino.accounting.inference_risk import (
    Risk,
    attribute_guess_success,
    attribute_guess_success_with_correlation,
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
    "Risk",
    "attribute_guess_success",
    "attribute_guess_success_with_correlation",
    "binary_symmetric_information",
    "charge_upper",
    "epsilon_from_posterior",
    "flip_probability",
    "gaussian_channel_information",
    "gaussian_noise_std",
    "mutual_information_from_posterior",
    "posterior_from_epsilon",
    "posterior_from_gaussian_mu",
    "posterior_from_mutual_information",
    "risk",
]
