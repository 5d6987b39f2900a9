"""The audit of local protocols: verdicts, exit codes, plans fixed beforehand, bad arguments."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from helpers_enumeration import SeededEntropy
from helpers_runs import run_cli
from helpers_streams import seeded_stream
from sordino.auditing.verdict import Outcome
from sordino.core.errors import InvalidParameterError
from sordino.mechanisms.randomized_quantization import renyi_divergence
from sordino.reports import audit_protocol as module
from sordino.reports.audit_protocol import PROTOCOLS, _plan, audit_protocol

RATE = 1e-7  # of a wrong verdict on a true claim, by chance
TRIALS = 4_000


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws repeat, so that verdicts do."""
    stream = type("Seeded", (), {"from_operating_system": staticmethod(lambda: seeded_stream(5))})
    monkeypatch.setattr(module, "OperatingSystemEntropy", lambda: SeededEntropy(4))
    monkeypatch.setattr(module, "SecretStream", stream)


def settings_of(protocol: str, **changes: Any) -> dict[str, Any]:
    own = {} if "-rounding" in protocol or "quantization" in protocol else {"epsilon": 1.0}
    common = {"protocol": protocol, "num_trials": TRIALS, "significance": RATE}
    return {**common, **own, **changes}


@pytest.mark.parametrize("protocol", PROTOCOLS[:-1])
def test_a_true_claim_stands_and_the_control_is_caught(protocol: str) -> None:
    """The bound is below the closed form, which is the claim up to rounding."""
    result = audit_protocol(**settings_of(protocol))
    assert result.verdict.outcome is Outcome.CONSISTENT
    assert not result.is_contradicted
    assert result.control is not None
    assert 0.4 * result.epsilon_closed_form < result.found.epsilon_lower
    assert result.found.epsilon_lower <= result.epsilon_closed_form < result.control.epsilon_lower
    assert result.lines()[-1].startswith("Consistent")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_false_claim_is_contradicted(protocol: str) -> None:
    """A third of the true epsilon; for stochastic rounding any that the trials reach."""
    result = audit_protocol(**settings_of(protocol, claimed_epsilon=0.3, control=False))
    assert result.verdict.outcome is Outcome.CONTRADICTED
    assert result.control is None
    assert result.lines()[-1].startswith("Contradicted")


def test_stochastic_rounding_claims_nothing_by_itself() -> None:
    result = audit_protocol(**settings_of("stochastic-rounding"))
    assert result.verdict.outcome is Outcome.NOTHING_CLAIMED
    assert result.epsilon_closed_form == math.inf
    assert result.as_dict()["epsilon_closed_form"] is None
    assert "infinite" in " ".join(result.lines())


def test_quantization_is_claimed_by_its_accountant() -> None:
    result = audit_protocol(
        **settings_of("randomized-quantization", num_values=9, margin=3.0, keep_probability=0.2)
    )
    assert result.verdict.claim.value == renyi_divergence(math.inf, 1.0, 3.0, 9, 0.2)


def test_a_plan_is_made_from_the_laws() -> None:
    """The pair and the levels with the largest ratio that this many trials can show."""
    laws = np.array([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0], [0.1, 0.899, 0.001]])
    first, second, levels = _plan(laws, 10_000, 0.05)
    assert (first, second, levels) in {(1, 2, frozenset({0})), (2, 1, frozenset({1, 2}))}


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": "none"},
        {"epsilon": math.nan},
        {"epsilon": None},
        {"num_values": 1},
        {"num_trials": 0},
        {"significance": 0.0},
        {"significance": math.nan},
        {"delta": math.nan},
        {"delta": 1.5},
        {"claimed_epsilon": math.nan},
        {"claimed_epsilon": -1.0},
        {"protocol": "randomized-quantization"},  # an epsilon is given
        {"protocol": "randomized-quantization", "epsilon": None, "num_values": 257},
        {"protocol": "randomized-quantization", "epsilon": None, "margin": math.nan},
        {"protocol": "stochastic-rounding", "epsilon": None, "clip": math.inf},
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError):
        audit_protocol(**(settings_of("generalized-randomized-response") | change))


def test_the_command_exits_with_two_on_contradiction(capsys: pytest.CaptureFixture[str]) -> None:
    """0 for a claim that stands, 2 for one that does not; JSON holds the same numbers."""
    line = ["audit-protocol", "--protocol", "stochastic-rounding", "--num-trials", 2000]
    shell = run_cli(capsys, *line, "--claimed-epsilon", 4)
    assert shell.code == 2
    assert "Contradicted: claimed epsilon <= 4" in shell.out
    shell = run_cli(capsys, *line, "--claimed-epsilon", 4, "--json")
    assert shell.code == 2
    answer = json.loads(shell.out)
    assert answer["verdict"] == "contradicted"
    assert answer["found"]["epsilon_lower"] > 4
    shell = run_cli(capsys, *line)
    assert shell.code == 0
    assert "Nothing claimed" in shell.out
