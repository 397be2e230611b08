"""Linear layers of the same input as one matrix product.

Shape suffixes: X any count, C width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


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


class PackedLinear(nn.Module):
    """A linear layer whose weight is laid out as oneDNN's kernels read it, for processors.

    From one to some tens of rows it runs at up to twice the rate of ``nn.Linear``, which lays the weight out
    anew for every call or falls back to plain loops. The layer's own weight stays for other uses: the packed
    copy takes as much memory again.

    Args:
        linear: On a CPU, in fp32 or bf16.
    """

    packed: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features = linear.out_features
        weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TYPICAL_ROWS)
        self.register_buffer("packed", weight, persistent=False)
        self.bias = linear.bias

    @staticmethod
    def can_pack(linear: nn.Linear) -> bool:
        """Whether such a layer can be packed here."""
        return (
            linear.weight.device.type == "cpu"
            and linear.weight.dtype in (torch.float32, torch.bfloat16)
            and torch.backends.mkldnn.is_available()
        )

    def forward(self, x_XC: torch.Tensor) -> torch.Tensor:
        """(X, C) → (X, out_features)."""
        return torch.ops.mkldnn._linear_pointwise(x_XC, self.packed, self.bias, "none", [], "")


_TYPICAL_ROWS = 8
"""The layout is chosen for so many rows: with eight, one row and thirty-two are near their best, too."""


def packed(linear: nn.Linear) -> nn.Module:
    """The layer as fast as it can be here for a few rows."""
    return PackedLinear(linear) if PackedLinear.can_pack(linear) else linear
