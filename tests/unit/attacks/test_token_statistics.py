"""Statistics of scored tokens against plain float64 sums over the whole vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from helpers_tiny_models import END, VOCABULARY, WORDS, adapted_llama, make_model
from sordino.attacks import token_statistics
from sordino.attacks.texts import ScoredText
from sordino.attacks.token_statistics import (
    TokenStatistics,
    _statistics,
    _sums,
    compute_token_statistics,
    word_logits,
)
from sordino.core.errors import InvalidDataError, InvalidParameterError, PrecisionError
from sordino.gradients.objectives import LanguageModel


def make_texts(lengths: list[int], seed: int = 0) -> list[ScoredText]:
    """Returns random texts; the end token, which also pads, stands among the scored tokens."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for number, length in enumerate(lengths):
        ids = torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()
        ids[-1] = END
        texts.append(ScoredText(ids, 1 + number % (length - 1), ""))
    return texts


def plain(model: Any, text: ScoredText) -> TokenStatistics:
    """Returns the same from the model's own logits, one text alone, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([text.input_ids])).logits[0].double()
    rows = []
    for position in range(text.first_scored, len(text.input_ids)):
        row, target = logits[position - 1], text.input_ids[position]
        if text.word_ids is not None:
            row, target = row[list(text.word_ids)], text.word_ids.index(target)
        log_p = row - row.logsumexp(0)
        mean = (log_p.exp() * log_p).sum()
        deviation = (log_p.exp() * (log_p - mean) ** 2).sum().sqrt()
        rows.append((log_p[target], mean, deviation, float(row[target] == row.max())))
    own, means, deviations, hits = np.array(rows, dtype=np.float64).T
    return TokenStatistics(own, means, deviations, hits > 0)


def assert_close(found: TokenStatistics, expected: TokenStatistics, tolerance: float) -> None:
    for name in ("log_likelihoods", "means", "standard_deviations"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance
        )
    assert (found.is_predicted == expected.is_predicted).all()
    assert found.is_predicted.dtype == np.bool_


def score(model: Any, texts: list[ScoredText], **changes: Any) -> list[TokenStatistics]:
    found = dict(compute_token_statistics(LanguageModel(model, END), texts, **changes))
    assert sorted(found) == list(range(len(texts)))
    return [found[i] for i in range(len(texts))]


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "gemma2"])  # a bias, a changed head
def test_equal_to_plain_sums(name: str) -> None:
    """In batches with padding that is a real token, nothing but real tokens is scored."""
    model = make_model(name)
    texts = make_texts([2, 9, 17, 5, 12, 3, 9])
    for tokens_per_batch in (2048, 20):
        found = score(model, texts, tokens_per_batch=tokens_per_batch)
        for text, statistics in zip(texts, found, strict=True):
            assert statistics.num_tokens == len(text.scored_ids)
            assert_close(statistics, plain(model, text), 2e-5)


def test_padding_token_does_not_matter() -> None:
    """Whatever pads the batch, the statistics are the same bits; so padding is never scored."""
    model = make_model("llama")
    texts = make_texts([3, 11, 6])
    found = [
        dict(compute_token_statistics(LanguageModel(model, pad), texts)) for pad in (END, 7, 39)
    ]
    for index in range(3):
        for other in found[1:]:
            for name in ("log_likelihoods", "means", "standard_deviations"):
                assert np.array_equal(getattr(found[0][index], name), getattr(other[index], name))


def test_words_renormalise() -> None:
    """Label words compete among themselves, as in training; they may be mixed with other texts."""
    model = make_model("llama")
    words = tuple(WORDS)
    texts = [
        ScoredText([3, 4, 5, 9], 3, " x", words),
        ScoredText([3, 4], 1, "x"),
        ScoredText([8, 17], 1, " y", words),
        ScoredText([8, 17], 1, " y", (17, 2)),
    ]
    found = score(model, texts)
    for text, statistics in zip(texts, found, strict=True):
        assert_close(statistics, plain(model, text), 2e-5)
    language_model = LanguageModel(model, END)
    ids, last = torch.tensor([[3, 4, 5]]), torch.tensor([2])
    logits = language_model.word_logits(ids, last, torch.tensor(words))
    expected = float(torch.log_softmax(logits, dim=1)[0, 1])
    assert found[0].log_likelihoods.tolist() == pytest.approx([expected], abs=1e-6)


@pytest.mark.parametrize("name", ["llama", "phi", "gemma2"])
def test_word_logits_are_those_of_training(name: str) -> None:
    """The same bits as `LanguageModel.word_logits`, also in bfloat16."""
    model = LanguageModel(make_model(name).to(torch.bfloat16), END)
    ids, zero, last = torch.tensor([[3, 4, 5]]), torch.tensor([0]), torch.tensor([2])
    words = torch.tensor(WORDS)
    with torch.no_grad():
        found = word_logits(model, model.states_at(ids, zero, last), zero, words)
        assert torch.equal(found, model.word_logits(ids, last, words))


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by chunks of rows: no chunk holds more logits than allowed."""
    model = make_model("llama")
    texts = make_texts([9, 17, 5])
    whole = score(model, texts)
    sizes: list[int] = []
    original = LanguageModel.logits_of

    def logits_of(self: LanguageModel, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        sizes.append(states.shape[0] * VOCABULARY)
        return original(self, states, rows)

    monkeypatch.setattr(LanguageModel, "logits_of", logits_of)
    monkeypatch.setattr(token_statistics, "_LOGITS_AT_ONCE", 5 * VOCABULARY)
    monkeypatch.setattr(token_statistics, "_LOGITS_IN_CACHE", 2 * VOCABULARY)
    for one, other in zip(whole, score(model, texts), strict=True):
        assert_close(one, other, 1e-6)
    assert max(sizes) == 5 * VOCABULARY
    monkeypatch.setattr(token_statistics, "_LOGITS_AT_ONCE", 1)  # less than one row: one row
    assert len(score(model, texts)) == 3


def test_deviations_are_stable() -> None:
    """Certain, uniform and far-off distributions against float64; logits may be large."""
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.zeros(5000),
        torch.full((5000,), 300.0),
        torch.cat([torch.tensor([40.0]), torch.zeros(4999)]),
        torch.cat([torch.tensor([8.0]), torch.zeros(4999)]),
        torch.randn(5000, generator=generator) * 0.01 + 200.0,
        torch.randn(5000, generator=generator) * 5.0 - 1000.0,
    ]
    for row in rows:
        found = _statistics(_sums(row[None], torch.tensor([3])).numpy().astype(np.float64))
        log_p = row.double() - row.double().logsumexp(0)
        mean = (log_p.exp() * log_p).sum()
        deviation = float((log_p.exp() * (log_p - mean) ** 2).sum().sqrt())
        assert found.means[0] == pytest.approx(float(mean), abs=1e-5, rel=1e-6)
        assert found.standard_deviations[0] == pytest.approx(deviation, abs=2e-5, rel=1e-4)
        assert found.log_likelihoods[0] == pytest.approx(float(log_p[3]), abs=1e-5, rel=1e-6)


