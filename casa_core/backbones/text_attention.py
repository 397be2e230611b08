"""Self-attention of the text, as transformers' attention layers call it.

Shape suffixes: B rows, L query tokens, S keys, T flat tokens, H/G query/key-value heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from casa_core.fusion.attention import Backend, Segments, segment_attention

TEXT_ATTENTION = "casa_text"


def text_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    documents: Segments | None = None,
    backend: Backend = "auto",
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Self-attention inside packed documents, or over a cache.

    Args:
        query: (B, H, L, D), as transformers' attention interface has it.
        key, value: (B, G, S, D).
        attention_mask: (B or 1, 1, L, S), True where a token may attend; ``None``: to all tokens before it.
        documents: Packed documents as causal segments, instead of a mask.

    Returns:
        (B, L, H, D), and no weights.
    """
    if documents is not None:
        query_THD, key_TGD, value_TGD = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        out_THD = segment_attention(
            query_THD, key_TGD, value_TGD, documents, causal=True, scale=scaling, backend=backend
        )
        return out_THD.view(query.shape[0], query.shape[2], *out_THD.shape[1:]), None
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        is_causal=attention_mask is None and query.shape[2] > 1,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return out.transpose(1, 2), None


AttentionInterface.register(TEXT_ATTENTION, text_attention)
