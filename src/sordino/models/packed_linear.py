"""Linear layers of a frozen base model, held in 4 or 8 bits a weight and unpacked while in use.

A weight is an integer code and two numbers that it shares with its group along the input axis: a
scale, and an offset where the grid is asymmetric. The weight in the compute type exists during a
product only, and once more during the product of the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812

from sordino.core.errors import InvalidParameterError
from sordino.models.rounding import FLOATS, GROUP_SIZE, require_format, round_to_nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

_CODES_AT_ONCE = 2**18  # float32 values of one part stay in the processor's cache


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """How the codes of a layer lie in memory, and what they become."""

    bits: int
    group_size: int
    in_features: int
    compute_dtype: torch.dtype


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
        bits: 4 (two codes a byte) or 8.
        group_size: Even number of neighbouring inputs that share a scale; the last group is short
            where it does not divide in_features.
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
        require_format(bits, group_size)
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
        self._layout = _Layout(
            bits=bits,
            group_size=group_size,
            in_features=self.in_features,
            compute_dtype=compute_dtype,
        )
        self.fan_in_fan_out = fan_in_fan_out
        # PEFT takes the device of new adapters from a tensor of this name
        self.register_buffer("qweight", _pack(codes.detach(), self._layout))
        self.register_buffer("scales", scales.detach().clone())
        self.register_buffer("offsets", None if offsets is None else offsets.detach().clone())
        self.register_buffer("bias", bias)  # a buffer: nothing here can be trained

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
        kind = _kind(linear)
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
        if self.bits == 8:
            return self.qweight[:, : self.in_features].clone()
        return torch.cat([self.qweight & 15, self.qweight >> 4], dim=1)[:, : self.in_features]

    def dequantize(self) -> torch.Tensor:
        """Returns the weight, shape (out_features, in_features), in the compute type."""
        return _dequantize(self._layout, self.qweight, self.scales, self.offsets)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns x W' + bias; keeps no unpacked weight for the backward pass."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _PackedProduct.apply(
                x, self.qweight, self.scales, self.offsets, self.bias, self._layout
            )
        return F.linear(x, self.dequantize(), self.bias)

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
        group_size: Even number of neighbouring inputs that share a scale.
        is_symmetric: Whether to do without offsets, which cost as much as scales.
        skip: Names of linear layers that stay, such as "o_proj", or full names.

    Raises:
        InvalidParameterError: If an argument is out of range, a name in `skip` matches no linear
            layer, there is nothing to pack, or a weight is not finite.
    """
    require_format(bits, group_size)
    if isinstance(skip, str):
        raise InvalidParameterError(f"skip must be a list of names, got the string {skip!r}.")
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if _kind(module) is not None
    }
    if any(".lora_" in name for name in found):
        raise InvalidParameterError("model already has adapters: pack the base model first.")
    for wanted in skip:
        if not any(_is_named(name, wanted) for name in found):
            raise InvalidParameterError(
                f"skip must name linear layers of the model, got {wanted!r}. There are: "
                f"{', '.join(sorted({name.rsplit('.', 1)[-1] for name in found}))}."
            )
    output = getattr(model, "get_output_embeddings", lambda: None)()
    packed: dict[int, PackedLinear] = {}  # a layer that occurs twice is packed once
    for name in list(found):
        module = found.pop(name)  # so that its weight is freed before the next one is packed
        is_trained = any(p.requires_grad for p in module.parameters())
        if module is output or is_trained or any(_is_named(name, wanted) for wanted in skip):
            continue
        if id(module) not in packed:
            try:
                layer = PackedLinear.from_linear(
                    module, bits=bits, group_size=group_size, is_symmetric=is_symmetric
                )
            except InvalidParameterError as error:
                raise InvalidParameterError(f"{name}: {error}") from error
            packed[id(module)] = layer
        model.set_submodule(name, packed[id(module)])
    if not packed:
        raise InvalidParameterError(
            "there is no frozen linear layer to pack. Freeze the model with "
            "requires_grad_(False); layers of an architecture's own kind cannot be packed."
        )
    return model


def _pack(codes: torch.Tensor, layout: _Layout) -> torch.Tensor:
    """Returns the bytes of a layer: of two codes in one, the higher is half a row further on."""
    padded = F.pad(codes.to(torch.uint8), (0, -layout.in_features % layout.group_size))
    if layout.bits == 8:
        return padded.clone()
    first, second = padded.chunk(2, dim=1)
    return first | (second << 4)


def _dequantize(
    layout: _Layout, qweight: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor | None
) -> torch.Tensor:
    """Returns the weight in the compute type, some rows at a time."""
    rows, width = len(qweight), scales.shape[1] * layout.group_size
    is_nibbles = layout.bits == 4
    result = torch.empty(rows, width, dtype=layout.compute_dtype, device=qweight.device)
    at_once = max(1, _CODES_AT_ONCE // width)
    for start in range(0, rows, at_once):
        part = slice(start, start + at_once)
        packed = qweight[part]
        values = torch.empty(len(packed), width, device=qweight.device)
        if is_nibbles:
            values[:, : width // 2] = packed & 15
            values[:, width // 2 :] = packed >> 4
        else:
            values.copy_(packed)
        groups = values.view(len(packed), -1, layout.group_size)
        if offsets is None:
            values.sub_(2.0 ** (layout.bits - 1))
            groups.mul_(scales[part].float()[:, :, None])
        else:
            groups.mul_(scales[part].float()[:, :, None])
            groups.add_(offsets[part].float()[:, :, None])
        result[part] = values
    return result if width == layout.in_features else result[:, : layout.in_features].contiguous()


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
        layout: _Layout,
    ) -> torch.Tensor:
        return F.linear(x, _dequantize(layout, qweight, scales, offsets), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # noqa: ARG004
        _, qweight, scales, offsets, _, ctx.layout = inputs
        ctx.save_for_backward(qweight, scales, offsets)
        ctx.save_for_forward(qweight, scales, offsets)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight = _dequantize(ctx.layout, *ctx.saved_tensors)
        return gradients[0] @ weight, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> torch.Tensor:
        return F.linear(tangents[0], _dequantize(ctx.layout, *ctx.saved_tensors))


def _kind(module: torch.nn.Module) -> str | None:
    """Returns "linear" or "conv1d"; None for every other class, subclasses too."""
    from transformers.pytorch_utils import Conv1D

    return {torch.nn.Linear: "linear", Conv1D: "conv1d"}.get(type(module))


def _is_named(name: str, wanted: str) -> bool:
    """Returns whether a full name is `wanted`, or ends in "." and it."""
    return name == wanted or name.endswith(f".{wanted}")


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
