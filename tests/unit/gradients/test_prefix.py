"""The frozen prefix changes the cost of a step and nothing else."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config, GPT2Config, LlamaConfig, Qwen2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from sordino.gradients.per_record import PerRecordGradients
from sordino.gradients.prefix import FrozenPrefix
from sordino.models import add_lora, trainable_tensors

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "gemma2": Gemma2Config(**SMALL),
    "gpt2": GPT2Config(
        n_embd=32, n_layer=4, n_head=4, vocab_size=64, bos_token_id=1, eos_token_id=2
    ),
}


def make_model(name: str) -> torch.nn.Module:
    """Returns a tiny random model without dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
    return model.eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_gives_the_same_bits_or_is_not_used(name: str) -> None:
    """Hidden states equal those of the whole model, also from the cache; odd models are left."""
    model = make_model(name)
    prefix = FrozenPrefix.find(model, 2)
    assert (prefix is not None) == (name in {"llama", "qwen2"})
    if prefix is None:
        return
    tokens = torch.randint(3, 64, (3, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
        for _ in range(2):
            assert torch.equal(prefix.last_hidden_state(tokens), whole)


def test_gradients_and_model_are_untouched() -> None:
    """Per-record gradients above the prefix are the same bits, and no block is lost."""
    model = make_model("llama")
    adapted = add_lora(model, rank=2, alpha=4.0, layers=[2, 3], seed=1)
    tensors = trainable_tensors(adapted)
    adapted.requires_grad_(requires_grad=False)
    gradients = PerRecordGradients(model, tensors)
    tokens = torch.randint(3, 64, (3, 7), generator=torch.Generator().manual_seed(1))
    prefix = FrozenPrefix.find(model, 2)
    assert prefix is not None
    whole = gradients.compute(
        lambda: model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state.sum(
            (1, 2)
        ),
        3,
    )
    short = gradients.compute(lambda: prefix.last_hidden_state(tokens).sum((1, 2)), 3)
    assert torch.equal(whole, short)
    assert whole.abs().sum() > 0
    assert len(model.get_decoder().layers) == model.config.num_hidden_layers == 4


def test_nothing_frozen_means_no_prefix() -> None:
    """Without a frozen block there is nothing to keep."""
    assert FrozenPrefix.find(make_model("llama"), 0) is None


def test_records_are_kept_whatever_batch_they_come_in() -> None:
    """A record in another batch, padded otherwise, has the states of the whole model."""
    model = make_model("llama")
    prefix = FrozenPrefix.find(model, 2, kept="records")
    assert prefix is not None
    computed = []
    compute = prefix._compute
    prefix._compute = lambda ids: computed.append(tuple(ids.shape)) or compute(ids)
    generator = torch.Generator().manual_seed(1)
    records = [torch.randint(3, 64, (length,), generator=generator) for length in (7, 5, 5, 3)]
    records[1][-2:] = 0  # ends with the padding token, which is real there
    for chosen, expected in [
        ((0, 1), [(2, 7)]),
        ((1, 0), []),
        ((1, 2), [(1, 5)]),
        ((2, 3), [(1, 5)]),
        ((3,), [(1, 3)]),  # without padding it is another row
        ((3, 0), [(1, 7)]),  # kept shorter than it is needed
        ((3, 2), []),
        ((0, 3), []),
    ]:
        computed.clear()
        length = max(len(records[i]) for i in chosen)
        tokens = torch.zeros(len(chosen), length, dtype=torch.long)
        for row, i in enumerate(chosen):
            tokens[row, : len(records[i])] = records[i]
        with torch.no_grad():
            whole = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
            torch.testing.assert_close(prefix.last_hidden_state(tokens), whole)
        assert computed == expected


def test_what_does_not_fit_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room nothing is kept, and the states are right."""
    monkeypatch.setattr("sordino.gradients.prefix._LARGEST_CACHE_BYTES", 100)
    model = make_model("llama")
    prefix = FrozenPrefix.find(model, 2, kept="records")
    assert prefix is not None
    tokens = torch.randint(3, 64, (3, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
        for _ in range(2):
            torch.testing.assert_close(prefix.last_hidden_state(tokens), whole)
    assert not prefix._kept
