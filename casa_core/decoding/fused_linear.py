"""Linear layers of the same input as one matrix product.

Shape suffixes: X any count, C width, O outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, get_args
from weakref import WeakValueDictionary

import torch
from torch import nn

from casa_core.errors import ConfigError

Quantize = Literal["int8"]


@torch.no_grad()
def fuse(layers: Sequence[nn.Linear]) -> nn.Linear:
    """One layer whose outputs are those of ``layers``, one after another.

    The layers' own weights become views of its weight: they stay what they were, and nothing is held twice.

    Args:
        layers: They have the same input width, type and device. A layer without bias has one of zeros here
            where another has one.
    """
    if len(layers) == 1:
        return layers[0]
    first = layers[0].weight
    biased = any(layer.bias is not None for layer in layers)
    sizes = [layer.out_features for layer in layers]
    fused = nn.Linear(layers[0].in_features, sum(sizes), bias=biased, device="meta")
    fused.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
    for layer, part in zip(layers, fused.weight.data.split(sizes), strict=True):
        layer.weight.data = part
    if biased:
        biases = [
            first.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers
        ]
        fused.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
        for layer, part in zip(layers, fused.bias.data.split(sizes), strict=True):
            if layer.bias is not None:
                layer.bias.data = part
    return fused


def generates(x: torch.Tensor) -> bool:
    """Whether this runs while a step is compiled for a processor, where loops of its own are an option."""
    return torch.compiler.is_compiling() and x.device.type == "cpu"


def stored(x: torch.Tensor) -> torch.Tensor:
    """The same, which a compiler keeps: it would compute its expression anew wherever an element is read."""
    return x.as_strided(x.shape, x.stride())


def _one_row(x_1C: torch.Tensor, weight_OC: torch.Tensor) -> torch.Tensor:
    """(1, C) → (1, O) in fp32, which a compiler turns into one loop over the weight.

    One row takes as long as reading the weight does. Libraries read it at some 60 % of the rate of a plain
    sum; the generated loop comes closer, converts bf16 or int8 on the way and needs no call.
    """
    return (stored(x_1C.float()) * weight_OC.float()).sum(-1)[None]


class PlainLinear(nn.Module):
    """A linear layer as it is, but for compiled steps of one row (:func:`_one_row`)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x_XC: torch.Tensor) -> torch.Tensor:
        """(X, C) → (X, O)."""
        if generates(x_XC) and len(x_XC) == 1:
            return _with_bias(_one_row(x_XC, self.weight), self.bias).to(x_XC.dtype)
        return nn.functional.linear(x_XC, self.weight, self.bias)


def _with_bias(y_XO: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return y_XO if bias is None else y_XO + bias


class PackedLinear(nn.Module):
    """A linear layer whose weight is laid out as oneDNN's kernels read it, for processors.

    From one to some tens of rows it runs at up to twice the rate of ``nn.Linear``, which lays the weight out
    anew for every call or falls back to plain loops. The layer's own weight stays for other uses: the packed
    copy takes as much memory again.

    Args:
        linear: On a CPU, in fp32 or bf16.
    """

    packed: torch.Tensor
    handle: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TYPICAL_ROWS)
        self.register_buffer("packed", weight, persistent=False)
        number = next(_numbers)
        self.register_buffer("handle", torch.tensor(number), persistent=False)
        _layers[number] = self

    @staticmethod
    def can_pack(linear: nn.Linear) -> bool:
        """Whether such a layer can be packed here, and gains by it."""
        weight = linear.weight
        return (
            weight.device.type == "cpu"
            and weight.dtype in (torch.float32, torch.bfloat16)
            and weight.nbytes >= _WORTH_PACKING
            and torch.backends.mkldnn.is_available()
        )

    def forward(self, x_XC: torch.Tensor) -> torch.Tensor:
        """(X, C) → (X, out_features)."""
        if generates(x_XC) and len(x_XC) == 1:
            return _with_bias(_one_row(x_XC, self.weight), self.bias).to(x_XC.dtype)
        if torch.compiler.is_compiling():
            return torch.ops.casa.packed_linear(x_XC, self.handle, len(self.weight))
        return torch.ops.mkldnn._linear_pointwise.default(x_XC, self.packed, self.bias, "none", [], "")


