"""Qwen2.5-VL's language model as a text backbone: its multimodal RoPE, and its decoder layer with a fusion
layer inside.

Shape suffixes: X any token count, H heads, D head size, A position axes (3: time, row, column), B rows, L
tokens.
"""

from __future__ import annotations

import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLDecoderLayer,
    Qwen2_5_VLTextModel,
    rotate_half,
)

from casa_core.backbones.block import FusedBlock
from casa_core.fusion.layers import Rope


def rotate(tokens_XHD: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Qwen's half-split RoPE on flat tokens, with (X, D) cos and sin from :func:`window_rope`."""
    cos_XD, sin_XD = rope
    return tokens_XHD * cos_XD[:, None] + rotate_half(tokens_XHD) * sin_XD[:, None]


def window_rope(model: Qwen2_5_VLTextModel, position_AX: torch.Tensor, like: torch.Tensor) -> Rope:
    """cos and sin for fusion layers; each section of the frequencies follows its own axis."""
    cos, sin = model.rotary_emb(like, position_ids=position_AX[:, None])
    return cos[0], sin[0]


def text_rope(model: Qwen2_5_VLTextModel, position_ABL: torch.Tensor, like: torch.Tensor) -> Rope:
    """cos and sin for self-attention, as its layers take them."""
    return model.rotary_emb(like, position_ids=position_ABL)


class FusedQwenDecoderLayer(FusedBlock, Qwen2_5_VLDecoderLayer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A Qwen2.5-VL block with a fusion layer."""
