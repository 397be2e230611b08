"""A decoder block with a fusion layer inside, whatever the backbone: ⊕, →, after or ∨.

Shape suffixes: B rows, L tokens, C width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from casa_core.fusion.layers import FusionLayer, FusionState, HostBlock


class FusedBlock(nn.Module):
    """A pre-norm block (input norm, self-attention, second norm, feed-forward) with a fusion layer.

    A backbone's fused block inherits from this and from the backbone's own block. Existing blocks are turned
    into it in place, so that the backbone's state-dict keys and ``isinstance`` survive.
    """

    fusion: FusionLayer
    self_attn: Any
    mlp: nn.Module
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module

    def forward(
        self, hidden_states: torch.Tensor, fusion_state: FusionState | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """One block over (B, L, C); ``fusion_state`` is ``None`` when no window is in sight."""
        placement = self.fusion.settings.placement
        x_BLC = hidden_states
        if placement == "replace":
            assert fusion_state is not None, "every text token of a replaced self-attention lies in a window"
            x_BLC = x_BLC + self._fuse(x_BLC, fusion_state)
        elif placement == "parallel":
            normed_BLC = self.input_layernorm(x_BLC)
            update_BLC = self._attend(normed_BLC, kwargs)
            if fusion_state is not None:
                update_BLC = update_BLC + self._fuse_beside(x_BLC, normed_BLC, fusion_state)
            x_BLC = x_BLC + update_BLC
        else:
            if placement == "before" and fusion_state is not None:
                x_BLC = x_BLC + self._fuse(x_BLC, fusion_state)
            x_BLC = x_BLC + self._attend(self.input_layernorm(x_BLC), kwargs)
            if placement == "after" and fusion_state is not None:
                x_BLC = x_BLC + self._fuse(x_BLC, fusion_state)
        return x_BLC + self.mlp(self.post_attention_layernorm(x_BLC))

    def _attend(self, normed_BLC: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        return self.self_attn(hidden_states=normed_BLC, **kwargs)[0]

    def _fuse(self, x_BLC: torch.Tensor, state: FusionState) -> torch.Tensor:
        return self.fusion(x_BLC, state, self._host)

    def _fuse_beside(self, x_BLC: torch.Tensor, normed_BLC: torch.Tensor, state: FusionState) -> torch.Tensor:
        """⊕: self-attention and the fusion layer read the same normed text, unless the latter has its own."""
        if self.fusion.settings.text_norm == "own":
            return self._fuse(x_BLC, state)
        return self.fusion(normed_BLC, state, self._host, normed=True)

    @property
    def _host(self) -> HostBlock:
        return HostBlock(self.self_attn, self.input_layernorm)
