"""Sampling: greedy is the plain argmax loop, samples follow their law, seeds are per text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from helpers_tiny_models import END, VOCABULARY, make_model
from sordino.core.errors import InvalidParameterError, PrecisionError
from sordino.gradients.generation import (
    Decoding,
    _Chooser,
    _generator,
    encode_opening,
    generate_texts,
    keep_likeliest,
)
from sordino.gradients.objectives import LanguageModel
from sordino.models import add_lora, trainable_tensors

PROMPTS = [[5, 9], [17, 3, 8, 8, 21, 30], [1], [12, 13, 14]]
GREEDY = Decoding(max_new_tokens=6, temperature=0.0)


class Numbers:
    """A tokenizer whose texts are the token ids."""

    eos_token_id = END
    bos_token_id: int | None = None

    def batch_decode(self, rows: list[list[int]], **_: Any) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]

    def __call__(self, texts: Any, **_: Any) -> dict[str, Any]:
        is_one = isinstance(texts, str)
        rows = [[7] * len(text) for text in ([texts] if is_one else texts)]
        return {"input_ids": rows[0] if is_one else rows}


def written(model: Any, decoding: Decoding = GREEDY, **changes: Any) -> dict[int, str]:
    settings = {"context_length": 64, "seed": 0} | changes
    prompts = settings.pop("prompts", PROMPTS)
    language_model = LanguageModel(model, END)
    return dict(generate_texts(language_model, Numbers(), prompts, decoding, **settings))


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2"])
def test_greedy_equals_the_plain_loop(name: str) -> None:
    """No cache, no padding, one text at a time: the same tokens, cut at the end token."""
    model = make_model(name, seed=3)
    expected = {}
    for number, prompt in enumerate(PROMPTS):
        ids = list(prompt)
        while len(ids) < len(prompt) + 6:
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token == END:
                break
            ids.append(token)
        expected[number] = " ".join(map(str, ids[len(prompt) :]))
    assert written(model) == expected


def test_texts_do_not_depend_on_the_batch_or_global_state() -> None:
    """The same seed and number give the same text, alone or with others."""
    model = make_model("llama", seed=3)
    decoding = Decoding(max_new_tokens=8, top_k=0)
    before = torch.get_rng_state()
    together = written(model, decoding)
    torch.rand(5)
    assert written(model, decoding, tokens_per_batch=1) == together
    assert written(model, decoding, seed=1) != together
    same = written(model, decoding, prompts=[[5, 9]] * 4)
    assert len(set(same.values())) > 1
    torch.set_rng_state(before)
    written(model, decoding)
    assert torch.equal(torch.get_rng_state(), before)


def test_with_an_adapter_off_the_base_writes() -> None:
    """As inside `Subject.base()`: the same object, the plain model's texts."""
    plain = written(make_model("llama", seed=3))
    adapted = add_lora(make_model("llama", seed=3), rank=2, alpha=4.0, factors="both", seed=1)
    for parameter in trainable_tensors(adapted).values():
        parameter.data += 0.5
    model = adapted.get_base_model()
    tuned = written(model)
    with adapted.disable_adapter():
        assert written(model) == plain
    assert written(model) == tuned != plain


def test_settings_of_the_model_are_hidden_and_given_back() -> None:
    """A repetition penalty or a temperature stored with a model would change the attack."""
    model = make_model("llama", seed=3)
    plain = written(model)
    own = model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.min_new_tokens = 9.0, 1, 6
    assert written(model) == plain
    assert model.generation_config is own
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(PrecisionError, match="NaN"):
        written(model)
    assert model.generation_config is own


def test_long_prompts_lose_their_beginning() -> None:
    model = make_model("llama", seed=3)
    long = list(range(1, 31))
    assert written(model, prompts=[long], context_length=16) == written(model, prompts=[long[-10:]])


def test_progress_counts_every_text() -> None:
    counts: list[int] = []
    written(make_model("llama"), tokens_per_batch=16, advance=counts.append)
    assert sum(counts) == len(PROMPTS)
    assert len(counts) > 1


