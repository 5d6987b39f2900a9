"""The loss family: values computed by hand, laws, and the known mistakes of public tools."""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sordino.attacks.scores import (
    SCORES,
    error_zone,
    loss,
    min_k,
    min_k_plus_plus,
    min_k_plus_plus_of,
    num_smallest,
    reference_difference,
    reference_ratio,
    score_all,
    window_comparison,
    zlib_ratio,
)
from sordino.attacks.token_statistics import TokenStatistics
from sordino.core.errors import InvalidDataError, InvalidParameterError, PrecisionError

if TYPE_CHECKING:
    from collections.abc import Callable

LIKELIHOODS = st.lists(st.floats(-30.0, 0.0), min_size=1, max_size=60)


def statistics_of(values: list[float], *, hits: list[bool] | None = None) -> TokenStatistics:
    """Returns statistics with these log-likelihoods and simple moments."""
    own = np.array(values)
    flags = np.zeros(own.size, bool) if hits is None else np.array(hits)
    return TokenStatistics(own, np.full(own.size, -2.0), np.full(own.size, 0.5), flags)


def test_loss_and_zlib_by_hand() -> None:
    """Both are minus the mean loss, the second over the compressed bytes of the UTF-8 text."""
    assert loss([-1.0, -2.0, -6.0]) == -3.0
    text = "ångström " * 20
    assert zlib_ratio([-1.0, -2.0, -6.0], text) == -3.0 / len(zlib.compress(text.encode("utf-8")))
    assert zlib_ratio([-3.0], "") == -3.0 / len(zlib.compress(b""))


def test_min_k_takes_the_least_likely_tokens() -> None:
    """By hand; a public tool takes the most likely ones, which gives -1."""
    values = [-1.0, -9.0, -2.0, -7.0, -1.0, -1.0, -3.0, -1.0, -1.0, -1.0]
    assert min_k(values, 0.2) == -8.0
    assert min_k(values, 0.1) == -9.0
    assert min_k(values, 1.0) == loss(values) == pytest.approx(-2.7)


def test_min_k_of_few_tokens_is_not_nan() -> None:
    """int(k T) = 0 is taken as one token; a public tool averages nothing."""
    assert min_k([-1.0, -5.0, -2.0], 0.2) == -5.0
    assert min_k([-4.0]) == -4.0


@pytest.mark.parametrize(
    ("fraction", "size", "count"),
    [(0.29, 100, 29), (0.58, 100, 58), (0.2, 4, 1), (0.2, 9, 1), (0.2, 10, 2), (0.3, 10, 3),
     (1.0, 7, 7), (1e-300, 7, 1), (0.7, 10, 7), (0.999, 10, 9)],
)  # fmt: skip
def test_share_is_the_one_written(fraction: float, size: int, count: int) -> None:
    """0.29 of 100 is 29 although 0.29 * 100 is below 29 in floating point."""
    assert num_smallest(fraction, size) == count


@given(numerator=st.integers(1, 1000), size=st.integers(1, 5000))
def test_share_never_loses_a_token_to_rounding(numerator: int, size: int) -> None:
    """For shares in thousandths: floor of the exact product, at least 1."""
    assert num_smallest(numerator / 1000, size) == max(1, numerator * size // 1000)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, math.nan, math.inf])
def test_share_out_of_range(fraction: float) -> None:
    with pytest.raises(InvalidParameterError, match="fraction"):
        min_k([-1.0], fraction)
    with pytest.raises(InvalidParameterError, match="fraction"):
        min_k_plus_plus([[math.log(0.5)] * 2], [0], fraction)


def test_min_k_plus_plus_by_hand() -> None:
    """Moments are weighted by the model's probabilities, and not plain vocabulary means."""
    p = np.array([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]])
    log_p = np.log(p)
    mean = np.array([0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1), 0.0])
    mean[1] = 0.5 * math.log(0.5) + 0.5 * math.log(0.25)
    second = np.array(
        [
            0.7 * math.log(0.7) ** 2 + 0.2 * math.log(0.2) ** 2 + 0.1 * math.log(0.1) ** 2,
            0.5 * math.log(0.5) ** 2 + 0.5 * math.log(0.25) ** 2,
        ]
    )
    deviation = np.sqrt(second - mean**2)
    z = (np.array([math.log(0.1), math.log(0.5)]) - mean) / deviation
    assert z[1] == pytest.approx(1.0)
    assert min_k_plus_plus(log_p, [2, 0], 1.0) == pytest.approx(float(z.mean()), rel=1e-12)
    assert min_k_plus_plus(log_p, [2, 0], 0.2) == pytest.approx(float(z.min()), rel=1e-12)
    plain = (math.log(0.1) - log_p[0].mean()) / log_p[0].std()
    assert abs(z[0] - plain) > 0.5  # what a public tool would give


