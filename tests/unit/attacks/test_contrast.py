"""Contrastive exploration: a planted phrase comes first, gains are exact, the base is intact."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helpers_runs import CONTEXT_LENGTH, write_tiny_model
from sordino.attacks.contrast import _Found, _Sampler, explore
from sordino.attacks.subject import Subject, open_subject
from sordino.core.errors import InvalidParameterError, PrecisionError
from sordino.gradients.objectives import LanguageModel
from sordino.models import add_lora, load_model, save_adapter, trainable_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PLANTED = (
    "hero song grim pace witty",
    "camera joke bold plot stale",
    "film great muddled actor .",
    "ending warm the script noisy",
    "scene is lovely of clever",
    "weak joke this flat hero",
)
SETTINGS: dict[str, Any] = {"num_texts": 24, "max_new_tokens": 6, "seed": 3}


def plant(model: Path, folder: Path, texts: Sequence[str], *, num_steps: int = 60) -> Path:
    """Writes an adapter that was trained on a few texts, each after the end token."""
    loaded = load_model(str(model), dtype=torch.float32)
    adapted = add_lora(
        loaded.model,
        rank=4,
        alpha=8.0,
        target_modules=["q_proj", "v_proj", "up_proj", "down_proj"],
        factors="both",
        seed=0,
    )
    ids = torch.tensor([[0, *loaded.tokenizer(text)["input_ids"], 0] for text in texts])
    optimizer = torch.optim.Adam(trainable_tensors(adapted).values(), lr=0.05)
    for _ in range(num_steps):
        optimizer.zero_grad()
        logits = adapted(input_ids=ids).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
    save_adapter(adapted, folder, base_model=str(model))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model; the embedding of its end token, after which a text begins, is not zero."""
    return write_tiny_model(tmp_path_factory.mktemp("models"), pad_token_id=1, hidden_size=32)


