"""Causal attention on a processor: equal to the textbook's, and used where it is meant to."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from helpers_tiny_models import make_model
from sordino.gradients import attention
from sordino.gradients.attention import CausalAttentionMode


def textbook(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    future = torch.ones(query.shape[-2], query.shape[-2], dtype=torch.bool).triu(1)
    scores = (query @ key.transpose(-1, -2)) * scale
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ value


def make_inputs(num_key_heads: int, length: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, heads, length, 5, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (4, num_key_heads, num_key_heads)
    ]


def make_towards(output: torch.Tensor) -> torch.Tensor:
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)


@pytest.mark.parametrize("num_key_heads", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_equals_the_textbook(num_key_heads: int, scale: float | None) -> None:
    """Outputs and all three gradients, with grouped queries and with a scale of one's own."""
    inputs = make_inputs(num_key_heads)
    with CausalAttentionMode():
        found = scaled_dot_product_attention(*inputs, is_causal=True, scale=scale, enable_gqa=True)
    assert "CausalAttention" in type(found.grad_fn).__name__
    expected = textbook(*inputs, scale or 5**-0.5)
    assert torch.allclose(found, expected, rtol=1e-12)
    towards = torch.randn(
        found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, towards),
        torch.autograd.grad(expected, inputs, towards),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("entries", "rows"), [(1, 7), (3 * 49, 7), (3 * 49, 3), (1, 1), (60, 4)])
def test_parts_give_the_same(entries: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts may be one head or row, or numbers that do not divide them; transposed inputs too."""
    monkeypatch.setattr(attention, "_ENTRIES_AT_ONCE", entries)
    monkeypatch.setattr(attention, "_ROWS", rows)
    inputs = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in make_inputs(4)]
    inputs = [x.requires_grad_() for x in inputs]
    with CausalAttentionMode():
        found = scaled_dot_product_attention(*inputs, is_causal=True)
    expected = textbook(*inputs, 5**-0.5)
    assert torch.allclose(found, expected, rtol=1e-12)
    towards = torch.randn(
        found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, towards),
        torch.autograd.grad(expected, inputs, towards),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", ["not causal", "mask", "dropout", "cross", "long"])
def test_everything_else_is_left_alone(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other attention keeps PyTorch's own kernels."""
    query, key, value = make_inputs(4)
    options: dict[str, object] = {"is_causal": True}
    if case == "not causal":
        options = {}
    elif case == "mask":
        options = {"attn_mask": torch.ones(7, 7, dtype=torch.bool)}
    elif case == "dropout":
        options["dropout_p"] = 0.5
    elif case == "cross":
        query = query[:, :, :3]
    else:
        monkeypatch.setattr(attention, "_LONGEST", 6)
    with CausalAttentionMode():
        found = scaled_dot_product_attention(query, key, value, **options)  # type: ignore[arg-type]
    assert "CausalAttention" not in type(found.grad_fn).__name__


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_gradients_of_a_model_do_not_change(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole model gives the same gradients, and its attention does go through this function."""
    model = make_model(family).requires_grad_(requires_grad=True)
    calls = []
    original = attention._CausalAttention.apply
    monkeypatch.setattr(
        attention._CausalAttention, "apply", lambda *args: calls.append(1) or original(*args)
    )
    tokens = torch.tensor([[5, 9, 7, 3, 8], [4, 6, 2, 9, 1]])
    gradients = []
    for mode in (CausalAttentionMode(), torch.enable_grad()):
        model.zero_grad()
        with mode:
            model(input_ids=tokens, use_cache=False).logits[:, -1].square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4 * gradients[1].abs().max())
    assert len(calls) == model.config.num_hidden_layers
