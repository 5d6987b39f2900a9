"""The certificate: two secrets, two lines, and never one number for both."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from mpmath import mp, mpf

import oracles
from sordino.core.errors import BudgetExceededError, LedgerError
from sordino.ledger.certificate import NO_GUARANTEE, _dp_assumptions, compute_certificate
from sordino.ledger.certificate_words import describe_certificate
from sordino.ledger.ledger import GENESIS, Ledger, canonical_json

if TYPE_CHECKING:
    from pathlib import Path

UNANIMITY = {
    "name": "unanimity",
    "num_subsets": 128,
    "subset_construction": "random-halves",
    "prior": 0.5,
    "on_disagreement": "coin",
    "unanimity_flip": 0.0,
}
CHANNEL = {
    "name": "binary-channel",
    "num_subsets": 128,
    "subset_construction": "random-halves",
    "prior": 0.5,
    "channel": "binary-symmetric",
    "budget_schedule": "adaptive",
}
CLOSE = {
    "kind": "close",
    "selected_step": 2,
    "selection": "The weights are those after the last step.",
    "transcript_sha256": "a" * 64,
    "artefacts_sha256": {"adapter_model.safetensors": "b" * 64},
}


def opening(mechanism: dict[str, Any], budget: float, **changes: Any) -> dict[str, Any]:
    """Returns an opening event of a run of two steps with three releases each."""
    return {
        "kind": "open",
        "sordino_version": "0.1.0",
        "guarantee": "pac",
        "mutual_information_budget_nats": budget,
        "mutual_information_nats": 0.0,
        "mechanism": mechanism,
        "num_records": 1000,
        "num_steps": 2,
        "directions_per_step": 3,
        "base_model_sha256": "c" * 64,
    } | changes


def release(step: int, charge: float = 0.0) -> dict[str, Any]:
    """Returns the event of one step."""
    return {
        "kind": "release",
        "step": step,
        "num_releases": 3,
        "mutual_information_nats": charge,
        "symbols_sha256": "d" * 64,
    }


def write(path: Path, events: list[dict[str, Any]]) -> Ledger:
    """Returns a ledger of the given events, read back from disk."""
    ledger = Ledger.open(path)
    for event in events:
        ledger.append(event)
    return Ledger.open(path)


def finished(path: Path, mechanism: dict[str, Any], budget: float, **changes: Any) -> Ledger:
    """Returns the ledger of a finished run that spent a sixteenth of its budget on each step."""
    steps = [release(step, budget / 16) for step in range(2)]
    return write(path, [opening(mechanism, budget, **changes), *steps, CLOSE])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def test_both_secrets_are_named(path: Path) -> None:
    """Line 1 is the subset's, line 2 the pool's; neither is left out in words or in JSON."""
    certificate = compute_certificate(finished(path, CHANNEL, 0.125))
    lines = describe_certificate(certificate)
    assert lines[0].startswith(
        "Secret 1, which of 128 candidate subsets of the pool was used: at most 0.125 nats leave"
    )
    assert lines[1] == f"Secret 2, whether a record is in the pool at all: {NO_GUARANTEE}."
    document = json.loads(certificate.to_bytes())
    assert document["subset"]["secret"] == certificate.subset.secret
    assert document["pool"]["guarantee"] == NO_GUARANTEE
    assert document["pool"]["epsilon_upper"] is None


@pytest.mark.parametrize(
    ("mechanism", "budget"), [(UNANIMITY, 0.0), (CHANNEL, 0.125), (CHANNEL, 0.6)]
)
def test_the_pac_number_never_speaks_of_the_pool(
    path: Path, mechanism: dict[str, Any], budget: float
) -> None:
    """Defect: I = 0 sold as membership privacy. The pool's line holds no number of the subset's."""
    certificate = compute_certificate(finished(path, mechanism, budget))
    subset, pool = certificate.subset, certificate.pool
    lines = describe_certificate(certificate)
    about_pool = [line for line in lines if "whether a record is in the pool" in line]
    assert about_pool == [f"Secret 2, {pool.secret}: {NO_GUARANTEE}."]
    numbers = (f"{subset.posterior_upper:.3f}", f"{budget:g} nats", "epsilon")
    assert not any(number in about_pool[0] for number in numbers)
    assert (pool.epsilon_upper, pool.delta, pool.neighboring_relation) == (None, None, None)
    warnings = [line for line in lines if "not protection of membership in the pool" in line]
    assert len(warnings) == 1
    assert "which half of a known pool" in warnings[0]


def test_the_budget_is_the_bound_and_not_what_this_path_charged(path: Path) -> None:
    """A path's charges may be below the information; only the budget is promised."""
    certificate = compute_certificate(finished(path, CHANNEL, 0.25))
    assert certificate.mutual_information_charged_nats == 0.25 / 8
    assert certificate.subset.mutual_information_nats_upper == 0.25
    expected = oracles.posterior(0.25, 0.5)
    assert expected <= certificate.subset.posterior_upper <= expected + mpf("1e-9")
    assert "with probability at most 0.8379 (without" in describe_certificate(certificate)[0]


