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
    """(T, H, D): each query over the keys of its own segment; zero where there is none. −1 is no segment."""
    heads, groups = query_THD.shape[1], key_NGD.shape[1]
    rows = []
    for t, segment in enumerate(query_segments):
        seen = [n for n, own in enumerate(key_segments) if own == segment != -1 and (n <= t or not causal)]
        for head in range(heads):
            if not seen:
                rows.append(torch.zeros_like(query_THD[t, head], dtype=torch.float64))
                continue
            group = head * groups // heads
            scores = [query_THD[t, head].double() @ key_NGD[n, group].double() * scale for n in seen]
            weights = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
            rows.append(
                sum(weight * value_NGD[n, group].double() for weight, n in zip(weights, seen, strict=True))
            )
    return torch.stack(rows).view(query_THD.shape)
