"""The leave-one-out loss against brute force: the run's likelihood with each record removed."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest

from helpers_enumeration import SeededEntropy, exact_law
from sordino.ledger.ledger import canonical_json
from sordino.mechanisms.candidates import CandidateSubsets, SubsetSums, to_fixed_point
from sordino.mechanisms.unanimity import UnanimityMechanism
from sordino.training import leave_one_out as module
from sordino.training.leave_one_out import LeaveOneOut

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sordino.core.entropy import AbstractEntropy

T, K, BOUND = 3, 2, 4.0
SETTINGS = [("coin", 0.0), ("coin", 0.2), ("coin", 0.45), ("skip", 0.0), ("skip", 0.2)]
POOLS = [(6, 4, 0), (7, 4, 1), (8, 6, 2), (10, 8, 3)]  # records, subsets, seed


def training(seed: int, history: Sequence[Sequence[int]], num_records: int) -> NDArray[np.float64]:
    """Returns contributions that depend on all released symbols, as a model's do."""
    words = [symbol + 1 for step in history for symbol in step]
    rng = np.random.default_rng([seed, len(words), *words])
    lean = rng.choice([-2.0, -0.5, 0.0, 0.5, 2.0], size=K)
    return (rng.normal(size=(num_records, K)).round(1) + lean).clip(-BOUND, BOUND)


class TinyRun:
    """A run on a tiny pool, and what it would have been without a record."""

    def __init__(
        self, pool: tuple[int, int, int], setting: tuple[str, float], draw: int = 0
    ) -> None:
        self.num_records, num_subsets, self.seed = pool
        self.on_disagreement, self.flip = setting
        self.candidates = CandidateSubsets(num_subsets=num_subsets, seed=self.seed)
        self.member = self.candidates.membership(self.num_records)
        self.report = LeaveOneOut(self.member, self.flip, self.on_disagreement)
        self.transcript: list[tuple[int, ...]] = []
        mechanism = self.mechanism(SeededEntropy([self.seed, draw]))
        for step in range(T):
            sums, integers = self.sums(self.transcript)
            release = mechanism.release(sums.sums, sums.unit, step)
            self.report.add(sums.sums, integers, release.integers)
            self.transcript.append(tuple(release.integers.tolist()))

    def mechanism(self, entropy: AbstractEntropy) -> UnanimityMechanism:
        """Returns the mechanism under test."""
        return UnanimityMechanism(
            self.candidates,
            entropy,
            on_disagreement=self.on_disagreement,
            unanimity_flip=self.flip,
        )

    def sums(
        self, history: Sequence[Sequence[int]], without: int | None = None
    ) -> tuple[SubsetSums, NDArray[np.float64]]:
        """Returns the sums of one step over the pool, perhaps without one record."""
        contributions = training(self.seed, history, self.num_records)
        total = SubsetSums(self.member, K, BOUND)
        kept = np.array([i for i in range(self.num_records) if i != without])
        total.add(kept, contributions[kept])
        return total, to_fixed_point(contributions, BOUND, total.unit)

    def likelihood(self, without: int | None = None) -> tuple[Fraction, list[bool]]:
        """Returns the transcript's exact probability, and which releases are unanimous."""
        probability = Fraction(1)
        unanimous = []
        for step, symbols in enumerate(self.transcript):
            sums, _ = self.sums(self.transcript[:step], without)

            def run(entropy: AbstractEntropy, sums: SubsetSums = sums) -> tuple[object, object]:
                release = self.mechanism(entropy).release(sums.sums, sums.unit, 0)
                return tuple(release.integers.tolist()), tuple(release.unanimous.tolist())

            law = exact_law(run)
            ((_, flags),) = {("", flags) for _, flags in law}
            unanimous += flags
            probability *= law.get((symbols, flags), Fraction(0))
        return probability, unanimous


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_loss_is_the_likelihood_ratio(
    pool: tuple[int, int, int], setting: tuple[str, float]
) -> None:
    """For every record: ln P(transcript) - ln P(transcript without it), infinity included."""
    for draw in range(3):
        run = TinyRun(pool, setting, draw)
        with_all, unanimous = run.likelihood()
        assert with_all > 0
        for x in range(run.num_records):
            without, unanimous_without = run.likelihood(without=x)
            pivotal = sum(a != b for a, b in zip(unanimous, unanimous_without, strict=True))
            assert run.report.pivotal_releases[x] == pivotal
            loss = run.report.loss_nats[x]
            if without == 0:
                assert loss == math.inf
            else:
                expected = math.log(with_all / without)
                assert loss == pytest.approx(expected, rel=1e-12, abs=1e-12)


