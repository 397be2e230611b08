"""Vision towers: patches in, merged image tokens in the language model's width out.

Two towers share one interface, ``tower(patches_PE, grids) -> (N, C)``, with a ``plan`` or without:
:class:`QwenVisionTower`, Qwen2.5-VL's own with the weight names it was released with, and
:class:`casa_core.backbones.tiny.TinyVisionTower`.

Shape suffixes: P patches of all images, I images, N image tokens, E values of a patch, C width, H heads, D
head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_position_ids,
    get_vision_window_index,
)

from casa_core.backbones.tiny import TinyVisionTower
from casa_core.compiling import on_host
from casa_core.config import CasaConfig
from casa_core.errors import ConfigError
from casa_core.fusion.attention import Segments, segment_attention


class SegmentedVisionAttention(Qwen2_5_VLVisionAttention):
    """Qwen's vision attention, all chunks at once: transformers' own loops over them in Python, and an image
    of 896² pixels has 64 windows in each of 28 blocks.

    Attributes:
        whole_image: Patches attend to their whole image, not only to their window of it.
    """

    whole_image: bool

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(P, C) → (P, C). ``images`` and ``windows`` among ``kwargs`` are the segments to attend in;
        transformers' own, ``cu_seqlens``, are not read."""
        assert position_embeddings is not None, "the tower passes them to every block"
        query_PHD, key_PHD, value_PHD = (
            self.qkv(hidden_states).view(len(hidden_states), 3, self.num_heads, -1).unbind(dim=1)
        )
        query_PHD, key_PHD = apply_rotary_pos_emb_vision(query_PHD, key_PHD, *position_embeddings)
        segments: Segments | None = kwargs["images" if self.whole_image else "windows"]
        out_PHD = segment_attention(query_PHD, key_PHD, value_PHD, segments, causal=False, scale=self.scaling)
        return self.proj(out_PHD.flatten(1))


class PatchProjection(nn.Conv3d):
    """A convolution whose kernel is a whole patch is a matrix product. As that it is fast everywhere;
    libraries have slow or no kernels for it as a convolution of 10^5 patches in bf16."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(P, 3, frames, rows, columns) → (P, C, 1, 1, 1)."""
        return linear(input.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


class QwenVisionTower(Qwen2_5_VisionTransformerPretrainedModel):
    """Qwen2.5-VL's vision tower with its own state-dict keys, so that released weights load unchanged.

    Every image stands alone, frames of a video too: the paper drops Qwen's pairing of frames in time (B.2).

    Args:
        config: Its sizes; ``out_hidden_size`` must be the language model's width.
    """

    def __init__(self, config: Qwen2_5_VLVisionConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.patch_embed.proj.__class__ = PatchProjection  # the same weights, another forward: here and below
        for index, block in enumerate(self.blocks):
            attention = cast(SegmentedVisionAttention, block.attn)
            attention.__class__ = SegmentedVisionAttention
            attention.whole_image = index in self.fullatt_block_indexes

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        patches_PE: torch.Tensor,
        grids: Sequence[tuple[int, int]],
        plan: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        """Embed images.

        Args:
            patches_PE: Patches of all images, each image in merge-group order.
            grids: (rows, columns) of patches of each image.
            plan: What :meth:`plan` gives for them; by default it is made here.

        Returns:
            (N, out_hidden_size), images in order.
        """
        layout = self.plan(grids, patches_PE.device) if plan is None else plan
        output: Any = super().forward(patches_PE, **layout)
        return output.pooler_output

    def plan(self, grids: Sequence[tuple[int, int]], device: torch.device) -> dict[str, Any]:
        """Where the patches of images of these sizes stand, and which attend to which, on a device."""
        # Layout is counted on the CPU: asking a GPU for it would wait for all work queued there.
        grid_I3 = torch.tensor([(1, rows, cols) for rows, cols in grids])
        merge = self.spatial_merge_size
        window_index, window_ends = get_vision_window_index(
            grid_I3, merge, self.window_size, cast(int, self.config.patch_size)
        )
        image_ends = get_vision_cu_seqlens(grid_I3)
        return {
            "grid_thw": grid_I3,
            "position_ids": get_vision_position_ids(grid_I3, merge).to(device, non_blocking=True),
            "cu_seqlens": image_ends,
            "window_index": window_index.to(device, non_blocking=True),
            "cu_window_seqlens": window_ends,
            "images": _segments(image_ends, device),
            "windows": _segments(window_ends, device),
        }


@on_host
def _segments(ends: torch.Tensor, device: torch.device) -> Segments | None:
    """Runs of neighbouring patches, from the running total of their lengths (0 first)."""
    lengths = np.diff(ends.numpy())
    segment_P = np.repeat(np.arange(len(lengths)), lengths)
    return Segments.build(segment_P, segment_P, len(lengths), device)


VisionTower = TinyVisionTower | QwenVisionTower


def build_tower(config: CasaConfig) -> VisionTower:
    """The vision tower that ``config.vision_config`` names, with initial weights.

    Raises:
        ConfigError: If its image tokens are not as wide as the language model.
    """
    vision, width = config.vision_config, config.text_config.hidden_size
    if not isinstance(vision, Qwen2_5_VLVisionConfig):
        return TinyVisionTower(vision, width)
    if vision.out_hidden_size != width:
        raise ConfigError(
            f"The vision tower's image tokens are {vision.out_hidden_size} wide, the language model {width}.",
            "Image tokens enter the language model's layers without another projection.",
            f"Choose a tower with out_hidden_size = {width}, or set it so and train the tower's merger.",
        )
    return QwenVisionTower(vision)


def last_blocks(tower: nn.Module, count: int) -> list[nn.Module]:
    """The last ``count`` transformer blocks of a tower: the part of it that the paper trains (4 of 32).

    Raises:
        ConfigError: If the tower has fewer.
    """
    blocks = list(cast(nn.ModuleList, tower.blocks))
    if not 0 <= count <= len(blocks):
        raise ConfigError(
            f"The last {count} blocks of a vision tower of {len(blocks)} were asked for.",
            "There are no others to train.",
            f"Name a number from 0 to {len(blocks)}.",
        )
    return blocks[len(blocks) - count :]
