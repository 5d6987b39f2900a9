"""LiRA and RMIA with reference models: all sides on one scale, nobody against itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from helpers_runs import write_tiny_model
from sordino.attacks.reference_models import ReferenceModels, reference_scores
from sordino.attacks.reference_scores import lira_offline, rmia_offline
from sordino.attacks.subject import open_subject
from sordino.auditing.curves import auc
from sordino.core.errors import InvalidDataError, InvalidParameterError

if TYPE_CHECKING:
    from pathlib import Path


def models(*sources: object) -> ReferenceModels:
    return ReferenceModels(sources=tuple(map(str, sources)), dtype=torch.float32, device="cpu")


def losses(seed: int = 0, size: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns losses of texts of which the first half was learned, and which are the population."""
    rng = np.random.default_rng(seed)
    hardness = rng.uniform(1.0, 6.0, size)
    is_population = np.arange(size) >= size // 2
    target = hardness - 0.4 * ~is_population + rng.normal(0, 0.1, size)
    return target, hardness + rng.normal(0, 0.1, (4, size)), is_population


def test_scores_are_those_of_the_definitions() -> None:
    target, out, is_population = losses()
    scores = reference_scores(["rmia", "lira"], target, out, is_population)
    assert list(scores) == ["lira", "rmia"]
    assert np.array_equal(scores["lira"], lira_offline(-target, -out))
    size = is_population.sum()
    for text in range(target.size):
        others = is_population & (np.arange(target.size) != text)
        one = rmia_offline(target[[text]], out[:, [text]], target[others], out[:, others], a=1.0)
        beaten = one[0] * others.sum() + 0.5 * is_population[text]
        assert scores["rmia"][text] == pytest.approx(beaten / size, abs=1e-12)


def test_the_order_is_that_of_the_ratios() -> None:
    """Nothing is won or lost by using the non-members twice.

    If each text of the population beat itself, the non-members would gain.
    """
    target, out, is_population = losses(3)
    found = reference_scores(["rmia"], target, out, is_population)["rmia"]
    ratios = -target - np.log(np.exp(-out).mean(axis=0))
    expected = auc(ratios[~is_population], ratios[is_population])
    assert auc(found[~is_population], found[is_population]) == pytest.approx(expected, abs=1e-12)


def test_references_find_what_hardness_hides() -> None:
    """Texts differ more in hardness than learning changes: the loss sees little of it.

    Losses are those of language, several nats a token: with RMIA's a of 0.3 its score would be the
    loss again.
    """
    target, out, is_population = losses(1, size=400)
    inside, outside = ~is_population, is_population
    scores = reference_scores(["lira", "rmia"], target, out, is_population)
    assert auc(-target[inside], -target[outside]) < 0.7
    assert min(auc(s[inside], s[outside]) for s in scores.values()) > 0.95
    loss_again = rmia_offline(target, out, target[outside], out[:, outside], a=0.3)
    assert auc(loss_again[inside], loss_again[outside]) < 0.7


def test_no_population() -> None:
    target, out, is_population = losses()
    is_population[:] = False
    with pytest.raises(InvalidDataError, match="compares with non-members, got none"):
        reference_scores(["rmia"], target, out, is_population)


@pytest.mark.parametrize(
    ("count", "wanted", "has_population", "expected"),
    [
        (0, None, True, []),
        (0, ["loss"], True, []),
        (1, None, True, ["rmia"]),
        (2, None, True, ["lira", "rmia"]),
        (2, None, False, ["lira"]),
        (1, None, False, []),
        (2, ["rmia", "loss", "lira"], True, ["lira", "rmia"]),
        (2, ["rmia"], True, ["rmia"]),
    ],
)
def test_which_scores_can_be_computed(
    count: int, wanted: list[str] | None, has_population: bool, expected: list[str]
) -> None:
    chosen = models(*range(count)).choose(wanted, has_population=has_population)
    assert chosen == expected


@pytest.mark.parametrize(
    ("count", "wanted", "has_population", "message"),
    [
        (0, ["rmia"], True, "attack rmia needs a model .*--reference-models"),
        (1, ["lira"], True, "attack lira needs at least two models .*--reference-models"),
        (2, ["rmia"], False, "attack rmia needs non-members.*--nonmembers"),
        (2, ["loss"], True, "names neither"),
    ],
)
def test_wishes_that_cannot_be_met(
    count: int, wanted: list[str], has_population: bool, message: str
) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        models(*range(count)).choose(wanted, has_population=has_population)


def test_references_must_fit(tiny_model: Path, tmp_path: Path) -> None:
    """Not the attacked model, none twice, the same words, as long a context."""
    subject = open_subject(str(tiny_model), dtype=torch.float32)
    other = write_tiny_model(tmp_path / "other", initializer_range=0.2)
    (reference,) = models(other).open_all(subject)
    assert not reference.has_base
    short = write_tiny_model(tmp_path / "short", max_position_embeddings=16)
    strange = write_tiny_model(tmp_path / "strange", initializer_range=0.1)
    text = (strange / "tokenizer.json").read_text()
    (strange / "tokenizer.json").write_text(text.replace('"plot"', '"plots"'))
    for sources, message in (
        ([tiny_model], "is the attacked model itself"),
        ([other, other], "is the same as other"),
        ([strange], "another vocabulary"),
        ([short], "reads 16 tokens"),
    ):
        with pytest.raises(InvalidParameterError, match=message):
            list(models(*sources).open_all(subject))