def all_runs(setting: tuple[str, float]) -> list[TinyRun]:
    return [
        TinyRun((n, M, seed), setting, draw)
        for n, M, seed, draw in itertools.product((6, 9), (4, 8), range(8), range(3))
    ]


@pytest.mark.parametrize("flip", [1e-3, 0.2, 0.45])
def test_flips_bound_every_pivotal_release(flip: float) -> None:
    """At most ln(1 / (2 eta)) nats a pivotal release, attained; a record without one has 0."""
    limit = -math.log(2 * flip)
    tightest = 0.0
    for run in all_runs(("coin", flip)):
        loss, pivotal = run.report.loss_nats, run.report.pivotal_releases
        assert np.isfinite(loss).all()
        assert (np.abs(loss) <= pivotal * limit * (1 + 1e-12)).all()
        assert (loss[pivotal == 0] == 0.0).all()
        share = np.abs(loss) / (np.maximum(pivotal, 1) * limit)
        tightest = max(tightest, float(share.max()))
    assert tightest > (1 - 1e-12 if flip > 0.01 else 0.1)  # a flip of 0.001 is a rare event


def test_coins_give_ln_2_or_infinity() -> None:
    """Without flips a pivotal release costs +ln 2, -ln 2 or everything; all three occur."""
    seen = set()
    for run in all_runs(("coin", 0.0)):
        for loss, pivotal in zip(run.report.loss_nats, run.report.pivotal_releases, strict=True):
            if pivotal == 1:
                seen.add(round(loss / math.log(2.0), 9))
            if math.isfinite(loss):
                assert abs(loss) <= pivotal * math.log(2.0) + 1e-12
    assert seen == {1.0, -1.0, math.inf}


@pytest.mark.parametrize("flip", [0.0, 0.2])
def test_skip_shows_every_pivotal_release(flip: float) -> None:
    """Where nothing moves without unanimity, the pattern gives a pivotal record away."""
    runs = all_runs(("skip", flip))
    for run in runs:
        is_pivotal = run.report.pivotal_releases > 0
        assert np.array_equal(np.isinf(run.report.loss_nats), is_pivotal)
        assert (run.report.loss_nats[~is_pivotal] == 0.0).all()
    assert any((run.report.pivotal_releases > 0).any() for run in runs)


def test_a_record_in_no_batch_is_never_pivotal() -> None:
    """A record that did not take part in a step contributes nothing to remove."""
    member = CandidateSubsets(num_subsets=4).membership(5)
    report = LeaveOneOut(member, 0.0, "coin")
    contributions = np.zeros((5, 1))
    contributions[0] = 1.0
    report.add(member.T @ contributions, contributions, np.array([1], dtype=np.int32))
    assert report.pivotal_releases.tolist() == [0, 0, 0, 0, 0]
    report.add(-(member.T @ contributions), -contributions, np.array([1], dtype=np.int32))
    assert report.pivotal_releases.tolist() == [1, 0, 0, 0, 0]


