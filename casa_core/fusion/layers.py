"""One fusion layer, and the state that a forward hands to all of them.

Shape suffixes: B rows, L tokens of a row, T = B·L text tokens, N image tokens, K keys, C width, H/G
query/key-value heads, D head size, X any token count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from casa_core.fusion.attention import Backend, Segments, segment_attention
from casa_core.fusion.config import FusionConfig
from casa_core.fusion.segments import Tokens, joined, parts_of

if TYPE_CHECKING:
    from casa_core.decoding.kv_cache import WindowCache

# cos and sin of each token, (X, D) each, ready to multiply.
Rope = tuple[torch.Tensor, torch.Tensor]
# A backbone's own RoPE: (X, H, D) tokens and their rope → rotated tokens.
Rotate = Callable[[torch.Tensor, Rope], torch.Tensor]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


class Projections(Protocol):
    """The four projections of an attention layer: self-attention's, or a fusion layer's own."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear


class SelfAttention(Projections, Protocol):
    """A backbone's self-attention."""

    head_dim: int


@dataclass(frozen=True, slots=True)
class HostBlock:
    """The parts of a decoder block that its fusion layer uses.

    Neither module nor tuple: hooks that move a call's arguments to a device (accelerate's, where weights are
    offloaded) would move the block's own parts with them.

    Attributes:
        attention: The block's self-attention, whose projections are borrowed where shared.
        norm: The block's input norm.
    """

    attention: SelfAttention
    norm: nn.Module


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """The arguments of :func:`segment_attention` in the fusion layer of decoder layer ``layer``."""

    layer: int
    query_THD: torch.Tensor
    key_KGD: torch.Tensor
    value_KGD: torch.Tensor
    segments: Segments
    causal: bool
    backend: Backend


AttentionProbe = Callable[[AttentionCall], torch.Tensor]
"""An analysis that replaces the fusion layers' attention in one forward."""


@dataclass(frozen=True, slots=True)
class FusionState:
    """The state that all fusion layers of one forward share.

    Attributes:
        image_NC: This forward's new image tokens, in the language model's width; ``None`` without new images.
        segments: Windows as attention segments: text tokens as queries; as keys carried and new image tokens,
            and where the layers attend to text (eq. 3) carried and new text tokens after them.
        text_rope: cos and sin of the text tokens' positions in the windows.
        image_rope: cos and sin of the *new* image tokens' positions in the windows.
        cache: Holds carried keys and values, and takes new ones; ``None`` in training.
        backend: Attention backend.
        probe: Replaces the attention; ``None`` outside :mod:`casa_core.analysis`.
    """

    image_NC: torch.Tensor | None
    segments: Segments | None
    text_rope: Rope
    image_rope: Rope | None
    cache: WindowCache | None = None
    backend: Backend = "auto"
    probe: AttentionProbe | None = None


