"""The Q-Former: an image's tokens → a few query tokens, to be inserted into the text stream.

"A small transformer block is applied to the N image tokens … alongside Q learnable queries; only the Q
queries are then inserted" (paper, section 4.4). Width, heads and depth are not published: the width is the
language model's, heads too, and the depth a setting.

Shape suffixes: N image tokens, Q queries, I images, Z = N + I·Q tokens of all images and their queries, C
width, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from casa_core.compiling import on_host
from casa_core.fusion.attention import Backend, Segments, segment_attention


class QFormerBlock(nn.Module):
    """Pre-norm attention among an image's tokens and queries, then an MLP.

    Args:
        size: C.
        num_heads: H.
    """

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(size)
        self.qkv = nn.Linear(size, 3 * size)
        self.proj = nn.Linear(size, size)
        self.norm2 = nn.LayerNorm(size)
        self.mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, z_ZC: torch.Tensor, images: Segments, backend: Backend) -> torch.Tensor:
        """(Z, C) → (Z, C)."""
        query, key, value = self.qkv(self.norm1(z_ZC)).view(len(z_ZC), 3, self.num_heads, -1).unbind(dim=1)
        attended = segment_attention(query, key, value, images, causal=False, backend=backend)
        z_ZC = z_ZC + self.proj(attended.flatten(1))
        return z_ZC + self.mlp(self.norm2(z_ZC))


class QFormer(nn.Module):
    """Compresses each image to the same number of tokens.

    Args:
        size: C, the language model's width.
        num_heads: Attention heads.
        queries: Tokens per image after compression.
        depth: Transformer blocks.
    """

    def __init__(self, size: int, num_heads: int, queries: int, depth: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(queries, size))
        self.blocks = nn.ModuleList(QFormerBlock(size, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(size)

    def forward(self, image_NC: torch.Tensor, image_tokens: Sequence[int], backend: Backend) -> torch.Tensor:
        """Compress images.

        Args:
            image_NC: Tokens of all images, in order.
            image_tokens: Tokens of each image.
            backend: Attention backend.

        Returns:
            (I·Q, C), images in order.
        """
        count, queries = len(image_tokens), len(self.queries)
        images = _segments(image_tokens, queries, image_NC.device)
        z_ZC = torch.cat([image_NC, self.queries.to(image_NC.dtype).repeat(count, 1)])
        for block in self.blocks:
            z_ZC = block(z_ZC, images, backend)
        return self.norm(z_ZC[len(image_NC) :])


@on_host
def _segments(image_tokens: Sequence[int], queries: int, device: torch.device) -> Segments:
    """A segment per image: its tokens, and its queries, which follow all images' tokens."""
    count = len(image_tokens)
    image_N = np.repeat(np.arange(count), image_tokens)
    image_Z = np.concatenate([image_N, np.repeat(np.arange(count), queries)])
    images = Segments.build(image_Z, image_Z, count, device)
    assert images is not None, "the caller passes at least one image"
    return images