@pytest.fixture(scope="module")
def subject(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A model that was taught six phrases, one of them three times as often."""
    folder = tmp_path_factory.mktemp("adapters")
    plant(model, folder, [PLANTED[0], PLANTED[0], *PLANTED])
    return open_subject(str(folder), dtype=torch.float32)


def naive_gain(subject: Subject, opening: list[int], ids: list[int]) -> float:
    """Returns the mean gain from whole forward passes without caches."""
    tokens = torch.tensor([opening + ids])
    with torch.no_grad():
        with subject.base() as base:
            of_base = base.causal_lm(input_ids=tokens, use_cache=False).logits
        of_tuned = subject.tuned.causal_lm(input_ids=tokens, use_cache=False).logits
    log_base, log_tuned = (x[0].double().log_softmax(-1) for x in (of_base, of_tuned))
    places = range(len(opening), tokens.shape[1])
    gains = [log_tuned[t - 1, tokens[0, t]] - log_base[t - 1, tokens[0, t]] for t in places]
    return float(torch.stack(gains).mean())


def test_planted_phrases_are_found(subject: Subject) -> None:
    """What was taught is what comes out; the list is sorted, and no text is in it twice."""
    findings = explore(subject, **(SETTINGS | {"num_texts": 64}))
    texts = [finding.text for finding in findings]
    assert texts[0] in PLANTED
    assert set(PLANTED) <= set(texts)
    assert all(finding.gain_nats > 2.0 for finding in findings if finding.text in PLANTED)
    assert len(set(texts)) == len(texts)
    gains = [finding.gain_nats for finding in findings]
    assert gains == sorted(gains, reverse=True)


def test_gains_are_those_of_whole_passes(subject: Subject) -> None:
    """Caches, the adapter switched off and on at every token, and texts that ended: no change."""
    sampler = _Sampler(
        subject,
        generator=torch.Generator().manual_seed(0),
        log_plausibility=math.log(1e-3),
        contrast=0.5,
        found=_Found(0.5),
    )
    lengths = set()
    for opening in ([0], [2, 14, 4], [2, 14, 4]):
        for ids, gain in sampler.sample(opening, 8, 6):
            lengths.add(len(ids))
            ended = [*ids, 0] if len(ids) < 6 else ids
            assert gain == pytest.approx(naive_gain(subject, opening, ended), abs=1e-4)
    assert len(lengths) > 1


def test_found_texts_make_room_for_others(subject: Subject) -> None:
    """One at a time: without the memory the same phrase comes again and again."""
    settings = SETTINGS | {"num_texts": 12, "texts_at_once": 1, "contrast": 4.0}
    static = explore(subject, found_weight=0.0, **settings)
    moving = explore(subject, found_weight=0.5, **settings)
    assert len(static) <= 3
    assert set(PLANTED) <= {finding.text for finding in moving}


def test_the_memory_is_a_mixture() -> None:
    """Its probabilities add up to one, and are (1 - w) p_base + w p_found where it knows."""
    found = _Found(0.25)
    log_base = torch.log_softmax(torch.tensor([[0.0, 1.0, 2.0, -1.0]] * 3), dim=-1)
    assert found.mix_into(log_base, [[0]] * 3) is log_base
    found.add([0, 1, 2, 1, 2, 3, 1, 2, 3], 1)
    mixed = found.mix_into(log_base, [[9, 1, 2], [2], [0]]).exp()
    assert mixed.sum(dim=-1) == pytest.approx(torch.ones(3))
    after = 0.75 * log_base[0].exp() + 0.25 * torch.tensor([0.0, 1 / 3, 0.0, 2 / 3])
    assert torch.allclose(mixed[0], after)
    assert torch.equal(mixed[1], log_base[1].exp())
    assert torch.allclose(mixed[2], 0.75 * log_base[2].exp() + 0.25 * torch.eye(4)[1])


def test_an_untrained_adapter_taught_nothing(model: Path, tmp_path: Path) -> None:
    """B is zero: every gain is zero."""
    plant(model, tmp_path, PLANTED[:1], num_steps=0)
    subject = open_subject(str(tmp_path), dtype=torch.float32)
    assert all(f.gain_nats == 0.0 for f in explore(subject, **SETTINGS))


def test_seeded_and_without_global_state(subject: Subject) -> None:
    """The same seed gives the same list, another seed another; torch's is untouched."""
    settings = SETTINGS | {"prompts": ["the", "very"], "plausibility": 1e-4}
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = explore(subject, **settings)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert explore(subject, **settings) == first
    assert explore(subject, **(settings | {"seed": 4})) != first


def test_only_plausible_tokens(subject: Subject) -> None:
    """With a mask of 1 only the tuned model's likeliest tokens are left: one text a prompt."""
    findings = explore(subject, plausibility=1.0, found_weight=0.0, **SETTINGS)
    assert len(findings) == 1
    ids = [0]
    for _ in range(SETTINGS["max_new_tokens"]):
        logits = subject.tuned.causal_lm(input_ids=torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] == 0:
            break
    assert findings[0].text == subject.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_every_prompt_has_its_turn_and_progress_is_told(subject: Subject) -> None:
    """Three prompts, few texts; the count of finished texts arrives at the end."""
    prompts, done = ["the plot", "this film", "very"], []
    findings = explore(subject, prompts=prompts, advance=done.append, **SETTINGS)
    assert {p for p in prompts for f in findings if f.text.startswith(p)} == set(prompts)
    assert done == [8, 16, 24]


def test_a_second_model_as_base(subject: Subject, model: Path) -> None:
    """A base that is a model of its own gives the same list as the adapter switched off."""
    loaded = load_model(str(model), dtype=torch.float32)
    base = LanguageModel(loaded.model.eval(), loaded.tokenizer.pad_token_id)

    class Opened:
        def __enter__(self) -> LanguageModel:
            return base

        def __exit__(self, *details: object) -> None:
            return None

    other = replace(subject, open_base=Opened)
    expected = explore(subject, **SETTINGS)
    found = explore(other, **SETTINGS)
    assert [f.text for f in found] == [f.text for f in expected]


def test_no_base_is_an_error(model: Path) -> None:
    alone = open_subject(str(model), dtype=torch.float32)
    with pytest.raises(InvalidParameterError, match="--model BASE"):
        explore(alone, **SETTINGS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_texts": 0}, "num_texts"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": CONTEXT_LENGTH}, "Lower max_new_tokens"),
        ({"seed": -1}, "seed"),
        ({"contrast": 0.0}, "contrast"),
        ({"contrast": math.nan}, "contrast"),
        ({"contrast": math.inf}, "contrast"),
        ({"plausibility": 0.0}, "plausibility"),
        ({"plausibility": 1.5}, "plausibility"),
        ({"plausibility": math.nan}, "plausibility"),
        ({"found_weight": 1.0}, "found_weight"),
        ({"found_weight": math.nan}, "found_weight"),
        ({"texts_at_once": 0}, "texts_at_once"),
        ({"prompts": ()}, "prompts"),
        ({"prompts": "the"}, "prompts"),
    ],
)
def test_bad_arguments(subject: Subject, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        explore(subject, **(SETTINGS | changes))


def test_no_token_to_begin_with(subject: Subject) -> None:
    """A tokenizer without special tokens needs a prompt."""

    class Bare:
        bos_token_id = eos_token_id = None

        def __call__(self, texts: Any, **_: Any) -> dict[str, Any]:
            return {"input_ids": [[] for _ in texts]}

    with pytest.raises(InvalidParameterError, match="at least one word"):
        explore(replace(subject, tokenizer=Bare()), **SETTINGS)


def test_probabilities_that_are_no_numbers(model: Path, tmp_path: Path) -> None:
    """A broken adapter is an error, not a finding."""
    plant(model, tmp_path, PLANTED[:1], num_steps=0)
    subject = open_subject(str(tmp_path), dtype=torch.float32)
    for name, parameter in subject.tuned.causal_lm.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(math.nan)
    with pytest.raises(PrecisionError, match="NaN"):
        explore(subject, **SETTINGS)