def test_min_k_plus_plus_of_moments_is_the_same() -> None:
    """Full distributions and stored moments give one number."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(30, 50)) * 3.0
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = generator.integers(0, 50, 30)
    mean = (np.exp(log_p) * log_p).sum(axis=1)
    deviation = np.sqrt((np.exp(log_p) * log_p**2).sum(axis=1) - mean**2)
    own = log_p[np.arange(30), targets]
    stored = TokenStatistics(own, mean, deviation, own == log_p.max(axis=1))
    for fraction in (0.1, 0.2, 1.0):
        expected = min_k_plus_plus(log_p, targets, fraction)
        assert min_k_plus_plus_of(stored, fraction) == pytest.approx(expected, rel=1e-10)


def test_min_k_plus_plus_without_spread() -> None:
    """A uniform or a certain model gives z = 0, not NaN; impossible other tokens do no harm."""
    assert min_k_plus_plus(np.full((3, 4), -math.log(4.0)), [0, 1, 3], 1.0) == pytest.approx(0.0)
    assert min_k_plus_plus([[0.0, -math.inf, -math.inf]], [0], 0.2) == 0.0
    halves = [[math.log(0.5), -math.inf, math.log(0.5)]]
    assert min_k_plus_plus(halves, [2], 0.2) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("log_p", "targets", "error"),
    [
        ([[math.log(0.5)] * 2], [2], InvalidDataError),
        ([[math.log(0.5)] * 2], [-1], InvalidDataError),
        ([[math.log(0.5)] * 2], [0.0], InvalidDataError),
        ([[math.log(0.5)] * 2], [0, 1], InvalidDataError),
        ([math.log(0.5)] * 2, [0], InvalidDataError),
        (np.zeros((0, 3)), np.zeros(0, int), InvalidDataError),
        ([[3.0, 900.0]], [0], InvalidDataError),  # logits
        ([[0.5, 0.5]], [0], InvalidDataError),  # probabilities
        ([[0.0, math.nan]], [0], PrecisionError),
        ([[0.0, -math.inf]], [1], PrecisionError),  # impossible target
        ([[0.0, math.inf]], [0], InvalidDataError),
    ],
)
def test_min_k_plus_plus_refuses(log_p: Any, targets: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        min_k_plus_plus(log_p, targets, 0.2)


def test_reference_scores_by_hand() -> None:
    """NLL 2 under the tuned model and 5 under the base; larger = more likely a member."""
    tuned, base = [-1.0, -3.0], [-4.0, -6.0]
    assert reference_difference(tuned, base) == 3.0
    assert reference_ratio(tuned, base) == -0.4
    assert reference_ratio(base, tuned) == -2.5
    assert reference_ratio([0.0], [0.0]) == -1.0  # both certain: nothing changed
    assert reference_ratio([0.0], [-4.0]) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(InvalidDataError, match="same tokens"):
        reference_difference([-1.0], [-1.0, -2.0])


def test_error_zone_by_hand() -> None:
    """Only tokens that the tuned model does not predict; gains over losses."""
    tuned, base = [-1.0, -2.0, -5.0, -0.1], [-4.0, -3.0, -3.0, -9.0]
    hits = np.array([False, False, False, True])
    assert error_zone(tuned, base, hits, kappa=0.5) == 4.0 / 2.5
    assert error_zone(tuned, base, ~hits, kappa=0.5) == pytest.approx(8.9 / 0.5)
    assert error_zone(tuned, base, hits) == pytest.approx(2.0, rel=1e-6)


def test_error_zone_without_errors_or_losses_is_high() -> None:
    """A text learned by heart has no error left; a public tool scores it 0, as a non-member."""
    everywhere = np.ones(2, bool)
    learned = error_zone([-0.1, -0.1], [-3.0, -3.0], everywhere)
    assert learned > error_zone([-2.0, -3.5], [-3.0, -3.0], ~everywhere)
    assert error_zone([-1.0, -1.0], [-3.0, -3.0], ~everywhere, kappa=1e-3) == pytest.approx(4000.0)


def test_error_zone_refuses() -> None:
    for kappa in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InvalidParameterError, match="kappa"):
            error_zone([-1.0], [-1.0], [False], kappa)
    with pytest.raises(InvalidDataError, match="truth values"):
        error_zone([-1.0], [-1.0], [0])
    with pytest.raises(InvalidDataError, match="truth values"):
        error_zone([-1.0], [-1.0], [False, True])


def test_window_comparison_by_hand() -> None:
    """d = 1, -3, 2, 2: of 3 windows of 2, one is above 0; of 2 windows of 3, one."""
    base = [-2.0, -1.0, -4.0, -4.0]
    tuned = [-1.0, -4.0, -2.0, -2.0]
    assert window_comparison(tuned, base, [2]) == pytest.approx(1 / 3)
    assert window_comparison(tuned, base, [3]) == 0.5
    assert window_comparison(tuned, base, [1, 2, 3]) == pytest.approx((3 / 4 + 1 / 3 + 1 / 2) / 3)
    # sizes of 4 and more are the whole text, once: its sum is 2
    assert window_comparison(tuned, base) == pytest.approx((1 / 3 + 1 / 2 + 1.0) / 3)


def test_agreement_is_counted_and_is_no_evidence() -> None:
    """Where base and tuned agree the text stays, at the score of no evidence."""
    values = [-1.0, -2.0, -3.0]
    assert window_comparison(values, values) == 0.0
    assert error_zone(values, values, [False] * 3) == 0.0
    assert reference_difference(values, values) == 0.0
    assert reference_ratio(values, values) == -1.0
    same = statistics_of(values)
    assert set(score_all(same, same, "text")) == set(SCORES)
    # windows without a difference stay in the denominator
    assert window_comparison([-1.0, -1.0, -1.0], [-2.0, -1.0, -1.0], [1]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("sizes", [[], [0], [-2], [2.5]])
def test_window_sizes_out_of_range(sizes: list[int]) -> None:
    with pytest.raises(InvalidParameterError, match="window"):
        window_comparison([-1.0], [-2.0], sizes)


@given(values=LIKELIHOODS, gain=st.floats(0.01, 5.0))
@example(values=[0.0], gain=1.0)
def test_learning_a_text_never_lowers_a_score(values: list[float], gain: float) -> None:
    """With every token likelier by the same amount, each reference score calls it a member."""
    base = np.array(values) - gain - 1e-3
    tuned = base + gain
    misses = np.zeros(base.size, bool)
    assert reference_difference(tuned, base) > 0.0
    assert reference_ratio(tuned, base) > -1.0
    assert window_comparison(tuned, base) == 1.0
    assert window_comparison(base, tuned) == 0.0
    assert error_zone(tuned, base, misses) > error_zone(base, tuned, misses) == 0.0
    assert loss(tuned) > loss(base)
    assert min_k(tuned) > min_k(base)


@given(values=LIKELIHOODS, fraction=st.floats(0.01, 1.0))
def test_min_k_lies_below_the_mean(values: list[float], fraction: float) -> None:
    """It lies between the smallest and the mean, and ignores the order of the tokens."""
    found = min_k(values, fraction)
    assert min(values) - 1e-9 <= found <= loss(values) + 1e-9
    assert found == pytest.approx(min_k(values[::-1], fraction))


@given(values=LIKELIHOODS, seed=st.integers(0, 2**32))
def test_window_comparison_is_a_share(values: list[float], seed: int) -> None:
    """In [0, 1]; and swapping the models leaves no window on both sides."""
    other = np.random.default_rng(seed).normal(-3.0, 3.0, len(values))
    forward = window_comparison(values, other)
    backward = window_comparison(other, values)
    assert 0.0 <= forward <= 1.0
    assert forward + backward <= 1.0 + 1e-12


def test_score_all_gives_the_family() -> None:
    """The registry's names, the same numbers as the functions; without a base, those without."""
    tuned = statistics_of([-1.0, -3.0, -0.5], hits=[True, False, False])
    base = statistics_of([-2.0, -3.5, -0.25], hits=[False, False, False])
    found = score_all(tuned, base, "some text")
    assert list(found) == list(SCORES)
    own, other = tuned.log_likelihoods, base.log_likelihoods
    assert found == {
        "loss": loss(own),
        "zlib": zlib_ratio(own, "some text"),
        "min-k": min_k(own),
        "min-k++": min_k_plus_plus_of(tuned),
        "reference-difference": reference_difference(own, other),
        "reference-ratio": reference_ratio(own, other),
        "error-zone": error_zone(own, other, tuned.is_predicted),
        "window-comparison": window_comparison(own, other),
    }
    alone = score_all(tuned, None, "some text")
    assert alone == {name: found[name] for name in ("loss", "zlib", "min-k", "min-k++")}
    assert [name for name, score in SCORES.items() if not score.needs_base] == list(alone)
    with pytest.raises(InvalidParameterError, match="base"):
        SCORES["error-zone"].compute(tuned, None, "")
    with pytest.raises(InvalidDataError, match="same tokens"):
        score_all(tuned, statistics_of([-1.0]), "")


def test_not_finite_scores_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN would be sorted somewhere, and count."""
    from sordino.attacks import scores

    broken = scores.Score("loss", needs_base=False, compute=lambda *_: math.nan)
    monkeypatch.setitem(scores.SCORES, "loss", broken)
    with pytest.raises(PrecisionError, match="loss"):
        score_all(statistics_of([-1.0]), None, "")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "score",
    [
        loss,
        min_k,
        lambda values: zlib_ratio(values, "a"),
        lambda values: reference_difference(values, [-1.0, -1.0]),
        lambda values: reference_ratio([-1.0, -1.0], values),
        lambda values: error_zone(values, [-1.0, -1.0], [False, False]),
        lambda values: window_comparison([-1.0, -1.0], values),
    ],
)
def test_broken_log_likelihoods_raise(score: Callable[[list[float]], float], bad: float) -> None:
    with pytest.raises(PrecisionError, match="finite"):
        score([-1.0, bad])
    for shape in ([], [[-1.0]]):
        with pytest.raises(InvalidDataError, match="vector"):
            score(shape)
