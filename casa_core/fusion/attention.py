"""Attention inside segments: one function for packed self-attention and for cross-attention windows.

A *segment* pairs a group of query tokens with a group of key tokens: a document with itself (causal
self-attention of packed text), a window's text with its image tokens (cross-attention), an image's patches
with themselves (the vision tower). Tokens of different segments never see each other.

Two backends compute the same thing:

* ``reference``: one dense mask over all queries and keys. Readable, quadratic; tests and audits use it.
* ``padded``: segments padded into a batch for ``scaled_dot_product_attention``. The fast path: its cost is
  the sum over segments of queries × keys (plus padding), not all queries × all keys.

Shape suffixes: T query tokens, N key tokens, S segments, Q/K longest query/key run of a segment, H query
heads, G key/value heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

from casa_core.errors import ConfigError

Backend = Literal["auto", "padded", "reference"]


@dataclass(frozen=True)
class Segments:
    """Index tensors that move tokens between their flat order and the padded batch, built once per forward.

    Attributes:
        query_segment_T, key_segment_N: Segment of each token, −1 for queries outside every segment.
        query_index_SQ, key_index_SK: Flat index of each padded slot (0 where the slot is padding).
        query_slot_T: Slot of each query in the flattened (S·Q) batch; S·Q, an appended zero row, for −1.
        key_mask_S11K: True where a key slot is real; ``None`` when no key slot is padding.
        uniform_queries, uniform_keys: No padding, and flat order is slot order: views suffice.
        query_length_S, key_length_S: Tokens of each segment.
        same_lengths: Each segment has as many queries as keys.
    """

    query_segment_T: torch.Tensor
    key_segment_N: torch.Tensor
    query_index_SQ: torch.Tensor
    query_slot_T: torch.Tensor
    key_index_SK: torch.Tensor
    key_mask_S11K: torch.Tensor | None
    uniform_queries: bool
    uniform_keys: bool
    query_length_S: torch.Tensor
    key_length_S: torch.Tensor
    same_lengths: bool

    @classmethod
    def build(
        cls,
        query_segment_T: NDArray[np.int64],
        key_segment_N: NDArray[np.int64],
        count: int,
        device: torch.device | str,
    ) -> Segments | None:
        """Segments that have both a query and a key; ``None`` when there is none at all."""
        queries_S = np.bincount(query_segment_T[query_segment_T >= 0], minlength=count)
        keys_S = np.bincount(key_segment_N[key_segment_N >= 0], minlength=count)
        live_S = (queries_S > 0) & (keys_S > 0)
        if not live_S.any():
            return None
        renumber_S = np.where(live_S, np.cumsum(live_S) - 1, -1)
        query_T = np.where(query_segment_T >= 0, renumber_S[query_segment_T], -1)
        key_N = np.where(key_segment_N >= 0, renumber_S[key_segment_N], -1)
        segments = int(live_S.sum())
        query_index, query_slot, _, uniform_q = _pad(query_T, segments)
        key_index, _, key_real, uniform_k = _pad(key_N, segments)
        tensor = lambda array: torch.from_numpy(array).to(device)  # noqa: E731
        return cls(
            query_segment_T=tensor(query_T),
            key_segment_N=tensor(key_N),
            query_index_SQ=tensor(query_index),
            query_slot_T=tensor(query_slot),
            key_index_SK=tensor(key_index),
            key_mask_S11K=None if key_real.all() else tensor(key_real)[:, None, None, :],
            uniform_queries=uniform_q,
            uniform_keys=uniform_k,
            query_length_S=tensor(queries_S[live_S]),
            key_length_S=tensor(keys_S[live_S]),
            same_lengths=bool((queries_S[live_S] == keys_S[live_S]).all()),
        )

    @cached_property
    def tail_T(self) -> torch.Tensor:
        """Keys that stand before the first query, in each query's segment."""
        before_S = self.key_length_S - self.query_length_S
        return before_S[self.query_segment_T.clamp(min=0)]

    @cached_property
    def causal_mask_S1QK(self) -> torch.Tensor:
        """True where a padded key slot is visible to a padded query slot, queries being the last keys."""
        query_Q = torch.arange(self.query_index_SQ.shape[1], device=self.query_length_S.device)
        key_K = torch.arange(self.key_index_SK.shape[1], device=self.query_length_S.device)
        last_SQ = query_Q + (self.key_length_S - self.query_length_S)[:, None]
        visible_SQK = (key_K <= last_SQ[..., None]) & (key_K < self.key_length_S[:, None, None])
        return visible_SQK[:, None]


def _pad(
    segment_T: NDArray[np.int64], segments: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], bool]:
    """Padded slots of tokens grouped by segment: index (S, L), slot of each token, real slots, no-op or
    not."""
    order = np.argsort(segment_T, kind="stable")
    order = order[segment_T[order] >= 0]
    lengths_S = np.bincount(segment_T[order], minlength=segments)
    longest = int(lengths_S.max())
    real_SL = np.arange(longest) < lengths_S[:, None]
    index_SL = np.zeros((segments, longest), dtype=np.int64)
    index_SL[real_SL] = order
    slot_T = np.full(len(segment_T), segments * longest, dtype=np.int64)
    slot_T[order] = np.flatnonzero(real_SL)
    uniform = bool(real_SL.all() and len(order) == len(segment_T) and (order == np.arange(len(order))).all())
    return index_SL, slot_T, real_SL, uniform


