"""A random rotation of the residual stream: the same function on weights with no grid of their own.

The embedded model comes from a 4-bit file, so its linear weights lie on a grid already, and any
method that finds that grid again looks perfect. An orthogonal matrix R turns the residual stream
and the gains g of the norms go into the layers behind them: W diag(g) R for a layer that reads the
stream, R^T W for one that writes to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["make_rotation", "rotate_model", "rotate_reader", "rotate_writer"]

# Of each block: a norm of the stream with the layers that read it, and the layer that writes.
_PARTS = (
    ("input_layernorm", ("q_proj", "k_proj", "v_proj"), "o_proj", "self_attn"),
    ("post_attention_layernorm", ("gate_proj", "up_proj"), "down_proj", "mlp"),
)


def make_rotation(width: int, generator: torch.Generator) -> torch.Tensor:
    """Returns a random orthogonal matrix in float64."""
    gauss = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(gauss)[0]


def rotate_reader(
    weight: torch.Tensor, gains: torch.Tensor, rotation: torch.Tensor
) -> torch.Tensor:
    """Returns the weight of a layer that reads the stream behind a norm with these gains."""
    return weight.double() * gains.double() @ rotation


def rotate_writer(weight: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Returns the weight of a layer that writes to the stream."""
    return rotation.T @ weight.double()


@torch.no_grad()
def rotate_model(model: PreTrainedModel, *, seed: int) -> None:
    """Turns the residual stream of a Llama-like model in place; what it computes stays the same."""
    width = model.config.hidden_size
    rotation = make_rotation(width, torch.Generator().manual_seed(seed))
    for block in model.model.layers:
        for norm_name, readers, writer, part in _PARTS:
            norm, layers = block.get_submodule(norm_name), block.get_submodule(part)
            for name in readers:
                reader = layers.get_submodule(name)
                reader.weight.copy_(rotate_reader(reader.weight, norm.weight, rotation))
            layer = layers.get_submodule(writer)
            layer.weight.copy_(rotate_writer(layer.weight, rotation))
            norm.weight.fill_(1.0)
    # The output layer reads behind a norm and the embedding does not: they cannot stay tied.
    head, embedding, norm = model.lm_head, model.model.embed_tokens, model.model.norm
    head.weight = torch.nn.Parameter(
        rotate_reader(head.weight, norm.weight, rotation).to(head.weight), requires_grad=False
    )
    embedding.weight.copy_(embedding.weight.double() @ rotation)
    norm.weight.fill_(1.0)
    model.config.tie_word_embeddings = False
