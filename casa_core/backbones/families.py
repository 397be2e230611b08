"""The text backbones, one record each: what differs between them, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.models.helium import HeliumModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from casa_core.backbones import helium, qwen2_5_vl
from casa_core.backbones.block import FusedBlock
from casa_core.config import CasaConfig
from casa_core.fusion.config import FusionConfig
from casa_core.fusion.layers import FusionLayer, Rope, Rotate


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A text backbone.

    Attributes:
        model: transformers' text model.
        fused_block: Its decoder layer with a fusion layer inside.
        rotate: Its RoPE on flat tokens.
        window_rope: (model, positions (A, X), like) → what ``rotate`` takes.
        text_rope: (model, positions (A, B, L), like) → what its decoder layers take.
    """

    model: type[Any]
    fused_block: type[FusedBlock]
    rotate: Rotate
    window_rope: Callable[[Any, torch.Tensor, torch.Tensor], Rope]
    text_rope: Callable[[Any, torch.Tensor, torch.Tensor], Rope]

    def fuse(self, language_model: nn.Module, settings: FusionConfig) -> None:
        """Give the chosen blocks their fusion layers, in place; weights stay uninitialised."""
        layers = language_model.layers
        assert isinstance(layers, nn.ModuleList)
        for index in settings.layer_indices(len(layers)):
            layer: Any = layers[index]
            layer.__class__ = self.fused_block
            layer.fusion = FusionLayer(settings, layer.self_attn, layer.input_layernorm, index, self.rotate)


_FAMILIES = {
    "helium": Family(
        model=HeliumModel,
        fused_block=helium.FusedHeliumDecoderLayer,
        rotate=helium.rotate,
        window_rope=helium.window_rope,
        text_rope=helium.text_rope,
    ),
    "qwen2_5_vl_text": Family(
        model=Qwen2_5_VLTextModel,
        fused_block=qwen2_5_vl.FusedQwenDecoderLayer,
        rotate=qwen2_5_vl.rotate,
        window_rope=qwen2_5_vl.window_rope,
        text_rope=qwen2_5_vl.text_rope,
    ),
}


def family_of(config: CasaConfig) -> Family:
    """The family of a model's text backbone (:class:`CasaConfig` has refused all others)."""
    return _FAMILIES[config.text_config.model_type]
