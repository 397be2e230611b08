"""Attention inside segments: one function for packed self-attention and for cross-attention windows.

A *segment* pairs a group of query tokens with a group of key tokens: a document with itself (causal
self-attention of packed text), a window's text with its image tokens (cross-attention), an image's patches
with themselves (the vision tower). Tokens of different segments never see each other.

All backends (:mod:`casa_core.fusion.backends`) compute the same thing; ``reference`` is the one to read.

Shape suffixes: T query tokens, N key tokens, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

import math
from typing import overload

import torch

from casa_core.compiling import on_host
from casa_core.errors import ConfigError
from casa_core.fusion.backends import Backend, attend_padded, attend_varlen, choose_backend, run_kernel
from casa_core.fusion.segments import Segments, Tokens, joined

__all__ = ["Backend", "Segments", "segment_attention", "segment_attention_weights"]


@on_host
def segment_attention(
    query_THD: torch.Tensor,
    key_NGD: Tokens,
    value_NGD: Tokens,
    segments: Segments | None,
    *,
    causal: bool,
    scale: float | None = None,
    backend: Backend = "auto",
    allowed_TN: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multi-head attention of each query over the keys of its own segment (paper, eq. 2, inside windows).

    Args:
        query_THD: Queries, already rotated where positions apply.
        key_NGD: Keys; H must be a multiple of G (grouped-query attention). Several tensors stand one after
            another: they are copied once, to where they are needed, instead of joined first and then moved.
        value_NGD: Values, in the same way.
        segments: Which queries attend to which keys; ``None`` when no query attends to any.
        causal: A segment's queries are its last keys, in order, and a query sees no later key: packed text
            (as many queries as keys), or eq. 3 (image keys, then text keys).
        scale: Softmax scale; D^-1/2 by default.
        backend: Which kernel; ``auto`` takes the best that can run.
        allowed_TN: True where a query may see a key of its segment (bool); only ``reference`` honours it.

    Returns:
        (T, H, D), in the autocast type under autocast; zero for queries that see no key.

    Raises:
        ConfigError: If the backend cannot run here, or ``allowed_TN`` is given to another than ``reference``.
    """
    if allowed_TN is not None and backend != "reference":
        raise ConfigError(
            f"`allowed_TN` was given to the attention backend {backend!r}.",
            "A mask of its own for every pair of tokens needs the dense matrix of them.",
            'Name backend="reference".',
        )
    query_THD, key_NGD, value_NGD = _autocast(query_THD), _autocast(key_NGD), _autocast(value_NGD)
    chosen = choose_backend(backend, query_THD.device, query_THD.dtype, query_THD.shape[-1])
    if segments is None:
        return torch.zeros_like(query_THD)
    if causal:
        segments.check_causal()
    if chosen == "reference":
        weights_HTN = segment_attention_weights(
            query_THD, joined(key_NGD), segments, causal=causal, scale=scale, allowed_TN=allowed_TN
        )
        return _weighted_values(weights_HTN, joined(value_NGD))
    scale = 1 / math.sqrt(query_THD.shape[-1]) if scale is None else scale
    if chosen == "padded":
        return attend_padded(query_THD, key_NGD, value_NGD, segments, causal, scale)
    return attend_varlen(run_kernel(chosen), query_THD, key_NGD, value_NGD, segments, causal, scale)


def segment_attention_weights(
    query_THD: torch.Tensor,
    key_NGD: torch.Tensor,
    segments: Segments | None,
    *,
    causal: bool,
    scale: float | None = None,
    allowed_TN: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weights with which the reference backend mixes values, as one dense matrix: for analysis.

    Args:
        query_THD, key_NGD, segments, causal, scale: As in :func:`segment_attention`.
        allowed_TN: True where a query may see a key of its segment (bool); ``None`` for all of them.

    Returns:
        (H, T, N) in fp32, or fp64 where the inputs are; rows sum to 1, or are 0 where nothing is visible.
    """
    heads, size = query_THD.shape[1:]
    exact = torch.promote_types(query_THD.dtype, torch.float32)
    if segments is None:
        return query_THD.new_zeros(heads, len(query_THD), len(key_NGD), dtype=exact)
    visible_TN = segments.visible_TN(causal=causal)
    if allowed_TN is not None:
        visible_TN = visible_TN & allowed_TN
    key_NHD = key_NGD.to(exact).repeat_interleave(heads // key_NGD.shape[1], dim=1)
    with torch.autocast(query_THD.device.type, enabled=False):
        scores_HTN = torch.einsum("thd,nhd->htn", query_THD.to(exact), key_NHD)
    scores_HTN = scores_HTN * (size**-0.5 if scale is None else scale)
    scores_HTN = scores_HTN.masked_fill(~visible_TN, float("-inf"))
    # A row that sees no key is all −inf: its softmax is NaN by definition, and its update zero by eq. 2.
    return torch.softmax(scores_HTN, dim=-1).nan_to_num(0.0)


def _weighted_values(weights_HTN: torch.Tensor, value_NGD: torch.Tensor) -> torch.Tensor:
    value_NHD = value_NGD.repeat_interleave(len(weights_HTN) // value_NGD.shape[1], dim=1)
    with torch.autocast(value_NGD.device.type, enabled=False):
        out_THD = torch.einsum("htn,nhd->thd", weights_HTN, value_NHD.to(weights_HTN.dtype))
    return out_THD.to(value_NGD.dtype)


@overload
def _autocast(tokens: torch.Tensor) -> torch.Tensor: ...
@overload
def _autocast(tokens: Tokens) -> Tokens: ...
def _autocast(tokens: Tokens) -> Tokens:
    """Tokens in autocast's type, as torch's own attention would cast them; not every kernel here is torch's.

    RoPE leaves queries and keys in fp32 under autocast, values in bf16.
    """
    if not isinstance(tokens, torch.Tensor):
        return [_autocast(part) for part in tokens]
    kind = tokens.device.type
    if not torch.is_autocast_enabled(kind) or tokens.dtype == torch.float64:
        return tokens
    return tokens.to(torch.get_autocast_dtype(kind))
