"""Helium as a text backbone: its RoPE, and its decoder layer with a fusion layer inside.

Shape suffixes: X any token count, H heads, D head size, A position axes (1), B rows, L tokens.
"""

from __future__ import annotations

import torch
from transformers.models.helium import HeliumModel
from transformers.models.helium.modeling_helium import HeliumDecoderLayer, rotate_half

from casa_core.backbones.block import FusedBlock
from casa_core.fusion.layers import Rope


def rotate(tokens_XHD: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Helium's interleaved RoPE on flat tokens, with (X, D) cos and sin from :func:`window_rope`."""
    cos_XD, sin_XD = rope
    return tokens_XHD * cos_XD[:, None] + rotate_half(tokens_XHD) * sin_XD[:, None]


def window_rope(model: HeliumModel, position_AX: torch.Tensor, like: torch.Tensor) -> Rope:
    """cos and sin for fusion layers, already interleaved (Helium repeats each frequency pairwise)."""
    cos, sin = model.rotary_emb(like, position_ids=position_AX)
    half = cos.shape[-1] // 2
    return cos[0, :, :half].repeat_interleave(2, dim=-1), sin[0, :, :half].repeat_interleave(2, dim=-1)


def text_rope(model: HeliumModel, position_ABL: torch.Tensor, like: torch.Tensor) -> Rope:
    """cos and sin for self-attention, as its layers take them."""
    return model.rotary_emb(like, position_ids=position_ABL[0])


class FusedHeliumDecoderLayer(FusedBlock, HeliumDecoderLayer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A Helium block with a fusion layer."""