class FusionLayer(nn.Module):
    """Text tokens attend to their window: its image tokens (eq. 2), and for ``casa`` its text too (eq. 3).

    Own projections have the shapes and biases of the block's self-attention, so they can start as a copy.

    Args:
        attention: The block's self-attention, for its shapes; projections are not copied here.
        norm: The block's input norm, for its kind.
        layer_idx: The decoder layer this fusion layer belongs to.
        rotate: The backbone's RoPE.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    image_norm: nn.Module
    text_norm: nn.Module
    gate_proj: nn.Linear
    gate_alpha: nn.Parameter

    def __init__(
        self,
        settings: FusionConfig,
        attention: SelfAttention,
        norm: nn.Module,
        layer_idx: int,
        rotate: Rotate,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.head_dim = attention.head_dim
        self.layer_idx = layer_idx
        self.rotate = rotate
        size = attention.q_proj.in_features
        if not settings.borrows_projections:
            for name in PROJECTIONS:
                source = getattr(attention, name)
                copy = nn.Linear(source.in_features, source.out_features, bias=source.bias is not None)
                setattr(self, name, copy)
        if settings.image_norm == "own":
            self.image_norm = _norm_like(norm)
        if settings.text_norm == "own":
            self.text_norm = _norm_like(norm)
        if settings.gate == "adaptive_sigmoid":
            self.gate_proj = nn.Linear(size, 1)
        elif settings.gate == "tanh":
            self.gate_alpha = nn.Parameter(torch.zeros(1))

    def forward(
        self, text_BLC: torch.Tensor, state: FusionState, block: HostBlock, *, normed: bool = False
    ) -> torch.Tensor:
        """The update F of each text token, zero outside every window.

        Args:
            text_BLC: The residual stream at the layer's position in its block.
            normed: The text has passed the block's norm already (⊕ shares it with self-attention).

        Returns:
            (B, L, C).
        """
        if state.segments is None:
            return torch.zeros_like(text_BLC)
        own = self.settings.text_norm == "own"
        normed_BLC = text_BLC if normed else (self.text_norm if own else block.norm)(text_BLC)
        source: Projections = block.attention if self.settings.borrows_projections else self
        key_KGD, value_KGD = self._keys_and_values(normed_BLC, state, source, block.norm)
        query_THD = self.rotate(self._heads(source.q_proj(normed_BLC)), state.text_rope)
        causal, backend = self.settings.attends_text, state.backend
        if state.probe is None:
            out_THD = segment_attention(
                query_THD, key_KGD, value_KGD, state.segments, causal=causal, backend=backend
            )
        else:
            parts = joined(key_KGD), joined(value_KGD)
            call = AttentionCall(self.layer_idx, query_THD, *parts, state.segments, causal, backend)
            out_THD = state.probe(call)
        return self.gated(source.o_proj(out_THD.reshape(*normed_BLC.shape[:2], -1)), normed_BLC)

    def gated(self, update_XC: torch.Tensor, normed_XC: torch.Tensor) -> torch.Tensor:
        """(X, C) → (X, C) with any X: the update times its gate (:class:`FusionConfig`)."""
        if self.settings.gate == "adaptive_sigmoid":
            return update_XC * torch.sigmoid(self.gate_proj(normed_XC))
        if self.settings.gate == "tanh":
            return update_XC * torch.tanh(self.gate_alpha)
        return update_XC

    def _keys_and_values(
        self, normed_BLC: torch.Tensor, state: FusionState, source: Projections, block_norm: nn.Module
    ) -> tuple[Tokens, Tokens]:
        """Image keys and values, carried ones first; then for eq. 3 the text's, carried ones first."""
        images: tuple[Tokens, Tokens] | None = None
        new = None
        if state.image_NC is not None and state.image_rope is not None:
            image_NC = self._norm_images(state.image_NC, block_norm)
            key = self.rotate(self._heads(source.k_proj(image_NC)), state.image_rope)
            images = new = key, self._heads(source.v_proj(image_NC))
        if state.cache is not None:
            images = state.cache.extend_images(self.layer_idx, new)
        if not self.settings.attends_text:
            assert images is not None, "a window without images has no keys"
            return images
        key = self.rotate(self._heads(source.k_proj(normed_BLC)), state.text_rope)
        text: tuple[Tokens, Tokens] = key, self._heads(source.v_proj(normed_BLC))
        if state.cache is not None:
            text = state.cache.extend_text(self.layer_idx, text)
        if images is None:
            return text
        keys, values = ([*parts_of(image), *parts_of(own)] for image, own in zip(images, text, strict=True))
        return keys, values

    def _norm_images(self, image_NC: torch.Tensor, block_norm: nn.Module) -> torch.Tensor:
        if self.settings.image_norm == "none":
            return image_NC
        return (self.image_norm if self.settings.image_norm == "own" else block_norm)(image_NC)

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        """(…, H·D) → (X, H, D)."""
        return projected.reshape(-1, projected.shape[-1] // self.head_dim, self.head_dim)

    def initialize(self, attention: SelfAttention, block_norm: nn.Module) -> None:
        """Start as a copy of the block's self-attention and norm (paper, 4.1), and reset the gate."""
        with torch.no_grad():
            if not self.settings.borrows_projections:
                for name in PROJECTIONS:
                    getattr(self, name).load_state_dict(getattr(attention, name).state_dict())
                if self.settings.init == "zero_output":
                    self.o_proj.weight.zero_()
            for name in ("image_norm", "text_norm"):
                if getattr(self.settings, name) == "own":
                    getattr(self, name).load_state_dict(block_norm.state_dict())
            self.reset_gate()

    def reset_gate(self) -> None:
        """Reset the gate: half open (adaptive sigmoid), or closed (tanh)."""
        if self.settings.gate == "adaptive_sigmoid":
            nn.init.zeros_(self.gate_proj.weight)
            nn.init.zeros_(self.gate_proj.bias)
        elif self.settings.gate == "tanh":
            nn.init.zeros_(self.gate_alpha)


def _norm_like(norm: Any) -> nn.Module:
    """A norm of the same kind and size."""
    return type(norm)(norm.weight.shape[0], eps=norm.variance_epsilon)