def test_impossible_tokens_have_no_weight() -> None:
    """A logit of -infinity, or the lowest float, is a probability of zero."""
    for lowest in (-torch.inf, torch.finfo(torch.float32).min):
        logits = torch.tensor([[0.0, 1.0, lowest, lowest]])
        found = _statistics(_sums(logits, torch.tensor([0])).numpy().astype(np.float64))
        p = np.exp([0.0, 1.0]) / np.exp([0.0, 1.0]).sum()
        assert found.means[0] == pytest.approx(float((p * np.log(p)).sum()))
        deviation = np.sqrt((p * np.log(p) ** 2).sum() - (p * np.log(p)).sum() ** 2)
        assert found.standard_deviations[0] == pytest.approx(float(deviation), rel=1e-5)
        assert not found.is_predicted[0]


def test_impossible_target_and_broken_models_raise() -> None:
    sums = _sums(torch.tensor([[0.0, -torch.inf]]), torch.tensor([1]))
    with pytest.raises(PrecisionError, match="finite"):
        _statistics(sums.numpy().astype(np.float64))
    model = make_model("llama")
    model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(PrecisionError, match="finite"):
        score(model, make_texts([4]))


def test_ties_count_as_predicted() -> None:
    """bfloat16 logits are often equal: which of them came must not depend on their order."""
    sums = _sums(torch.tensor([[2.0, 2.0, 1.0]] * 3), torch.tensor([0, 1, 2]))
    found = _statistics(sums.numpy().astype(np.float64))
    assert found.is_predicted.tolist() == [True, True, False]


def test_adapter_off_is_scored_as_the_base() -> None:
    """The same model gives both sets of statistics, and leaves no gradient behind."""
    model, _ = adapted_llama("b")
    texts = make_texts([6, 9])
    tuned = dict(compute_token_statistics(model, texts))
    again = dict(compute_token_statistics(model, texts))
    assert np.array_equal(tuned[0].log_likelihoods, again[0].log_likelihoods)
    base = score(make_model("llama"), texts)
    assert not np.allclose(tuned[0].log_likelihoods, base[0].log_likelihoods)


def test_progress_counts_texts() -> None:
    seen: list[int] = []
    texts = make_texts([9, 9, 9, 4])
    score(make_model("llama"), texts, tokens_per_batch=18, advance=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 4
    assert score(make_model("llama"), []) == []
    with pytest.raises(InvalidParameterError, match="tokens_per_batch"):
        score(make_model("llama"), texts, tokens_per_batch=0)


def test_statistics_are_checked() -> None:
    one, hit = np.ones(1), np.ones(1, dtype=bool)
    with pytest.raises(InvalidDataError, match="one length"):
        TokenStatistics(one, np.ones(2), one, hit)
    with pytest.raises(InvalidDataError, match="at least 1"):
        TokenStatistics(one[:0], one[:0], one[:0], hit[:0])
    with pytest.raises(PrecisionError, match="negative"):
        TokenStatistics(-one, -one, -one, hit)
    for bad in (np.nan, np.inf):
        with pytest.raises(PrecisionError, match="finite"):
            TokenStatistics(-one, one * bad, one, hit)
    assert (
        TokenStatistics(
            np.array([-1.0, -3.0]), -np.ones(2), np.ones(2), np.ones(2, bool)
        ).negative_log_likelihood
        == 2.0
    )
