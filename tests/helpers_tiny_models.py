"""Random models of a few thousand numbers, and losses computed the plain way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sordino.data.tasks import Example
from sordino.gradients.direction_sets import make_direction_set
from sordino.gradients.objectives import LanguageModel
from sordino.gradients.parameters import FlatParameterSpace
from sordino.models import add_lora, trainable_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VOCABULARY = 40
END = 0  # end of text, and padding: the same token, as in most models
WORDS = [5, 9, 17]
_BLOCKS = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
_WIDTHS = {"hidden_size": 16, "intermediate_size": 24, "initializer_range": 0.2}
_COMMON = {
    "vocab_size": VOCABULARY,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": END,
}


def make_model(name: str, seed: int = 0, **changes: Any) -> Any:
    """Returns a random model of the named architecture, float32, in eval mode.

    All are causal language models but bert, an encoder.
    """
    import transformers as hf

    settings: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "bert": (hf.BertConfig, hf.BertModel, {}),
        "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, {"num_key_value_heads": 2}),
        "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, {"num_key_value_heads": 2}),
        "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM, {"num_key_value_heads": 2, "head_dim": 8}),
        "gemma3": (
            hf.Gemma3TextConfig,
            hf.Gemma3ForCausalLM,
            {"num_key_value_heads": 2, "head_dim": 8},
        ),
        "falcon": (hf.FalconConfig, hf.FalconForCausalLM, {}),  # multiplies by weight.T itself
        "phi": (hf.PhiConfig, hf.PhiForCausalLM, {}),  # its output layer has a bias
        "gemma2": (
            hf.Gemma2Config,
            hf.Gemma2ForCausalLM,
            {
                "num_key_value_heads": 2,
                "head_dim": 8,
                "sliding_window": 4,
                "final_logit_softcapping": 2.0,
            },
        ),
        "gpt2": (
            hf.GPT2Config,
            hf.GPT2LMHeadModel,
            {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64},
        ),
        "opt": (
            hf.OPTConfig,
            hf.OPTForCausalLM,
            {"ffn_dim": 24, "word_embed_proj_dim": 12, "init_std": 0.2},
        ),
    }
    config_type, model_type, own = settings[name]
    plain = {} if name == "gpt2" else {**_BLOCKS, **_WIDTHS}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_type(config_type(**{**_COMMON, **plain, **own, **changes}))
        for parameter in model.parameters():  # biases and norms too
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(requires_grad=False)


def make_examples(kind: str, lengths: Sequence[int], seed: int = 0) -> list[Example]:
    """Returns random token lists; the end token occurs in the middle of some."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for number, length in enumerate(lengths):
        ids = torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()
        if length > 2:
            ids[1] = END
        if kind == "classification":
            examples.append(Example(ids, target=number % len(WORDS)))
        else:
            prompt = int(torch.randint(1, length, (), generator=generator))
            examples.append(Example(ids, num_prompt_tokens=prompt))
    return examples


def naive_loss(model: Any, example: Example) -> torch.Tensor:
    """Returns one record's loss from all logits of the model's own forward pass."""
    ids = torch.tensor([example.input_ids])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
    if example.target is not None:
        return -torch.log_softmax(logits[-1, WORDS], dim=-1)[example.target]
    log_p = torch.log_softmax(logits, dim=-1)
    places = range(example.num_prompt_tokens, len(example.input_ids))
    return -torch.stack([log_p[t - 1, example.input_ids[t]] for t in places]).mean()


def named_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Returns every parameter by name, sorted, tied ones once."""
    return dict(sorted(model.named_parameters()))


def brute_force_gradients(
    model: Any,
    examples: Sequence[Example],
    tensors: Mapping[str, torch.nn.Parameter] | None = None,
) -> torch.Tensor:
    """Returns each record's flat gradient, (num_records, num_params) float64, one at a time.

    Args:
        model: Frozen, and frozen again afterwards.
        examples: The records.
        tensors: Parameters of `model`, in the order of the gradient; None takes all, sorted.
    """
    tensors = named_parameters(model) if tensors is None else tensors
    parameters = list(tensors.values())
    rows = []
    for parameter in parameters:
        parameter.requires_grad_(requires_grad=True)
    for example in examples:
        gradients = torch.autograd.grad(naive_loss(model, example), parameters, allow_unused=True)
        found = [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(parameters, gradients, strict=True)
        ]
        rows.append(torch.cat([g.reshape(-1) for g in found]))
    for parameter in parameters:
        parameter.requires_grad_(requires_grad=False)
    return torch.stack(rows).double()


def adapted_llama(
    factors: str,
    kind: str = "rademacher",
    num_directions: int = 4,
    device: str = "cpu",
    **changes: Any,
) -> tuple[LanguageModel, FlatParameterSpace]:
    """Returns a Llama with a LoRA adapter away from its start, and the space that moves it."""
    base = make_model("llama", **changes).to(device)
    adapted = add_lora(base, rank=2, alpha=4.0, factors=factors, seed=1)
    tensors = trainable_tensors(adapted)
    generator = torch.Generator().manual_seed(2)
    for parameter in tensors.values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator).to(device)
    adapted.requires_grad_(requires_grad=False)
    sizes = {name: p.numel() for name, p in tensors.items()}
    space = FlatParameterSpace(tensors, make_direction_set(kind, 7, sizes, num_directions))
    return LanguageModel(adapted.get_base_model(), END, space.rows), space
