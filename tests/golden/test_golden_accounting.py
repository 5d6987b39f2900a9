"""Published and past numbers of the accounting layer are reproduced."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy.special import ndtr

from sordino import accounting

ENTRIES = json.loads((Path(__file__).parent / "accounting.json").read_text(encoding="utf-8"))


def matched_epsilon(nats: float) -> float:
    """Returns the epsilon column of the posterior table."""
    return accounting.risk(mutual_information=nats).epsilon_matched


def gaussian_sign_error(mass: float, nats: float) -> float:
    """Returns how often the sign of the noisy value is wrong."""
    return float(ndtr(-1.0 / accounting.gaussian_noise_std(mass, nats)))


def advantage_ratio(mass: float, nats: float) -> float:
    """Returns the bias of the flipped bit over that of the Gaussian sign."""
    flip = accounting.flip_probability(mass, nats)
    return (0.5 - flip) / (0.5 - gaussian_sign_error(mass, nats))


DERIVED = {
    "matched_epsilon": matched_epsilon,
    "gaussian_sign_error": gaussian_sign_error,
    "advantage_ratio": advantage_ratio,
}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_golden_value(entry: dict[str, Any]) -> None:
    """A change of a published number needs an entry in CHANGELOG.md under Privacy."""
    name = entry["function"]
    function = DERIVED.get(name) or getattr(accounting, name)
    result = function(*entry["arguments"])
    assert math.isfinite(result)
    assert abs(result - entry["value"]) <= entry["tolerance"]