_TYPICAL_ROWS = 8
"""The layout is chosen for so many rows: with eight, one row and thirty-two are near their best, too."""

_WORTH_PACKING = 2**19
"""Bytes of a weight; a call of a packed layer costs some 15 µs more, which smaller ones do not win back."""

# A compiled graph cannot hold oneDNN's opaque tensors: there the layer is found by its number, which comes as
# a tensor, so that graphs do not depend on it.
_numbers = itertools.count()
_layers: WeakValueDictionary[int, PackedLinear] = WeakValueDictionary()
_library = torch.library.Library("casa", "DEF")
_library.define("packed_linear(Tensor x_XC, Tensor handle, int out_features) -> Tensor")


def _packed_linear(x_XC: torch.Tensor, handle: torch.Tensor, out_features: int) -> torch.Tensor:
    layer = _layers[handle.item()]  # pyright: ignore[reportArgumentType]
    return torch.ops.mkldnn._linear_pointwise.default(x_XC, layer.packed, layer.bias, "none", [], "")


def _packed_linear_shape(x_XC: torch.Tensor, handle: torch.Tensor, out_features: int) -> torch.Tensor:
    return x_XC.new_empty(x_XC.shape[0], out_features)


_library.impl("packed_linear", _packed_linear, "CPU")
torch.library.register_fake("casa::packed_linear", _packed_linear_shape, lib=_library)


class Int8Linear(nn.Module):
    """A linear layer of int8 weights with a scale per output (symmetric), for processors.

    Inputs stay bf16, sums are fp32: only the weights are rounded to 8 bits. It reads a quarter of the bytes
    of fp32, so it is fastest for one row and a few; from some eight rows on multiplying takes longer than
    reading, and bf16 weights are faster.

    Args:
        linear: On a CPU.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8), persistent=False)
        self.register_buffer("scale", scale.bfloat16(), persistent=False)
        self.bias = linear.bias

    @staticmethod
    def can_quantize(linear: nn.Linear) -> bool:
        """Whether the kernel takes such a layer: it reads inputs in pieces of 32, and beyond their end."""
        return linear.in_features % 32 == 0

    def forward(self, x_XC: torch.Tensor) -> torch.Tensor:
        """(X, C) → (X, out_features), in the type of the input."""
        if generates(x_XC) and len(x_XC) == 1:
            y_1O = _one_row(x_XC.bfloat16(), self.weight) * self.scale
            return _with_bias(y_1O, self.bias).to(x_XC.dtype)
        y_XC = torch.ops.aten._weight_int8pack_mm(x_XC.bfloat16(), self.weight, self.scale).to(x_XC.dtype)
        return _with_bias(y_XC, self.bias)


def ready(linear: nn.Linear, quantize: Quantize | None = None) -> nn.Module:
    """The layer as fast as it can be here for a few rows.

    Args:
        quantize: Type of the weights, where the layer's sizes allow it; by default as they are.

    Raises:
        ConfigError: If this processor or device cannot compute with such weights.
    """
    if quantize is not None:
        check_quantize(quantize, linear.weight.device)
        if Int8Linear.can_quantize(linear):
            return Int8Linear(linear)
    return PackedLinear(linear) if PackedLinear.can_pack(linear) else PlainLinear(linear)


def check_quantize(quantize: str, device: torch.device) -> None:
    """Refuse a type of weights that is unknown or has no fast kernel here.

    Raises:
        ConfigError: Naming what is missing.
    """
    if quantize not in get_args(Quantize):
        raise ConfigError(
            f"Weights cannot be quantized to {quantize!r}.",
            "The decode step has kernels for int8 weights only.",
            'Pass quantize="int8", or none.',
        )
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        found = "a CPU without vector units" if device.type == "cpu" else f"a device of type {device.type}"
        raise ConfigError(
            f"Int8 weights were asked for on {found}.",
            "Only CPUs with AVX2, AVX-512, NEON or SVE have a fast kernel for them in torch.",
            "Leave out quantize, and choose dtype=torch.bfloat16 to halve the bytes of fp32.",
        )
