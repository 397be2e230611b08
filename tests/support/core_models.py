"""Small fused models with random weights, to be held against the naive forward of naive_helium.py."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers.models.helium import HeliumConfig
from transformers.models.helium.modeling_helium import HeliumRMSNorm

from casa_core.config import CasaConfig, FusionConfig
from casa_core.model import CasaForConditionalGeneration
from tests.support.core_layouts import VOCABULARY, GivenTokens
from tests.support.naive_helium import Sizes

WIDTH = 32


def small_model(dtype: torch.dtype = torch.float64, **fusion: Any) -> CasaForConditionalGeneration:
    """Two layers, grouped queries, image tokens handed in as they are; own weights in each fusion layer."""
    text = HeliumConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=WIDTH // 4,
        initializer_range=0.2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = CasaForConditionalGeneration(CasaConfig(text_config=text, fusion=FusionConfig(**fusion)))
    model.vision_tower = GivenTokens()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)  # ones would hide a norm that is left out
    return model.to(dtype).eval()


def exactly_in_float64(model: CasaForConditionalGeneration) -> CasaForConditionalGeneration:
    """The same model with norms and rotary angles in float64: transformers takes both in float32 always."""
    epsilon = model.config.text_config.rms_norm_eps
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, HeliumRMSNorm):
                norm = nn.RMSNorm(child.weight.shape, eps=epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
    model.language_model.rotary_emb = _Rotary(model.config.text_config)
    return model


class _Rotary(nn.Module):
    """cos and sin of each position, (…, D), the D/2 frequencies twice over as transformers lays them out."""

    def __init__(self, config: HeliumConfig) -> None:
        super().__init__()
        self.theta, self.size = config.rope_parameters["rope_theta"], config.head_dim

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        frequencies = [math.pow(self.theta, -2 * pair / self.size) for pair in range(self.size // 2)] * 2
        angles = position_ids[..., None].double() * torch.tensor(frequencies, dtype=torch.float64)
        return angles.cos(), angles.sin()


def sizes_of(model: CasaForConditionalGeneration) -> Sizes:
    """What the naive forward must know beside the weights."""
    text = model.config.text_config
    return Sizes(
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        key_value_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        theta=text.rope_parameters["rope_theta"],
        epsilon=text.rms_norm_eps,
        fused_layers=frozenset(
            index for index, layer in enumerate(model.language_model.layers) if hasattr(layer, "fusion")
        ),
    )


def weights_of(model: CasaForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The model's weights in float64, ready for gradients of their own; the head is tied to the embedding."""
    weights = {
        name: parameter.detach().double().clone().requires_grad_()
        for name, parameter in model.named_parameters()
    }
    weights["lm_head.weight"] = weights["language_model.embed_tokens.weight"]
    return weights
