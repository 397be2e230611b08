"""Small fused models with random weights, to be held against the naive forward of naive_fusion.py.

Every weight is random, those too that start as ones or zeros: a norm, bias or gate left out would not show.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn
from transformers.models.helium import HeliumConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

from casa_core.config import CasaConfig, FusionConfig, TextConfig, TinyVisionConfig
from casa_core.model import CasaForConditionalGeneration
from tests.support.core.layouts import VOCABULARY, GivenTokens
from tests.support.naive.text import Sizes

BackboneName = Literal["helium", "qwen2_5_vl_text"]

WIDTH = 24
SECTIONS = (1, 1, 1)
"""Turning pairs of a head that follow time, row and column."""


def text_config(backbone: BackboneName = "helium", layers: int = 2) -> TextConfig:
    """A language model of a few thousand weights with grouped queries."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if backbone == "helium":
        return HeliumConfig(**sizes, head_dim=WIDTH // 4, tie_word_embeddings=True)
    rope = {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": list(SECTIONS)}
    return Qwen2_5_VLTextConfig(**sizes, rope_parameters=rope, tie_word_embeddings=False)


def small_model(
    dtype: torch.dtype = torch.float64,
    backbone: BackboneName = "helium",
    num_layers: int = 2,
    **fusion: Any,
) -> CasaForConditionalGeneration:
    """A few layers, random weights, image tokens handed in as they are."""
    torch.manual_seed(0)
    config = CasaConfig(
        text_config=text_config(backbone, num_layers),
        vision_config=TinyVisionConfig(spatial_merge_size=1),
        fusion=FusionConfig(**fusion),
    )
    model = CasaForConditionalGeneration(config)
    model.vision_tower = GivenTokens()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "gate_alpha")):
                parameter.uniform_(0.2, 0.8)
            elif "fusion.gate_proj" in name or "qformer" in name:
                parameter.normal_(std=0.2)
    return model.to(dtype).eval()


def exactly_in_float64(model: CasaForConditionalGeneration) -> CasaForConditionalGeneration:
    """The same model with norms and rotary angles in float64: transformers takes both in float32 always."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child).__name__.endswith("RMSNorm") and not isinstance(child, nn.RMSNorm):
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
    model.language_model.rotary_emb = _Rotary(model.config.text_config)
    return model


class _Rotary(nn.Module):
    """cos and sin of each position, (…, D), the D/2 frequencies twice over as transformers lays them out."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.theta, self.size = config.rope_parameters["rope_theta"], head_dim(config)
        sections = config.rope_parameters.get("mrope_section", [])
        self.axis_of_pair = [axis for axis, count in enumerate(sections) for _ in range(count)]

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``position_ids`` are (B, L), or (3, B, L) with multimodal RoPE."""
        frequencies = [math.pow(self.theta, -2 * pair / self.size) for pair in range(self.size // 2)]
        if self.axis_of_pair:
            position_of_pair = position_ids.double()[self.axis_of_pair].movedim(0, -1)
        else:
            position_of_pair = position_ids.double()[..., None]
        angles = position_of_pair * torch.tensor(frequencies, dtype=torch.float64)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def head_dim(config: TextConfig) -> int:
    """D; Qwen's configuration does not state it."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def sizes_of(model: CasaForConditionalGeneration) -> Sizes:
    """What the naive forward must know beside the weights."""
    text, fusion = model.config.text_config, model.config.fusion_settings
    every_layer = fusion.layers == "all" or (fusion.layers == "auto" and fusion.placement != "replace")
    fused = range(text.num_hidden_layers) if every_layer else fusion.layers
    assert not isinstance(fused, str | int), "name the layers: which ones a rule chooses is tested elsewhere"
    return Sizes(
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        key_value_heads=text.num_key_value_heads,
        head_dim=head_dim(text),
        theta=text.rope_parameters["rope_theta"],
        epsilon=text.rms_norm_eps,
        sections=tuple(text.rope_parameters.get("mrope_section", ())),
        fused_layers=frozenset(fused),
        fusion=fusion,
    )


def weights_of(model: CasaForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The model's weights in float64, ready for gradients of their own; a tied head is the embedding."""
    weights = {
        name: parameter.detach().double().clone().requires_grad_()
        for name, parameter in model.named_parameters()
    }
    weights.setdefault("lm_head.weight", weights["language_model.embed_tokens.weight"])
    return weights
