"""A small vision tower and a small Helium: the large models' path at a size that trains on two CPU cores.

The tower has the interface of Qwen2.5-VL's: flattened patches in merge-group order and each image's patch
grid go in, merged image tokens come out. Its patch embedding is a stack of strided convolutions over the
reassembled picture instead of one linear map: trained from scratch, that finds edges in a fraction of the
steps.

Shape suffixes: P patches of all images, N image tokens, E patch size in values, C tower width, H heads, D
head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

import numpy as np
import torch
from torch import nn
from transformers.models.helium import HeliumConfig

from casa_core.compiling import on_host
from casa_core.config import CasaConfig, FusionConfig, TinyVisionConfig
from casa_core.fusion.attention import Segments, segment_attention

POSITION_SCALE = 0.3
"""Of the embedding of positions: at 1 where a patch lies outweighs what it shows."""


class TinyVisionBlock(nn.Module):
    """Pre-norm attention inside each image, then an MLP."""

    def __init__(self, config: TinyVisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, config.intermediate_size),
            nn.GELU(),
            nn.Linear(config.intermediate_size, config.hidden_size),
        )

    def forward(self, x_PC: torch.Tensor, images: Segments) -> torch.Tensor:
        """(P, C) → (P, C)."""
        query, key, value = (
            self.qkv(self.norm1(x_PC)).view(len(x_PC), 3, self.num_heads, -1).unbind(dim=1)
        )  # each (P, H, D)
        x_PC = x_PC + self.proj(segment_attention(query, key, value, images, causal=False).flatten(1))
        return x_PC + self.mlp(self.norm2(x_PC))


class ConvStem(nn.Module):
    """Patches → pictures → strided convolutions, one halving at a time → patches.

    Args:
        config: ``patch_size`` must be a power of two.
    """

    def __init__(self, config: TinyVisionConfig) -> None:
        super().__init__()
        self.config = config
        halvings = config.patch_size.bit_length() - 1
        widths = [max(16, config.hidden_size >> (halvings - 1 - i)) for i in range(halvings)]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1, bias=False)
            for before, after in zip([config.in_channels, *widths], widths, strict=False)
        )
        # Each channel over its picture, so that an edge weighs the same whatever the colours beside it. It
        # takes a convolution's bias away again, so they have none.
        self.norms = nn.ModuleList(nn.GroupNorm(width, width) for width in widths)

    def forward(self, patches_PE: torch.Tensor, grids: Sequence[tuple[int, int]]) -> torch.Tensor:
        """(P, E) → (P, C), in the same order; neighbouring images of one size go through together."""
        sizes = [rows * cols for rows, cols in grids]
        outputs, start = [], 0
        for (rows, cols), group in groupby(grids):
            count = rows * cols * len(list(group))
            outputs.append(self._same_size(patches_PE[start : start + count], rows, cols))
            start += count
        assert start == sum(sizes) == len(patches_PE), "patches and grids disagree"
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def _same_size(self, patches_PE: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
        merge, patch = self.config.spatial_merge_size, self.config.patch_size
        tiles = patches_PE.view(
            -1, rows // merge, cols // merge, merge, merge, self.config.in_channels, patch, patch
        )
        pixels = tiles.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(
            len(tiles), self.config.in_channels, rows * patch, cols * patch
        )
        for conv, norm in zip(self.convs, self.norms, strict=True):
            pixels = nn.functional.gelu(norm(conv(pixels)))
        cells = pixels.permute(0, 2, 3, 1).reshape(len(tiles), rows // merge, merge, cols // merge, merge, -1)
        return cells.transpose(2, 3).reshape(len(patches_PE), -1)


class TinyVisionTower(nn.Module):
    """Patches → transformer → merged image tokens in the language model's width."""

    def __init__(self, config: TinyVisionConfig, output_size: int) -> None:
        super().__init__()
        self.config = config
        merged = config.hidden_size * config.spatial_merge_size**2
        self.stem = ConvStem(config)
        self.blocks = nn.ModuleList(TinyVisionBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.merger = nn.Sequential(nn.Linear(merged, merged), nn.GELU(), nn.Linear(merged, output_size))

    def forward(
        self,
        patches_PE: torch.Tensor,
        grids: Sequence[tuple[int, int]],
        plan: tuple[torch.Tensor, Segments] | None = None,
    ) -> torch.Tensor:
        """Embed images, (N, output_size) in order; arguments as in ``QwenVisionTower.forward``."""
        merge = self.config.spatial_merge_size
        width = self.config.hidden_size
        position_PC, images = self.plan(grids, patches_PE.device) if plan is None else plan
        x_PC = self.stem(patches_PE, grids) + position_PC.to(patches_PE)
        for block in self.blocks:
            x_PC = block(x_PC, images)
        return self.merger(self.norm(x_PC).view(-1, merge * merge * width))

    @on_host
    def plan(self, grids: Sequence[tuple[int, int]], device: torch.device) -> tuple[torch.Tensor, Segments]:
        """The position embedding (P, C) of the patches of such images, and the images as segments."""
        merge, width = self.config.spatial_merge_size, self.config.hidden_size
        position_PC = np.concatenate([_position_embedding(rows, cols, merge, width) for rows, cols in grids])
        image_P = np.repeat(np.arange(len(grids)), [rows * cols for rows, cols in grids])
        images = Segments.build(image_P, image_P, len(grids), device)
        assert images is not None, "the caller passes at least one image"
        return torch.from_numpy(position_PC).to(device), images


@lru_cache(maxsize=256)
def _position_embedding(rows: int, cols: int, merge: int, width: int) -> np.ndarray:
    """Fixed sine–cosine embedding of each patch's row and column, (rows·cols, width), in merge-group
    order."""
    frequency = 1.0 / 100.0 ** (np.arange(width // 4) / (width // 4))
    row, col = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
    angles = np.concatenate([row[..., None] * frequency, col[..., None] * frequency], axis=-1)
    table = POSITION_SCALE * np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)
    grouped = table.reshape(rows // merge, merge, cols // merge, merge, width).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(grouped.reshape(-1, width))


def tiny_config(
    *,
    vocab_size: int,
    pad_token_id: int,
    eos_token_id: int,
    fusion: FusionConfig | None = None,
    hidden_size: int = 96,
    num_hidden_layers: int = 3,
    images_withheld: bool = False,
    vision: TinyVisionConfig | None = None,
) -> CasaConfig:
    """The quickstart's model: three quarters of a million parameters, every mechanism of the large ones.

    Args:
        fusion: Fusion settings; CA ⊕ in every layer by default.
        hidden_size: Width of the language model; four heads of hidden_size / 4, two key/value heads.
        images_withheld: Mark the blind baseline.
    """
    text = HeliumConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 4,  # where what a word names meets what the picture shows
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden_size // 4,
        # Keeps a layer's variance: at 0.02 hundreds of steps learn nothing.
        initializer_range=hidden_size**-0.5,
        max_position_embeddings=4096,
        tie_word_embeddings=False,  # as Helium1-2B
        pad_token_id=pad_token_id,
        bos_token_id=None,
        eos_token_id=eos_token_id,
    )
    return CasaConfig(
        text_config=text,
        vision_config=vision or TinyVisionConfig(),
        fusion=fusion,
        images_withheld=images_withheld,
    )