def test_zero_budget_leaves_the_prior(path: Path) -> None:
    """At I = 0 a guess about the subset is as good as before, and no better."""
    certificate = compute_certificate(finished(path, UNANIMITY, 0.0))
    subset = certificate.subset
    assert (subset.prior, subset.posterior_upper, subset.matched_epsilon) == (0.5, 0.5, 0.0)
    assert "at most 0 nats leave the building" in describe_certificate(certificate)[0]


@pytest.mark.parametrize("budget", [0.01, 0.03, 0.11, 0.123456789, 0.33, 1e-12])
def test_numbers_in_words_err_upwards(path: Path, budget: float) -> None:
    """A printed bound is never below the bound itself: 0.74457 is shown as 0.7446."""
    certificate = compute_certificate(finished(path, CHANNEL, budget))
    line = describe_certificate(certificate)[0]
    nats = float(line.split("at most ")[1].split(" nats")[0])
    posterior = float(line.split("with probability at most ")[1].split(" (")[0])
    assert budget <= nats <= budget * (1 + 1e-5)
    assert certificate.subset.posterior_upper <= posterior
    assert posterior <= certificate.subset.posterior_upper + 1e-4


def test_the_prior_is_that_of_the_best_guess(path: Path) -> None:
    """At rate 1/4 "no" is right three times in four, and the bound starts there."""
    mechanism = CHANNEL | {"subset_construction": "rate", "prior": 0.75}
    subset = compute_certificate(finished(path, mechanism, 0.01)).subset
    assert subset.prior == 0.75
    assert 0.75 < subset.posterior_upper < 0.82


def test_a_vacuous_bound_is_called_vacuous(path: Path) -> None:
    """From ln 2 on, an attacker may be certain; there is no matched epsilon."""
    certificate = compute_certificate(finished(path, CHANNEL, 0.7))
    assert certificate.subset.posterior_upper == 1.0
    assert certificate.subset.matched_epsilon is None
    assert describe_certificate(certificate)[0].endswith("This bound is vacuous.")


def test_without_privacy_nothing_is_claimed(path: Path) -> None:
    """The baseline's certificate says "no formal guarantee" twice and assumes nothing."""
    ledger = finished(path, {"name": "open-mean"}, 0.0, guarantee="none")
    certificate = compute_certificate(ledger)
    lines = describe_certificate(certificate)
    assert lines[0] == f"Secret 1, which records were used: {NO_GUARANTEE}."
    assert lines[1] == f"Secret 2, whether a record is in the pool at all: {NO_GUARANTEE}."
    assert certificate.assumptions == ()
    assert certificate.subset.posterior_upper is None
    assert not any("PAC" in line or "half" in line for line in lines)


