"""Attention one query and one head at a time, in float64: what the fast forms must agree with."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def naive_attention(
    query_THD: torch.Tensor,
    key_NGD: torch.Tensor,
    value_NGD: torch.Tensor,
    query_segments: Sequence[int],
    key_segments: Sequence[int],
    *,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    """(T, H, D): each query over the keys of its own segment; zero where there is none. −1 is no segment.

    Causal: a segment's queries are its last keys, in order, and see no key after themselves.
    """
    heads, groups = query_THD.shape[1], key_NGD.shape[1]
    rows = []
    for t, segment in enumerate(query_segments):
        seen = [n for n, own in enumerate(key_segments) if own == segment != -1]
        if causal:
            later = list(query_segments[t + 1 :]).count(segment)
            seen = seen[: len(seen) - later]
        for head in range(heads):
            if not seen:
                rows.append(torch.zeros_like(query_THD[t, head], dtype=torch.float64))
                continue
            group = head * groups // heads
            scores = key_NGD[seen, group].double() @ query_THD[t, head].double() * scale
            weights = scores.exp() / scores.exp().sum()
            rows.append(weights @ value_NGD[seen, group].double())
    return torch.stack(rows).view(query_THD.shape)
