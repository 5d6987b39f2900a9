"""Linear layers of a frozen base model, held in 2, 4 or 8 bits a weight and unpacked while in use.

A weight is an integer code and two numbers that it shares with its group along the input axis: a
scale, and an offset where the grid is asymmetric. The weight in the compute type exists during a
product only, and once more during the product of the backward pass. While a text is generated, one
token at a time, 4-bit weights are multiplied without being unpacked where the processor can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812

from sordino.core.errors import InvalidParameterError
from sordino.models._frozen_layers import linear_kind, replace_frozen_layers
from sordino.models._one_token import OneTokenWeight, is_one_token, make_one_token_weight
from sordino.models._packed_codes import Layout, dequantize, pack, unpack
from sordino.models.nf4 import is_nf4, make_plain_linear
from sordino.models.rounding import (
    FLOATS,
    GROUP_SIZE,
    require_base_bits,
    require_group_size,
    require_packed_bits,
    round_to_nearest,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class PackedLinear(torch.nn.Module):
    """A frozen linear layer whose weight is integer codes, scales and perhaps offsets.

    A weight is (code - 2**(bits - 1)) * scale, or code * scale + offset where there are offsets,
    computed in float32 and rounded to the compute type once. Made by `from_linear` or `from_codes`.
    There is no attribute `weight`: code that would change one in place must fail, not be ignored.

    A model with such layers keeps its meaning under .to(device), not under .to(dtype), which rounds
    scales like any other number; pack it in the compute type.

    Args:
        codes: Whole numbers in [0, 2**bits), shape (out_features, in_features).
        scales: Shape (out_features, ceil(in_features / group_size)), float16, bfloat16 or float32.
        offsets: Shape and types as `scales`; None for a symmetric grid.
        bias: Shape (out_features,), or None.
        bits: 2, 4 or 8; several codes share a byte.
        group_size: Neighbouring inputs that share a scale, in_features for a whole row; the last
            group is short where it does not divide in_features.
        compute_dtype: float16, bfloat16 or float32; inputs and outputs have it.
        fan_in_fan_out: Whether the layer packed here stored its weight as (in, out), as GPT-2's do.

    Raises:
        InvalidParameterError: If shapes, types or values do not belong together.
    """

    def __init__(
        self,
        codes: torch.Tensor,
        scales: torch.Tensor,
        *,
        offsets: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        bits: int = 4,
        group_size: int = GROUP_SIZE,
        compute_dtype: torch.dtype = torch.float32,
        fan_in_fan_out: bool = False,
    ) -> None:
        super().__init__()
        require_packed_bits(bits)
        require_group_size(group_size)
        if compute_dtype not in FLOATS:
            raise InvalidParameterError(
                f"compute_dtype must be float16, bfloat16 or float32, got {compute_dtype}."
            )
        _require_codes(codes, bits)
        self.out_features, self.in_features = codes.shape
        shape = (self.out_features, -(-self.in_features // group_size))
        _require_numbers("scales", scales, shape)
        if offsets is not None:
            _require_numbers("offsets", offsets, shape)
        if bias is not None:
            _require_numbers("bias", bias, (self.out_features,))
            bias = bias.detach().to(compute_dtype).clone()
        self._layout = Layout(
            bits=bits,
            group_size=group_size,
            in_features=self.in_features,
            compute_dtype=compute_dtype,
        )
        self.fan_in_fan_out = fan_in_fan_out
        # PEFT takes the device of new adapters from a tensor of this name
        self.register_buffer("qweight", pack(codes.detach(), self._layout))
        self.register_buffer("scales", scales.detach().clone())
        self.register_buffer("offsets", None if offsets is None else offsets.detach().clone())
        self.register_buffer("bias", bias)  # a buffer: nothing here can be trained
        self._one_token: OneTokenWeight | None = None  # made by the first product that wants it
        self._is_one_token_tried = False

    @classmethod
    def from_linear(
        cls,
        linear: torch.nn.Module,
        *,
        bits: int = 4,
        group_size: int = GROUP_SIZE,
        is_symmetric: bool = False,
        scale_dtype: torch.dtype = torch.float16,
    ) -> PackedLinear:
        """Returns a Linear or Conv1D layer rounded to the nearest codes; it computes in its dtype.

        Raises:
            InvalidParameterError: If the layer is of another kind, or its weights are not finite.
        """
        kind = linear_kind(linear)
        if kind is None:
            raise InvalidParameterError(
                f"only torch.nn.Linear and Conv1D layers can be packed, got "
                f"{type(linear).__name__}: a subclass may use its weight in a way of its own."
            )
        weight = linear.weight.detach()
        codes, scales, offsets = round_to_nearest(
            weight.t() if kind == "conv1d" else weight,
            bits=bits,
            group_size=group_size,
            is_symmetric=is_symmetric,
            scale_dtype=scale_dtype,
        )
        return cls(
            codes,
            scales,
            offsets=offsets,
            bias=linear.bias,
            bits=bits,
            group_size=group_size,
            compute_dtype=weight.dtype,
            fan_in_fan_out=kind == "conv1d",
        )

    @classmethod
    def from_codes(cls, codes: torch.Tensor, scales: torch.Tensor, **settings: Any) -> PackedLinear:
        """Returns a layer of codes and scales that a quantizer found; arguments as of the class."""
        return cls(codes, scales, **settings)

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self._layout.bits

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self._layout.group_size

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type of inputs, outputs and the unpacked weight; PEFT reads it too."""
        return self._layout.compute_dtype

    def codes(self) -> torch.Tensor:
        """Returns the codes, shape (out_features, in_features), uint8."""
        return unpack(self.qweight, self._layout)

    def dequantize(self) -> torch.Tensor:
        """Returns the weight, shape (out_features, in_features), in the compute type."""
        return dequantize(self._layout, self.qweight, self.scales, self.offsets)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns x W' + bias; keeps no unpacked weight for the backward pass.

        Inputs of shape (few, 1, in_features) in bfloat16, as in generation, may take a product that
        rounds scales and outputs, and not weights, to bfloat16. It keeps a second copy of the codes
        from the first such input on.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            return _PackedProduct.apply(
                x, self.qweight, self.scales, self.offsets, self.bias, self._layout
            )
        if self.bits == 4 and is_one_token(x):
            weight = self._one_token_weight()
            if weight is not None:
                return weight.product(x, self.bias)
        return F.linear(x, self.dequantize(), self.bias)

    def _one_token_weight(self) -> OneTokenWeight | None:
        """Returns the weight for single tokens, made once; None where there is none."""
        if not self._is_one_token_tried:
            self._is_one_token_tried = True
            if self.offsets is None:
                self._one_token = make_one_token_weight(self._layout, self.qweight, self.scales)
        return self._one_token

    def _forget_one_token_weight(self) -> None:
        """Drops what was made from buffers that may have changed or moved."""
        self._one_token, self._is_one_token_tried = None, False

    def _apply(self, *args: Any, **settings: Any) -> Any:
        self._forget_one_token_weight()
        return super()._apply(*args, **settings)

    def _load_from_state_dict(self, *args: Any, **settings: Any) -> None:
        self._forget_one_token_weight()
        super()._load_from_state_dict(*args, **settings)

    def extra_repr(self) -> str:
        """Returns what print(model) shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, bits={self.bits}, group_size={self.group_size}"
        )


def pack_base(
    model: torch.nn.Module,
    *,
    bits: int = 4,
    group_size: int = GROUP_SIZE,
    is_symmetric: bool = False,
    skip: Sequence[str] = (),
) -> torch.nn.Module:
    """Replaces the frozen linear layers of a base model by packed ones, in place; returns it.

    Embeddings, norms, the output layer (its rows are read one by one, and it may be tied),
    subclasses of Linear, experts held in one tensor and layers with a trainable tensor stay.

    Args:
        model: A model without adapters.
        bits: 4 or 8.
        group_size: Neighbouring inputs that share a scale.
        is_symmetric: Whether to do without offsets, which cost as much as scales.
        skip: Names of linear layers that stay, such as "o_proj", or full names.

    Raises:
        InvalidParameterError: If an argument is out of range, a name in `skip` matches no linear
            layer, there is nothing to pack, or a weight is not finite.
    """
    require_base_bits(bits)
    require_group_size(group_size)

    def make(linear: torch.nn.Module) -> torch.nn.Module:
        return PackedLinear.from_linear(
            linear, bits=bits, group_size=group_size, is_symmetric=is_symmetric
        )

    return replace_frozen_layers(model, make, skip=skip)


def is_packed(module: torch.nn.Module) -> bool:
    """Returns whether a layer holds its weight in few bits: as codes of ours, or in NF4."""
    return isinstance(module, PackedLinear) or is_nf4(module)


def unpack_base(model: torch.nn.Module) -> torch.nn.Module:
    """Replaces packed layers by plain ones of the same weights, in place; returns the model.

    Such a model can be saved, fully tuned, or take a merged adapter; its weights are in the type
    that it computes in.

    Raises:
        InvalidParameterError: If the model has adapters.
    """
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if is_packed(module)
    }
    if any(".lora_" in name for name, _ in model.named_modules()):
        raise InvalidParameterError("model already has adapters: unpack the base model first.")
    plain: dict[int, torch.nn.Module] = {}
    for name, module in found.items():
        if id(module) not in plain:
            plain[id(module)] = _plain(module)
        model.set_submodule(name, plain[id(module)])
    return model


def _plain(packed: torch.nn.Module) -> torch.nn.Module:
    """Returns a frozen Linear or Conv1D layer with the weight of a packed one."""
    from transformers.pytorch_utils import Conv1D

    if not isinstance(packed, PackedLinear):
        return make_plain_linear(packed)
    weight, bias = packed.dequantize(), packed.bias
    layer: torch.nn.Module
    with torch.device("meta"):  # the weights it would draw are never used
        if packed.fan_in_fan_out:
            layer = Conv1D(packed.out_features, packed.in_features)
            weight = weight.t().contiguous()
            bias = weight.new_zeros(packed.out_features) if bias is None else bias
        else:
            layer = torch.nn.Linear(packed.in_features, packed.out_features, bias=False)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.clone(), requires_grad=False)
    return layer.train(packed.training)


class _PackedProduct(torch.autograd.Function):
    """A linear layer that saves its codes, which live anyway, and not its unpacked weight."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position
        x: torch.Tensor,
        qweight: torch.Tensor,
        scales: torch.Tensor,
        offsets: torch.Tensor | None,
        bias: torch.Tensor | None,
        layout: Layout,
    ) -> torch.Tensor:
        return F.linear(x, dequantize(layout, qweight, scales, offsets), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # noqa: ARG004
        _, qweight, scales, offsets, _, ctx.layout = inputs
        ctx.save_for_backward(qweight, scales, offsets)
        ctx.save_for_forward(qweight, scales, offsets)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight = dequantize(ctx.layout, *ctx.saved_tensors)
        return gradients[0] @ weight, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> torch.Tensor:
        return F.linear(tangents[0], dequantize(ctx.layout, *ctx.saved_tensors))


def _require_codes(codes: torch.Tensor, bits: int) -> None:
    """Raises unless codes are a matrix of whole numbers in range."""
    if codes.ndim != 2 or not codes.numel():
        raise InvalidParameterError(
            f"codes must have shape (out_features, in_features), got {tuple(codes.shape)}."
        )
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise InvalidParameterError(f"codes must be of an integer type, got {codes.dtype}.")
    low, high = int(codes.min()), int(codes.max())
    if not 0 <= low <= high < 2**bits:
        raise InvalidParameterError(
            f"codes of {bits} bits must be in [0, {2**bits - 1}], found {low} to {high}. Signed "
            f"codes must be shifted up by {2 ** (bits - 1)}."
        )


def _require_numbers(name: str, values: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raises unless a tensor has this shape, a type of floats, and finite values."""
    if values.dtype not in FLOATS:
        raise InvalidParameterError(
            f"{name} must be float16, bfloat16 or float32, got {values.dtype}."
        )
    if tuple(values.shape) != shape:
        raise InvalidParameterError(f"{name} must have shape {shape}, got {tuple(values.shape)}.")
    if not bool(values.isfinite().all()):
        raise InvalidParameterError(f"{name} must be finite.")