def test_samples_follow_the_softmax() -> None:
    """A chi-square test of 40,000 draws; fails a right sampler with probability 1e-6."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    chooser = _Chooser(Decoding(temperature=0.5, top_k=0), [_generator(11, i) for i in range(400)])
    counts = np.zeros(4)
    for _ in range(100):
        scores = chooser(torch.zeros(400, 1), logits.expand(400, 4))
        counts += np.bincount(scores.argmax(dim=1).numpy(), minlength=4)
    right = torch.softmax(logits / 0.5, dim=0).numpy()
    wrong = torch.softmax(logits / 0.55, dim=0).numpy()

    def distance(law: np.ndarray) -> float:
        return float(((counts - 40_000 * law) ** 2 / (40_000 * law)).sum())

    limit = float(chi2.isf(1e-6, df=3))
    assert distance(right) < limit < distance(wrong)


def test_cut_to_the_likeliest() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    kept = [
        keep_likeliest(logits, k, p).isfinite().tolist()[0]
        for k, p in ((0, 1.0), (2, 1.0), (9, 1.0), (0, 0.4), (0, 0.41), (2, 0.6), (0, 1e-6))
    ]
    assert kept == [
        [True] * 4,
        [False, True, False, True],
        [True] * 4,
        [False, True, False, False],  # the first reaches 0.4 alone
        [False, True, False, True],
        [False, True, False, True],
        [False, True, False, False],  # one always stays
    ]


def test_openings() -> None:
    """Spaces at the end go; nothing becomes the start token, else the end token."""
    tokenizer = Numbers()
    assert encode_opening(tokenizer, "abc  ") == [7, 7, 7]
    assert encode_opening(tokenizer, "") == [END]
    tokenizer.bos_token_id = 4
    assert encode_opening(tokenizer, "") == [4]
    tokenizer.bos_token_id = tokenizer.eos_token_id = None  # type: ignore[assignment]
    with pytest.raises(InvalidParameterError, match="no start and no end token"):
        encode_opening(tokenizer, "")


@pytest.mark.parametrize(
    "changes",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
    ],
)
def test_wrong_decoding(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"{next(iter(changes))} must be"):
        Decoding(**changes)


def test_wrong_arguments() -> None:
    model = make_model("llama")
    with pytest.raises(InvalidParameterError, match="seed must be"):
        written(model, seed=-1)
    with pytest.raises(InvalidParameterError, match="context_length must be"):
        written(model, context_length=6)
    with pytest.raises(InvalidParameterError, match="at least one token"):
        written(model, prompts=[[3], []])


def test_vocabulary_is_covered() -> None:
    """The tiny model's own law reaches beyond the top: no token is out of reach without top-k."""
    model = make_model("llama", seed=3)
    texts = written(
        model, Decoding(max_new_tokens=1, temperature=100.0, top_k=0), prompts=[[5]] * 600
    )
    assert len(set(texts.values())) > VOCABULARY // 2


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "gemma3", "falcon"])
def test_a_shared_beginning_is_read_once_and_changes_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Different lengths behind it; models with sliding windows read it with every text."""
    model = make_model(name, seed=3)
    beginning = list(range(1, 35))
    prompts = [[*beginning, *rest] for rest in ([5], [17, 3, 8, 8], [], [12, 13])]
    alone = written(model, prompts=prompts, tokens_per_batch=1)
    passes = []
    decoder = type(model.get_decoder())
    forward = decoder.forward

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        ids = options.get("input_ids")
        passes.append(None if ids is None else tuple(ids.shape))
        return forward(self, *args, **options)

    monkeypatch.setattr(decoder, "forward", counted)
    assert written(model, prompts=prompts) == alone
    is_shared = (1, 33) in passes  # one token of the shortest prompt is left
    assert is_shared == (not name.startswith("gemma"))


def test_a_text_ends_where_it_is_finished() -> None:
    """Each for itself: the others go on; padding behind the end is no part of the text."""
    model = make_model("llama", seed=3)
    plain = written(model)
    seen: list[str] = []

    def is_finished(text: str) -> bool:
        seen.append(text)
        return len(text.split()) == 2

    cut = written(model, is_finished=is_finished)
    assert cut == {number: " ".join(text.split()[:2]) for number, text in plain.items()}
    some = written(model, is_finished=lambda text: text == " ".join(plain[0].split()[:3]))
    assert some == plain | {0: " ".join(plain[0].split()[:3])}
    assert max(len(text.split()) for text in seen) == 2  # a finished text is not asked about again