def segment_attention(
    query_THD: torch.Tensor,
    key_NGD: torch.Tensor,
    value_NGD: torch.Tensor,
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
        key_NGD: Keys; H must be a multiple of G (grouped-query attention).
        value_NGD: Values.
        segments: Who attends to whom; ``None`` when nobody attends to anything.
        causal: A segment's queries are its last keys, in order, and a query sees no later key: packed text
            (as many queries as keys), or eq. 3 (image keys, then text keys).
        scale: Softmax scale; D^-1/2 by default.
        backend: ``padded`` (``auto``), or ``reference``.
        allowed_TN: True where a query may see a key of its segment (bool); only ``reference`` honours it.

    Returns:
        (T, H, D); zero for queries that see no key.

    Raises:
        ConfigError: If ``allowed_TN`` is given to another backend than ``reference``.
    """
    if allowed_TN is not None and backend != "reference":
        raise ConfigError(
            f"allowed_TN was given to the attention backend {backend!r}",
            "a mask of its own for every pair of tokens needs the dense matrix of them",
            'name backend="reference"',
        )
    if segments is None:
        return torch.zeros_like(query_THD)
    if backend == "reference":
        return _attend_reference(query_THD, key_NGD, value_NGD, segments, causal, scale, allowed_TN)
    return _attend_padded(query_THD, key_NGD, value_NGD, segments, causal, scale)


def _attend_padded(
    query_THD: torch.Tensor,
    key_NGD: torch.Tensor,
    value_NGD: torch.Tensor,
    segments: Segments,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    tokens, heads, size = query_THD.shape
    query_SHQD = _to_batch(query_THD, segments.query_index_SQ, segments.uniform_queries)
    key_SGKD = _to_batch(key_NGD, segments.key_index_SK, segments.uniform_keys)
    value_SGKD = _to_batch(value_NGD, segments.key_index_SK, segments.uniform_keys)
    # Padding stands at the right end, so a causal mask over equal lengths already hides it from every query.
    aligned = causal and segments.same_lengths
    mask = segments.causal_mask_S1QK if causal else segments.key_mask_S11K
    out_SHQD = scaled_dot_product_attention(
        query_SHQD,
        key_SGKD,
        value_SGKD,
        attn_mask=None if aligned else mask,
        is_causal=aligned,
        scale=scale,
        enable_gqa=key_NGD.shape[1] != heads,
    )
    out_XHD = out_SHQD.transpose(1, 2).reshape(-1, heads, size)
    if segments.uniform_queries:
        return out_XHD
    zero_row = out_XHD.new_zeros(1, heads, size)
    return torch.cat([out_XHD, zero_row]).index_select(0, segments.query_slot_T).view(tokens, heads, size)


def _to_batch(tokens_XHD: torch.Tensor, index_SL: torch.Tensor, uniform: bool) -> torch.Tensor:
    """(X, H, D) → (S, H, L, D)."""
    rows = tokens_XHD if uniform else tokens_XHD.index_select(0, index_SL.flatten())
    return rows.view(*index_SL.shape, *tokens_XHD.shape[1:]).transpose(1, 2)


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
    if segments is None:
        return query_THD.new_zeros(heads, len(query_THD), len(key_NGD), dtype=_exact(query_THD))
    query_THD, key_NGD = query_THD.to(_exact(query_THD)), key_NGD.to(_exact(query_THD))
    key_NHD = key_NGD.repeat_interleave(heads // key_NGD.shape[1], dim=1)
    visible_TN = segments.query_segment_T[:, None] == segments.key_segment_N[None, :]
    visible_TN &= segments.query_segment_T[:, None] >= 0
    if causal:
        last_T = _rank(segments.query_segment_T) + segments.tail_T
        visible_TN &= _rank(segments.key_segment_N)[None] <= last_T[:, None]
    if allowed_TN is not None:
        visible_TN = visible_TN & allowed_TN
    with torch.autocast(query_THD.device.type, enabled=False):
        scores_HTN = torch.einsum("thd,nhd->htn", query_THD, key_NHD) * (
            size**-0.5 if scale is None else scale
        )
        scores_HTN = scores_HTN.masked_fill(~visible_TN, float("-inf"))
        # A row without any visible key is all −inf: its softmax is NaN by definition and its update zero by
        # eq. 2.
        return torch.softmax(scores_HTN, dim=-1).nan_to_num(0.0)


def _attend_reference(
    query_THD: torch.Tensor,
    key_NGD: torch.Tensor,
    value_NGD: torch.Tensor,
    segments: Segments,
    causal: bool,
    scale: float | None,
    allowed_TN: torch.Tensor | None,
) -> torch.Tensor:
    weights_HTN = segment_attention_weights(
        query_THD, key_NGD, segments, causal=causal, scale=scale, allowed_TN=allowed_TN
    )
    value_NHD = value_NGD.repeat_interleave(query_THD.shape[1] // value_NGD.shape[1], dim=1)
    with torch.autocast(query_THD.device.type, enabled=False):
        out_THD = torch.einsum("htn,nhd->thd", weights_HTN, value_NHD.to(weights_HTN.dtype))
    return out_THD.to(value_NGD.dtype)


def _exact(tensor: torch.Tensor) -> torch.dtype:
    """fp32, or fp64 for what is fp64 already."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _rank(segment_X: torch.Tensor) -> torch.Tensor:
    """How many tokens of its segment stand before each token."""
    sorted_X, order_X = segment_X.sort(stable=True)
    first_X = torch.searchsorted(sorted_X, sorted_X)
    place_X = torch.arange(len(segment_X), device=segment_X.device)
    return torch.empty_like(segment_X).index_copy_(0, order_X, place_X - first_X)