@pytest.mark.parametrize("flip", [1e-9, 0.01, 0.2, 0.35, 0.499])
def test_noisy_unanimity_bounds_the_pool(path: Path, flip: float) -> None:
    """epsilon = releases * ln(1 / (2 eta)), rounded up, whatever the PAC line says."""
    certificate = compute_certificate(finished(path, UNANIMITY | {"unanimity_flip": flip}, 0.0))
    pool = certificate.pool
    with mp.workdps(50):
        exact = -6 * mp.log(2 * mpf(flip))
        assert exact <= pool.epsilon_upper <= exact * (1 + mpf("1e-11"))
    assert (pool.delta, pool.guarantee) == (0.0, "pure differential privacy, basic composition")
    line = describe_certificate(certificate)[1]
    shown = float(line.split("epsilon at most ")[1].split(" nats, delta 0")[0])
    assert pool.epsilon_upper <= shown <= pool.epsilon_upper * 1.001
    assert ("vacuous in practice" in line) is (pool.epsilon_upper > 20)
    assert certificate.subset.mutual_information_nats_upper == 0.0


def test_the_relation_of_the_pool_line_is_named(path: Path) -> None:
    """Defect 10: the pool's size is public, so the neighbour is an empty place and not a removal.

    Removing a record from the file renumbers the others, and with that their subsets:
    tests/statistical/test_distinguishing.py shows pools where that breaks the bound.
    """
    certificate = compute_certificate(finished(path, UNANIMITY | {"unanimity_flip": 0.3}, 0.0))
    assert certificate.pool.neighboring_relation == "REPLACE_SPECIAL"
    assert "one record against an empty place" in describe_certificate(certificate)[1]
    assert any("the pool's size" in line for line in certificate.assumptions)
    assert any("share its batch" in line for line in certificate.assumptions)


@pytest.mark.parametrize(
    "change",
    [
        {"unanimity_flip": 0.0},
        {"unanimity_flip": 0.3, "on_disagreement": "skip"},
        {"unanimity_flip": 0.3, "name": "something-new"},
    ],
)
def test_no_other_setting_bounds_the_pool(path: Path, change: dict[str, Any]) -> None:
    """Without flips, with a visible pattern, or under an unknown name: no formal guarantee."""
    certificate = compute_certificate(finished(path, UNANIMITY | change, 0.0))
    assert certificate.pool.guarantee == NO_GUARANTEE
    assert certificate.pool.epsilon_upper is None


def test_what_the_claim_rests_on_is_printed(path: Path) -> None:
    """Honest code, entropy and public settings are assumptions, in words."""
    certificate = compute_certificate(finished(path, CHANNEL, 0.1))
    lines = describe_certificate(certificate)
    assert sum(line.startswith("Assumes: ") for line in lines) == len(certificate.assumptions)
    assert any("operating system's entropy" in line for line in lines)
    assert any("6 symbols were released in 2 steps from a pool of 1000" in line for line in lines)


def test_equal_ledgers_give_equal_bytes(tmp_path: Path) -> None:
    """The certificate depends on the ledger's content alone, not on where or when."""
    (tmp_path / "elsewhere").mkdir()
    paths = [tmp_path / "ledger.jsonl", tmp_path / "elsewhere" / "l.jsonl"]
    first, second = (finished(p, CHANNEL, 0.1) for p in paths)
    content = compute_certificate(first).to_bytes()
    assert content == compute_certificate(second).to_bytes()
    assert content == canonical_json(json.loads(content)) + b"\n"
    third = finished(tmp_path / "third", CHANNEL, 0.1, num_records=1001)
    assert compute_certificate(third).to_bytes() != content