def test_blocks_of_records_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large pool is handled a few records at a time, with the same result."""
    whole = TinyRun((10, 8, 3), ("coin", 0.2)).report
    monkeypatch.setattr(module, "_CELLS_AT_ONCE", 1)
    parts = TinyRun((10, 8, 3), ("coin", 0.2)).report
    assert np.array_equal(whole.loss_nats, parts.loss_nats)
    assert np.array_equal(whole.pivotal_releases, parts.pivotal_releases)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_releases_out_of_reach_are_left_out_rightly(
    setting: tuple[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking only where a record might be pivotal finds all that looking everywhere finds."""
    kept = 0
    runs = all_runs(setting)
    monkeypatch.setattr(module, "_can_be_pivotal", lambda sums, _: np.ones(sums.shape[1], bool))
    for run, everywhere in zip(runs, all_runs(setting), strict=True):
        assert np.array_equal(run.report.loss_nats, everywhere.report.loss_nats)
        assert np.array_equal(run.report.pivotal_releases, everywhere.report.pivotal_releases)
        kept += int(run.report.pivotal_releases.sum())
    assert kept > 100


def test_loss_against_the_number_of_directions() -> None:
    """For the first K/4, K/16, K/64 directions of each step: as if only those were released."""
    rng = np.random.default_rng(5)
    member = CandidateSubsets(num_subsets=8).membership(30)
    whole, quarter, least = (LeaveOneOut(member, 0.2, "coin") for _ in range(3))
    for _ in range(3):
        contributions = np.rint(rng.normal(0.5, 1.0, size=(30, 64)) * 10)
        sums = member.T.astype(float) @ contributions
        released = rng.choice([-1, 1], size=64).astype(np.int32)
        whole.add(sums, contributions, released)
        quarter.add(sums[:, :16], contributions[:, :16], released[:16])
        least.add(sums[:, :1], contributions[:, :1], released[:1])
    report = whole.report()["by_directions_per_step"]
    assert list(report) == ["what", "1", "4", "16", "64"]
    for key, expected in (("64", whole), ("16", quarter), ("1", least)):
        wanted = expected.report()
        for name in ("share_at_zero", "mean_pivotal_releases", "quantiles_of_absolute_loss_nats"):
            assert report[key][name] == pytest.approx(wanted[name])
    counts = [report[key]["mean_pivotal_releases"] for key in ("1", "4", "16", "64")]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_state_survives_the_journal(setting: tuple[str, float]) -> None:
    """Through canonical JSON and back, infinities included, and it goes on adding."""
    run = TinyRun((8, 6, 2), setting)
    restored = LeaveOneOut(run.member, run.flip, run.on_disagreement)
    restored.restore(json.loads(canonical_json(run.report.state())))
    for report in (run.report, restored):
        sums, integers = run.sums(())
        report.add(sums.sums, integers, np.array(run.transcript[0], dtype=np.int32))
    assert np.array_equal(restored.loss_nats, run.report.loss_nats)
    assert np.array_equal(restored.pivotal_releases, run.report.pivotal_releases)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_report_is_json_and_says_what_it_is(setting: tuple[str, float]) -> None:
    """Histogram, share at zero and worst records, and the words "not a guarantee"."""
    run = TinyRun((10, 8, 3), setting)
    report = json.loads(json.dumps(run.report.report(num_worst=3), allow_nan=False))
    loss, pivotal = run.report.loss_nats, run.report.pivotal_releases
    assert "Not a guarantee" in report["what"]
    assert "keep it with the data" in report["what"]
    assert report["num_records"] == 10
    assert report["share_at_zero"] == np.mean(pivotal == 0)
    assert report["share_infinite"] == np.mean(np.isinf(loss))
    assert sum(report["histogram"]["counts"]) == np.isfinite(loss).sum()
    assert [float(str(x).replace("infinite", "inf")) for x in report["loss_nats"]] == loss.tolist()
    worst = [entry["record"] for entry in report["worst_records"]]
    assert len(worst) == 3
    assert np.abs(loss[worst]).min() >= np.sort(np.abs(loss))[-3]
    shown = report["quantiles_of_absolute_loss_nats"]["max"]
    assert float(str(shown).replace("infinite", "inf")) == np.abs(loss).max()
