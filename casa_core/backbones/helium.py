"""Helium as a text backbone: its RoPE, and its decoder layer with a fusion layer inside.

Shape suffixes: B rows, L tokens, C width, X any token count, H heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.helium import HeliumConfig, HeliumModel
from transformers.models.helium.modeling_helium import HeliumDecoderLayer, rotate_half

from casa_core.config import FusionConfig
from casa_core.fusion.layers import CrossAttentionFusion, FusionState, Rope


def rotate(tokens_XHD: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Helium's interleaved RoPE on flat tokens; ``rope`` holds (X, D) cos and sin as :func:`window_rope`
    gives them."""
    cos_XD, sin_XD = rope
    return tokens_XHD * cos_XD[:, None] + rotate_half(tokens_XHD) * sin_XD[:, None]


def window_rope(model: HeliumModel, position_X: torch.Tensor, like: torch.Tensor) -> Rope:
    """cos and sin for fusion layers, already interleaved (Helium repeats each frequency pairwise)."""
    cos, sin = model.rotary_emb(like, position_ids=position_X[None])
    half = cos.shape[-1] // 2
    return cos[0, :, :half].repeat_interleave(2, dim=-1), sin[0, :, :half].repeat_interleave(2, dim=-1)


class FusedHeliumDecoderLayer(HeliumDecoderLayer):
    """A Helium block whose self-attention is joined, in parallel (⊕), by a fusion layer.

    Made by :func:`fuse` from an existing block, so that the backbone's state-dict keys and ``isinstance``
    survive.
    """

    fusion: CrossAttentionFusion

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden_states: torch.Tensor, fusion_state: FusionState | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """One block over (B, L, C); ``fusion_state`` is ``None`` when no image is in sight."""
        normed_BLC = self.input_layernorm(hidden_states)
        update_BLC, _ = self.self_attn(hidden_states=normed_BLC, **kwargs)
        if fusion_state is not None:
            update_BLC = update_BLC + self.fusion(normed_BLC, fusion_state, self.input_layernorm)
        hidden_states = hidden_states + update_BLC
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


def fuse(model: HeliumModel, fusion: FusionConfig) -> None:
    """Give the chosen blocks of ``model`` their fusion layers, in place; weights stay uninitialised."""
    config: HeliumConfig = model.config
    for index in fusion.layer_indices(config.num_hidden_layers):
        layer = model.layers[index]
        layer.__class__ = FusedHeliumDecoderLayer
        layer.fusion = CrossAttentionFusion(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            index,
            rotate,
        )
