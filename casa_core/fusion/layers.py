"""One fusion layer, and the state that a forward hands to all of them.

Shape suffixes: B rows, L tokens of a row, T = B·L text tokens, N image tokens, C width, H/G query/key-value
heads, D head size, X any token count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from casa_core.fusion.attention import Backend, Segments, segment_attention

# Backbone's own RoPE: (X, H, D) tokens and their (cos, sin), each (X, D) → rotated tokens.
Rotate = Callable[[torch.Tensor, tuple[torch.Tensor, torch.Tensor]], torch.Tensor]
Rope = tuple[torch.Tensor, torch.Tensor]


@dataclass(slots=True)
class ImageCache:
    """Keys and values of the image tokens of each sequence's current window, one entry a fusion layer.

    Keys are stored after RoPE: positions inside a window do not change while it lasts. Tokens are flat,
    sequence by sequence, as :class:`casa_core.windows.Windows` orders carried tokens.
    """

    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)

    def keep(self, index_N: torch.Tensor) -> None:
        """Keep the given tokens only, in the given order: windows that ended are dropped."""
        for layer in self.keys:
            self.keys[layer] = self.keys[layer].index_select(0, index_N)
            self.values[layer] = self.values[layer].index_select(0, index_N)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.nbytes for store in (self.keys, self.values) for t in store.values())


@dataclass(slots=True)
class FusionState:
    """What every fusion layer of one forward shares.

    Attributes:
        image_NC: This forward's new image tokens, in the language model's width; ``None`` without new images.
        segments: Windows as attention segments, over carried and new image tokens together.
        text_rope: cos and sin of the text tokens' window positions.
        image_rope: cos and sin of the *new* image tokens' window positions.
        cache: Where carried keys and values come from and new ones go; ``None`` in training.
        backend: Attention backend.
    """

    image_NC: torch.Tensor | None
    segments: Segments | None
    text_rope: Rope
    image_rope: Rope | None
    cache: ImageCache | None = None
    backend: Backend = "padded"


class CrossAttentionFusion(nn.Module):
    """Text tokens attend to the image tokens of their window (paper, eq. 2; version 2's CA layer).

    Projections have the shapes of the backbone's self-attention, so that they can start as a copy of it.

    Args:
        hidden_size: C.
        num_heads: H.
        num_key_value_heads: G.
        head_dim: D.
        layer_idx: The decoder layer this fusion layer belongs to.
        rotate: The backbone's RoPE.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        layer_idx: int,
        rotate: Rotate,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.layer_idx = layer_idx
        self.rotate = rotate
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, num_key_value_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, num_key_value_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)

    def forward(self, text_BLC: torch.Tensor, state: FusionState, image_norm: nn.Module) -> torch.Tensor:
        """The additive update of each text token, zero outside every window.

        Args:
            text_BLC: Normed block inputs.
            state: This forward's images and windows.
            image_norm: What normalises image tokens before K and V.

        Returns:
            (B, L, C).
        """
        key_NGD, value_NGD = self._keys_and_values(state, image_norm)
        if key_NGD is None or value_NGD is None or state.segments is None:
            return torch.zeros_like(text_BLC)
        query_THD = self.q_proj(text_BLC).view(-1, self.q_proj.out_features // self.head_dim, self.head_dim)
        query_THD = self.rotate(query_THD, state.text_rope)
        out_THD = segment_attention(
            query_THD, key_NGD, value_NGD, state.segments, causal=False, backend=state.backend
        )
        return self.o_proj(out_THD.reshape(*text_BLC.shape[:2], -1))

    def _keys_and_values(
        self, state: FusionState, image_norm: nn.Module
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Carried keys and values, then the new images'; new ones enter the cache."""
        key_NGD = value_NGD = None
        if state.image_NC is not None and state.image_rope is not None:
            normed_NC = image_norm(state.image_NC)
            key_NGD = self.k_proj(normed_NC).view(len(normed_NC), -1, self.head_dim)
            key_NGD = self.rotate(key_NGD, state.image_rope)
            value_NGD = self.v_proj(normed_NC).view(len(normed_NC), -1, self.head_dim)
        if state.cache is None:
            return key_NGD, value_NGD
        old_key, old_value = state.cache.keys.get(self.layer_idx), state.cache.values.get(self.layer_idx)
        if key_NGD is None or value_NGD is None:
            return old_key, old_value
        if old_key is not None and old_value is not None:
            key_NGD, value_NGD = torch.cat([old_key, key_NGD]), torch.cat([old_value, value_NGD])
        state.cache.keys[self.layer_idx], state.cache.values[self.layer_idx] = key_NGD, value_NGD
        return key_NGD, value_NGD


def copy_projections(fusion: CrossAttentionFusion, attention: nn.Module, *, zero_output: bool) -> None:
    """Start a fusion layer from the same block's self-attention (paper, 4.1), optionally with a zero
    output."""
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            target, source = getattr(fusion, name), getattr(attention, name)
            target.weight.copy_(source.weight)
        if zero_output:
            fusion.o_proj.weight.zero_()
