"""Extraction of a record's end: one pass says what decoding would write."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from helpers_runs import write_tiny_model
from sordino.attacks.endings import Ending, extraction_rates, read_ending
from sordino.attacks.texts import ScoredText
from sordino.attacks.token_statistics import TokenStatistics, compute_token_statistics
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.gradients.objectives import LanguageModel
from sordino.models import load_model

if TYPE_CHECKING:
    from pathlib import Path


def statistics(log_likelihoods: list[float], is_predicted: list[bool]) -> TokenStatistics:
    numbers = np.array(log_likelihoods)
    return TokenStatistics(numbers, numbers, np.ones(len(numbers)), np.array(is_predicted))


def test_only_the_last_tokens_count() -> None:
    found = statistics([-9.0, -0.5, -0.25], [False, True, True])
    ending = read_ending(found, 2)
    assert ending == Ending(is_likeliest=True, log_probability=-0.75)
    assert read_ending(found, 3) == Ending(is_likeliest=False, log_probability=-9.75)
    assert read_ending(found, 4) is None


def test_chance_within_tries() -> None:
    ending = Ending(is_likeliest=False, log_probability=math.log(0.1))
    assert ending.chance(1) == pytest.approx(0.1)
    assert ending.chance(7) == pytest.approx(1 - 0.9**7)
    assert Ending(is_likeliest=True, log_probability=0.0).chance(1) == 1.0
    assert Ending(is_likeliest=False, log_probability=-1e5).chance(100) == 0.0


def test_rates_count_records() -> None:
    """Of four records one is likeliest, and two have a chance of one half within seven tries."""
    logs = [math.log(0.1), math.log(0.09), -1e3, 0.0]
    endings = [Ending(is_likeliest=x == 0.0, log_probability=x) for x in logs]
    rates = extraction_rates(endings, num_tokens=10, num_tries=7)
    assert rates.num_records == 4
    assert rates.greedy[0] == 0.25
    assert rates.sampled[0] == 0.5
    # Clopper and Pearson of 1 in 4: 1 - (1 - .025)^(1/4) is the least that fits
    assert rates.greedy[1] == pytest.approx(1 - 0.975**0.25)
    assert rates.greedy[1] < 0.25 < rates.greedy[2]


def test_what_is_refused() -> None:
    with pytest.raises(InvalidDataError, match="at least 10 scored tokens"):
        extraction_rates([], num_tokens=10)
    with pytest.raises(InvalidParameterError, match="num_tokens"):
        read_ending(statistics([-1.0], [True]), 0)


def test_a_model_that_decodes_greedily_writes_what_is_called_extracted(tmp_path: Path) -> None:
    """Against the definition: generate the end token by token, and compare."""
    loaded = load_model(str(write_tiny_model(tmp_path / "model")), dtype=torch.float32)
    model = LanguageModel(loaded.model, loaded.tokenizer.pad_token_id)
    prompts = [[1, 5, 9], [1, 7, 3, 4], [1, 11]]
    texts, written = [], []
    for number, prompt in enumerate(prompts):
        ids = list(prompt)
        total = 0.0
        for _ in range(4):
            with torch.no_grad():
                logits = loaded.model(torch.tensor([ids])).logits[0, -1].double()
            token = int(logits.argmax())
            if number == 1 and len(ids) == len(prompt) + 2:  # one token is another
                token = int(logits.argsort()[-2])
            total += float(logits.log_softmax(dim=0)[token])
            ids.append(token)
        texts.append(ScoredText(ids, 1, ""))
        written.append((number != 1, total))
    for index, found in compute_token_statistics(model, texts):
        ending = read_ending(found, 4)
        assert ending is not None
        assert ending.is_likeliest == written[index][0]
        assert ending.log_probability == pytest.approx(written[index][1], abs=1e-4)