def test_the_certificate_names_the_ledger_it_comes_from(path: Path) -> None:
    """Head and length are in it, so a cut-off ledger no longer fits; so are the files' hashes."""
    ledger = finished(path, CHANNEL, 0.1)
    certificate = compute_certificate(ledger)
    assert (certificate.ledger_head, certificate.ledger_entries) == (ledger.head, 4)
    assert certificate.transcript_sha256 == CLOSE["transcript_sha256"]
    assert certificate.artefacts_sha256 == CLOSE["artefacts_sha256"]
    assert certificate.base_model_sha256 == "c" * 64
    assert certificate.num_releases == 6


OPEN = opening(UNANIMITY, 0.0)
NOTE = {"kind": "note"}


@pytest.mark.parametrize(
    "events",
    [
        [],
        [OPEN],
        [OPEN, CLOSE],
        [OPEN, release(0), release(1)],
        [OPEN, release(0), CLOSE],
        [OPEN, release(1), release(0), CLOSE],
        [OPEN, release(0), release(0), CLOSE],
        [OPEN, release(1), release(2), CLOSE],
        [release(0), release(1), CLOSE],
        [release(0), OPEN, release(1), CLOSE],
        [OPEN, release(0), release(1), CLOSE, CLOSE],
        [OPEN, release(0), CLOSE, release(1)],
        [OPEN, OPEN, release(0), release(1), CLOSE],
        [OPEN, release(0), NOTE, release(1), CLOSE],
        [OPEN, release(0), {"step": 1}, release(1), CLOSE],
        [OPEN | {"guarantee": "dp"}, release(0), release(1), CLOSE],
        [OPEN | {"guarantee": None}, release(0), release(1), CLOSE],
    ],
)
def test_unfinished_or_unknown_ledgers_are_refused(
    path: Path, events: list[dict[str, Any]]
) -> None:
    """Only one opening, every declared step in order and one closing event make a claim."""
    ledger = write(path, events)
    with pytest.raises(
        LedgerError, match=r"unfinished|unknown guarantee|steps declared|no plan of the noise"
    ):
        compute_certificate(ledger)


def test_no_release_beyond_the_plan(path: Path) -> None:
    """A ledger takes as many releases as its opening event plans."""
    with pytest.raises(BudgetExceededError, match="all 2 planned releases are spent"):
        write(path, [OPEN, release(0), release(1), release(2)])


def test_charges_above_the_budget_are_refused(path: Path) -> None:
    """A ledger written by other code, with a right chain, that spends more than it declares."""
    budget, head = 0.1, GENESIS
    lines = b""
    events = [opening(CHANNEL, budget), release(0, budget), release(1, 5e-324), CLOSE]
    for index, event in enumerate(events):
        body = {"index": index, "previous": head, "event": event}
        head = hashlib.sha256(canonical_json(body)).hexdigest()
        lines += canonical_json({**body, "hash": head}) + b"\n"
    path.write_bytes(lines)
    ledger = Ledger.open(path)
    assert ledger.mutual_information_spent > Fraction(budget)
    assert float(ledger.mutual_information_spent) == budget  # a sum in floats would not see it
    with pytest.raises(LedgerError, match="the charges exceed the declared budget"):
        compute_certificate(ledger)


def test_the_whole_budget_may_be_spent(path: Path) -> None:
    """Charges that fill the budget exactly are within it."""
    events = [opening(CHANNEL, 0.25), release(0, 0.125), release(1, 0.125), CLOSE]
    certificate = compute_certificate(write(path, events))
    assert certificate.mutual_information_charged_nats == 0.25


def test_noise_of_a_device_is_not_called_the_operating_systems() -> None:
    """Defect: noise of an accelerator's generator under the words for the stream cipher's."""
    on_device = "CUDA generator keyed by the operating system"
    words = " ".join(_dp_assumptions({"noise": "continuous"}, on_device))
    assert f"the noise itself came from a {on_device}" in words
    for source in (None, "operating system, ChaCha20, float64"):
        words = " ".join(_dp_assumptions({"noise": "continuous"}, source))
        assert "noise and sampling came from the operating system's entropy" in words
